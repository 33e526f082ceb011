"""Clients: a router's own workers and consoles: who they are, and what they want to hear (protocol 4.3 and 7).

Part of the router (router.py). What they ask for is in commands.py, what they serve in services.py.
"""

from typing import TYPE_CHECKING

from tsbus.core import message as wire
from tsbus.core.interest import Local
from tsbus.core.message import Type
from tsbus.core.roles import Role
from tsbus.core.topic import SCOPES, TopicError, check_pattern, check_scope
from tsbus.peer import ConnKind, Decision, Peer, PeerKind

if TYPE_CHECKING:
    from tsbus.router import Router

_WINDOW = 256 * 1024
"""Bytes that a client may send ahead. It is near, and there may be a thousand, all for one link's queue."""
_MAX_WATCHES = 100
"""Of one worker: each is looked at whenever a subscription comes or goes."""


class Clients:
    """The clients of one router, which knows them by their handles."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._handles = 0
        self._interest_changed = False

    def on_hello(self, peer: Peer, body: bytes) -> None:
        """Somebody on this machine, or at a console, begins a session."""
        router, conn = self._router, peer.conn
        bus = router.settings
        hello = wire.decode_body(wire.WorkerHello, body)
        if peer.kind is not PeerKind.NEW:  # a client that starts its session over (protocol 4.1)
            router.forget(peer, "bye")
            peer = router.add_peer(conn, PeerKind.NEW, conn.name)
        if not hello.versions[0] <= wire.PROTOCOL <= hello.versions[1]:
            router.cut(peer, "version", f"this router speaks protocol {wire.PROTOCOL}, not {hello.versions}")
            return
        if len(router.workers) >= bus.max_workers:
            router.cut(peer, "full", f"{bus.max_workers} workers are connected, no more ([bus] max_workers)")
            return
        role = router.role_of(conn)
        who = conn.name if conn.kind is ConnKind.TCP else f"uid:{conn.uid}"
        if role is Role.NONE:
            router.cut(peer, "refused", f"{who} has no role on {router.me} ([policy.users])")
            return
        self._handles += 1
        peer.kind = PeerKind.WORKER if conn.kind is ConnKind.LOCAL else PeerKind.OPERATOR
        peer.name, peer.who, peer.role, peer.handle = hello.name[:64], who, role, self._handles
        peer.incarnation = hello.incarnation
        peer.window = min(peer.window, _WINDOW)
        peer.outbox.set_window(min(hello.window, bus.queue_bytes))
        peer.cache.clear()
        router.workers[peer.handle] = peer
        router.tell(
            peer,
            Type.WELCOME,
            wire.WorkerWelcome(
                version=wire.PROTOCOL, node=router.me, who=who, role=role, handle=peer.handle, window=peer.window,
                max_body=bus.max_body_bytes, incarnation=router.incarnation, release=router.release,
            ),
        )  # fmt: skip
        router.publish("worker.joined", {"name": peer.name, "handle": peer.handle, "who": who})

    def forget(self, peer: Peer) -> None:
        """A client is gone, and with it what it wanted, served and asked."""
        router = self._router
        router.workers.pop(peer.handle, None)
        for scope in SCOPES:
            router.interest.forget(Local(peer.handle, scope))
        router.services.forget(peer)
        router.commands.forget(peer)
        self.interest_changed()
        router.publish("worker.left", {"name": peer.name, "handle": peer.handle, "who": peer.who})

    def interest_changed(self) -> None:
        """A subscription came or went, here or over a link."""
        self._interest_changed = True
        self._router.invalidate()

    def settle(self) -> None:
        """Tell links and watchers what changed in this round."""
        if not self._interest_changed:
            return
        self._interest_changed = False
        router = self._router
        links = router.links.told()
        for way, change in router.interest.changes(links):
            router.tell(links[way], Type.INTEREST, change)
        for peer in list(router.workers.values()):
            for number, (pattern, wanted) in list(peer.watches.items()):
                if router.interest.anybody_wants(pattern, but=peer.handle) != wanted:
                    peer.watches[number] = (pattern, not wanted)
                    router.tell(peer, Type.NOTICE, wire.Notice(number, not wanted))

    def on_subscribe(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """A client wants events."""
        router = self._router
        wish = wire.decode_body(wire.Subscribe, body)
        try:
            check_pattern(wish.pattern)
            scope = check_scope(wish.scope)
        except (TopicError, ValueError) as error:
            router.error(peer, "target", str(error))
            return
        if peer.subscriptions >= router.settings.max_subscriptions:
            router.counters["full"] += 1
            router.error(peer, "full", f"{peer.subscriptions} subscriptions, no more ([bus] max_subscriptions)")
            return
        if router.interest.add(Local(peer.handle, scope), wish.pattern):
            peer.subscriptions += 1
            self.interest_changed()

    def on_unsubscribe(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """A client does not want them any more."""
        wish = wire.decode_body(wire.Subscribe, body)
        try:
            source = Local(peer.handle, check_scope(wish.scope))
        except ValueError:
            return
        if self._router.interest.remove(source, wish.pattern):
            peer.subscriptions -= 1
            self.interest_changed()

    def on_watch(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """A client asks whether others want what it could publish."""
        router = self._router
        watch = wire.decode_body(wire.Watch, body)
        if not watch.pattern:
            peer.watches.pop(watch.id, None)
            return
        try:
            check_pattern(watch.pattern)
        except TopicError as error:
            router.error(peer, "target", str(error))
            return
        if len(peer.watches) >= _MAX_WATCHES:
            router.counters["full"] += 1
            router.error(peer, "full", f"{_MAX_WATCHES} watches, no more")
            return
        wanted = router.interest.anybody_wants(watch.pattern, but=peer.handle)
        peer.watches[watch.id] = (watch.pattern, wanted)
        router.tell(peer, Type.NOTICE, wire.Notice(watch.id, wanted))
