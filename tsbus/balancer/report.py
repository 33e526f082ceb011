"""Report: what the planner tells people and other nodes of its balancers, as frozen values. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

from tsbus.balancer.life import State
from tsbus.balancer.table import Address, Key


class Problem(NamedTuple):
    """Something that a person should know."""

    text: str
    mend: str
    note: bool = False
    """Nothing is wrong: it may be meant so."""


class Missing(NamedTuple):
    """A container or node that was meant to take part and cannot."""

    name: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerReport:
    """A real server."""

    id: str
    """The container's id, the node's name, "sorry", or '' for one that was found in the kernel."""
    name: str
    node: str
    address: Address
    state: State
    reason: str
    since: float
    """Monotonic seconds."""
    weight: int
    base: int
    rule: str
    """What let it in, in words."""
    connections: int | None
    """That are left while it drains, or were left when its time was over; None where they cannot be counted."""
    run: int = 0
    """When its container was started, by the engine's clock: the name of this run, not a time to compare."""


@dataclass(frozen=True, slots=True)
class Report:
    """A balancer."""

    name: str
    key: Key
    state: str
    """ok, empty, sorry, panic or waiting."""
    servers: tuple[ServerReport, ...] = ()
    left_out: tuple[Missing, ...] = ()
    problems: tuple[Problem, ...] = ()
    capacity: float = 0.0
    """What is alive here, for balancers above: in servers of weight 1, or of full weight where it follows the CPU."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something changed in a balancer."""

    topic: str
    """Without the `lb.` before it."""
    balancer: str
    cause: str
    server: ServerReport | None = None
    was: str = ""
    """The server's state before; empty for a new one."""
    weighed: int = 0
    """Its weight before."""
