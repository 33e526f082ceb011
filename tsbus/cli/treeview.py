"""Tree view: which lines a drawing of the tree has. Pure; status.py gives it facts and prints what comes out.

In a large tree, siblings of which the same is to be said share a line, and so do their children: a healthy tree of a
thousand nodes is as many lines as it is levels, and whatever is different stands out with the path that leads to it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

FOLD_ABOVE = 30
"""Trees of at most so many nodes are always drawn in full."""


@dataclass(frozen=True, slots=True)
class Node:
    """What is known of one node; None where nobody could be asked."""

    name: str
    state: str
    """up, torpid or lost: as seen from where we stand, so what is below a lost node is lost too."""
    parent: str
    """The node it is attached to, or was when it was lost; empty at the top."""
    home: str = ""
    """Its parent in the configuration."""
    link: str = "up"
    """The state of its own link, whatever is above it."""
    cause: str = ""
    """Why the link is in this state."""
    since_s: float = 0.0
    """How long it has been so."""
    release: str = ""
    config: str = ""
    rtt_ms: float | None = None
    """Round trip of the link to its parent."""
    queued: int | None = None
    """Bytes that wait in its router."""
    slow: tuple[str, ...] = ()
    """Its peers that do not keep up."""

    @property
    def adopted(self) -> bool:
        """Whether it hangs on another node than its own parent."""
        return self.state != "lost" and self.parent != self.home


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the drawing."""

    stem: str
    """The branches drawn before the name."""
    nodes: tuple[Node, ...]
    """One node, or several siblings of which the same is to be said."""
    below: frozenset[str] = frozenset()
    """Of a lost node: the lost nodes below it, which have no lines of their own."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its nodes."""
        return tuple(node.name for node in self.nodes)


class TreeView:
    """The drawing of some nodes, in the order in which they are given."""

    def __init__(self, nodes: Iterable[Node], *, fold: bool) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._fold = fold
        self._children: dict[str, list[Node]] = {}
        for node in self._nodes.values():
            self._children.setdefault(self._parent(node), []).append(node)
        self._looks: dict[str, Any] = {}

    def lines(self) -> Iterator[Line]:
        """Return the lines from top to bottom."""
        return self._level(self._children.get("", []), "", top=True)

    def _parent(self, node: Node) -> str:
        """Return the node to draw it below, empty for the top."""
        parent = self._nodes.get(node.parent)
        # Whoever lives below the lost, as we may ourselves, is the top of an island.
        if parent is None or (parent.state == "lost" and node.state != "lost"):
            return ""
        # While news still travel, nodes may seem to stand on each other.
        seen = {parent.name}
        above = parent.parent
        while above in self._nodes and above not in seen:
            seen.add(above)
            above = self._nodes[above].parent
        return "" if node.name in seen else parent.name

    def _level(self, siblings: list[Node], stem: str, *, top: bool = False) -> Iterator[Line]:
        groups = self._groups(siblings)
        for place, group in enumerate(groups):
            last = place == len(groups) - 1
            branch, trunk = ("", "") if top else ("└─ ", "   ") if last else ("├─ ", "│  ")
            if group[0].state == "lost":
                yield Line(stem + branch, tuple(group), frozenset(self._below(group)))
                continue
            yield Line(stem + branch, tuple(group))
            children = [child for node in group for child in self._children.get(node.name, [])]
            yield from self._level(children, stem + trunk)

    def _groups(self, siblings: list[Node]) -> list[list[Node]]:
        """Return the siblings, those that look alike together at the place of the first of them."""
        if not self._fold:
            return [[node] for node in siblings]
        groups: dict[Any, list[Node]] = {}
        for node in siblings:
            groups.setdefault(self._look(node), []).append(node)
        return list(groups.values())

    def _look(self, node: Node) -> Any:
        """Return a value that is equal for nodes of which, with all below them, the same is to be said."""
        if node.name not in self._looks:
            troubled = "lost" in (node.state, node.link) or node.state == "torpid"
            own = (node.state, node.link, node.cause if troubled else "", node.adopted, node.release, node.config)
            # A lost node speaks for all below it; who they are makes no difference.
            below = () if node.state == "lost" else map(self._look, self._children.get(node.name, []))
            self._looks[node.name] = (own, bool(node.slow), frozenset(below))
        return self._looks[node.name]

    def _below(self, group: Iterable[Node]) -> Iterator[str]:
        for node in group:
            children = self._children.get(node.name, [])
            yield from (child.name for child in children)
            yield from self._below(children)
