"""Draining and rolling for programs, on a tree in memory with the balancer's service over a kernel in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_in_memory import Engine
from hypothesis import given
from hypothesis import strategies as st
from model_kernel import box
from site_of_balancer import KEYS, Site, site

from tsbus import CommandError, Outcome, RefusedError, Request, Role, Worker, draining
from tsbus.draining import Balancers, Box, Layout, NotActive, NotDrained, Seat
from tsbus.records import Container
from tsbus.rolling import NotReplaced, Replacement, in_the_way, one_after_the_other, restart

C2, C3, C4 = (box(f"c{number}", f"172.17.0.{number}") for number in (2, 3, 4))
FAR = box("far", host_port=8080)
B2, B3 = (Box("n1", one.id, one.name) for one in (C2, C3))
BELOW = '[servers.n2.balancers.own]\naddress = "192.168.0.2:80"\n'


@asynccontextmanager
async def place(
    folder: Path, *boxes: Container, keys: str = KEYS, child: str = ""
) -> AsyncIterator[tuple[Site, Engine]]:
    """The site, with an engine on n1 that holds `boxes`; all of them serve."""
    async with site(folder, keys, start=False, monitors=("n2", "n3", "n4"), child=child) as one:
        engine = Engine("n1")
        engine.boxes = {each.id: each for each in boxes}
        await one.memory.run(engine, "n1")
        await one.start()
        await one.servers(**{each.name: 1 for each in boxes})
        engine.site = one
        yield one, engine


async def done(one: Site, work: Awaitable[Any]) -> Any:
    """What comes of `work`, while time goes on."""
    task = asyncio.ensure_future(work)
    await one.until(task.done)
    return task.result()


async def stop(balancers: Balancers, *boxes: Box, **options: Any) -> None:
    async with balancers.drain(boxes, **options):
        for each in boxes:
            await balancers.client.call_one(each.node, "containers.stop", {"containers": [each.id]})


class Other(Worker):
    """A stand-in for the balancer of another node."""

    def __init__(self) -> None:
        super().__init__("lb")
        self.asked: list[str] = []
        self.error: Exception | None = None
        for name in ("drain", "undrain", "show", "wait", "capacity"):
            self.command(name, role="observe")(self.answer)

    def answer(self, call: Request) -> None:
        self.asked.append(call.command)
        if self.error:
            raise self.error


# Which balancers.


def test_balancers_above() -> None:
    """Those that can have a node's containers are its own and those above it, by configuration."""
    rows = [("a", "", "up"), ("b", "a", "lost"), ("c", "b", "up"), ("d", "a", "up")]
    nodes = [
        {"name": name, "home": home, "state": state, "balancers": [] if name == "a" else ["web"], "depth": 1}
        for name, home, state in rows
    ]
    layout = Layout.of({"node": "a", "nodes": nodes})
    assert layout.above(["c"]) == {"b", "c"}
    assert layout.above(["c", "d"]) == {"b", "c", "d"}
    assert layout.above(["a", "gone"]) == frozenset()
    assert layout.lost == {"b"}


# Drains.


async def test_stop_drained(tmp_path: Path) -> None:
    """Weight 0 at once, stopped after the last connection, and what still drains is told meanwhile."""
    async with place(tmp_path, C2, C3) as (one, engine):
        one.machine.open["172.17.0.2:80"] = 2
        told: list[list[Seat]] = []
        balancers = await done(one, Balancers.ask(one.caller))
        task = asyncio.create_task(stop(balancers, B2, told=told.append))
        await one.servers(c2=0, c3=1)
        await one.until(lambda: told)
        (seat,) = told[-1]
        assert (seat.box, seat.node, seat.balancer, seat.connections) == (B2, "n1", "web", 2)
        assert engine.ended == []
        one.machine.open.clear()
        await one.until(task.done)
        task.result()
        assert engine.ended == ["c2"]
        await one.until(lambda: one.service.keeper.facts.overrides == ())
        await one.servers(c3=1)


