"""Envelopes and frames: the bytes of protocol sections 2 and 3, and nothing else.

Everything that crosses a connection is made and read here. The hot path of a router uses `decode_frame`, `encode_frame`
and compares route bytes; it looks inside them only when it meets a route for the first time.
"""

from enum import IntEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec

from tsbus.core.roles import Role

PROTOCOL: Final = 1
"""The version of the protocol that this code speaks."""

MAX_FRAME: Final = 2 * 1024 * 1024
"""Bytes of a ZeroMQ message; the transport ends a connection that sends more (protocol 1.4)."""
BATCH_BYTES: Final = 128 * 1024
"""A sender closes a batch at this size (protocol 2.3)."""
MAX_BODY: Final = 1024 * 1024
MAX_ROUTE: Final = 64 * 1024
MAX_META: Final = 256
MAX_ENVELOPES: Final = 65_535


class Type(IntEnum):
    """The types of protocol section 3. From EVENT on they are routed, below they stay on one connection."""

    HELLO = 1
    WELCOME = 2
    BYE = 3
    PING = 4
    PONG = 5
    CREDIT = 6
    DIRECTORY = 7
    INTEREST = 8
    GAP = 9
    SUBSCRIBE = 10
    UNSUBSCRIBE = 11
    SERVE = 12
    WATCH = 13
    NOTICE = 14
    ACCEPT = 15
    DONE = 16
    ERROR = 17
    EVENT = 32
    REQUEST = 33
    REPLY = 34
    INPUT = 35
    CANCEL = 36
    GRANT = 37


class Lane(IntEnum):
    """The three queues of a connection (protocol 9.1)."""

    CONTROL = 0
    STREAM = 1
    EVENT = 2


class Flag(IntEnum):
    """Bits of the flags element in meta (protocol 3.3). Not an IntFlag, which makes an object at each test."""

    LAST = 1
    SECOND = 2
    INPUT = 4


class Content(IntEnum):
    """What a body is (protocol 2.7)."""

    RAW = 0
    TEXT = 1
    JSON = 2
    MSGPACK = 3


_EVENTS = {Type.EVENT, Type.GAP}
_STREAMS = {Type.ACCEPT, Type.DONE, Type.REQUEST, Type.REPLY, Type.INPUT, Type.CANCEL}
LANE_OF: Final[dict[int, Lane]] = {
    kind: Lane.EVENT if kind in _EVENTS else Lane.STREAM if kind in _STREAMS else Lane.CONTROL for kind in Type
}


class ProtocolError(ValueError):
    """A peer sent bytes that the protocol does not allow. `reason` is the counter's name (protocol 12)."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Route(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where an envelope comes from and where it goes (protocol 2.4). Local types carry only the first element."""

    type: int
    origin: str = ""
    who: str = ""
    role: int = Role.NONE
    handle: int = 0
    target: str = ""
    topic: str = ""


class EventMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Meta of EVENT. `time_ms` is the publisher's wall clock, for people only."""

    incarnation: int
    seq: int
    time_ms: int = 0
    content: int = Content.RAW


class RequestMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Meta of REQUEST. `budget_ms` is what is left of the patience, `sent_ms` the last hop's link clock (8.4).

    `person` is whom the author says he asks for (10.8).
    """

    call: int
    budget_ms: int
    sent_ms: int = 0
    credit: int = 0
    flags: int = 0
    content: int = Content.RAW
    person: str = ""


class ReplyMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Meta of REPLY. `status` is an accounting Outcome and counts only with Flag.LAST (protocol 10.2)."""

    call: int
    seq: int
    status: int = 0
    flags: int = 0
    content: int = Content.RAW


class InputMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Meta of INPUT."""

    call: int
    seq: int
    flags: int = 0
    content: int = Content.RAW


class CallMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Meta of CANCEL, ACCEPT, DONE, ERROR (only the call) and GRANT (with the bytes granted)."""

    call: int = 0
    amount: int = 0


class PingMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Meta of PING and PONG; `clock_ms` is the sender's link clock (protocol 8.4)."""

    id: int
    clock_ms: int


class CreditMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Meta of CREDIT: frame bytes acknowledged since the handshake (protocol 9.2)."""

    stream_total: int
    event_total: int


_T = TypeVar("_T")

encode: Final = msgspec.msgpack.Encoder().encode
"""Any message structure or plain value -> MessagePack bytes."""
_decode_frame: Final = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_route: Final = msgspec.msgpack.Decoder(Route).decode
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot read: broken text and deep nesting are not errors of its own."""

EMPTY_META: Final = encode([])
LOCAL_ROUTE: Final[dict[Type, bytes]] = {kind: encode([int(kind)]) for kind in Type if kind < Type.EVENT}
"""The whole route of the types that stay on one connection."""


def encode_frame(items: list[bytes]) -> bytes:
    """Make one frame of `[route, meta, body, ...]` (protocol 2.1)."""
    return encode(items)


