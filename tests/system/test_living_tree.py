"""What every node learns, and what callers are told, when processes, programs and cables fail (protocol 6, 8, 10)."""

import asyncio
import contextlib
import signal
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from raw import RawChild
from tree import QUICK, Grow, Tree, bodies, until
from waiting import LIMIT_S

from tsbus import Client, Request, Result, Worker
from tsbus.config import BusSettings
from tsbus.core.message import Type
from tsbus.errors import ConnectionLost

SEVEN = "a:b c;b:d e;c:f g"
ALONE = replace(QUICK, adopt_after_s=600.0)
"""Nobody is adopted, so that what is cut off stays so."""


def job(runs: list[int] | None = None) -> Worker:
    """A worker whose `job.hang` waits until it is cancelled and whose `job.note` appends the body to `runs`."""
    worker = Worker("job")

    @worker.command("hang", role="observe")
    async def hang(_: Request) -> None:
        await asyncio.Event().wait()

    @worker.command("note", role="observe")
    async def note(call: Request) -> str:
        if runs is not None:
            runs.append(call.json())
        return call.node

    return worker


def lost(events: list[Any]) -> list[tuple[str, str]]:
    """What node.lost events say: the node and its cause."""
    return [(body["node"], body["cause"]) for body in bodies(events)]


@pytest.mark.parametrize(("victim", "away"), [("d", "d"), ("b", "b,d,e")], ids=["leaf", "interior"])
async def test_killed_router(grow: Grow, victim: str, away: str) -> None:
    """A killed router is lost to every node at once, with one node.lost that names all that it took away."""
    tree = await grow(SEVEN, bus=ALONE)
    heard = await tree.collect("g", "node.lost")
    gone = set(away.split(","))
    tree.kill(victim)
    for node in set(tree.names) - gone:
        await tree.wait_seen(node, set(tree.names) - gone)
        assert (await tree.status(node))[victim]["cause"] == "closed"
    for node in gone - {victim}:
        await tree.wait_seen(node, {node})
    await until("node.lost", lambda: heard)
    assert [(body["node"], body["nodes"], body["cause"]) for body in bodies(heard)] == [(victim, away, "closed")]


async def test_killed_root(grow: Grow) -> None:
    """Without the root, and before anybody takes its place, each of its subtrees sees itself and nobody else."""
    tree = await grow(SEVEN, bus=ALONE)
    tree.kill("a")
    for top in ("b", "c"):
        below = set(tree.topology.subtree(top))
        for node in below:
            await tree.wait_seen(node, below)


async def test_stopped_router(grow: Grow) -> None:
    """A frozen process is known to be lost with the usual settings, and is back when it goes on."""
    tree = await grow("a:b;b:c", bus=BusSettings())
    tree.signal(signal.SIGSTOP, "c")
    await tree.wait_seen("a", {"a", "b"})
    tree.signal(signal.SIGCONT, "c")
    await tree.whole()


async def test_cut_link(grow: Grow) -> None:
    """A link that is reset again and again comes back each time, and the far end's processes live through it."""
    tree = await grow("a:b;b:c", cut=("b",), bus=ALONE)
    heard = await tree.collect("a", "node.lost")
    before = {name: entry["incarnation"] for name, entry in (await tree.status("a")).items()}
    for count in (1, 2, 3):
        tree.cutters["b"].reset()
        await until("node.lost", lambda count=count: len(heard) == count)
        await tree.whole()
    tree.cutters["b"].cut()
    await tree.wait_seen("a", {"a"})
    await tree.wait_seen("c", {"b", "c"})
    await tree.cutters["b"].mend()
    await tree.whole()
    assert {name: entry["incarnation"] for name, entry in (await tree.status("a")).items()} == before
    assert {body["nodes"] for body in bodies(heard)} == {"b,c"}


async def test_frozen_link(grow: Grow) -> None:
    """A link that lets nothing through and does not end is lost on both sides, and back when it is mended."""
    tree = await grow("a:b;b:c", cut=("b",), bus=ALONE)
    tree.cutters["b"].freeze()
    await tree.wait_seen("a", {"a"})
    await tree.wait_seen("c", {"b", "c"})
    await tree.cutters["b"].mend()
    await tree.whole()


async def test_slow_link_is_not_lost(grow: Grow) -> None:
    """A link that is slow but alive stays up while bulk waits behind it."""
    tree = await grow("a:b", cut=("b",), bus=ALONE)
    client = await tree.connect("a")
    heard = await tree.collect("b", "bulk")
    lost_events = await tree.collect("a", "node.lost")
    await wait_wanted(client, "bulk")
    tree.cutters["b"].slow_down(200_000)
    for _ in range(40):
        await client.publish("bulk", b"x" * 10_000)
    await until("all of it", lambda: len(heard) == 40)
    assert not lost_events


