"""Nft: changes rules of nftables without a process for each change, and hears when others change them."""

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from socket import SOL_SOCKET
from typing import Final

from tsbus.balancer import nft_helper
from tsbus.balancer.netlink import NETFILTER, Netlink, attributes, messages
from tsbus.balancer.programs import LIMIT_S, Failed, refusal, run

_HELPER: Final = (sys.executable, "-IS", str(Path(nft_helper.__file__)))
_LARGE: Final = 1 << 16
"""Bytes of commands. More is left to nft, which gives back the memory that it takes; the helper would keep it."""
_NEWS: Final = 1 << 6
"""The group NFNLGRP_NFTABLES, as a bit."""
_OF_TABLES: Final = 10
"""The kind of messages of nftables, in its upper half."""
_END: Final = 15
"""NFT_MSG_NEWGEN: the last message of a transaction."""
_TABLE: Final = 1
"""The attribute with the name of the table, in all others."""
_GET_GENERATION: Final = 16
_GENERATION: Final = 1
_ROOM: Final = 1 << 24
"""For news that nobody has heard yet, in bytes: twice what the kernel says of a new table of 5,000 servers, which
would have to be read again otherwise, for a second and more."""
_PIECE: Final = 1 << 17
"""More than the kernel puts into one piece of news."""
_RECEIVE_ROOM_FORCED: Final = 33


class Nft:
    """Carries out commands, each text in one transaction, in the network namespace of the thread that uses it first.

    They go to nft_helper.py, and where this cannot work, to nft itself.
    """

    def __init__(self) -> None:
        self._helper: subprocess.Popen[bytes] | None = None
        self._helpless = False

    def change(self, text: str) -> None:
        """Carry out commands. Raises HostError; then nothing was changed."""
        sent = text.encode()
        said = self._asked(sent) if len(sent) <= _LARGE and not self._helpless else None
        if said is None:
            run("nft", "-f", "-", text=text)
        elif said:
            raise refusal("nft", said.decode(errors="replace"))

    def close(self) -> None:
        """End the helper."""
        if self._helper is not None:
            self._helper.kill()
            self._helper.communicate()
            self._helper = None

    def _asked(self, text: bytes) -> bytes | None:
        """What the helper says; None when there is none any more, and from then on there is none."""
        if self._helper is None:
            pipe = subprocess.PIPE
            self._helper = subprocess.Popen(_HELPER, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env={})
        assert self._helper.stdin is not None  # noqa: S101  (for the type checker)
        with contextlib.suppress(OSError, EOFError):
            nft_helper.write(self._helper.stdin, text)
            deadline = time.monotonic() + LIMIT_S
            size = int.from_bytes(self._read(4, deadline))
            return self._read(size, deadline)
        self.close()
        self._helpless = True
        return None

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._helper is not None and self._helper.stdout is not None  # noqa: S101
        stream, found = self._helper.stdout.fileno(), b""
        while len(found) < size:
            if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.close()
                raise Failed(f"nft did not end in {LIMIT_S:g} s", "see what else the machine does")
            piece = os.read(stream, size - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found


def generation() -> int | None:
    """Return what differs when any rules of nftables in this network namespace have changed; None: not known."""
    try:
        with Netlink(NETFILTER) as kernel:
            (told,) = kernel.ask(_OF_TABLES << 8 | _GET_GENERATION, bytes(4))
    except OSError:
        return None
    return int.from_bytes(attributes(told[4:])[_GENERATION])


class News:
    """Counts the transactions that touch one table. For one thread; of its network namespace. Raises OSError."""

    def __init__(self, table: str, room: int = _ROOM) -> None:
        self._table = table.encode() + b"\0"
        self._netlink = Netlink(NETFILTER, _NEWS)
        self._netlink.socket.setblocking(False)
        self._netlink.socket.setsockopt(SOL_SOCKET, _RECEIVE_ROOM_FORCED, room)
        self._touched = False
        """Whether the transaction whose end has not come yet touches it."""

    def close(self) -> None:
        """Hear no more."""
        self._netlink.close()

    def transactions(self) -> int | None:
        """Return how many there were since this was asked last; None when the kernel had no room to tell all."""
        count, lost = 0, False
        while True:
            try:
                data = self._netlink.socket.recv(_PIECE)
            except BlockingIOError:
                return None if lost else count
            except OSError:  # ENOBUFS
                lost = True
                continue
            for _, kind, body in messages(data):
                if kind >> 8 != _OF_TABLES:
                    continue
                if kind & 0xFF == _END:
                    count += self._touched
                    self._touched = False
                elif not self._touched:
                    self._touched = attributes(body[4:]).get(_TABLE) == self._table
