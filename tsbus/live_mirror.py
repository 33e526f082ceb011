"""Live mirror: a mirror (mirror.py) that follows the bus.

    async with follow(client, "@web", on_change=redraw) as mirror:
        for node, container in mirror.containers(Filter.parse("image=nginx", "state=running")):
            ...

It asks each node for a snapshot when it begins and where an event is missing, and otherwise only listens.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from tsbus.client import Client, Opening
from tsbus.core.accounting import Outcome
from tsbus.core.events import Event
from tsbus.core.exchanges import Reply
from tsbus.core.message import Gap
from tsbus.core.target import fold, spell
from tsbus.errors import BusError, UnknownTarget
from tsbus.filters import Filter
from tsbus.log import Log
from tsbus.mirror import MONITOR, Mirror, Standing
from tsbus.records import Container, ContainerEvent, EngineFacts, SnapshotHead
from tsbus.subscription import Subscription

SNAPSHOT_S: Final = 15.0
"""So long a node may take for its snapshot."""
FIRST_RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 30.0
"""A node that answers, but not with a snapshot, is asked again after so long at first, then twice as long each time."""
ABSENT_TRIES: Final = 4
"""A node without a monitor is asked so often; then it is left alone until it says something."""

_log = Log("mirror")


@dataclass(frozen=True, slots=True)
class Change:
    """What `on_change` is told."""

    node: str
    state: Standing
    """Of the node's view."""
    event: ContainerEvent | None = None
    """What happened to a container; None: the view of the whole node is another, or its state."""


_read_event: Final = msgspec.json.Decoder(ContainerEvent).decode
_read_facts: Final = msgspec.json.Decoder(EngineFacts).decode
_read_head: Final = msgspec.json.Decoder(SnapshotHead).decode
_read_containers: Final = msgspec.json.Decoder(list[Container]).decode


def follow(
    client: Client,
    target: str = "*",
    *,
    filters: Iterable[str] = (),
    scope: str = "all",
    on_change: Callable[[Change], object] | None = None,
) -> "Opening[LiveMirror]":
    """Mirror the containers of the nodes of `target`. Await it, or use it with `async with`.

    It is there at once, with a view of each node, still unknown; `wait_settled` waits for the first answers. `filters`
    (see `Filter`) say what its `containers` returns and which containers `on_change` is told of. `on_change` is called
    for every change and must return soon. `scope` is that of its subscriptions: `subtree` is enough for this node and
    those below, and lets nothing of other nodes come here. Raises FilterError, UnknownTarget and what else
    `Client.request` does.
    """
    return Opening(_follow(client, target, Filter.parse(*filters), scope, on_change or _nobody))


def _nobody(_: Change) -> None:
    """Take a change that nobody asked for."""


async def _follow(
    client: Client, target: str, wanted: Filter, scope: str, on_change: Callable[[Change], object]
) -> "LiveMirror":
    async with client.request(target, "router.ping") as call:
        nodes = await call.nodes()
    live = LiveMirror(client, nodes, wanted, scope, on_change)
    try:
        await live.open()
    except BaseException:
        await live.close()
        raise
    return live


