"""Slow peers and the bound of event queues (protocol 9.2 and 9.3), at a router whose peers are played by hand."""

from dataclasses import dataclass, field

from tsbus.config import BusSettings, Server, Tree
from tsbus.core import message as wire
from tsbus.core.message import EventMeta, Route, Type
from tsbus.core.roles import Role
from tsbus.peer import Conn, ConnKind
from tsbus.router import TICK_MS, Router

BOUND = 1024 * 1024
BODY = b"x" * 32_000


@dataclass
class World:
    """Transport and clock of one router: what it sends is kept until a reader takes it."""

    now: float = 1000.0
    sent: dict[Conn, list[bytes]] = field(default_factory=dict)

    def monotonic_ms(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return int(self.now)

    def send(self, conn: Conn, frame: bytes) -> bool:
        self.sent.setdefault(conn, []).append(frame)
        return True

    def set_dials(self, nodes: frozenset[str]) -> None:
        assert not nodes

    def close(self, conn: Conn) -> None:
        raise AssertionError(conn)


class Bench:
    """A router with a subscriber and any number of publishers, who obey their windows."""

    def __init__(self) -> None:
        self.world = World()
        settings = BusSettings(queue_bytes=BOUND, slow_after_ms=250)
        tree = Tree({"a": Server("a", "127.0.0.1", 7000)}, bus=settings).with_current("a")
        self.router = Router(tree, self.world, self.world, role_of=lambda _: Role.ADMIN)
        self.read = 0
        self.reader, _ = self.connect(window=BOUND // 4)
        self.say(self.reader, wire.local(Type.SUBSCRIBE, wire.Subscribe("load")))

    def connect(self, window: int = BOUND) -> tuple[Conn, wire.WorkerWelcome]:
        conn = Conn(ConnKind.LOCAL, uid=0)
        self.say(
            conn, wire.local(Type.HELLO, wire.WorkerHello(versions=(1, 1), name="w", incarnation=1, window=window))
        )
        (_, _, body), *_ = self.take(conn)
        return conn, wire.decode_body(wire.WorkerWelcome, body)

    def say(self, conn: Conn, items: list[bytes]) -> None:
        self.router.received(conn, wire.encode_frame(items))
        self.router.flush()

    def take(self, conn: Conn) -> list[tuple[bytes, bytes, bytes]]:
        frames = self.world.sent.pop(conn, [])
        return [tuple(items[at : at + 3]) for items in map(wire.decode_frame, frames) for at in range(0, len(items), 3)]  # type: ignore[misc]

    def read_all(self) -> int:
        """Let the subscriber read and acknowledge what was sent to it; returns how many events that were."""
        frames = self.world.sent.pop(self.reader, [])
        items = [part for frame in frames for part in wire.decode_frame(frame)]
        self.read += sum(len(frame) for frame in frames if wire.decode_route(wire.decode_frame(frame)[0]).type >= 32)
        self.say(self.reader, wire.local(Type.CREDIT, meta=wire.CreditMeta(0, self.read)))
        return items[2::3].count(BODY)

    def publish_window(self, conn: Conn, welcome: wire.WorkerWelcome) -> int:
        """Publish what the window allows; returns how many events that were."""
        route = wire.encode(Route(Type.EVENT, "a", welcome.who, welcome.role, welcome.handle, "*", "load"))
        count = welcome.window // len(BODY) + 1
        for seq in range(count):
            self.say(conn, [route, wire.encode(EventMeta(1, seq)), BODY])
        return count

    def advance(self, ms: int) -> None:
        for _ in range(ms // TICK_MS):
            self.world.now += TICK_MS
            self.router.now = self.world.now
            self.router.tick()
            self.router.flush()


def test_many_publishers_to_one_that_keeps_up() -> None:
    """However many publish at once within their windows, a subscriber that keeps reading loses nothing (9.3)."""
    bench = Bench()
    published = sum(bench.publish_window(*bench.connect()) for _ in range(50))
    received = 0
    for _ in range(published):
        received += bench.read_all()
        bench.advance(TICK_MS)
    assert received == published
    assert bench.router.counters["dropped-slow"] == 0


def test_a_stopped_reader_is_slow_and_bounded() -> None:
    """A subscriber that reads nothing is slow after `slow_after_ms`; then its queue stays within its bound (9.3)."""
    bench = Bench()
    publisher = bench.connect()
    for _ in range(4):
        bench.publish_window(*publisher)
    (peer,) = (peer for peer in bench.router.peers if peer.conn is bench.reader)
    bench.advance(200)
    assert not peer.slow
    bench.advance(100)
    assert peer.slow
    for _ in range(10):
        bench.publish_window(*publisher)
    assert peer.outbox.event.waiting <= BOUND
    assert bench.router.counters["dropped-slow"] > 0