def decode_frame(frame: bytes) -> list[bytes]:
    """Return `[route, meta, body, ...]` of a frame, at least one envelope.

    Raises ProtocolError for anything else; sizes inside are checked where the parts are looked at.
    """
    try:
        items = _decode_frame(frame)
    except _UNREADABLE as error:
        raise ProtocolError("malformed", f"not an array of bin: {error}") from None
    count = len(items)
    if not count or count % 3 or count > 3 * MAX_ENVELOPES:
        raise ProtocolError("malformed", f"{count} elements are not whole envelopes")
    return items


def decode_route(data: bytes) -> Route:
    """Return the route in `data` with a known type. Raises ProtocolError."""
    if len(data) > MAX_ROUTE:
        raise ProtocolError("oversize", f"a route of {len(data)} bytes; at most {MAX_ROUTE}")
    try:
        route = _decode_route(data)
    except _UNREADABLE as error:
        raise ProtocolError("malformed", f"route: {error}") from None
    if route.type not in LANE_OF:
        raise ProtocolError("unknown-type", f"type {route.type}")
    return route


def decode_meta(kind: type[_T], data: bytes) -> _T:
    """Return `data` as a meta structure of the class `kind`. Raises ProtocolError."""
    if len(data) > MAX_META:
        raise ProtocolError("oversize", f"meta of {len(data)} bytes; at most {MAX_META}")
    return decode_body(kind, data)


def decode_body(kind: type[_T], data: bytes) -> _T:
    """Return a body checked against the structure `kind` (a msgspec.Struct, or dict). Raises ProtocolError."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        body: _T = decoder.decode(data)
    except _UNREADABLE as error:
        raise ProtocolError("malformed", f"{kind.__name__}: {error}") from None
    return body


def local(kind: Type, body: object = None, meta: object = ()) -> list[bytes]:
    """Make the three elements of a hop-local or local envelope; `body` None is an empty body."""
    return [LOCAL_ROUTE[kind], encode(meta) if meta else EMPTY_META, b"" if body is None else encode(body)]


# Bodies of the hop-local and local types (protocol sections 3, 4 and 6).


Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
"""A count that is added to and sent on: so bounded, it stays far from the 64 bits that MessagePack can carry."""


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One node as the directory knows it (protocol 6.1)."""

    node: str
    epoch: Number
    rev: Number
    state: Annotated[int, msgspec.Meta(ge=1, le=3)]
    parent: str
    incarnation: int
    cause: Annotated[str, msgspec.Meta(max_length=32)]
    time_ms: int


class LinkHello(msgspec.Struct, kw_only=True):
    """HELLO and WELCOME between routers (protocol 4.2)."""

    versions: tuple[int, int]
    node: str
    incarnation: int
    release: str
    config: str
    window: int
    max_body: int
    clock_ms: int
    entries: list[Entry]
    interest: list[str]
    as_: str = msgspec.field(name="as", default="parent")


class WorkerHello(msgspec.Struct, kw_only=True):
    """HELLO of a worker or console (protocol 4.3)."""

    versions: tuple[int, int]
    name: str
    incarnation: int
    window: int


class WorkerWelcome(msgspec.Struct, kw_only=True):
    """WELCOME to a worker or console (protocol 4.3)."""

    version: int
    node: str
    who: str
    role: int
    handle: int
    window: int
    max_body: int
    incarnation: int
    release: str


class Bye(msgspec.Struct):
    """BYE: a reason of protocol 12 and a sentence for people."""

    reason: str
    text: str = ""


class Error(msgspec.Struct):
    """ERROR to a worker or console: a word of protocol 12 and a sentence for people."""

    code: str
    text: str = ""


class Directory(msgspec.Struct):
    """DIRECTORY."""

    entries: list[Entry]


class Interest(msgspec.Struct):
    """INTEREST: patterns that begin and cease to be wanted over a link (protocol 7.2)."""

    add: list[str] = []
    remove: list[str] = []


class Gap(msgspec.Struct):
    """GAP: `count` events were dropped at `at` = "node>peer" (protocol 9.3)."""

    count: Number
    at: Annotated[str, msgspec.Meta(max_length=600)]


class Subscribe(msgspec.Struct):
    """SUBSCRIBE and UNSUBSCRIBE (protocol 7.1)."""

    pattern: str
    scope: str = "all"


class Serve(msgspec.Struct):
    """SERVE: the commands of a service and the role each requires."""

    service: str
    commands: dict[str, int]


class Watch(msgspec.Struct):
    """WATCH; without a pattern the watch `id` ends."""

    id: int
    pattern: str = ""


class Notice(msgspec.Struct):
    """NOTICE: whether anybody else wants what the watch `id` asks for."""

    id: int
    interest: bool


class Accept(msgspec.Struct):
    """ACCEPT: the resolved set, folded."""

    nodes: str


class Done(msgspec.Struct):
    """DONE: the closed account; each value is a folded set, the union is the resolved set (protocol 10.2)."""

    ok: str = ""
    failed: str = ""
    timeout: str = ""
    unreachable: str = ""
    refused: str = ""
    no_such_service: str = ""
    cancelled: str = ""
