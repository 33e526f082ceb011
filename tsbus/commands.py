"""Commands: requests, their answers, and the account of both (protocol section 10).

Part of the router (router.py): what it does for callers, and for calls on their way to other nodes. What its own node
answers is in services.py. The books are pure (core/calls.py); both modules move envelopes between them and peers.
"""

from typing import TYPE_CHECKING

from tsbus.core import message as wire
from tsbus.core.accounting import Outcome
from tsbus.core.calls import GRACE_MS, Call, Key, Outgoing
from tsbus.core.directory import HERE, NodeState
from tsbus.core.message import Content, Flag, Lane, Route, Type
from tsbus.core.roles import Role
from tsbus.core.routing import Drop, Paths
from tsbus.core.target import TargetError, fold, unfold
from tsbus.core.topic import TopicError, check_topic
from tsbus.peer import CLIENTS, Decision, Peer

if TYPE_CHECKING:
    from tsbus.router import Router

_MAX_SPILLED = 10_000
_FEW_BYTES = 1024
"""A last answer as short as this takes hardly more room than the word that there was none for it."""
_NODE_BYTES = 100
"""What a node in a remembered target takes, about."""


class _Wide:
    """What a client's route for a REQUEST, INPUT, CANCEL or GRANT comes to: worked out once for each route."""

    __slots__ = ("accept", "nodes", "onward", "paths", "reachable", "route")

    def __init__(self, nodes: frozenset[str], reachable: frozenset[str], route: Route, paths: Paths | Drop) -> None:
        self.accept = wire.Accept(fold(nodes))
        self.nodes = nodes
        self.reachable = reachable
        self.route = route
        self.onward = wire.encode(route)
        self.paths = paths


