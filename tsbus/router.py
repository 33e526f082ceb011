"""The router: takes frames from its peers, decides once for each route, passes copies on (protocol sections 2 to 10).

This module is the hot path. clients.py has the local peers, links.py joins routers to a tree, news.py keeps the
directory, commands.py passes calls on, services.py has what this node answers, pacing.py holds back who is too fast.
They see the world only through `Transport` and `Clock` (peer.py), so the same router runs over sockets and over memory.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping

from tsbus.clients import Clients
from tsbus.commands import Commands
from tsbus.config import Tree
from tsbus.core import message as wire
from tsbus.core.directory import HERE, Directory
from tsbus.core.interest import InterestTable
from tsbus.core.lanes import Outbox
from tsbus.core.message import Lane, ProtocolError, Route, Type
from tsbus.core.roles import Role
from tsbus.core.routing import Drop, Paths, Routing
from tsbus.links import Links
from tsbus.log import Log
from tsbus.news import News
from tsbus.pacing import Pacing
from tsbus.peer import CLIENTS, LINKS, Clock, Conn, ConnKind, Decision, Handler, Peer, PeerKind, Transport
from tsbus.services import Services

TICK_MS = 50
"""How often `tick` wants to be called while calls or crowded queues have to be watched."""
_IDLE_TICK_MS = 250
"""The same for a router that has neither; each time costs it a wake-up."""
_CACHE_BYTES = 1024 * 1024
_DECISION_BYTES = 256
MALFORMED_LIMIT = 100
"""A connection that has sent so many messages that the protocol does not know is ended."""

_log = Log("router")

_NEW = PeerKind.NEW


def _access() -> dict[tuple[PeerKind, Type], Role]:
    """Build the table of who may send what: what is not in it is refused, whoever asks."""
    any_link = (
        Type.BYE, Type.PING, Type.PONG, Type.CREDIT, Type.DIRECTORY, Type.INTEREST, Type.GAP,
        Type.EVENT, Type.REQUEST, Type.REPLY, Type.INPUT, Type.CANCEL, Type.GRANT,
    )  # fmt: skip
    observers = (
        Type.HELLO, Type.BYE, Type.PING, Type.PONG, Type.CREDIT, Type.SUBSCRIBE, Type.UNSUBSCRIBE, Type.WATCH,
        Type.REQUEST, Type.INPUT, Type.CANCEL, Type.GRANT,
    )  # fmt: skip
    table = {(kind, type_): Role.NONE for kind in LINKS for type_ in any_link}
    table |= {(_NEW, type_): Role.NONE for type_ in (Type.HELLO, Type.WELCOME, Type.BYE, Type.PING, Type.PONG)}
    table |= {(PeerKind.PARENT, Type.HELLO): Role.NONE}
    table |= {(kind, type_): Role.OBSERVE for kind in CLIENTS for type_ in observers}
    table |= {(kind, type_): Role.OPERATE for kind in CLIENTS for type_ in (Type.EVENT, Type.REPLY)}
    return table | {(PeerKind.WORKER, Type.SERVE): Role.OPERATE}


ACCESS = _access()
"""(kind of peer, type) -> the role it takes to send it. Anything else is answered and counted as refused."""


class Router:
    """One node's router. Not thread-safe: one loop calls it, then `flush`, then waits (loop.py)."""

    def __init__(
        self,
        tree: Tree,
        transport: Transport,
        clock: Clock,
        *,
        role_of: Callable[[Conn], Role],
        release: str = "",
        incarnation: int | None = None,
    ) -> None:
        """`tree.current_node` is this node; `role_of` maps a local process or operator to its role (identity.py)."""
        self.tree = tree
        self.me = tree.current_node
        self.settings = tree.bus
        self.transport = transport
        self.clock = clock
        self.role_of = role_of
        self.release = release
        self.incarnation = incarnation if incarnation is not None else random.getrandbits(63)
        self.topology = tree.topology()
        self.started_ms = clock.wall_ms()
        self.now = clock.monotonic_ms()
        self.directory = Directory(self.topology, self.me, self.incarnation, self.started_ms)
        self.interest = InterestTable()
        self.routing = Routing(self.topology, self.directory, self.interest)
        self.counters: Counter[str] = Counter()
        self.workers: dict[int, Peer] = {}
        """Local peers and consoles by handle."""
        self.peers: set[Peer] = set()
        self.dirty: set[Peer] = set()
        self.news = News(self)
        self.links = Links(self)
        self.commands = Commands(self)
        self.services = Services(self)
        self.clients = Clients(self)
        self._pacing = Pacing(self)
        self._seq = 0
        self._last_tick = self.now
        self._handlers: dict[Type, Handler] = {
            Type.HELLO: self._on_hello,
            Type.PING: self._on_ping,
            Type.PONG: self._on_pong,
            Type.CREDIT: self._on_credit,
            Type.BYE: self._on_bye,
            Type.GAP: self._on_gap,
            Type.SUBSCRIBE: self.clients.on_subscribe,
            Type.UNSUBSCRIBE: self.clients.on_unsubscribe,
            Type.WATCH: self.clients.on_watch,
            Type.SERVE: self.services.on_serve,
            Type.WELCOME: self.links.on_welcome,
            Type.DIRECTORY: self.news.on_directory,
            Type.INTEREST: self.links.on_interest,
        }

    # What the transport calls -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to dial; call once, before the loop."""
        self.links.start()

    def connected(self, conn: Conn) -> None:
        """A node below answered the dial and its key is right."""
        self.links.dialled(conn)

    def received(self, conn: Conn, frame: bytes) -> None:
        """One frame came. The fast path: all its envelopes have one route, which was seen before."""
        peer = conn.peer
        if peer is None:
            peer = conn.peer = self._new_peer(conn)
        try:
            items = wire.decode_frame(frame)
        except ProtocolError as error:
            self._malformed(peer, error)
            return
        peer.frames_in += 1
        peer.envelopes_in += len(items) // 3
        live = peer.live
        if live is not None and (live.unanswered or live.torpid_since is not None) and live.heard():
            self.links.recovered(peer)
        if len(frame) > wire.MAX_BODY and any(len(body) > wire.MAX_BODY for body in items[2::3]):
            self.counters["oversize"] += 1
            return
        route = items[0]
        decision = peer.cache.get(route) or self._decide(peer, route)
        if decision.lane is Lane.EVENT:
            peer.event_in += len(frame)
        elif decision.lane is Lane.STREAM:
            peer.stream_in += len(frame)
        if items[0::3].count(route) * 3 == len(items):
            self._run(peer, decision, route, items, frame)
        else:
            self._runs(peer, items, decision.lane)
        unacked = max(peer.event_in - peer.event_acked, peer.stream_in - peer.stream_acked)
        if unacked >= peer.window // 4:
            self._pacing.unacked.add(peer)
            if unacked > 2 * peer.window + wire.MAX_FRAME:
                self.cut(peer, "window", "sent more than twice the window without credit")

    def disconnected(self, conn: Conn, cause: str = "closed") -> None:
        """A connection ended; `cause` is a word of protocol 8.1."""
        if conn.peer is not None:
            self.forget(conn.peer, cause)
            conn.peer = None

    def key_refused(self) -> None:
        """A stranger's key was turned away from the service port."""
        self.counters["refused-key"] += 1

    # The hot path -----------------------------------------------------------------------------------------------------

    def _runs(self, peer: Peer, items: list[bytes], lane: Lane) -> None:
        """Handle a frame of several routes, all of one lane: one decision for each run of equal routes."""
        start, count = 0, len(items)
        while start < count and not peer.gone:
            route = items[start]
            end = start + 3
            while end < count and items[end] == route:
                end += 3
            decision = peer.cache.get(route) or self._decide(peer, route)
            if decision.lane is lane:
                self._run(peer, decision, route, items[start:end], None)
            else:
                self._malformed(peer, ProtocolError("malformed", "two lanes in one frame (protocol 2.2)"))
            start = end

    def _run(self, peer: Peer, decision: Decision, route: bytes, items: list[bytes], frame: bytes | None) -> None:
        """Handle envelopes of one route; `frame` when they are a whole frame, which then need not be encoded again."""
        handle = decision.handle
        if handle is not None:
            for index in range(0, len(items), 3):
                if peer.gone:
                    return
                try:
                    handle(peer, decision, route, items[index + 1], items[index + 2])
                except ProtocolError as error:
                    self._malformed(peer, error)
            return
        if not decision.outs:
            self.counters[decision.reason] += len(items) // 3
            return
        lane = decision.lane
        size = sum(map(len, items)) if frame is None else 0
        for out in decision.outs:
            queue = out.outbox.lanes[lane]
            if lane is Lane.STREAM and queue.filling:
                self._spill(peer, decision.route, out, items)
                continue
            if frame is not None:
                queue.add_frame(frame, items)
            else:
                queue.add(items, size)
            self.dirty.add(out)
            if queue.waiting > queue.limit // 2:
                self._pacing.crowded(peer, out, queue, lane)

    def _spill(self, peer: Peer, route: Route, out: Peer, items: list[bytes]) -> None:
        """Hand over, one by one, what is for a link that has little room left."""
        for index in range(0, len(items), 3):
            try:
                self.commands.pass_on(out, route, items[index : index + 3])
            except ProtocolError as error:
                self._malformed(peer, error)

    def _decide(self, peer: Peer, data: bytes) -> Decision:
        """Work out what happens to a route from this peer, and remember it."""
        try:
            route = wire.decode_route(data)
        except ProtocolError as error:
            return Decision(Lane.CONTROL, Route(0), handle=self._bad_route, extra=error)
        decision = self._judge(peer, route)
        size = _DECISION_BYTES + 2 * len(data) + decision.weight
        peer.cached_bytes = peer.cached_bytes + size if peer.cache else size
        if peer.cached_bytes > _CACHE_BYTES:
            peer.cache.clear()
            peer.cached_bytes = size
        peer.cache[data] = decision
        return decision

    def _bad_route(self, _: Peer, decision: Decision, __: bytes, ___: bytes, ____: bytes) -> None:
        """Say of each envelope with a route that cannot be read what is wrong with it."""
        assert isinstance(decision.extra, ProtocolError)  # noqa: S101 - _decide put it there
        raise decision.extra

    def _judge(self, peer: Peer, route: Route) -> Decision:
        kind = Type(route.type)
        lane = wire.LANE_OF[kind]
        required = ACCESS.get((peer.kind, kind))
        if required is None or peer.role < required:
            if peer.kind is _NEW and not peer.gone:
                self.cut(peer, "hello-first", "say HELLO first (protocol 4.1)")
                return Decision(lane, route, reason="not-welcome")
            self.error(peer, "refused", f"{peer.who or peer.name} may not send {kind.name}")
            return Decision(lane, route, reason="refused")
        if kind < Type.EVENT:
            return Decision(lane, route, handle=self._handlers[kind])
        if peer.kind in CLIENTS:
            mine = (self.me, peer.who, peer.role, peer.handle)
            if (route.origin, route.who, route.role, route.handle) != mine:
                return Decision(lane, route, reason="forged")
        elif not self.routing.origin_is_right(route, peer.way):
            return Decision(lane, route, reason="misrouted")
        if kind is not Type.EVENT:
            return self.commands.judge(peer, route, lane)
        return self._judge_event(peer, route)

    def _judge_event(self, peer: Peer, route: Route) -> Decision:
        paths = self.routing.event(route, peer.way)
        if isinstance(paths, Drop):
            if paths.reason == "target" and peer.kind in CLIENTS:
                self.error(peer, "target", paths.text)
            return Decision(Lane.EVENT, route, reason=paths.reason)
        return Decision(Lane.EVENT, route, self._peers_on(paths), reason="no-interest")

    def _peers_on(self, paths: Paths) -> tuple[Peer, ...]:
        """The links and workers that get a copy."""
        workers = (self.workers[handle] for handle in paths.workers if handle in self.workers)
        return (*self.links.on(paths), *workers)

    # Sending ----------------------------------------------------------------------------------------------------------

    def put(self, peer: Peer, lane: Lane, items: list[bytes], source: Peer | None = None) -> None:
        """Queue whole envelopes for a peer. A client that is the `source` waits while a link's stream is crowded."""
        if peer.gone:
            return
        queue = peer.outbox.lanes[lane]
        queue.add(items, sum(map(len, items)))
        self.dirty.add(peer)
        if queue.waiting > queue.limit:
            if lane is Lane.EVENT:
                self.counters["dropped-slow"] += queue.drop_oldest(f"{self.me}>{peer.name}")
            else:
                self.cut(peer, "overflow", f"does not read; {queue.waiting} bytes wait for it")
        elif source is not None and lane is Lane.STREAM and queue.waiting > queue.limit // 2:
            self._pacing.hold_stream(source, peer)

    def tell(self, peer: Peer, kind: Type, body: object = None, meta: object = ()) -> None:
        """Queue a hop-local or local envelope for a peer."""
        self.put(peer, wire.LANE_OF[kind], wire.local(kind, body, meta))

    def error(self, peer: Peer, code: str, text: str, call: int | None = None) -> None:
        """Tell a client what it did wrong; links have counters only."""
        if peer.kind in CLIENTS:
            self.tell(peer, Type.ERROR, wire.Error(code, text), () if call is None else wire.CallMeta(call))

    def publish(self, topic: str, body: dict[str, object]) -> None:
        """Publish an event of the bus itself (protocol 11)."""
        route = Route(Type.EVENT, self.me, "router", Role.ADMIN, 0, "*", topic)
        paths = self.routing.event(route, HERE)
        if isinstance(paths, Drop):
            return
        meta = wire.EventMeta(self.incarnation, self._seq, self.clock.wall_ms(), wire.Content.JSON)
        self._seq += 1
        items = [wire.encode(route), wire.encode(meta), json.dumps(body).encode()]
        for peer in self._peers_on(paths):
            self.put(peer, Lane.EVENT, items)

    def flush(self) -> None:
        """Send all that can be sent; call after each round of `received`, before waiting."""
        self.links.settle()
        self.clients.settle()
        self._pacing.settle()
        dirty, self.dirty = self.dirty, set()
        for peer in dirty:
            if not peer.gone:
                self._pump(peer)

    @property
    def stuck(self) -> bool:
        """Whether a connection took no more although its window is open: call `flush` again very soon."""
        return bool(self.dirty)

    def _pump(self, peer: Peer) -> None:
        outbox, conn, send = peer.outbox, peer.conn, self.transport.send
        while (queue := outbox.next()) is not None:
            if not send(conn, queue.peek()):
                self.dirty.add(peer)
                return
            queue.sent()
            peer.frames_out += 1

    # Time -------------------------------------------------------------------------------------------------------------

    @property
    def tick_due(self) -> float:
        """When `tick` wants to be called next, in the clock's milliseconds; what happens may bring it forward."""
        is_watching = self._pacing.is_watching or len(self.commands.outgoing)
        return self._last_tick + (TICK_MS if is_watching else self._idle_tick_ms)

    @property
    def _idle_tick_ms(self) -> int:
        return max(TICK_MS, min(_IDLE_TICK_MS, self.settings.ping_ms // 2))

    def tick(self) -> None:
        """Do what time demands."""
        late = max(0, int(self.now - self._last_tick) - self._idle_tick_ms)
        self._last_tick = self.now
        self.links.tick(late)
        self.commands.tick()
        self._pacing.tick()

    # Peers ------------------------------------------------------------------------------------------------------------

    def _new_peer(self, conn: Conn) -> Peer:
        return self.add_peer(conn, _NEW, conn.name)

    def add_peer(self, conn: Conn, kind: PeerKind, name: str) -> Peer:
        """Begin to know the other end of a connection."""
        bus = self.settings
        outbox = Outbox(
            control_limit=bus.control_queue_bytes, stream_limit=bus.stream_queue_bytes, event_limit=bus.queue_bytes
        )
        peer = conn.peer = Peer(conn, kind, name, outbox, since_ms=self.clock.wall_ms(), window=bus.window_bytes)
        self.peers.add(peer)
        return peer

    def forget(self, peer: Peer, cause: str) -> None:
        """A peer is gone: end what depends on it."""
        if peer.gone:
            return
        peer.gone = True
        self.peers.discard(peer)
        self.dirty.discard(peer)
        self._pacing.forget(peer)
        if peer.kind in CLIENTS:
            self.clients.forget(peer)
        elif peer.kind is not _NEW or peer.conn.kind is ConnKind.DIAL:
            self.links.lost(peer, cause)

    def cut(self, peer: Peer, reason: str, text: str) -> None:
        """End a connection from this side, with a word to the other (protocol 3, BYE)."""
        if peer.gone:
            return
        self.counters[reason] += 1
        _log.warning("peer.cut", peer=peer.name, who=peer.who, reason=reason, text=text)
        self.transport.send(peer.conn, wire.encode_frame(wire.local(Type.BYE, wire.Bye(reason, text))))
        self.forget(peer, reason)
        peer.conn.peer = None
        self.transport.close(peer.conn)

    def _malformed(self, peer: Peer, error: ProtocolError) -> None:
        self.counters[error.reason] += 1
        peer.conn.malformed += 1
        if peer.conn.malformed == 1:
            _log.warning("peer.malformed", peer=peer.name or peer.conn.name, text=str(error))
        if peer.conn.malformed >= MALFORMED_LIMIT:
            self.cut(peer, "malformed", f"{peer.conn.malformed} malformed messages; the last: {error}")

    def reload(self, tree: Tree, names: Mapping[str, str]) -> None:
        """Follow a new configuration without touching any link that it keeps.

        `names`: public key -> "node:NAME" or "operator:NAME". Whoever has proved a key that is not his any more is cut,
        and so is a client with another role. New bounds hold for connections from now on.
        """
        self.tree, self.settings, self.topology = tree, tree.bus, tree.topology()
        self.directory.replace_topology(self.topology)
        self.routing.topology = self.topology
        self.links.reload()
        for peer in list(self.peers):
            conn = peer.conn
            name = f"node:{conn.name}" if conn.kind is ConnKind.DIAL else conn.name
            if conn.kind is not ConnKind.LOCAL and names.get(conn.key) != name:
                self.cut(peer, "revoked", f"the configuration no longer has this key of {name}")
            elif peer.kind in CLIENTS and peer.role != self.role_of(conn):
                self.cut(peer, "revoked", f"{peer.who} has another role in the new configuration")
        self.invalidate()

    def invalidate(self) -> None:
        """The tree, the directory or the interest changed: decide anew."""
        for peer in self.peers:
            peer.cache.clear()

    # Types of one connection ------------------------------------------------------------------------------------------

    def _on_hello(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        conn = peer.conn
        if conn.kind is ConnKind.DIAL:
            self.counters["not-welcome"] += 1
        elif conn.kind is ConnKind.TCP and conn.name.startswith("node:"):
            self.links.on_hello(peer, body)
        else:
            self.clients.on_hello(peer, body)

    def _on_ping(self, peer: Peer, _: Decision, __: bytes, meta: bytes, ___: bytes) -> None:
        ping = wire.decode_meta(wire.PingMeta, meta)
        if peer.live is not None:
            peer.live.clock(ping.clock_ms, int(self.now))
        self._pacing.acknowledge(peer)
        self.tell(peer, Type.PONG, meta=wire.PingMeta(ping.id, int(self.now)))

    def _on_pong(self, peer: Peer, _: Decision, __: bytes, meta: bytes, ___: bytes) -> None:
        pong = wire.decode_meta(wire.PingMeta, meta)
        if peer.live is not None:
            peer.live.clock(pong.clock_ms, int(self.now))
            peer.live.answered(pong.id, peer.ping_sent, self.clock.monotonic_ms())

    def _on_credit(self, peer: Peer, _: Decision, __: bytes, meta: bytes, ___: bytes) -> None:
        credit = wire.decode_meta(wire.CreditMeta, meta)
        peer.outbox.credit(credit.stream_total, credit.event_total)
        self.dirty.add(peer)

    def _on_bye(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        bye = wire.decode_body(wire.Bye, body)
        if peer.conn.kind is ConnKind.DIAL:
            self.links.refused(peer, bye)
        self.forget(peer, "moved" if bye.reason == "moved" else "bye")
        peer.conn.peer = None
        self.transport.close(peer.conn)

    def _on_gap(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """Events were dropped before this hop: everybody further on who may have missed one is told."""
        gap = wire.decode_body(wire.Gap, body)
        self.counters["gaps"] += 1
        for other in self.peers:
            wants = other.subscriptions if other.kind in CLIENTS else self.interest.count(other.way)
            if other is not peer and wants:
                other.outbox.event.note_gap(gap.at, gap.count)
                self.dirty.add(other)
