"""The floor: routers that are libzmq's own C proxy, with the thinnest Python clients at the ends.

One event is one message of two frames, topic and body, as programs on bare ZeroMQ send them; nothing is routed,
addressed, encrypted or bounded. `zmqproxy_1frame` is the same with both in one frame. Request and answer go through a
second chain of ROUTER/DEALER proxies in the same processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time

import zmq

from bench.contestant import Contestant, Tree
from bench.harness import Fleet, free_ports

TOPIC = b"bench.event"


class ZmqProxy(Contestant):
    name = "zmq.proxy"

    def version(self) -> str:
        return f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"

    def start(self, fleet: Fleet, tree: Tree) -> None:
        self.ports = [free_ports(3) for _ in tree]
        answers = free_ports(1)[0]  # the last router's way to whoever answers
        for router, parent in enumerate(tree):
            events_in, events_out, requests = self.ports[router]
            child = next((index for index, above in enumerate(tree) if above == router), None)
            spec = {
                "bind": [events_in, events_out, requests],
                "upstream": None if parent is None else self.ports[parent][1],
                "onward": None if child is None else self.ports[child][2],
                "answers": answers if router == len(tree) - 1 else None,
            }
            fleet.python(f"router {router + 1}", __name__, json.dumps(spec), ports=self.ports[router])
        self.answers = answers

    def endpoint(self, router: int, kind: str) -> str:
        column = {"Publisher": 0, "Subscriber": 1, "Requester": 2}.get(kind)
        return f"tcp://127.0.0.1:{self.answers if column is None else self.ports[router][column]}"


def _socket(kind: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.hwm = 0  # nothing may be lost, so nothing is bounded
    socket.linger = 0
    return socket


def run_router(spec: dict[str, object]) -> None:
    events_in, events_out, requests = (f"tcp://127.0.0.1:{port}" for port in spec["bind"])  # type: ignore[attr-defined]
    xsub, xpub, router, dealer = (_socket(kind) for kind in (zmq.XSUB, zmq.XPUB, zmq.ROUTER, zmq.DEALER))
    if spec["upstream"]:
        xsub.connect(f"tcp://127.0.0.1:{spec['upstream']}")
    if spec["onward"]:
        dealer.connect(f"tcp://127.0.0.1:{spec['onward']}")
    if spec["answers"]:
        dealer.bind(f"tcp://127.0.0.1:{spec['answers']}")
    xsub.bind(events_in)
    xpub.bind(events_out)
    router.bind(requests)
    threading.Thread(target=zmq.proxy, args=(router, dealer), daemon=True).start()
    zmq.proxy(xsub, xpub)


class Publisher:
    def __init__(self, endpoint: str, connections: int) -> None:
        self._sockets = [_socket(zmq.PUB) for _ in range(connections)]
        for socket in self._sockets:
            socket.connect(endpoint)

    def send(self, count: int, body: bytes) -> None:
        for socket in itertools.islice(itertools.cycle(self._sockets), count):
            socket.send_multipart([TOPIC, body])


class Subscriber:
    def __init__(self, endpoint: str, connections: int) -> None:
        self._sockets = [_socket(zmq.SUB) for _ in range(connections)]
        for socket in self._sockets:
            socket.connect(endpoint)
            socket.subscribe(TOPIC)

    def receive(self, each: int, size: int, silence_s: float) -> int:
        received = 0
        for socket in self._sockets:
            socket.rcvtimeo = int(silence_s * 1000)
            missing = each
            with contextlib.suppress(zmq.Again):  # silence: the rest is lost
                while missing:
                    missing -= self.size_of_next(socket) == size
            received += each - missing
        return received

    def size_of_next(self, socket: zmq.Socket[bytes]) -> int:
        return len(socket.recv_multipart()[1])


class Requester:
    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.REQ)
        self._socket.connect(endpoint)

    def ask(self, seconds: float, body: bytes) -> list[float]:
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            self._socket.send(body)
            self._socket.recv()
            latencies.append(time.perf_counter() - start)
        return latencies


class Answerer:
    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.REP)
        self._socket.connect(endpoint)

    def serve(self) -> None:
        while True:
            self._socket.send(self._socket.recv())


if __name__ == "__main__":
    run_router(json.loads(sys.argv[1]))
