"""Channel: a client's connection to its router, in asyncio."""

import asyncio
from typing import TYPE_CHECKING

import zmq

from tsbus.log import Log
from tsbus.transport.keys import Curve
from tsbus.transport.line import Line
from tsbus.transport.options import FAILED, NOBLOCK, POLLIN, POLLOUT, ROUND_BYTES, TransportError, descriptor_of

if TYPE_CHECKING:
    from tsbus.connection import Connection

_HEARTBEAT_MS = (1000, 3000)
_AGAIN_MS = (50, 150)
_REOPEN_S = 1.0
"""So long after a handshake that failed, or a socket that could not be made, the next is tried."""
_LAST_WORDS_MS = 200

_log = Log("transport")


class SocketChannel:
    """A client's connection to a router, for asyncio (see connection.Channel). It reconnects until it is closed."""

    def __init__(self, address: str, keys: Curve | None = None) -> None:
        """`address`: "ipc://PATH", or "tcp://host:port" with `keys`, whose `server` is the router's public key."""
        self._address = address
        self._keys = keys
        self._line: Line | None = None
        self._closed = False
        self._blocked = False
        self._due = False

    def start(self, user: "Connection") -> None:
        """See connection.Channel. Raises TransportError when the address is none."""
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._open()

    def _open(self) -> None:
        try:
            line = self._line = Line.dialling(zmq.Context.instance(), self._keys, _HEARTBEAT_MS, _AGAIN_MS)
        except zmq.ZMQError as error:  # no file descriptor is left now
            _log.warning("channel.not-opened", address=self._address, error=str(error))
            self._loop.call_later(_REOPEN_S, self._reopen)
            return
        self._loop.add_reader(descriptor_of(line.monitor), self._read_monitor)
        self._loop.add_reader(line.descriptor, self._read)
        try:
            line.socket.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(f"cannot connect to {self._address}: {error}") from None
        self._loop.call_soon(self._read_monitor)  # P13: the first edge may have passed while the monitor was made
        self._soon()

    def send(self, frame: bytes) -> bool:
        """Hand over one frame; False if that would block. Never blocks."""
        if self._line is None:
            return False
        self._soon()
        if self._line.send(frame):
            return True
        self._blocked = True
        return False

    def _soon(self) -> None:
        """Sending may swallow the edge of what came in meanwhile (P13): look again in this turn of the loop."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._due = False
        self._read()

    def _read(self) -> None:
        line = self._line
        taken = 0
        while line is not None and line is self._line:
            events = int(line.socket.getsockopt(zmq.EVENTS))
            if self._blocked and events & POLLOUT:
                self._blocked = False
                self._user.soon()
                continue
            if not events & POLLIN:
                return
            frame = line.socket.recv(NOBLOCK)
            self._user.received(frame)
            taken += len(frame)
            if taken > ROUND_BYTES:  # let the loop's other tasks run
                self._soon()
                return

    def _read_monitor(self) -> None:
        line = self._line
        for event, _ in line.events() if line is not None else ():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._user.up()
            elif event == zmq.EVENT_DISCONNECTED:
                self._read()
                if not self._closed:
                    self._user.down()
            elif event in FAILED:  # P6: libzmq gives up for good, we do not
                self._shut()
                self._loop.call_later(_REOPEN_S, self._reopen)

    def _reopen(self) -> None:
        if self._line is None and not self._closed:
            self._open()

    def close(self) -> None:
        """End it; nothing is called any more. What was sent gets a moment to leave."""
        self._closed = True
        self._shut(_LAST_WORDS_MS)

    def _shut(self, linger_ms: int = 0) -> None:
        if self._line is not None:
            self._loop.remove_reader(descriptor_of(self._line.monitor))
            self._loop.remove_reader(self._line.descriptor)
            self._line.close(linger_ms)
        self._line = None


def open_channel(address: str, keys: Curve | None = None) -> SocketChannel:
    """Make a client's channel to a router; see SocketChannel."""
    return SocketChannel(address, keys)
