"""Lanes: what is put in comes out once and in order, within every bound (protocol sections 2.3 and 9)."""

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tsbus.core.lanes import Outbox, Queue
from tsbus.core.message import (
    BATCH_BYTES,
    Gap,
    Lane,
    Type,
    decode_body,
    decode_frame,
    decode_route,
    encode_frame,
    local,
)

LIMIT = 3 * BATCH_BYTES
SIZES = st.sampled_from([1, 100, 5_000, BATCH_BYTES // 4, BATCH_BYTES, BATCH_BYTES + 1])


def envelope(number, size=1):
    """Three elements whose body tells its number and makes up the size."""
    return [b"route", b"meta", b"%d," % number + bytes(size)]


def weight(items):
    return sum(map(len, items))


def numbers(frame):
    """The numbers of the envelopes in a frame, and the gaps it tells."""
    items = decode_frame(frame)
    if items[0] == b"route":
        return [int(body.split(b",")[0]) for body in items[2::3]], Counter()
    gaps = Counter()
    for route, body in zip(items[0::3], items[2::3], strict=True):
        assert decode_route(route).type == Type.GAP
        gap = decode_body(Gap, body)
        gaps[gap.at] += gap.count
    return [], gaps


class QueueMachine(RuleBasedStateMachine):
    """One lane between a producer that drops the oldest and a receiver that acknowledges when it likes."""

    def __init__(self):
        super().__init__()
        self.queue = Queue(LIMIT, window=BATCH_BYTES)
        self.put = 0
        self.got: list[int] = []
        self.gaps: Counter[str] = Counter()
        self.frames: list[bytes] = []
        self.told_elsewhere = 0

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=4), as_frame=st.booleans())
    def add(self, sizes, as_frame):
        items = [part for place, size in enumerate(sizes) for part in envelope(self.put + place, size)]
        self.put += len(sizes)
        if as_frame:
            self.queue.add_frame(encode_frame(items), items)
        else:
            self.queue.add(items, weight(items))

    @rule()
    def drop(self):
        before = self.queue.dropped
        dropped = self.queue.drop_oldest("a>b")
        assert self.queue.dropped == before + dropped
        assert self.queue.waiting <= LIMIT * 3 // 4

    @rule(count=st.integers(1, 5))
    def hear_of_a_gap(self, count):
        self.queue.note_gap("x>y", count)
        self.told_elsewhere += count

    @precondition(lambda self: self.queue.ready())
    @rule(taken=st.booleans())
    def send(self, taken):
        frame = self.queue.peek()
        assert self.queue.peek() == frame, "what was not taken is offered again"
        if taken:
            self.queue.sent()
            self.frames.append(frame)
            got, gaps = numbers(frame)
            self.got += got
            self.gaps += gaps

    @precondition(lambda self: self.queue.sent_total > self.queue.acked_total)
    @rule(share=st.integers(1, 4))
    def acknowledge(self, share):
        self.queue.acked_total += -(-(self.queue.sent_total - self.queue.acked_total) // share)

    @invariant()
    def nothing_is_invented_or_mixed_up(self):
        assert self.got == sorted(set(self.got))
        assert self.queue.sent_total == sum(map(len, self.frames))
        assert self.queue.waiting >= 0
        assert bool(self.queue.waiting) == bool(self.queue.batches)

    def teardown(self):
        """Everything that was put in has come out, or is counted in a gap."""
        self.queue.window = 1 << 62
        while self.queue.ready():
            self.send(taken=True)
        assert self.queue.waiting == 0
        assert len(self.got) + self.gaps["a>b"] == self.put
        assert self.gaps["a>b"] == self.queue.dropped
        assert self.gaps["x>y"] == self.told_elsewhere


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30)
TestQueue.__doc__ = "After any course, what came out and the gaps told make up what was put in, in order."


@given(st.lists(st.lists(st.integers(1, 40_000), min_size=1, max_size=5), max_size=20))
def test_a_batch_is_closed_at_its_limit(batches):
    """Envelopes share a frame up to a limit; what is put in together stays together (protocol 2.3)."""
    queue = Queue(1 << 40)
    largest = 0
    for sizes in batches:
        items = [part for size in sizes for part in envelope(0, size)]
        queue.add(items, weight(items))
        largest = max(largest, weight(items))
    while queue.ready():
        assert weight(decode_frame(queue.peek())) <= max(BATCH_BYTES, largest)
        queue.sent()


def test_small_envelopes_leave_together():
    """Many small envelopes cost one message."""
    queue = Queue(LIMIT)
    for number in range(100):
        queue.add(envelope(number), weight(envelope(number)))
    assert numbers(queue.peek())[0] == list(range(100))
    queue.sent()
    assert not queue.ready()


