"""The tree of nodes as it is configured, and the rule by which the living close the gaps that the dead leave.

The configuration makes a `Topology`; targets and routing read it. The rule is a pure function of the topology and of
who is alive, so nodes that see the same nodes alive agree on who dials whom without asking each other:

- a node is dialled by its nearest living ancestor, which is its configured parent when that is alive;
- when no ancestor is alive, by the acting root: the first living child of the root. Nobody dials the acting root.

So the living form one tree as long as the root or one of its children lives. When none of these does, the nodes below
them stay apart, each with its own subtree: who is that far from the top sees too little to start dialling strangers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final


class Topology:
    """The configured tree; immutable. Methods that take a node's name raise KeyError for a name it does not have."""

    root: Final[str]
    names: Final[tuple[str, ...]]
    """All nodes in the configuration's order."""
    tags: Final[frozenset[str]]
    """All tags that some node has."""

    def __init__(self, children: Mapping[str, Sequence[str]], tags: Mapping[str, Sequence[str]] | None = None) -> None:
        """Build the tree from each node's children (those that are no nodes themselves are left out) and its tags.

        Raises ValueError when that is not one tree: no root or several, a second parent, a cycle, tags of no node.
        """
        self.names = tuple(children)
        self._children = {name: tuple(kid for kid in kids if kid in children) for name, kids in children.items()}
        self._parents = _parents(self._children)
        self.root = self._only_root()
        if cut_off := set(self.names).difference(self._walk(self.root)):
            raise ValueError(f"a cycle: {', '.join(sorted(cut_off))} cannot be reached from the root {self.root}")
        self._tagged = self._by_tag(tags or {})
        self.tags = frozenset(self._tagged)
        self._subtrees: dict[str, frozenset[str]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._children

    def __len__(self) -> int:
        return len(self.names)

    def parent(self, name: str) -> str | None:
        """Return the configured parent, None for the root."""
        return None if name == self.root else self._parents[name]

    def children(self, name: str) -> tuple[str, ...]:
        """Return the configured children in their order."""
        return self._children[name]

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Return the nodes above `name`, from its parent to the root."""
        above = []
        parent = self.parent(name)
        while parent is not None:
            above.append(parent)
            parent = self.parent(parent)
        return tuple(above)

    def is_ancestor(self, above: str, name: str) -> bool:
        """Tell whether `above` is a parent, grandparent and so on of `name`; no node is its own ancestor."""
        return above in self.ancestors(name)

    def depth(self, name: str) -> int:
        """Return how many links lie between `name` and the root."""
        return len(self.ancestors(name))

    def subtree(self, name: str) -> frozenset[str]:
        """Return `name` and all nodes below it."""
        if name not in self._subtrees:
            self._subtrees[name] = frozenset(self._walk(name))
        return self._subtrees[name]

    def tagged(self, tag: str) -> frozenset[str]:
        """Return the nodes that have `tag`, none for a tag that nobody has."""
        return self._tagged.get(tag, frozenset())

    def _only_root(self) -> str:
        roots = [name for name in self.names if name not in self._parents]
        if len(roots) != 1:
            raise ValueError(f"a tree has one root, a node that is nobody's child; found {', '.join(roots) or 'none'}")
        return roots[0]

    def _walk(self, top: str) -> list[str]:
        """Return `top` and all below it; the list grows while it is walked."""
        found = [top]
        for name in found:
            found += self._children[name]
        return found

    def _by_tag(self, tags: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
        if strangers := [name for name in tags if name not in self]:
            raise ValueError(f"tags of nodes that are not in the tree: {', '.join(strangers)}")
        all_tags = {tag for own in tags.values() for tag in own}
        return {tag: frozenset(name for name, own in tags.items() if tag in own) for tag in all_tags}


def _parents(children: Mapping[str, Sequence[str]]) -> dict[str, str]:
    parents: dict[str, str] = {}
    for name, kids in children.items():
        for kid in kids:
            if kid in parents:
                raise ValueError(f"{kid} is a child of {parents[kid]} and again of {name}; a node has one parent")
            parents[kid] = name
    return parents


def acting_root(topology: Topology, is_alive: Callable[[str], bool]) -> str | None:
    """Return the root while it lives, else its first living child in the configuration's order, None without any."""
    return next(filter(is_alive, (topology.root, *topology.children(topology.root))), None)


def may_hang(topology: Topology, node: str, parent: str) -> bool:
    """Tell whether `parent`, which may be no node at all, is one that can dial `node` (protocol 4.4).

    That is an ancestor, or as the acting root a child of the root; another child of the root must come after it.
    """
    if topology.is_ancestor(parent, node):
        return True
    elders = topology.children(topology.root)
    if parent not in elders or node == topology.root:
        return False
    return node not in elders or elders.index(parent) < elders.index(node)


def adopter(topology: Topology, node: str, is_alive: Callable[[str], bool]) -> str | None:
    """Return who should dial `node`, itself dead or alive, given who else is alive; None when nobody should.

    Nobody ever dials the root: it dials its children when it comes back.
    """
    return _dialler(topology, node, is_alive, acting_root(topology, is_alive))


def wanted_dials(topology: Topology, me: str, is_alive: Callable[[str], bool]) -> frozenset[str]:
    """Return all nodes that `me`, alive whatever `is_alive` says, should dial: its children and those it adopts.

    Dead nodes are among them, so that they are found when they come back.
    """

    def is_up(name: str) -> bool:
        return name == me or is_alive(name)

    top = acting_root(topology, is_up)
    return frozenset(name for name in topology.names if _dialler(topology, name, is_up, top) == me)


def _dialler(topology: Topology, node: str, is_alive: Callable[[str], bool], top: str | None) -> str | None:
    """Return the adopter of `node` when the acting root `top` is known: finding it once serves all nodes."""
    nearest = next(filter(is_alive, topology.ancestors(node)), None)
    if nearest is not None:
        return nearest
    return None if node in (top, topology.root) else top
