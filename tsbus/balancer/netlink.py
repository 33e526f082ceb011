"""Netlink: questions to the kernel and its answers, written down to the bytes.

For what is asked often or answered at length: a library that decodes any message takes 300 us for one of them, this
less than 10. What the messages mean is known to who asks: ipvs.py, conntrack.py, nft.py.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Self

GENERIC: Final = 16
"""The family of kernel parts that have names."""
NETFILTER: Final = 12
DUMP: Final = 0x300
"""A flag: the answer is many messages."""
NESTED: Final = 0x8000
"""In the kind of an attribute: there are attributes in it."""
_REQUEST, _ACK = 0x1, 0x4
_ERROR, _DONE = 2, 3
_KIND: Final = 0x3FFF
"""What is no flag in the kind of an attribute."""
_ROOM: Final = 1 << 17
"""More than the kernel puts into one piece of an answer."""

_MANY: Final = 64
"""Messages in one piece; if all are refused, the kernel has room to say so."""

_HEAD = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=i")

Attributes = dict[int, bytes]


class Netlink:
    """A socket to one family of the network namespace in which it is opened. For one thread.

    Raises OSError with the kernel's number, when it is opened and when the kernel refuses.
    """

    def __init__(self, family: int, groups: int = 0) -> None:
        """`groups`: whose news come to this socket, as bits."""
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        self._sequence = 0
        try:
            self.socket.bind((0, groups))
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self.socket.close()

    def ask(self, kind: int, body: bytes, flags: int = _ACK) -> Iterator[bytes]:
        """Send a message, and return the bodies of the answers. What is not taken is passed over with the next one."""
        self.socket.send(self._message(kind, body, flags))
        while True:
            for sequence, answer, told in messages(self.socket.recv(_ROOM)):
                if sequence != self._sequence:
                    continue
                if answer not in (_ERROR, _DONE):
                    yield told
                    continue
                code = -_NUMBER.unpack_from(told)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return

    def order(self, kind: int, body: bytes) -> None:
        """Send a message that is only obeyed or refused."""
        for _ in self.ask(kind, body):
            pass

    def order_many(self, kind: int, bodies: Iterable[bytes]) -> None:
        """Send messages that are only obeyed, _MANY in one system call; one about what is not there is passed over."""
        left = iter(bodies)
        while some := tuple(islice(left, _MANY)):
            messages_ = [self._message(kind, body, 0) for body in some[:-1]]
            self.socket.send(b"".join(messages_) + self._message(kind, some[-1], _ACK))
            while not self._obeyed():
                pass

    def _obeyed(self) -> bool:
        """Hear of one message, and tell whether it was the last. Raises OSError."""
        for sequence, _, told in messages(self.socket.recv(_ROOM)):
            code = -_NUMBER.unpack_from(told)[0]
            if code not in (0, errno.ENOENT):
                raise OSError(code, os.strerror(code))
            if sequence == self._sequence:
                return True
        return False

    def _message(self, kind: int, body: bytes, flags: int) -> bytes:
        self._sequence += 1
        return _HEAD.pack(_HEAD.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Return the messages of one piece: sequence, kind and body."""
    position = 0
    while position < len(data):
        length, kind, _, sequence, _ = _HEAD.unpack_from(data, position)
        yield sequence, kind, data[position + _HEAD.size : position + length]
        position += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute of a message."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> Attributes:
    """Return the attributes of a message by their kinds."""
    found: Attributes = {}
    position, end, unpack = 0, len(data), _ATTRIBUTE.unpack_from
    while position < end:
        length, kind = unpack(data, position)
        found[kind & _KIND] = data[position + 4 : position + length]
        position += (max(length, 4) + 3) & ~3
    return found
