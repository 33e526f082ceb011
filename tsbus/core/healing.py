"""Who this router should dial now (protocol 8.5): its children always, and orphans once their elders stay away.

Pure: facts come in with their time, `dials` answers. The rule itself is `tree.wanted_dials`; this module decides whom
to take for dead, which must not be decided too early (a restart takes a second) nor on hearsay.
"""

from tsbus.core.tree import Topology, wanted_dials

NEVER_SEEN_FACTOR = 10
"""A node not seen since this router started gets this many times the patience: a whole tree is slow to come up."""


class Healing:
    """Patience with absent nodes; times are monotonic milliseconds."""

    def __init__(self, topology: Topology, me: str, adopt_after_ms: int, now: int) -> None:
        """`adopt_after_ms`: how long a parent may be away before others dial its children."""
        self._topology = topology
        self._me = me
        self._adopt_after = adopt_after_ms
        self._absent: dict[str, int] = {}
        self._seen: set[str] = set()
        self.note(frozenset((me,)), now)

    def note(self, present: frozenset[str], now: int) -> None:
        """Tell which nodes can be reached now (the directory's `reachable`)."""
        self._seen |= present
        for name in self._topology.names:
            if name in present:
                self._absent.pop(name, None)
            else:
                self._absent.setdefault(name, now)

    def dials(self, now: int) -> frozenset[str]:
        """Return all nodes to be dialled, those linked already included."""
        if not self._absent:  # asked at every tick: with nobody away the rule names the children, without a walk
            return frozenset(self._topology.children(self._me))
        return wanted_dials(self._topology, self._me, lambda name: not self._is_dead(name, now))

    def _is_dead(self, name: str, now: int) -> bool:
        since = self._absent.get(name)
        if since is None:
            return False
        patience = self._adopt_after * (1 if name in self._seen else NEVER_SEEN_FACTOR)
        return now - since >= patience * self._rounds(name)

    def _rounds(self, name: str) -> int:
        """A node whose elders are absent too gets one round for each: it is dialled only after the elder's round.

        Under an absent root the n-th child gets n rounds more, so that one of them acts as the root and not all.
        """
        rounds = 1
        for elder in self._topology.ancestors(name):
            if elder not in self._absent:
                return rounds
            rounds += 1
        if self._topology.parent(name) == self._topology.root:
            rounds += self._topology.children(self._topology.root).index(name)
        return rounds
