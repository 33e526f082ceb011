"""Stream: events of the bus as Server-Sent Events, which go on where they broke off.

The id of an event names the run of this server, the log it is in, and its number there. Who comes back with it gets
what he has missed, as far as the log reaches, and is told how much it does not reach.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tsbus.core.body import body_json
from tsbus.core.topic import matches
from tsbus.dashboard.door import Visitor
from tsbus.dashboard.eventlog import EventLog
from tsbus.dashboard.feed import TOPICS, Feed
from tsbus.dashboard.tap import Tap
from tsbus.dashboard.views import EventRecord
from tsbus.dashboard.web.errors import Refusal
from tsbus.dashboard.web.site import Site

MAX_STREAMS: Final = 64
BEAT_S: Final = 10.0
"""A stream says at least so often how far it is; then it also looks whether its reader may still read."""
PAUSE_S: Final = 0.02
"""Between two pieces: what comes meanwhile goes together."""
STALLED_S: Final = 60.0
"""A reader that takes nothing for so long is given up."""
RETRY_MS: Final = 2000
"""A browser comes back so soon."""
_END_S: Final = 1.0
"""What is under way to a reader who does not read holds up the end no longer."""
_MAX_PIECE: Final = 256 << 10

_RUN: Final = secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class _Log:
    """A log of events, and how one waits for more."""

    name: str
    events: EventLog
    dropped: Callable[[], int]
    wait: Callable[[int, float], Awaitable[bool]]

    def id(self, number: int) -> str:
        return f"{_RUN}.{self.name}.{number}"

    def number(self, given: str) -> int | None:
        """Return the number in an id; None for one of another log or run."""
        start, _, number = given.rpartition(".")
        known = start == f"{_RUN}.{self.name}" and number.isascii() and number.isdigit() and len(number) < 16
        return min(int(number), self.events.last) if known else None


class Streams:
    """All streams of one server."""

    def __init__(self, site: Site, tap: Tap) -> None:
        self._feed = site.feed
        self._closing = site.closing
        self._tap = tap
        self._count = 0

    async def open(self, visitor: Visitor, patterns: Sequence[str], last_id: str) -> Response:
        """Return the answer that streams events of `patterns`, or of the model's log where there are none.

        Raises Refusal when there are too many, and as Client.subscribe does.
        """
        if self._count >= MAX_STREAMS:
            mend = "close some, or try again later"
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"{MAX_STREAMS} streams are open already", mend, wait_s=10)
        stack = AsyncExitStack()
        self._count += 1
        stack.callback(self._leave)
        feed, tap = self._feed, self._tap
        if all(pattern in TOPICS for pattern in patterns):
            log = _Log("model", feed.model.events, lambda: feed.dropped, feed.wait_event)
        else:
            log = _Log("tap", tap.events, lambda: tap.dropped, tap.wait_event)
            try:
                await stack.enter_async_context(tap.listening(patterns))
            except BaseException:
                await stack.aclose()
                raise
        return _EventStream(_Reading(log, feed, patterns or TOPICS, last_id), visitor, stack, self._closing)

    def _leave(self) -> None:
        self._count -= 1


class _Reading:
    """One reader's way through a log, as the text that it gets."""

    def __init__(self, log: _Log, feed: Feed, patterns: Sequence[str], last_id: str) -> None:
        self._log = log
        self._feed = feed
        self._patterns = patterns
        number = log.number(last_id)
        self._missed: int | None = 0
        if number is None:
            number = log.events.last
            self._missed = None if last_id else 0
        self._number = number
        self._dropped = log.dropped()
        self._since = feed.model.connected_ms

    def begin(self) -> str:
        """Return what comes first."""
        return f"retry: {RETRY_MS}\n{self.beat()}"

    def beat(self) -> str:
        """Tell how far it is. An id without data is no event to a browser, and yet it is what it comes back with."""
        return f"id: {self._log.id(self._number)}\n\n"

    async def wait(self) -> bool:
        """Wait for something new; False after BEAT_S without."""
        return await self._log.wait(self._number, BEAT_S)

    def more(self) -> str:
        """Return what is new, as much as goes into one piece; empty when nothing is.

        No more is taken out of the log than is sent at once: what a slow reader has not got may be forgotten there.
        """
        events, lost = self._log.events.since(self._number)
        text = [gap] if (gap := self._gap(lost)) else []
        size = 0
        for event in events:
            self._number = event.number
            if any(matches(pattern, event.topic) for pattern in self._patterns):
                text.append(self._event(event))
                size += len(text[-1])
            if size > _MAX_PIECE:
                break
        return "".join(text)

    def _gap(self, lost: int) -> str:
        """Tell how many events are missing here, null where nobody can tell; not all of them need have been wanted."""
        model, dropped = self._feed.model, self._log.dropped()
        away = model.connected and model.connected_ms != self._since
        missed = None if self._missed is None or away else self._missed + lost + dropped - self._dropped
        if model.connected:
            self._since = model.connected_ms
        self._missed, self._dropped = 0, dropped
        return "" if missed == 0 else f"event: gap\ndata: {msgspec.json.encode({'lost': missed}).decode()}\n\n"

    def _event(self, event: EventRecord) -> str:
        told = {
            "topic": event.topic,
            "node": event.node,
            "who": event.who,
            "time_ms": event.time_ms,
            "arrived_ms": event.arrived_ms,
        }
        data = msgspec.json.encode(told | body_json(event.body)).decode()
        return f"id: {self._log.id(event.number)}\ndata: {data}\n\n"


class _EventStream(Response):
    """The answer: it ends when its reader goes, stalls, or may not read any more."""

    media_type = "text/event-stream"

    def __init__(self, reading: _Reading, visitor: Visitor, stack: AsyncExitStack, closing: asyncio.Event) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._reading = reading
        self._visitor = visitor
        self._stack = stack
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        works = self._write(send), left(receive), self._closing.wait()
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            tasks[0].cancel()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_END_S):
                    await send({"type": "http.response.body", "body": b""})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stack.aclose()

    async def _write(self, send: Send) -> None:
        reading = self._reading
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _write(send, reading.begin())
        while self._visitor.person is not None:
            if text := reading.more():
                await _write(send, text)
                await asyncio.sleep(PAUSE_S)
            elif not await reading.wait():
                await _write(send, reading.beat())


async def _write(send: Send, text: str) -> None:
    async with asyncio.timeout(STALLED_S):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def left(receive: Receive) -> None:
    """Wait until whoever sent a request is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
