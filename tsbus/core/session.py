"""One client's session with its router: handshake, subscriptions, watches, and what is said again after a reconnect.

Pure: frames come in with `received`, frames go out through `pump`, time and wake-ups are handed in. `connection.py` is
the asyncio shell around it; commands are in `exchanges.py`. Events take the shortest way: a route is understood once
and then costs a dictionary look-up, meta is decoded when somebody asks for it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import msgspec

from tsbus.core.events import Event, Inbox, Share, Sink
from tsbus.core.exchanges import Exchanges, Start
from tsbus.core.lanes import Outbox
from tsbus.core.message import (
    BATCH_BYTES,
    LANE_OF,
    MAX_BODY,
    PROTOCOL,
    Bye,
    CallMeta,
    CreditMeta,
    Error,
    Gap,
    Lane,
    Notice,
    PingMeta,
    ProtocolError,
    Route,
    Serve,
    Subscribe,
    Type,
    Watch,
    WorkerHello,
    WorkerWelcome,
    decode_body,
    decode_frame,
    decode_meta,
    decode_route,
    encode,
    local,
)
from tsbus.core.topic import PatternMap, check_pattern, check_scope, check_topic

WINDOW: Final = 1024 * 1024
"""Bytes of events, and of replies and requests, that the router may send before they are acknowledged."""
EVENT_ROOM: Final = 256 * 1024
"""Bytes of events that wait for the router before a publisher has to wait."""
STREAM_ROOM: Final = 1024 * 1024
"""The same for requests, replies and input."""
MAX_ROUTES: Final = 4096
"""Routes remembered in each direction; when there are more, remembering starts anew."""
_ENVELOPE: Final = 12
"""Bytes that MessagePack adds to an envelope, about."""


@dataclass(slots=True, eq=False)
class Wish:
    """A watch on others' interest in `pattern`; `wanted` is None until the router has answered."""

    id: int
    pattern: str
    wake: Callable[[], None]
    wanted: bool | None = None


@dataclass(slots=True, eq=False)
class Ping:
    """A question behind everything said so far: `done` when the router has read it, `error` if it disliked it."""

    wake: Callable[[], None]
    done: bool = False
    lost: bool = False
    error: Error | None = None


Handle = Callable[[Route, bytes, bytes], None]


@dataclass(slots=True, eq=False)
class _Way:
    """What is done with envelopes of one route."""

    route: Route
    handle: Handle | None = None
    puts: tuple[Callable[[Event], object], ...] = ()
    inboxes: tuple[Inbox, ...] = ()


