"""The ends of a command as programs see them: `Call` and `Result` for who asks, `Request` for who answers.

They wait, in asyncio, on the state that `core/exchanges.py` keeps.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tsbus.connection import Connection, Signal, error_of
from tsbus.core.accounting import Outcome
from tsbus.core.body import Readable, to_body
from tsbus.core.exchanges import Asked, Reply, Served
from tsbus.core.message import Content
from tsbus.core.target import fold
from tsbus.errors import CallFailed, CommandError, PayloadTooLarge

CHUNK_BYTES = 65_536
"""Longer output and input travels in pieces of this size."""
GRACE_S = 2.0
"""So long after the budget the client ends a call itself: its router, which should have, does not answer."""


@dataclass(frozen=True, slots=True)
class Result:
    """The closed account of a call: every node of the target is in exactly one of the sets.

    `replies` holds what each node wrote to its first stream, `errors` the last words of nodes that did not end well.
    Replies that were iterated are the caller's and not here.
    """

    command: str
    outcomes: dict[str, Outcome]
    replies: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    last: dict[str, Reply] = field(default_factory=dict)
    """The last reply with a body of each node."""

    def _ended(self, outcome: Outcome) -> frozenset[str]:
        return frozenset(node for node, how in self.outcomes.items() if how is outcome)

    @property
    def nodes(self) -> frozenset[str]:
        """All nodes of the target."""
        return frozenset(self.outcomes)

    @property
    def ok(self) -> frozenset[str]:
        """Nodes that did it."""
        return self._ended(Outcome.OK)

    @property
    def failed(self) -> frozenset[str]:
        """Nodes whose worker ran it and reported an error."""
        return self._ended(Outcome.FAILED)

    @property
    def timeout(self) -> frozenset[str]:
        """Nodes that did not end in time."""
        return self._ended(Outcome.TIMEOUT)

    @property
    def unreachable(self) -> frozenset[str]:
        """Nodes that are down or were lost on the way."""
        return self._ended(Outcome.UNREACHABLE)

    @property
    def refused(self) -> frozenset[str]:
        """Nodes that do not allow it."""
        return self._ended(Outcome.REFUSED)

    @property
    def no_such_service(self) -> frozenset[str]:
        """Nodes where no worker serves the command."""
        return self._ended(Outcome.NO_SUCH_SERVICE)

    @property
    def cancelled(self) -> frozenset[str]:
        """Nodes where it was cancelled."""
        return self._ended(Outcome.CANCELLED)

    @property
    def complete(self) -> bool:
        """Whether every node did it."""
        return all(outcome is Outcome.OK for outcome in self.outcomes.values())

    def values(self) -> dict[str, Any]:
        """Return what each node that did it said in its last reply with a body (`Reply.value`); None without one."""
        return {node: self.last[node].value() if node in self.last else None for node in sorted(self.ok)}

    def raise_for_status(self) -> None:
        """Raise CallFailed unless every node did it."""
        if not self.complete:
            raise CallFailed(self)

    def explain(self) -> str:
        """Say in one line which nodes did not do it, and why."""
        parts = []
        for outcome in Outcome:
            nodes = self._ended(outcome)
            if outcome is not Outcome.OK and nodes:
                texts = {self.errors.get(node, "") for node in nodes}
                why = next(iter(texts)) if len(texts) == 1 else f"{len(texts)} different errors"
                name = outcome.name.lower().replace("_", " ")
                parts.append(f"{name} on {fold(nodes)}" + (f": {why}" if why else ""))
        return f"{self.command}: " + ("; ".join(parts) or f"ok on {fold(self.ok)}")


class Call:
    """A call under way. Iterate it for the replies as they come, or await `result()`; it is paced by the reader."""

    def __init__(self, connection: Connection, asked: Asked, signal: Signal, timeout_s: float) -> None:
        self._connection = connection
        self._exchanges = connection.session.exchanges
        self._asked = asked
        self._signal = signal
        self._result = Result(asked.command, {})
        loop = asyncio.get_running_loop()
        self._guard = loop.call_later(timeout_s + GRACE_S, self._give_up)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        reply = await self.next()
        if reply is None:
            raise StopAsyncIteration
        return reply

    async def next(self) -> Reply | None:
        """Wait for the next reply; None after the last.

        Raises UnknownTarget, Refused or ConnectionLost if the call could not begin.
        """
        asked = self._asked
        await self._signal.until(lambda: bool(asked.replies) or asked.done)
        if asked.done:
            self._guard.cancel()
        reply = self._exchanges.take(asked)
        if reply is not None:
            self._connection.soon()
            self._note(reply)
        elif asked.error is not None:
            raise error_of(asked.error)
        return reply

    def _note(self, reply: Reply) -> None:
        if reply.last and reply.status is not Outcome.OK:
            self._result.errors[reply.node] = reply.body.decode(errors="replace")
        elif reply.body:
            self._result.last[reply.node] = reply

    async def nodes(self) -> frozenset[str]:
        """Return all nodes of the target, as soon as the router has worked them out.

        Raises UnknownTarget, Refused or ConnectionLost if it does not.
        """
        asked = self._asked
        await self._signal.until(lambda: asked.account is not None or asked.done)
        if asked.account is None:
            raise error_of(asked.error) if asked.error else self._connection.lost()
        return asked.resolved

    async def result(self) -> Result:
        """Wait for the end and return the account, with the replies that were not iterated.

        Raises UnknownTarget, Refused or ConnectionLost if the call could not begin.
        """
        result = self._result
        while (reply := await self.next()) is not None:
            if reply.status is Outcome.OK and not reply.second:
                result.replies[reply.node] = result.replies.get(reply.node, b"") + reply.body
        if self._asked.account is not None:
            for outcome, nodes in self._asked.account.summary().items():
                result.outcomes.update(dict.fromkeys(nodes, outcome))
        return result

    async def send_input(self, data: bytes) -> None:
        """Send input to every node of the call; waits while one that still works on it has not read what it got."""
        for start in range(0, len(data), CHUNK_BYTES):
            await self._input_room()
            self._exchanges.send_input(self._asked, data[start : start + CHUNK_BYTES])
            self._connection.soon()

    async def end_input(self) -> None:
        """Say that no more input comes."""
        await self._input_room()
        self._exchanges.send_input(self._asked, b"", last=True)
        self._connection.soon()

    async def _input_room(self) -> None:
        await self._signal.until(self._asked.input_room)
        await self._connection.room.until(lambda: self._connection.session.stream_room)

    def cancel(self) -> None:
        """End it on every node; the account still comes, with `cancelled` nodes."""
        self._exchanges.cancel(self._asked)
        self._connection.soon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel the call unless it is over, and forget it."""
        self.cancel()
        self._exchanges.forget(self._asked)
        self._guard.cancel()

    def _give_up(self) -> None:
        self._exchanges.give_up(self._asked, Outcome.TIMEOUT, "the router did not end the call in time")


