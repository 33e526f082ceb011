"""What a node claims about another, which is not so, does no harm (protocol 6.5, 6.6)."""

import asyncio

from tsbus import Request, Worker
from tsbus.core import message as wire
from tsbus.core.directory import NodeState
from tsbus.peer import Decision
from tsbus.testing import MemoryTree


async def test_a_false_claim_ends_no_call() -> None:
    """A call goes on while the node that answers it outbids what its sibling claimed about it."""
    let_go = asyncio.Event()
    worker = Worker("job")

    @worker.command("wait")
    async def wait(_: Request) -> None:
        await let_go.wait()

    async with MemoryTree({"root": ["a", "b"]}) as tree:
        await tree.run(worker, "a")
        client = await tree.connect("root")
        call = client.request("a", "job.wait")
        await tree.settle()
        root = tree.router("root")
        liar = root.links.by_way["b"]
        claim = wire.Entry("a", 1 << 50, 0, NodeState.UP, "b", 7, "joined", 0)
        nothing = Decision(wire.Lane.CONTROL, wire.Route(0))
        root.news.on_directory(liar, nothing, b"", b"", wire.encode(wire.Directory([claim])))
        await tree.advance(1)
        assert root.counters["doubted"] == 1
        entry = root.directory.entries["a"]
        assert (entry.parent, entry.epoch) == ("root", (1 << 50) + 1)
        let_go.set()
        await tree.settle()
        assert (await call.result()).ok == {"a"}
