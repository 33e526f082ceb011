"""Peers that speak the protocol by hand over bare sockets, honestly or not: workers, parents, children, strangers."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import zmq
from tree import Tree, until
from waiting import wait

from tsbus.core import message as wire
from tsbus.core.message import Route, Type
from tsbus.core.roles import Role
from tsbus.supervision.local import port_is_free
from tsbus.transport import Curve

WINDOW = 1 << 20


@dataclass
class Heard:
    """An envelope that arrived."""

    route: Route
    meta: bytes
    body: bytes

    @property
    def type(self) -> Type:
        return Type(self.route.type)

    def map(self) -> dict[str, Any]:
        """Return the body of a local type."""
        return wire.decode_body(dict, self.body)


class Peer:
    """A DEALER that connects: to a node's ipc socket, or to its port with a key."""

    def __init__(self, address: str, keys: Curve | None = None, **options: Any) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        for name, value in options.items():
            setattr(self.socket, name, value)
        if keys is not None:
            self.socket.curve_publickey = keys.public.encode()
            self.socket.curve_secretkey = keys.secret.encode()
            self.socket.curve_serverkey = keys.server.encode()
        self.socket.connect(address)
        self.heard: list[Heard] = []
        self.bytes_in = [0, 0]
        """Bytes of frames of the stream and the event lane."""
        self.acknowledges = True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Speaking.

    def send(self, *envelopes: list[bytes]) -> None:
        """Send envelopes in one frame."""
        self.socket.send(wire.encode_frame([part for envelope in envelopes for part in envelope]))

    def local(self, kind: Type, body: object = None, meta: object = ()) -> None:
        self.send(wire.local(kind, body, meta))

    # Listening.

    def listen(self) -> None:
        """Take what has arrived; acknowledge it."""
        while self.socket.poll(0):
            self.take(self.socket.recv())

    def take(self, frame: bytes) -> None:
        items = wire.decode_frame(frame)
        for place in range(0, len(items), 3):
            self.heard.append(Heard(wire.decode_route(items[place]), items[place + 1], items[place + 2]))
        lane = wire.LANE_OF[Type(self.heard[-1].route.type)]
        if lane and self.acknowledges:
            self.bytes_in[lane - 1] += len(frame)
            self.local(Type.CREDIT, meta=wire.CreditMeta(*self.bytes_in))

    def of(self, kind: Type) -> list[Heard]:
        """Return the envelopes of one type that arrived so far."""
        self.listen()
        return [heard for heard in self.heard if heard.type is kind]

    async def wait(self, kind: Type, count: int = 1) -> Heard:
        """Wait for the `count`-th envelope of this type."""
        found: list[Heard] = await until(
            f"{kind.name} number {count}; there came {self.heard[-5:]}",
            lambda: found if len(found := self.of(kind)) >= count else None,
        )
        return found[count - 1]

    async def settled(self) -> None:
        """Wait until the router has handled all that was said so far."""
        number = time.monotonic_ns()
        self.local(Type.PING, meta=wire.PingMeta(number, 0))

        def answered() -> bool:
            return any(wire.decode_meta(wire.PingMeta, pong.meta).id == number for pong in self.of(Type.PONG))

        await until("PONG", answered)


class RawWorker(Peer):
    """A worker, or an operator's console with keys; `await hello()` first."""

    welcome: wire.WorkerWelcome

    async def hello(self, name: str = "raw", window: int = WINDOW) -> Self:
        hello = wire.WorkerHello(versions=(1, 1), name=name, incarnation=1, window=window)
        self.local(Type.HELLO, hello)
        self.welcome = wire.decode_body(wire.WorkerWelcome, (await self.wait(Type.WELCOME)).body)
        return self

    def routed(
        self, kind: Type, target: str, topic: str, meta: object, body: bytes = b"", **forged: Any
    ) -> list[bytes]:
        """Return a routed envelope of ours; `forged` replaces elements of its route."""
        me = self.welcome
        mine = {"origin": me.node, "who": me.who, "role": me.role, "handle": me.handle}
        route = Route(kind, target=target, topic=topic, **(mine | forged))
        return [wire.encode(route), wire.encode(meta), body]

    def say(self, kind: Type, target: str, topic: str, meta: object, body: bytes = b"", **forged: Any) -> None:
        self.send(self.routed(kind, target, topic, meta, body, **forged))

    def request(self, target: str, command: str, call: int, body: bytes = b"", budget_ms: int = 10_000) -> None:
        self.say(Type.REQUEST, target, command, wire.RequestMeta(call, budget_ms, 0, 65_536), body)

    async def counters(self, call: int = 777) -> dict[str, int]:
        """Ask the router for its counters."""
        before = len(self.of(Type.DONE))
        self.request(".", "router.stats", call)
        await self.wait(Type.DONE, before + 1)
        reply = self.of(Type.REPLY)[-1]
        found: dict[str, int] = wire.msgspec.json.decode(reply.body)["counters"]
        return found


