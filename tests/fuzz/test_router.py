"""A router takes any frames, in any order, from any kind of peer: nothing is raised, all is bounded (protocol 9)."""

from collections.abc import Iterator
from random import Random

import pytest
from hostile import NODES, Hostile, Me
from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.config import BusSettings, Server, Tree
from tsbus.core import message as wire
from tsbus.core.directory import UPWARD
from tsbus.core.message import Lane, Type
from tsbus.core.roles import Role
from tsbus.peer import Conn, ConnKind, PeerKind
from tsbus.router import _CACHE_BYTES, Router

BOUND = 64 << 10
"""Small bounds, so that a short run meets them."""
SETTINGS = BusSettings(
    queue_bytes=BOUND, stream_queue_bytes=BOUND, control_queue_bytes=BOUND, window_bytes=BOUND, max_workers=3,
    max_subscriptions=5, reset_after_s=1, adopt_after_s=0.5, steady_s=0.5,
)  # fmt: skip
TREE = Tree(
    servers={
        "b": Server("b", "127.0.0.1", 4001, childs=("a", "d")),
        "a": Server("a", "127.0.0.1", 4002, childs=("c",)),
        "c": Server("c", "127.0.0.1", 4003),
        "d": Server("d", "127.0.0.1", 4004),
    },
    bus=SETTINGS,
    current_node="a",
)  # fmt: skip


class World:
    """A transport that takes some frames, and a clock by hand."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.ms = 1_000_000.0
        self.open: dict[Conn, None] = {}
        self.dials: frozenset[str] = frozenset()

    def send(self, conn: Conn, frame: bytes) -> bool:
        wire.decode_frame(frame)
        assert len(frame) <= wire.MAX_FRAME
        return conn in self.open and self.rng.random() < 0.7

    def set_dials(self, nodes: frozenset[str]) -> None:
        self.dials = nodes
        self.open = {conn: None for conn in self.open if conn.kind is not ConnKind.DIAL or conn.name in nodes}

    def close(self, conn: Conn) -> None:
        self.open.pop(conn, None)

    def monotonic_ms(self) -> float:
        return self.ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.ms)


class Siege:
    """One router of a tree and everybody who can connect to it."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.world = World(self.rng)
        roles = {"uid:0": Role.ADMIN, "uid:1": Role.OPERATE, "uid:2": Role.OBSERVE, "operator:eve": Role.ADMIN}
        self.router = Router(
            TREE, self.world, self.world, role_of=lambda conn: roles.get(conn.name, Role.NONE), incarnation=1
        )
        self.router.start()
        self.hostile = [
            Hostile(self.rng, Me("a", f"uid:{uid}", (3, 2, 1, 0)[uid], 1 + self.rng.randrange(4)), pool=40)
            for uid in range(4)
        ]
        self.hostile += [Hostile(self.rng, Me(node, "uid:0", 3, 1), pool=40) for node in NODES]

    def connect(self) -> Conn:
        """Somebody new, or a node below that was dialled."""
        rng, router = self.rng, self.router
        kind = rng.choice(list(ConnKind))
        if kind is ConnKind.LOCAL:
            uid = rng.randrange(4)
            conn = Conn(kind, f"uid:{uid}", uid=uid, gid=uid)
        elif kind is ConnKind.TCP:
            conn = Conn(kind, rng.choice([*(f"node:{node}" for node in "bcd"), "operator:eve", "operator:nobody"]))
        else:
            conn = Conn(kind, rng.choice(sorted(self.world.dials) or ["c"]))
            for old in [old for old in self.world.open if old.kind is kind and old.name == conn.name]:
                self.world.open.pop(old)  # a node is dialled anew only when the connection has ended
                router.disconnected(old)
        self.world.open[conn] = None
        if kind is ConnKind.DIAL:
            router.connected(conn)
        if rng.random() < 0.8:
            self.greet(conn)
        return conn

    def greet(self, conn: Conn) -> None:
        """Finish the handshake as an honest peer does, so that what follows gets further."""
        if conn.kind is ConnKind.DIAL or conn.name.startswith("node:"):
            name = conn.name.removeprefix("node:")
            kind = Type.WELCOME if conn.kind is ConnKind.DIAL else Type.HELLO
            above = "a" if kind is Type.WELCOME else ""
            hello = wire.LinkHello(
                versions=(1, 1), node=name, incarnation=1, release="", config="", window=1 << 20, max_body=1 << 20,
                clock_ms=0, entries=[wire.Entry(name, 5, 0, 1, above, 1, "joined", 0)], interest=["a.>"],
            )  # fmt: skip
            self.deliver(conn, wire.encode_frame(wire.local(kind, hello)))
        else:
            hello = wire.WorkerHello(versions=(1, 1), name="w", incarnation=1, window=1 << 20)
            self.deliver(conn, wire.encode_frame(wire.local(Type.HELLO, hello)))

    def deliver(self, conn: Conn, frame: bytes) -> None:
        if conn in self.world.open:
            self.router.received(conn, frame)

    def run(self, steps: int) -> Iterator[None]:
        rng, router, world = self.rng, self.router, self.world
        for _ in range(steps):
            what = rng.random()
            if what < 0.1 or not world.open:
                self.connect()
            elif what < 0.13:
                conn = rng.choice(list(world.open))
                world.open.pop(conn)
                router.disconnected(conn)
            elif what < 0.9:
                conn = rng.choice(list(world.open))
                for _ in range(rng.choice((1, 1, 20))):
                    self.deliver(conn, rng.choice(self.hostile).frame())
            else:
                world.ms += rng.choice((1, 50, 50, 2000))
                router.now = world.ms
                router.tick()
            if rng.random() < 0.3:
                router.flush()
                yield


