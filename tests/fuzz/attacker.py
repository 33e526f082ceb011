"""One attacker process: connects, says a right HELLO, sends hostile frames, and connects anew when it is dismissed.

Reads its orders as JSON on its command line (see Orders); prints how many frames it has sent.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from random import Random

import zmq
from hostile import Hostile, Me

from tsbus.core import message as wire
from tsbus.core.message import Type

BYE = wire.LOCAL_ROUTE[Type.BYE]
WELCOME = wire.LOCAL_ROUTE[Type.WELCOME]
BURST = 25
"""Frames between two looks at what came back."""
PERSISTENCE = 250
"""Frames on one connection at most."""


@dataclass
class Orders:
    """`kind`: worker, operator, parent (connect to `address`) or child (binds it). Keys are empty for a worker."""

    kind: str
    address: str
    frames: int
    seed: int
    node: str
    public: str = ""
    secret: str = ""
    server: str = ""
    limit_s: float = 600.0

    def text(self) -> str:
        """Return them for a command line."""
        return json.dumps(asdict(self))


class Attacker:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.rng = Random(orders.seed)
        self.sent = 0
        self.context = zmq.Context()
        self.who = {"worker": "uid:0", "operator": "operator:eve"}.get(orders.kind, "")
        self.deadline = time.monotonic() + orders.limit_s

    @property
    def goes_on(self) -> bool:
        return self.sent < self.orders.frames and time.monotonic() < self.deadline

    def run(self) -> int:
        """Attack; returns how many frames were sent."""
        while self.goes_on:
            if self.orders.kind == "child":
                self.be_dialled()
            else:
                self.connect()
        return self.sent

    def connect(self) -> None:
        """One connection, from HELLO to BYE."""
        orders = self.orders
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        if orders.secret:
            socket.curve_publickey, socket.curve_secretkey = orders.public.encode(), orders.secret.encode()
            socket.curve_serverkey = orders.server.encode()
        socket.connect(orders.address)
        is_link = orders.kind == "parent"
        socket.send(link_hello("a") if is_link else wire.encode_frame(wire.local(Type.HELLO, WORKER)))
        me = Me("a", "uid:0", 3, 1)
        if not is_link and socket.poll(5000):
            items = wire.decode_frame(socket.recv())
            if items[0] == WELCOME:
                welcome = wire.decode_body(wire.WorkerWelcome, items[2])
                me = Me(welcome.node, welcome.who, welcome.role, welcome.handle)
        hostile = Hostile(self.rng, me, pool=60)
        for _ in range(PERSISTENCE // BURST):
            for _ in range(BURST):
                if socket.poll(1000, zmq.POLLOUT):
                    socket.send(hostile.frame(), zmq.NOBLOCK)
                    self.sent += 1
            if not self.goes_on or is_dismissed(socket):
                break
        socket.close()

    def be_dialled(self) -> None:
        """Stand in for a child: welcome the router that dials, attack it until it hangs up."""
        orders = self.orders
        socket = self.context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = orders.public.encode(), orders.secret.encode()
        socket.bind(orders.address)
        hostile = Hostile(self.rng, Me(orders.node, "uid:0", 3, 1))
        while self.goes_on:
            if not socket.poll(100):
                continue
            parent, _ = socket.recv_multipart()
            socket.send_multipart([parent, link_hello(orders.node, Type.WELCOME)])
            for _ in range(PERSISTENCE):
                socket.send_multipart([parent, hostile.frame()])
                self.sent += 1


WORKER = wire.WorkerHello(versions=(1, 1), name="eve", incarnation=1, window=1 << 20)


def link_hello(name: str, kind: Type = Type.HELLO) -> bytes:
    hello = wire.LinkHello(
        versions=(1, 1), node=name, incarnation=1, release="", config="", window=1 << 20, max_body=1 << 20,
        clock_ms=int(time.monotonic() * 1000), interest=[">"],
        entries=[wire.Entry(name, time.time_ns() // 1_000_000, 0, 1, "" if name == "a" else "b", 1, "joined", 0)],
    )  # fmt: skip
    return wire.encode_frame(wire.local(kind, hello))


def is_dismissed(socket: "zmq.Socket[bytes]") -> bool:
    """Read what came back; tell whether it says BYE."""
    while socket.poll(0):
        if BYE in wire.decode_frame(socket.recv())[0::3]:
            return True
    return False


if __name__ == "__main__":
    print(Attacker(Orders(**json.loads(sys.argv[1]))).run())
