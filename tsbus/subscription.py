"""What a client follows: the events of a subscription, and the interest of others in what it could publish.

`Client.subscribe` and `Client.interest` make them; the session behind both is `core/session.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from tsbus.connection import Connection, Signal
from tsbus.core.events import Event, Sink
from tsbus.core.message import Gap
from tsbus.core.session import Wish
from tsbus.errors import ConnectionLost
from tsbus.log import Log

_log = Log("client")

Callback = Callable[[Event], Awaitable[None] | None]
"""What a subscription calls for an event: a function, or an `async` one, which is awaited before the next event."""


class Subscription:
    """Iterate it for events and gaps. What is not taken counts against the window: the router sees a slow reader."""

    def __init__(self, connection: Connection, sink: Sink, signal: Signal) -> None:
        self._connection = connection
        self._sink = sink
        self._signal = signal
        self._closed = False
        self._feeder: asyncio.Task[None] | None = None
        self.pattern, self.scope = sink.pattern, sink.scope

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Gap:
        item = self.take()
        if item is not None:
            return item
        try:
            return await self.next()
        except ConnectionLost:
            raise StopAsyncIteration from None

    async def next(self, timeout_s: float | None = None) -> Event | Gap:
        """Wait for the next event or gap. Raises TimeoutError after `timeout_s`, ConnectionLost once it is closed."""
        async with asyncio.timeout(timeout_s):
            while (item := self.take()) is None:
                if self._closed or self._connection.closed:
                    raise ConnectionLost(f"the subscription to {self.pattern} was closed")
                await self._signal.wait()
        return item

    def take(self) -> Event | Gap | None:
        """Return the next event or gap that has arrived, None if none waits. Not for subscriptions with a callback."""
        inbox = self._sink.inbox
        if inbox is None:
            raise RuntimeError("this subscription has a callback; there is nothing to take")
        item = inbox.take()
        if item is None:
            self._connection.soon()  # an acknowledgement may wait to be sent
        return item

    async def wait_lost(self) -> None:
        """Wait until the router is gone, and with it the events until `wait_known`; or the client is closed."""
        connection = self._connection
        await connection.changed.until(lambda: not connection.connected)

    async def wait_known(self) -> None:
        """Wait until the router knows the subscription, again if it was gone. Raises ConnectionLost once closed."""
        await self._connection.confirm()

    async def close(self) -> None:
        """End the subscription; who iterates it comes to the end."""
        if not self._closed:
            self._closed = True
            self._connection.session.unsubscribe(self._sink)
            self._connection.soon()
            self._signal()
        if self._feeder is not None and self._feeder is not asyncio.current_task():
            self._feeder.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def feed(self, callback: Callback, on_gap: Callable[[Gap], None] | None) -> None:
        """Let a task await `callback` for one event after the other."""
        self._feeder = asyncio.create_task(self._feed(callback, on_gap))

    async def _feed(self, callback: Callback, on_gap: Callable[[Gap], None] | None) -> None:
        async for item in self:
            try:
                if isinstance(item, Event):
                    answer = callback(item)
                    if answer is not None:
                        await answer
                elif on_gap is not None:
                    on_gap(item)
            except Exception as error:
                _log.warning("client.handler-error", pattern=self.pattern, error=f"{type(error).__name__}: {error}")


class Interest:
    """Whether others want what a pattern selects: `wanted` now, and an iterator of every change."""

    def __init__(self, connection: Connection, wish: Wish, signal: Signal) -> None:
        self._connection = connection
        self._wish = wish
        self._signal = signal
        self._seen = self.wanted
        self._closed = False

    @property
    def wanted(self) -> bool:
        """Whether anybody else is subscribed to something that the pattern selects."""
        return bool(self._wish.wanted)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bool:
        await self._signal.until(lambda: self._closed or self._connection.closed or self.wanted != self._seen)
        if self._closed or self._connection.closed:
            raise StopAsyncIteration
        self._seen = self.wanted
        return self._seen

    async def close(self) -> None:
        """End the watch; who iterates it comes to the end."""
        self._closed = True
        self._connection.session.unwatch(self._wish)
        self._connection.soon()
        self._signal()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
