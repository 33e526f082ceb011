"""The pure tables of a whole tree, joined by links on which everything arrives at once."""

from tsbus.core.directory import UPWARD, Directory, NodeState
from tsbus.core.interest import InterestTable, Local
from tsbus.core.message import Entry
from tsbus.core.tree import Topology


class Neighbours:
    """One interest table for each node; `parent` says who is attached where, which may be to any ancestor."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.tables = {name: InterestTable() for name in topology.names}
        self.parent: dict[str, str] = {}
        self.wishes: dict[str, set[tuple[Local, str]]] = {name: set() for name in topology.names}

    def ways(self, name: str) -> dict[str, str]:
        """The ways of a node's links, and who is there."""
        found = {child: child for child, parent in self.parent.items() if parent == name}
        return found | ({UPWARD: self.parent[name]} if name in self.parent else {})

    def attach(self, child: str, parent: str) -> None:
        self.parent[child] = parent
        above, below = self.tables[parent], self.tables[child]
        down, up = above.open_link(child), below.open_link(UPWARD)
        for pattern in down:
            below.add(UPWARD, pattern)
        for pattern in up:
            above.add(child, pattern)
        self.settle()

    def lose(self, child: str) -> None:
        self.tables[self.parent.pop(child)].close_link(child)
        self.tables[child].close_link(UPWARD)
        self.settle()

    def settle(self) -> None:
        """Tell all changes until there are none."""
        while sum(self._tell(name) for name in self.tables):
            pass

    def _tell(self, name: str) -> bool:
        ways = self.ways(name)
        told = list(self.tables[name].changes(list(ways)))
        for way, change in told:
            other = self.tables[ways[way]]
            back = UPWARD if way == ways[way] else name
            for pattern in change.remove:
                assert other.remove(back, pattern), "only what was wanted ceases"
            for pattern in change.add:
                assert other.add(back, pattern), "nothing begins twice"
        return bool(told)

    def wanted(self, name: str, way: str) -> set[str]:
        """Protocol 7.2, spelled out: what everybody not behind this link of `name` wants over it."""
        scopes = ("all",) if way == UPWARD else ("all", "subtree")
        own = {pattern for local, pattern in self.wishes[name] if local.scope in scopes}
        others = (
            self.wanted(other, UPWARD if back == other else name)
            for back, other in self.ways(name).items()
            if back != way
        )
        return own.union(*others)

    def component(self, name: str) -> frozenset[str]:
        """Who is joined to `name`, itself included."""
        found = [name]
        for here in found:
            found += [other for other in self.ways(here).values() if other not in found]
        return frozenset(found)

    def below(self, name: str) -> frozenset[str]:
        """Who is attached at or below `name`."""
        found = [name]
        for here in found:
            found += [child for child, parent in self.parent.items() if parent == here]
        return frozenset(found)

    def directory(self, me: str) -> Directory:
        """The directory of a node that has heard everything."""
        directory = Directory(self.topology, me, 1, 1)
        directory.merge(self._entry(name) for name in self.topology.names if name != me)
        if me in self.parent:
            directory.attach(self.parent[me], "joined", 0)
        return directory

    def _entry(self, name: str) -> Entry:
        """A node is attached, or was to its own parent."""
        parent = self.topology.parent(name)
        state = NodeState.UP if name in self.parent or parent is None else NodeState.LOST
        return Entry(name, 2, 0, state, self.parent.get(name, parent or ""), 1, "joined", 0)
