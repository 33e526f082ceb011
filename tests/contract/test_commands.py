"""Commands, as every user of the bus may count on them, in memory and on real sockets (protocol section 10)."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from beds import CHILDREN, Bed

from tsbus import CallFailed, CommandError, Outcome, PayloadTooLarge, RefusedError, Request, UnknownTarget, Worker

MIB = 1024 * 1024
ALL = frozenset(CHILDREN)


def service() -> Worker:
    """Return a worker whose commands the tests call; `worker.log` says what happened to it."""
    worker = Worker("job")
    log: list[str] = []
    worker.log = log  # type: ignore[attr-defined]

    @worker.command("echo")
    async def echo(call: Request) -> object:
        log.append("echo")
        return {"node": call.node, "origin": call.origin, "who": call.who, "person": call.person, "got": call.json()}

    @worker.command("plain")
    def plain(call: Request) -> bytes:
        return call.body

    @worker.command("count")
    async def count(call: Request) -> AsyncIterator[object]:
        for number in range(call.json()):
            log.append(f"sent {number}")
            yield f"{number};"

    @worker.command("two")
    async def two(call: Request) -> str:
        await call.send("out;")
        await call.send("err;", second=True)
        return "end"

    @worker.command("hang")
    async def hang(call: Request) -> None:
        log.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            log.append("over")

    @worker.command("fail")
    async def fail(call: Request) -> None:
        raise {"value": ValueError("no good"), "command": CommandError("so sorry"), "refused": RefusedError("not you")}[
            call.text()
        ]

    @worker.command("large")
    async def large(call: Request) -> object:
        size = call.json()
        return bytes(size) if size > 0 else "x" * -size

    @worker.command("sum")
    async def total(call: Request) -> object:
        chunks = [len(chunk) async for chunk in call.input]
        return {"bytes": sum(chunks), "chunks": len(chunks)}

    @worker.command("secret", role="admin")
    async def secret(call: Request) -> str:
        return "secret"

    return worker


@pytest.mark.parametrize(
    ("target", "nodes"),
    [
        ("c", {"c"}),
        ("a,b", {"a", "b"}),
        ("[a-b]", None),
        ("@web", {"a", "c"}),
        ("a/", {"a", "c"}),
        ("*", ALL),
        ("*,!b", {"root", "a", "c"}),
        (".", {"root"}),
    ],
)
async def test_targets(bed: Bed, target: str, nodes: set[str] | None) -> None:
    """A call reaches the nodes that its target selects, each once, and the account names them all."""
    workers = [await bed.run(service(), node) for node in CHILDREN]
    client = await bed.connect("root")
    if nodes is None:
        with pytest.raises(UnknownTarget):
            await bed.done(client.call(target, "job.echo"))
        return
    result = await bed.done(client.call(target, "job.echo", {"x": 1}))
    assert result.complete
    assert result.ok == result.nodes == nodes
    assert {node: value["node"] for node, value in result.values().items()} == {node: node for node in nodes}
    assert all(value["origin"] == "root" and value["got"] == {"x": 1} for value in result.values().values())
    assert sum(len(worker.log) for worker in workers) == len(nodes)  # type: ignore[attr-defined]


async def test_whom_it_is_for(bed: Bed) -> None:
    """A client that asks for a person says so at every node, stays who it is, and is itself again (10.8)."""
    await bed.run(service(), "c")
    client = await bed.connect("root")
    for asking, person in ((client.for_person("alice"), "alice"), (client, "")):
        said = (await bed.done(asking.call("c", "job.echo", 1))).values()["c"]
        assert (said["person"], said["who"]) == (person, client.who)
    with pytest.raises(ValueError, match="128 bytes"):
        client.for_person("a" * 129)


async def test_replies_stream(bed: Bed) -> None:
    """Pieces of every node arrive in its order, the last one says how it ended, and the set is known before."""
    for node in ("b", "c"):
        await bed.run(service(), node)
    client = await bed.connect("root")
    call = client.request("b,c", "job.count", 3)
    assert await bed.done(call.nodes()) == {"b", "c"}
    replies = await bed.done(_replies(call))
    for node in ("b", "c"):
        mine = [reply for reply in replies if reply.node == node]
        assert [reply.text() for reply in mine] == ["0;", "1;", "2;", ""]
        assert [reply.last for reply in mine] == [False, False, False, True]
        assert [reply.seq for reply in mine] == [0, 1, 2, 3]
    assert (await call.result()).ok == {"b", "c"}


async def test_result_joins_the_first_stream(bed: Bed) -> None:
    """A result holds the first stream of each node in one piece; the second is there for those who iterate."""
    await bed.run(service(), "c")
    client = await bed.connect("a")
    assert (await bed.done(client.call("c", "job.count", 4))).replies == {"c": b"0;1;2;3;"}
    assert (await bed.done(client.call("c", "job.two"))).replies == {"c": b"out;end"}
    replies = await bed.done(_replies(client.request("c", "job.two")))
    assert [(reply.text(), reply.second) for reply in replies] == [("out;", False), ("err;", True), ("end", False)]


async def test_worker_waits_for_the_reader(bed: Bed) -> None:
    """With a credit of one byte a worker sends a piece only when the one before was read."""
    worker = await bed.run(service(), "c")
    client = await bed.connect("root")
    call = client.request("c", "job.count", 5, credit=1)
    log: list[str] = worker.log  # type: ignore[attr-defined]
    for number in range(5):
        await bed.until(lambda: len(log) >= min(number + 2, 5))  # noqa: B023
        await client.flush()
        assert len(log) == min(number + 2, 5), "it did not wait"
        reply = await bed.done(call.next())
        assert reply is not None
        assert reply.text() == f"{number};"
    assert (await bed.done(call.result())).complete


async def test_input(bed: Bed) -> None:
    """Input reaches every node of a call whole, however much; a call without input sees its end at once."""
    for node in ("b", "c"):
        await bed.run(service(), node)
    client = await bed.connect("root")

    async def feed() -> object:
        async with client.request("b,c", "job.sum", input=True) as call:
            for _ in range(30):
                await call.send_input(bytes(100_000))
            await call.end_input()
            return (await call.result()).values()

    values = await bed.done(feed())
    assert {node: value["bytes"] for node, value in values.items()} == {"b": 3_000_000, "c": 3_000_000}
    assert await bed.done(client.call_one("b", "job.sum")) == {"bytes": 0, "chunks": 0}


async def test_cancel(bed: Bed) -> None:
    """Cancelling a call ends its handlers, and the account names the nodes as cancelled."""
    worker = await bed.run(service(), "c")
    client = await bed.connect("root")
    call = client.request("c", "job.hang")
    log: list[str] = worker.log  # type: ignore[attr-defined]
    await bed.until(lambda: log == ["begun"])
    call.cancel()
    assert (await bed.done(call.result())).cancelled == {"c"}
    await bed.until(lambda: log == ["begun", "over"])


async def test_leaving_a_call_early_cancels_it(bed: Bed) -> None:
    """The end of `async with` ends the call at the worker, even at once after its beginning."""
    worker = await bed.run(service(), "root")
    client = await bed.connect("root")
    log: list[str] = worker.log  # type: ignore[attr-defined]
    async with client.request("root", "job.hang"):
        await bed.until(lambda: log == ["begun"])
    await bed.until(lambda: log == ["begun", "over"])
    async with client.request("root", "job.hang"):
        pass
    await bed.until(lambda: log.count("begun") == log.count("over") and worker.stats()["running"] == 0)


async def test_death_of_the_caller(bed: Bed) -> None:
    """When the caller's process ends, so do the handlers that work for it."""
    worker = await bed.run(service(), "c")
    client = await bed.connect("root")
    client.request("c", "job.hang")
    log: list[str] = worker.log  # type: ignore[attr-defined]
    await bed.until(lambda: log == ["begun"])
    client.abort()
    await bed.until(lambda: log == ["begun", "over"])


