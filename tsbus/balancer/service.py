"""The balancer's service: the worker `lb`, which follows the bus and serves the commands of docs/balancer.md.

It only joins what others do: facts.py gathers, keeper.py keeps the kernel's table, naming.py understands names.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from tsbus import BufferFull, BusError, Client, CommandError, Event, Request, Worker
from tsbus.balancer import answers, inquiry
from tsbus.balancer.keeper import Keeper, NotReady
from tsbus.balancer.machine import Machine, MachineError, open_machine
from tsbus.balancer.naming import (
    Meant,
    NotOne,
    active,
    check_balancers,
    drained,
    only,
    resolve,
    undrained,
    weighed,
)
from tsbus.balancer.programs import HostError
from tsbus.balancer.report import Report
from tsbus.balancer.standing import Where
from tsbus.balancer.statefile import NAME as STATE_FILE
from tsbus.balancer.statefile import StateError
from tsbus.balancer.steps import words
from tsbus.balancer.world import Override
from tsbus.config import Tree
from tsbus.core.target import fold, spell
from tsbus.lb_records import CapacityEvent, Drain, LbEvent, Select, Show, Stats, Undrain, Wait, Watch, Weigh, Why
from tsbus.live_mirror import follow
from tsbus.log import Log
from tsbus.records import StatsEvent

NAME: Final = "lb"
ASK_S: Final = 10.0
"""So long a node may take to tell what is alive behind its balancers."""
RETRY_S: Final = 5.0

_log = Log("lb")
_read_capacity: Final = msgspec.json.Decoder(CapacityEvent).decode
_read_stats: Final = msgspec.json.Decoder(StatsEvent).decode
O = TypeVar("O", Show, Stats, Watch, Drain, Undrain, Wait, Weigh, Why)  # noqa: E741


class Service:
    """The balancers of `tree.current_node`."""

    def __init__(self, tree: Tree, run_dir: Path, open_kernel: Callable[[], Machine] | None = None) -> None:
        """`run_dir` is where the state file is; `open_kernel` is another kernel than this machine's, for tests."""
        self._tree, self._node, self._run_dir = tree, tree.current_node, run_dir
        settings = tree.balancing_for(self._node)
        # With the last balancer `balancing` may have gone, and what it left is in whichever table the kernel has.
        backend = settings.backend if tree.servers[self._node].balancers else "auto"
        kernel = partial(open_machine, backend, settings.sysctls, self._node)  # type: ignore[arg-type]
        self._open = open_kernel or kernel
        self._asked: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()

    async def serve(self, client: Client) -> None:
        """Work with `client` until cancelled. Where there are no balancers, nor were any, there is nothing to do."""
        self._client = client
        if not self._tree.servers[self._node].balancers and not (self._run_dir / STATE_FILE).exists():
            self._ready.set()
            await asyncio.Event().wait()
        keeper = self.keeper = Keeper(self._tree, self._node, self._run_dir, self._open, self._publish)
        worker = _worker(keeper)
        try:
            async with asyncio.TaskGroup() as group:
                await self._subscribe()
                group.create_task(self._follow())
                group.create_task(self._resolve_all())
                group.create_task(keeper.run())
                group.create_task(worker.serve(client))
                await worker.wait_ready()
                self._ready.set()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for task in self._asked:
                task.cancel()

    async def wait_ready(self) -> None:
        """Wait until the router knows all commands."""
        await self._ready.wait()

    # What the bus says.

    async def _follow(self) -> None:
        """Mirror the containers of this node and of those below."""
        facts, keeper = self.keeper.facts, self.keeper
        while True:
            try:
                live = await follow(self._client, fold(facts.nodes), on_change=lambda _: keeper.soon())
                break
            except BusError as error:
                _log.warning("lb.not-following", error=str(error))
                await asyncio.sleep(RETRY_S)
        facts.mirror = live
        keeper.soon()
        async with live:
            await asyncio.Event().wait()

    async def _subscribe(self) -> None:
        """Listen to what the balancers below tell, and ask them when something may have been missed."""
        client, below = self._client, self._telling
        balancers = self._tree.servers[self._node].balancers.values()
        if any(each.weights == "cpu" for each in balancers):
            await client.subscribe("containers.stats.*", callback=self._on_stats, scope="subtree")
        await client.subscribe("node.up", callback=self._on_node)
        if not below:
            return
        subscription = await client.subscribe(
            "lb.capacity", callback=self._on_capacity, on_gap=lambda _: self._ask(below)
        )
        await client.subscribe("worker.joined", callback=self._on_worker)
        self._ask(below)
        self._start(self._ask_again(subscription))

    @property
    def _telling(self) -> frozenset[str]:
        """The nodes below that have balancers."""
        nodes = self.keeper.facts.nodes - {self._node}
        return frozenset(name for name in nodes if self._tree.servers[name].balancers)

    async def _ask_again(self, subscription: Any) -> None:
        """Ask all again when the router of this node was away."""
        while True:
            await subscription.wait_lost()
            await subscription.wait_known()
            self._ask(self._telling)

    def _on_capacity(self, event: Event) -> None:
        try:
            self.keeper.facts.told_capacity(event.origin, _read_capacity(event.body))
        except ValueError as error:
            _log.warning("lb.bad-event", topic=event.topic, node=event.origin, error=str(error))
        self.keeper.soon()

    def _on_stats(self, event: Event) -> None:
        try:
            self.keeper.facts.told_stats(event.origin, _read_stats(event.body))
        except ValueError as error:
            _log.warning("lb.bad-event", topic=event.topic, node=event.origin, error=str(error))
        self.keeper.soon()

    def _on_node(self, event: Event) -> None:
        if event.who != "router":
            return
        nodes = spell(str(event.json().get("nodes", "")))
        self._ask(nodes)
        for node in self.keeper.facts.named.intersection(nodes):
            self._start(self._resolve(node))

    def _on_worker(self, event: Event) -> None:
        if event.who == "router" and event.json().get("name") == NAME:
            self._ask((event.origin,))

    def _ask(self, nodes: Iterable[str]) -> None:
        for node in self._telling.intersection(nodes):
            self._start(self._ask_one(node))

    async def _ask_one(self, node: str) -> None:
        try:
            result = await self._client.call(node, "lb.capacity", timeout_s=ASK_S)
            told = msgspec.convert(result.values().get(node), CapacityEvent)
            self.keeper.facts.told_capacity(node, told)
        except (BusError, ValueError):
            return  # it tells when it can
        self.keeper.soon()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _resolve_all(self) -> None:
        """Find the addresses of the nodes that have a host name."""
        facts = self.keeper.facts
        while names := facts.unresolved:
            for node in names:
                await self._resolve(node)
            if facts.unresolved:
                await asyncio.sleep(RETRY_S)

    async def _resolve(self, node: str) -> None:
        host = self._tree.servers[node].ip
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
        except OSError as error:
            _log.warning("lb.unresolved", node=node, host=host, error=str(error))
            return
        self.keeper.facts.resolved(node, [str(each[4][0]) for each in found])
        self.keeper.soon()

    def _publish(self, topic: str, body: LbEvent | CapacityEvent) -> None:
        try:
            self._client.publish_nowait(topic, msgspec.to_builtins(body))
            self.keeper.tally.published += 1
        except BusError as error:
            self.keeper.tally.dropped += 1
            _log.warning("lb.untold", topic=topic, error=str(error), full=isinstance(error, BufferFull))


