"""What a contestant offers: servers joined as a tree, and client loops that do one thing per event.

A contestant's module holds a `Contestant` (servers, run by the harness) and the client classes named below, which
`bench.client` runs in processes of their own. A scenario needs nothing else, so TreeScale is one more module.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from bench.harness import Fleet

Tree = tuple[int | None, ...]  # the parent of each router, by index; the first one is the root
CHAIN: Tree = (None, 0, 1)
FAN: Tree = (None, 0, 0, 0, 0)


class Contestant(ABC):
    """The servers of one contestant. `name` is how the command line and the table call it."""

    name: ClassVar[str]
    can_ask: ClassVar[bool] = True  # has request and answer through the tree

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def start(self, fleet: Fleet, tree: Tree) -> None:
        """Start one `router N` process per node of the tree and return when all listen."""

    @abstractmethod
    def endpoint(self, router: int, kind: str) -> str:
        """Where a client of `router` connects; `kind` is Publisher, Subscriber, Requester or Answerer."""

    def hops(self, tree: Tree) -> int:
        """Routers that work on each event; a contestant that cannot form a tree says 1."""
        return len(tree)


class Publisher(Protocol):
    """Opened as `Publisher(endpoint, connections)`: that many independent publishers in this process."""

    def send(self, count: int, body: bytes) -> None:
        """Publish `count` events, one call each, in turn over the connections; return when they are handed over."""


class Subscriber(Protocol):
    """Opened as `Subscriber(endpoint, connections)`; each connection receives every event."""

    def receive(self, each: int, size: int, silence_s: float) -> int:
        """Handle events one by one until every connection had `each` more of `size` bytes, ignoring other sizes.

        Give up when nothing has come for `silence_s`. Return how many came, over all connections.
        """


class Requester(Protocol):
    """Opened as `Requester(endpoint)`."""

    def ask(self, seconds: float, body: bytes) -> list[float]:
        """Send requests one at a time for so long; return each round trip in seconds."""


class Answerer(Protocol):
    """Opened as `Answerer(endpoint)`; it is ready when the constructor returns."""

    def serve(self) -> None:
        """Answer each request with its own body, until killed."""


class Crowd(ABC):
    """Many nodes that are told to do something, as Salt or Serf do it."""

    name: ClassVar[str]

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def start(self, fleet: Fleet, nodes: int) -> None:
        """Start the nodes (role `node N`) and return when all answer."""

    @abstractmethod
    def operations(self) -> dict[str, Callable[[], float]]:
        """Name of each thing it can do -> do it once for all nodes, returning seconds."""


class Tally:
    """Counts arrivals by connection and size, for clients whose library calls back."""

    def __init__(self, connections: int) -> None:
        self._arrived: list[dict[int, int]] = [{} for _ in range(connections)]
        self._wanted: dict[int, int] = {}
        self._progress = (0, 0.0)

    def add(self, connection: int, size: int) -> None:
        counts = self._arrived[connection]
        counts[size] = counts.get(size, 0) + 1

    def want(self, each: int, size: int) -> None:
        self._wanted[size] = self._wanted.get(size, 0) + each
        self._progress = (-1, time.monotonic())

    def settled(self, size: int, silence_s: float) -> bool:
        """True when every connection has what was wanted, or when nothing has come for so long."""
        counts = [arrived.get(size, 0) for arrived in self._arrived]
        if min(counts) >= self._wanted[size]:
            return True
        if sum(counts) != self._progress[0]:
            self._progress = (sum(counts), time.monotonic())
        return time.monotonic() - self._progress[1] > silence_s

    def received(self, each: int, size: int) -> int:
        """Of the last `each` wanted, how many came, summed over the connections."""
        before = self._wanted[size] - each
        return sum(max(0, min(each, counts.get(size, 0) - before)) for counts in self._arrived)