async def test_hung_program(grow: Grow) -> None:
    """A child whose I/O lives but whose loop does not answer PING is torpid, not lost; for good it is reset."""
    tree = await grow("a:b c", bus=replace(ALONE, reset_after_s=2.0))
    heard = await tree.collect("c", "node.*")
    tree.kill("b")
    with RawChild(tree, "b", answers_pings=False) as child:
        await child.wait(Type.HELLO)

        def told(topic: str) -> bool:
            child.listen()
            return any(event.topic == topic and event.json()["node"] == "b" for event in heard)

        await until("node.torpid", lambda: told("node.torpid"))

        async def known() -> bool:
            child.listen()
            status = (await tree.status("c"))["b"]
            return (status["state"], status["cause"]) == ("torpid", "silent")

        await until("c knows", known)
        await until("the reset", lambda: told("node.lost") and heard[-1].json()["cause"] == "silent")
        assert {"moved", "bye"}.isdisjoint(cause for _, cause in lost(heard))
        child.answers_pings = True
        await until("b is back", lambda: told("node.up") and heard[-1].topic == "node.up")


async def test_late_program_is_forgiven(grow: Grow) -> None:
    """A child that was torpid and answers again is up again, without a new epoch: nothing was lost."""
    tree = await grow("a:b", bus=replace(ALONE, reset_after_s=30.0))
    tree.kill("b")
    with RawChild(tree, "b", answers_pings=False) as child:

        async def state(wanted: str) -> bool:
            child.listen()
            return bool((await tree.status("a"))["b"]["state"] == wanted)

        await until("torpid", lambda: state("torpid"))
        epoch = (await tree.status("a"))["b"]["epoch"]
        child.answers_pings = True
        await until("up", lambda: state("up"))
        assert (await tree.status("a"))["b"]["epoch"] == epoch


async def test_no_stale_request_runs(grow: Grow) -> None:
    """Requests that a frozen router finds in its buffers when it goes on are not run after their time (8.4)."""
    tree = await grow("a:b", bus=ALONE)
    runs: list[int] = []
    await tree.run(job(runs), "b")
    client = await tree.connect("a")
    assert (await client.call("b", "job.note", 0)).ok == {"b"}
    tree.signal(signal.SIGSTOP, "b")
    results = await asyncio.gather(*(client.call("b", "job.note", number, timeout_s=0.3) for number in (1, 2, 3)))
    assert all(result.timeout | result.unreachable == {"b"} for result in results)
    await tree.wait_seen("a", {"a"})
    tree.signal(signal.SIGCONT, "b")
    await tree.whole()
    assert (await client.call("b", "job.note", 4)).ok == {"b"}
    assert runs == [0, 4]


async def test_pending_calls_end_at_once(grow: Grow) -> None:
    """Calls under way through a link that is lost end at once as unreachable, by name, and the others go on."""
    tree = await grow(SEVEN, bus=ALONE)
    for node in ("d", "e", "f"):
        await tree.run(job(), node)
    client = await tree.connect("g")
    call = client.request("d,e,f", "job.hang", timeout_s=600)
    await until("all three work", lambda: serving(tree, ("d", "e", "f")))
    tree.kill("b")
    replies = []
    async for reply in call:
        replies.append(reply)
        if len(replies) == 2:
            break
    assert {reply.node for reply in replies} == {"d", "e"}
    assert all(reply.status.name == "UNREACHABLE" and "b" in reply.text() for reply in replies)
    call.cancel()
    result = await call.result()
    assert (result.unreachable, result.cancelled) == ({"d", "e"}, {"f"})


async def serving(tree: Tree, nodes: tuple[str, ...]) -> bool:
    """Whether a worker works on a call on each of `nodes`."""
    return all([(await tree.ask(node, "router.stats"))["calls"]["serving"] == 1 for node in nodes])


async def test_caller_lost(grow: Grow) -> None:
    """When the caller's node is cut off, the workers that work for it are told to stop."""
    tree = await grow("a:b c", bus=ALONE)
    await tree.run(job(), "b")
    client = await tree.connect("c")
    call = client.request("b", "job.hang", timeout_s=600)
    await until("it works", lambda: serving(tree, ("b",)))
    tree.kill("c")

    async def idle() -> bool:
        return bool((await tree.ask("b", "router.stats"))["calls"]["serving"] == 0)

    await until("it stopped", idle)
    result = await call.result()
    assert result.unreachable == {"b"}


async def test_orphans_are_adopted(grow: Grow) -> None:
    """Orphans of an interior node hang below its parent, obey it, and go home when their own parent is back."""
    tree = await grow(SEVEN)
    client = await tree.connect("g")
    tree.kill("b")
    await tree.wait_seen("g", set(tree.names) - {"b"})
    status = await tree.status("g")
    assert (status["d"]["parent"], status["e"]["parent"]) == ("a", "a")
    result = await client.call("*", "router.ping")
    assert (result.ok, result.unreachable) == (set(tree.names) - {"b"}, {"b"})
    tree.start("b")
    await tree.whole()
    assert (await client.call("*", "router.ping")).complete


