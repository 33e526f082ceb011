"""The directory: what this router knows of every node, and what follows from it (protocol section 6).

Entries merge by their version alone, so the order in which routers hear of changes does not matter. Everything else
(who can be reached, through which link) is derived from the entries when it is asked for.
"""

from collections.abc import Iterable
from enum import IntEnum

import msgspec

from tsbus.core.message import Entry
from tsbus.core.tree import Topology


class NodeState(IntEnum):
    """States of a link's lower end (protocol 6.1)."""

    UP = 1
    TORPID = 2
    LOST = 3


UPWARD = "^"
"""The way to everything that is not below this node: through the parent link."""
HERE = "."
"""The way to this node itself."""


def version(entry: Entry) -> tuple[int, int, int, str, int, str, int]:
    """Return what decides between two entries of a node: the larger wins (protocol 6.2)."""
    return (entry.epoch, entry.rev, entry.state, entry.parent, entry.incarnation, entry.cause, entry.time_ms)


class Directory:
    """The entries of all configured nodes, seen from the node `me`."""

    def __init__(self, topology: Topology, me: str, incarnation: int, start_ms: int) -> None:
        """`start_ms`: wall clock in Unix milliseconds at process start, the first epoch of `me` (protocol 6.2)."""
        self.topology = topology
        self.me = me
        self.entries: dict[str, Entry] = {
            name: Entry(name, 0, 0, NodeState.LOST, topology.parent(name) or "", 0, "never", 0)
            for name in topology.names
        }
        self.entries[me] = Entry(me, start_ms, 0, NodeState.UP, "", incarnation, "joined", start_ms)
        self._ways: dict[str, str] | None = None
        self._reachable: frozenset[str] | None = None

    def merge(self, entries: Iterable[Entry]) -> list[Entry]:
        """Take entries of another router; return those that told something new, to be passed on.

        A node chooses its own epochs: if others know a later one of `me`, or the same of another process (this one
        restarted and the wall clock went back), `me` outbids it. Within an epoch, the parent end's word is taken over.
        """
        news = []
        for entry in entries:
            if not self.is_news(entry):
                continue
            known = self.entries[entry.node]
            if entry.node == self.me and (entry.epoch, entry.incarnation) != (known.epoch, known.incarnation):
                entry = msgspec.structs.replace(known, epoch=entry.epoch + 1, rev=0)
            news.append(self._put(entry))
        return news

    def is_news(self, entry: Entry) -> bool:
        """Whether `entry` is of a node of the tree and beats what is known of it."""
        known = self.entries.get(entry.node)
        return known is not None and version(entry) > version(known)

    def attach(self, parent: str, cause: str, now_ms: int) -> Entry:
        """`me` accepts `parent` ("" for none): a new epoch begins (protocol 6.2)."""
        own = self.entries[self.me]
        entry = Entry(self.me, own.epoch + 1, 0, NodeState.UP, parent, own.incarnation, cause, now_ms)
        return self._put(entry)

    def change(self, node: str, state: NodeState, cause: str, now_ms: int) -> Entry | None:
        """The parent end of a link (or `me`, of its own parent link) notes a new state; None if it is no change."""
        known = self.entries[node]
        if known.state == state or (known.state == NodeState.LOST and state == NodeState.TORPID):
            return None
        return self._put(Entry(node, known.epoch, known.rev + 1, state, known.parent, known.incarnation, cause, now_ms))

    def _put(self, entry: Entry) -> Entry:
        self.entries[entry.node] = entry
        self._ways = self._reachable = None
        return entry

    def replace_topology(self, topology: Topology) -> None:
        """Follow a new configuration: new nodes are unknown, removed ones forgotten."""
        old = self.entries
        fresh = Directory(topology, self.me, 0, 0).entries
        self.entries = {name: old.get(name, fresh[name]) for name in topology.names}
        self.topology = topology
        self._ways = self._reachable = None

    def top(self, node: str) -> str:
        """Climb from `node` while links are not lost; two nodes can reach each other if their tops agree (6.3)."""
        seen = set()
        while node not in seen:
            seen.add(node)
            entry = self.entries.get(node)
            if entry is None or entry.state == NodeState.LOST or not entry.parent:
                return node
            node = entry.parent
        return node

    @property
    def reachable(self) -> frozenset[str]:
        """All nodes that can be reached from here, `me` included."""
        if self._reachable is None:
            mine = self.top(self.me)
            tops: dict[str, str] = {}
            for name in self.entries:
                tops[name] = self.top(name)
            self._reachable = frozenset(name for name, top in tops.items() if top == mine)
        return self._reachable

    def way(self, node: str) -> str:
        """Return which way `node` lies: HERE, a neighbour's name below, or UPWARD.

        By attachment only, also while a link is lost: what a node said before it was lost still came from there.
        """
        if self._ways is None:
            self._ways = {}
        known = self._ways.get(node)
        if known is None:
            known = self._ways[node] = self._climb(node)
        return known

    def _climb(self, node: str) -> str:
        if node == self.me:
            return HERE
        seen = set()
        while node not in seen:
            seen.add(node)
            entry = self.entries.get(node)
            if entry is None or not entry.parent:
                return UPWARD
            if entry.parent == self.me:
                return node
            node = entry.parent
        return UPWARD

    def below(self, node: str) -> frozenset[str]:
        """All nodes attached at or below `node`, whatever their state."""
        children: dict[str, list[str]] = {}
        for entry in self.entries.values():
            children.setdefault(entry.parent, []).append(entry.node)
        found, todo = {node}, [node]
        while todo:
            for child in children.get(todo.pop(), ()):
                if child not in found:
                    found.add(child)
                    todo.append(child)
        return frozenset(found)

    def all_entries(self) -> list[Entry]:
        """All entries that say something, for HELLO and WELCOME."""
        return [entry for entry in self.entries.values() if entry.epoch]
