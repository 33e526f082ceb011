"""Services: what the workers of a node serve, and the requests that they get (protocol sections 10.1 to 10.4).

Part of the router (router.py): the end of a call where it is answered. Where it was made is in commands.py.
"""

import json
from typing import TYPE_CHECKING

from tsbus import builtin
from tsbus.core import message as wire
from tsbus.core.accounting import Outcome
from tsbus.core.calls import Key, Serving
from tsbus.core.directory import HERE
from tsbus.core.exchanges import MAX_SERVED
from tsbus.core.message import Content, Flag, Lane, Route, Type
from tsbus.core.roles import Role
from tsbus.core.target import TargetError, resolve
from tsbus.core.topic import TopicError, check_topic, matches
from tsbus.peer import Decision, Peer

if TYPE_CHECKING:
    from tsbus.router import Router

_MAX_COMMANDS = 1000
_NOT_EVEN = (Outcome.REFUSED, "this needs the role observe")


class Services:
    """The commands that one router's workers serve, and the calls that they have."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self.serving = Serving()
        self._workers: dict[str, list[Peer]] = {}
        """Who serves a command, "service.command"."""
        self._turn = 0

    def on_serve(self, peer: Peer, _: Decision, __: bytes, ___: bytes, body: bytes) -> None:
        """A worker offers commands (protocol 3, SERVE)."""
        serve = wire.decode_body(wire.Serve, body)
        if serve.service == "router":
            self._router.error(peer, "refused", "the service name router is the router's own")
            return
        for command, role in serve.commands.items():
            name = f"{serve.service}.{command}"
            try:
                check_topic(name)
            except TopicError as error:
                self._router.error(peer, "target", str(error))
                return
            if len(peer.services) >= _MAX_COMMANDS:
                self._router.error(peer, "full", f"{_MAX_COMMANDS} commands, no more")
                return
            if not self._claim(peer, name):
                return
            if name not in peer.services:
                self._workers.setdefault(name, []).append(peer)
            peer.services[name] = max(Role.OBSERVE, min(role, Role.ADMIN))

    def _claim(self, peer: Peer, name: str) -> bool:
        """Whether the worker may serve a command: not beside somebody else's workers, unless its role is higher.

        Otherwise any local user could take the requests that are meant for the executor (protocol 10.1).
        """
        rivals = [worker for worker in self._workers.get(name, ()) if worker.who != peer.who]
        for rival in rivals:
            if rival.role >= peer.role:
                self._router.counters["refused"] += 1
                self._router.error(peer, "refused", f"{name} is served by {rival.who} already")
                return False
        for rival in rivals:
            self._withdraw(rival, name)
            del rival.services[name]
            self._router.error(rival, "refused", f"{name} is served by {peer.who} now, whose role is higher")
        return True

    def _withdraw(self, peer: Peer, name: str) -> None:
        self._workers[name].remove(peer)
        if not self._workers[name]:
            del self._workers[name]

    def forget(self, peer: Peer) -> None:
        """A worker is gone: what it worked on has failed (protocol 10.3)."""
        for name in peer.services:
            self._withdraw(peer, name)
        for key in self.serving.of(peer.handle):
            self.serving.end(key)
            self.answer(*key, Outcome.FAILED, f"the worker {peer.name} ended before it answered")

    def broken(self, nodes: frozenset[str]) -> None:
        """Links broke: callers beyond get no answer (protocol 10.5)."""
        for key in self.serving.from_nodes(nodes):
            self._end(key)

    def deliver(self, route: Route, data: bytes, request: wire.RequestMeta, meta: bytes, body: bytes) -> None:
        """Hand a request to a worker, or answer at once why not (protocol 10.1, 10.3, 10.4)."""
        router = self._router
        origin, handle, number = route.origin, route.handle, request.call
        role = router.routing.role(route, self._granted(route))
        if route.topic.startswith("router."):
            outcome, answer = builtin.answer(router, route.topic, body) if role >= Role.OBSERVE else _NOT_EVEN
            self.answer(origin, handle, number, outcome, json.dumps(answer), Content.JSON)
            return
        workers = self._workers.get(route.topic)
        if not workers:
            text = f"no worker on {router.me} serves {route.topic}"
            self.answer(origin, handle, number, Outcome.NO_SUCH_SERVICE, text)
            return
        self._turn += 1
        turns = (workers[(self._turn + place) % len(workers)] for place in range(len(workers)))
        worker = next((worker for worker in turns if not self._why_busy(worker)), None)
        if worker is None:
            text = f"the worker that serves {route.topic} on {router.me} {self._why_busy(workers[0])}"
            self.answer(origin, handle, number, Outcome.REFUSED, text)
            return
        required = Role(worker.services[route.topic])
        if role < required:
            text = f"{route.who} of {origin} has the role {role.name.lower()} on {router.me}; {route.topic} needs "
            self.answer(origin, handle, number, Outcome.REFUSED, text + required.name.lower())
            return
        if not self.serving.begin((origin, handle, number), worker.handle):
            router.counters["refused"] += 1
            return
        router.put(worker, Lane.STREAM, [data, meta, body])

    def _why_busy(self, worker: Peer) -> str:
        """Say why a worker gets no more requests now; empty if it does."""
        if worker.outbox.stream.crowded:
            return "does not keep up"
        if self.serving.count(worker.handle) >= MAX_SERVED:
            return f"has {MAX_SERVED:,} calls under way, and gets no more before it ends some"
        return ""

    def _granted(self, route: Route) -> Role:
        """The role that this node's policy gives to requests from elsewhere than above ([[policy.allow]])."""
        router = self._router
        granted = Role.NONE
        for rule in router.tree.policy_for(router.me).allow:
            if any(matches(pattern, route.topic) for pattern in rule.commands):
                try:
                    if route.origin in resolve(rule.origin, router.topology, router.me):
                        granted = max(granted, rule.role)
                except TargetError:
                    continue
        return granted

    def from_worker(self, peer: Peer, decision: Decision, route: bytes, meta: bytes, body: bytes) -> None:
        """An answer of a local worker for a caller elsewhere."""
        link = decision.extra
        assert isinstance(link, Peer)  # noqa: S101 - Commands._judge_backward put it there
        if self._is_theirs(peer, decision.route, meta):
            self._router.commands.pass_on(link, decision.route, [route, meta, body], decision.lane, source=peer)

    def from_worker_home(self, peer: Peer, decision: Decision, route: bytes, meta: bytes, body: bytes) -> None:
        """An answer of a local worker for a caller on this node."""
        if self._is_theirs(peer, decision.route, meta):
            self._router.commands.home(peer, decision, route, meta, body)

    def _is_theirs(self, peer: Peer, route: Route, meta: bytes) -> bool:
        """Whether the worker has this call, which ends with its last reply."""
        if route.type == Type.GRANT:
            number, flags = wire.decode_meta(wire.CallMeta, meta).call, 0
        else:
            reply = wire.decode_meta(wire.ReplyMeta, meta)
            number, flags = reply.call, reply.flags
        key = (route.target, int(route.topic), number)
        if self.serving.worker(key) != peer.handle:
            self._router.counters["late"] += 1
            return False
        if flags & Flag.LAST:
            self.serving.end(key)
        return True

    def to_worker(self, route: Route, items: list[bytes], lane: Lane) -> None:
        """INPUT, CANCEL or GRANT for a call that a worker here has."""
        router = self._router
        key = (route.origin, route.handle, wire.decode_meta(wire.CallMeta, items[1]).call)
        worker = router.workers.get(self.serving.worker(key) or 0)
        if worker is None:
            router.counters["late"] += 1
            return
        if route.type == Type.INPUT and worker.outbox.stream.filling:
            # It would overflow, and end with the worker's connection what the worker does for others.
            self._end(key)
            self.answer(*key, Outcome.FAILED, f"the worker {worker.name} does not keep up with its input")
            return
        router.put(worker, lane, items)
        if route.type == Type.CANCEL:
            self.serving.end(key)

    def _end(self, key: Key) -> None:
        """The caller is lost: the worker is told as if it had cancelled."""
        worker = self._router.workers.get(self.serving.worker(key) or 0)
        self.serving.end(key)
        if worker is not None:
            origin, handle, number = key
            route = Route(Type.CANCEL, origin, "router", Role.ADMIN, handle, self._router.me, "router.lost")
            items = [wire.encode(route), wire.encode(wire.CallMeta(number)), b""]
            self._router.put(worker, Lane.STREAM, items)

    def answer(
        self,
        origin: str,
        handle: int,
        number: int,
        outcome: Outcome,
        body: str | bytes,
        content: int = Content.TEXT,
        node: str | None = None,
    ) -> None:
        """Send the only and last reply of this node, or of `node` beyond, from the router itself."""
        router = self._router
        route = Route(Type.REPLY, node or router.me, "router", Role.ADMIN, 0, origin, str(handle))
        meta = wire.ReplyMeta(number, 0, outcome, Flag.LAST, content)
        data = body.encode() if isinstance(body, str) else body
        if len(data) > router.settings.max_body_bytes:
            text = f"the answer is {len(data)} bytes long, more than a body may be"
            self.answer(origin, handle, number, Outcome.FAILED, text)
            return
        items = [wire.encode(route), wire.encode(meta), data]
        way = router.directory.way(origin)
        if way == HERE:
            decision = Decision(Lane.STREAM, route)
            client = router.workers.get(handle)
            if client is not None:
                router.commands.home(client, decision, *items)
        elif way in router.links.by_way:
            router.put(router.links.by_way[way], Lane.STREAM, items)
