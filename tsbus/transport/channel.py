"""Channel: a client's connection to its router, in asyncio."""

import asyncio
import random
from collections.abc import Callable

import zmq

from tsbus.log import Log
from tsbus.transport.keys import Curve, as_client
from tsbus.transport.options import (
    FAILED,
    NOBLOCK,
    POLLIN,
    POLLOUT,
    ROUND_BYTES,
    Socket,
    TransportError,
    beat,
    descriptor_of,
    monitor_of,
    new_socket,
    next_event,
    readable,
    shut,
)

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
        self._socket: Socket | None = None
        self._monitor: Socket | None = None
        self._blocked = False
        self._due = False

    def start(
        self,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_frame: Callable[[bytes], None],
        on_writable: Callable[[], None],
    ) -> None:
        """Connect, and reconnect until `close`. Raises TransportError when the address is none.

        `on_writable`: a `send` that returned False may work now.
        """
        self._on_up, self._on_down, self._on_frame, self._on_writable = on_up, on_down, on_frame, on_writable
        self._loop = asyncio.get_running_loop()
        self._open()

    def _open(self) -> None:
        try:
            self._socket = new_socket(zmq.Context.instance(), zmq.DEALER)
            self._monitor = monitor_of(self._socket)
        except zmq.ZMQError as error:  # no file descriptor is left now
            _log.warning("channel.not-opened", address=self._address, error=str(error))
            self._shut()
            self._loop.call_later(_REOPEN_S, self._reopen)
            return
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # P4
        self._socket.setsockopt(zmq.RECONNECT_IVL, random.randint(50, 150))  # noqa: S311
        if self._keys is not None:
            as_client(self._socket, self._keys)
            beat(self._socket, 1000, 3000)
        self._loop.add_reader(descriptor_of(self._monitor), self._read_monitor)
        self._loop.add_reader(descriptor_of(self._socket), self._read)
        try:
            self._socket.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(f"cannot connect to {self._address}: {error}") from None
        self._loop.call_soon(self._read_monitor)  # P13: the first edge may have passed while the monitor was made
        self._soon()

    def send(self, frame: bytes) -> bool:
        """Hand over one frame; False if that would block. Never blocks."""
        if self._socket is None:
            return False
        try:
            self._socket.send(frame, NOBLOCK)
        except zmq.ZMQError:
            self._blocked = True
            self._soon()
            return False
        self._soon()
        return True

    def _soon(self) -> None:
        """Sending may swallow the edge of what came in meanwhile (P13): look again in this turn of the loop."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._due = False
        self._read()

    def _read(self) -> None:
        socket = self._socket
        taken = 0
        while socket is not None and socket is self._socket:
            events = int(socket.getsockopt(zmq.EVENTS))
            if self._blocked and events & POLLOUT:
                self._blocked = False
                self._on_writable()
                continue
            if not events & POLLIN:
                return
            frame = socket.recv(NOBLOCK)
            self._on_frame(frame)
            taken += len(frame)
            if taken > ROUND_BYTES:  # let the loop's other tasks run
                self._soon()
                return

    def _read_monitor(self) -> None:
        monitor = self._monitor
        while monitor is not None and monitor is self._monitor and readable(monitor):
            event, _ = next_event(monitor)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._on_up()
            elif event == zmq.EVENT_DISCONNECTED:
                self._read()
                self._on_down()
            elif event in FAILED:  # P6: libzmq gives up for good, we do not
                self._shut()
                self._loop.call_later(_REOPEN_S, self._reopen)

    def _reopen(self) -> None:
        if self._socket is None and self._on_up is not _nothing:
            self._open()

    def close(self) -> None:
        """End it; nothing is called any more. What was sent gets a moment to leave."""
        self._on_up = self._on_down = self._on_writable = _nothing
        self._shut(_LAST_WORDS_MS)

    def _shut(self, linger_ms: int = 0) -> None:
        for each in (self._socket, self._monitor):
            if each is not None:
                self._loop.remove_reader(descriptor_of(each))
        if self._socket is not None:
            shut(self._socket, self._monitor, linger_ms)
        self._socket = self._monitor = None


def open_channel(address: str, keys: Curve | None = None) -> SocketChannel:
    """Make a client's channel to a router; see SocketChannel."""
    return SocketChannel(address, keys)


def _nothing() -> None:
    """Callback of a closed channel."""
