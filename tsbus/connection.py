"""A client's connection: the asyncio shell that keeps one session going over one channel after the other.

It moves frames between the channel and the session, opens a new channel when the router ends one, and lets tasks wait
for states of the session. Clients and calls share it; what they do with it is theirs.
"""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable
from typing import Protocol

from tsbus.core.message import Bye, Error, ProtocolError
from tsbus.core.session import Session
from tsbus.errors import BusError, ConnectionLost, NoRouter, Refused, UnknownTarget
from tsbus.log import Log

RECONNECT_S = (0.1, 0.5)
"""A router that said BYE is called again after a random time in this range, seconds."""
FINAL = frozenset(("refused", "version", "full"))
"""Reasons of a BYE that will be the same the next time."""

_log = Log("client")


class Channel(Protocol):
    """A connection that carries frames; `tsbus.transport` makes them of sockets, `tsbus.testing` of memory."""

    def start(self, user: "Connection") -> None:
        """Connect, and reconnect until `close`.

        It calls `up`, `down` and `received` of `user`, and `soon` when a `send` that returned False may work now.
        """

    def send(self, frame: bytes) -> bool:
        """Hand over one frame; False if that would block. Never blocks."""

    def close(self) -> None:
        """End it; nothing is called any more."""


class Signal:
    """Lets tasks wait until a state is as they want it. Whoever changes the state calls the signal."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    def __call__(self) -> None:
        """Wake those for whom it is so now: waking a task costs far more than asking for it."""
        for future, is_so in self._waiting.items():
            if not future.done() and is_so():
                future.set_result(None)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so()`; return at once if it is."""
        while not is_so():
            await self._wait(is_so)

    async def wait(self) -> None:
        """Wait for the next call."""
        await self._wait(_always)

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = is_so
        try:
            await future
        finally:
            del self._waiting[future]


class Connection:
    """See the module. `where` is the address as people should read it in errors."""

    def __init__(self, open_channel: Callable[[], Channel], name: str, where: str, window: int) -> None:
        self.session = Session(
            name,
            incarnation=secrets.randbits(63),
            first_call=(secrets.randbits(31) << 32) + 1,
            wall_ms=lambda: time.time_ns() // 1_000_000,
            changed=self._session_changed,
            report=_report,
            window=window,
        )
        self.where = where
        self.changed = Signal()
        """Called when the session begins or ends."""
        self.room = Signal()
        """Called when frames have left, so that there may be room for more."""
        self.closed = False
        self.pump_due = False
        """Whether `pump` will run in this turn of the loop."""
        self._loop = asyncio.get_running_loop()
        self._open_channel = open_channel
        self._channel: Channel | None = None
        self._retry: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Whether the router has welcomed us and is still there."""
        return self.session.welcome is not None

    def open(self) -> None:
        """Begin to connect."""
        self._channel = self._open_channel()
        self._channel.start(self)

    def close(self) -> None:
        """End the connection; everything that waits ends with ConnectionLost."""
        self.closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._hang_up()
        self.session.down()
        self.changed()
        self.room()

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until the router has welcomed us. Raises NoRouter after `timeout_s`, ConnectionLost when closed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.changed.until(lambda: self.connected or self.closed)
        except TimeoutError:
            raise NoRouter(
                f"no router answers at {self.where}; is it running (supervisorctl status), and may you use the socket?"
            ) from None
        if self.closed:
            raise self.lost()

    async def first_welcome(self, timeout_s: float) -> None:
        """Wait as `wait_connected`, but a router that turns us away for good ends it with Refused."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.wait_answered()
        await self.wait_connected(0)

    async def wait_answered(self) -> None:
        """Wait until the router has welcomed us, or this is closed. Raises Refused if it turns us away for good."""

        def refusal() -> Bye | None:
            bye = self.session.bye
            return bye if bye is not None and bye.reason in FINAL else None

        await self.changed.until(lambda: self.connected or self.closed or refusal() is not None)
        if bye := refusal():
            raise Refused(bye.reason, bye.text)

    async def confirm(self) -> None:
        """Wait until the router has read all that was said so far; over a reconnect, until it was told again.

        Raises Refused or UnknownTarget if it disliked something.
        """
        while True:
            await self.wait_connected()
            signal = Signal()
            ping = self.session.ping(signal)
            self.soon()
            await signal.until(lambda: ping.done or ping.lost)  # noqa: B023 - awaited before the next turn
            if ping.error is not None:
                raise error_of(ping.error)
            if ping.done:
                return

    async def wait_event_room(self) -> None:
        """Wait until the router takes events. Raises ConnectionLost when this client is closed."""
        await self.room.until(lambda: not self.session.full or self.closed)
        if self.closed:
            raise self.lost()

    async def wait_sent(self) -> None:
        """Wait until everything was handed to the transport."""
        self.pump()
        await self.room.until(lambda: self.session.idle or self.closed)

    def soon(self) -> None:
        """Send what is queued at the end of this turn of the loop."""
        if not self.pump_due:
            self.pump_due = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Send what is queued, as far as the window and the channel allow."""
        self.pump_due = False
        if self._channel is not None:
            self.session.pump(self._channel.send)
            self.room()

    def lost(self) -> ConnectionLost:
        """Return the error for what cannot be done without a router."""
        return ConnectionLost(
            "this client was closed" if self.closed else f"not connected to the router at {self.where}"
        )

    # What the channel calls.

    def up(self) -> None:
        """The transport is connected."""
        self.session.up()
        self.soon()

    def down(self) -> None:
        """The connection is gone; the channel makes another."""
        self.session.down()

    def received(self, frame: bytes) -> None:
        """A frame of the router came."""
        try:
            self.session.received(frame, self._loop.time())
        except ProtocolError as error:
            _log.warning("client.malformed", reason=error.reason, text=str(error))
        self.soon()

    def _session_changed(self) -> None:
        bye = self.session.bye
        if bye is not None and self._channel is not None:
            _log.info("client.dismissed", reason=bye.reason, text=bye.text)
            self._hang_up()
            delay = random.uniform(*RECONNECT_S)  # noqa: S311 - spreads reconnects
            self._retry = self._loop.call_later(delay, self.open)
        self.changed()
        self.room()

    def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def _always() -> bool:
    return True


def error_of(error: Error) -> BusError:
    """Return what the router's ERROR means to a caller."""
    if error.code == "target":
        return UnknownTarget(error.text)
    if error.code == "lost":
        return ConnectionLost(error.text)
    return Refused(error.code, error.text)


def _report(source: str, error: Exception) -> None:
    """Log what nobody waits for: an event handler's error, or the router's about an event."""
    _log.warning(f"client.{source}-error", error=f"{type(error).__name__}: {error}")
