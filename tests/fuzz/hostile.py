"""Hostile frames: what a broken or malicious peer might send, made from a seeded random number generator.

Most are nearly right, because those get furthest: right envelopes with one value that is not, right bytes with one byte
changed, right parts in the wrong order, lane or number. The rest is noise, bombs and headers that promise too much.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from tsbus.core import message as wire
from tsbus.core.message import Type

NODES = ("a", "b", "c", "d")
NUMBERS = (0, 1, 2, 3, 7, -1, 255, 65_536, 1 << 31, 1 << 53, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1)
TEXTS = (
    "", "a", "b", "*", ">", "a.b", "a.>", "router.ping", "router.stats", "router.resolve", "x.run", "1", "2", "\u00b2",
    "9" * 30, "..", "node[1-99999]", "[", "@", "!", "./", "router", "uid:0", "uid:1000", "a" * 300, "\x00", "\u202e",
    "all", "subtree", "node", "parent", "adopter", "moved", "a,b,c,d", "[0-9]" * 40,
)  # fmt: skip
KINDS = [kind for kind in Type for _ in range(1 if kind is Type.BYE else 30)]
"""BYE is rare: it ends the connection, and what follows is not looked at."""
DEEP = b"\x91" * 3000 + b"\xc0"
BOMBS = (
    b"", b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff" + b"\xc4\x00" * 50, b"\x93\xc6\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff", DEEP,
    b"\x93\xc4\x00\xc4\x00\xc4\x00" * 3, b"\x90", b"\x93\xc4\x02\x92\x20\xc4\x00\xc4\x00", b"\xc1", b"\xff" * 64,
    wire.encode([b"", b"", b""] * 2000), wire.encode([b"\x91\x04", b"\x92\x01\x01", b""] * 500),
)  # fmt: skip


@dataclass(frozen=True)
class Me:
    """Who the peer is, so that part of what it says is not refused at the first look."""

    node: str = "a"
    who: str = "uid:0"
    role: int = 3
    handle: int = 1


class Hostile:
    """A stream of hostile frames; equal seeds give equal streams."""

    def __init__(self, rng: Random, me: Me, pool: int = 400) -> None:
        self.rng, self.me = rng, me
        self._pool = [self._structured() for _ in range(pool)]

    def frame(self) -> bytes:
        """Return the next frame."""
        rng = self.rng
        frame = self._pool[rng.randrange(len(self._pool))]
        kind = rng.random()
        if kind < 0.4:
            return frame
        if kind < 0.8:
            return self._bent(frame)
        if kind < 0.9:
            self._pool[rng.randrange(len(self._pool))] = frame = self._structured()
            return frame
        return rng.choice(BOMBS) if kind < 0.98 else rng.randbytes(rng.randrange(200))

    def _bent(self, frame: bytes) -> bytes:
        """Change one place."""
        rng = self.rng
        place = rng.randrange(len(frame) + 1)
        how = rng.randrange(4)
        if how == 0:
            return frame[:place]
        if how == 1:
            return frame[:place] + rng.randbytes(1) + frame[place + 1 :]
        if how == 2:
            return frame[:place] + rng.randbytes(rng.randrange(5)) + frame[place:]
        return frame[:place] + frame[place + rng.randrange(5) :]

    def _structured(self) -> bytes:
        count = 1 if self.rng.random() < 0.6 else self.rng.randrange(2, 6)
        items: list[bytes] = []
        while len(items) < 3 * count:
            envelope = self._envelope()
            items += envelope * self.rng.choice((1, 1, 1, 4))
        return wire.encode(items)

    def _envelope(self) -> list[bytes]:
        kind = self.rng.choice(KINDS)
        route = self._route(kind)
        return [self._encoded(route), self._encoded(self._meta(kind)), self._body(kind)]

    def _encoded(self, value: object) -> bytes:
        data = wire.encode(value)
        odd = self.rng.random()
        if odd < 0.02:
            return data[:-1]
        if odd < 0.03 and data[:1] < b"\x9f" and data[:1] >= b"\x90":
            return bytes([data[0] + 1]) + data[1:] + DEEP
        return data + b"\x00" if odd < 0.04 else data

    def _route(self, kind: Type) -> list[Any]:
        rng = self.rng
        if kind < Type.EVENT:
            return [int(kind)] if rng.random() < 0.9 else [self._number(), *self._any()]
        me = self.me
        target = rng.choice(("*", "a", "b", "a,b", "./", ".", *TEXTS))
        topic = rng.choice(("a", "a.b", "router.ping", "router.stats", "router.status", "x.run", "1", *TEXTS))
        route: list[Any] = [int(kind), me.node, me.who, me.role, me.handle, target, topic]
        for place in range(7):
            if rng.random() < 0.03:
                route[place] = self._value()
        if rng.random() < 0.1:
            route[1] = rng.choice(NODES)
        return route[: rng.randrange(8)] if rng.random() < 0.03 else route

    def _meta(self, kind: Type) -> list[Any]:
        rng = self.rng
        call = rng.randrange(5)
        metas: dict[Type, list[Any]] = {
            Type.PING: [call, 1], Type.PONG: [call, 1], Type.CREDIT: [rng.choice(NUMBERS), rng.choice(NUMBERS)],
            Type.EVENT: [1, call, 0, 0],
            Type.REQUEST: [call, rng.choice((0, 10, 10_000)), 0, 65536, rng.randrange(8), 0],
            Type.REPLY: [call, 0, rng.randrange(9), rng.randrange(8), 0], Type.INPUT: [call, 0, rng.randrange(8), 0],
            Type.CANCEL: [call], Type.GRANT: [call, rng.choice(NUMBERS)],
        }  # fmt: skip
        meta = metas.get(kind, [])
        if meta and rng.random() < 0.15:
            meta[rng.randrange(len(meta))] = self._value()
        return meta if rng.random() < 0.97 else self._any()

    def _body(self, kind: Type) -> bytes:
        rng = self.rng
        if rng.random() < 0.05:
            return rng.choice(BOMBS)
        bodies = {
            Type.HELLO: self._hello, Type.WELCOME: self._hello, Type.BYE: lambda: {"reason": self._text(), "text": ""},
            Type.DIRECTORY: lambda: {"entries": self._entries()},
            Type.INTEREST: lambda: {"add": self._texts(), "remove": self._texts()},
            Type.GAP: lambda: {"count": self._number(), "at": self._text()},
            Type.SUBSCRIBE: lambda: {"pattern": self._text(), "scope": rng.choice(("all", "subtree", "node", "x"))},
            Type.UNSUBSCRIBE: lambda: {"pattern": self._text(), "scope": rng.choice(("all", "subtree", "node", "x"))},
            Type.SERVE: lambda: {"service": self._text(), "commands": {self._text(): self._number()}},
            Type.WATCH: lambda: {"id": self._number(), "pattern": self._text()},
        }  # fmt: skip
        if kind not in bodies:
            return rng.choice((b"", b"x", b'{"target": "*"}', b"[" * 3000, b'{"target": [[1]]}', rng.randbytes(20)))
        body: dict[str, Any] = bodies[kind]()
        if rng.random() < 0.2:
            body[rng.choice(list(body))] = self._value()
        data = wire.encode(body)
        if rng.random() < 0.03:
            return bytes([data[0] + 1]) + data[1:] + b"\xa1?" + DEEP
        return data

    def _hello(self) -> dict[str, Any]:
        rng = self.rng
        link = {
            "node": rng.choice(NODES), "release": "1", "config": "", "max_body": 1, "clock_ms": self._number(),
            "entries": self._entries(), "interest": self._texts(), "as": rng.choice(("parent", "adopter")),
        }  # fmt: skip
        common = {"versions": rng.choice(([1, 1], [2, 9], [1, 1], [0, 0])), "name": "x", "incarnation": 1}
        return common | {"window": rng.choice((1 << 20, self._number()))} | (link if rng.random() < 0.5 else {})

    def _entries(self) -> list[Any]:
        rng = self.rng
        return [
            [rng.choice((*NODES, "")), rng.choice(NUMBERS), rng.choice((0, 1, 5, *NUMBERS)),
             rng.choice((1, 2, 3, 3, 9)), rng.choice((*NODES, "")),
             1, rng.choice(("joined", "moved", "closed", "x" * 99)), rng.choice(NUMBERS)]
            for _ in range(rng.randrange(4))
        ]  # fmt: skip

    def _value(self) -> Any:
        rng = self.rng
        return rng.choice((self._number(), self._text(), None, True, 1.5, b"x", [], {}, self._any(), [[[[]]]]))

    def _any(self) -> list[Any]:
        return [self._number() for _ in range(self.rng.randrange(9))]

    def _number(self) -> int:
        return self.rng.choice(NUMBERS)

    def _text(self) -> str:
        return self.rng.choice(TEXTS)

    def _texts(self) -> list[str]:
        return [self._text() for _ in range(self.rng.randrange(4))]


def pings(frame: bytes) -> list[int]:
    """Return the ids of the PONGs in a frame."""
    items = msgspec.msgpack.decode(frame)
    return [
        wire.decode_meta(wire.PingMeta, meta).id
        for route, meta in zip(items[0::3], items[1::3], strict=True)
        if route == wire.LOCAL_ROUTE[Type.PONG]
    ]
