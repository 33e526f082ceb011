"""The balancer's service on a tree in memory, with stand-ins for the container services, over any kernel."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
from lan import Lan, enter
from model_kernel import ZERO, Kernel, tree
from waiting import LIMIT_S

from tsbus import Client, Event, Request, Worker
from tsbus.balancer.machine import Machine, MachineError, Refusal, Unusable, open_machine
from tsbus.balancer.netfilter import Done
from tsbus.balancer.report import Problem
from tsbus.balancer.service import Service
from tsbus.balancer.steps import key_of
from tsbus.balancer.table import Entry, Protocol, Virtual
from tsbus.config import Tree
from tsbus.records import Container, ContainerEvent, EngineFacts, SnapshotHead
from tsbus.testing import MemoryTree

VIP = Virtual(Protocol.TCP, ip_address("10.0.0.1"), 80)
KEYS = "containers = {nginx = 80}\nstart_grace_s = 0\ndrain_timeout_s = 20"
ENGINE = EngineFacts(node="", up=True, since_ns=1)


class MemoryMachine:
    """A kernel in memory, in the shape of machine.Machine."""

    backend = "ipvs"

    def __init__(self, kernel: Kernel | None = None) -> None:
        self.kernel = kernel or Kernel()
        self.open: dict[str, int] = {}
        self.refuse = ""
        self.lacking: set[str] = set()
        self.prepared: list[tuple[str, ...]] = []
        self.problems: tuple[Problem, ...] = ()
        self.broken = False

    def services(self, keys: Any = None, *, counted: bool = True) -> dict[Any, Entry]:
        if self.broken:
            raise MachineError("reading the table: out of order")
        return {
            key: entry._replace(counts=dict.fromkeys(entry.destinations, ZERO))
            for key, entry in self.kernel.copy().items()
            if keys is None or key in keys
        }

    def untouched(self) -> bool:
        return False

    def why_not(self, pool: Any) -> Problem | None:
        lacks = pool.service.scheduler in self.lacking
        return Problem(f"the kernel has no scheduler {pool.service.scheduler}", "use rr") if lacks else None

    def apply(self, steps: Any, listens: Any) -> list[Refusal]:
        for step in steps:
            if self.refuse:
                return [Refusal(key_of(step), Problem(self.refuse, "see the text"))]
            self.kernel.apply(step)
        return []

    def connections(self, watched: Any, listens: Any) -> dict[Any, int]:
        return {(key, address): self.open.get(str(address), 0) for key, address in watched}

    def prepare(self, fronts: Any, *, anew: bool) -> Done:
        self.prepared.append(tuple(each.name for each in fronts))
        return Done(problems=self.problems)

    def retire_other(self, ours: Any) -> tuple[str, ...]:
        return ()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def opened(lan: Lan, backend: str) -> Machine:
    """Take this thread, the balancer's, to the host of the network, and open the kernel there."""
    enter(lan.host.fd)
    return open_machine(backend, "set")


class Monitor(Worker):
    """A stand-in for the container service of a node: answers with records and publishes what happens to them."""

    def __init__(self, node: str) -> None:
        super().__init__("containers")
        self.name_of_node = node
        self.seq = 0
        self.boxes: dict[str, Container] = {}
        self.command("snapshot", role="observe")(self.snapshot)

    async def snapshot(self, call: Request) -> None:
        engine = replace_struct(ENGINE, node=self.name_of_node)
        head = SnapshotHead(node=self.name_of_node, epoch=1, seq=self.seq, engine=engine, count=len(self.boxes))
        await call.send(msgspec.json.encode(head))
        await call.send(msgspec.json.encode(list(self.boxes.values())))

    async def has(self, one: Container, action: str = "changed") -> None:
        self.seq += 1
        self.boxes[one.id] = one
        if action == "destroyed":
            del self.boxes[one.id]
        event = ContainerEvent(
            node=self.name_of_node, epoch=1, seq=self.seq, action=action, time_ns=time.time_ns(), container=one
        )  # type: ignore[arg-type]
        await self.client.publish(f"container.{action}", msgspec.to_builtins(event))


def replace_struct(one: Any, **more: Any) -> Any:
    return msgspec.structs.replace(one, **more)


