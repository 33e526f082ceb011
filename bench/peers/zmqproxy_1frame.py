"""The absolute floor: as `zmqproxy`, but topic and body share one frame, which halves the work of libzmq and Python."""

from __future__ import annotations

import itertools

import zmq

from bench.peers import zmqproxy
from bench.peers.zmqproxy import TOPIC


class ZmqProxy1Frame(zmqproxy.ZmqProxy):
    name = "zmq.proxy-1frame"
    can_ask = False


class Publisher(zmqproxy.Publisher):
    def send(self, count: int, body: bytes) -> None:
        for socket in itertools.islice(itertools.cycle(self._sockets), count):
            socket.send(TOPIC + body)


class Subscriber(zmqproxy.Subscriber):
    def size_of_next(self, socket: zmq.Socket[bytes]) -> int:
        return len(socket.recv()) - len(TOPIC)