async def test_who_is_in_no_balancer_is_not_waited_for(tmp_path: Path) -> None:
    """A container that no balancer has, and one on a node that no balancer is above, are stopped at once."""
    other = box("other", "172.17.0.9", image="redis")
    async with place(tmp_path, C2) as (one, engine):
        await engine.has(other, "started")
        balancers = await done(one, Balancers.ask(one.caller))
        await done(one, stop(balancers, Box("n1", other.id)))
        assert engine.ended == ["other"]
        lone = Balancers(one.caller, Layout({"n1": ""}, (), ()))
        engine.site = None
        await done(one, stop(lone, B2))
        assert engine.ended == ["other", "c2"]


async def test_all_at_the_same_time(tmp_path: Path) -> None:
    """Several are drained together, not one after the other."""
    async with place(tmp_path, C2, C3, C4) as (one, engine):
        one.machine.open |= {"172.17.0.2:80": 1, "172.17.0.3:80": 1}
        task = asyncio.create_task(stop(await done(one, Balancers.ask(one.caller)), B2, B3))
        await one.servers(c2=0, c3=0, c4=1)
        one.machine.open.clear()
        await one.until(task.done)
        assert engine.ended == ["c2", "c3"]


async def test_the_time_of_a_drain_is_over(tmp_path: Path) -> None:
    """With connections still open after drain_timeout_s it is stopped, and how many there were is told."""
    async with place(tmp_path, C2, C3, keys=KEYS.replace("= 20", "= 2")) as (one, engine):
        one.machine.open["172.17.0.2:80"] = 7
        cut: list[Seat] = []
        await done(one, stop(await done(one, Balancers.ask(one.caller, on_cut=cut.append)), B2))
        assert [(each.box.name, each.balancer, each.connections) for each in cut] == [("c2", "web", 7)]
        assert engine.ended == ["c2"]


@pytest.mark.parametrize(
    ("error", "outcome", "words"),
    [
        (CommandError("this kernel has no IPVS"), Outcome.FAILED, "n2 did not do it: this kernel has no IPVS; see"),
        (
            RefusedError("it needs operate"),
            Outcome.REFUSED,
            "n2 did not do it: it needs operate; draining needs the role",
        ),
        (None, Outcome.NO_SUCH_SERVICE, "start ts-balancer there"),
    ],
)
async def test_a_balancer_that_does_not_do_it(
    tmp_path: Path, error: Exception | None, outcome: Outcome, words: str
) -> None:
    """Nothing is stopped and the drains of others are taken back; the node is named with what to do."""
    async with place(tmp_path, C2, child=BELOW) as (one, _):
        far = "192.168.0.2:8080"
        await one.monitors["n2"].has(FAR, "started")
        await one.until(lambda: one.machine.kernel.servers().get(far) == 1)
        other = Other()
        if error:
            other.error = error
            await one.memory.run(other, "n2")
        balancers = await done(one, Balancers.ask(one.caller))
        with pytest.raises(NotDrained, match=words) as raised:
            await done(one, stop(balancers, Box("n2", FAR.id, "far"), B2))
        assert raised.value.outcomes == {"n2": outcome}
        assert one.service.keeper.facts.overrides == ()
        assert one.machine.kernel.servers() == {"172.17.0.2:80": 1, far: 1}


