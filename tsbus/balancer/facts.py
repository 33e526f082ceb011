"""Facts: what the bus and the operators have told until now, put together into the planner's world. No sockets."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from tsbus.balancer.life import State
from tsbus.balancer.match import RUNNING
from tsbus.balancer.report import Report
from tsbus.balancer.table import IP, Address, Key
from tsbus.balancer.weights import headroom
from tsbus.balancer.world import Capacity, NodeView, Override, Picture, Reading, Run, World
from tsbus.config import Tree
from tsbus.config.address import parse_address
from tsbus.lb_records import CapacityEvent
from tsbus.mirror import Mirror
from tsbus.mirror import NodeView as Seen
from tsbus.records import StatsEvent

_ID_DIGITS = 12
"""Of the ids in statistics."""


@dataclass(slots=True)
class Facts:
    """What is known to the balancers of `node`."""

    tree: Tree
    node: str
    mirror: Mirror = field(default_factory=Mirror)
    overrides: tuple[Override, ...] = ()
    ips: dict[str, tuple[IP, ...]] = field(default_factory=dict)
    """By node: its address, or what its host name was resolved to."""
    readings: dict[tuple[Key, Address], Reading] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()
    """This node and all below."""
    named: set[str] = field(default_factory=set)
    """Nodes that the configuration gives a host name, not an address."""
    _capacities: dict[str, tuple[Capacity, ...]] = field(default_factory=dict)
    _percent: dict[str, dict[str, float]] = field(default_factory=dict)
    """Node -> id -> percent of one core."""
    _machines: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Node -> percent of one core, and how many it has."""
    _ended: dict[str, Run] = field(default_factory=dict)
    """Runs of containers of this node that are over, as the kernel says."""
    _runs: dict[str, dict[str, Run]] = field(default_factory=dict)
    """By balancer: those of containers of this node that are in its table."""

    def __post_init__(self) -> None:
        self.nodes = self.tree.topology().subtree(self.node)
        for name in self.nodes:
            try:
                self.ips[name] = (ip_address(self.tree.servers[name].ip),)
            except ValueError:
                self.named.add(name)

    @property
    def unresolved(self) -> list[str]:
        """Nodes whose host name has no address yet."""
        return [name for name in self.named if name not in self.ips]

    def resolved(self, node: str, ips: Iterable[str]) -> None:
        """The addresses of a node that has a host name are known."""
        self.ips[node] = tuple(dict.fromkeys(map(ip_address, ips)))

    def told_capacity(self, node: str, told: CapacityEvent) -> None:
        """A node below has told what is alive behind its balancers. Raises ValueError when it makes no sense."""
        if node != told.node or node not in self.nodes:
            return
        self._capacities[node] = tuple(
            Capacity(tuple(map(parse_address, each.addresses)), each.protocol, each.capacity)
            for each in told.balancers.values()
        )

    def told_stats(self, node: str, told: StatsEvent) -> None:
        """A node has told what it and its containers use of the CPU."""
        if node != told.node or node not in self.nodes:
            return
        known = {} if told.full else self._percent.get(node, {})
        gone = set(told.gone)
        self._percent[node] = {id_: used for id_, used in known.items() if id_ not in gone} | {
            id_: one.cpu for id_, one in told.samples.items()
        }
        if told.cpus:
            self._machines[node] = (told.cpu, told.cpus)

    def died(self, id_: str, run: Run) -> None:
        """The first process of a container of this node has ended."""
        self._ended[id_] = run

    def runs(self, changed: Iterable[Report]) -> dict[str, Run]:
        """Return the containers of this node that are in a table, with their runs, after these reports have changed."""
        for report in changed:
            here = (each.id for each in report.servers if each.node == self.node and each.state is not State.REMOVED)
            self._runs[report.name] = {id_: run for id_ in here if (run := self._run(id_)) is not None}
        return {id_: run for runs in self._runs.values() for id_, run in runs.items()}

    def world(self, now: float, time_ns: int) -> World:
        """Return the world of this moment."""
        self._ended = {id_: run for id_, run in self._ended.items() if self._run(id_) == run}
        return World(
            now,
            time_ns,
            {name: self._node(name) for name in self.nodes},
            dict(self._capacities),
            self.overrides,
            dict(self.readings),
            dict(self._headroom()),
            frozenset(self._ended),
        )

    def watch(self, watched: Collection[tuple[Key, Address]]) -> None:
        """Forget the readings of servers that need not be counted any more."""
        self.readings = {each: reading for each, reading in self.readings.items() if each in watched}

    def _node(self, name: str) -> NodeView:
        seen = self.mirror.nodes.get(name)
        ips = self.ips.get(name, ())
        if not self.tree.docker_for(name).enabled:
            return NodeView(name == self.node or seen is None or not seen.lost, "absent", ips)
        if seen is None:
            return NodeView(name == self.node, "unknown", ips)
        return NodeView(name == self.node or not seen.lost, _picture(seen), ips, seen.containers)

    def _run(self, id_: str) -> Run | None:
        seen = self.mirror.nodes.get(self.node)
        one = seen.containers.get(id_) if seen else None
        return Run(one.pid, one.started_ns) if one and one.pid and one.state in RUNNING else None

    def _headroom(self) -> Mapping[str, float]:
        found = {node: headroom(used, 0, cores) for node, (used, cores) in self._machines.items()}
        for node, percents in self._percent.items():
            seen = self.mirror.nodes.get(node)
            if seen is None:
                continue
            cores = seen.engine.cpus if seen.engine else 0
            for id_, one in seen.containers.items():
                if (used := percents.get(id_[:_ID_DIGITS])) is not None:
                    found[id_] = headroom(used, one.cpus, cores)
        return found


def _picture(seen: Seen) -> Picture:
    if seen.complete:
        return "complete" if seen.engine is not None and seen.engine.up else "down"
    if seen.epoch:
        return "stale"
    return "absent" if seen.absent else "unknown"
