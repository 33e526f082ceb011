"""Event log: the last events of the tree in the order of their arrival, bounded in number and bytes. Pure."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from tsbus.core.events import Event
from tsbus.dashboard.views import EventRecord

MAX_EVENTS: Final = 10_000
MAX_BYTES: Final = 16 << 20
"""Of bodies."""


class EventLog:
    """A queue of events that forgets the oldest."""

    def __init__(self, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        """Bounds: so many events, and so many bytes of bodies."""
        self._max_events, self._max_bytes = max_events, max_bytes
        self._events: deque[EventRecord] = deque()
        self.bytes = 0
        """Of the bodies that are kept."""
        self.last = 0
        """Number of the newest event, kept or not."""

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[EventRecord]:
        return iter(self._events)

    @property
    def first(self) -> int:
        """Number of the oldest event that is kept; one more than `last` when none is."""
        return self._events[0].number if self._events else self.last + 1

    def take(self, event: Event, now_ms: int) -> EventRecord:
        """Append an event that arrived now; returns its record."""
        record = EventRecord(
            number=self.last + 1,
            topic=event.topic,
            node=event.origin,
            who=event.who,
            time_ms=event.time_ms,
            arrived_ms=now_ms,
            body=event.body,
            content=event.content,
        )
        self.append(record)
        return record

    def append(self, event: EventRecord) -> None:
        """Take the event with the number `last` + 1; the oldest go where there is no room."""
        self.last = event.number
        self._events.append(event)
        self.bytes += len(event.body)
        while self._events and (len(self._events) > self._max_events or self.bytes > self._max_bytes):
            self.bytes -= len(self._events.popleft().body)

    def since(self, number: int) -> tuple[list[EventRecord], int]:
        """Return the events after the one with `number`, and how many of them are not kept any more."""
        lost = max(self.first - number - 1, 0)
        # Numbers have no holes, so the place is known.
        return list(islice(self._events, max(number - self.first + 1, 0), None)), lost
