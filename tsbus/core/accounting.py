"""The account of one call: which nodes still owe an answer, and how each of the others ended.

A call starts with the set of nodes that its target resolved to. Each of them ends exactly once, in one outcome, so at
the end the outcomes' sets are disjoint and together are the resolved set. The router and the client feed it facts.
"""

from collections.abc import Iterable
from enum import IntEnum


class Outcome(IntEnum):
    """How a call ended on one node."""

    OK = 0
    FAILED = 1
    """The worker ran it and reported an error."""
    TIMEOUT = 2
    UNREACHABLE = 3
    """The node is down, or its link was lost before the answer."""
    REFUSED = 4
    """The node does not allow it, or the call came too late to be started."""
    NO_SUCH_SERVICE = 5
    CANCELLED = 6


class Account:
    """The account of one call, from its resolved set to the last outcome."""

    __slots__ = ("_outcomes", "_waiting")

    def __init__(self, resolved: Iterable[str]) -> None:
        self._waiting = set(resolved)
        self._outcomes: dict[str, Outcome] = {}

    @property
    def waiting(self) -> frozenset[str]:
        """The nodes that have not ended yet."""
        return frozenset(self._waiting)

    @property
    def closed(self) -> bool:
        """True once every node has ended: nothing changes any more."""
        return not self._waiting

    def owes(self, node: str) -> bool:
        """Whether `node` still owes its last answer."""
        return node in self._waiting

    def finish(self, node: str, outcome: Outcome) -> bool:
        """Record how `node` ended. Returns False, and changes nothing, for a node that owes no answer (any more)."""
        if node not in self._waiting:
            return False
        self._waiting.remove(node)
        self._outcomes[node] = outcome
        return True

    def finish_all(self, outcome: Outcome) -> frozenset[str]:
        """Let every waiting node end in `outcome`, as a timeout or a cancel does. Returns these nodes."""
        nodes = self.waiting
        self._waiting.clear()
        self._outcomes.update(dict.fromkeys(nodes, outcome))
        return nodes

    def summary(self) -> dict[Outcome, frozenset[str]]:
        """Return the nodes that ended, by outcome: every outcome is a key, in order, if only with an empty set."""
        ended: dict[Outcome, set[str]] = {outcome: set() for outcome in Outcome}
        for node, outcome in self._outcomes.items():
            ended[outcome].add(node)
        return {outcome: frozenset(nodes) for outcome, nodes in ended.items()}