class RawParent(Peer):
    """A router above `node` by the key of `name`: whatever else it says."""

    def __init__(self, tree: Tree, node: str, name: str) -> None:
        super().__init__(tree.address(node), tree.keys(node, tree.secrets[name]))
        self.name = name

    def hello(self, entries: Iterable[wire.Entry] = (), interest: Iterable[str] = (), **changed: Any) -> None:
        self.local(Type.HELLO, link_hello(self.name, entries, interest, **changed))


def link_hello(
    name: str, entries: Iterable[wire.Entry] = (), interest: Iterable[str] = (), **changed: Any
) -> wire.LinkHello:
    """Return HELLO or WELCOME of a router."""
    fields: dict[str, Any] = {
        "versions": (1, 1), "node": name, "incarnation": 1, "release": "raw", "config": "", "window": WINDOW,
        "max_body": 1 << 20, "clock_ms": int(time.monotonic() * 1000), "entries": list(entries),
        "interest": list(interest),
    }  # fmt: skip
    return wire.LinkHello(**(fields | changed))


@dataclass
class RawChild:
    """A router in the place of `name`, with its key: it answers the parent's HELLO, and PINGs if `answers_pings`."""

    tree: Tree
    name: str
    answers_pings: bool = True
    interest: tuple[str, ...] = ()
    entries: list[wire.Entry] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    epoch: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def __post_init__(self) -> None:
        server = self.tree.config.servers[self.name]
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.curve_server = True
        self.socket.curve_publickey = server.public_key.encode()
        self.socket.curve_secretkey = self.tree.secrets[self.name].encode()
        self.socket.bind(self.tree.address(self.name))
        self.parent = b""

    def close(self) -> None:
        """Close it; libzmq does so later, and until then no router can have the port."""
        self.socket.close()
        server = self.tree.config.servers[self.name]
        wait("the port is free", lambda: port_is_free(server.ip, server.service_port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def entry(self, node: str, parent: str, **changed: Any) -> wire.Entry:
        """Return a directory entry that beats what is known."""
        fields: dict[str, Any] = {"epoch": self.epoch, "rev": 0, "state": 1, "incarnation": 1, "cause": "joined"}
        return wire.Entry(node=node, parent=parent, time_ms=0, **(fields | changed))

    def listen(self) -> None:
        while self.socket.poll(0):
            self.parent, frame = self.socket.recv_multipart()
            items = wire.decode_frame(frame)
            for place in range(0, len(items), 3):
                heard = Heard(wire.decode_route(items[place]), items[place + 1], items[place + 2])
                self.heard.append(heard)
                self._answer(heard)

    def _answer(self, heard: Heard) -> None:
        if heard.type is Type.HELLO:
            self.epoch += 1
            above = self.tree.topology.parent(self.name) or ""
            entries = [self.entry(self.name, above), *self.entries]
            self.local(Type.WELCOME, link_hello(self.name, entries, self.interest))
        elif heard.type is Type.PING and self.answers_pings:
            self.send([wire.LOCAL_ROUTE[Type.PONG], heard.meta, b""])

    def send(self, *envelopes: list[bytes]) -> None:
        self.socket.send_multipart([self.parent, wire.encode_frame([part for one in envelopes for part in one])])

    def local(self, kind: Type, body: object = None, meta: object = ()) -> None:
        self.send(wire.local(kind, body, meta))

    def routed(self, kind: Type, target: str, topic: str, meta: object, body: bytes = b"", **route: Any) -> list[bytes]:
        """Return a routed envelope; `route` says who is its author."""
        author = {"origin": self.name, "who": "uid:0", "role": int(Role.ADMIN), "handle": 1}
        return [wire.encode(Route(kind, target=target, topic=topic, **(author | route))), wire.encode(meta), body]

    def of(self, kind: Type) -> list[Heard]:
        self.listen()
        return [heard for heard in self.heard if heard.type is kind]

    async def wait(self, kind: Type, count: int = 1) -> Heard:
        """Wait for the `count`-th envelope of this type."""
        found: list[Heard] = await until(
            f"{kind.name} number {count}", lambda: found if len(found := self.of(kind)) >= count else None
        )
        return found[count - 1]
