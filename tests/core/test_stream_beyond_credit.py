"""Answers and input that nobody granted, over a slow link that is not the sender's first (protocol 9.3 to 9.5)."""

import pytest
from memory import Key, Net, Probe

from tsbus.config import BusSettings
from tsbus.core import message as wire
from tsbus.core.accounting import Outcome
from tsbus.core.message import Flag, InputMeta, ReplyMeta, Type
from tsbus.core.tree import Topology

BOUND = 1024 * 1024
WHY = "the link from b to {} does not keep up"


class Row:
    """Three nodes in a row, a above b above c, with a client on each; those on a and c serve `svc.run`."""

    def __init__(self) -> None:
        settings = BusSettings(stream_queue_bytes=BOUND, window_bytes=BOUND // 8)
        self.net = Net(Topology({"a": ["b"], "b": ["c", "d"], "c": [], "d": []}), settings=settings)
        self.net.start("a", "b", "c", "d")
        self.net.advance(1000)
        self.at = {node: self.net.probe(node) for node in ("a", "b", "c", "d")}
        self.net.run()
        for probe in self.at.values():
            probe.serve("svc", "run")
        self.net.run()

    @property
    def middle(self):  # type: ignore[no-untyped-def]
        return self.net.stations["b"].router

    def call(self, target: str = "c") -> int:
        """Begin a call of a's client that has input."""
        caller = self.at["a"]
        number = caller.request(target, "svc.run")
        self.net.run()
        return number

    def key(self, number: int) -> Key:
        welcome = self.at["a"].welcome
        assert welcome is not None
        return "a", welcome.handle, number

    def answer(self, number: int, size: int, count: int, flags: int = 0) -> None:
        """Let c's worker answer, whatever it was granted."""
        for seq in range(count):
            meta = ReplyMeta(number, seq, 0, flags)
            self.at["c"].say(Type.REPLY, "a", str(self.key(number)[1]), meta, b"x" * size)
            self.net.run()

    def feed(self, number: int, size: int, count: int, target: str = "c") -> None:
        """Let a's client send input, whatever it was granted."""
        for seq in range(count):
            self.at["a"].say(Type.INPUT, target, "svc.run", InputMeta(number, seq), b"x" * size)
            self.net.run()

    def works(self, node: str = "c") -> bool:
        """Whether a new call of a's client is answered, over links that stood all the time."""
        number = self.call(node)
        worker: Probe = self.at[node]
        worker.answer(self.key(number))
        self.net.run()
        return self.at["a"].calls[number].done == {Outcome.OK: frozenset({node})}


@pytest.fixture
def row() -> Row:
    return Row()


def _ended(row: Row, number: int, link: str) -> None:
    """The call has failed at c with the reason, its worker knows, and every link stands."""
    call = row.at["a"].calls[number]
    assert call.ended == {"c": Outcome.FAILED}
    assert call.texts == {"c": WHY.format(link)}
    assert call.done == {Outcome.FAILED: frozenset("c")}
    assert row.key(number) not in row.at["c"].requests
    assert row.middle.counters["overflow"] == 0
    assert row.net.links() == {("a", "b"), ("b", "c"), ("b", "d")}
    assert row.works()


@pytest.mark.parametrize("size", [30_000, 500])
def test_answers_beyond_credit_end_their_call(row: Row, size: int) -> None:
    """A worker that answers without end to a node that does not read ends its own call; the link in between stays."""
    number = row.call()
    row.net.stations["a"].frozen = True
    row.answer(number, size, 3 * BOUND // size)
    assert row.middle.links.by_way["^"].outbox.stream.waiting < BOUND
    row.net.stations["a"].frozen = False
    row.net.run()
    _ended(row, number, "a")


def test_input_beyond_credit_ends_its_call(row: Row) -> None:
    """A caller that sends input without end to a node that does not read ends its own call; the link stays."""
    number = row.call()
    row.net.stations["c"].frozen = True
    row.feed(number, 30_000, 100)
    row.net.stations["c"].frozen = False
    row.net.run()
    _ended(row, number, "c")


def test_input_goes_on_to_nodes_whose_link_keeps_up(row: Row) -> None:
    """Of a call to several nodes only those behind the slow link have failed; the others get all of the input."""
    number = row.call("c,d")
    row.net.stations["c"].frozen = True
    row.feed(number, 30_000, 50, "c,d")
    assert row.at["a"].calls[number].ended == {"c": Outcome.FAILED}
    assert row.at["d"].read == 50
    row.at["d"].answer(row.key(number))
    row.net.stations["c"].frozen = False
    row.net.run()
    assert row.at["a"].calls[number].done == {Outcome.OK: frozenset("d"), Outcome.FAILED: frozenset("c")}
    assert row.works("c")


def test_the_end_of_other_calls_still_passes(row: Row) -> None:
    """Over a link that is far behind, a call that ends with few words ends as it did."""
    greedy, other = row.call(), row.call()
    row.net.stations["a"].frozen = True
    row.answer(greedy, 30_000, 100)
    row.answer(other, 100, 1, Flag.LAST)
    row.net.stations["a"].frozen = False
    row.net.run()
    assert row.at["a"].calls[other].ended == {"c": Outcome.OK}
    assert row.at["a"].calls[greedy].ended == {"c": Outcome.FAILED}


def test_many_callers_that_obey_do_not_end_a_link(row: Row) -> None:
    """Answers within their credit can be too much for a slow link, if they are many: calls end, no link."""
    numbers = [row.call() for _ in range(60)]
    row.net.stations["a"].frozen = True
    for number in numbers:
        row.answer(number, 30_000, 2)
    row.net.stations["a"].frozen = False
    row.net.run()
    ended = [row.at["a"].calls[number].ended for number in numbers]
    assert {} in ended
    assert {"c": Outcome.FAILED} in ended
    assert row.middle.counters["overflow"] == 0
    assert row.works()


def test_what_cannot_be_read_is_malformed_as_ever(row: Row) -> None:
    """A chunk whose meta cannot be read is counted against its sender, also where the link has no room."""
    number = row.call()
    row.net.stations["a"].frozen = True
    row.answer(number, 30_000, 60)
    child = row.middle.links.by_way["c"]
    route = wire.Route(Type.REPLY, "c", "uid:0", 3, 1, "a", "1")
    row.middle.received(child.conn, wire.encode_frame([wire.encode(route), b"\xc1", b"x" * 9000]))
    assert row.middle.counters["malformed"] == 1
