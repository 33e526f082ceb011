"""Listener: a ROUTER socket that is bound, for workers or for the service port, and who is connected to it.

libzmq tells of an end by its file descriptor and of a message by its routing id; nothing but the first message of a
connection says which belong together.
"""

import contextlib
import os
import socket as tcp
from collections import deque

import zmq

from tsbus.log import Log
from tsbus.peer import Conn, ConnKind
from tsbus.transport.keys import as_server
from tsbus.transport.line import Line
from tsbus.transport.options import NOBLOCK, ROUND_BYTES, SNDMORE, beat, readable, skip
from tsbus.transport.shared import LAST_WORDS_MS, ROUND_FRAMES, Shared

_LAST_ROUNDS = 8
"""Rounds in which a connection that ended is still read from while others are busy."""
_MAX_DEAD = 10_000
"""Ended connections remembered, should a socket never be empty."""

_log = Log("transport")


class Listener:
    """One bound ROUTER socket and its connections, which are known by their routing id and by their descriptor."""

    def __init__(self, kind: ConnKind, address: str, shared: Shared) -> None:
        """Bind to a ZeroMQ address. Raises ZMQError."""
        self.kind = kind
        self._shared = shared
        self._by_id: dict[bytes, Conn | None] = {}
        """None: a connection that was closed from this side; it is not heard any more (P9)."""
        self._ids: dict[Conn, bytes] = {}
        self._by_fd: dict[int, bytes] = {}
        self._inodes: dict[Conn, int] = {}
        """Which socket of the kernel a connection is: its descriptor may be another's by the time it is closed."""
        self._open: set[int] = set()
        self._dying: dict[bytes, int] = {}
        """Connections that ended, and in how many rounds to report it: what was sent before the end is read first."""
        self._dead: deque[bytes] = deque()
        """Connections whose end was reported; what may still come of them is not heard."""
        self._ending: deque[tuple[float, tcp.socket]] = deque()
        """TCP connections to end, and when: what was sent last gets a moment to leave."""
        line = self._line = Line(shared.context, zmq.ROUTER)
        try:
            line.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if kind is ConnKind.TCP and shared.keys is not None:
                beat(line.socket, *shared.heartbeat)
                as_server(line.socket, shared.keys)
                line.socket.setsockopt(zmq.BACKLOG, 128)
            line.socket.bind(address)
        except zmq.ZMQError:
            line.close()
            raise
        shared.poller.watch(line.monitor, self._read_monitor)
        shared.poller.watch(line.socket, self._read)

    @property
    def conns(self) -> list[Conn]:
        """The connections that are heard."""
        return list(self._ids)

    def _read(self) -> bool:
        socket, taken = self._line.socket, 0
        received = self._shared.sink.received
        for _ in range(ROUND_FRAMES):
            if not readable(socket):
                self._bury(everybody=True)
                return False
            identity = socket.recv(NOBLOCK)
            if identity in self._by_id:
                conn = self._by_id[identity]
                frame = socket.recv(NOBLOCK)
            else:
                first = socket.recv(NOBLOCK, copy=False)
                conn = self._accept(identity, first)
                frame = first.bytes
            if socket.getsockopt(zmq.RCVMORE):
                skip(socket)
                frame = b""
            if conn is not None:
                received(conn, frame)
            taken += len(frame)
            if taken > ROUND_BYTES:
                break
        self._bury(everybody=False)
        return True

    def _bury(self, *, everybody: bool) -> None:
        """Report connections that ended. `everybody`: nothing is left to read, so forget also what was kept of them."""
        for identity, rounds in list(self._dying.items()):
            if everybody or not rounds:
                self._gone(identity)
            else:
                self._dying[identity] = rounds - 1
        while self._dead and (everybody or len(self._dead) > _MAX_DEAD):
            self._by_id.pop(self._dead.popleft(), None)

    def _accept(self, identity: bytes, frame: zmq.Frame) -> Conn | None:
        """Know a new connection by its first message: the descriptor, and who it is by key or by kernel."""
        self._read_monitor()  # an older connection with the same descriptor has ended before: take note of it first
        try:
            descriptor = int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, ValueError):
            return None
        if descriptor in self._by_fd:  # it spoke and ended at once, and the system gave its number to this one
            self._dying[self._by_fd[descriptor]] = _LAST_ROUNDS
        if descriptor in self._open:
            self._by_fd[descriptor] = identity
        else:  # it spoke and ended at once
            self._dying[identity] = _LAST_ROUNDS
        conn = self._who_is(frame, descriptor)
        self._by_id[identity] = conn
        self._ids[conn] = identity
        self._shared.homes[conn] = self
        if not conn.name:
            _log.warning("key.refused", key=conn.key, hint="it was taken away after the handshake")
            self._shared.sink.key_refused()
            self.close_one(conn)
            return None
        return conn

    def _who_is(self, frame: zmq.Frame, descriptor: int) -> Conn:
        conn = Conn(self.kind)
        if self.kind is ConnKind.TCP:
            conn.key = str(frame.get("User-Id"))
            conn.name = self._shared.allowed.get(conn.key, "")
            with contextlib.suppress(OSError):  # it ended just now
                self._inodes[conn] = os.fstat(descriptor).st_ino
        else:
            # "localhost:UID:GID:PID" (measured); the kernel says so, not the peer
            with contextlib.suppress(ValueError, zmq.ZMQError):
                _, uid, gid, pid = str(frame.get("Peer-Address")).rsplit(":", 3)
                conn.uid, conn.gid, conn.pid = int(uid), int(gid), int(pid)
            conn.name = f"uid:{conn.uid}"
        return conn

    def _read_monitor(self) -> bool:
        for event, descriptor in self._line.events():
            if event == zmq.EVENT_ACCEPTED:
                self._open.add(descriptor)
            elif event == zmq.EVENT_DISCONNECTED:
                self._open.discard(descriptor)
                identity = self._by_fd.pop(descriptor, None)
                if identity is not None:
                    self._dying[identity] = _LAST_ROUNDS
        if self._dying:
            if not readable(self._line.socket):
                self._bury(everybody=True)
            else:
                self._shared.poller.hot.add(self._line.descriptor)  # to have looked may have swallowed the edge (P13)
        return False

    def _gone(self, identity: bytes) -> None:
        del self._dying[identity]
        conn = self._by_id[identity]
        self._by_id[identity] = None
        self._dead.append(identity)
        if conn is not None:
            self._ids.pop(conn, None)
            self._inodes.pop(conn, None)
            self._shared.homes.pop(conn, None)
            self._shared.sink.disconnected(conn)

    def send(self, conn: Conn, frame: bytes) -> bool:
        """See peer.Transport."""
        identity = self._ids.get(conn)
        if identity is None:
            return False
        try:
            self._line.socket.send(identity, NOBLOCK | SNDMORE)
            self._line.socket.send(frame, NOBLOCK)
        except zmq.ZMQError:
            return False  # full (EAGAIN), or gone and not yet told so (EHOSTUNREACH)
        finally:
            self._shared.poller.hot.add(self._line.descriptor)
        return True

    def close_one(self, conn: Conn) -> None:
        """Do not hear a connection any more; end it behind libzmq's back, which cannot (P9), if it is TCP.

        A local one stays as it is: its socket would only connect again, and cost twice the memory.
        """
        identity, inode = self._ids.pop(conn, None), self._inodes.pop(conn, None)
        self._shared.homes.pop(conn, None)
        if identity is None:
            return
        self._by_id[identity] = None
        if inode is None:
            return
        for descriptor in [each for each, owner in self._by_fd.items() if owner == identity]:
            with contextlib.suppress(OSError):
                twin = os.dup(descriptor)
                if os.fstat(twin).st_ino == inode:
                    self._ending.append((self._shared.clock.monotonic_ms() + LAST_WORDS_MS, tcp.socket(fileno=twin)))
                else:
                    os.close(twin)

    def end_due(self) -> float | None:
        """End the connections whose time has come; returns when the next one's does."""
        while self._ending and self._ending[0][0] <= self._shared.clock.monotonic_ms():
            connection = self._ending.popleft()[1]
            with contextlib.suppress(OSError):
                connection.shutdown(tcp.SHUT_RDWR)
            connection.close()
        return self._ending[0][0] if self._ending else None

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket, and with it all its connections; nobody is told."""
        self._shared.poller.unwatch(self._line.monitor)
        self._shared.poller.unwatch(self._line.socket)
        self._line.close(linger_ms)
        for _, connection in self._ending:
            connection.close()
        self._ending.clear()
        for conn in self._ids:
            self._shared.homes.pop(conn, None)
