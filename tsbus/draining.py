"""Draining: containers out of all balancers that have them before they are stopped, so that no client meets an error.

    balancers = await Balancers.ask(client)
    async with balancers.drain([Box("node7", id)]):
        await client.call_one("node7", "containers.stop", {"containers": [id]})

docs/balancer.md says under "What a drain does" what this is held to. rolling.py restarts and replaces with it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import msgspec

from tsbus.client import Client
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.errors import BusError
from tsbus.lb_records import MAX_NAMES, Details, Touched

ANSWER_S: Final = 10.0
"""So long a balancer may take for what needs no waiting."""
LEASE_S: Final = 120.0
"""So long a drain holds when its caller dies; one that lives makes it anew three times in that."""
ENDS_S: Final = 10.0
"""So long after a signal its drain holds on: Docker, too, gives a program so long to end."""
LIMIT_S: Final = 7 * 86_400.0
"""Patience with connections that are to end: each balancer has a limit of its own, `drain_timeout_s`."""
TELL_S: Final = 1.0
"""So often callers are told who is still draining."""


class Box(NamedTuple):
    """A container, and where it is."""

    node: str
    id: str
    name: str = ""

    @property
    def label(self) -> str:
        """Node and name, for people."""
        return f"{self.node}/{self.name or self.id[:12]}"


class Seat(NamedTuple):
    """A container in one balancer."""

    box: Box
    node: str
    """Of the balancer."""
    balancer: str
    state: str
    """As in docs/balancer.md."""
    connections: int | None = None
    """That are left while it drains, or were when its time was over; None where they cannot be counted."""
    reason: str = ""
    """Of the state."""


class NotDone(NamedTuple):
    """What a node says that did not do it."""

    outcome: Outcome
    text: str


class NotDrained(BusError):
    """A balancer could not be asked, or did not do it: whoever stops now may fail its clients. All is taken back."""

    def __init__(self, nodes: Mapping[str, NotDone]) -> None:
        """`nodes`: which nodes did not do it."""
        super().__init__("\n".join(_complaint(node, nodes[node]) for node in sorted(nodes)))
        self.outcomes = {node: each.outcome for node, each in nodes.items()}


class NotActive(BusError):
    """A container did not become active in time; the text says where, and what the balancer says about it."""


_MENDS: Final = {
    Outcome.UNREACHABLE: "its table may still send connections: mend the link, or pass it over (--skip-lost) if that "
    "node itself is gone",
    Outcome.NO_SUCH_SERVICE: "its table is in force without it: start ts-balancer there, then try again",
    Outcome.TIMEOUT: "see its log there, then try again",
    Outcome.CANCELLED: "try again",
    Outcome.FAILED: "see `treescale lb check` there, then try again",
    Outcome.REFUSED: "draining needs the role operate at each node with a balancer above the container",
}


def _complaint(node: str, why: NotDone) -> str:
    text = why.text or why.outcome.name.lower().replace("_", " ")
    return f"the balancer of {node} did not do it: {text}; {_MENDS[why.outcome]}"


# Where balancers are --------------------------------------------------------------------------------------------------


class _Node(msgspec.Struct, frozen=True):
    """A node as `router.status` tells it."""

    name: str
    state: str
    home: str = ""
    balancers: tuple[str, ...] = ()


class _Status(msgspec.Struct, frozen=True):
    nodes: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which nodes have balancers, and which node is below which, as a router tells it. Pure."""

    homes: Mapping[str, str]
    """Node -> its parent by configuration; empty for the root."""
    balancing: Collection[str]
    """Nodes that have balancers."""
    lost: Collection[str]

    @classmethod
    def of(cls, status: object) -> Self:
        """Read the answer of `router.status`. Raises ValueError when it is none."""
        nodes = msgspec.convert(status, _Status).nodes
        return cls(
            {each.name: each.home for each in nodes},
            frozenset(each.name for each in nodes if each.balancers),
            frozenset(each.name for each in nodes if each.state == "lost"),
        )

    def above(self, nodes: Iterable[str]) -> frozenset[str]:
        """Return the nodes whose balancers could have containers of `nodes`: these, and those above them."""
        found: set[str] = set()
        for node in nodes:
            while node and node not in found:
                found.add(node)
                node = self.homes.get(node, "")
        return frozenset(found).intersection(self.balancing)


# Draining -------------------------------------------------------------------------------------------------------------

Told = Callable[[Sequence[Seat]], object]
"""Is called once a second with the seats that still drain."""