def test_a_large_frame_is_passed_on_as_it_came():
    """A frame of some size is not encoded again on its way."""
    queue = Queue(LIMIT)
    items = envelope(1, BATCH_BYTES // 2)
    frame = encode_frame(items)
    queue.add_frame(frame, items)
    assert queue.peek() is frame


def test_a_caller_s_list_is_its_own():
    """The list of elements may be changed after it was added."""
    queue = Queue(LIMIT)
    items = envelope(1)
    queue.add(items, weight(items))
    items[:] = envelope(2)
    assert numbers(queue.peek())[0] == [1]


def test_the_frame_that_crosses_the_window_is_sent():
    """A window that is open by a byte lets one frame pass, then nothing until there is credit (protocol 9.2)."""
    outbox = outbox_with(window=100)
    for number in range(2):
        outbox.stream.add(envelope(number, BATCH_BYTES), BATCH_BYTES)
    assert pump(outbox, Lane.STREAM) == [0]
    outbox.credit(outbox.stream.sent_total - 100, 0)
    assert pump(outbox, Lane.STREAM) == []
    outbox.credit(outbox.stream.sent_total - 99, 0)
    assert pump(outbox, Lane.STREAM) == [1]


def test_a_gap_is_told_before_what_follows():
    """The marker leaves before the events after the gap, also when a frame was already offered."""
    queue = Queue(LIMIT)
    queue.add(envelope(1), 10)
    queue.peek()
    queue.note_gap("a>b", 3)
    assert numbers(queue.peek()) == ([], {"a>b": 3})
    queue.sent()
    assert numbers(queue.peek())[0] == [1]


def test_the_places_of_gaps_are_bounded():
    """A peer that names ever new places fills no memory: later ones are told as elsewhere, with their count."""
    queue = Queue(LIMIT)
    for number in range(1000):
        queue.note_gap(f"a>{number}", 1)
    gaps = numbers(queue.peek())[1]
    assert len(gaps) == 65
    assert sum(gaps.values()) == 1000


def outbox_with(window):
    outbox = Outbox(control_limit=LIMIT, stream_limit=LIMIT, event_limit=LIMIT)
    outbox.set_window(window)
    return outbox


def pump(outbox, lane):
    """Send all that may leave; returns the numbers that left in `lane`."""
    sent = []
    while (queue := outbox.next()) is not None:
        if queue is outbox.lanes[lane]:
            sent += numbers(queue.peek())[0]
        else:
            queue.peek()
        queue.sent()
    return sent


def test_control_overtakes():
    """What waits in the control lane leaves first, and no window holds it (protocol 9.1)."""
    outbox = outbox_with(window=0)
    outbox.event.add(envelope(1), 10)
    outbox.stream.add(envelope(2), 10)
    outbox.control.add(local(Type.PING), 10)
    assert outbox.next() is outbox.control
    outbox.control.peek()
    outbox.control.sent()
    assert outbox.next() is None


@given(st.integers(1, 6), st.integers(1, 6))
def test_stream_and_events_take_turns(streams, events):
    """While both wait, neither lane sends twice in a row (protocol 9.1)."""
    outbox = outbox_with(window=1 << 40)
    for queue, count in ((outbox.stream, streams), (outbox.event, events)):
        for number in range(count):
            queue.add(envelope(number, BATCH_BYTES), BATCH_BYTES)
    order = []
    while (queue := outbox.next()) is not None:
        queue.peek()
        queue.sent()
        order.append(queue)
    both = 2 * min(streams, events)
    assert all(one is not two for one, two in pairwise(order[:both]))
    assert len(order) == streams + events


@given(st.lists(st.tuples(st.integers(-10, 500), st.integers(-10, 500))))
def test_credit_only_grows(credits_):
    """Totals that go back or beyond what was sent change nothing (protocol 9.2)."""
    outbox = outbox_with(window=1 << 40)
    for queue in (outbox.stream, outbox.event):
        queue.add(envelope(1, 100), 100)
        queue.peek()
        queue.sent()
    for stream, event in credits_:
        before = (outbox.stream.acked_total, outbox.event.acked_total)
        outbox.credit(stream, event)
        for queue, told, known in zip((outbox.stream, outbox.event), (stream, event), before, strict=True):
            assert queue.acked_total == (told if known <= told <= queue.sent_total else known)


def test_a_new_session_starts_empty():
    """After `clear` nothing of the old session is sent, and the window is whole again."""
    outbox = outbox_with(window=10)
    for queue in outbox.lanes:
        queue.add(envelope(1), 10)
        queue.add(envelope(2, BATCH_BYTES), BATCH_BYTES)
    pump(outbox, Lane.EVENT)
    outbox.event.note_gap("a>b", 1)
    outbox.clear()
    assert outbox.next() is None
    assert all(queue.sent_total == queue.acked_total == queue.waiting == 0 for queue in outbox.lanes)
