"""Tap: events of topics that are not in the model's log, from the bus for as long as somebody reads them.

They have a log of their own: whoever reads the figures of all containers must not push what happened out of the other.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final

from tsbus.client import Client
from tsbus.connection import Signal
from tsbus.core.events import Event
from tsbus.core.message import Gap
from tsbus.dashboard.eventlog import EventLog
from tsbus.dashboard.feed import Feed, unix_ms
from tsbus.errors import BusError
from tsbus.subscription import Subscription

MAX_TOPICS: Final = 1024
"""That are read at the same time; before there are more, those without a reader go."""
LINGER_S: Final = 30.0
"""A topic is read on for so long after its last reader: one whose connection broke has missed nothing."""


class Tap:
    """Events of any topics, in one log."""

    def __init__(self, client: Client, feed: Feed) -> None:
        """`feed` says of which part of the tree the dashboard is."""
        self.events = EventLog()
        self.dropped = 0
        """Events that the router did not keep for us."""
        self._client = client
        self._feed = feed
        self._changed = Signal()
        self._readers: Counter[str] = Counter()
        self._open: dict[str, Subscription] = {}
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._last: Event | None = None

    @asynccontextmanager
    async def listening(self, patterns: Collection[str]) -> AsyncIterator[None]:
        """Have events of these topics in the log while the block lasts. Raises as Client.subscribe does."""
        wanted = set(patterns)
        self._readers.update(wanted)
        try:
            async with self._opening:
                for pattern in wanted:
                    await self._open_one(pattern)
            yield
        finally:
            loop = asyncio.get_running_loop()
            self._readers -= Counter(wanted)
            for pattern in wanted - self._readers.keys():
                if pattern in self._open:
                    self._ends[pattern] = loop.call_later(LINGER_S, self._end, pattern)

    async def _open_one(self, pattern: str) -> None:
        if (end := self._ends.pop(pattern, None)) is not None:
            end.cancel()
        if pattern in self._open:
            return
        if len(self._open) >= MAX_TOPICS and self._ends:
            oldest = next(iter(self._ends))
            self._ends[oldest].cancel()
            self._end(oldest)
        scope = self._feed.model.scope
        self._open[pattern] = await self._client.subscribe(pattern, scope=scope, callback=self._take, on_gap=self._miss)

    async def wait_event(self, number: int, timeout_s: float) -> bool:
        """Wait until the log has an event after the one with `number`; tell whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.until(lambda: self.events.last > number)
        return self.events.last > number

    def _take(self, event: Event) -> None:
        if event is self._last:  # it is of several subscriptions
            return
        self._last = event
        self.events.take(event, unix_ms())
        self._changed()

    def _miss(self, gap: Gap) -> None:
        self.dropped += gap.count
        self._changed()

    def _end(self, pattern: str) -> None:
        del self._ends[pattern]
        task = asyncio.create_task(self._close(self._open.pop(pattern)))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, subscription: Subscription) -> None:
        with suppress(BusError):
            await subscription.close()
