"""Feed: keeps a model up from the bus. What a page, a scrape, an alert or `treescale top` looks at.

    async with Feed(client) as feed:
        await feed.wait_settled(5)
        with feed.watching():
            ...  # figures flow into feed.model and feed.history while this block lasts

States come by themselves, by events; what one of them makes doubtful is asked for again. flows.py has what flows only
while somebody watches.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any, Final, Self

import msgspec

from tsbus.client import Client
from tsbus.connection import Signal
from tsbus.core.accounting import Outcome
from tsbus.core.events import Event
from tsbus.core.message import Gap
from tsbus.dashboard.answers import Status
from tsbus.dashboard.flows import ALL, Flows
from tsbus.dashboard.history import History
from tsbus.dashboard.questions import Questions
from tsbus.dashboard.state import Model
from tsbus.errors import BusError
from tsbus.lb_records import Details
from tsbus.live_mirror import Change, LiveMirror, follow
from tsbus.subscription import Subscription

TOPICS: Final = (
    "alert.*", "bus.*", "container.*", "docker.*", "image.*", "lb.*", "network.*", "node.*", "process.*", "worker.*",
)  # fmt: skip
"""What is always in the event log; `listening` adds to it. None of these is told in intervals."""
SETTLE_S: Final = 2.0
"""So long after a change of the tree it is asked for once more: routers may still be telling each other."""
LINKS_REST_S: Final = 2.0
"""Between two questions for links, however often events were dropped or nodes came back."""
ASK_S: Final = 10.0
NOT_RUNNING: Final = "its balancer does not run"

_BALANCER: Final = "lb"
_TOGETHER: Final = ""
"""The node of questions that are not for one."""
_read_details: Final = msgspec.json.Decoder(Details).decode


def unix_ms() -> int:
    """Return the time by our own clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Feed:
    """A model of the node that `client` is on and of all below it, kept up until it is closed."""

    def __init__(self, client: Client, clock: Callable[[], int] = unix_ms) -> None:
        """`client` stays the caller's, and open; `clock` returns Unix milliseconds."""
        self.model = Model()
        self.history = History()
        self.dropped = 0
        """Events that the router did not keep for us."""
        self._client, self._clock = client, clock
        self._changed = Signal()
        self._mirror: LiveMirror | None = None
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: Event | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._unasked: set[str] = set()
        """Nodes that are to be asked for their links."""
        self._tree = Questions(self._ask_tree, self._start)
        self._links = Questions(self._ask_links, self._start, rest_s=LINKS_REST_S)
        self._balancers = Questions(self._ask_balancers, self._start)
        self._flows = Flows(client, self.model, self.history, self._changed, clock)
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Ask for the tree, subscribe, and begin to follow it. Raises what Client.call_one and subscribe do."""
        self.model.connection(True, self._clock())
        self.model.status(await self._told_tree(), self._clock())  # the scope of the subscriptions depends on it
        for pattern in TOPICS:
            on_gap = None if self._subscriptions else self._on_gap
            opening = self._client.subscribe(pattern, scope=self.model.scope, callback=self._on_event, on_gap=on_gap)
            self._subscriptions.append(await opening)
        await self._follow()
        self._ask_all()
        self._start(self._keep_connected(self._subscriptions[0]))
        self._start(self._flows.run())

    async def close(self) -> None:
        """Stop; the model stays as it is."""
        if self._settling is not None:
            self._settling.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._mirror is not None:
            await self._mirror.close()
        for subscription in self._subscriptions:
            await subscription.close()

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # For whoever looks.

    def watching(self, node: str = ALL) -> AbstractContextManager[None]:
        """Let figures flow while the block lasts: of a node with its containers and balancers, or of the whole tree."""
        return self._flows.watching(node)

    def watch_for(self, seconds: float, node: str = ALL) -> None:
        """Let figures flow for `seconds` from now: for who comes back in intervals, as a scrape does."""
        self._flows.watch_for(seconds, node)

    @property
    def watched(self) -> frozenset[str]:
        """What somebody watches: nodes, or `ALL`."""
        return self._flows.watched

    @asynccontextmanager
    async def listening(self, pattern: str) -> AsyncIterator[None]:
        """Have events of further topics in the log while the block lasts. Raises as Client.subscribe does."""
        async with self._client.subscribe(pattern, scope=self.model.scope, callback=self._on_event):
            yield

    async def wait_change(self, revision: int, timeout_s: float | None = None) -> bool:
        """Wait until the model is newer than `revision`, `timeout_s` at most; tell whether it is."""
        return await self._wait(lambda: self.model.revision > revision, timeout_s)

    async def wait_event(self, number: int, timeout_s: float | None = None) -> bool:
        """Wait until the log has an event after the one with `number`, `timeout_s` at most; tell whether it has."""
        return await self._wait(lambda: self.model.events.last > number, timeout_s)

    async def _wait(self, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.until(is_so)
        return is_so()

    async def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Wait until each node has told its containers and balancers, or cannot, `timeout_s` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self._mirror is not None:
                    await self._mirror.wait_settled()
                await self._balancers.wait_idle()
                return True
        return False

    # What the bus says.

    def _on_event(self, event: Event) -> None:
        if event is self._last:  # two of our patterns want it
            return
        self._last = event
        self.model.event(event, self._clock())
        family, _, happened = event.topic.partition(".")
        by_router = event.who == "router"
        if family == "node" and by_router:
            self._tree.want(_TOGETHER)
            if self._settling is not None:
                self._settling.cancel()
            self._settling = self._loop.call_later(SETTLE_S, self._tree.want, _TOGETHER)
        elif (family == "lb" and happened != "capacity") or (
            family == "worker" and by_router and _name_in(event) == _BALANCER
        ):
            self._balancers.want(event.origin)
        self._changed()

    def _on_change(self, change: Change) -> None:
        if self._mirror is not None:
            self.model.mirrored(self._mirror.nodes[change.node], change.event)
            self._changed()

    def _on_gap(self, gap: Gap) -> None:
        """Nobody knows what was dropped. What it means for containers the mirror finds out itself."""
        self.dropped += gap.count
        self._ask_all()

    async def _keep_connected(self, subscription: Subscription) -> None:
        """Tell the model when the router here is away, and ask for everything when it is back."""
        with suppress(BusError):  # the client was closed
            while True:
                await subscription.wait_lost()
                self.model.connection(False, self._clock())
                self._changed()
                await subscription.wait_known()
                self.model.connection(True, self._clock())
                self._ask_all()
                self._changed()

    # Asking.

    def _ask_all(self) -> None:
        self._tree.want(_TOGETHER)
        self._ask_nodes(name for name, view in self.model.nodes.items() if view.state != "lost")

    def _ask_nodes(self, nodes: Iterable[str]) -> None:
        """Ask nodes that we may have missed news of: who reads slowly there, and what their balancers have."""
        for name in nodes:
            self._unasked.add(name)
            self._links.want(_TOGETHER)
            if self.model.nodes[name].balancers:
                self._balancers.want(name)

    async def _ask_links(self, _: str) -> None:
        nodes, self._unasked = self._unasked, set()
        await self._flows.ask_links(nodes)

    async def _told_tree(self) -> Status:
        return msgspec.convert(await self._client.call_one(".", "router.status", timeout_s=ASK_S), Status)

    async def _ask_tree(self, _: str) -> None:
        told = await self._told_tree()
        before = {name for name, view in self.model.nodes.items() if view.state != "lost"}
        self.model.status(told, self._clock())
        self._ask_nodes(name for name, view in self.model.nodes.items() if view.state != "lost" and name not in before)
        if self._mirror is None or self._mirror.nodes.keys() != self.model.nodes.keys():
            await self._follow()
        self._flows.tune()
        self._changed()

    async def _follow(self) -> None:
        """Mirror the containers of the nodes that there are now."""
        old, self._mirror = self._mirror, None
        if old is not None:
            await old.close()
        model = self.model
        self._mirror = await follow(self._client, f"{model.here}/", scope=model.scope, on_change=self._on_change)
        for view in self._mirror.nodes.values():
            self.model.mirrored(view)

    async def _ask_balancers(self, node: str) -> None:
        view = self.model.nodes.get(node)
        if view is None or not view.balancers or view.state == "lost":
            return
        told: list[Details] = []
        async with self._client.request(node, "lb.show", timeout_s=ASK_S) as call:
            async for reply in call:
                if reply.status is Outcome.NO_SUCH_SERVICE:
                    self.model.unbalanced(node, NOT_RUNNING)
                elif reply.status is not Outcome.OK:
                    self.model.unbalanced(node, reply.text())
                elif reply.body:
                    told.append(_read_details(reply.body))
                if reply.last and reply.status is Outcome.OK:
                    self.model.balancing(node, told, self._clock())
        self._changed()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name_in(event: Event) -> object:
    """Return the name of the worker that an event of a router tells of."""
    told = event.json()
    return told.get("name") if isinstance(told, dict) else None
