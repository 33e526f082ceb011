"""Routers joined in memory, for tests whose enemy is the order in which things happen.

`tsbus.testing` runs a tree in the natural order, for users. Here every frame under way waits until the net lets it
arrive: in order, or as a seeded random number generator likes. Connections overtake each other, the end of one may be
noticed long after the next has begun, a cut loses any part of what is under way, clocks disagree. A `Probe` is a client
or a worker that speaks bare envelopes, so that what is checked is the protocol and not our own client.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from typing import Any

from tsbus.config import BusSettings, Server, Tree
from tsbus.core import message as wire
from tsbus.core.accounting import Outcome
from tsbus.core.directory import UPWARD
from tsbus.core.message import Flag, Lane, Route, Type
from tsbus.core.roles import Role
from tsbus.core.target import unfold
from tsbus.core.tree import Topology
from tsbus.peer import Conn, ConnKind
from tsbus.router import TICK_MS, Router

PIPE_FRAMES = 16
"""A connection takes so many frames before `send` says False."""
REDIAL_MS = 200
REDIAL_REFUSED_MS = 1000
START_WALL_MS = 1_700_000_000_000
DAY_MS = 86_400_000


class Sign(Enum):
    """What else arrives at an end besides frames."""

    UP = auto()
    DOWN = auto()


@dataclass(eq=False)
class End:
    """One end of a connection, and what is under way to it. `other` is None once nobody is there."""

    owner: "Station | Probe"
    conn: Conn
    inbox: "deque[bytes | Sign]" = field(default_factory=deque)
    other: "End | None" = None
    unheard: bool = False
    """The other end stopped listening without closing, which is all that a ROUTER socket can do."""

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset({self.owner.node} | ({self.other.owner.node} if self.other else set()))

    def send(self, frame: bytes) -> bool:
        if self.unheard:
            return True
        if self.other is None or len(self.other.inbox) >= PIPE_FRAMES:
            return False
        self.other.inbox.append(frame)
        return True

    def down(self, rng: Random) -> None:
        """The connection broke: any last part of what is under way is lost, then its end is noticed."""
        self.other = None
        keep = rng.randint(0, len(self.inbox))
        while len(self.inbox) > keep and isinstance(self.inbox[-1], bytes):
            self.inbox.pop()
        self.inbox.append(Sign.DOWN)


class NodeClock:
    """The clocks of one process: they run alike and agree on nothing else."""

    def __init__(self, net: "Net", uptime_ms: int, wall_ms: int) -> None:
        self._net, self._uptime, self._wall = net, uptime_ms, wall_ms

    def monotonic_ms(self) -> float:
        return float(self._uptime + self._net.now)

    def wall_ms(self) -> int:
        return self._wall + self._net.now


class Station:
    """One router process: the router and its transport."""

    def __init__(self, net: "Net", node: str, incarnation: int) -> None:
        self.net, self.node = net, node
        rng = net.rng
        self.clock = NodeClock(net, rng.randrange(DAY_MS), START_WALL_MS + rng.randrange(-DAY_MS, DAY_MS))
        self.ends: dict[Conn, End] = {}
        self.dials: dict[str, End | None] = {}
        self.again: dict[str, int] = {}
        self.frozen = False
        """Stopped like a process by SIGSTOP: it neither reads nor ticks."""
        self.router = Router(
            net.config.with_current(node),
            self,
            self.clock,
            role_of=lambda conn: Role(conn.gid),
            incarnation=incarnation,
        )

    # The process.

    def ready(self) -> list[End]:
        """The connections on which something can arrive now."""
        if self.frozen:
            return []
        return [end for end in self.ends.values() if end.inbox and end.nodes not in self.net.held]

    def turn(self) -> None:
        """One turn of the loop: some arrivals, then `flush`."""
        self.router.now = self.clock.monotonic_ms()
        for _ in range(self.net.rng.randint(1, 4)):
            ends = self.ready()
            if ends:
                self._take(self.net.pick(ends))
        self.router.flush()

    def _take(self, end: End) -> None:
        item = end.inbox.popleft()
        if item is Sign.UP:
            self.router.connected(end.conn)
        elif item is Sign.DOWN:
            del self.ends[end.conn]
            if self.dials.get(end.conn.name) is end:
                self._hang_up(end.conn.name, REDIAL_MS)
            self.router.disconnected(end.conn)
        else:
            assert isinstance(item, bytes)
            self.router.received(end.conn, item)

    def tick(self) -> None:
        if not self.frozen:
            self._redial()
            self.router.now = self.clock.monotonic_ms()
            self.router.tick()
            self.router.flush()

    # peer.Transport.

    def send(self, conn: Conn, frame: bytes) -> bool:
        end = self.ends.get(conn)
        return end is not None and end.send(frame)

    def set_dials(self, nodes: frozenset[str]) -> None:
        for node in sorted(self.dials.keys() - nodes):
            end = self.dials.pop(node)
            if end is not None:
                self._close(end)
        for node in sorted(nodes - self.dials.keys()):
            self.dials[node] = None
        self._redial()

    def close(self, conn: Conn) -> None:
        end = self.ends.get(conn)
        if end is None:
            return
        self._close(end)
        if self.dials.get(conn.name) is end:
            self._hang_up(conn.name, REDIAL_REFUSED_MS)

    def _close(self, end: End) -> None:
        del self.ends[end.conn]
        if end.other is not None:
            if end.conn.kind is ConnKind.DIAL:
                end.other.down(self.net.rng)
            else:
                end.other.unheard = True

    def _hang_up(self, name: str, wait_ms: int) -> None:
        self.dials[name] = None
        self.again[name] = self.net.now + wait_ms

    def _redial(self) -> None:
        for name, end in self.dials.items():
            if end is None and self.again.get(name, 0) <= self.net.now:
                far = self.net.reach(self.node, name)
                if far is None:
                    self.again[name] = self.net.now + REDIAL_MS
                    continue
                here = self.add(Conn(ConnKind.DIAL, name))
                here.other = far.add(Conn(ConnKind.TCP, f"node:{self.node}"))
                here.other.other = here
                here.inbox.append(Sign.UP)
                self.dials[name] = here

    def add(self, conn: Conn) -> End:
        end = self.ends[conn] = End(self, conn)
        return end


@dataclass
class CallView:
    """A call as its caller sees it."""

    target: str
    command: str
    nodes: frozenset[str] | None = None
    ended: dict[str, Outcome] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    done: dict[Outcome, frozenset[str]] | None = None
    error: wire.Error | None = None

    @property
    def open(self) -> bool:
        return self.done is None and self.error is None


Key = tuple[str, int, int]


class Probe:
    """A client or worker on `node` that speaks bare envelopes and keeps what it sees."""

    def __init__(self, net: "Net", node: str, name: str, role: Role) -> None:
        self.net, self.node, self.name, self.role = net, node, name, role
        self.events: list[tuple[Route, wire.EventMeta, bytes]] = []
        self.gaps: list[wire.Gap] = []
        self.calls: dict[int, CallView] = {}
        self.requests: dict[Key, Route] = {}
        """What was asked of this worker and is neither answered nor cancelled."""
        self.errors: list[wire.Error] = []
        self.notices: list[wire.Notice] = []
        self.subscriptions: set[tuple[str, str]] = set()
        self.answers_at_once = False
        self.deaf = False
        self.read = 0
        """Chunks of input that came."""
        self.saw: Callable[[str], None] = lambda line: None
        self.welcome: wire.WorkerWelcome | None = None
        self.bye: wire.Bye | None = None
        self._seq = 0
        self._in = [0, 0]
        station = net.stations[node]
        conn = Conn(ConnKind.LOCAL, f"uid:{1000}", uid=1000, gid=int(role))
        self.end = End(self, conn)
        self.end.other = station.add(conn)
        self.end.other.other = self.end
        self._incarnation = net.number()
        hello = wire.WorkerHello(versions=(1, 1), name=name, incarnation=self._incarnation, window=1 << 20)
        self.local(Type.HELLO, hello)

    @property
    def alive(self) -> bool:
        """Whether the session stands."""
        return self.welcome is not None and self.end.other is not None and not self.end.unheard

    def ready(self) -> list[End]:
        return [self.end] if self.end.inbox and not self.deaf else []

    def turn(self) -> None:
        item = self.end.inbox.popleft()
        if isinstance(item, bytes):
            self._received(item)
        elif item is Sign.DOWN:
            self.welcome = None

    def leave(self) -> None:
        """End as kill -9 does."""
        self.welcome = None
        self.end.inbox.clear()
        if self.end.other is not None:
            self.end.other.down(self.net.rng)
            self.end.other = None

    # Speaking.

    def local(self, kind: Type, body: object = None, meta: object = ()) -> None:
        self.end.send(wire.encode_frame(wire.local(kind, body, meta)))

    def say(self, kind: Type, target: str, topic: str, meta: object, body: bytes = b"") -> None:
        """Send a routed envelope."""
        assert self.welcome is not None
        who = self.welcome
        route = Route(kind, who.node, who.who, who.role, who.handle, target, topic)
        self.end.send(wire.encode_frame([wire.encode(route), wire.encode(meta), body]))

    def subscribe(self, pattern: str, scope: str = "all") -> None:
        self.subscriptions.add((pattern, scope))
        self.local(Type.SUBSCRIBE, wire.Subscribe(pattern, scope))

    def unsubscribe(self, pattern: str, scope: str = "all") -> None:
        self.subscriptions.discard((pattern, scope))
        self.local(Type.UNSUBSCRIBE, wire.Subscribe(pattern, scope))

    def watch(self, pattern: str) -> None:
        self.local(Type.WATCH, wire.Watch(self.net.number(), pattern))

    def serve(self, service: str, command: str, role: Role = Role.OPERATE) -> None:
        self.local(Type.SERVE, wire.Serve(service, {command: int(role)}))

    def publish(self, topic: str, body: bytes = b"", target: str = "*") -> None:
        self.say(Type.EVENT, target, topic, wire.EventMeta(self._incarnation, self._seq), body)
        self._seq += 1

    def request(self, target: str, command: str, budget_ms: int = 30_000, body: bytes = b"") -> int:
        number = self.net.number()
        self.calls[number] = CallView(target, command)
        self.say(Type.REQUEST, target, command, wire.RequestMeta(number, budget_ms), body)
        return number

    def cancel(self, number: int) -> None:
        call = self.calls[number]
        self.say(Type.CANCEL, call.target, call.command, wire.CallMeta(number))

    def answer(self, key: Key, body: bytes = b"", outcome: Outcome = Outcome.OK) -> None:
        del self.requests[key]
        origin, handle, number = key
        self.say(Type.REPLY, origin, str(handle), wire.ReplyMeta(number, 0, outcome, Flag.LAST), body)

    # Listening.

    def _received(self, frame: bytes) -> None:
        items = wire.decode_frame(frame)
        lanes = set()
        for route, meta, body in zip(items[0::3], items[1::3], items[2::3], strict=True):
            heard = wire.decode_route(route)
            lanes.add(wire.LANE_OF[Type(heard.type)])
            self._heard(Type(heard.type), heard, meta, body)
        assert len(lanes) == 1, "all envelopes of a frame belong to one lane (protocol 2.2)"
        lane = lanes.pop()
        if lane is not Lane.CONTROL and self.end.other is not None:
            self._in[lane - 1] += len(frame)
            self.local(Type.CREDIT, meta=wire.CreditMeta(*self._in))

    def _heard(self, kind: Type, route: Route, meta: bytes, body: bytes) -> None:
        listen = getattr(self, f"_on_{kind.name.lower()}", None)
        assert listen is not None, f"{kind.name} is not for clients"
        listen(route, meta, body)

    def _on_welcome(self, _: Route, __: bytes, body: bytes) -> None:
        self.welcome = wire.decode_body(wire.WorkerWelcome, body)

    def _on_bye(self, _: Route, __: bytes, body: bytes) -> None:
        self.bye = wire.decode_body(wire.Bye, body)
        self.saw(f"bye {self.bye.reason}")
        self.leave()

    def _on_credit(self, *_: object) -> None:
        """The probe sends little: it needs no window."""

    def _on_event(self, route: Route, meta: bytes, body: bytes) -> None:
        self.events.append((route, wire.decode_meta(wire.EventMeta, meta), body))
        self.saw(f"event {route.topic} from {route.origin}{_quoted(body)}")

    def _on_gap(self, _: Route, __: bytes, body: bytes) -> None:
        gap = wire.decode_body(wire.Gap, body)
        self.gaps.append(gap)
        self.saw(f"gap of {gap.count} at {gap.at}")

    def _on_notice(self, _: Route, __: bytes, body: bytes) -> None:
        notice = wire.decode_body(wire.Notice, body)
        self.notices.append(notice)
        self.saw("somebody wants it" if notice.interest else "nobody wants it")

    def _on_error(self, _: Route, meta: bytes, body: bytes) -> None:
        error = wire.decode_body(wire.Error, body)
        self.errors.append(error)
        self.saw(f"error {error.code}: {error.text}")
        call = self.calls.get(wire.decode_meta(wire.CallMeta, meta).call)
        if call is not None:
            call.error = error

    def _on_accept(self, _: Route, meta: bytes, body: bytes) -> None:
        call = self.calls[wire.decode_meta(wire.CallMeta, meta).call]
        assert call.nodes is None, "one ACCEPT for each call"
        folded = wire.decode_body(wire.Accept, body).nodes
        call.nodes = unfold(folded, self.net.topology)
        self.saw(f"accept {folded}")

    def _on_reply(self, route: Route, meta: bytes, body: bytes) -> None:
        reply = wire.decode_meta(wire.ReplyMeta, meta)
        call = self.calls[reply.call]
        assert call.nodes is not None, "ACCEPT comes before the first REPLY"
        assert route.origin in call.nodes, "only who was asked answers"
        assert call.done is None, "DONE is the end of a call"
        assert route.origin not in call.ended, "nothing comes after a node's last reply"
        if reply.flags & Flag.LAST:
            call.ended[route.origin] = Outcome(reply.status)
            call.texts[route.origin] = body.decode()
        self.saw(f"reply of {route.origin}: {Outcome(reply.status).name.lower()}{_quoted(body)}")

    def _on_done(self, _: Route, meta: bytes, body: bytes) -> None:
        call = self.calls[wire.decode_meta(wire.CallMeta, meta).call]
        assert call.done is None, "one DONE for each call"
        done = wire.decode_body(dict, body)
        sets = {outcome: done.get(outcome.name.lower(), "") for outcome in Outcome}
        call.done = {outcome: unfold(text, self.net.topology) for outcome, text in sets.items() if text}
        self.saw("done " + " ".join(f"{outcome.name.lower()}={text}" for outcome, text in sets.items() if text))

    def _on_request(self, route: Route, meta: bytes, body: bytes) -> None:
        request = wire.decode_meta(wire.RequestMeta, meta)
        key = (route.origin, route.handle, request.call)
        self.net.delivered(self, route, request.call)
        self.requests[key] = route
        self.saw(f"request {route.topic} from {route.origin}{_quoted(body)}")
        if self.answers_at_once:
            self.answer(key, body)

    def _on_input(self, *_: object) -> None:
        self.read += 1

    def _on_cancel(self, route: Route, meta: bytes, _: bytes) -> None:
        number = wire.decode_meta(wire.CallMeta, meta).call
        if self.requests.pop((route.origin, route.handle, number), None) is not None:
            self.saw(f"cancel of {route.origin}'s call")


def _quoted(body: bytes) -> str:
    return f" {body.decode()!r}" if 0 < len(body) <= 120 else f" ({len(body)} bytes)" if body else ""


class Net:
    """The tree, its probes, and what is under way between them."""

    def __init__(
        self,
        topology: Topology,
        *,
        tags: dict[str, tuple[str, ...]] | None = None,
        settings: BusSettings | None = None,
        rng: Random | None = None,
    ) -> None:
        """Without `rng` everything arrives in order and nothing under way is lost before a cut is noticed."""
        self.topology = topology
        self.shuffled = rng is not None
        self.rng = rng or _InOrder()
        self.now = 0
        servers = {
            name: Server(
                name, "127.0.0.1", 4000 + place, childs=topology.children(name), tags=(tags or {}).get(name, ())
            )
            for place, name in enumerate(topology.names)
        }
        self.config = Tree(servers=servers, bus=settings or BusSettings())
        self.stations: dict[str, Station] = {}
        self.probes: list[Probe] = []
        self.cuts: set[frozenset[str]] = set()
        self.held: set[frozenset[str]] = set()
        self.deliveries: dict[tuple[int, str], Route] = {}
        self._numbers = 0

    def number(self) -> int:
        """A number that was never given before."""
        self._numbers += 1
        return self._numbers

    def pick(self, choices: list[Any]) -> Any:
        return self.rng.choice(choices) if self.shuffled else choices[0]

    # Faults.

    def start(self, *nodes: str) -> None:
        for node in nodes:
            self.stations[node] = Station(self, node, self.number())
            self.stations[node].router.start()

    def stop(self, node: str) -> None:
        """Kill a router: everybody connected to it will notice."""
        for end in self.stations.pop(node).ends.values():
            if end.other is not None:
                end.other.down(self.rng)

    def cut(self, one: str, two: str) -> None:
        """Break the connections between two nodes, and let none begin until `mend`."""
        self.cuts.add(frozenset((one, two)))
        if one in self.stations:
            for end in [end for end in self.stations[one].ends.values() if end.nodes == {one, two}]:
                other = end.other
                assert other is not None
                end.down(self.rng)
                other.down(self.rng)

    def mend(self, one: str, two: str) -> None:
        self.cuts.discard(frozenset((one, two)))

    def hold(self, one: str, two: str) -> None:
        """Let nothing arrive between two nodes until `release`; the connection stays."""
        self.held.add(frozenset((one, two)))

    def release(self, one: str, two: str) -> None:
        self.held.discard(frozenset((one, two)))

    def reach(self, one: str, two: str) -> Station | None:
        return None if frozenset((one, two)) in self.cuts else self.stations.get(two)

    # Probes.

    def probe(self, node: str, name: str = "probe", role: Role = Role.ADMIN) -> Probe:
        probe = Probe(self, node, name, role)
        self.probes.append(probe)
        return probe

    def delivered(self, worker: Probe, route: Route, call: int) -> None:
        """A worker got a request: at most once, and only where it was sent."""
        key = (call, worker.node)
        assert key not in self.deliveries, f"call {call} came to {worker.node} twice"
        self.deliveries[key] = route

    # The course of things.

    def step(self) -> bool:
        """Let one process have its turn; False if there is nothing that anybody could do."""
        owners: Iterable[Station | Probe] = (*self.stations.values(), *self.probes)
        able = [owner for owner in owners if owner.ready()]
        if not able:
            for station in self.stations.values():
                if station.router.stuck and not station.frozen:
                    station.router.flush()
            able = [owner for owner in owners if owner.ready()]
        if able:
            self.pick(able).turn()
        return bool(able)

    def steps(self, count: int) -> None:
        for _ in range(count):
            if not self.step():
                return

    def run(self) -> None:
        """Let everything arrive that is under way."""
        for _ in range(100_000):
            if not self.step():
                return
        raise AssertionError("the net does not come to rest")

    def advance(self, ms: int, steps: int | None = None) -> None:
        """Let time go on, tick by tick; at most `steps` turns between two ticks, everything by default."""
        end = self.now + ms
        while self.now < end:
            self.now = min(end, self.now + TICK_MS)
            for station in list(self.stations.values()):
                station.tick()
            if steps is None:
                self.run()
            else:
                self.steps(steps)

    # The truth, to compare with what the routers believe.

    def links(self) -> set[tuple[str, str]]:
        """The links (parent, child) on which both ends agree."""
        found = set()
        for name, station in self.stations.items():
            for way, peer in station.router.links.by_way.items():
                if way == UPWARD:
                    continue
                far = self.stations.get(way)
                end = station.ends.get(peer.conn)
                up = far.router.links.by_way.get(UPWARD) if far else None
                if end and end.other and far and up and end.other is far.ends.get(up.conn):
                    found.add((name, way))
        return found

    def components(self) -> dict[str, frozenset[str]]:
        """Who is joined to each running node, itself included."""
        groups = {name: {name} for name in self.stations}
        for one, two in self.links():
            if groups[one] is not groups[two]:
                groups[one] |= groups[two]
                for name in groups[two]:
                    groups[name] = groups[one]
        return {name: frozenset(group) for name, group in groups.items()}


class _InOrder(Random):
    """Always the last choice of a range: everything under way is kept, and clocks differ by their whole range."""

    def randint(self, a: int, b: int) -> int:
        return b

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return (start if stop is None else stop) - 1
