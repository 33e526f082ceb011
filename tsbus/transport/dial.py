"""Dial: a node below that is dialled, by a DEALER of its own: its own pipe, its own monitor, no storm (protocol 1)."""

import random

import zmq

from tsbus.log import Log
from tsbus.peer import Conn, ConnKind
from tsbus.transport.keys import Curve
from tsbus.transport.line import Line
from tsbus.transport.options import FAILED, NOBLOCK, ROUND_BYTES, readable, skip
from tsbus.transport.shared import ROUND_FRAMES, Shared

REDIAL_MS = (100, 400)
"""A random time in this range passes before a connection that ended is made anew."""
REDIAL_REFUSED_MS = (700, 1300)
"""The same after one that was refused or could not be made."""

_log = Log("transport")


class Dial:
    """One node to dial: the socket while there is one, and when to make the next."""

    def __init__(self, node: str, shared: Shared) -> None:
        self.node = node
        self.due_ms: float | None = 0.0
        """When to open it; None while it is open."""
        self.conn: Conn | None = None
        self._shared = shared
        self._key = ""
        """Which of the node's keys its socket expects."""
        self._address = ""
        self._line: Line | None = None
        self._failures = 0

    def open(self) -> None:
        """Make the socket and connect; on failure there is a new time to do so."""
        shared = self._shared
        if self.node not in shared.addresses or shared.keys is None:
            self._open_again(REDIAL_REFUSED_MS)
            return
        self._address, known = shared.addresses[self.node]
        # While a key is exchanged the node has one or the other: after the end of a connection it may be the other.
        self._key = known[(known.index(self._key) + 1) % len(known)] if self._key in known else known[0]
        self.due_ms = None
        try:
            self._connect(Curve(shared.keys.public, shared.keys.secret, self._key))
        except zmq.ZMQError as error:
            _log.warning("dial.failed", node=self.node, address=self._address, error=str(error))
            self.hang_up(REDIAL_REFUSED_MS)

    def _connect(self, keys: Curve) -> None:
        shared = self._shared
        line = self._line = Line.dialling(shared.context, keys, shared.heartbeat, REDIAL_MS)
        line.socket.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
        line.socket.setsockopt(zmq.TCP_MAXRT, 5000)
        shared.poller.watch(line.monitor, self._read_monitor)
        shared.poller.watch(line.socket, self._read)
        line.socket.connect(self._address)

    def hang_up(self, again_ms: tuple[int, int]) -> None:
        """Close the sockets; P4 and P6: the next try, after a random time in this range, is always a new socket."""
        self.close()
        self._open_again(again_ms)

    def _open_again(self, after_ms: tuple[int, int]) -> None:
        self.due_ms = self._shared.clock.monotonic_ms() + random.randint(*after_ms)  # noqa: S311
        self._shared.undialled = True

    def close(self, linger_ms: int = 0) -> None:
        """Close the sockets for good."""
        if self._line is not None:
            self._shared.poller.unwatch(self._line.monitor)
            self._shared.poller.unwatch(self._line.socket)
            self._line.close(linger_ms)
        if self.conn is not None:
            self._shared.homes.pop(self.conn, None)
        self._line = self.conn = None

    def follow(self) -> None:
        """Start over unless it is connected, or tries what the configuration says."""
        address, known = self._shared.addresses.get(self.node, ("", ()))
        if self.conn is None and (self._address != address or self._key not in known):
            # libzmq would go on to try with these, and the wrong one may answer one day.
            self.hang_up((0, 0))

    def send(self, _: Conn, frame: bytes) -> bool:
        """See peer.Transport."""
        if self._line is None:
            return False
        self._shared.poller.hot.add(self._line.descriptor)
        return self._line.send(frame)

    def close_one(self, _: Conn) -> None:
        """See peer.Transport."""
        self.hang_up(REDIAL_REFUSED_MS)

    def _read_monitor(self) -> bool:
        line, sink = self._line, self._shared.sink
        for event, _ in line.events() if line is not None else ():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._failures = 0
                self.conn = Conn(ConnKind.DIAL, self.node, self._key)
                self._shared.homes[self.conn] = self
                sink.connected(self.conn)
            elif event == zmq.EVENT_DISCONNECTED:
                conn = self.conn
                if conn is not None:
                    self._read()  # what it said before the end still counts
                self.hang_up(REDIAL_MS)
                if conn is not None:
                    sink.disconnected(conn)
            elif event in FAILED:
                self._failures += 1
                if self._failures == 1:
                    _log.warning("dial.refused", node=self.node, hint="wrong key here or there; compare public_key")
                self.hang_up(REDIAL_REFUSED_MS)
        return False

    def _read(self) -> bool:
        """Read one round. Returns whether there may be more."""
        line, taken = self._line, 0
        for _ in range(ROUND_FRAMES):
            if line is None or line is not self._line or not readable(line.socket):
                return False
            frame = line.socket.recv(NOBLOCK)
            if line.socket.getsockopt(zmq.RCVMORE):
                skip(line.socket)
                frame = b""
            if self.conn is None:
                self._read_monitor()
            if self.conn is not None:
                self._shared.sink.received(self.conn, frame)
            taken += len(frame)
            if taken > ROUND_BYTES:
                break
        return True
