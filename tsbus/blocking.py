"""The client for scripts without asyncio: the same calls, blocking, safe from any thread.

One background thread runs the asyncio client. Events that threads publish are collected and published there in order,
many at one wake-up; whoever is ahead of the router waits.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from tsbus.calls import Call, Result
from tsbus.client import Client, connect
from tsbus.core.body import to_body
from tsbus.core.events import Event
from tsbus.core.exchanges import Reply
from tsbus.core.message import Gap
from tsbus.core.topic import check_topic
from tsbus.errors import BusError, ConnectionLost, PayloadTooLarge
from tsbus.log import Log
from tsbus.subscription import Subscription

if TYPE_CHECKING:
    from tsbus.transport import Curve

_ROOM: Final = 1024 * 1024
"""Bytes of events that wait for the background thread before a publisher has to wait."""
_OVERHEAD: Final = 100
_T = TypeVar("_T")
_log = Log("client")
_check_topic = lru_cache(4096)(check_topic)


class BlockingSubscription:
    """Iterate it for events and gaps."""

    def __init__(self, bus: "BlockingClient", subscription: Subscription) -> None:
        self._bus = bus
        self._subscription = subscription
        self._taken: list[Event | Gap] = []

    def next(self, timeout_s: float | None = None) -> Event | Gap:
        """Return the next event or gap. Raises TimeoutError after `timeout_s`, StopIteration once closed."""
        if not self._taken:
            self._taken = self._bus.wait_for(self._some(timeout_s))
        return self._taken.pop()

    async def _some(self, timeout_s: float | None) -> list[Event | Gap]:
        """Take what is there, latest first: changing threads for each event would cost more than the event."""
        items = [await self._subscription.next(timeout_s)]
        while len(items) < 256 and (item := self._subscription.take()) is not None:
            items.append(item)
        return items[::-1]

    def __iter__(self) -> Iterator[Event | Gap]:
        return self

    def __next__(self) -> Event | Gap:
        try:
            return self.next()
        except ConnectionLost:
            raise StopIteration from None

    def close(self) -> None:
        """End the subscription."""
        self._bus.wait_for(self._subscription.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingCall:
    """A call under way: iterate it for the replies, then ask for `result`."""

    def __init__(self, bus: "BlockingClient", call: Call) -> None:
        self._bus = bus
        self._call = call

    def __iter__(self) -> Iterator[Reply]:
        return self

    def __next__(self) -> Reply:
        reply = self._bus.wait_for(self._call.next())
        if reply is None:
            raise StopIteration
        return reply

    def result(self) -> Result:
        """Wait for the end; see `Call.result`."""
        return self._bus.wait_for(self._call.result())

    def cancel(self) -> None:
        """End it on every node."""
        self._bus.loop.call_soon_threadsafe(self._call.cancel)


class BlockingClient:
    """See `Client`; every method blocks until it is done and raises the same errors."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        """Take over a connected client and the loop that `thread` runs; programs use `connect_blocking`."""
        self.client = client
        self.loop = loop
        self._thread = thread
        self._room = threading.Condition()
        self._outgoing: list[tuple[str, bytes, int, str]] = []
        self._waiting = 0
        self._publishing: asyncio.Task[None] | None = None
        self._closed = False

    def wait_for(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run `coroutine` in the background loop and wait for its end; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def publish(self, topic: str, body: object = b"", *, to: str = "*") -> None:
        """Publish an event; returns when it is on its way to the router, see `flush`."""
        _check_topic(topic)
        data, content = to_body(body)
        if len(data) > self.client.max_body:
            raise PayloadTooLarge(f"an event of {len(data)} bytes; the router takes {self.client.max_body}")
        with self._room:
            self._room.wait_for(lambda: self._waiting < _ROOM or self._closed)
            if self._closed:
                raise ConnectionLost("this client was closed")
            first = not self._outgoing
            self._outgoing.append((topic, data, content, to))
            self._waiting += len(data) + _OVERHEAD
        if first:
            self.loop.call_soon_threadsafe(self._publish_soon)

    def _publish_soon(self) -> None:
        if self._publishing is None:
            self._publishing = asyncio.create_task(self._publish_all())

    async def _publish_all(self) -> None:
        try:
            while batch := self._next_batch():
                for topic, data, content, to in batch:
                    try:
                        await self.client.publish(topic, data, to=to, content=content)
                    except ConnectionLost:
                        raise
                    except (BusError, ValueError) as error:  # of this one event: the next may be in order
                        _log.warning("client.not-published", topic=topic, error=f"{type(error).__name__}: {error}")
        finally:
            self._publishing = None

    def _next_batch(self) -> list[tuple[str, bytes, int, str]]:
        with self._room:
            batch, self._outgoing, self._waiting = self._outgoing, [], 0
            self._room.notify_all()
        return batch

    def flush(self) -> None:
        """Wait until the router has read everything published so far."""
        self.wait_for(self._flush())

    async def _flush(self) -> None:
        self._publish_soon()
        if self._publishing is not None:
            await self._publishing
        await self.client.flush()

    def call(self, target: str, command: str, body: object = b"", *, timeout_s: float = 30.0) -> Result:
        """Run a command on every node of `target`; see `Client.call`."""
        return self.wait_for(self.client.call(target, command, body, timeout_s=timeout_s))

    def call_one(self, node: str, command: str, body: object = b"", *, timeout_s: float = 30.0) -> Any:
        """Run a command on one node and return its answer; see `Client.call_one`."""
        return self.wait_for(self.client.call_one(node, command, body, timeout_s=timeout_s))

    def request(self, target: str, command: str, body: object = b"", *, timeout_s: float = 30.0) -> BlockingCall:
        """Begin a call whose replies are iterated; see `Client.request`."""

        async def begin() -> Call:
            return self.client.request(target, command, body, timeout_s=timeout_s)

        return BlockingCall(self, self.wait_for(begin()))

    def subscribe(self, pattern: str, *, scope: str = "all") -> BlockingSubscription:
        """Subscribe to topics; see `Client.subscribe`."""

        async def begin() -> Subscription:
            return await self.client.subscribe(pattern, scope=scope)

        return BlockingSubscription(self, self.wait_for(begin()))

    @property
    def node(self) -> str:
        """The node whose router this is."""
        return self.client.node

    def close(self) -> None:
        """Let what was published leave, and disconnect."""
        if not self._closed:
            with self._room:
                self._closed = True
                self._room.notify_all()
            try:
                self.wait_for(self._close())
            finally:
                _end(self.loop, self._thread)

    async def _close(self) -> None:
        try:
            if self.client.connected:
                async with asyncio.timeout(2.0):
                    await self._flush()
        except (TimeoutError, BusError):
            pass  # the router does not read, or is gone
        finally:
            await self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect_blocking(
    address: str | None = None, *, name: str = "client", timeout_s: float = 3.0, keys: "Curve | None" = None
) -> BlockingClient:
    """Connect to a router, as `connect` does, for programs without asyncio. Use it with `with`, or call `close`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tsbus", daemon=True)
    thread.start()

    async def begin() -> Client:
        return await connect(address, name=name, timeout_s=timeout_s, keys=keys)

    try:
        return BlockingClient(asyncio.run_coroutine_threadsafe(begin(), loop).result(), loop, thread)
    except BaseException:
        _end(loop, thread)
        raise


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
