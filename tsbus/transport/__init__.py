"""Sockets: the only home of zmq (protocol section 1).

server.py serves a router: the sockets that it binds (listener.py), a socket for each node that it dials (dial.py), and
the ZAP handler, all in one thread and one epoll (poller.py). channel.py serves a client. All three have a socket with
a monitor (line.py). keys.py has the CURVE keys, options.py what all sockets have. The comments P1 to P14 name libzmq
traps that docs/decisions/libzmq-traps.md explains and tests/system/test_traps.py reproduces.
"""

from tsbus.transport.channel import SocketChannel, open_channel
from tsbus.transport.keys import Curve, new_keypair, next_key, own_secret, public_of, read_secret
from tsbus.transport.options import TransportError
from tsbus.transport.server import SocketTransport

__all__ = [
    "Curve",
    "SocketChannel",
    "SocketTransport",
    "TransportError",
    "new_keypair",
    "next_key",
    "open_channel",
    "own_secret",
    "public_of",
    "read_secret",
]
