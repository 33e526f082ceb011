"""Workers beside their commands: events, intervals, hooks, errors, and their life as a process (docs/worker-api.md)."""

import asyncio
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import LIMIT_S

import tsbus
from tsbus import Event, Refused, Request, Role, Worker
from tsbus.testing import MemoryTree

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_every_runs_at_fixed_times_and_never_twice_at_once() -> None:
    """An interval counts from the start; turns that a slow run used up are skipped, and an error ends nothing."""
    worker = Worker("clock")
    begun: list[float] = []
    slow = asyncio.Event()

    @worker.every(10)
    async def tick() -> None:
        begun.append(tree.clock.monotonic_ms() / 1000)
        if len(begun) == 2:
            await slow.wait()
        if len(begun) == 3:
            raise ValueError("once")

    async with MemoryTree({"n": []}) as tree:
        await tree.run(worker, "n")
        start = begun[0]
        await tree.advance(35.05)
        assert [round(at - start, 1) for at in begun] == [0.0, 10.0]
        slow.set()
        await tree.advance(25)
        assert [round(at - start) for at in begun] == [0, 10, 35, 45, 55]
        assert worker.stats()["errors"] == 1


async def test_hooks() -> None:
    """Start hooks run before anything is served, stop hooks at the end; both may be plain or async."""
    worker = Worker("hooked")
    calls: list[str] = []

    @worker.start
    async def begin() -> None:
        calls.append(f"start on {worker.node}")

    @worker.stop
    def end() -> None:
        calls.append("stop")

    async with MemoryTree({"n": []}) as tree:
        await tree.run(worker, "n")
        assert calls == ["start on n"]
    assert calls == ["start on n", "stop"]


async def test_a_start_that_fails_ends_the_worker() -> None:
    """An error of a start hook is the worker's error."""
    worker = Worker("broken")

    @worker.start
    def begin() -> None:
        raise OSError("no disk")

    async with MemoryTree({"n": []}) as tree:
        with pytest.raises(OSError, match="no disk"):
            await tree.run(worker, "n")


async def test_event_handlers() -> None:
    """Plain and async handlers get the events of their pattern and scope; their errors are counted and end nothing."""
    worker = Worker("ears")
    heard: list[str] = []

    @worker.on("a.*", scope="subtree")
    def plain(event: Event) -> None:
        heard.append(f"plain {event.origin}")

    @worker.on("a.b")
    async def later(event: Event) -> None:
        heard.append(f"later {event.origin}")
        raise RuntimeError("each time")

    async with MemoryTree({"root": ["n"], "n": []}) as tree:
        await tree.run(worker, "n")
        for node in ("root", "n"):
            await (await tree.connect(node)).publish("a.b")
            await tree.settle()
        assert sorted(heard) == ["later n", "later root", "plain n"]
        assert worker.stats() == {"running": 0, "events": 3, "errors": 2}


async def test_stats_are_served() -> None:
    """`<name>.stats` counts outcomes, and needs no more than the role observe."""
    worker = Worker("job")

    @worker.command("fail", role="observe")
    async def fail(call: Request) -> None:
        raise KeyError("x")

    async with MemoryTree({"n": []}) as tree:
        await tree.run(worker, "n")
        client = await tree.connect("n", role=Role.OBSERVE)
        assert (await client.call("n", "job.fail")).errors == {"n": "KeyError: 'x'"}
        assert await client.call_one("n", "job.stats") == {"running": 1, "failed": 1, "errors": 1}


async def test_commands_beyond_the_limit_wait_on_their_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all places are taken, a command waits for one, and its budget may end meanwhile."""
    monkeypatch.setattr("tsbus.worker.MAX_RUNNING", 1)
    worker = Worker("job")
    free = asyncio.Event()

    @worker.command("wait")
    async def wait(call: Request) -> bytes:
        await free.wait()
        return call.body

    async with MemoryTree({"n": []}) as tree:
        await tree.run(worker, "n")
        client = await tree.connect("n")
        first, short, patient = (client.request("n", "job.wait", timeout_s=seconds) for seconds in (60, 1, 60))
        await tree.advance(2)
        assert (await short.result()).timeout == {"n"}
        free.set()
        assert (await first.result()).complete
        assert (await patient.result()).complete


async def test_a_worker_needs_the_role_operate() -> None:
    """A process that may only observe cannot serve; it learns why."""
    async with MemoryTree({"n": []}) as tree:
        with pytest.raises(Refused, match="SERVE"):
            await tree.run(Worker("spy"), "n", role=Role.OBSERVE)
        with pytest.raises(Refused, match="no role"):
            await tree.connect("n", role=Role.NONE)


async def test_sleep_in_a_memory_tree_is_the_tree_s() -> None:
    """While a memory tree is open its clock is the loop's; afterwards the loop has its own again."""
    loop = asyncio.get_running_loop()
    async with MemoryTree({"n": []}) as tree:
        sleeper = asyncio.create_task(asyncio.sleep(3600))
        await tree.advance(3599)
        assert not sleeper.done()
        await tree.advance(2)
        assert sleeper.done()
    before = loop.time()
    await asyncio.sleep(0.001)
    assert 0 < loop.time() - before < 10


async def test_the_greeter_as_a_process(lone_bus: str) -> None:
    """The example of the first page serves in its own process, and SIGTERM ends it with code 0."""
    process = subprocess.Popen([sys.executable, EXAMPLES / "greeter.py"], env={"TREESCALE_BUS": lone_bus})
    try:
        async with tsbus.connect(lone_bus, timeout_s=LIMIT_S) as client, asyncio.timeout(LIMIT_S):
            while not (result := await client.call("solo", "greeter.hello", {"name": "you"})).complete:
                await asyncio.sleep(0.02)
            assert result.values() == {"solo": {"greeting": "hello you from solo"}}
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


async def test_no_router() -> None:
    """Without a router `connect` says where it looked, after the time it was given."""
    with pytest.raises(tsbus.NoRouter, match="ipc:///nowhere/bus"):
        await tsbus.connect("/nowhere/bus", timeout_s=0.1)


def test_publishing_from_many_threads(lone_bus: str) -> None:
    """The blocking client may be used from many threads; each one's events stay in order, and none is lost."""
    with tsbus.connect_blocking(lone_bus, timeout_s=LIMIT_S) as bus, bus.subscribe("n.*") as sub:

        def publish(thread: int) -> None:
            for number in range(2000):
                bus.publish(f"n.{thread}", str(number))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(publish, range(4)))
        events = [sub.next(LIMIT_S) for _ in range(8000)]
        with pytest.raises(TimeoutError):
            sub.next(0.01)
        with pytest.raises(tsbus.TopicError):
            bus.publish("n.*")
    for thread in range(4):
        texts = [event.text() for event in events if isinstance(event, Event) and event.topic == f"n.{thread}"]
        assert texts == [str(number) for number in range(2000)]
    with pytest.raises(tsbus.ConnectionLost):
        bus.publish("n.1")


def test_one_bad_event_does_not_hold_up_the_others(lone_bus: str) -> None:
    """An event that cannot be published is an error for nobody else: what follows it is published all the same."""
    with tsbus.connect_blocking(lone_bus, timeout_s=LIMIT_S) as bus, bus.subscribe("n.*") as sub:
        bus.publish("n.1", "lost", to="\ud800")
        bus.publish("n.1", "heard")
        bus.flush()
        bus.publish("n.1", "heard too")
        texts = [event.text() for event in (sub.next(LIMIT_S), sub.next(LIMIT_S)) if isinstance(event, Event)]
    assert texts == ["heard", "heard too"]
