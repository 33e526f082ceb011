"""Links: how routers join to a tree, and stay together (protocol sections 4, 7.2 and 8).

Part of the router (router.py): handshakes between routers, interest, liveness, whom to dial. What they tell each other
of nodes is in news.py.
"""

from typing import TYPE_CHECKING

from tsbus.core import message as wire
from tsbus.core.directory import UPWARD, NodeState
from tsbus.core.healing import Healing
from tsbus.core.liveness import Liveness, Verdict
from tsbus.core.message import Entry, ProtocolError, Type
from tsbus.core.routing import Paths
from tsbus.core.target import fold
from tsbus.core.topic import TopicError, check_pattern
from tsbus.core.tree import may_hang
from tsbus.log import Log
from tsbus.peer import Conn, Decision, Peer, PeerKind

if TYPE_CHECKING:
    from tsbus.router import Router

_log = Log("links")
_KNOCK_MS = 3000
"""A parent that has not knocked for this long starts its steady time anew (protocol 4.4)."""
_MAX_LINK_INTEREST = 1_000_000
"""Patterns taken from one link: what all workers behind it want together."""


class Links:
    """All links of one router. `by_way` names them: UPWARD for the parent, else the child's name."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self.by_way: dict[str, Peer] = {}
        self._pending: dict[str, Peer] = {}
        """Nodes below that were dialled and have not answered HELLO yet."""
        self._healing = self._new_healing()
        self._dials: frozenset[str] = frozenset()
        self._knock: tuple[str, float, float] = ("", 0.0, 0.0)
        """Which home parent waits for an adopted node, since when, and when it last knocked."""

    def _new_healing(self) -> Healing:
        router = self._router
        return Healing(router.topology, router.me, int(router.settings.adopt_after_s * 1000), int(router.now))

    def start(self) -> None:
        """Begin to dial the nodes below."""
        self._redial()

    def reload(self) -> None:
        """The configuration changed: links to nodes that it no longer has are cut, new children are dialled."""
        router = self._router
        self._healing = self._new_healing()
        router.news.is_any = True
        for peer in [*self.by_way.values(), *self._pending.values()]:
            if peer.name not in router.topology:
                router.cut(peer, "reset", f"{peer.name} is not in the configuration any more")
        self.settle()
        self._redial()

    def on(self, paths: Paths) -> tuple[Peer, ...]:
        """The links that `paths` leads over, as far as they are up."""
        return tuple(self.by_way[way] for way in paths.ways if way in self.by_way)

    # The dialling side ------------------------------------------------------------------------------------------------

    def dialled(self, conn: Conn) -> None:
        """A node below is connected: say HELLO."""
        router = self._router
        peer = router.add_peer(conn, PeerKind.NEW, conn.name)
        peer.way = conn.name
        old = self._pending.pop(conn.name, None)
        if old is not None:
            router.forget(old, "closed")
        self._pending[conn.name] = peer
        is_child = router.topology.parent(conn.name) == router.me
        router.tell(peer, Type.HELLO, self._hello(conn.name, "parent" if is_child else "adopter"))

    def _hello(self, way: str, role: str) -> wire.LinkHello:
        router = self._router
        return wire.LinkHello(
            versions=(wire.PROTOCOL, wire.PROTOCOL),
            node=router.me,
            incarnation=router.incarnation,
            release=router.release,
            config=router.tree.version,
            window=router.settings.window_bytes,
            max_body=router.settings.max_body_bytes,
            clock_ms=int(router.now),
            entries=router.directory.all_entries(),
            interest=router.interest.open_link(way),
            as_=role,
        )

    def on_welcome(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """The node below accepts: the link is up."""
        router = self._router
        welcome = wire.decode_body(wire.LinkHello, body)
        if self._pending.get(peer.name) is not peer or welcome.node != peer.name:
            raise ProtocolError("not-welcome", f"WELCOME of {welcome.node} was not asked for")
        del self._pending[peer.name]
        self._establish(peer, PeerKind.CHILD, peer.name, welcome)
        router.news.learn(welcome.entries, peer)
        entry = router.directory.entries[peer.name]
        _log.info("link.up", node=peer.name, epoch=entry.epoch, config_differs=welcome.config != router.tree.version)
        self._announce("node.up", entry)

    def refused(self, peer: Peer, bye: wire.Bye) -> None:
        """A node below said BYE: log it, not more than needed."""
        if bye.reason not in ("busy", "moved"):
            _log.warning("link.refused", node=peer.name, reason=bye.reason, text=bye.text)

    # The dialled side -------------------------------------------------------------------------------------------------

    def on_hello(self, peer: Peer, body: bytes) -> None:
        """Another router wants to be the parent."""
        router = self._router
        hello = wire.decode_body(wire.LinkHello, body)
        name = peer.conn.name.removeprefix("node:")
        refusal = self._refusal(name, hello)
        if refusal is not None:
            router.counters[refusal.reason] += 1
            router.transport.send(peer.conn, wire.encode_frame(wire.local(Type.BYE, refusal)))
            return
        old = self.by_way.get(UPWARD)
        moved = old is not None and old is not peer and old.name != name
        if old is not None:
            self._leave_parent(old, "moved" if moved else "closed")
        if old is peer:  # the same connection starts its session over (protocol 4.1)
            peer = router.add_peer(peer.conn, PeerKind.NEW, peer.conn.name)
        elif old is not None:  # what it still sends comes from the new parent too
            old.conn.peer = None
            router.transport.close(old.conn)
        own = router.directory.attach(name, "moved" if moved else "joined", router.clock.wall_ms())
        peer.name = name
        router.tell(peer, Type.WELCOME, self._hello(UPWARD, ""))
        self._establish(peer, PeerKind.PARENT, UPWARD, hello)
        router.news.note([own])
        router.news.flood([own], but=peer)
        router.news.learn(hello.entries, peer)
        _log.info("parent.up", node=name, adopted=hello.as_ == "adopter", epoch=own.epoch)

    def _refusal(self, name: str, hello: wire.LinkHello) -> wire.Bye | None:
        """Decide as protocol 4.4 says; None accepts."""
        router = self._router
        topology, directory = router.topology, router.directory
        if not hello.versions[0] <= wire.PROTOCOL <= hello.versions[1]:
            return wire.Bye("version", f"{router.me} speaks protocol {wire.PROTOCOL}, not {hello.versions}")
        if hello.node != name:
            return wire.Bye("forged", f"the key belongs to {name}, not to {hello.node}")
        if name not in topology:
            return wire.Bye("refused", f"{router.me} knows no node {name}: configurations differ")
        parent = self.by_way.get(UPWARD)
        if name == topology.parent(router.me):
            if parent is None or parent.name == name or self._has_knocked(name):
                return None
            return wire.Bye("busy", f"{router.me} was adopted by {parent.name} and comes home after a while")
        if parent is not None and parent.name != name:
            return wire.Bye("busy", f"{router.me} has a parent, {parent.name}")
        if name in directory.below(router.me) and directory.top(name) == directory.top(router.me):
            return wire.Bye("loop", f"{name} is below {router.me}")
        if may_hang(topology, router.me, name):
            return None
        return wire.Bye("refused", f"{name} is neither above {router.me} nor the acting root")

    def _has_knocked(self, name: str) -> bool:
        """Whether the home parent has been there steadily for long enough to go home."""
        now = self._router.now
        who, since, last = self._knock
        if who != name or now - last > _KNOCK_MS:
            since = now
        self._knock = (name, since, now)
        return now - since >= self._router.settings.steady_s * 1000

    def _leave_parent(self, old: Peer, cause: str) -> None:
        """Another connection takes the parent's place; this is no loss, the node stays in the tree."""
        router = self._router
        if cause == "moved":
            frame = wire.encode_frame(wire.local(Type.BYE, wire.Bye("moved", f"{router.me} went home")))
            router.transport.send(old.conn, frame)
        del self.by_way[UPWARD]
        router.interest.close_link(UPWARD)
        router.forget(old, cause)

    # Both sides -------------------------------------------------------------------------------------------------------

    def _establish(self, peer: Peer, kind: PeerKind, way: str, hello: wire.LinkHello) -> None:
        router, bus = self._router, self._router.settings
        peer.kind, peer.way = kind, way
        peer.incarnation = hello.incarnation
        peer.outbox.set_window(min(hello.window, bus.queue_bytes))
        peer.live = Liveness(
            int(router.now), ping_ms=bus.ping_ms, torpid_after=bus.torpid_after, reset_after_s=int(bus.reset_after_s)
        )
        peer.live.clock(hello.clock_ms, int(router.now))
        peer.cache.clear()
        self.by_way[way] = peer
        self._add_interest(way, hello.interest)
        router.clients.interest_changed()

    def lost(self, peer: Peer, cause: str) -> None:
        """A link ended. What the directory makes of it is told to everybody who can still be reached."""
        router = self._router
        if self._pending.get(peer.name) is peer:
            del self._pending[peer.name]
            router.interest.close_link(peer.way)
            return
        if self.by_way.get(peer.way) is not peer:
            return
        del self.by_way[peer.way]
        router.interest.close_link(peer.way)
        router.clients.interest_changed()
        router.news.is_any = True
        node = router.me if peer.kind is PeerKind.PARENT else peer.name
        if node not in router.topology:
            return
        known = router.directory.entries[node]
        if peer.kind is PeerKind.CHILD and known.parent != router.me:
            return  # it went elsewhere, and its own entry says where
        entry = router.directory.change(node, NodeState.LOST, cause, router.clock.wall_ms())
        _log.warning("link.lost", peer=peer.name, cause=cause)
        if entry is None:
            return
        router.news.note([entry])
        router.news.flood([entry])
        if peer.kind is PeerKind.CHILD and cause != "moved":
            self._announce("node.lost", entry)

    def told(self) -> dict[str, Peer]:
        """Return by way who must hear of changes: also those whose HELLO is on its way and did not tell them."""
        return self._pending | self.by_way

    def on_interest(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """Take what a neighbour begins and ceases to want."""
        change = wire.decode_body(wire.Interest, body)
        for pattern in change.remove:
            self._router.interest.remove(peer.way, pattern)
        self._add_interest(peer.way, change.add)
        self._router.clients.interest_changed()

    def _add_interest(self, way: str, patterns: list[str]) -> None:
        router = self._router
        for pattern in patterns:
            try:
                check_pattern(pattern)
            except TopicError as error:
                raise ProtocolError("malformed", str(error)) from None
            if router.interest.count(way) >= _MAX_LINK_INTEREST:
                router.counters["full"] += 1
                return
            router.interest.add(way, pattern)

    def _announce(self, topic: str, entry: Entry) -> None:
        below = self._router.directory.below(entry.node)
        self._router.publish(
            topic,
            {
                "node": entry.node,
                "parent": self._router.me,
                "state": NodeState(entry.state).name.lower(),
                "cause": entry.cause,
                "nodes": fold(below),
            },
        )

    # Time -------------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """After a round of messages: end what broke, decide anew."""
        router = self._router
        if not router.news.is_any:
            return
        if broken := router.news.settle():
            router.commands.broken(broken)
            router.services.broken(broken)
        self._healing.note(router.directory.reachable, int(router.now))
        router.invalidate()

    def tick(self, late_ms: int) -> None:
        """PING, judge, and dial whom it is time to dial."""
        for peer in list(self.by_way.values()):
            if peer.live is not None:
                for verdict in peer.live.tick(int(self._router.now), late_ms):
                    self._act(peer, verdict)
        self._redial()

    def _act(self, peer: Peer, verdict: Verdict) -> None:
        router = self._router
        if verdict is Verdict.RESET:
            router.cut(peer, "silent", "no answer to PING")
        elif verdict is Verdict.PING and peer.live is not None:
            peer.ping_sent = router.clock.monotonic_ms()
            router.tell(peer, Type.PING, meta=wire.PingMeta(peer.live.ping_id, int(peer.ping_sent)))
        elif peer.kind is PeerKind.CHILD:
            self._change_state(peer, NodeState.TORPID, "silent", "node.torpid")

    def recovered(self, peer: Peer) -> None:
        """A torpid link gave a sign of life."""
        if peer.kind is PeerKind.CHILD:
            self._change_state(peer, NodeState.UP, "joined", "node.up")

    def _change_state(self, peer: Peer, state: NodeState, cause: str, topic: str) -> None:
        router = self._router
        _log.warning("link.state", peer=peer.name, state=state.name.lower(), cause=cause)
        entry = router.directory.change(peer.name, state, cause, router.clock.wall_ms())
        if entry is not None:
            router.news.is_any = True
            router.news.flood([entry])
            self._announce(topic, entry)

    def _redial(self) -> None:
        """Dial whom the rule names, but leave alone those that found their place elsewhere."""
        router = self._router
        children = frozenset(router.topology.children(router.me))
        linked = frozenset(way for way in self.by_way if way != UPWARD)
        wanted = self._healing.dials(int(router.now))
        strays = wanted - children - router.directory.reachable
        dials = children | strays | linked
        if dials != self._dials:
            gone = self._dials - dials
            self._dials = dials
            for name in gone & self._pending.keys():
                router.forget(self._pending[name], "closed")
            router.transport.set_dials(dials)

    def link_stats(self, peer: Peer) -> dict[str, object]:
        """Return what `router.stats` tells of a link besides the queues."""
        live = peer.live
        role = "parent" if peer.kind is PeerKind.PARENT else "child"
        if role == "child" and self._router.topology.parent(peer.name) != self._router.me:
            role = "adopted"
        return {
            "role": role,
            "state": "torpid" if live and live.torpid_since is not None else "up",
            "rtt_ms": None if live is None or live.rtt_ms is None else round(live.rtt_ms, 3),
            "interest": self._router.interest.count(peer.way),
        }
