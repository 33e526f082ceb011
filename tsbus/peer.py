"""Connections and peers: what the transport and the router know of whoever is at the other end.

The transport makes a `Conn` for each connection and never looks at `peer`; the router puts its `Peer` there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol

from tsbus.core.directory import HERE
from tsbus.core.lanes import Outbox
from tsbus.core.liveness import Liveness
from tsbus.core.message import Lane, Route
from tsbus.core.roles import Role


class ConnKind(Enum):
    """How a connection came to be (protocol 1)."""

    DIAL = auto()
    """This router dialled a node below."""
    TCP = auto()
    """Somebody with an accepted key connected to the service port."""
    LOCAL = auto()
    """A process on this machine connected to the ipc socket."""


@dataclass(slots=True, eq=False)
class Conn:
    """One connection. `name`: DIAL the node dialled; TCP the key's name, "node:NAME" or "operator:NAME"."""

    kind: ConnKind
    name: str = ""
    key: str = ""
    """The public key that the other end has proved to have; empty for LOCAL."""
    uid: int = -1
    gid: int = -1
    pid: int = -1
    malformed: int = 0
    peer: "Peer | None" = None


class Transport(Protocol):
    """What a router needs from the world of sockets; `tsbus.transport` and `tsbus.testing` provide it.

    It calls `connected` (DIAL only, after the security handshake), `received` and `disconnected` of the router.
    """

    def send(self, conn: Conn, frame: bytes) -> bool:
        """Hand over one frame; False if the connection takes no more now. Never blocks."""

    def set_dials(self, nodes: frozenset[str]) -> None:
        """Dial exactly these nodes from now on; connections to others end (without a call of `disconnected`)."""

    def close(self, conn: Conn) -> None:
        """End a connection (without a call of `disconnected`). One that was dialled is dialled again after a while."""


class Clock(Protocol):
    """Time, passed in."""

    def monotonic_ms(self) -> float:
        """Milliseconds that only go forward: for everything that is decided."""

    def wall_ms(self) -> int:
        """Unix milliseconds: for people."""


class PeerKind(Enum):
    """What a peer may send depends on this (the table ACCESS in router.py)."""

    NEW = auto()
    """No handshake yet."""
    CHILD = auto()
    PARENT = auto()
    WORKER = auto()
    OPERATOR = auto()


LINKS: Final = (PeerKind.CHILD, PeerKind.PARENT)
CLIENTS: Final = (PeerKind.WORKER, PeerKind.OPERATOR)
"""Processes on this machine, and consoles."""


Handler = Callable[["Peer", "Decision", bytes, bytes, bytes], None]
"""Called with the arriving peer, the decision, and route, meta and body of one envelope."""


@dataclass(slots=True, eq=False)
class Decision:
    """What to do with all envelopes of one route from one peer: pass copies on to `outs`, or call `handle`."""

    lane: Lane
    route: Route
    outs: "tuple[Peer, ...]" = ()
    handle: Handler | None = None
    reason: str = ""
    """Why it is dropped, when there are neither."""
    extra: object = None
    """What `handle` worked out once for this route."""
    weight: int = 0
    """Bytes, about, that it takes to remember `extra`."""


@dataclass(slots=True, eq=False)
class Peer:
    """The other end of a connection, as the router knows it."""

    conn: Conn
    kind: PeerKind
    name: str
    outbox: Outbox
    way: str = HERE
    who: str = ""
    role: Role = Role.NONE
    handle: int = 0
    live: Liveness | None = None
    incarnation: int = 0
    cache: dict[bytes, Decision] = field(default_factory=dict)
    cached_bytes: int = 0
    services: dict[str, int] = field(default_factory=dict)
    """Served commands, "service.command", and the role each requires."""
    watches: dict[int, tuple[str, bool]] = field(default_factory=dict)
    subscriptions: int = 0
    stream_in: int = 0
    event_in: int = 0
    stream_acked: int = 0
    event_acked: int = 0
    window: int = 0
    """Bytes of one lane that it may send before they are acknowledged (protocol 9.2)."""
    blockers: "set[Peer]" = field(default_factory=set)
    """Peers whose full queues hold back the acknowledgement of this one's events (protocol 9.3)."""
    stream_blockers: "set[Peer]" = field(default_factory=set)
    """Links whose full queues hold back the acknowledgement of this client's answers and input."""
    over_since: float | None = None
    """Since when its event queue is over half its bound, or moved half of it again."""
    over_from: int = 0
    """How many bytes of events had been sent to it then."""
    slow: bool = False
    frames_in: int = 0
    frames_out: int = 0
    envelopes_in: int = 0
    since_ms: int = 0
    ping_sent: float = 0.0
    gone: bool = False