class Balancers:
    """The balancers of a tree, for who wants to stop containers."""

    def __init__(
        self, client: Client, layout: Layout, *, skip_lost: bool = False, on_cut: Callable[[Seat], object] | None = None
    ) -> None:
        """`skip_lost`: a node that is lost is gone itself, so its balancer need not be asked.

        `on_cut` is called with each seat that had connections left when its time was over.
        """
        self.client = client
        self._layout = layout
        self._skip_lost = skip_lost
        self._on_cut = on_cut

    @classmethod
    async def ask(
        cls, client: Client, *, skip_lost: bool = False, on_cut: Callable[[Seat], object] | None = None
    ) -> Self:
        """Ask the router which balancers there are. Raises CallFailed, and as `Client.call` does."""
        status = await client.call_one(client.node, "router.status", timeout_s=ANSWER_S)
        return cls(client, Layout.of(status), skip_lost=skip_lost, on_cut=on_cut)

    async def check(self, boxes: Collection[Box]) -> None:
        """Make sure that all balancers are there, and that we may drain. Raises NotDrained."""
        await self._order("lb.undrain", self._nodes_of(boxes), boxes, {"once": True}, ANSWER_S)

    @asynccontextmanager
    async def drain(self, boxes: Collection[Box], *, told: Told | None = None) -> AsyncIterator[None]:
        """Have no connections to containers any more, in any balancer, while inside: stop them there.

        A drain ends with its container's run; `undrain` those that were not stopped, and `let_go` those of which that
        is not known. Whatever is raised, also inside, takes all back. Raises NotDrained before anything may be stopped.
        """
        nodes = self._nodes_of(boxes)
        keeper = asyncio.create_task(self._keep(nodes, boxes))
        try:
            seats = await self._order("lb.drain", nodes, boxes, _lease(), ANSWER_S)
            draining = [seat for seat in seats if seat.state == "draining"]
            await self._wait_drained(draining, told)
            yield
        except BaseException:
            keeper.cancel()
            await self.undrain(boxes)
            raise
        finally:
            keeper.cancel()

    async def undrain(self, boxes: Collection[Box]) -> None:
        """Let containers take part again that were drained here and not stopped; those of an operator stay drained.

        Where a balancer does not answer, the drain ends by itself after LEASE_S.
        """
        if not (nodes := self._layout.above({box.node for box in boxes})):
            return
        for some in _batches(boxes):
            body = {"servers": [box.id for box in some], "if_here": True, "once": True}
            with suppress(BusError):
                await self.client.call(fold(nodes), "lb.undrain", body, timeout_s=ANSWER_S)

    async def let_go(self, boxes: Collection[Box]) -> None:
        """Let containers that were sent a signal take part again if they still run ENDS_S from now.

        Where a balancer does not answer, the drain ends by itself after LEASE_S.
        """
        with suppress(BusError):
            order = {"once": True, "for_s": ENDS_S}
            await self._order("lb.drain", self._nodes_of(boxes), boxes, order, ANSWER_S)

    async def seats(self, boxes: Collection[Box]) -> list[Seat]:
        """Return where containers are now. Raises NotDrained for a balancer that does not tell."""
        found: list[Seat] = []
        nodes = self._nodes_of(boxes)
        for some in _batches(boxes):
            named = {box.id: box for box in some}
            for node, body in await self._ask(nodes, "lb.show", {"servers": list(named)}, ANSWER_S):
                details = msgspec.json.decode(body, type=Details)
                found += [
                    Seat(named[each.id], node, details.name, each.state, each.connections, each.reason)
                    for each in details.servers
                    if each.id in named
                ]
        return found

    async def wait_active(self, box: Box, seats: Iterable[Seat], timeout_s: float) -> None:
        """Wait until a container is active in the balancers of `seats`. Raises NotActive with what they say of it."""
        wanted: dict[str, list[str]] = {}
        for seat in seats:
            wanted.setdefault(seat.node, []).append(seat.balancer)
        calls = [
            self._ask({node}, "lb.wait", {"servers": [box.id], "balancers": names}, timeout_s)
            for node, names in wanted.items()
        ]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        failed: dict[str, NotDrained] = {}
        for node, end in zip(wanted, ends, strict=True):
            if isinstance(end, NotDrained):
                failed[node] = end
            elif isinstance(end, BaseException):
                raise end
        if failed:
            reasons = [reason for node, end in failed.items() async for reason in self._why(box, node, wanted[node])]
            late = any(Outcome.TIMEOUT in end.outcomes.values() for end in failed.values())
            after = f" after {timeout_s:g} s" if late else ""
            raise NotActive(f"{box.label} is not active{after}: {'; '.join(reasons)}")

    # How.

    def _nodes_of(self, boxes: Iterable[Box]) -> frozenset[str]:
        nodes = self._layout.above({box.node for box in boxes})
        lost = nodes.intersection(self._layout.lost)
        if lost and not self._skip_lost:
            raise NotDrained({node: NotDone(Outcome.UNREACHABLE, "its node is lost") for node in lost})
        return nodes - lost

    async def _keep(self, nodes: frozenset[str], boxes: Collection[Box]) -> None:
        """Let a drain go on for as long as we live."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(BusError):  # whether it holds shows where it is waited for
                await self._order("lb.drain", nodes, boxes, _lease(), ANSWER_S)

    async def _wait_drained(self, seats: Sequence[Seat], told: Told | None) -> None:
        """Wait for the last connections, or the end of the time that each balancer gives them."""
        if not seats:
            return
        nodes = frozenset(seat.node for seat in seats)
        boxes = list({seat.box.id: seat.box for seat in seats}.values())
        teller = asyncio.create_task(self._tell(boxes, told)) if told else None
        try:
            over = await self._order("lb.drain", nodes, boxes, {**_lease(), "wait": True}, LIMIT_S)
        finally:
            if teller:
                teller.cancel()
        for seat in over:
            if seat.state != "removed":
                text = f"somebody took back the drain of {seat.box.label} in {seat.balancer}, it is {seat.state}"
                raise NotDrained({seat.node: NotDone(Outcome.CANCELLED, text)})
            if seat.connections and self._on_cut:
                self._on_cut(seat)

    async def _tell(self, boxes: Collection[Box], told: Told) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            with suppress(BusError):
                told([seat for seat in await self.seats(boxes) if seat.state == "draining"])

    async def _order(
        self, command: str, nodes: frozenset[str], boxes: Collection[Box], more: Mapping[str, Any], timeout_s: float
    ) -> list[Seat]:
        """Give an order for containers to all these balancers. Raises NotDrained as soon as one does not do it."""
        seats = []
        for some in _batches(boxes):
            named = {box.id: box for box in some}
            body = {"servers": list(named), "if_here": True, **more}
            for node, said in await self._ask(nodes, command, body, timeout_s):
                each = msgspec.json.decode(said, type=Touched)
                if each.id in named:
                    seats.append(Seat(named[each.id], node, each.balancer, each.state, each.connections))
        return seats

    async def _ask(
        self, nodes: Collection[str], command: str, body: Mapping[str, Any], timeout_s: float
    ) -> list[tuple[str, bytes]]:
        """Return what nodes answer, with the node. Raises NotDrained as soon as one ends in another way than well."""
        if not nodes:
            return []
        said = []
        async with self.client.request(fold(nodes), command, body, timeout_s=timeout_s) as call:
            async for reply in call:
                if reply.body and reply.status is Outcome.OK:
                    said.append((reply.node, reply.body))
                passed_over = reply.status is Outcome.UNREACHABLE and self._skip_lost
                if reply.last and reply.status is not Outcome.OK and not passed_over:
                    raise NotDrained({reply.node: NotDone(reply.status, reply.text())})
        return said

    async def _why(self, box: Box, node: str, balancers: Sequence[str]) -> AsyncIterator[str]:
        """Yield why a container is not active in balancers of a node, as far as these tell."""
        try:
            said = await self._ask({node}, "lb.show", {"balancers": balancers, "servers": [box.id, box.name]}, ANSWER_S)
        except NotDrained as error:
            yield str(error)
            return
        for _, body in said:
            details = msgspec.json.decode(body, type=Details)
            if why := _reason(box, details):
                yield f"{details.name} on {node}: {why}"


def _lease() -> dict[str, Any]:
    return {"once": True, "for_s": LEASE_S}


def _reason(box: Box, details: Details) -> str:
    """Return why a container is not active in a balancer; empty when it is."""
    for server in details.servers:
        if server.id == box.id:
            active = server.state == "active" and not details.problems
            return "" if active else f"{server.state}, {server.reason}" if server.reason else server.state
    for each in details.left_out:
        if (each.name, each.node) == (box.name, box.node):
            return each.reason
    return "no key of its configuration and no label names it"


def _batches(boxes: Collection[Box]) -> Iterator[Sequence[Box]]:
    """Yield as many at once as a balancer takes."""
    every = list(boxes)
    return (every[start : start + MAX_NAMES] for start in range(0, len(every), MAX_NAMES))
