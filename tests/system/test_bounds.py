"""Bounds: slow readers, greedy peers, too many of anything, and starts that cannot work (protocol 9)."""

import asyncio
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from raw import RawWorker
from tree import QUICK, Grow, Tree, bodies, until
from waiting import LIMIT_S

from tsbus import Client, Request, Worker
from tsbus.core import message as wire
from tsbus.core.message import Type
from tsbus.transport import new_keypair

MIB = 1 << 20
SMALL = replace(QUICK, adopt_after_s=600.0, queue_bytes=2 * MIB, stream_queue_bytes=2 * MIB, control_queue_bytes=MIB)
LONG = replace(SMALL, heartbeat_timeout_ms=60_000, torpid_after=100)
"""A stopped child is not given up, so that its queue fills."""


async def publish(client: Client, topic: str, count: int, size: int = 1000) -> None:
    for _ in range(count):
        await client.publish(topic, b"x" * size)
    await client.flush()


async def wanted(client: Client, topic: str) -> None:
    async with client.interest(topic) as interest:
        await until(f"interest in {topic}", lambda: interest.wanted)


async def test_slow_subscriber(grow: Grow) -> None:
    """A reader that stops is named and costs a bound; its gaps tell exactly what it missed.

    How soon it is named is told by the router's own clock, in tests/core/test_slow.py.
    """
    tree = await grow("a", bus=SMALL)
    publisher, sibling = await tree.connect("a"), await tree.collect("a", "load")
    slow = await tree.collect("a", "bus.slow")
    with RawWorker(tree.bus("a")) as sleeper:
        await sleeper.hello("sleeper")
        sleeper.local(Type.SUBSCRIBE, wire.Subscribe("load"))
        await sleeper.settled()
        before = tree.rss_kib("a")
        first = 10_000
        await publish(publisher, "load", first)  # 10 MB: five times the bound
        await until("bus.slow", lambda: slow)
        assert [body["peer"] for body in bodies(slow)] == ["sleeper"]
        await publish(publisher, "load", 30_000)
        await until("all of it at the sibling", lambda: len(sibling) == first + 30_000)
        assert tree.rss_kib("a") - before < 20_000
        await until("the rest", lambda: told(sleeper) == first + 30_000)
        assert len(sleeper.of(Type.EVENT)) < first
        assert {gap.map()["at"] for gap in sleeper.of(Type.GAP)} == {"a>sleeper"}


def told(worker: RawWorker) -> int:
    """How many events a worker got or was told to have missed."""
    return len(worker.of(Type.EVENT)) + sum(gap.map()["count"] for gap in worker.of(Type.GAP))


async def test_stopped_child(grow: Grow) -> None:
    """A stopped child costs the bound and is named; its siblings answer as before; then it gets the rest and a gap."""
    tree = await grow("a:b c", bus=LONG)
    publisher = await tree.connect("a")
    slow = await tree.collect("a", "bus.slow")
    at_b, at_c = await tree.collect("b", "load"), await tree.collect("c", "load")
    await wanted(publisher, "load")
    await until("interest of both", lambda: both_want(tree))
    recovered = await tree.collect("a", "bus.recovered")
    before = tree.rss_kib("a")
    tree.signal(signal.SIGSTOP, "b")
    count = 40_000
    publishing = asyncio.create_task(publish(publisher, "load", count))
    await until("b is named", lambda: "b" in [body["peer"] for body in bodies(slow)])
    while not publishing.done():
        assert await tree.ask("c", "router.ping")
    await publishing
    await until("all of it at the sibling", lambda: len(at_c) == count)
    assert tree.rss_kib("a") - before < 25_000
    tree.signal(signal.SIGCONT, "b")
    await until("its recovery", lambda: "b" in [body["peer"] for body in bodies(recovered)])
    await until("the rest", lambda: at_b)
    assert len(at_b) < count


async def both_want(tree: Tree) -> bool:
    links = (await tree.ask("a", "router.stats"))["links"]
    return sum(link["interest"] > 0 for link in links) == 2