def _worker(keeper: Keeper) -> Worker:
    """Return the worker with every command and the role that it takes."""
    worker, desk = Worker(NAME), _Desk(keeper)
    for role, commands in (
        ("observe", {"ls": desk.ls, "show": desk.show, "stats": desk.stats, "watch": desk.watch, "cost": desk.cost,
                     "capacity": desk.capacity, "check": desk.check, "wait": desk.wait, "why": desk.why}),
        ("operate", {"drain": desk.drain, "undrain": desk.undrain, "weight": desk.weight, "sync": desk.sync}),
    ):  # fmt: skip
        for name, handler in commands.items():
            worker.command(name, role=role)(_translated(handler))
    return worker


class _Desk:
    """Serves the commands."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def ls(self, _: Request) -> Any:
        keeper = self._keeper
        found = [
            answers.summary(each, keeper.backend, report, keeper.standing.state(report), keeper.problems(each.name))
            for each, report in ((keeper.balancers[name], keeper.standing.report(name)) for name in keeper.balancers)
        ]
        return {"balancers": msgspec.to_builtins(found)}

    async def show(self, call: Request) -> AsyncIterator[Any]:
        keeper, order = self._keeper, _order(Show, call)
        for name in self._names(order):
            report, now = only(keeper.standing.report(name), order.servers), asyncio.get_running_loop().time()
            problems = keeper.problems(name)
            for piece in answers.details(
                keeper.balancers[name], keeper.backend, report, keeper.standing.state(report), problems, now
            ):
                yield msgspec.to_builtins(piece)

    async def stats(self, call: Request) -> AsyncIterator[Any]:
        for piece in await self._traffic(self._names(_order(Stats, call))):
            yield piece

    async def watch(self, call: Request) -> AsyncIterator[Any]:
        order = _order(Watch, call)
        names = self._names(order)
        while True:
            for piece in await self._traffic(names):
                yield piece
            await asyncio.sleep(order.every_s)

    async def capacity(self, _: Request) -> Any:
        return msgspec.to_builtins(self._keeper.capacity)

    async def cost(self, _: Request) -> Any:
        return msgspec.to_builtins(self._keeper.cost())

    async def check(self, _: Request) -> Any:
        keeper = self._keeper
        pairs = [(name, problem) for name in ("", *keeper.balancers) for problem in keeper.problems(name)]
        return {"problems": msgspec.to_builtins([answers.problem(problem, name) for name, problem in pairs])}

    async def why(self, call: Request) -> Any:
        return msgspec.to_builtins(await inquiry.answer(self._keeper, _order(Why, call)))

    async def sync(self, _: Request) -> Any:
        carried = await self._keeper.turn(anew=True)
        return {"steps": [*map(words, carried.steps), *carried.changes]}

    async def drain(self, call: Request) -> AsyncIterator[Any]:
        order = _order(Drain, call)
        keeper, (meant, balancers) = self._keeper, await self._meant(call, order)
        made = keeper.now_ns
        until = made + int(order.for_s * 1e9) if order.for_s else 0
        wish = Override("", by=_who(call), made_ns=made, once=order.once, until_ns=until)
        await keeper.override(lambda kept: drained(kept, meant, balancers, wish), _concerned(meant))
        left = _places(meant)
        while left:
            place = await keeper.wait_drained(left) if order.wait else left[0]
            left.remove(place)
            yield self._touched(place, meant)

    async def undrain(self, call: Request) -> AsyncIterator[Any]:
        order = _order(Undrain, call)
        keeper, (meant, balancers) = self._keeper, await self._meant(call, order)
        await keeper.override(
            lambda kept: undrained(kept, meant, balancers, keeper.balancers, once=order.once), _concerned(meant)
        )
        for place in _places(meant):
            yield self._touched(place, meant)

    async def wait(self, call: Request) -> AsyncIterator[Any]:
        order = _order(Wait, call)
        keeper, left = self._keeper, list(dict.fromkeys(order.servers))
        check_balancers(order.balancers, keeper.balancers)
        await keeper.wait_begun()

        def look(reports: Sequence[Report], undone: Collection[str]) -> tuple[str, Meant] | None:
            return active(left, order.balancers, reports, keeper.facts.nodes, undone)

        while left:
            name, meant = await keeper.wait_settled(look)
            left.remove(name)
            for balancer, server in meant.found:
                yield msgspec.to_builtins(answers.touched(balancer, server))

    async def weight(self, call: Request) -> AsyncIterator[Any]:
        order = _order(Weigh, call)
        keeper, (meant, balancers) = self._keeper, await self._meant(call, order)
        wish = Override("", weight=order.weight, by=_who(call), made_ns=keeper.now_ns)
        await keeper.override(lambda kept: weighed(kept, meant, balancers, keeper.balancers, wish), _concerned(meant))
        for place in _places(meant):
            yield self._touched(place, meant)

    async def _meant(self, call: Request, order: Select) -> tuple[list[Meant], tuple[str, ...]]:
        """Return which servers an order means, and in which balancers; of these none means all."""
        _log.info("lb.order", command=call.command, by=_who(call), order=msgspec.to_builtins(order))
        keeper = self._keeper
        known = tuple(name for name in order.balancers if name in keeper.balancers or not order.if_here)
        check_balancers(known, keeper.balancers)
        if order.balancers and not known:
            return [], ()
        await keeper.wait_begun()
        reports = keeper.standing.reports.values()
        find = keeper.facts.mirror.find
        heard = (lambda name: bool(find(name))) if isinstance(order, Drain) else (lambda _: True)
        nodes = keeper.facts.nodes
        return resolve(order.servers, known, reports, nodes, if_here=order.if_here, heard=heard), known

    def _touched(self, place: Where, meant: Sequence[Meant]) -> Any:
        balancer, id_, address = place
        now = self._keeper.standing.find(place)
        if now is not None:
            return msgspec.to_builtins(answers.touched(balancer, now))
        before = next(
            each
            for one in meant
            for name, each in one.found
            if (name, each.id, each.address) == (balancer, id_, address)
        )
        return {"id": id_, "name": before.name, "balancer": balancer, "state": "removed"}

    def _names(self, order: Stats) -> Sequence[str]:
        check_balancers(order.balancers, self._keeper.balancers)
        return order.balancers or tuple(self._keeper.balancers)

    async def _traffic(self, names: Sequence[str]) -> list[Any]:
        keeper, table = self._keeper, await self._keeper.counts()
        reports = ((name, keeper.standing.report(name)) for name in names)
        found = [answers.traffic(keeper.balancers[name], report, table.get(report.key)) for name, report in reports]
        return [msgspec.to_builtins(each) for each in found]


def _places(meant: Iterable[Meant]) -> list[Where]:
    return [(balancer, each.id, each.address) for one in meant for balancer, each in one.found]


def _concerned(meant: Iterable[Meant]) -> set[str]:
    return {balancer for balancer, _, _ in _places(meant)}


def _who(call: Request) -> str:
    return f"{f'{call.person}, by ' if call.person else ''}{call.who} at {call.origin}"


def _order(kind: type[O], call: Request) -> O:
    try:
        return msgspec.json.decode(call.body or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise CommandError(f"this is not understood: {error}; see docs/balancer.md, Commands") from None


_EXPECTED: Final = (NotOne, NotReady, StateError, MachineError, HostError)


def _translated(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Return the handler with what callers are told of errors."""

    async def answer(call: Request) -> Any:
        try:
            found = handler(call)
            if not isinstance(found, AsyncIterator):
                return await found
            async for piece in found:
                await call.send(piece)
            return None
        except _EXPECTED as error:
            raise CommandError(str(error)) from None

    return answer
