"""Lock: one balancer for each kernel's network. An edge.

The rules, settings and addresses of a host have one owner: a second balancer would take away what the first one made.
The lock is an abstract Unix socket: such names belong to the network namespace, as what is locked does, and go with
the process however it ends. Anybody may take the name, so a holder that cannot be a balancer is passed over.
"""

import os
import socket
import struct
import threading
import time
from contextlib import suppress
from errno import EADDRINUSE
from typing import Final, NamedTuple

from tsbus.balancer.report import Problem

NAME: Final = "\0treescale-balancer"
PATIENCE_S: Final = 2.0
"""So long a balancer that is just ending may take to go."""
ANSWER_S: Final = 2.0
"""So long one that has the lock may take to say whose it is."""
_AGAIN_S: Final = 0.05
_CREDENTIALS: Final = struct.Struct("3i")


class Taken(Exception):
    """Another balancer has this kernel; the text says which."""


class _Holder(NamedTuple):
    node: str
    pid: int
    uid: int


class Lock:
    """The lock, until it is closed. For one thread, in whose network namespace it is."""

    problem: Problem | None = None
    """Why it is not held."""

    def __init__(self, node: str) -> None:
        """`node`: whose balancer this is. Blocks for PATIENCE_S and ANSWER_S at most. Raises Taken."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._take()
        except BaseException:
            self._socket.close()
            raise
        if self.problem is None:
            self._socket.listen()
            threading.Thread(target=_answer, args=(self._socket, node.encode()), name="lock", daemon=True).start()

    def close(self) -> None:
        """Let others have it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()

    def _take(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while not self._has_bound():
            if time.monotonic() < end:
                time.sleep(_AGAIN_S)
                continue
            holder = _holder()
            if holder.uid < 0 and self._has_bound():  # it went at this moment
                return
            self._judge(holder)
            return

    def _has_bound(self) -> bool:
        try:
            self._socket.bind(NAME)
        except OSError as error:
            if error.errno == EADDRINUSE:
                return False
            raise Taken(f"it cannot be told whether another balancer has this kernel: {error}") from error
        return True

    def _judge(self, holder: _Holder) -> None:
        if holder.uid in (0, os.geteuid()):
            who = f"the balancer of node {holder.node}" if holder.node else "another balancer"
            raise Taken(f"{who} (process {holder.pid}) has this kernel, and it can have that of one node only")
        self.problem = Problem(
            f"process {holder.pid} of user {holder.uid} has the name by which balancers on a kernel know each other",
            "see what that process is, and end it; then restart the balancer",
        )


def _holder() -> _Holder:
    """Return who has the name; of a process that does not answer uid -1."""
    with socket.socket(socket.AF_UNIX) as asking, suppress(OSError):
        asking.settimeout(ANSWER_S)
        asking.connect(NAME)
        pid, uid, _ = _CREDENTIALS.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        with suppress(OSError):
            return _Holder(asking.recv(256).decode(errors="replace"), pid, uid)
        return _Holder("", pid, uid)
    return _Holder("", 0, -1)


def _answer(listening: socket.socket, node: bytes) -> None:
    """Tell everybody who asks whose the lock is, until it is closed."""
    with suppress(OSError):
        while True:
            asking, _ = listening.accept()
            with asking, suppress(OSError):
                asking.send(node)
