"""News: what routers tell each other of nodes, whom they believe, and what breaks with it (protocol section 6).

Part of the router (router.py). The directory itself is core/directory.py; links.py brings the news and has some of its
own to tell.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsbus.core import message as wire
from tsbus.core.directory import UPWARD, NodeState, version
from tsbus.core.message import Entry, Type
from tsbus.core.tree import may_hang
from tsbus.peer import Decision, Peer

if TYPE_CHECKING:
    from tsbus.router import Router


@dataclass(slots=True, eq=False)
class _Doubt:
    """News that is not believed, the link it came over, and the link over which it was sent on to the node."""

    entry: Entry
    source: Peer
    told: Peer | None = None


class News:
    """How the directory of one router changes, and who hears of it."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self.is_any = False
        """Whether the tree is another than at the last `settle`; whoever knows of a reason says so."""
        self._broken: set[str] = set()
        """Nodes that what was under way to or from was lost with a link, since the last `settle`."""
        self._doubts: dict[str, _Doubt] = {}
        """The latest news of nodes that came from where these nodes are not (protocol 6.6)."""

    def on_directory(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """Take a neighbour's changes and pass on what is news."""
        self.learn(wire.decode_body(wire.Directory, body).entries, peer)

    def learn(self, entries: list[Entry], source: Peer) -> None:
        """Enter what `source` tells, as far as it is believed, and pass on what is news."""
        believed = [entry for entry in entries if self._believes(entry, source)]
        known = self._router.directory.entries
        before = {entry.node: known[entry.node] for entry in believed if entry.node in known}
        news = self._router.directory.merge(believed)
        if not news:
            return
        self.note([entry for entry in news if _breaks(before[entry.node], entry)])
        own = [entry for entry in news if entry.node == self._router.me]
        self.flood([entry for entry in news if entry.node != self._router.me], but=source)
        missing = [entry for entry in map(self._disown, news) if entry is not None]
        self.note(missing)
        self.flood(own + missing)

    def note(self, entries: Iterable[Entry]) -> None:
        """Remember which nodes lie beyond links that broke, for `settle`."""
        directory = self._router.directory
        self.is_any = True
        for entry in entries:
            if entry.cause == "moved":
                continue
            below = directory.below(entry.node)
            self._broken |= (frozenset(directory.entries) - below) if directory.me in below else below

    def flood(self, entries: list[Entry], but: Peer | None = None) -> None:
        """Tell all neighbours, or all `but` one."""
        if entries:
            for peer in self._router.links.told().values():
                if peer is not but:
                    self._router.tell(peer, Type.DIRECTORY, wire.Directory(entries))

    def settle(self) -> frozenset[str]:
        """Believe what can be believed by now; return the nodes beyond links that broke since the last time."""
        while self.is_any:
            self.is_any = False
            self._reconsider()
        broken, self._broken = frozenset(self._broken), set()
        return broken

    def _believes(self, entry: Entry, source: Peer) -> bool:
        """Take news of a node only from its own side, and never an attachment that the configuration forbids (6.6).

        Without this a child could say that any node hangs below it, and then speak for that node.
        """
        directory, node = self._router.directory, entry.node
        if not directory.is_news(entry) or self._is_their_side(entry, source):
            return True
        known = self._doubts.get(node)
        if known is None or version(entry) > version(known.entry):
            self._router.counters["doubted"] += 1
            self._doubts[node] = _Doubt(entry, source)
            self._pass_on(self._doubts[node])
        return False

    def _pass_on(self, doubt: _Doubt) -> None:
        """Send doubtful news to where the node is, as far as we know: it knows best, and outbids what is not so."""
        link = self._router.links.by_way.get(self._router.directory.way(doubt.entry.node))
        if link not in (None, doubt.source, doubt.told):
            doubt.told = link
            self._router.tell(link, Type.DIRECTORY, wire.Directory([doubt.entry]))

    def _is_their_side(self, entry: Entry, source: Peer) -> bool:
        directory, node = self._router.directory, entry.node
        if node == directory.me:  # what the parent end noted, or what others remember of an earlier process
            own = directory.entries[node]
            return source.way == UPWARD or own.state == NodeState.LOST or entry.incarnation != own.incarnation
        if entry.parent and not may_hang(self._router.topology, node, entry.parent):
            return False
        if node == source.name and entry.parent == directory.me:
            return True
        known = directory.entries[node]
        changes_nothing = entry.state == known.state == NodeState.LOST and entry.parent == known.parent
        return changes_nothing or directory.way(node) == source.way or node not in directory.reachable

    def _reconsider(self) -> None:
        """Something changed: look again at what was not believed."""
        for node, doubt in list(self._doubts.items()):
            if doubt.source.gone or not self._router.directory.is_news(doubt.entry):
                del self._doubts[node]
            elif self._is_their_side(doubt.entry, doubt.source):
                del self._doubts[node]
                self.learn([doubt.entry], doubt.source)
            else:
                self._pass_on(doubt)

    def _disown(self, entry: Entry) -> Entry | None:
        """Note a node lost that is said to hang here and does not: it went while this process was not there to see."""
        router = self._router
        if entry.parent != router.me or entry.node in router.links.by_way:
            return None
        return router.directory.change(entry.node, NodeState.LOST, "closed", router.clock.wall_ms())


def _breaks(before: Entry, after: Entry) -> bool:
    """Whether a change of a node's entry means that a link broke in between (protocol 6.5)."""
    if after.state == NodeState.LOST:
        return True
    # A node that only outbids what others say of it keeps the time at which it was attached.
    is_new = (after.incarnation, after.time_ms) != (before.incarnation, before.time_ms)
    return after.epoch > before.epoch > 0 and is_new and after.cause != "moved"
