"""What once did harm, one test each: a peer's input that killed a router, filled its memory or was believed."""

import pytest
from test_router import SETTINGS, Siege

from tsbus.core import message as wire
from tsbus.core.directory import UPWARD
from tsbus.core.interest import PART, InterestTable, Local
from tsbus.core.lanes import Queue
from tsbus.core.message import Content, Flag, Lane, Route, Type
from tsbus.core.roles import Role
from tsbus.log import MAX_TEXT
from tsbus.peer import Conn, ConnKind, Peer
from tsbus.router import _CACHE_BYTES


def peer(siege: Siege, kind: ConnKind, name: str, uid: int = -1) -> Peer:
    """Connect somebody honestly; `b` is the parent, `c` the child of the router under test."""
    conn = Conn(kind, name, uid=uid)
    siege.world.open[conn] = None
    if kind is ConnKind.DIAL:
        siege.router.connected(conn)
    siege.greet(conn)
    siege.router.flush()
    assert conn.peer is not None
    return conn.peer


def say(siege: Siege, who: Peer, *envelopes: list[bytes]) -> None:
    siege.deliver(who.conn, wire.encode_frame([part for envelope in envelopes for part in envelope]))
    siege.router.flush()


def routed(kind: Type, author: Peer, target: str, topic: str, meta: object, body: bytes = b"") -> list[bytes]:
    route = Route(kind, "a", author.who, author.role, author.handle, target, topic)
    return [wire.encode(route), wire.encode(meta), body]


@pytest.mark.parametrize("topic", ["\u00b2", "9" * 5000, "-1", "1.5"])
def test_topic_that_is_no_handle(topic: str) -> None:
    """A REPLY for a caller's handle that `int` cannot read is dropped, from workers and from links."""
    siege = Siege(1)
    worker, parent = peer(siege, ConnKind.LOCAL, "uid:0", 0), peer(siege, ConnKind.TCP, "node:b")
    meta = wire.ReplyMeta(1, 0, 0, Flag.LAST, Content.RAW)
    say(siege, worker, routed(Type.REPLY, worker, "a", topic, meta))
    route = Route(Type.REPLY, "b", "router", Role.ADMIN, 0, "a", topic)
    say(siege, parent, [wire.encode(route), wire.encode(meta), b""])
    assert siege.router.counters["no-route"] == 2


def test_deep_json_for_the_router() -> None:
    """JSON nested a hundred thousand deep for `router.resolve` is answered as failed."""
    siege = Siege(1)
    worker = peer(siege, ConnKind.LOCAL, "uid:2", 2)
    say(siege, worker, routed(Type.REQUEST, worker, "a", "router.resolve", wire.RequestMeta(1, 1000), b"[" * 100_000))
    assert len(siege.router.commands.outgoing) == 0