class LiveMirror(Mirror):
    """A mirror that follows the bus, until it is closed. It asks where something is missing, and never polls."""

    def __init__(
        self, client: Client, nodes: frozenset[str], wanted: Filter, scope: str, on_change: Callable[[Change], object]
    ) -> None:
        """Programs use `follow`."""
        super().__init__(wanted)
        for node in sorted(nodes):
            self.view(node)
        self._client, self._scope = client, scope
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: set[str] = set()
        """Nodes that are asked in the next turn of the loop."""
        self._again: set[str] = set()
        """Nodes that have to be asked again once they have answered."""
        self._tries: dict[str, int] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}
        self._unsettled = set(nodes)
        self._settled = asyncio.Event()

    async def open(self) -> None:
        """Subscribe, then ask all nodes."""
        # Subscriptions go before the requests on every link, so no event falls between a snapshot and the first event.
        for pattern, callback in {
            "container.*": self._on_container,
            "docker.*": self._on_docker,
            "node.*": self._on_node,
            "worker.*": self._on_worker,
        }.items():
            on_gap = None if self._subscriptions else self._on_gap
            self._subscriptions.append(
                await self._client.subscribe(pattern, scope=self._scope, callback=callback, on_gap=on_gap)
            )
        self._ask(self.nodes)
        self._start(self._watch(self._subscriptions[0]))

    async def close(self) -> None:
        """Stop following; what is known stays."""
        for subscription in self._subscriptions:  # first, so that nothing new begins
            await subscription.close()
        self._due.clear()
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Wait until each node has answered, or cannot. Returns whether all have within `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        return self._settled.is_set()

    # What the bus says.

    def _on_container(self, event: Event) -> None:
        try:
            told = _read_event(event.body)
        except msgspec.DecodeError as error:
            _log.warning("mirror.bad-event", topic=event.topic, node=event.origin, error=str(error))
            return
        if told.node != event.origin or told.node not in self.nodes:
            return
        before = self.nodes[told.node].containers.get(told.container.id, told.container)
        if not self.event(told):
            self._changed(told.node)
            self._ask((told.node,))
        elif self.nodes[told.node].complete and any(
            self.wanted.matches(told.node, one) for one in (before, told.container)
        ):
            self._changed(told.node, told)

    def _on_docker(self, event: Event) -> None:
        if event.topic == "docker.repaired" or event.origin not in self.nodes:
            return
        try:
            facts = _read_facts(event.body)
        except msgspec.DecodeError as error:
            _log.warning("mirror.bad-event", topic=event.topic, node=event.origin, error=str(error))
            return
        if facts.node == event.origin:
            if not self.engine(facts):
                self._ask((facts.node,))
            self._changed(facts.node)

    def _on_node(self, event: Event) -> None:
        if event.who != "router" or event.topic not in ("node.up", "node.lost"):
            return
        try:
            nodes = spell(str(event.json()["nodes"]))
        except (ValueError, TypeError, KeyError):
            return
        if event.topic == "node.lost":
            for node in nodes & self.nodes.keys():
                self.lost(node, f"{event.origin} lost the link", event.time_ms * 1_000_000)
                self._changed(node)
        else:
            # If we are among those that were away, it is the others of which something may be missing.
            self._ask(self.nodes if self._client.connected and self._client.node in nodes else nodes)

    def _on_worker(self, event: Event) -> None:
        if event.who != "router" or event.origin not in self.nodes or event.json().get("name") != MONITOR:
            return
        if event.topic == "worker.joined":
            self._ask((event.origin,))
        else:
            self.stale(event.origin, "its monitor ended", event.time_ms * 1_000_000)
            self._changed(event.origin)

    def _on_gap(self, _: Gap) -> None:
        """Events were dropped on the way, and nobody knows whose."""
        self._ask(self.nodes)

    async def _watch(self, subscription: Subscription) -> None:
        """Ask all again when the router of this node was away."""
        with suppress(BusError):  # the client was closed
            while True:
                await subscription.wait_lost()
                for node in self.nodes:
                    self.stale(node, "not connected to the router here", time.time_ns())
                    self._changed(node)
                await subscription.wait_known()
                self._ask(self.nodes)

    def _changed(self, node: str, event: ContainerEvent | None = None) -> None:
        try:
            self._on_change(Change(node, self.nodes[node].state, event))
        except Exception as error:
            _log.warning("mirror.handler-error", node=node, error=f"{type(error).__name__}: {error}")

    # Asking.

    def _ask(self, nodes: Iterable[str]) -> None:
        """Ask for snapshots because something happened: at the end of this turn of the loop, all in one request."""
        for node in nodes:
            if node in self.nodes:
                self._tries.pop(node, None)
                self._ask_one(node)

    def _ask_one(self, node: str) -> None:
        if (timer := self._retries.pop(node, None)) is not None:
            timer.cancel()
        if self.nodes[node].asking:
            if node not in self._due:
                self._again.add(node)
            return
        if not self._due:
            self._loop.call_soon(self._request)
        self._due.add(node)
        self.asked(node)

    def _request(self) -> None:
        nodes, self._due = self._due, set()
        if nodes:
            self._start(self._fetch(nodes))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, nodes: set[str]) -> None:
        """Ask `nodes` and take what they answer."""
        heads: dict[str, SnapshotHead] = {}
        found: dict[str, list[Container]] = {}
        left, why, outcome = set(nodes), "no answer", Outcome.TIMEOUT
        try:
            async with self._client.request(fold(nodes), "containers.snapshot", timeout_s=SNAPSHOT_S) as call:
                async for reply in call:
                    node = reply.node
                    if node not in left:
                        continue
                    if reply.last:
                        left.discard(node)
                    try:
                        self._take(reply, heads, found)
                    except msgspec.DecodeError as error:
                        left.discard(node)
                        self._unanswered(node, Outcome.FAILED, f"its snapshot cannot be read: {error}")
        except UnknownTarget as error:
            if len(nodes) > 1:  # one of them is not there any more: the others do not suffer for it
                await asyncio.gather(*(self._fetch({node}) for node in sorted(left)))
                return
            why, outcome = str(error), Outcome.FAILED
        except BusError as error:
            why, outcome = str(error), Outcome.UNREACHABLE
        for node in left:
            self._unanswered(node, outcome, why)

    def _take(self, reply: Reply, heads: dict[str, SnapshotHead], found: dict[str, list[Container]]) -> None:
        """Take a piece of a node's answer: the head, then containers. Raises DecodeError."""
        node = reply.node
        if reply.last and reply.status is not Outcome.OK:
            self._unanswered(node, reply.status, reply.body.decode(errors="replace"))
            return
        if reply.body and node in heads:
            found[node] += _read_containers(reply.body)
        elif reply.body:
            heads[node], found[node] = _read_head(reply.body), []
        if reply.last:
            self._answered(node, heads.get(node), found.get(node, []))

    def _answered(self, node: str, head: SnapshotHead | None, containers: list[Container]) -> None:
        if head is None or head.node != node or head.count != len(containers):
            self._unanswered(node, Outcome.FAILED, "the snapshot is not whole")
            return
        self._tries.pop(node, None)
        complete = self.snapshot(head, containers)
        self._done(node, again=not complete)

    def _unanswered(self, node: str, outcome: Outcome, text: str) -> None:
        if outcome is Outcome.UNREACHABLE:
            self.failed(node, text)
            self.lost(node, text or "cannot be reached", time.time_ns())
        else:
            note = self.absent if outcome is Outcome.NO_SUCH_SERVICE else self.failed
            note(node, text or outcome.name.lower().replace("_", " "))
            tries = self._tries[node] = self._tries.get(node, 0) + 1
            if outcome is not Outcome.NO_SUCH_SERVICE or tries < ABSENT_TRIES:
                delay_s = min(FIRST_RETRY_S * 2 ** (tries - 1), MAX_RETRY_S)
                self._retries[node] = self._loop.call_later(delay_s, self._ask_one, node)
        self._done(node, again=False)

    def _done(self, node: str, *, again: bool) -> None:
        self._unsettled.discard(node)
        if not self._unsettled:
            self._settled.set()
        self._changed(node)
        if again or node in self._again:
            self._again.discard(node)
            self._ask_one(node)