async def test_window_breach(grow: Grow) -> None:
    """A publisher that ignores the window is cut; nobody else notices."""
    tree = await grow("a", bus=SMALL)
    with RawWorker(tree.bus("a")) as greedy, RawWorker(tree.bus("a")) as sleeper:
        await greedy.hello()
        await sleeper.hello()
        sleeper.acknowledges = False
        sleeper.local(Type.SUBSCRIBE, wire.Subscribe("x"))
        await sleeper.settled()

        def cut() -> bool:
            for _ in range(40):
                if greedy.socket.poll(0, zmq.POLLOUT):
                    greedy.say(Type.EVENT, "*", "x", wire.EventMeta(1, 1), b"y" * 100_000)
            return bool(greedy.of(Type.BYE))

        await until("BYE", cut)
        assert greedy.of(Type.BYE)[0].map()["reason"] == "window"
        assert (await tree.counters("a"))["window"] == 1


async def test_stream_overflow(grow: Grow) -> None:
    """A caller that does not read its answers is cut when its queue is full; who answers goes on."""
    tree = await grow("a", bus=SMALL)
    with RawWorker(tree.bus("a")) as server, RawWorker(tree.bus("a")) as deaf:
        await server.hello()
        await deaf.hello(window=1 << 16)
        deaf.acknowledges = False
        server.local(Type.SERVE, wire.Serve("svc", {"run": 1}))
        await server.settled()
        deaf.request("a", "svc.run", 1)
        await server.wait(Type.REQUEST)
        for number in range(40):
            server.say(Type.REPLY, "a", str(deaf.welcome.handle), wire.ReplyMeta(1, number), b"y" * 100_000)
            await server.settled()
        await deaf.wait(Type.BYE)
        assert deaf.of(Type.BYE)[0].map()["reason"] == "overflow"
        await server.wait(Type.CANCEL)


async def test_a_worker_that_ignores_its_credit(grow: Grow) -> None:
    """What it sends beyond is not kept: it has failed, its caller goes on, and it is told to stop (protocol 9.4)."""
    tree = await grow("a:b", bus=SMALL)
    caller = await tree.connect("a")
    with RawWorker(tree.bus("b")) as server:
        await server.hello()
        server.local(Type.SERVE, wire.Serve("svc", {"run": 1}))
        await server.settled()
        call = caller.request("b", "svc.run", timeout_s=60.0)
        request = await server.wait(Type.REQUEST)
        number = wire.decode_meta(wire.RequestMeta, request.meta).call
        topic = str(request.route.handle)
        sent = 0
        while not server.of(Type.CANCEL):
            server.say(Type.REPLY, "a", topic, wire.ReplyMeta(number, sent), b"y" * 60_000)
            await server.settled()
            sent += 1
            assert sent < 1000, "nobody told it to stop"
        pieces = [len(reply.body) async for reply in call if not reply.last]
        assert pieces == [60_000, 60_000]  # the one that crosses the line may be sent
        result = await call.result()
        assert result.failed == {"b"}
        assert "9.4" in result.errors["b"]
    assert (await caller.call("*", "router.ping")).complete


async def _ended_by_input(caller: RawWorker) -> bytes:
    """Send input to svc.run at b, whatever has been granted, until the call has failed; returns why it did."""
    sent = 0
    while not caller.of(Type.DONE):
        caller.say(Type.INPUT, "b", "svc.run", wire.InputMeta(1, sent), b"y" * 60_000)
        await caller.settled()
        sent += 1
        assert sent < 1000, "nobody ended it"
    assert caller.of(Type.DONE)[0].map()["failed"] == "b"
    return caller.of(Type.REPLY)[-1].body


async def test_a_caller_that_ignores_its_credit(grow: Grow) -> None:
    """Input beyond the credit of a worker that does not read it ends the call, there and here (protocol 9.4)."""
    tree = await grow("a:b", bus=SMALL)
    worker, cancelled = Worker("svc"), asyncio.Event()

    @worker.command("run")
    async def run(call: Request) -> None:
        call.on_cancel(cancelled.set)
        await cancelled.wait()

    await tree.run(worker, "b")
    with RawWorker(tree.bus("a")) as caller:
        await caller.hello()
        meta = wire.RequestMeta(1, 60_000, 0, 65_536, wire.Flag.INPUT)
        caller.say(Type.REQUEST, "b", "svc.run", meta)
        await caller.wait(Type.ACCEPT)
        assert b"9.4" in await _ended_by_input(caller)
    await cancelled.wait()
    assert (await (await tree.connect("a")).call("b", "router.ping")).complete