async def test_root_dies(grow: Grow) -> None:
    """Without the root its first living child adopts the others; when the root is back all go home."""
    tree = await grow(SEVEN)
    client = await tree.connect("g")
    tree.kill("a")
    for node in ("b", "f", "g"):
        await tree.wait_seen(node, set(tree.names) - {"a"})
    assert (await tree.status("f"))["c"]["parent"] == "b"
    result = await client.call("*", "router.ping")
    assert (result.ok, result.unreachable) == (set(tree.names) - {"a"}, {"a"})
    tree.start("a")
    await tree.whole()
    assert (await client.call("*", "router.ping")).complete


async def test_restart_with_clock_behind(grow: Grow) -> None:
    """A router that restarts is believed although everybody remembers later things of it (protocol 6.2)."""
    tree = await grow("a:b;b:c")
    for _ in range(3):
        tree.kill("b")
        tree.start("b")
        await tree.whole()


async def wait_wanted(client: Client, topic: str) -> None:
    """Wait until the client's router knows that somebody wants `topic`."""
    async with client.interest(topic) as interest:
        await until(f"somebody wants {topic}", lambda: interest.wanted)


class Faults:
    """A tree under random faults, a few at a time."""

    def __init__(self, tree: Tree, rng: Random) -> None:
        self.tree, self.rng = tree, rng
        self.active: dict[str, str] = {}

    def strike(self, spared: set[str]) -> None:
        """Break something that is whole; the routers of `spared` are not stopped, only killed."""
        tree, rng = self.tree, self.rng
        node = rng.choice([name for name in tree.names if name not in self.active])
        kinds = ["kill"] + ["stop"] * (node not in spared) + ["cut", "freeze", "reset"] * (node in tree.cutters)
        kind = rng.choice(kinds)
        self.active[node] = kind
        if kind == "kill":
            tree.kill(node)
        elif kind == "stop":
            tree.signal(signal.SIGSTOP, node)
        else:
            getattr(tree.cutters[node], kind)()

    async def heal(self) -> None:
        """Mend what has been broken for the longest time."""
        node = next(iter(self.active))
        kind = self.active.pop(node)
        if kind == "kill":
            self.tree.start(node)
        elif kind == "stop":
            self.tree.signal(signal.SIGCONT, node)
        else:
            await self.tree.cutters[node].mend()

    def callers(self) -> list[str]:
        """The nodes whose routers run."""
        return [name for name in self.tree.names if self.active.get(name) not in ("kill", "stop")]


def check_account(result: Result, names: tuple[str, ...]) -> None:
    """Every node ended, in exactly one outcome."""
    sets = [result.ok, result.failed, result.timeout, result.unreachable, result.refused, result.no_such_service,
            result.cancelled]  # fmt: skip
    assert Counter(node for one in sets for node in one) == Counter(names)


@pytest.mark.parametrize("seed", [1, 2])
async def test_accounts_close_under_faults(grow: Grow, seed: int) -> None:
    """Whatever is killed, stopped or cut while '*' is called: every call's account closes, and nothing runs twice."""
    rng = Random(seed)
    tree = await grow(SEVEN, cut=("b", "c", "d", "f"))
    faults = Faults(tree, rng)
    runs: dict[str, list[int]] = {name: [] for name in tree.names}
    for name in tree.names:
        await tree.run(job(runs[name]), name)
    clients = {name: await tree.connect(name) for name in tree.names}
    finished: dict[int, Result] = {}

    async def call(number: int, node: str) -> None:
        with contextlib.suppress(ConnectionLost):  # its own router may be killed
            await clients[node].wait_connected(LIMIT_S)
            finished[number] = await clients[node].call("*", "job.note", number, timeout_s=2)

    for number in range(30):
        callers = [rng.choice(faults.callers()) for _ in range(3)]
        calls = asyncio.gather(*(call(number * 10 + place, node) for place, node in enumerate(callers)))
        await asyncio.sleep(rng.random() * 0.01)  # anywhere in the course of the calls
        if len(faults.active) < 3 and rng.random() < 0.7:
            faults.strike(set(callers))
        elif faults.active:
            await faults.heal()
        await asyncio.wait_for(calls, 2 * LIMIT_S)
    while faults.active:
        await faults.heal()
    await tree.whole()
    for number, result in finished.items():
        check_account(result, tree.names)
        for name in result.ok:
            assert number in runs[name]
    assert len(finished) > 60
    for name, numbers in runs.items():
        assert len(set(numbers)) == len(numbers), f"{name} ran a call twice"
    for name in tree.names:

        async def forgotten(name: str = name) -> bool:
            return bool((await tree.ask(name, "router.stats"))["calls"] == {"outgoing": 1, "serving": 0})

        await until(f"{name} forgets the calls that are over", forgotten)