class Request(Readable):
    """A call that this worker answers, as its handler sees it."""

    def __init__(self, connection: Connection, served: Served) -> None:
        self._connection = connection
        self._exchanges = connection.session.exchanges
        self._served = served
        served.wake = self._changed
        self._signal = Signal()
        self._cancel: Callable[[], object] | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + served.budget_ms / 1000
        self.node = connection.session.welcome.node if connection.session.welcome else ""
        """The node of this worker."""
        self.command = served.command
        """The command as it was asked for, `service.command`."""
        self.body = served.body
        self.origin, self.who, self.role, self.handle = served.caller
        self.person = served.person
        """Whom the caller says he asks for, as a dashboard does for who is signed in there; empty: for himself.
        Nobody vouches for it, so it is written down and decides nothing."""
        self.call = served.key[2]
        """The number of the call: with `origin` and `handle` it names the call on every node that it went to."""
        self.outcome: Outcome | None = None
        """How it ended here, once it has."""

    @property
    def budget_s(self) -> float:
        """How many seconds are left of the caller's patience."""
        return max(0.0, self._deadline - self._loop.time())

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._served.over

    @property
    def input(self) -> AsyncIterator[bytes]:
        """The input that the caller streams, in chunks; empty if it sends none."""
        return self._read_input()

    async def _read_input(self) -> AsyncIterator[bytes]:
        served = self._served
        while True:
            await self._signal.until(lambda: bool(served.chunks) or served.input_ended or served.over)
            chunk = self._exchanges.take_input(served)
            if chunk is None:
                return
            self._connection.soon()
            yield chunk

    async def send(self, data: object, *, second: bool = False) -> None:
        """Send a piece of the answer; waits while the caller has not read what it got. Long bytes go in pieces.

        `second`: of the second stream (stderr). Nothing is sent for empty `data`, or when nobody waits any more.
        """
        body, content = to_body(data)
        size = CHUNK_BYTES if content is Content.RAW else self._limit
        if len(body) > size and content is not Content.RAW:
            raise self._too_large(body)
        for start in range(0, len(body), size):
            await self._room()
            self._exchanges.reply(self._served, body[start : start + size], content, second=second)
            self._connection.soon()

    async def answer(self, value: object) -> None:
        """End the call well, with `value` as the last reply. Long bytes go in pieces. Raises PayloadTooLarge."""
        body, content = to_body(value)
        if len(body) > self._limit:
            if content is not Content.RAW:
                raise self._too_large(body)
            await self.send(body)
            body = b""
        session = self._connection.session
        await self._connection.room.until(lambda: session.stream_room or self._served.over)
        self.end(Outcome.OK, body, content)

    def end(self, status: Outcome, body: bytes = b"", content: int = Content.TEXT) -> None:
        """End the call with `status` and last words; the first end counts."""
        if self.outcome is None:
            self.outcome = status
        self._exchanges.finish(self._served, status, body[: self._limit], content)
        self._connection.soon()

    def fail(self, text: str) -> None:
        """End the call as failed with `text`: the same as raising CommandError."""
        raise CommandError(text)

    def on_cancel(self, then: Callable[[], object]) -> None:
        """Let `then` be called if the call is cancelled or its way is lost."""
        self._cancel = then

    def _changed(self) -> None:
        self._signal()
        if self._served.cancelled and self._cancel is not None:
            self._cancel()

    async def _room(self) -> None:
        served, connection = self._served, self._connection
        await self._signal.until(lambda: served.credit > 0 or served.over)
        await connection.room.until(lambda: connection.session.stream_room or served.over)

    def _too_large(self, body: bytes) -> PayloadTooLarge:
        return PayloadTooLarge(f"a reply of {len(body)} bytes; at most {self._limit}, unless it is sent as bytes")

    @property
    def _limit(self) -> int:
        return self._connection.session.max_body

    def _content(self) -> int:
        return self._served.content

    def _source(self) -> str:
        return f"{self.command} from {self.who} at {self.origin}"