async def test_a_balancer_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts the order and never answers counts as one that did not do it."""
    monkeypatch.setattr(draining, "ANSWER_S", 0.5)
    async with place(tmp_path, C2, child=BELOW) as (one, _):
        other = Worker("lb")
        for name in ("drain", "undrain", "capacity"):
            other.command(name)(lambda _: asyncio.Event().wait())
        await one.memory.run(other, "n2")
        balancers = await done(one, Balancers.ask(one.caller))
        with pytest.raises(NotDrained, match="see its log there") as raised:
            await done(one, stop(balancers, B2, Box("n2", FAR.id, "far")))
        assert raised.value.outcomes == {"n2": Outcome.TIMEOUT}
        assert one.service.keeper.facts.overrides == ()


async def test_a_balancer_that_dies_meanwhile(tmp_path: Path) -> None:
    """While connections are waited for, the end of a balancer is no consent."""
    async with place(tmp_path, C2, C3) as (one, engine):
        one.machine.open["172.17.0.2:80"] = 1
        task = asyncio.create_task(stop(await done(one, Balancers.ask(one.caller)), B2))
        await one.servers(c2=0, c3=1)
        await one.stop()
        one.task = None
        await one.until(task.done)
        with pytest.raises(NotDrained, match="the balancer of n1 did not do it"):
            task.result()
        assert engine.ended == []


async def test_lost_nodes(tmp_path: Path) -> None:
    """A balancer of a lost node is no consent either, unless the caller says that it may be passed over."""
    async with place(tmp_path, C2, child=BELOW) as (one, _):
        caller = await one.memory.connect("n2", name="caller")
        engine = Engine("n2")
        engine.boxes = {FAR.id: FAR}
        await one.memory.kill(one.monitors["n2"])
        await one.memory.run(engine, "n2")
        await one.memory.run(Other(), "n2")
        one.memory.cut("n1", "n2")
        await one.advance(30)
        with pytest.raises(NotDrained, match=r"n1 did not do it: its node is lost.*--skip-lost") as raised:
            await done(one, stop(await done(one, Balancers.ask(caller)), Box("n2", FAR.id, "far")))
        assert raised.value.outcomes == {"n1": Outcome.UNREACHABLE}
        assert engine.ended == []
        await done(one, stop(await done(one, Balancers.ask(caller, skip_lost=True)), Box("n2", FAR.id, "far")))
        assert engine.ended == ["far"]


async def test_the_role(tmp_path: Path) -> None:
    """Who may only observe at a balancer's node cannot drain there, and is told before anything is done."""
    async with place(tmp_path, C2) as (one, _):
        watcher = await one.memory.connect("n1", uid=7, role=Role.OBSERVE)
        balancers = await done(one, Balancers.ask(watcher))
        for work in (balancers.check([B2]), stop(balancers, B2)):
            with pytest.raises(NotDrained, match="needs the role operate") as raised:
                await done(one, work)
            assert raised.value.outcomes == {"n1": Outcome.REFUSED}


async def test_interrupted(tmp_path: Path) -> None:
    """Whoever gives up while connections end leaves no drain behind, but that of an operator."""
    async with place(tmp_path, C2, C3, C4) as (one, engine):
        await one.call("lb.drain", {"servers": ["c3"]})
        one.machine.open["172.17.0.2:80"] = 1
        task = asyncio.create_task(stop(await done(one, Balancers.ask(one.caller)), B2, B3))
        await one.servers(c2=0, c4=1)
        task.cancel()
        await one.until(task.done)
        assert task.cancelled()
        await one.servers(c2=1, c4=1)
        assert engine.ended == []


async def test_what_could_not_be_stopped_takes_part_again(tmp_path: Path) -> None:
    """An error inside takes the drain back."""
    async with place(tmp_path, C2, C3) as (one, engine):
        engine.fails["stop"] = "the engine is down"
        with pytest.raises(Exception, match="the engine is down"):
            await done(one, stop(await done(one, Balancers.ask(one.caller)), B2))
        await one.servers(c2=1, c3=1)


async def test_a_signal_that_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that goes on after its signal takes part again a little later."""
    monkeypatch.setattr(draining, "ENDS_S", 0.2)
    async with place(tmp_path, C2, C3) as (one, _):
        balancers = await done(one, Balancers.ask(one.caller))

        async def signal() -> None:
            async with balancers.drain([B2]):
                pass
            await balancers.let_go([B2])

        await done(one, signal())
        await one.servers(c2=1, c3=1)


async def test_a_drain_that_somebody_takes_back(tmp_path: Path) -> None:
    """It gets connections again, so it is not stopped."""
    async with place(tmp_path, C2, C3) as (one, engine):
        one.machine.open["172.17.0.2:80"] = 1
        told: list[list[Seat]] = []
        task = asyncio.create_task(stop(await done(one, Balancers.ask(one.caller)), B2, told=told.append))
        await one.until(lambda: told)
        await one.call("lb.undrain", {"servers": ["c2"]})
        await one.until(task.done)
        with pytest.raises(NotDrained, match="somebody took back the drain of n1/c2 in web, it is active"):
            task.result()
        assert engine.ended == []


async def test_a_caller_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain lasts as long as its caller lives, and ends soon after that."""
    monkeypatch.setattr(draining, "LEASE_S", 1.0)
    async with place(tmp_path, C2, C3, keys=KEYS.replace("= 20", "= 600")) as (one, _):
        caller = await one.memory.connect("n1", name="mortal")
        one.machine.open["172.17.0.2:80"] = 1
        task = asyncio.create_task(stop(await done(one, Balancers.ask(caller)), B2))
        await one.servers(c2=0, c3=1)
        await one.advance(3)
        assert one.machine.kernel.servers()["172.17.0.2:80"] == 0
        caller.abort()
        await one.until(task.done)
        assert task.exception()
        await one.servers(c2=1, c3=1)


