"""Pacing: a router's windows, who is held back for whom, and who is slow (protocol section 9).

Part of the router (router.py), for the time when queues fill; the lanes themselves are core/lanes.py.
"""

from typing import TYPE_CHECKING

from tsbus.core import message as wire
from tsbus.core.lanes import Queue
from tsbus.core.message import Lane, Type
from tsbus.log import Log
from tsbus.peer import LINKS, Peer, PeerKind

if TYPE_CHECKING:
    from tsbus.router import Router

_log = Log("router")


class Pacing:
    """Who waits for whom."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self.unacked: set[Peer] = set()
        """Peers that are to be told what was read of them."""
        self._held: set[Peer] = set()
        """Peers with `blockers` or `stream_blockers`."""
        self._crowds: set[Peer] = set()
        """Peers with `over_since`."""

    @property
    def is_watching(self) -> bool:
        """Whether `tick` has something to look at."""
        return bool(self._crowds)

    def forget(self, peer: Peer) -> None:
        """A peer is gone."""
        self.unacked.discard(peer)
        self._held.discard(peer)
        self._crowds.discard(peer)

    def crowded(self, source: Peer, out: Peer, queue: Queue, lane: Lane) -> None:
        """A queue is over half its bound: hold the source back, drop the oldest, or end the connection (9.3, 9.5)."""
        router = self._router
        if lane is Lane.EVENT:
            if out.over_since is None:
                out.over_since, out.over_from = router.now, queue.sent_total
                self._crowds.add(out)
            if not out.slow:
                # Nothing is dropped for it yet: those who are held back cannot send more than their windows.
                source.blockers.add(out)
                self._held.add(source)
            elif queue.waiting > queue.limit:
                router.counters["dropped-slow"] += queue.drop_oldest(f"{router.me}>{out.name}")
        elif queue.waiting > queue.limit:
            router.cut(out, "overflow", f"does not read; {queue.waiting} bytes wait for it")

    def hold_stream(self, source: Peer, link: Peer) -> None:
        """Let a client wait while the stream, if it is a link's, is crowded."""
        if link.kind in LINKS:
            source.stream_blockers.add(link)
            self._held.add(source)

    def settle(self) -> None:
        """After a round of messages: let go whom nothing holds back any more, and send what CREDIT is due."""
        if self._held:
            self._release()
        if self.unacked:
            unacked, self.unacked = self.unacked, set()
            for peer in unacked:
                self.acknowledge(peer)

    def acknowledge(self, peer: Peer) -> None:
        """Send CREDIT for what was read, unless it waits in a crowded queue."""
        if peer.kind is PeerKind.NEW or peer.gone:
            return
        event_total = peer.event_acked if peer.blockers else peer.event_in
        stream_total = peer.stream_acked if peer.stream_blockers else peer.stream_in
        if (stream_total, event_total) != (peer.stream_acked, peer.event_acked):
            peer.stream_acked, peer.event_acked = stream_total, event_total
            self._router.tell(peer, Type.CREDIT, meta=wire.CreditMeta(stream_total, event_total))

    def _release(self) -> None:
        """Let those go on whose queues have room again, or whose blocker turned out to be slow."""
        for source in list(self._held):
            held = bool(source.blockers), bool(source.stream_blockers)
            source.blockers = {
                out for out in source.blockers if not out.gone and not out.slow and out.outbox.event.crowded
            }
            source.stream_blockers = {
                out for out in source.stream_blockers if not out.gone and out.outbox.stream.crowded
            }
            if (bool(source.blockers), bool(source.stream_blockers)) != held:
                self.unacked.add(source)
            if not source.blockers and not source.stream_blockers:
                self._held.discard(source)

    def tick(self) -> None:
        """Find peers that are slow, and those that no longer are (protocol 9.3)."""
        for peer in list(self._crowds):
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        router, queue = self._router, peer.outbox.event
        if queue.waiting <= queue.limit // 4 or (not peer.slow and queue.waiting <= queue.limit // 2):
            peer.over_since = None
            self._crowds.discard(peer)
            if peer.slow:
                peer.slow = False
                _log.info("peer.recovered", peer=peer.name, dropped=queue.dropped)
                router.publish("bus.recovered", _slow_body(peer))
        elif not peer.slow and router.now - (peer.over_since or router.now) >= router.settings.slow_after_ms:
            if queue.sent_total - peer.over_from >= queue.limit // 2:  # it keeps up with what it is given
                peer.over_since, peer.over_from = router.now, queue.sent_total
                return
            peer.slow = True
            _log.warning("peer.slow", peer=peer.name, waiting=queue.waiting)
            router.publish("bus.slow", _slow_body(peer))


def _slow_body(peer: Peer) -> dict[str, object]:
    queue = peer.outbox.event
    return {"peer": peer.name, "kind": peer.kind.name.lower(), "waiting": queue.waiting, "dropped": queue.dropped}