async def test_input_does_not_end_a_worker_that_is_busy(grow: Grow) -> None:
    """A caller that ignores its credit fills the queue of a worker that reads nothing: its call ends, no connection."""
    tree = await grow("a:b", bus=LONG)
    with RawWorker(tree.bus("b")) as server, RawWorker(tree.bus("a")) as caller:
        await server.hello(window=1 << 16)
        await caller.hello()
        server.acknowledges = False
        server.local(Type.SERVE, wire.Serve("svc", {"run": 1}))
        await server.settled()
        caller.say(Type.REQUEST, "b", "svc.run", wire.RequestMeta(1, 60_000, 0, 65_536, wire.Flag.INPUT))
        await server.wait(Type.REQUEST)
        assert b"does not keep up" in await _ended_by_input(caller)
        assert not server.of(Type.BYE)
        await server.settled()


async def test_too_many_workers(grow: Grow) -> None:
    """One worker more than allowed is told that it is full; there is room again when another leaves."""
    tree = await grow("a", bus=replace(SMALL, max_workers=3))
    first = await RawWorker(tree.bus("a")).hello()  # the test's own watcher is one
    second = await RawWorker(tree.bus("a")).hello()
    with RawWorker(tree.bus("a")) as third:
        third.local(Type.HELLO, wire.WorkerHello(versions=(1, 1), name="x", incarnation=1, window=1))
        bye = (await third.wait(Type.BYE)).map()
        assert bye["reason"] == "full"
        assert "max_workers" in bye["text"]
    second.close()

    async def room() -> bool:
        return len((await tree.ask("a", "router.stats"))["workers"]) == 2

    await until("room", room)
    with RawWorker(tree.bus("a")) as fourth:
        await fourth.hello()
    first.close()


async def test_too_many_subscriptions(grow: Grow) -> None:
    """One subscription more than allowed is refused by name of the limit, and the others stand."""
    tree = await grow("a", bus=replace(SMALL, max_subscriptions=5))
    heard = await tree.connect("a")
    with RawWorker(tree.bus("a")) as worker:
        await worker.hello()
        for number in range(6):
            worker.local(Type.SUBSCRIBE, wire.Subscribe(f"t.{number}"))
        await worker.settled()
        (error,) = [error.map() for error in worker.of(Type.ERROR)]
        assert error["code"] == "full"
        await heard.publish("t.5")
        await heard.publish("t.4")
        assert (await worker.wait(Type.EVENT)).route.topic == "t.4"
        assert (await tree.counters("a"))["full"] == 1


async def test_ten_thousand_patterns(grow: Grow) -> None:
    """A worker with ten thousand long subscriptions hinders no link, neither when they begin nor in a new HELLO."""
    tree = await grow("a:b;b:c", bus=replace(QUICK, adopt_after_s=600.0))
    with RawWorker(tree.bus("c")) as worker:
        await worker.hello()
        for number in range(10_000):
            worker.local(Type.SUBSCRIBE, wire.Subscribe(f"t{number:05}." + "x" * 240))
        await worker.settled()

        async def known() -> bool:
            links = (await tree.ask("a", "router.stats"))["links"]
            return any(link["interest"] >= 10_000 for link in links)

        await until("the root knows them", known)
        tree.kill("b")
        tree.start("b")
        await tree.whole()
        await until("the root knows them again", known)


CROWD = """
import sys, time, zmq
sys.path.insert(0, {root!r})
from tsbus.core import message as wire
from tsbus.core.message import Type
context = zmq.Context(); context.set(zmq.MAX_SOCKETS, 20000)
hello = wire.encode_frame(wire.local(Type.HELLO, wire.WorkerHello(versions=(1, 1), name="x", incarnation=1, window=1)))
sockets = []
welcome = bye = 0
until = time.monotonic() + 300
for _ in range(0, {count}, 100):  # a handshake has 5 s, and a HELLO that its end takes along is not said again here
    some = [context.socket(zmq.DEALER) for _ in range(100)]
    for socket in some:
        socket.linger = 0
        socket.connect({address!r}); socket.send(hello)
    for socket in some:
        if socket.poll(max(0, until - time.monotonic()) * 1000):
            kind = wire.decode_route(wire.decode_frame(socket.recv())[0]).type
            welcome += kind == Type.WELCOME; bye += kind == Type.BYE
    sockets += some
print(welcome, bye, flush=True)
sys.stdin.read()
"""


