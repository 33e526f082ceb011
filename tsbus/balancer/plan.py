"""Plan: what the kernel should balance, from the configuration and what is known of the world. Pure.

A `Planner` remembers what a plan needs of the ones before: since when a server drains, which weight it has. World in,
plan out; the service gathers the world, has steps.py find the way to the wanted table, and carries it out.
"""

import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from tsbus.balancer.members import Members
from tsbus.balancer.pool import ServerPool, virtual
from tsbus.balancer.report import Event, Problem, Report
from tsbus.balancer.sight import Sight
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Entry, Key, Mark, Protocol, Virtual
from tsbus.balancer.world import NodeView, Override, World
from tsbus.config import Balancer, Tree

PATIENCE_S: Final = 10.0
"""How long the first plan waits for nodes below."""
_MARKS: Final = 0x5453_0000
"""Where our firewall marks begin ("TS"); the kernel compares whole marks, so they are far from those of others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one moment asks for."""

    wanted: Mapping[Key, Pool] | None
    """None: too little is known yet, and nothing may be changed."""
    reports: tuple[Report, ...]
    """Of every balancer, as `lb.show` tells it."""
    events: tuple[Event, ...] = ()
    wake: float | None = None
    """When the next plan is due although nothing happened."""
    watched: tuple[tuple[Key, Address], ...] = ()
    """Servers whose connections must be counted until the next plan, at least once a second."""
    spent: tuple[Override, ...] = ()
    """Overrides that are over, to be forgotten."""
    problems: tuple[Problem, ...] = ()
    """Of the node as a whole."""


@dataclass(slots=True)
class Planner:
    """The balancers of one node. `found` is what of the kernel's table is ours at the start."""

    tree: Tree
    node: str
    found: Mapping[Key, Entry]
    started: float
    """Monotonic seconds."""
    _pools: dict[str, ServerPool] = field(default_factory=dict)
    _sight: Sight = field(default_factory=Sight)
    _begun: bool = False

    def __post_init__(self) -> None:
        self.configure(self.tree)

    def configure(self, tree: Tree) -> None:
        """Take a new configuration; servers that stay keep their states."""
        self.tree = tree
        topology = tree.topology()
        below = topology.subtree(self.node)
        balancers = tree.servers[self.node].balancers
        keys = keys_of(balancers)
        pools = {}
        for name, balancer in balancers.items():
            pool = self._pools.get(name) or ServerPool(self.node, None if self._begun else self.found.get(keys[name]))
            servers = {
                each: sorted(below & (topology.tagged(each[1:]) if each[0] == "@" else {each}))
                for each in balancer.servers
            }
            nodes = below if balancer.subtree else frozenset({self.node})
            pool.configure(balancer, keys[name], Members(self.node, balancer, nodes, servers, tree))
            pools[name] = pool
        self._pools, self._sight = pools, Sight()  # to the new members everything is news

    def plan(self, world: World) -> Plan:
        """Return what should be now."""
        missing = () if self._begun else tuple(self._missing(world))
        if missing:
            reports = tuple(Report(name, pool.key, "waiting", problems=missing) for name, pool in self._pools.items())
            return Plan(None, reports, wake=self.started + PATIENCE_S, problems=missing)
        self._begun = True
        spent: set[Override] = set()
        news = self._sight.look(world)
        for pool in self._pools.values():
            pool.plan(world, news, spent)
        spent |= {each for each in world.overrides if _is_over(each, world)}
        pools = self._pools.values()
        wakes = [wake for pool in pools if (wake := pool.wake) is not None]
        return Plan(
            wanted={pool.key: pool.pool for pool in pools},
            reports=tuple(pool.report for pool in pools),
            events=tuple(event for pool in pools for event in pool.events),
            wake=min((wake for wake in wakes if wake > world.now), default=None),
            watched=tuple((pool.key, address) for pool in pools for address in pool.watched()),
            spent=tuple(each for each in world.overrides if each in spent),
        )

    def _missing(self, world: World) -> list[Problem]:
        """Return what the first plan still waits for."""
        over = world.now >= self.started + PATIENCE_S
        here = world.nodes.get(self.node, NodeView())
        found = []
        if here.picture == "unknown" or (here.picture == "absent" and self._monitored and not over):
            mend = "start the container monitor, or set enabled = false in [docker] if there is none"
            found.append(Problem("the containers of this node are not known yet", mend))
        waits = {name for pool in self._pools.values() for name in pool.members.silent(world)}
        mend = f"nothing to do: it is waited for {PATIENCE_S:g} s"
        found += [Problem(f"{name} has not told yet what runs there", mend) for name in sorted(waits) if not over]
        return found

    @property
    def _monitored(self) -> bool:
        return self.tree.docker_for(self.node).enabled


def _is_over(override: Override, world: World) -> bool:
    """Tell whether its time has passed, or its container is destroyed: an id never comes back."""
    if override.until_ns and override.until_ns <= world.time_ns:
        return True
    view = world.nodes.get(override.node, NodeView())
    return view.picture == "complete" and override.server not in view.containers


def keys_of(balancers: Mapping[str, Balancer]) -> dict[str, Key]:
    """Return what the kernel knows each balancer by: one with several addresses or ports gets a mark of its own."""
    keys: dict[str, Key] = {}
    for name, balancer in balancers.items():
        key: Key | None = virtual(balancer)
        number = _mark(name)
        while key is None or key in keys.values():
            key, number = Mark(number, 4 if balancer.listens[0].family == 4 else 6), number + 1
        keys[name] = key
    return keys


class Named(Container[Key]):
    """The services that balancers may have in a kernel, also those of an earlier configuration.

    These are at one of their addresses, or have the mark that one of their names gives.
    """

    def __init__(self, balancers: Mapping[str, Balancer]) -> None:
        self._keys = {*keys_of(balancers).values()}
        self._marks = {*map(_mark, balancers)}
        self._places = {
            (Protocol[each.protocol.upper()], ip_address(listen.ip), range(listen.first, listen.last + 1))
            for each in balancers.values()
            for listen in each.listens
        }

    def __contains__(self, key: object) -> bool:
        match key:
            case Virtual(protocol, ip, port):
                return any((protocol, ip) == place[:2] and port in place[2] for place in self._places)
            case Mark(number):
                return number in self._marks or key in self._keys
        return False


def _mark(name: str) -> int:
    """Return the number of a balancer's mark, if no other one has it."""
    return _MARKS | (zlib.crc32(name.encode()) & 0xFFFF)