class Session:
    """The state of one client. `full` tells a publisher to wait, `welcome` is there while the session is."""

    def __init__(
        self,
        name: str,
        *,
        incarnation: int,
        first_call: int,
        wall_ms: Callable[[], int],
        changed: Callable[[], None],
        report: Callable[[str, Exception], None],
        window: int,
    ) -> None:
        """Prepare a session that is not connected.

        `incarnation` and `first_call` are random (protocol 3.4), `wall_ms` tells Unix milliseconds. `changed` is called
        when the session begins or ends; `report` takes what goes wrong beside: ("handler", its error), ("router", ...).
        """
        self.welcome: WorkerWelcome | None = None
        self.bye: Bye | None = None
        self.full = True
        self.max_body = MAX_BODY
        self.outbox = Outbox(control_limit=1 << 62, stream_limit=STREAM_ROOM, event_limit=EVENT_ROOM)
        self.exchanges = Exchanges(self.post, first_call)
        self.published = 0
        self._name, self._incarnation, self._window = name, incarnation, window
        self._wall_ms, self._changed, self._report = wall_ms, changed, report
        self._subscribed: Counter[tuple[str, str]] = Counter()
        self._sinks: PatternMap[Sink] = PatternMap()
        self._services: dict[str, Serve] = {}
        self._wishes: dict[int, Wish] = {}
        self._pings: dict[int, Ping] = {}
        self._numbers = 0
        self._ways: dict[bytes, _Way] = {}
        self._routes: dict[tuple[Type, str, str], bytes] = {}
        self._event_routes: dict[tuple[str, str], bytes] = {}
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._meta_head = b""
        self._meta_tail = b""
        self._consumed = [0, 0]
        self._told = [0, 0]
        self._handlers = self._dispatch()

    def _dispatch(self) -> dict[Type, Handle]:
        """Return what is done with each type; the types that are missing here are none of a client's."""
        calls = self.exchanges
        return {
            Type.WELCOME: self._welcomed,
            Type.BYE: self._dismissed,
            Type.PING: self._pinged,
            Type.PONG: self._ponged,
            Type.CREDIT: self._credited,
            Type.NOTICE: self._noticed,
            Type.ERROR: self._complained,
            Type.ACCEPT: calls.accepted,
            Type.REPLY: calls.replied,
            Type.DONE: calls.done,
            Type.REQUEST: calls.requested,
            Type.INPUT: calls.got_input,
            Type.CANCEL: calls.cancelled,
            Type.GRANT: calls.granted,
        }

    # The connection.

    def up(self) -> None:
        """The transport is connected: say HELLO (protocol 4.1)."""
        self.down()
        self.bye = None
        hello = WorkerHello(
            versions=(PROTOCOL, PROTOCOL), name=self._name, incarnation=self._incarnation, window=self._window
        )
        self._local(Type.HELLO, hello)

    def down(self) -> None:
        """The connection is gone: calls end, nothing that waits is sent later, subscriptions are kept.

        Whoever waits is woken: it may be for good.
        """
        was_welcome, self.welcome = self.welcome, None
        self.full = True
        self.outbox.clear()
        self._batch, self._batch_bytes = [], 0
        self._ways, self._routes, self._event_routes = {}, {}, {}
        self._consumed, self._told = [0, 0], [0, 0]
        pings, self._pings = self._pings, {}
        for ping in pings.values():
            ping.lost = True
            ping.wake()
        self.exchanges.lost()
        for inbox in self._inboxes(self._all_sinks()):
            inbox.wake()
        for wish in self._wishes.values():
            wish.wake()
        if was_welcome is not None:
            self._changed()

    def received(self, frame: bytes, now: float) -> None:
        """Take a frame; `now` is monotonic seconds. Raises ProtocolError for one that the protocol does not allow."""
        items = decode_frame(frame)
        lane = LANE_OF[self._way(items[0]).route.type]
        if self.welcome is None and lane is not Lane.CONTROL:
            return
        if lane is Lane.EVENT:
            self._events(items, len(frame))
            return
        self.exchanges.clock(now)
        parts = iter(items)
        for route, meta, body in zip(parts, parts, parts, strict=True):
            way = self._way(route)
            if way.handle is not None:
                way.handle(way.route, meta, body)
        if lane is Lane.STREAM:
            self._consume(0, len(frame))

    def pump(self, send: Callable[[bytes], bool]) -> None:
        """Hand the frames that may leave now to `send`, until it returns False: it could not take that one."""
        if self._batch:
            self.outbox.event.add(self._batch, self._batch_bytes)
            self._batch, self._batch_bytes = [], 0
        while (queue := self.outbox.next()) is not None and send(queue.peek()):
            queue.sent()
        self.full = self.welcome is None or self.outbox.event.waiting >= EVENT_ROOM

    @property
    def stream_room(self) -> bool:
        """Whether a request, reply or input may be added."""
        return self.outbox.stream.waiting < STREAM_ROOM

    @property
    def idle(self) -> bool:
        """Whether everything was handed to the transport."""
        return not self._batch and not any(queue.batches for queue in self.outbox.lanes)

    def post(self, kind: Type, target: str, topic: str, meta: msgspec.Struct, body: bytes) -> None:
        """Queue a routed envelope; nothing while there is no session."""
        if self.welcome is None:
            return
        name = (kind, target, topic)
        route = self._routes.get(name)
        if route is None:
            route = _remember(self._routes, name, self._route(kind, target, topic))
        items = [route, encode(meta), body]
        self.outbox.lanes[LANE_OF[kind]].add(items, len(route) + len(items[1]) + len(body) + _ENVELOPE)

    def ping(self, wake: Callable[[], None]) -> Ping:
        """Ask whether the router has read everything so far."""
        ping = Ping(wake)
        if self.welcome is None:
            ping.lost = True
            return ping
        number = self._number()
        self._pings[number] = ping
        self._local(Type.PING, meta=PingMeta(number, 0))
        return ping

    # Events.

    def publish(self, topic: str, body: bytes, content: int, to: str) -> bool:
        """Queue an event; True: the batch is large enough to leave. Only while not `full`. Raises TopicError."""
        route = self._event_routes.get((topic, to))
        if route is None:
            check_topic(topic)
            route = _remember(self._event_routes, (topic, to), self._route(Type.EVENT, to, topic))
        if not self._batch_bytes:
            # One time for a batch: it is for people, and a batch leaves within a turn of the loop.
            self._meta_tail = b"\xcf" + self._wall_ms().to_bytes(8)
        seq = self.published
        self.published = seq + 1
        meta = _pack_meta(self._meta_head, seq, self._meta_tail, content)
        self._batch += (route, meta, body)
        self._batch_bytes = size = self._batch_bytes + len(route) + len(body) + _EVENT_OVERHEAD
        return size >= BATCH_BYTES

    def subscribe(self, sink: Sink) -> None:
        """Let events go to `sink`. Raises TopicError or ValueError."""
        check_pattern(sink.pattern)
        check_scope(sink.scope)
        sink.number = self._number()
        self._sinks.add(sink.pattern, sink)
        self._ways.clear()
        name = (sink.pattern, sink.scope)
        self._subscribed[name] += 1
        if self._subscribed[name] == 1 and self.welcome is not None:
            self._local(Type.SUBSCRIBE, Subscribe(*name))

    @property
    def is_subscribed(self) -> bool:
        """Whether there is any subscription."""
        return bool(self._subscribed)

    def unsubscribe(self, sink: Sink) -> None:
        """End what `subscribe` began."""
        self._sinks.discard(sink.pattern, sink)
        self._ways.clear()
        if sink.inbox is not None:
            sink.inbox.drain()
        name = (sink.pattern, sink.scope)
        self._subscribed[name] -= 1
        if not self._subscribed[name]:
            del self._subscribed[name]
            if self.welcome is not None:
                self._local(Type.UNSUBSCRIBE, Subscribe(*name))

    def watch(self, pattern: str, wake: Callable[[], None]) -> Wish:
        """Ask whether others want topics that `pattern` selects. Raises TopicError."""
        check_pattern(pattern)
        wish = Wish(self._number(), pattern, wake)
        self._wishes[wish.id] = wish
        if self.welcome is not None:
            self._local(Type.WATCH, Watch(wish.id, pattern))
        return wish

    def unwatch(self, wish: Wish) -> None:
        """End what `watch` began."""
        if self._wishes.pop(wish.id, None) is not None and self.welcome is not None:
            self._local(Type.WATCH, {"id": wish.id})

    def serve(self, service: str, commands: Mapping[str, int], start: Start) -> None:
        """Offer `commands`, each with the role it requires; `start` is called with every request for one."""
        self.exchanges.serve(service, commands, start)
        self._services[service] = Serve(service, dict(commands))
        if self.welcome is not None:
            self._local(Type.SERVE, self._services[service])

    def _events(self, items: list[bytes], size: int) -> None:
        """Deliver a frame of the event lane. The loop is the hot path of every subscriber."""
        inboxes: set[Inbox] = set()
        last, way, puts = b"", _NO_WAY, _NO_WAY.puts
        head = way.route
        parts = iter(items)
        for route, meta, body in zip(parts, parts, parts, strict=True):
            if route != last:
                last, way = route, self._way(route)
                head, puts = way.route, way.puts
                inboxes.update(way.inboxes)
            event = Event(head, meta, body)
            for put in puts:
                try:
                    put(event)
                except Exception as error:
                    self._report("handler", error)
        if inboxes:
            share = Share(size, len(inboxes), lambda bytes_: self._consume(1, bytes_))
            for inbox in inboxes:
                inbox.seal(share)
        else:
            self._consume(1, size)

    def _way(self, data: bytes) -> _Way:
        """Return what to do with envelopes of the route bytes `data`."""
        way = self._ways.get(data)
        if way is None:
            route = decode_route(data)
            way = _remember(
                self._ways, data, self._event_way(route) or _Way(route, self._handlers.get(Type(route.type)))
            )
        return way

    def _event_way(self, route: Route) -> _Way | None:
        if route.type == Type.GAP:
            return _Way(route, puts=(self._gap,), inboxes=self._inboxes(self._all_sinks()))
        if route.type != Type.EVENT:
            return None
        heard = [sink for sink in self._sinks.match(route.topic) if self._hears(sink, route.origin)]
        heard.sort(key=lambda sink: sink.number)
        return _Way(route, None, tuple(sink.put for sink in heard), self._inboxes(heard))

    @staticmethod
    def _inboxes(sinks: list[Sink]) -> tuple[Inbox, ...]:
        return tuple(sink.inbox for sink in sinks if sink.inbox is not None)

    def _all_sinks(self) -> list[Sink]:
        return [sink for pattern in self._sinks.patterns() for sink in self._sinks.values(pattern)]

    def _hears(self, sink: Sink, origin: str) -> bool:
        """Whether the scope of `sink` includes `origin`: the router sends what any subscription of ours wants."""
        return sink.scope != "node" or (self.welcome is not None and origin == self.welcome.node)

    def _gap(self, event: Event) -> None:
        """Tell everybody: nobody knows which topics the lost events had."""
        gap = decode_body(Gap, event.body)
        for sink in self._all_sinks():
            sink.gap(gap)

    def _consume(self, lane: int, size: int) -> None:
        """Count bytes as acknowledged; tell the router once for every quarter of the window."""
        self._consumed[lane] += size
        if self._consumed[lane] - self._told[lane] >= self._window // 4 and self.welcome is not None:
            self._told = self._consumed[:]
            self._local(Type.CREDIT, meta=CreditMeta(*self._told))

    # What the router says.

    def _welcomed(self, _: Route, __: bytes, body: bytes) -> None:
        welcome = self.welcome = decode_body(WorkerWelcome, body)
        self.max_body = welcome.max_body
        self.outbox.set_window(welcome.window)
        self.full = False
        self._ways.clear()
        self._meta_head = b"\x94\xcf" + self._incarnation.to_bytes(8) + b"\xcf"
        for pattern, scope in self._subscribed:
            self._local(Type.SUBSCRIBE, Subscribe(pattern, scope))
        for service in self._services.values():
            self._local(Type.SERVE, service)
        for wish in self._wishes.values():
            self._local(Type.WATCH, Watch(wish.id, wish.pattern))
        self._changed()

    def _dismissed(self, _: Route, __: bytes, body: bytes) -> None:
        self.down()
        self.bye = decode_body(Bye, body)
        self._changed()

    def _pinged(self, _: Route, meta: bytes, __: bytes) -> None:
        self._local(Type.PONG, meta=decode_meta(PingMeta, meta))

    def _ponged(self, _: Route, meta: bytes, __: bytes) -> None:
        ping = self._pings.pop(decode_meta(PingMeta, meta).id, None)
        if ping is not None:
            ping.done = True
            ping.wake()

    def _credited(self, _: Route, meta: bytes, __: bytes) -> None:
        credit = decode_meta(CreditMeta, meta)
        self.outbox.credit(credit.stream_total, credit.event_total)

    def _noticed(self, _: Route, __: bytes, body: bytes) -> None:
        notice = decode_body(Notice, body)
        wish = self._wishes.get(notice.id)
        if wish is not None:
            wish.wanted = notice.interest
            wish.wake()

    def _complained(self, _: Route, meta: bytes, body: bytes) -> None:
        """ERROR: of a call, or else of what was said before the oldest ping, for the router answers in order."""
        error = decode_body(Error, body)
        call = decode_meta(CallMeta, meta).call
        if call:
            self.exchanges.failed(call, error)
        elif self._pings:
            next(iter(self._pings.values())).error = error
        else:
            self._report("router", ProtocolError(error.code, error.text))

    def _route(self, kind: Type, target: str, topic: str) -> bytes:
        me = self.welcome
        if me is None:
            raise RuntimeError("a route needs the identity that WELCOME gives")
        return encode(Route(kind, me.node, me.who, me.role, me.handle, target, topic))

    def _local(self, kind: Type, body: object = None, *, meta: object = ()) -> None:
        items = local(kind, body, meta)
        self.outbox.control.add(items, sum(map(len, items)) + _ENVELOPE)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


_pack_meta: Final = Struct(">11sQ9sB").pack
"""Makes an EventMeta of fixed width: [incarnation, seq, time_ms, content], the first three as 64 bit numbers."""
_EVENT_OVERHEAD: Final = 2 + 3 * 9 + _ENVELOPE
_NO_WAY: Final = _Way(Route(0))


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> Any:
    """Put `value` into a bounded memory; routes repeat, so starting anew costs little."""
    if len(memory) >= MAX_ROUTES:
        memory.clear()
    memory[key] = value
    return value
