"""Events as a client takes them: the event itself, where it goes, and the inbox of those who take it later. Pure.

`session.py` delivers them. What nobody has taken yet is not acknowledged, so the router sees who reads slowly.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from tsbus.core.body import Readable
from tsbus.core.message import EventMeta, Gap, Route, decode_meta


class Event(Readable, msgspec.Struct, frozen=True, gc=False):
    """An event as it arrived. What is in its meta is decoded when it is asked for."""

    route: Route
    meta: bytes
    body: bytes

    @property
    def topic(self) -> str:
        """What it is about."""
        return self.route.topic

    @property
    def origin(self) -> str:
        """The node where it was published."""
        return self.route.origin

    @property
    def who(self) -> str:
        """The author at that node, as its router vouches: `uid:1000`, `operator:alice` or `router`."""
        return self.route.who

    @property
    def role(self) -> int:
        """The author's role there."""
        return self.route.role

    @property
    def incarnation(self) -> int:
        """The number of the publisher's process start; with `seq` it names the event."""
        return self._about().incarnation

    @property
    def seq(self) -> int:
        """The publisher's count of its events, from 0."""
        return self._about().seq

    @property
    def time_ms(self) -> int:
        """The publisher's wall clock, Unix milliseconds; for people, nothing should be decided by it."""
        return self._about().time_ms

    @property
    def content(self) -> int:
        """What the body is: a code of protocol 2.7."""
        return self._about().content

    def _about(self) -> EventMeta:
        return decode_meta(EventMeta, self.meta)

    def _content(self) -> int:
        return self.content

    def _source(self) -> str:
        return f"event {self.topic} from {self.origin}"


class Share:
    """The bytes of one frame, acknowledged when every inbox has given its share back."""

    __slots__ = ("_consumed", "_left", "_size")

    def __init__(self, size: int, holders: int, consumed: Callable[[int], None]) -> None:
        self._size = size
        self._left = holders
        self._consumed = consumed

    def give_back(self) -> None:
        """One inbox has taken all its events of the frame."""
        self._left -= 1
        if not self._left:
            self._consumed(self._size)


class Inbox:
    """Events of one subscription that nobody has taken yet. They count against the window until they are taken.

    So what an idle reader keeps waiting here is bounded by the window, and the router sees that it is slow.
    """

    __slots__ = ("_items", "put", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._items: deque[Event | Gap | Share] = deque()
        self.put: Callable[[Event | Gap], None] = self._items.append
        self.wake = wake

    def take(self) -> Event | Gap | None:
        """Return the next event or gap, None when there is none."""
        items = self._items
        while items:
            item = items.popleft()
            if not isinstance(item, Share):
                return item
            item.give_back()
        return None

    def seal(self, share: Share) -> None:
        """Mark the end of a frame."""
        self._items.append(share)
        self.wake()

    def drain(self) -> None:
        """Throw away what waits."""
        while self.take() is not None:
            pass


@dataclass(slots=True, eq=False)
class Sink:
    """Where the events of one subscription go: to a callback, or into an inbox."""

    pattern: str
    scope: str
    put: Callable[[Event], object]
    gap: Callable[[Gap], None]
    inbox: Inbox | None = None
    number: int = 0