def check_bounds(siege: Siege) -> None:
    router = siege.router
    assert len(router.workers) <= SETTINGS.max_workers
    for peer in router.peers:
        assert not peer.gone
        assert peer.cached_bytes <= _CACHE_BYTES + (wire.MAX_ROUTE << 2)
        assert peer.subscriptions <= SETTINGS.max_subscriptions
        for lane in Lane:
            queue = peer.outbox.lanes[lane]
            assert queue.waiting <= queue.limit + wire.MAX_FRAME
            assert sum(batch.size for batch in queue.batches) == queue.waiting
    assert sum(peer.subscriptions for peer in router.workers.values()) == router.interest.size - sum(
        router.interest.count(way) for way in (UPWARD, *NODES)
    )
    for way, peer in router.links.by_way.items():
        assert peer.way == way
        assert peer.kind is (PeerKind.PARENT if way == UPWARD else PeerKind.CHILD)


@given(seed=st.integers(0, 1 << 48))
@settings(max_examples=60)
def test_no_frame_harms_a_router(seed: int) -> None:
    """Under any frames a router raises nothing, keeps every bound, and its tables agree with each other."""
    siege = Siege(seed)
    for _ in siege.run(250):
        check_bounds(siege)


@given(seed=st.integers(0, 1 << 48))
@settings(max_examples=20)
def test_everything_is_forgotten(seed: int) -> None:
    """When all that besieged it have gone, a router remembers nothing of them."""
    siege = Siege(seed)
    for _ in siege.run(300):
        pass
    for conn in list(siege.world.open):
        siege.world.open.pop(conn)
        siege.router.disconnected(conn)
    siege.router.flush()
    router = siege.router
    assert not router.peers
    assert not router.workers
    assert not router.links.by_way
    assert router.interest.size == 0
    assert len(router.commands.outgoing) == len(router.services.serving) == 0
    assert not router.services._workers


@pytest.mark.parametrize("name", ["malformed", "unknown-type", "forged", "refused", "not-welcome", "target"])
def test_drops_are_counted(name: str) -> None:
    """What is dropped is counted under its reason."""
    siege = Siege(11)
    for _ in siege.run(3000):
        pass
    assert siege.router.counters[name] > 0