class Site:
    """The tree n1 - n2, n3, n4 with the service on n1."""

    def __init__(self, memory: MemoryTree, config: Tree, folder: Path, machine: MemoryMachine) -> None:
        self.memory, self.config, self.folder, self.machine = memory, config, folder, machine
        self.events: list[Event] = []
        self.monitors = {name: Monitor(name) for name in config.servers}
        self.caller: Client
        self.task: asyncio.Task[None] | None = None
        self.service: Service
        self.unusable = ""
        self.opener: Callable[[], Machine] | None = None
        """Another kernel than the one in memory."""

    def open(self) -> Machine:
        if self.unusable:
            raise Unusable(self.unusable, "load it")
        return self.opener() if self.opener else self.machine

    async def start(self) -> None:
        """Start the service, perhaps again."""
        self.service = Service(self.config.with_current("n1"), self.folder, self.open)
        self.client = await self.memory.connect("n1", name="lb")
        self.task = asyncio.create_task(self.service.serve(self.client))
        await self.service.wait_ready()

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.client.abort()
        await self.memory.settle()

    async def until(self, what: Callable[[], Any]) -> Any:
        """Wait for something to be so; time goes on meanwhile."""
        end = time.monotonic() + LIMIT_S
        while not (found := what()):
            assert time.monotonic() < end, f"{self.machine.kernel.table} {[each.topic for each in self.events]}"
            await self.advance(0.05)
        return found

    async def advance(self, seconds: float) -> None:
        """Let time go on, and the kernel's thread do what is to be done: its time is another."""
        for _ in range(round(seconds / 0.05)):
            if self.task is not None and not self.task.done():
                await self.service.keeper.in_thread(lambda: None)
            await self.memory.advance(0.05)

    async def servers(self, **wanted: int) -> None:
        """Wait until the kernel has exactly these servers: names of boxes as `last byte of the address` -> weight."""
        table = {f"172.17.0.{name[1:]}:80": weight for name, weight in wanted.items()}
        await self.until(lambda: VIP in self.machine.kernel.table and self.machine.kernel.servers() == table)

    async def call(
        self, command: str, body: Any = b"", *, by: Client | None = None, timeout_s: float = 30.0
    ) -> list[Any]:
        """Call what must end well; returns the pieces of its answer. The limit is of the time of this tree."""
        async with (by or self.caller).request("n1", command, body, timeout_s=timeout_s) as call:
            task = asyncio.create_task(_pieces(call))
            await self.until(task.done)
        replies = task.result()
        assert replies[-1].status.name == "OK", replies[-1].text()
        return [reply.value() for reply in replies if reply.body]

    async def fails(self, command: str, body: Any = b"", *, by: Client | None = None) -> str:
        async with (by or self.caller).request("n1", command, body) as call:
            task = asyncio.create_task(_pieces(call))
            await self.until(task.done)
        last = task.result()[-1]
        assert last.status.name in ("FAILED", "REFUSED"), last
        return str(last.text())

    async def show(self) -> Any:
        return (await self.call("lb.show"))[0]

    def server(self, name: str) -> dict[str, Any]:
        """What is known of a server now, in what the keeper has; {} when it is not there."""
        report = self.service.keeper.standing.reports.get("web")
        found = [each for each in report.servers if each.name == name] if report else []
        shown = {"state": found[0].state.value, "connections": found[0].connections} if found else {}
        return {key: value for key, value in shown.items() if value is not None}

    def topics(self, *topics: str) -> list[Any]:
        return [event.json() for event in self.events if event.topic in topics]


async def _pieces(call: Any) -> list[Any]:
    return [reply async for reply in call]


@asynccontextmanager
async def site(
    folder: Path, keys: str = KEYS, *boxes: Container, start: bool = True, machine: MemoryMachine | None = None,
    monitors: tuple[str, ...] = ("n1", "n2", "n3", "n4"), child: str = "",
) -> AsyncIterator[Site]:  # fmt: skip
    config = tree(keys, child)
    memory = MemoryTree({"n1": ["n2", "n3", "n4"]})
    memory.config = config  # its routers tell of its balancers
    async with memory:
        await memory.advance(1)
        one = Site(memory, config, folder, machine or MemoryMachine())
        one.caller = await memory.connect("n1", name="caller")
        await one.caller.subscribe("lb.*", callback=one.events.append)
        for box_ in boxes:
            one.monitors["n1"].boxes[box_.id] = box_
        for name in monitors:
            await memory.run(one.monitors[name], name)
        if start:
            await one.start()
        try:
            yield one
        finally:
            if one.task is not None:
                await one.stop()
