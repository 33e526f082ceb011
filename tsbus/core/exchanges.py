"""The two ends of a command, as a client and a worker hold them (protocol section 10). Pure.

`Asked` is a call that this client made; `Served` is one that it answers. Both are plain state: `Exchanges` changes it
as envelopes arrive and calls its `wake`, and whoever waits looks again. The router's own books are in `calls.py`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from tsbus.core.accounting import Account, Outcome
from tsbus.core.body import Readable
from tsbus.core.message import (
    Accept,
    CallMeta,
    Content,
    Done,
    Error,
    Flag,
    InputMeta,
    ProtocolError,
    ReplyMeta,
    RequestMeta,
    Route,
    Type,
    decode_body,
    decode_meta,
)
from tsbus.core.target import TargetError, spell

CREDIT: Final = 65_536
"""Bytes that may be under way to a reader before its GRANT: the default for replies, fixed for input (protocol 9.4)."""
MAX_SERVED: Final = 10_000
"""Calls that may be under way at one worker; more are refused."""
MEMORY_S: Final = 600.0
MAX_MEMORY: Final = 100_000
"""How long, and for how many calls, a worker knows that it has seen a call (protocol 10.6)."""
LOST: Final = "the connection to the router was lost"

Post = Callable[[Type, str, str, msgspec.Struct, bytes], None]
"""Sends a routed envelope: type, target, topic, meta, body."""
Key = tuple[str, int, int]
"""(origin node, caller's handle, call number): one call everywhere."""


def _nothing() -> None:
    """Stand in for a `wake` until somebody waits."""


class Reply(Readable, msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer of one node. The one with `last` says in `status` how the call ended there."""

    node: str
    body: bytes
    seq: int = 0
    status: Outcome = Outcome.OK
    last: bool = False
    second: bool = False
    content: int = Content.RAW

    def _content(self) -> int:
        return self.content

    def _source(self) -> str:
        return f"reply of {self.node}"


@dataclass(slots=True, eq=False)
class Asked:
    """A call of ours. It is over when `done`; `error` says that it never began."""

    number: int
    target: str
    command: str
    credit: int
    wake: Callable[[], None]
    nodes: str = ""
    """The resolved set, folded as the router did."""
    resolved: frozenset[str] = frozenset()
    account: Account | None = None
    replies: deque[Reply] = field(default_factory=deque)
    done: bool = False
    error: Error | None = None
    _cancelled: bool = False
    _forgotten: bool = False
    _taken: dict[str, int] = field(default_factory=dict)
    _credit_left: dict[str, int] = field(default_factory=dict)
    """Bytes that each node may still answer."""
    _overrun: bool = False
    """Whether a node answered more than that: it has failed here, and its router does not know yet."""
    _input_left: dict[str, int] = field(default_factory=dict)
    _input_seq: int = 0

    def input_room(self) -> bool:
        """Whether every node that still works on the call can take more input."""
        if self.account is None:
            return self.done
        return all(self._input_left[node] > 0 for node in self.account.waiting)


class Caller(NamedTuple):
    """Who asked, as the caller's own router vouches for it."""

    origin: str
    who: str
    role: int
    handle: int


@dataclass(slots=True, eq=False)
class Served:
    """A call that we answer. `over`: it ended; `cancelled`: by the caller, or because its way was lost."""

    key: Key
    caller: Caller
    command: str
    body: bytes
    content: int
    budget_ms: int
    credit: int
    input_ended: bool
    person: str = ""
    """Whom the caller says he asks for; nobody vouches for that."""
    chunks: deque[bytes] = field(default_factory=deque)
    over: bool = False
    cancelled: bool = False
    wake: Callable[[], None] = _nothing
    _seq: int = 0
    _taken: int = 0
    _input_left: int = CREDIT
    """Bytes that the caller may still send."""


Start = Callable[[Served], None]


class Exchanges:
    """All calls under way at one client, in both roles."""

    def __init__(self, post: Post, first_call: int) -> None:
        """`post` sends; calls are numbered from `first_call` on (protocol 3.4)."""
        self._post = post
        self._next_call = first_call
        self._asked: dict[int, Asked] = {}
        self._served: dict[Key, Served] = {}
        self._seen: dict[Key, float] = {}
        self._commands: dict[str, Start] = {}
        self._now = 0.0

    # The caller's side.

    def request(
        self,
        target: str,
        command: str,
        body: bytes,
        content: int,
        *,
        budget_ms: int,
        credit: int = CREDIT,
        with_input: bool = False,
        person: str = "",
        wake: Callable[[], None] = _nothing,
    ) -> Asked:
        """Begin a call; `budget_ms` is the caller's patience, `credit` the bytes each node may answer ahead.

        `person` is whom it is for, if not for the caller himself.
        """
        call = Asked(self._next_call, target, command, credit, wake)
        self._next_call += 1
        self._asked[call.number] = call
        flags = Flag.INPUT if with_input else 0
        meta = RequestMeta(call.number, budget_ms, 0, credit, flags, content, person)
        self._post(Type.REQUEST, target, command, meta, body)
        return call

    def take(self, call: Asked) -> Reply | None:
        """Return the next reply that has arrived, and let its node send more."""
        if not call.replies:
            return None
        reply = call.replies.popleft()
        if not reply.last:
            taken = call._taken.get(reply.node, 0) + len(reply.body)
            if taken * 2 >= call.credit and not call.done:
                self._post(Type.GRANT, reply.node, call.command, CallMeta(call.number, taken), b"")
                call._credit_left[reply.node] += taken
                taken = 0
            call._taken[reply.node] = taken
        return reply

    def send_input(self, call: Asked, data: bytes, *, last: bool = False) -> None:
        """Send a chunk of input to every node of the call; the caller has looked at `input_room`."""
        if call.done or call.account is None:
            return
        for node in call.account.waiting:
            call._input_left[node] -= len(data)
        meta = InputMeta(call.number, call._input_seq, Flag.LAST if last else 0)
        call._input_seq += 1
        self._post(Type.INPUT, call.nodes, call.command, meta, data)

    def cancel(self, call: Asked) -> None:
        """Ask for the end of a call; the account is still to come."""
        call._cancelled = True
        # Without ACCEPT it is not known yet whom to tell; `accepted` comes back here.
        if call.account is not None and not call.done:
            self._post(Type.CANCEL, call.nodes, call.command, CallMeta(call.number), b"")

    def forget(self, call: Asked) -> None:
        """Ignore whatever still comes for this call, once it can be cancelled."""
        call._forgotten = True
        if call.account is not None:
            self._asked.pop(call.number, None)

    def give_up(self, call: Asked, outcome: Outcome, text: str) -> None:
        """End a call whose router does not."""
        if call.account is None:
            call.error = Error("lost", text)
        else:
            self._finish(call, call.account.waiting, outcome, text)
        self._close(call)

    def accepted(self, _: Route, meta: bytes, body: bytes) -> None:
        """ACCEPT: the set is known."""
        call = self._asked.get(decode_meta(CallMeta, meta).call)
        if call is not None and call.account is None:
            call.nodes = decode_body(Accept, body).nodes
            call.resolved = _names(call.nodes)
            call.account = Account(call.resolved)
            call._credit_left = dict.fromkeys(call.resolved, call.credit)
            call._input_left = dict.fromkeys(call.resolved, CREDIT)
            if call._cancelled:
                self.cancel(call)
            if call._forgotten:
                self.forget(call)
            call.wake()

    def replied(self, route: Route, meta: bytes, body: bytes) -> None:
        """REPLY of the node `route.origin`. One that sends more than it may (protocol 9.4) has failed."""
        about = decode_meta(ReplyMeta, meta)
        call = self._asked.get(about.call)
        if call is None or call.account is None or not call.account.owes(route.origin):
            return
        node, last, status = route.origin, bool(about.flags & Flag.LAST), Outcome.OK
        if last:
            status = _outcome(about.status)
            call.account.finish(node, status)
        elif not body:
            return  # it says nothing, and takes no credit
        elif call._credit_left[node] <= 0:
            call._overrun = True
            self._finish(call, [node], Outcome.FAILED, "its worker answers more than it was granted (protocol 9.4)")
        else:
            call._credit_left[node] -= len(body)
        if call.account.owes(node) or last:
            second = bool(about.flags & Flag.SECOND)
            call.replies.append(Reply(node, body, about.seq, status, last, second, about.content))
        if call._overrun and call.account.closed:
            self.cancel(call)  # the router waits for it still
        call.wake()

    def done(self, _: Route, meta: bytes, body: bytes) -> None:
        """DONE: the router closed the account."""
        call = self._asked.get(decode_meta(CallMeta, meta).call)
        if call is None or call.account is None:
            return
        if not call.account.closed:  # a reply did not come through
            sets = decode_body(Done, body)
            for outcome in Outcome:
                self._finish(call, _names(getattr(sets, outcome.name.lower())), outcome, "")
        self._close(call)

    def failed(self, number: int, error: Error) -> None:
        """ERROR for a call: it never began."""
        call = self._asked.get(number)
        if call is not None:
            call.error = error
            self._close(call)

    def _finish(self, call: Asked, nodes: Iterable[str], outcome: Outcome, text: str) -> None:
        """End the call on those of `nodes` that still owe an answer."""
        for node in nodes:
            if call.account is not None and call.account.finish(node, outcome):
                call.replies.append(Reply(node, text.encode(), 0, outcome, last=True, content=Content.TEXT))

    def _close(self, call: Asked) -> None:
        call.done = True
        self._asked.pop(call.number, None)
        call.wake()

    # The worker's side.

    def serve(self, service: str, commands: Iterable[str], start: Start) -> None:
        """Hand requests for `service.command` to `start`."""
        self._commands.update({f"{service}.{command}": start for command in commands})

    def requested(self, route: Route, meta: bytes, body: bytes) -> None:
        """REQUEST: start it, unless it was seen before or too much is under way."""
        about = decode_meta(RequestMeta, meta)
        caller = Caller(route.origin, route.who, route.role, route.handle)
        key = (route.origin, route.handle, about.call)
        with_input = bool(about.flags & Flag.INPUT)
        call = Served(
            key, caller, route.topic, body, about.content, about.budget_ms, about.credit, not with_input, about.person
        )
        start = self._commands.get(route.topic)
        if self._known(key):
            self._answer(call, b"this call was seen before", Outcome.REFUSED, Flag.LAST, Content.TEXT)
        elif start is None:
            self._answer(call, b"", Outcome.NO_SUCH_SERVICE, Flag.LAST, Content.TEXT)
        elif len(self._served) >= MAX_SERVED:
            self._answer(call, b"busy: too many calls are under way", Outcome.REFUSED, Flag.LAST, Content.TEXT)
        else:
            self._served[key] = call
            start(call)

    def reply(self, call: Served, body: bytes, content: int = Content.RAW, *, second: bool = False) -> None:
        """Send a piece of the answer; the worker has waited until `call.credit` is above 0."""
        if not call.over:
            call.credit -= len(body)
            self._answer(call, body, Outcome.OK, Flag.SECOND if second else 0, content)

    def finish(self, call: Served, status: Outcome, body: bytes = b"", content: int = Content.RAW) -> None:
        """Send the last reply; it needs no credit."""
        if self._served.pop(call.key, None) is not None:
            self._answer(call, body, status, Flag.LAST, content)
            call.over = True
            call.wake()

    def take_input(self, call: Served) -> bytes | None:
        """Return the next chunk of input that has arrived, and let the caller send more."""
        if not call.chunks:
            return None
        chunk = call.chunks.popleft()
        call._taken += len(chunk)
        if call._taken * 2 >= CREDIT and not call.input_ended:
            self._post(Type.GRANT, call.key[0], str(call.key[1]), CallMeta(call.key[2], call._taken), b"")
            call._input_left += call._taken
            call._taken = 0
        return chunk

    def got_input(self, route: Route, meta: bytes, body: bytes) -> None:
        """INPUT for a call that we serve. More than the caller may send (protocol 9.4) ends the call."""
        about = decode_meta(InputMeta, meta)
        call = self._served.get((route.origin, route.handle, about.call))
        if call is None or call.input_ended:
            return
        call.input_ended = bool(about.flags & Flag.LAST)
        if body and call._input_left <= 0:
            call.chunks.clear()
            call.input_ended = call.cancelled = True
            self.finish(call, Outcome.FAILED, b"more input came than was granted (protocol 9.4)", Content.TEXT)
            return
        if body:
            call._input_left -= len(body)
            call.chunks.append(body)
        call.wake()

    def cancelled(self, route: Route, meta: bytes, _: bytes) -> None:
        """CANCEL: nobody waits any more; the worker still ends the call with `finish`."""
        call = self._served.get((route.origin, route.handle, decode_meta(CallMeta, meta).call))
        if call is not None:
            call.over = call.cancelled = True
            call.wake()

    def granted(self, route: Route, meta: bytes, _: bytes) -> None:
        """GRANT: of a caller for the answer it reads, or of a node for the input it reads."""
        about = decode_meta(CallMeta, meta)
        if "." not in route.topic:
            call = self._asked.get(about.call)
            if call is not None and route.origin in call._input_left:
                call._input_left[route.origin] += about.amount
                call.wake()
        elif (served := self._served.get((route.origin, route.handle, about.call))) is not None:
            served.credit += about.amount
            served.wake()

    def lost(self) -> None:
        """The connection is lost: the router ends our calls at the others, and others' calls here are nobody's."""
        for call in list(self._asked.values()):
            self.give_up(call, Outcome.UNREACHABLE, LOST)
        served = list(self._served.values())
        self._served.clear()
        for one in served:
            one.over = one.cancelled = True
            one.wake()

    def clock(self, now: float) -> None:
        """Tell the time, monotonic seconds, before envelopes are handed in."""
        self._now = now

    def _known(self, key: Key) -> bool:
        """Remember `key`; tell whether it was known already. The dictionary is in order of time."""
        if key in self._seen:
            return True
        self._seen[key] = self._now
        for old, when in self._seen.items():
            if when > self._now - MEMORY_S and len(self._seen) <= MAX_MEMORY:
                break
            del self._seen[old]
            break  # one out for one in keeps both bounds
        return False

    def _answer(self, call: Served, body: bytes, status: Outcome, flags: int, content: int) -> None:
        origin, handle, number = call.key
        self._post(Type.REPLY, origin, str(handle), ReplyMeta(number, call._seq, status, flags, content), body)
        call._seq += 1


def _names(folded: str) -> frozenset[str]:
    """Spell out a set of the router's. Raises ProtocolError."""
    try:
        return spell(folded)
    except TargetError as error:
        raise ProtocolError("malformed", str(error)) from None


def _outcome(code: int) -> Outcome:
    try:
        return Outcome(code)
    except ValueError:
        raise ProtocolError("malformed", f"status {code}") from None
