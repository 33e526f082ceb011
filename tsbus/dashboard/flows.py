"""Flows: what the bus carries for a dashboard only while somebody looks: figures, traffic, links. An edge of the feed.

The figures of containers and the traffic of balancers are pushed by those who have them, while we are subscribed. Of
what routers know of their links there is no event: they are asked, every five seconds.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from tsbus.client import Client
from tsbus.core.accounting import Outcome
from tsbus.core.events import Event
from tsbus.core.target import fold
from tsbus.dashboard.answers import Stats
from tsbus.dashboard.history import FRESH_MS, STEP_S, History
from tsbus.dashboard.state import Model
from tsbus.errors import BusError
from tsbus.lb_records import BalancerTraffic
from tsbus.log import Log
from tsbus.records import StatsEvent
from tsbus.subscription import Subscription

ALL: Final = "*"
"""Watch the whole tree."""
TRAFFIC_S: Final = 2.0
"""How often balancers tell: so often the kernel works its rates out."""
LINGER_S: Final = 2.0
"""Everything flows on for so long after the last viewer: who goes from page to page is away for a moment only."""
RETRY_S: Final = 5.0
"""After a balancer stopped telling."""
ASK_S: Final = 5.0
_DAY_S: Final = 86_400.0

_read_figures: Final = msgspec.json.Decoder(StatsEvent).decode
_read_stats: Final = msgspec.json.Decoder(Stats).decode
_read_traffic: Final = msgspec.json.Decoder(BalancerTraffic).decode
_log = Log("dashboard.flows")


class Flows:
    """Counts viewers, and lets flow into the model and its history what they look at."""

    def __init__(
        self, client: Client, model: Model, history: History, changed: Callable[[], None], clock: Callable[[], int]
    ) -> None:
        """`changed` is called when the model has changed, `clock` returns Unix milliseconds."""
        self._client, self._model, self._history = client, model, history
        self._changed, self._clock = changed, clock
        self._viewers: Counter[str] = Counter()
        self._leases: dict[str, asyncio.TimerHandle] = {}
        self._tuning = asyncio.Event()
        self._figures: dict[str, Subscription] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        """By node: who listens to the traffic of its balancers."""
        self._rounds: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    # Viewers.

    @property
    def watched(self) -> frozenset[str]:
        """What somebody watches: nodes, or `ALL`."""
        nodes = frozenset(node for node, viewers in self._viewers.items() if viewers)
        return frozenset((ALL,)) if ALL in nodes else nodes

    @contextmanager
    def watching(self, node: str = ALL) -> Iterator[None]:
        """Let flow what there is of a node and its containers and balancers, or of all, while the block lasts."""
        self._enter(node)
        try:
            yield
        finally:
            self._leave(node)

    def watch_for(self, seconds: float, node: str = ALL) -> None:
        """Watch for `seconds` from now: for who comes back in intervals, as a scrape does."""
        if (timer := self._leases.pop(node, None)) is not None:
            timer.cancel()
        else:
            self._enter(node)
        self._leases[node] = self._loop.call_later(seconds, self._end_lease, node)

    def _end_lease(self, node: str) -> None:
        del self._leases[node]
        self._leave(node)

    def _enter(self, node: str) -> None:
        self._viewers[node] += 1
        self.tune()

    def _leave(self, node: str) -> None:
        self._viewers[node] -= 1
        if not self._viewers[node]:
            del self._viewers[node]
            self._loop.call_later(LINGER_S, self.tune)

    # What flows.

    def tune(self) -> None:
        """Let flow what is watched and nothing else: viewers came or went, or the tree has changed."""
        self._tuning.set()

    async def run(self) -> None:
        """Do so until cancelled."""
        try:
            while True:
                await self._tuning.wait()
                self._tuning.clear()
                try:
                    await self._tune()
                except BusError as error:  # the router is away; it is told again what we want when it is back
                    _log.info("flows.not-tuned", error=str(error))
                    await asyncio.sleep(RETRY_S)
                    self.tune()
        finally:
            await self._end()

    async def _tune(self) -> None:
        watched = self.watched
        self._tune_followers(self._nodes(watched))
        if watched and self._rounds is None:
            self._rounds = asyncio.create_task(self._keep_rounds())
        elif not watched and self._rounds is not None:
            self._rounds.cancel()
            self._rounds = None
        for node in watched - self._figures.keys():
            self._figures[node] = await self._client.subscribe(
                f"containers.stats.{node}", scope=self._model.scope, callback=self._on_figures
            )
            self._start(self._ask_figures(node))
        for node in self._figures.keys() - watched:
            await self._figures.pop(node).close()

    def _nodes(self, watched: frozenset[str]) -> frozenset[str]:
        nodes = self._model.nodes
        names = nodes.keys() if ALL in watched else watched & nodes.keys()
        return frozenset(name for name in names if nodes[name].state != "lost")

    def _tune_followers(self, nodes: frozenset[str]) -> None:
        wanted = {node for node in nodes if self._model.nodes[node].balancers}
        for node in self._followers.keys() - wanted:
            self._followers.pop(node).cancel()
        for node in wanted - self._followers.keys():
            self._followers[node] = asyncio.create_task(self._follow_traffic(node))

    async def _end(self) -> None:
        for timer in self._leases.values():
            timer.cancel()
        tasks = [*self._tasks, *self._followers.values(), *([self._rounds] if self._rounds else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for subscription in self._figures.values():
            await subscription.close()

    def _on_figures(self, event: Event) -> None:
        self._take_figures(event.origin, event.body)

    def _take_figures(self, node: str, body: bytes) -> None:
        try:
            told = _read_figures(body)
        except msgspec.DecodeError as error:
            _log.warning("flows.bad-figures", node=node, error=str(error))
            return
        if told.node == node:
            self._model.figures(told, self._clock())
            self._changed()

    async def _ask_figures(self, watched: str) -> None:
        """Ask those from whom none flow for all figures: where others listen, only changes are told at first."""
        stale = self._clock() - FRESH_MS
        nodes = [
            name
            for name in self._nodes(frozenset((watched,)))
            if self._model.nodes[name].monitored and self._model.nodes[name].stats_ms < stale
        ]
        if not nodes:
            return
        try:
            async with self._client.request(fold(nodes), "containers.sample", timeout_s=ASK_S) as call:
                async for reply in call:
                    if reply.body and reply.status is Outcome.OK:
                        self._take_figures(reply.node, reply.body)
        except BusError as error:
            _log.info("flows.no-figures", error=str(error))

    async def _follow_traffic(self, node: str) -> None:
        body = {"every_s": TRAFFIC_S}
        while True:
            try:
                async with self._client.request(node, "lb.watch", body, timeout_s=_DAY_S) as call:
                    async for reply in call:
                        if not reply.last:
                            self._model.traffic(node, _read_traffic(reply.body), self._clock())
                            self._changed()
            except (BusError, msgspec.DecodeError) as error:
                _log.info("flows.no-traffic", node=node, error=str(error))
            await asyncio.sleep(RETRY_S)

    async def _keep_rounds(self) -> None:
        """Every five seconds, ask routers for their links, and let the history have a point of everything."""
        while True:
            asking = self.ask_links(self._nodes(self.watched))
            await asyncio.gather(asking, asyncio.sleep(STEP_S - self._clock() / 1000 % STEP_S))
            self._history.record(self._model, self._clock())

    async def ask_links(self, nodes: Collection[str]) -> None:
        """Ask the routers of `nodes` what they know of their links and workers."""
        if not nodes:
            return
        try:
            async with self._client.request(fold(nodes), "router.stats", timeout_s=STEP_S / 2) as call:
                async for reply in call:
                    if reply.body and reply.status is Outcome.OK:
                        self._model.router(reply.node, _read_stats(reply.body), self._clock())
        except (BusError, msgspec.DecodeError) as error:
            _log.info("flows.no-links", error=str(error))
        self._changed()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
