"""Routing: for one route arriving from one side, where the envelope goes or why it is dropped (protocol 5, 7, 10).

Pure. The router asks once for each (connection, route bytes) and remembers the answer until the tree, the directory or
the interest changes.
"""

from dataclasses import dataclass

from tsbus.core.directory import HERE, UPWARD, Directory
from tsbus.core.interest import InterestTable, Local
from tsbus.core.message import Route
from tsbus.core.roles import Role
from tsbus.core.target import TargetError, resolve, unfold
from tsbus.core.topic import TopicError, check_topic
from tsbus.core.tree import Topology


@dataclass(frozen=True, slots=True)
class Paths:
    """Where copies go: over which links (their ways), to which local workers, and whether this node itself is meant."""

    ways: frozenset[str] = frozenset()
    workers: frozenset[int] = frozenset()
    here: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """Nowhere: the counter's name (protocol 12) and a sentence."""

    reason: str
    text: str = ""


class Routing:
    """The routing rules over the tables of one router."""

    def __init__(self, topology: Topology, directory: Directory, interest: InterestTable) -> None:
        self.topology = topology
        self.directory = directory
        self.interest = interest

    def origin_is_right(self, route: Route, way: str) -> bool:
        """Whether `route.origin` lies on the side that the envelope came from (protocol 12, misrouted)."""
        return route.origin in self.topology and self.directory.way(route.origin) == way

    def event(self, route: Route, way: str) -> Paths | Drop:
        """Where an event goes that came from `way` (HERE: from a local client)."""
        try:
            check_topic(route.topic)
            nodes = None if route.target == "*" else resolve(route.target, self.topology, route.origin)
        except (TopicError, TargetError) as error:
            return Drop("target", str(error))
        sides = None if nodes is None else {self.directory.way(node) for node in nodes}
        ways, workers = set(), set()
        for source in self.interest.match(route.topic):
            if isinstance(source, Local):
                if (sides is None or HERE in sides) and self._in_scope(route.origin, source):
                    workers.add(source.handle)
            elif source != way and (sides is None or source in sides):
                ways.add(source)
        if not ways and not workers:
            return Drop("no-interest")
        return Paths(frozenset(ways), frozenset(workers))

    def _in_scope(self, origin: str, source: Local) -> bool:
        if source.scope == "all":
            return True
        if source.scope == "node":
            return origin == self.directory.me
        return self.directory.way(origin) != UPWARD

    def resolve(self, target: str, origin: str) -> tuple[frozenset[str], frozenset[str]]:
        """Return all nodes of a target and those of them that can be reached. Raises TargetError."""
        nodes = resolve(target, self.topology, origin)
        return nodes, nodes & self.directory.reachable

    def explicit(self, target: str, way: str) -> Paths | Drop:
        """Where an envelope with an explicit folded set goes; never back where it came from (protocol 5.3)."""
        try:
            return self.split(unfold(target, self.topology), way)
        except TargetError as error:
            return Drop("target", str(error))

    def split(self, nodes: frozenset[str], way: str) -> Paths | Drop:
        """Divide an explicit set over the links and this node."""
        sides = {self.directory.way(node) for node in nodes & self.directory.reachable}
        paths = Paths(frozenset(sides - {HERE, way}), here=HERE in sides)
        return paths if paths.here or paths.ways else Drop("no-route", "no node of the target can be reached from here")

    def role(self, route: Route, granted: Role) -> Role:
        """The role that counts here for a request; `granted` is what policy gives a stranger (protocol 10.4)."""
        claimed = Role(max(0, min(route.role, Role.ADMIN)))
        if route.origin == self.directory.me or self.topology.is_ancestor(route.origin, self.directory.me):
            return claimed
        return min(claimed, max(Role.OBSERVE, granted))