async def test_death_of_the_worker(bed: Bed) -> None:
    """When a worker's process ends, its calls end as failed at once, without waiting for their time-out."""
    worker = await bed.run(service(), "c")
    client = await bed.connect("root")
    call = client.request("c", "job.hang", timeout_s=3600)
    await bed.until(lambda: worker.log == ["begun"])  # type: ignore[attr-defined]
    await bed.kill(worker)
    result = await bed.done(call.result())
    assert result.failed == {"c"}
    assert "ended before it answered" in result.errors["c"]


async def test_no_such_service(bed: Bed) -> None:
    """Nodes without the service say so at once, beside those that have it."""
    await bed.run(service(), "b")
    client = await bed.connect("root")
    result = await bed.done(client.call("a,b", "job.echo"))
    assert (result.ok, result.no_such_service) == ({"b"}, {"a"})
    with pytest.raises(CallFailed, match="no such service on a"):
        await bed.done(client.call_one("a", "job.echo"))


@pytest.mark.parametrize("target", ["nobody", "@nothing", "", "b,!b"])
async def test_unknown_target(bed: Bed, target: str) -> None:
    """A target that names what is not there is an error, never silence."""
    client = await bed.connect("root")
    with pytest.raises(UnknownTarget):
        await bed.done(client.call(target, "job.echo"))


async def test_unreachable_nodes(bed: Bed) -> None:
    """Nodes that are down are named at once, and a call under way ends when its node is lost."""
    worker = await bed.run(service(), "c")
    client = await bed.connect("root")
    call = client.request("c", "job.hang", timeout_s=3600)
    await bed.until(lambda: worker.log == ["begun"])  # type: ignore[attr-defined]
    await bed.stop("a")
    result = await bed.done(call.result())
    assert result.unreachable == {"c"}
    result = await bed.done(client.call("*", "router.ping", timeout_s=3600))
    assert (result.ok, result.unreachable) == ({"root", "b"}, {"a", "c"})
    assert "lost" in result.errors["c"]
    await bed.start("a")
    assert (await bed.done(client.call("*", "router.ping"))).complete


