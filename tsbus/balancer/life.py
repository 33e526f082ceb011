"""Life: the states of one real server, and what moves it from one to the next. Pure. docs/balancer.md explains them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from tsbus.balancer.table import Address


class State(StrEnum):
    """Of a real server in one balancer."""

    JOINING = "joining"
    ACTIVE = "active"
    OUT = "out"
    DRAINING = "draining"
    REMOVED = "removed"
    KEPT = "kept"


IN_TABLE: Final = (State.ACTIVE, State.OUT, State.DRAINING, State.KEPT)
"""The kernel has a server in these states."""


class Kind(StrEnum):
    """What the facts say of a server."""

    SERVE = "serve"
    WAIT = "wait"
    """It is not ready yet, or is to get no new connections for a while."""
    LOST = "lost"
    """It could serve, but the link to its node is lost."""
    DRAIN = "drain"
    KEEP = "keep"
    """Nothing is known: it stays as it is, or as it was found in the kernel."""


class Wish(NamedTuple):
    """What the facts say of a server, and why."""

    kind: Kind
    reason: str = ""


class ServerId(NamedTuple):
    """What a server is: another address, or another container at this address, is another server."""

    id: str
    """The container's id, the node's name, "sorry", or '' for one that was found in the kernel."""
    address: Address


@dataclass(slots=True)
class Server:
    """A real server as the planner remembers it."""

    id: ServerId
    name: str
    node: str
    container: bool = False
    rule: str = ""
    base: int = 1
    capacity: float | None = None
    """What is alive behind it, where its node tells."""
    awaited: bool = False
    """Its node has not told yet, and will: its weight stays."""
    run: int = 0
    """When its container was started, by the engine's clock."""
    ready_at: float = 0.0
    """Until then it has its grace."""
    state: State | None = None
    """None: new."""
    reason: str = ""
    kind: Kind | None = None
    """The wish that it follows."""
    since: float = 0.0
    """Since when it is in this state for this kind of wish."""
    weight: int = 0
    """What it has in the table."""
    weighed: tuple[int, float] = (0, float("-inf"))
    """For weights that follow the CPU: for which base, and when it last moved."""
    cut: bool = False
    """Its link was lost, and its node has not told since what is there."""
    connections: int | None = None
    """Those that were left at the last reading while it drains."""

    @property
    def in_table(self) -> bool:
        """Whether the kernel has it."""
        return self.state in IN_TABLE

    def follow(self, wish: Wish, now: float) -> None:
        """Go to the state that the wish asks for."""
        state = NEXT[wish.kind][self.state]
        same = (state, wish.kind) == (self.state, self.kind)
        if not same:
            self.since, self.connections = now, None
        if not (same and state is State.REMOVED):  # how it ended says more
            self.reason = wish.reason
        self.state, self.kind = state, wish.kind

    def end(self, reason: str, now: float) -> None:
        """Leave the table, for as long as the wish is the same."""
        self.state, self.reason, self.since, self.connections = State.REMOVED, reason, now, None


_J, _A, _O, _D, _R, _K = State
NEXT: dict[Kind, dict[State | None, State]] = {
    Kind.SERVE: {None: _A, _J: _A, _A: _A, _O: _A, _D: _A, _R: _A, _K: _A},
    Kind.WAIT: {None: _J, _J: _J, _A: _O, _O: _O, _D: _O, _R: _J, _K: _O},
    Kind.LOST: {None: _R, _J: _R, _A: _O, _O: _O, _D: _O, _R: _R, _K: _O},
    Kind.DRAIN: {None: _R, _J: _R, _A: _D, _O: _D, _D: _D, _R: _R, _K: _D},
    Kind.KEEP: {_J: _J, _A: _A, _O: _O, _D: _D, _R: _R, _K: _K},
}
"""Wish -> state -> next state. That time and connections end a drain or a hold comes on top, in plan.py."""
