"""Answers for a link that is not read (protocol 9.3 and 9.5), at a router whose peers are played by hand."""

import pytest
from test_slow import World

from tsbus.config import BusSettings, Server, Tree
from tsbus.core import message as wire
from tsbus.core.message import ReplyMeta, RequestMeta, Route, Type
from tsbus.core.roles import Role
from tsbus.peer import Conn, ConnKind
from tsbus.router import Router

BOUND = 8 * 1024 * 1024
CHUNK = b"x" * 30_000
CALL = 7


class Bench:
    """The router of b, whose parent a reads nothing more than its window, and a worker that has a call of a's."""

    def __init__(self) -> None:
        self.world = World()
        servers = {"a": Server("a", "127.0.0.1", 7000, childs=("b",)), "b": Server("b", "127.0.0.1", 7001)}
        tree = Tree(servers, bus=BusSettings(stream_queue_bytes=BOUND)).with_current("b")
        self.router = Router(tree, self.world, self.world, role_of=lambda _: Role.ADMIN)
        self.parent, self.worker = Conn(ConnKind.TCP, "node:a"), Conn(ConnKind.LOCAL, uid=0)
        self.hello(self.parent, wire.LinkHello(
            versions=(1, 1), node="a", incarnation=1, release="", config="", window=65_536, max_body=wire.MAX_BODY,
            clock_ms=0, entries=[wire.Entry("a", 1, 0, 1, "", 1, "joined", 1)], interest=[],
        ))  # fmt: skip
        welcome = wire.decode_body(
            wire.WorkerWelcome,
            self.hello(self.worker, wire.WorkerHello(versions=(1, 1), name="w", incarnation=1, window=BOUND)),
        )
        self.say(self.worker, wire.local(Type.SERVE, wire.Serve("svc", {"run": Role.OPERATE})))
        ask = Route(Type.REQUEST, "a", "uid:0", Role.ADMIN, 1, "b", "svc.run")
        self.say(self.parent, [wire.encode(ask), wire.encode(RequestMeta(CALL, 60_000, 0, 65_536)), b""])
        self.reply = wire.encode(Route(Type.REPLY, "b", welcome.who, welcome.role, welcome.handle, "a", "1"))
        self.window = welcome.window
        self.said = self.acked = 0

    def hello(self, conn: Conn, body: object) -> bytes:
        self.say(conn, wire.local(Type.HELLO, body))
        return wire.decode_frame(self.world.sent[conn][0])[2]

    def say(self, conn: Conn, items: list[bytes]) -> None:
        self.router.received(conn, wire.encode_frame(items))
        self.router.flush()

    def answer(self) -> None:
        """Send a chunk of the answer, whatever the credit of the call is."""
        frame = [self.reply, wire.encode(ReplyMeta(CALL, 0, 0, 0)), CHUNK]
        self.said += len(wire.encode_frame(frame))
        self.say(self.worker, frame)

    def may_send(self) -> bool:
        """Whether the window is open, after all CREDIT that came."""
        for frame in self.world.sent.pop(self.worker, []):
            items = wire.decode_frame(frame)
            for route, meta in zip(items[::3], items[1::3], strict=True):
                if wire.decode_route(route).type == Type.CREDIT:
                    self.acked = wire.decode_meta(wire.CreditMeta, meta).stream_total
        return self.said - self.acked < self.window

    def fill(self) -> None:
        while self.may_send():
            self.answer()
            assert self.said < 4 * BOUND, "nothing holds the worker back"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_worker_waits_for_a_crowded_link(bench: Bench) -> None:
    """Who answers faster than a link carries is held back at its own window; the link stays (protocol 9.3)."""
    bench.fill()
    queue = bench.router.links.by_way["^"].outbox.stream
    assert queue.limit // 2 < queue.waiting < queue.limit
    assert bench.router.counters["overflow"] == 0


def test_it_goes_on_when_the_link_has_room(bench: Bench) -> None:
    """When the link has carried the crowd away, the worker is acknowledged and goes on."""
    bench.fill()
    link = bench.router.links.by_way["^"]
    while link.outbox.stream.waiting:
        credit = wire.CreditMeta(link.outbox.stream.sent_total, 0)
        bench.say(bench.parent, wire.local(Type.CREDIT, meta=credit))
    assert bench.may_send()


def test_a_lost_link_frees_the_worker(bench: Bench) -> None:
    """When the crowded link is lost, nobody waits for it any more."""
    bench.fill()
    bench.router.disconnected(bench.parent)
    bench.router.flush()
    assert bench.may_send()


def test_a_worker_that_does_not_wait_is_cut(bench: Bench) -> None:
    """Who ignores the window loses its own connection, before the link's bound is reached (protocol 9.2)."""
    bench.fill()
    closed: list[Conn] = []
    bench.world.close = closed.append  # type: ignore[method-assign]
    while not closed:
        bench.answer()
        assert bench.said < 8 * BOUND
    assert closed == [bench.worker]
