"""Outgoing lanes of one connection: byte-bounded queues that batch, and the window of unacknowledged bytes.

Pure. The router has one `Outbox` for each peer, a client one for its router; both put envelopes in, and hand the frames
of the `next` queue to the transport. Protocol sections 2.3 and 9.
"""

from collections import deque
from dataclasses import dataclass, field

from tsbus.core.message import BATCH_BYTES, Gap, Lane, Type, encode_frame, local

_MAX_GAP = (1 << 53) - 1
"""The largest count that a gap marker can tell."""


@dataclass(slots=True)
class _Batch:
    """Envelopes that leave together: elements, or a frame that is passed on as it came, or both of the same."""

    items: list[bytes]
    frame: bytes | None
    size: int
    count: int
    gaps: dict[str, int] | None = None
    """What a frame of gap markers tells, in case that it is dropped itself."""


@dataclass(slots=True)
class Queue:
    """One lane: batches in order, bounded in bytes by whoever fills it."""

    limit: int
    batches: deque[_Batch] = field(default_factory=deque)
    waiting: int = 0
    sent_total: int = 0
    acked_total: int = 0
    window: int = 1 << 62
    dropped: int = 0
    gaps: dict[str, int] = field(default_factory=dict)

    def add(self, items: list[bytes], size: int) -> None:
        """Append whole envelopes `[route, meta, body, ...]` of `size` bytes in all. The list is not kept."""
        self.waiting += size
        batches = self.batches
        if batches:
            last = batches[-1]
            if last.items and last.size + size <= BATCH_BYTES:
                last.frame = None
                last.items += items
                last.size += size
                last.count += len(items) // 3
                return
        batches.append(_Batch(items[:], None, size, len(items) // 3))

    def add_frame(self, frame: bytes, items: list[bytes]) -> None:
        """Append a frame whose elements are `items`; it is encoded again only if it is small and joins others."""
        size = len(frame)
        is_small = size < BATCH_BYTES // 4
        if is_small and self.batches:
            self.add(items, size)
            return
        self.waiting += size
        self.batches.append(_Batch(items[:] if is_small else [], frame, size, len(items) // 3))

    def drop_oldest(self, at: str) -> int:
        """Drop whole batches until the queue is within three quarters of its limit; leave a gap marker.

        `at` names the place for the marker, "node>peer". Returns how many envelopes were dropped.
        """
        dropped = 0
        while self.batches and self.waiting > self.limit * 3 // 4:
            batch = self.batches.popleft()
            self.waiting -= batch.size
            dropped += batch.count
            for place, count in (batch.gaps or {}).items():
                self.note_gap(place, count)
        self.note_gap(at, dropped)
        self.dropped += dropped
        return dropped

    def note_gap(self, at: str, count: int) -> None:
        """Tell the receiver, before what follows, that `count` events were dropped at `at`."""
        if count:
            if at not in self.gaps and len(self.gaps) >= 64:
                at = "elsewhere"
            self.gaps[at] = min(self.gaps.get(at, 0) + count, _MAX_GAP)

    @property
    def crowded(self) -> bool:
        """Whether it is more than half full."""
        return self.waiting > self.limit // 2

    @property
    def filling(self) -> bool:
        """Whether it is more than three quarters full: what is left is for what must not be dropped."""
        return self.waiting > self.limit * 3 // 4

    def ready(self) -> bool:
        """Whether something waits and the window is open."""
        return bool(self.batches or self.gaps) and self.sent_total - self.acked_total < self.window

    def peek(self) -> bytes:
        """Return the next frame; it stays until `sent`. Only when `ready`."""
        if self.gaps:
            items = [part for at, count in self.gaps.items() for part in local(Type.GAP, Gap(count, at))]
            frame = encode_frame(items)
            self.batches.appendleft(_Batch([], frame, len(frame), 0, self.gaps))
            self.gaps = {}
            self.waiting += len(frame)
        batch = self.batches[0]
        if batch.frame is None:
            batch.frame = encode_frame(batch.items)
        batch.items = []
        return batch.frame

    def sent(self) -> None:
        """Forget the frame that `peek` returned: the transport has it."""
        batch = self.batches.popleft()
        self.waiting -= batch.size
        self.sent_total += len(batch.frame or b"")

    def clear(self) -> None:
        """Forget everything, counters of the connection too: a new session starts."""
        self.batches.clear()
        self.gaps.clear()
        self.waiting = self.sent_total = self.acked_total = 0


class Outbox:
    """The three lanes towards one peer."""

    __slots__ = ("control", "event", "lanes", "stream", "turn")

    def __init__(self, *, control_limit: int, stream_limit: int, event_limit: int) -> None:
        """Limits are bytes; the owner decides what a breach means (protocol 9.5)."""
        self.control = Queue(control_limit)
        self.stream = Queue(stream_limit)
        self.event = Queue(event_limit)
        self.lanes = (self.control, self.stream, self.event)
        self.turn = Lane.STREAM

    def next(self) -> Queue | None:
        """Return the queue whose frame should leave now: control first, then stream and event in turn."""
        if self.control.batches:
            return self.control
        first, second = (self.stream, self.event) if self.turn is Lane.STREAM else (self.event, self.stream)
        if first.ready():
            self.turn = Lane.EVENT if first is self.stream else Lane.STREAM
            return first
        return second if second.ready() else None

    def set_window(self, window: int) -> None:
        """Set how many unacknowledged bytes the peer allows in each of stream and event."""
        self.stream.window = self.event.window = window

    def credit(self, stream_total: int, event_total: int) -> None:
        """Take the peer's CREDIT; totals that go backwards or beyond what was sent are ignored."""
        for queue, total in ((self.stream, stream_total), (self.event, event_total)):
            if queue.acked_total <= total <= queue.sent_total:
                queue.acked_total = total

    def clear(self) -> None:
        """Start a new session: nothing of the old one is sent (protocol 1.4, IMMEDIATE)."""
        for queue in self.lanes:
            queue.clear()