# Rolling.


@given(
    st.lists(st.booleans(), max_size=8),
    st.integers(1, 4),
)
def test_one_after_the_other(goes_well: list[bool], parallel: int) -> None:
    """No more than `parallel` at a time, in order; after one that failed none is begun, and the rest is returned."""
    began: list[int] = []
    running = 0

    async def step(number: int) -> bool:
        nonlocal running
        began.append(number)
        running += 1
        assert running <= parallel
        await asyncio.sleep(0)
        running -= 1
        return goes_well[number]

    left = asyncio.run(one_after_the_other(range(len(goes_well)), step, parallel=parallel))
    assert [*began, *left] == [*range(len(goes_well))]
    assert bool(left) <= (False in goes_well)
    if False in goes_well:
        assert len(began) <= goes_well.index(False) + parallel


async def test_restart(tmp_path: Path) -> None:
    """It is drained, restarted, and done when it is active again: after its start grace here, at its new address."""
    async with place(tmp_path, C2, C3) as (one, engine):
        balancers, told = await done(one, Balancers.ask(one.caller)), list[str]()
        engine.at_start = {"health": "starting"}
        task = asyncio.create_task(restart(balancers, B2, {}, told.append))
        await one.until(lambda: told[-1:] == ["waiting until it is active"])
        await one.advance(1)
        assert not task.done()
        await engine.has(_healthy(engine, "c2"), "healthy")
        await one.until(task.done)
        assert (task.result().name, task.result().state) == ("c2", "running")
        assert engine.ended == ["c2"]
        assert sorted(one.machine.kernel.servers().values()) == [1, 1]


def _healthy(engine: Engine, name: str) -> Container:
    one = engine.named(name)
    assert one
    return Container(**{field: getattr(one, field) for field in one.__struct_fields__} | {"health": "healthy"})


async def test_restart_of_who_was_not_active(tmp_path: Path) -> None:
    """One that an operator has drained, or that is unhealthy, is not waited for."""
    async with place(tmp_path, C2, C3) as (one, engine):
        await one.call("lb.drain", {"servers": ["c2"], "wait": True})
        balancers = await done(one, Balancers.ask(one.caller))
        await done(one, restart(balancers, B2, {}, lambda _: None))
        assert engine.ended == ["c2"]
        assert list(one.machine.kernel.servers()) == ["172.17.0.3:80"]


async def test_restart_that_does_not_come_back(tmp_path: Path) -> None:
    """The reason is that of the balancer."""
    async with place(tmp_path, C2, C3) as (one, engine):
        engine.at_start = {"health": "unhealthy"}
        balancers = await done(one, Balancers.ask(one.caller))
        with pytest.raises(NotActive, match=r"n1/c2 is not active after 2 s: web on n1: joining, unhealthy"):
            await done(one, restart(balancers, B2, {}, lambda _: None, wait_s=2))


# Replacing.


async def replaced(one: Site, name: str = "c2", wait_s: float = 2, **order: Any) -> Any:
    balancers = await done(one, Balancers.ask(one.caller))
    replacement = Replacement(balancers, "n1", name, {"image": "nginx", **order})
    await done(one, replacement.look())
    return await done(one, replacement.run(lambda _: None, wait_s=wait_s))


