"""Shared: what the sockets of one router have in common, those it binds (listener.py) and those it dials (dial.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import zmq

from tsbus.peer import Clock, Conn
from tsbus.transport.keys import Curve
from tsbus.transport.poller import Poller

LAST_WORDS_MS = 200
"""So long has what was sent to leave, BYE above all, before a connection is ended."""
ROUND_FRAMES = 64
"""A socket is read for so many frames in one round, or options.ROUND_BYTES, then the others have their turn."""


class Sink(Protocol):
    """What the transport calls: a router."""

    def connected(self, conn: Conn) -> None:
        """A node that is dialled has answered, and its key is right."""

    def received(self, conn: Conn, frame: bytes) -> None:
        """A frame came; the first of a connection that others made is the first that is heard of it."""

    def disconnected(self, conn: Conn, cause: str = "closed") -> None:
        """A connection ended."""

    def key_refused(self) -> None:
        """A stranger was turned away."""


class Home(Protocol):
    """Who has the socket of a connection."""

    def send(self, conn: Conn, frame: bytes) -> bool:
        """See peer.Transport."""

    def close_one(self, conn: Conn) -> None:
        """See peer.Transport.close."""


Addresses = Mapping[str, tuple[str, tuple[str, ...]]]
"""Node -> its address, and its keys."""


@dataclass(slots=True)
class Shared:
    """See the module."""

    context: "zmq.Context[Any]"
    clock: Clock
    heartbeat: tuple[int, int]
    """Milliseconds between two beats, and until a silent connection counts as dead."""
    keys: Curve | None
    allowed: dict[str, str]
    """Public key -> name."""
    addresses: dict[str, tuple[str, tuple[str, ...]]]
    poller: Poller = field(default_factory=Poller)
    homes: dict[Conn, Home] = field(default_factory=dict)
    undialled: bool = False
    """Whether a dial waits for its time."""
    sink: Sink = field(init=False)