class Commands:
    """The calls that begin, end or pass at one router."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self.outgoing = Outgoing()
        self._spilled: dict[tuple[Key, str], None] = {}
        """Calls that a link had no room for, with the node or the way: they are ended once."""

    # Deciding ---------------------------------------------------------------------------------------------------------

    def judge(self, peer: Peer, route: Route, lane: Lane) -> Decision:
        """Decide for a routed envelope that is no event. It is checked already that `peer` may send it."""
        kind = Type(route.type)
        client = peer.kind in CLIENTS
        if kind is Type.REPLY or (kind is Type.GRANT and _is_handle(route.topic)):
            return self._judge_backward(peer, route, lane)
        if client:
            return self._judge_client(peer, route, lane)
        paths = self._router.routing.explicit(route.target, peer.way)
        if isinstance(paths, Drop):
            return Decision(lane, route, reason=paths.reason)
        if kind is not Type.REQUEST and not paths.here:
            return Decision(lane, route, self._router.links.on(paths))
        return Decision(lane, route, handle=self._pass_request if kind is Type.REQUEST else self._pass, extra=paths)

    def _judge_client(self, peer: Peer, route: Route, lane: Lane) -> Decision:
        try:
            check_topic(route.topic)
            nodes, reachable = self._router.routing.resolve(route.target, self._router.me)
        except (TargetError, TopicError) as error:
            return Decision(lane, route, handle=self._bad_target, extra=str(error))
        onward = Route(
            route.type, route.origin, route.who, route.role, route.handle, fold(reachable), route.topic
        )  # fmt: skip
        paths = self._router.routing.split(reachable, HERE)
        handle = self._begin if route.type == Type.REQUEST else self._follow
        wide = _Wide(nodes, reachable, onward, paths)
        return Decision(lane, route, handle=handle, extra=wide, weight=_NODE_BYTES * len(nodes))

    def _judge_backward(self, peer: Peer, route: Route, lane: Lane) -> Decision:
        """Answers go to the node of the caller, and there to its handle."""
        router = self._router
        if route.target not in router.topology or not _is_handle(route.topic):
            return Decision(lane, route, reason="no-route")
        way = router.directory.way(route.target)
        client = peer.kind in CLIENTS
        if way == HERE:
            return Decision(lane, route, handle=router.services.from_worker_home if client else self.home)
        link = router.links.by_way.get(way)
        if link is None or way == peer.way:
            return Decision(lane, route, reason="no-route")
        if client:
            return Decision(lane, route, handle=router.services.from_worker, extra=link)
        return Decision(lane, route, (link,))

    # The caller's router ----------------------------------------------------------------------------------------------

    def _bad_target(self, peer: Peer, decision: Decision, _: bytes, meta: bytes, __: bytes) -> None:
        self._router.counters["target"] += 1
        if decision.route.type == Type.REQUEST:
            call = wire.decode_meta(wire.RequestMeta, meta).call
            self._router.error(peer, "target", str(decision.extra), call)

    def _begin(self, peer: Peer, decision: Decision, _: bytes, meta: bytes, body: bytes) -> None:
        """A client asks: open the account, send ACCEPT, pass the request on, answer for those that are away."""
        router = self._router
        wide = decision.extra
        assert isinstance(wide, _Wide)  # noqa: S101 - _judge_client put it there
        request = wire.decode_meta(wire.RequestMeta, meta)
        deadline = int(router.now) + max(0, request.budget_ms) + GRACE_MS
        call = self.outgoing.open(peer.handle, request.call, decision.route.topic, wide.nodes, deadline)
        if call is None:
            router.counters["full"] += 1
            router.error(peer, "full", "this call is open already, or too many calls are", request.call)
            return
        router.tell(peer, Type.ACCEPT, wide.accept, wire.CallMeta(request.call))
        for node in wide.nodes - wide.reachable:
            self._settle(call, node, Outcome.UNREACHABLE, self.why_away(node))
        if isinstance(wide.paths, Paths):
            stamped = wire.encode(_stamp(request, request.budget_ms, int(router.now)))
            self._send_on(wide.route, request.call, wide.paths, [wide.onward, stamped, body])
            if wide.paths.here:
                router.services.deliver(wide.route, wide.onward, request, stamped, body)

    def why_away(self, node: str) -> str:
        """Name the lost link that cuts a node off, in words for people."""
        directory = self._router.directory
        top = directory.top(node)
        entry = directory.entries[top]
        if entry.epoch == 0:
            return f"{top} has not been seen since {directory.me} started"
        where = "" if top == node else "below "
        if entry.state != NodeState.LOST:  # it is this side that is cut off
            entry, where = directory.entries[directory.top(directory.me)], "cut off with "
        age = max(0, self._router.clock.wall_ms() - entry.time_ms) / 1000
        return f"{where}{entry.node}, {NodeState(entry.state).name.lower()} ({entry.cause}) for {age:.1f} s"

    def _follow(self, peer: Peer, decision: Decision, _: bytes, meta: bytes, body: bytes) -> None:
        """INPUT, CANCEL or GRANT of a client goes where its request went."""
        wide = decision.extra
        assert isinstance(wide, _Wide)  # noqa: S101 - _judge_client put it there
        call = self.outgoing.get(peer.handle, wire.decode_meta(wire.CallMeta, meta).call)
        if call is None:
            self._router.counters["late"] += 1
            return
        if decision.route.type == Type.CANCEL:
            waiting = call.account.waiting
            self._cancel(call, waiting)
            for node in waiting:
                self._settle(call, node, Outcome.CANCELLED, "cancelled by the caller")
            return
        if isinstance(wide.paths, Paths):
            self._onward(wide.route, wide.onward, wide.paths, decision.lane, meta, body, peer)

    def _cancel(self, call: Call, nodes: frozenset[str]) -> None:
        """Tell `nodes` that nobody waits for their answer any more."""
        self._cancel_at(nodes, (self._router.me, call.handle, call.number), call.command)

    def _cancel_at(self, nodes: frozenset[str], key: Key, command: str) -> None:
        origin, handle, number = key
        paths = self._router.routing.split(nodes, HERE)
        if isinstance(paths, Paths):
            route = Route(Type.CANCEL, origin, "router", Role.ADMIN, handle, fold(nodes), command)
            meta = wire.encode(wire.CallMeta(number))
            self._onward(route, wire.encode(route), paths, Lane.STREAM, meta, b"")

    def home(self, peer: Peer, decision: Decision, route: bytes, meta: bytes, body: bytes) -> None:
        """An answer reached the caller's node: enter it in the account and hand it to the client."""
        router = self._router
        handle = int(decision.route.topic)
        client = router.workers.get(handle)
        if client is None:
            router.counters["late"] += 1
            return
        if decision.route.type == Type.GRANT:
            router.put(client, Lane.CONTROL, [route, meta, body])
            return
        reply = wire.decode_meta(wire.ReplyMeta, meta)
        call = self.outgoing.get(handle, reply.call)
        node = decision.route.origin
        if call is None or not call.account.owes(node):
            router.counters["late"] += 1
            return
        router.put(client, Lane.STREAM, [route, meta, body])
        if reply.flags & Flag.LAST:
            outcome = Outcome(reply.status) if reply.status in Outcome._value2member_map_ else Outcome.FAILED
            call.account.finish(node, outcome)
            self._close_if_done(call)

    def _settle(self, call: Call, node: str, outcome: Outcome, text: str) -> None:
        """This router itself ends a call for one node, in that node's name."""
        if not call.account.finish(node, outcome):
            return
        router = self._router
        client = router.workers.get(call.handle)
        if client is not None:
            route = Route(Type.REPLY, node, "router", Role.ADMIN, 0, router.me, str(call.handle))
            meta = wire.ReplyMeta(call.number, 0, outcome, Flag.LAST, Content.TEXT)
            router.put(client, Lane.STREAM, [wire.encode(route), wire.encode(meta), text.encode()])
        self._close_if_done(call)

    def _close_if_done(self, call: Call) -> None:
        if call.account.closed:
            self.outgoing.close(call)
            client = self._router.workers.get(call.handle)
            if client is not None:
                self._router.tell(client, Type.DONE, call.done(), wire.CallMeta(call.number))

    def tick(self) -> None:
        """End the calls whose time is over."""
        for call in self.outgoing.overdue(int(self._router.now)):
            waiting = call.account.waiting
            self._cancel(call, waiting)
            for node in waiting:
                self._settle(call, node, Outcome.TIMEOUT, "no answer in time")

    def forget(self, peer: Peer) -> None:
        """A client is gone: its calls are cancelled (protocol 10.5)."""
        for call in self.outgoing.of(peer.handle):
            self._cancel(call, call.account.finish_all(Outcome.CANCELLED))
            self.outgoing.close(call)

    def broken(self, nodes: frozenset[str]) -> None:
        """Links broke: nodes beyond owe no answer (protocol 10.2)."""
        for call, owing in self.outgoing.waiting_for(nodes):
            for node in owing:
                self._settle(call, node, Outcome.UNREACHABLE, self.why_away(node))

    # On the way -------------------------------------------------------------------------------------------------------

    def _pass_request(self, peer: Peer, decision: Decision, route: bytes, meta: bytes, body: bytes) -> None:
        """A request from a link: too old ones end here, the others go on with a new stamp (protocol 8.4)."""
        router = self._router
        paths = decision.extra
        assert isinstance(paths, Paths)  # noqa: S101 - judge put it there
        request = wire.decode_meta(wire.RequestMeta, meta)
        age = peer.live.age(request.sent_ms, int(router.now)) if peer.live else 0
        budget = request.budget_ms - age
        if budget <= 0:
            router.counters["stale"] += 1
            return
        stamped = wire.encode(_stamp(request, budget, int(router.now)))
        self._send_on(decision.route, request.call, paths, [route, stamped, body])
        if paths.here:
            router.services.deliver(decision.route, route, _stamp(request, budget, 0), stamped, body)

    def _send_on(self, route: Route, number: int, paths: Paths, items: list[bytes]) -> None:
        """Pass a request on. Nodes behind a link that is far behind are answered for: requests must not end a link."""
        router = self._router
        for link in self._router.links.on(paths):
            if not link.outbox.stream.crowded:
                router.put(link, Lane.STREAM, items)
                continue
            for node in self._beyond(link, route):
                key = (route.origin, route.handle, number)
                router.services.answer(*key, Outcome.REFUSED, _slow(router.me, link), node=node)

    def _pass(self, _: Peer, decision: Decision, route: bytes, meta: bytes, body: bytes) -> None:
        """INPUT, CANCEL or GRANT from a link, meant for this node too."""
        paths = decision.extra
        assert isinstance(paths, Paths)  # noqa: S101 - judge put it there
        self._onward(decision.route, route, paths, decision.lane, meta, body)

    def _onward(
        self, route: Route, data: bytes, paths: Paths, lane: Lane, meta: bytes, body: bytes, source: Peer | None = None
    ) -> None:
        for link in self._router.links.on(paths):
            self.pass_on(link, route, [data, meta, body], lane, source)
        if paths.here:
            self._router.services.to_worker(route, [data, meta, body], lane)

    def pass_on(
        self, link: Peer, route: Route, items: list[bytes], lane: Lane = Lane.STREAM, source: Peer | None = None
    ) -> None:
        """Put an envelope into a link. A chunk that finds no room there ends its call, and not the link (protocol 9.4).

        Raises ProtocolError.
        """
        _, meta, body = items
        if route.type in (Type.REPLY, Type.INPUT) and link.outbox.stream.filling:
            reply = wire.decode_meta(wire.ReplyMeta, meta) if route.type == Type.REPLY else None
            if reply is None or not reply.flags & Flag.LAST or len(body) > _FEW_BYTES:
                self._spill(link, route, wire.decode_meta(wire.CallMeta, meta).call)
                return
        self._router.put(link, lane, items, source)

    def _spill(self, link: Peer, route: Route, number: int) -> None:
        """Answer for the nodes whose REPLY, or for which INPUT, finds no room in a link, and tell them: each once."""
        router = self._router
        if is_reply := route.type == Type.REPLY:
            key, place = (route.target, int(route.topic), number), route.origin
        else:
            key, place = (route.origin, route.handle, number), link.way
        if (key, place) in self._spilled:
            return
        self._spilled[key, place] = None
        if len(self._spilled) > _MAX_SPILLED:
            del self._spilled[next(iter(self._spilled))]
        nodes = frozenset({route.origin}) if is_reply else self._beyond(link, route)
        for node in nodes:
            router.services.answer(*key, Outcome.FAILED, _slow(router.me, link), node=node)
        self._cancel_at(nodes, key, "router.lost")

    def _beyond(self, link: Peer, route: Route) -> frozenset[str]:
        """Return the nodes of an explicit target to which the way is this link."""
        way = self._router.directory.way
        return frozenset(node for node in unfold(route.target, self._router.topology) if way(node) == link.way)


def _slow(me: str, link: Peer) -> str:
    return f"the link from {me} to {link.name} does not keep up"


def _is_handle(topic: str) -> bool:
    """Whether a topic is a caller's handle in decimal; `isdigit` alone takes digits that `int` does not read."""
    return topic.isdigit() and topic.isascii() and len(topic) < 20


def _stamp(request: wire.RequestMeta, budget_ms: int, sent_ms: int) -> wire.RequestMeta:
    return wire.RequestMeta(
        request.call, budget_ms, sent_ms, request.credit, request.flags, request.content, request.person
    )
