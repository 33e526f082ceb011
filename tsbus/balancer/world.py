"""World: what the planner is told of the world at one moment, as frozen values. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tsbus.balancer.table import IP, Key
from tsbus.balancer.table import Address as Place
from tsbus.config.address import Address
from tsbus.records import Container

Picture = Literal["unknown", "absent", "complete", "stale", "down"]
"""What is known of a node's containers: nothing yet, no monitor runs there, all, what was last known, what was last
known before its engine went down."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node: this one, or one below."""

    up: bool = False
    """Whether the links to it are there."""
    picture: Picture = "unknown"
    ips: tuple[IP, ...] = ()
    """Where this node reaches it: its configured address, a host name resolved."""
    containers: Mapping[str, Container] = field(default_factory=dict)
    """By id."""


class Capacity(NamedTuple):
    """What another node says is alive behind one of its balancers."""

    listens: tuple[Address, ...]
    protocol: str
    value: float
    """In servers of weight 1, or of full weight where weights follow the CPU."""


@dataclass(frozen=True, slots=True)
class Override:
    """What an operator has set for a server; it outlives the balancer's process."""

    server: str
    """A container's id, or a node's name."""
    balancer: str = ""
    """Empty: in all of them."""
    drain: bool = False
    weight: int | None = None
    """None: as configured."""
    by: str = ""
    """Who, for people."""
    made_ns: int = 0
    once: bool = False
    """It ends with the run of the container."""
    run: int = 0
    """With `once`: that run, as `ServerReport.run` names it."""
    node: str = ""
    """Of the container; empty where a node is set."""
    until_ns: int = 0
    """It ends then; 0: it does not."""


class Reading(NamedTuple):
    """How many connections to a real server were not over (neither TIME_WAIT nor CLOSE), and when that was counted."""

    at: float
    connections: int


class Run(NamedTuple):
    """A run of a container of this node."""

    pid: int
    """Of its first process."""
    started_ns: int


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a plan depends on, beside the configuration."""

    now: float
    """Monotonic seconds."""
    time_ns: int
    """Unix nanoseconds, for comparison with the times that engines tell."""
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    """By name: this node and all below it, also those that are not up."""
    capacities: Mapping[str, tuple[Capacity, ...]] = field(default_factory=dict)
    """By node. Missing: it has not said anything yet."""
    overrides: tuple[Override, ...] = ()
    """When two fit a server, the later one counts."""
    readings: Mapping[tuple[Key, Place], Reading] = field(default_factory=dict)
    """Of the servers in `Plan.watched`."""
    headroom: Mapping[str, float] = field(default_factory=dict)
    """By container id or node name: the free share of its CPU, 0 to 1; needed with `weights = "cpu"` only."""
    dead: frozenset[str] = frozenset()
    """Ids of containers of this node whose process has ended, as the kernel says (a pidfd); the engine may not."""
