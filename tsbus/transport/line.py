"""Line: a socket and the monitor that tells of its connections: bound (listener.py), dialled (dial.py), a client's."""

import random
from collections.abc import Iterator
from typing import Any, Self

import zmq
from zmq.utils.monitor import parse_monitor_message

from tsbus.transport.keys import Curve, as_client
from tsbus.transport.options import FAILED, NOBLOCK, Socket, beat, descriptor_of, new_socket, readable

_MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | sum(FAILED)


class Line:
    """The `socket` has the options of all; the `monitor` is there before anything can happen to it."""

    def __init__(self, context: "zmq.Context[Any]", kind: int) -> None:
        """`kind` is one of libzmq's, like `zmq.ROUTER`. Raises ZMQError when no file descriptor is left."""
        self.socket = new_socket(context, kind)
        try:
            self.monitor: Socket = self.socket.get_monitor_socket(_MONITORED)
        except zmq.ZMQError:
            self.socket.close(0)
            raise
        self.descriptor = descriptor_of(self.socket)

    @classmethod
    def dialling(
        cls, context: "zmq.Context[Any]", keys: Curve | None, heartbeat: tuple[int, int], again_ms: tuple[int, int]
    ) -> Self:
        """Make one that connects, with `keys` only if that is over TCP. Raises ZMQError like the constructor.

        `heartbeat` is that of `options.beat`; a random time in the range `again_ms` passes before it connects again.
        """
        line = cls(context, zmq.DEALER)
        line.socket.setsockopt(zmq.IMMEDIATE, 1)  # P4: nothing is kept for the next incarnation
        # P5: with RECONNECT_IVL_MAX set libzmq has no jitter at all, so the interval itself is random.
        line.socket.setsockopt(zmq.RECONNECT_IVL, random.randint(*again_ms))  # noqa: S311
        if keys is not None:
            beat(line.socket, *heartbeat)
            as_client(line.socket, keys)
        return line

    def send(self, frame: bytes) -> bool:
        """Hand over one frame; False if that would block."""
        try:
            self.socket.send(frame, NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def events(self) -> Iterator[tuple[int, int]]:
        """Yield what the monitor tells, an event and mostly a descriptor, while there is more and the line is open."""
        while not self.monitor.closed and readable(self.monitor):
            message = parse_monitor_message(self.monitor.recv_multipart(NOBLOCK))
            yield message["event"], int(message["value"])

    def close(self, linger_ms: int = 0) -> None:
        """Close both; what was sent gets `linger_ms` to leave."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger_ms)