async def test_replace(tmp_path: Path) -> None:
    """The new one serves before the old one is drained, which is removed; both are in the table meanwhile."""
    async with place(tmp_path, C2, C3) as (one, engine):
        one.machine.open["172.17.0.2:80"] = 1
        task = asyncio.create_task(replaced(one))
        await one.until(lambda: sorted(one.machine.kernel.servers().values()) == [0, 1, 1])
        names = {each.name for each in engine.boxes.values() if each.state == "running"}
        assert names == {"c2", "c2-replaced", "c3"}
        one.machine.open.clear()
        await one.until(task.done)
        done_ = task.result()
        new = engine.named("c2")
        assert new and new.id == done_.id != C2.id
        assert {each.name for each in engine.boxes.values()} == {"c2", "c3"}
        assert one.machine.kernel.servers() == {"172.17.0.3:80": 1, f"{new.networks['bridge']}:80": 1}


async def test_nothing_to_replace(tmp_path: Path) -> None:
    """Where there is none with the name, it is just made."""
    async with place(tmp_path, C2) as (one, engine):
        await replaced(one, "c9")
        assert {each.name for each in engine.boxes.values()} == {"c2", "c9"}
        assert engine.ended == []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"at_start": {"health": "unhealthy"}}, r"web on n1: joining, unhealthy; the old one serves as before"),
        (
            {"at_start": {"state": "exited", "networks": {}}},
            r"the new one ended at once \(exited\); the old one serves",
        ),
        ({"fails": {"create": "no such image"}}, "no such image; the old one serves"),
        ({"fails": {"start": "no such network"}}, "no such network; the old one serves"),
        ({"fails": {"rename": "the engine is away"}}, "the engine is away; the old one serves"),
    ],
)
async def test_a_new_one_that_never_serves(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    """It is removed, the old one has its name again and was never drained, and the reason is told."""
    async with place(tmp_path, C2, C3) as (one, engine):
        for key, value in how.items():
            setattr(engine, key, value)
        with pytest.raises(NotReplaced, match=words):
            await replaced(one)
        assert engine.boxes[C2.id].name == "c2"
        assert {each.name for each in engine.boxes.values()} == {"c2", "c3"}
        assert one.machine.kernel.servers() == {"172.17.0.2:80": 1, "172.17.0.3:80": 1}


async def test_a_new_one_that_no_balancer_wants(tmp_path: Path) -> None:
    """An image that no key names is told as the reason."""
    async with place(tmp_path, C2, C3) as (one, engine):
        with pytest.raises(NotReplaced, match="web on n1: no key of its configuration and no label names it"):
            await replaced(one, image="redis")
        assert engine.boxes[C2.id].name == "c2"


async def test_a_new_one_that_dies(tmp_path: Path) -> None:
    """Its end is noticed at once, not after the time that it may take."""
    async with place(tmp_path, C2, C3) as (one, engine):
        engine.at_start = {"health": "starting"}
        task = asyncio.create_task(replaced(one, wait_s=3600))
        await one.until(lambda: "start" in engine.asked)
        await one.advance(1)
        new = engine.named("c2")
        assert new
        engine.site = None
        await engine._becomes(await engine._end(new), "died")
        await one.until(task.done)
        with pytest.raises(NotReplaced, match="the new one ended with exit code 0; the old one serves as before"):
            task.result()
        assert engine.boxes[C2.id].name == "c2"


async def test_an_old_one_that_is_gone(tmp_path: Path) -> None:
    """Somebody removed it meanwhile: the new one that does not serve is removed, and what is wrong is told."""
    async with place(tmp_path, C2, C3) as (one, engine):
        engine.at_start = {"health": "starting"}
        task = asyncio.create_task(replaced(one))
        await one.until(lambda: "start" in engine.asked)
        await engine.has(engine.boxes[C2.id], "destroyed")
        await one.until(task.done)
        with pytest.raises(NotReplaced, match=r"nor could it be put back .*no such container"):
            task.result()
        assert {each.name for each in engine.boxes.values()} == {"c3"}


async def test_a_fixed_port(tmp_path: Path) -> None:
    """Where the old one has the new one's port, it is drained and stopped first, and started again if that fails."""
    async with place(tmp_path, C2, C3) as (one, engine):
        engine.bindings = {"c2": "8080", "c2-replaced": "8080"}
        await replaced(one)
        order = engine.asked
        assert order == ["rename", "create", "stop", "start", "rm"]
        assert engine.ended == ["c2-replaced"]
        old = engine.named("c2")
        assert old
        engine.at_start = {"health": "unhealthy"}
        task = asyncio.create_task(replaced(one))
        await one.until(lambda: order[-1] == "start" and len(order) > 5)
        engine.at_start = {}
        await one.until(task.done)
        with pytest.raises(NotReplaced, match="joining, unhealthy; the old one serves as before"):
            task.result()
        assert engine.boxes[old.id].name == "c2"
        assert engine.boxes[old.id].state == "running"
        await one.until(lambda: sorted(one.machine.kernel.servers().values()) == [1, 1])


async def test_left_of_a_replacement_before(tmp_path: Path) -> None:
    """What a crash has left is found before anything is done, with the commands that mend it."""
    left = box("c2-replaced", "172.17.0.8")
    async with place(tmp_path, C2, C3) as (one, engine):
        await engine.has(left, "started")
        with pytest.raises(NotReplaced, match="to keep c2: treescale container rm n1 c2-replaced --force --drain"):
            await replaced(one)
        await engine.has(C2, "destroyed")
        with pytest.raises(NotReplaced, match="to go back: treescale container rename n1 c2-replaced c2"):
            await replaced(one)
        assert engine.asked == []


@pytest.mark.parametrize("verb", ["create", "start"])
async def test_a_replacement_that_is_interrupted(tmp_path: Path, verb: str) -> None:
    """Whoever gives up before the new one serves finds everything as it was."""
    async with place(tmp_path, C2, C3) as (one, engine):
        engine.at_start = {"health": "starting"}
        replacement = Replacement(await done(one, Balancers.ask(one.caller)), "n1", "c2", {"image": "nginx"})
        await done(one, replacement.look())
        task = asyncio.create_task(replacement.run(lambda _: None, wait_s=3600))
        await one.until(lambda: verb in engine.asked)
        task.cancel()
        await one.until(task.done)
        assert task.cancelled()
        await one.until(lambda: {each.name for each in engine.boxes.values()} == {"c2", "c3"})
        assert engine.boxes[C2.id].name == "c2"
        await one.servers(c2=1, c3=1)


async def test_an_old_one_that_does_not_go(tmp_path: Path) -> None:
    """The new one serves; that the old one is still there is told with what to do."""
    async with place(tmp_path, C2, C3) as (one, engine):
        engine.fails["stop"] = "the engine says no"
        with pytest.raises(NotReplaced, match="the new one serves, but the old one is still there as c2-replaced"):
            await replaced(one)
        assert sorted(one.machine.kernel.servers().values()) == [1, 1, 1]


def inspected(mode: str = "default", **ports: str) -> dict[str, Any]:
    places = {}
    for port, text in ports.items():
        ip, _, number = text.rpartition(":")
        places[f"{port[1:]}/tcp"] = [{"HostIp": ip, "HostPort": number}]
    return {"HostConfig": {"NetworkMode": mode, "PortBindings": places}, "NetworkSettings": {"Ports": places}}


@pytest.mark.parametrize(
    ("old", "new", "so"),
    [
        (inspected(), inspected(), False),
        (inspected(p80="8080"), inspected(p80="8080"), True),
        (inspected(p80="8080"), inspected(p81="8080"), True),
        (inspected(p80="0.0.0.0:8080"), inspected(p80="10.0.0.1:8080"), True),
        (inspected(p80="10.0.0.2:8080"), inspected(p80="10.0.0.1:8080"), False),
        (inspected(p80="32768"), inspected(p80=""), False),
        (inspected(p80="8080"), inspected(p80="8081"), False),
        (inspected("host"), inspected("host"), True),
        (inspected("host"), inspected(p80="8080"), False),
        (inspected("container:a"), inspected("container:a"), True),
    ],
)
def test_what_is_in_the_way(old: dict[str, Any], new: dict[str, Any], so: bool) -> None:
    """A fixed port of the host on the same address, or a network that both would be in."""
    assert in_the_way(old, new) is so
