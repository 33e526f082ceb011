"""Options: what all sockets of both sides have (protocol 1.4), and how each of them is looked at."""

from typing import Any, TypeAlias

import zmq

from tsbus.core.message import MAX_FRAME

Socket: TypeAlias = zmq.Socket[Any]

# Plain numbers, because combining the library's own flags makes an object each time, on every message.
NOBLOCK = int(zmq.NOBLOCK)
SNDMORE = int(zmq.SNDMORE)
POLLIN = int(zmq.POLLIN)
POLLOUT = int(zmq.POLLOUT)

ROUND_BYTES = 512 * 1024
"""A socket is read for so many bytes in one round, then the others have their turn."""
FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
)
"""Events of a monitor after which libzmq gives up for good (P6)."""
_HWM = 256
"""Messages in each libzmq pipe: the window bounds bytes, this only bounds the number of tiny messages (P11)."""
_BEATING_HWM = 128 * 1024
"""Messages that wait to be read where there are heartbeats: more than fit into the windows (P14)."""
_SOCKET_BUFFER = 1024 * 1024
_HANDSHAKE_MS = 5000


class TransportError(Exception):
    """The sockets cannot be opened; the text says which and what to do."""


def new_socket(context: "zmq.Context[Any]", kind: int) -> Socket:
    """Return a socket with the options of all. Raises ZMQError when no file descriptor is left for it."""
    socket: Socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = _HWM
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.SNDBUF, _SOCKET_BUFFER)
    socket.setsockopt(zmq.RCVBUF, _SOCKET_BUFFER)
    socket.setsockopt(zmq.IPV6, 1)
    return socket


def beat(socket: Socket, every_ms: int, timeout_ms: int) -> None:
    """Set the second detector: a frozen or cut-off host (protocol 8.1)."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, every_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, timeout_ms)
    socket.setsockopt(zmq.HEARTBEAT_TTL, timeout_ms)
    socket.rcvhwm = _BEATING_HWM


def descriptor_of(socket: Socket) -> int:
    """Return the file descriptor that becomes readable when something happens, once for each time (P13)."""
    return int(socket.FD)


def readable(socket: Socket) -> bool:
    """Tell whether there is something to receive."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & POLLIN)


def skip(socket: Socket) -> None:
    """Drop the further parts of a message: the protocol has one (2.1); the caller sees an empty, malformed frame."""
    while socket.getsockopt(zmq.RCVMORE):
        socket.recv(NOBLOCK)