async def test_time_out(bed: Bed) -> None:
    """The budget of a call ends its handler, and its node is named as timed out."""
    worker = await bed.run(service(), "c")
    client = await bed.connect("root")
    log: list[str] = worker.log  # type: ignore[attr-defined]
    for budget_s in (0.3, 3.0, 30.0):  # on a busy machine the shortest may be over before the call is there
        result = await bed.done(client.call("c", "job.hang", timeout_s=budget_s))
        assert result.timeout == {"c"}
        if log:
            break
    await bed.until(lambda: 0 < log.count("begun") == log.count("over"))


@pytest.mark.parametrize(
    ("how", "outcome", "text"),
    [
        ("value", Outcome.FAILED, "ValueError: no good"),
        ("command", Outcome.FAILED, "so sorry"),
        ("refused", Outcome.REFUSED, "not you"),
    ],
)
async def test_errors_of_handlers(bed: Bed, how: str, outcome: Outcome, text: str) -> None:
    """What a handler raises becomes the outcome and one line of text, and the worker goes on."""
    await bed.run(service(), "c")
    client = await bed.connect("root")
    result = await bed.done(client.call("c", "job.fail", how))
    assert result.outcomes == {"c": outcome}
    assert result.errors == {"c": text}
    assert (await bed.done(client.call("c", "job.echo"))).complete


async def test_argument_that_is_not_json(bed: Bed) -> None:
    """A body that the handler cannot read fails the call with a text that says whose it is."""
    await bed.run(service(), "c")
    client = await bed.connect("root")
    result = await bed.done(client.call("c", "job.echo", b"{nonsense"))
    assert result.failed == {"c"}
    assert "job.echo from" in result.errors["c"]
    assert "not JSON" in result.errors["c"]


async def test_upward_calls_only_observe(bed: Bed) -> None:
    """A node obeys its ancestors; others may not run what needs more than the role observe."""
    await bed.run(service(), "root")
    client = await bed.connect("c")
    assert (await bed.done(client.call("root", "job.echo"))).refused == {"root"}
    assert (await bed.done(client.call("root", "job.stats"))).ok == {"root"}
    assert await bed.done((await bed.connect("root")).call_one("root", "job.secret")) == "secret"


async def test_large_bodies(bed: Bed) -> None:
    """Arguments of 1 MiB arrive whole; longer bytes in an answer travel in pieces; longer text is an error."""
    await bed.run(service(), "c")
    client = await bed.connect("root")
    body = bytes(range(256)) * (MIB // 256)
    assert (await bed.done(client.call("c", "job.plain", body))).replies == {"c": body}
    with pytest.raises(PayloadTooLarge):
        client.request("c", "job.plain", body + b"!")
    result = await bed.done(client.call("c", "job.large", 3 * MIB))
    assert len(result.replies["c"]) == 3 * MIB
    result = await bed.done(client.call("c", "job.large", -2 * MIB))
    assert result.failed == {"c"}
    assert "PayloadTooLarge" in result.errors["c"]


async def test_a_thousand_calls_at_once(bed: Bed) -> None:
    """A thousand concurrent calls of one client all get their own answers."""
    await bed.run(service(), "c")
    client = await bed.connect("root")

    async def many() -> list[object]:
        calls = (client.call_one("c", "job.echo", number, timeout_s=60) for number in range(1000))
        return await asyncio.gather(*calls)

    assert [answer["got"] for answer in await bed.done(many())] == list(range(1000))  # type: ignore[index]


async def test_workers_of_one_name_take_turns(bed: Bed) -> None:
    """Two workers of a service on a node share its calls; when one is gone the other has them all."""
    first, second = await bed.run(service(), "b"), await bed.run(service(), "b")
    client = await bed.connect("root")
    for _ in range(6):
        await bed.done(client.call_one("b", "job.echo"))
    assert (len(first.log), len(second.log)) == (3, 3)  # type: ignore[attr-defined]
    await bed.kill(first)
    for _ in range(3):
        await bed.done(client.call_one("b", "job.echo"))
    assert len(second.log) == 6  # type: ignore[attr-defined]


async def test_a_call_runs_at_most_once(bed: Bed) -> None:
    """A request that comes a second time is not run again."""
    worker = await bed.run(service(), "c")
    client = await bed.connect("root")
    exchanges = client._session.exchanges
    number = exchanges._next_call
    assert (await bed.done(client.call("c", "job.echo"))).complete
    exchanges._next_call = number
    result = await bed.done(client.call("c", "job.echo"))
    assert result.refused == {"c"}
    assert worker.log == ["echo"]  # type: ignore[attr-defined]


async def _replies(call: object) -> list[object]:
    return [reply async for reply in call]  # type: ignore[attr-defined]