async def test_ten_thousand_workers(grow: Grow) -> None:
    """Ten thousand connections: a thousand are welcome, the others are told why not, and the router serves on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tree = await grow("a:b", bus=replace(QUICK, adopt_after_s=600.0))
    before = tree.rss_kib("b")
    root = str(Path(__file__).parents[2])
    code = CROWD.format(root=root, count=2500, address=tree.bus("b"))
    crowd = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]  # fmt: skip
    answers = [await process.stdout.readline() for process in crowd if process.stdout is not None]
    counts = [tuple(map(int, answer.split())) for answer in answers]
    welcome, bye = (sum(column) for column in zip(*counts, strict=True))
    assert welcome == QUICK.max_workers - 1  # the test's own watcher is one
    assert welcome + bye == 10_000
    assert (await tree.ask("a", "router.ping")) is not None
    assert (await (await tree.connect("a")).call("*", "router.ping")).complete
    for process in crowd:
        process.kill()
        await process.wait()

    async def empty() -> bool:
        return len((await tree.ask("b", "router.stats"))["workers"]) == 1

    await until("they are forgotten", empty)
    assert tree.rss_kib("b") - before < 400_000


# Starts that cannot work.


def start(argv: list[str]) -> tuple[int, str]:
    """Run a router that should end at once: its exit status, and the one line that it says."""
    result = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, result.stderr
    return result.returncode, lines[0]


@pytest.fixture
async def two(grow: Grow) -> Tree:
    return await grow("a:b", bus=replace(QUICK, adopt_after_s=600.0))


async def test_two_routers_on_one_folder(two: Tree) -> None:
    """A second router on one run folder says whose it is and ends with 2; the first is not disturbed."""
    status, line = start(two.argv("a"))
    assert status == 2
    assert f"pid {two.processes['a'].pid}" in line
    await two.whole()


async def test_port_in_use(two: Tree) -> None:
    """A service port that is taken is named."""
    argv = two.argv("a")
    argv[argv.index("--run-dir") + 1] += "2"
    status, line = start(argv)
    assert (status, two.address("a") in line) == (2, True)


BAD_KEYS: dict[str, tuple[Any, str]] = {
    "missing": (lambda key: key.unlink(), "no secret key at"),
    "readable by others": (lambda key: key.chmod(0o644), "chmod 600"),
    "no key": (lambda key: key.write_text("short"), "not a secret key"),
    "another's": (lambda key: key.write_text(new_keypair()[1]), "is not that of servers.a.public_key"),
    "no text": (lambda key: key.write_bytes(b"\xff\xfe"), "no secret key at"),
    "a folder": (lambda key: (key.unlink(), key.mkdir(mode=0o700)), "no secret key at"),
}


@pytest.mark.parametrize(("spoil", "says"), BAD_KEYS.values(), ids=BAD_KEYS)
async def test_bad_key_file(two: Tree, spoil: Any, says: str) -> None:
    """A key that is missing, no key, another's or readable by others is named in one line, status 2."""
    argv = two.argv("a")
    argv[argv.index("--run-dir") + 1] += "2"
    key = Path(argv[argv.index("--key") + 1])
    spoil(key)
    status, line = start(argv)
    assert (status, says in line) == (2, True), line
    shutil.rmtree(key) if key.is_dir() else None


@pytest.mark.parametrize("where", ["file", "long", "denied"])
async def test_bad_run_folder(two: Tree, where: str) -> None:
    """A run folder that cannot be is named in one line, status 2."""
    argv = two.argv("a")
    place = argv.index("--run-dir") + 1
    file = two.folder / "file"
    file.write_text("")
    argv[place] = {"file": str(file / "run"), "long": str(two.folder / ("x" * 100)), "denied": "/proc/none"}[where]
    status, line = start(argv)
    assert (status, argv[place] in line) == (2, True), line


async def test_descriptors(grow: Grow) -> None:
    """A router takes all descriptors that it may have: libzmq ends the process when there are none for a new worker."""
    tree = await grow("a")
    tree.kill("a")
    tree.processes["a"] = subprocess.Popen(["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", *tree.argv("a")])
    workers = [RawWorker(tree.bus("a")) for _ in range(100)]
    for worker in workers:
        await worker.hello()
        worker.close()