def test_a_peers_words_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A node below may refuse every dial with a megabyte of text: the log tells its beginning."""
    siege = Siege(1)
    child = peer(siege, ConnKind.DIAL, "c")
    say(siege, child, wire.local(Type.BYE, wire.Bye("refused", "x" * 1_000_000)))
    (record,) = [record for record in caplog.records if record.message == "link.refused"]
    assert vars(record)["fields"]["text"] == "x" * MAX_TEXT


def test_remembered_routes_are_bounded_in_bytes() -> None:
    """Thousands of different routes of 60 KB each do not stay in memory."""
    siege = Siege(1)
    worker = peer(siege, ConnKind.LOCAL, "uid:0", 0)
    for number in range(200):
        say(siege, worker, routed(Type.EVENT, worker, "*", f"{number}" + "x" * 60_000, wire.EventMeta(1, 1)))
    assert sum(map(len, worker.cache)) <= _CACHE_BYTES


def test_epochs_without_end() -> None:
    """An entry whose epoch is so large that it cannot be outbid is malformed and believed by nobody."""
    siege = Siege(1)
    parent = peer(siege, ConnKind.TCP, "node:b")
    before = siege.router.directory.entries["a"]
    body = {"entries": [["a", (1 << 64) - 1, 0, 1, "d", 1, "joined", 0]]}
    say(siege, parent, wire.local(Type.DIRECTORY, body))
    assert siege.router.directory.entries["a"] == before
    assert siege.router.counters["malformed"] == 1


def test_gap_counts_do_not_overflow() -> None:
    """Gap markers that add up to more than a number can hold are still told, as the largest number."""
    queue = Queue(1000)
    for _ in range(3000):
        queue.note_gap("x>y", (1 << 53) - 1)
    wire.decode_body(wire.Gap, wire.decode_frame(queue.peek())[2])


def test_dropped_gap_markers_are_told_again() -> None:
    """A gap marker that waits in a queue from which the oldest are dropped is not lost with them."""
    queue = Queue(10_000)
    queue.note_gap("x>y", 5)
    queue.add([b"r", b"m", b"b" * 100], 102)
    queue.peek()
    for _ in range(3):
        queue.add([b"r", b"m", b"b" * 70_000], 70_002)
    dropped = queue.drop_oldest("y>z")
    items = wire.decode_frame(queue.peek())
    gaps = [wire.decode_body(wire.Gap, body) for body in items[2::3]]
    assert {(gap.at, gap.count) for gap in gaps} == {("x>y", 5), ("y>z", dropped)}


def test_two_lanes_in_one_frame() -> None:
    """Events behind a control envelope, where no window counts them, are malformed (protocol 2.2)."""
    siege = Siege(1)
    worker = peer(siege, ConnKind.LOCAL, "uid:0", 0)
    say(siege, worker, wire.local(Type.SUBSCRIBE, wire.Subscribe(">")))
    ping = wire.local(Type.PING, meta=wire.PingMeta(1, 0))
    say(siege, worker, ping, routed(Type.EVENT, worker, "*", "x", wire.EventMeta(1, 1), b"y" * 1000))
    assert siege.router.counters["malformed"] == 1
    assert worker.outbox.event.waiting < 1000


@pytest.mark.parametrize("kind", [ConnKind.LOCAL, ConnKind.TCP])
def test_window_of_a_greedy_peer(kind: ConnKind) -> None:
    """A peer cannot say that it takes more unread bytes than a queue holds."""
    siege = Siege(1)
    one = peer(siege, kind, "uid:0" if kind is ConnKind.LOCAL else "node:b", 0)
    assert one.outbox.event.window <= SETTINGS.queue_bytes


def test_interest_is_told_in_parts() -> None:
    """Ten thousand patterns of 250 bytes do not make a HELLO or INTEREST that the far side must refuse as too large."""
    table = InterestTable()
    patterns = [f"{number:05}." + "x" * 240 for number in range(10_000)]
    for pattern in patterns:
        table.add(Local(1, "all"), pattern)
    told = table.open_link(UPWARD)
    assert len(told) <= PART
    for way, change in table.changes([UPWARD]):
        assert way == UPWARD
        assert len(wire.encode(change)) < wire.MAX_BODY
        told += change.add
    assert sorted(told) == patterns


def test_root_is_nobodys_child() -> None:
    """A child of the root that asks the root to be its child is refused, whoever is up or down (protocol 4.4)."""
    siege = Siege(1)
    siege.router.me = siege.router.topology.root
    siege.router.directory.me = siege.router.me
    conn = Conn(ConnKind.TCP, "node:d")
    siege.world.open[conn] = None
    siege.greet(conn)
    assert UPWARD not in siege.router.links.by_way


def test_a_command_is_taken_from_nobody() -> None:
    """A user cannot serve a command that another one serves; one with a higher role takes it over (protocol 10.1)."""
    siege = Siege(1)
    root, other, third = (peer(siege, ConnKind.LOCAL, f"uid:{uid}", uid) for uid in (0, 1, 2))
    serve = wire.local(Type.SERVE, wire.Serve("exec", {"run": 2}))
    say(siege, other, serve)
    assert list(other.services) == ["exec.run"]
    say(siege, root, serve)
    assert (list(other.services), list(root.services)) == ([], ["exec.run"])
    say(siege, other, serve)
    assert (list(other.services), list(root.services)) == ([], ["exec.run"])
    say(siege, third, serve)
    assert not third.services


def test_a_worker_that_is_behind_is_passed_over() -> None:
    """Requests for a worker that does not read them are refused before its queue overflows and it is cut."""
    siege = Siege(1)
    worker, caller = peer(siege, ConnKind.LOCAL, "uid:0", 0), peer(siege, ConnKind.LOCAL, "uid:1", 1)
    say(siege, worker, wire.local(Type.SERVE, wire.Serve("x", {"run": 1})))
    worker.outbox.stream.window = 0
    for number in range(100):
        request = wire.RequestMeta(number, 60_000)
        say(siege, caller, routed(Type.REQUEST, caller, "a", "x.run", request, b"z" * 5000))
        siege.deliver(caller.conn, wire.encode_frame(wire.local(Type.CREDIT, meta=wire.CreditMeta(
            caller.outbox.lanes[Lane.STREAM].sent_total, 0))))  # fmt: skip
    assert not worker.gone
    assert not caller.gone
    assert 0 < len(siege.router.services.serving) < 20


def test_requests_do_not_end_a_link() -> None:
    """Requests for nodes behind a link that is far behind are refused before its queue overflows and it is reset."""
    siege = Siege(1)
    child, caller = peer(siege, ConnKind.DIAL, "c"), peer(siege, ConnKind.LOCAL, "uid:2", 2)
    child.outbox.stream.window = 0
    for number in range(100):
        request = wire.RequestMeta(number, 60_000)
        say(siege, caller, routed(Type.REQUEST, caller, "c", "x.run", request, b"z" * 5000))
        sent = caller.outbox.lanes[Lane.STREAM].sent_total
        siege.deliver(caller.conn, wire.encode_frame(wire.local(Type.CREDIT, meta=wire.CreditMeta(sent, 0))))
    assert not child.gone
    assert not caller.gone
    assert 0 < len(siege.router.commands.outgoing) < 20


def entry(node: str, parent: str, epoch: int = 1 << 50, state: int = 1) -> wire.Entry:
    return wire.Entry(node, epoch, 0, state, parent, 9, "joined", 0)


@pytest.mark.parametrize(
    "claim", [entry("d", "c"), entry("b", "c"), entry("b", ""), entry("d", "b", state=3), entry("a", "c")], ids=str
)
def test_a_child_draws_no_node_to_itself(claim: wire.Entry) -> None:
    """What a child says of nodes that are not on its side is not believed, and it cannot speak for them (6.6)."""
    siege = Siege(1)
    parent, child = peer(siege, ConnKind.TCP, "node:b"), peer(siege, ConnKind.DIAL, "c")
    say(siege, parent, wire.local(Type.DIRECTORY, wire.Directory([entry("b", "", 9), entry("d", "b", 9)])))
    directory = siege.router.directory
    before = {name: directory.way(name) for name in directory.entries}
    say(siege, child, wire.local(Type.DIRECTORY, wire.Directory([claim])))
    assert {name: directory.way(name) for name in directory.entries} == before
    assert directory.reachable == {"a", "b", "c", "d"}
    route = Route(Type.REQUEST, claim.node, "uid:0", Role.ADMIN, 1, "a", "router.ping")
    say(siege, child, [wire.encode(route), wire.encode(wire.RequestMeta(1, 1000)), b""])
    assert siege.router.counters["misrouted"] == 1
