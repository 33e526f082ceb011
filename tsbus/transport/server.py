"""Server: all sockets of one router in one thread: what it binds, whom it dials, and whom the ZAP handler lets in."""

import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from tsbus.log import Log
from tsbus.peer import Clock, Conn, ConnKind
from tsbus.transport.dial import Dial
from tsbus.transport.keys import Curve
from tsbus.transport.listener import Listener
from tsbus.transport.options import TransportError, readable
from tsbus.transport.shared import LAST_WORDS_MS, Addresses, Shared, Sink

_REBIND_MS = (5, 5000)
"""The first and the longest pause between two tries to bind the port again: libzmq lets go of it in its own thread."""

_TOLD_AGAIN_MS = 3_600_000
"""A refused key is logged once in this time: whoever is refused tries again, once a second for years."""
_MAX_STRANGERS = 1000
"""So many refused keys are logged in that time."""

_log = Log("transport")


class SocketTransport:
    """All sockets of one router. Call `wait` and `read` in a loop; they report to the sink of `serve`."""

    def __init__(
        self,
        clock: Clock,
        *,
        keys: Curve | None,
        allowed: Mapping[str, str],
        dial_addresses: Addresses,
        heartbeat_ms: int = 500,
        heartbeat_timeout_ms: int = 1500,
        context: "zmq.Context[Any] | None" = None,
    ) -> None:
        """Open nothing yet.

        `allowed`: public key -> name ("node:NAME", "operator:NAME"); `dial_addresses`: node -> (address, its keys).
        """
        context = context or zmq.Context(io_threads=1)
        context.set(zmq.MAX_SOCKETS, 65_000)
        heartbeat = (heartbeat_ms, heartbeat_timeout_ms)
        self._shared = Shared(context, clock, heartbeat, keys, dict(allowed), dict(dial_addresses))
        self._homes = self._shared.homes
        self.read = self._shared.poller.read
        """Report what came in on the descriptors that `wait` returned, one round for each."""
        self._listeners: list[Listener] = []
        self._dials: dict[str, Dial] = {}
        self._port = ""
        """The address of the service port, once it was bound."""
        self._rebind_ms: float | None = None
        """When to try to bind it again."""
        self._rebind_pause_ms = 0
        self._locks: list[int] = []
        self._path: Path | None = None
        self._file = (0, 0)
        """The device and inode of the workers' socket."""
        self._strangers: set[str] = set()
        """Refused keys that were logged."""
        self._strangers_until = 0.0
        """When to forget them."""
        self._zap = context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._shared.poller.watch(self._zap, self._answer_zap)

    def serve(self, sink: Sink) -> None:
        """Report to `sink` from now on."""
        self._shared.sink = sink

    def wait(self, timeout_ms: float) -> set[int]:
        """Wait at most so long for anything to happen; hand what it returns to `read`."""
        dues = [self._dial_due(), self._rebind_due(), *(listener.end_due() for listener in self._listeners)]
        due = min((each for each in dues if each is not None), default=None)
        if due is not None:
            timeout_ms = min(timeout_ms, max(0.0, due - self._shared.clock.monotonic_ms()))
        return self._shared.poller.wait(timeout_ms)

    def send(self, conn: Conn, frame: bytes) -> bool:
        """Hand over one frame; False if the connection takes no more now, or is gone."""
        home = self._homes.get(conn)
        return home is not None and home.send(conn, frame)

    def close(self, conn: Conn) -> None:
        """End a connection; see peer.Transport."""
        home = self._homes.get(conn)
        if home is not None:
            home.close_one(conn)

    def stop(self) -> None:
        """Close everything; what was sent gets 200 ms to leave (BYE)."""
        for dial in self._dials.values():
            dial.close(LAST_WORDS_MS)
        for listener in self._listeners:
            listener.close(LAST_WORDS_MS)
        self._zap.close(0)
        self._shared.context.term()
        self._shared.poller.close()
        for descriptor in self._locks:
            os.close(descriptor)

    # Binding ----------------------------------------------------------------------------------------------------------

    def bind_local(self, path: Path) -> None:
        """Bind the workers' ipc socket. Raises TransportError if another router lives there."""
        if len(os.fsencode(path)) > 107:
            raise TransportError(
                f"{path} is longer than the 107 bytes a socket address may have; use a shorter run_dir"
            )
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise TransportError(f"cannot use the run_dir {path.parent}: {error}") from None
        old = os.umask(0o007)  # libzmq has no way to set the mode of the socket file
        try:
            self._bind(ConnKind.LOCAL, f"ipc://{path}")
            status = path.stat()
        except OSError as error:
            raise TransportError(f"{path} went away as soon as it was made: {error}") from None
        finally:
            os.umask(old)
        self._path, self._file = path, (status.st_dev, status.st_ino)

    def lost_path(self) -> Path | None:
        """Return the path of the workers' socket if it was taken away: libzmq never notices, nobody gets in again."""
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError as error:
            return self._path if error.errno in (errno.ENOENT, errno.ENOTDIR) else None
        return self._path if (status.st_dev, status.st_ino) != self._file else None

    def _lock(self, path: Path) -> None:
        """Two routers on one ipc path would both seem to work: libzmq takes the path over without a word."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise TransportError(
                f"another router (pid {owner}) runs on {path.with_suffix('')}; stop it or use another run_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._locks.append(descriptor)

    def bind_tcp(self, address: str) -> None:
        """Bind the service port, `tcp://ip:port`. Raises TransportError without a key, or when the port is taken."""
        if self._shared.keys is None:
            raise TransportError("a router without a key does not open a port (P10); give it one: treescale keys new")
        self._port = address
        self._bind(ConnKind.TCP, address)

    def _bind(self, kind: ConnKind, address: str) -> None:
        try:
            self._listeners.append(Listener(kind, address, self._shared))
        except zmq.ZMQError as error:
            raise TransportError(f"cannot listen on {address}: {error}; is another router running there?") from None

    def _answer_zap(self) -> bool:
        """Let in the keys of the configuration, and nobody else (P10)."""
        while readable(self._zap):
            version, request, _, address, _, mechanism, *credentials = self._zap.recv_multipart()
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
            if key not in self._shared.allowed:
                self._shared.sink.key_refused()
                if self._is_news(key):
                    _log.warning("key.refused", address=address.decode(errors="replace"), key=key)
                answer = [version, request, b"400", b"key not allowed", b"", b""]
            else:  # its name is looked up when it speaks: it may be silent until the key is another's, or nobody's
                answer = [version, request, b"200", b"OK", key.encode(), b""]
            self._zap.send_multipart(answer)
        return False

    def _is_news(self, key: str) -> bool:
        """Whether a key that was refused should be logged; the router's counter has all."""
        now = self._shared.clock.monotonic_ms()
        if now >= self._strangers_until:
            self._strangers, self._strangers_until = set(), now + _TOLD_AGAIN_MS
        if key in self._strangers or len(self._strangers) >= _MAX_STRANGERS:
            return False
        self._strangers.add(key)
        return True

    # Dialling ---------------------------------------------------------------------------------------------------------

    def set_dials(self, nodes: frozenset[str]) -> None:
        """Dial exactly these nodes from now on; connections to others end."""
        for node in self._dials.keys() - nodes:
            self._dials.pop(node).close()
        for node in nodes - self._dials.keys():
            self._dials[node] = Dial(node, self._shared)
        self._shared.undialled = True
        self._dial_due()

    def _dial_due(self) -> float | None:
        """Make the sockets that are due; returns when the next one is."""
        if not self._shared.undialled:
            return None
        now = self._shared.clock.monotonic_ms()
        for dial in self._dials.values():
            if dial.due_ms is not None and dial.due_ms <= now:
                dial.open()
        waiting = [dial.due_ms for dial in self._dials.values() if dial.due_ms is not None]
        self._shared.undialled = bool(waiting)
        return min(waiting, default=None)

    # Following another configuration ----------------------------------------------------------------------------------

    def follow(self, keys: Curve | None, port: str, allowed: Mapping[str, str], dial_addresses: Addresses) -> None:
        """Use these from now on, as in the constructor; `port` is the address of the service port.

        Another key or port of our own makes all TCP connections anew. Otherwise those that stand are left alone: the
        router cuts whom it does not want any more.
        """
        shared = self._shared
        shared.allowed, shared.addresses = dict(allowed), dict(dial_addresses)
        self._strangers.clear()
        if keys is not None and (keys, port) != (shared.keys, self._port):
            shared.keys, self._port = keys, port
            self._reopen()
        for dial in self._dials.values():
            dial.follow()

    def _reopen(self) -> None:
        """Make everything over TCP anew, as soon as libzmq has let go of the port."""
        for listener in [each for each in self._listeners if each.kind is ConnKind.TCP]:
            self._listeners.remove(listener)
            lost = listener.conns
            listener.close(LAST_WORDS_MS)
            for conn in lost:
                self._shared.sink.disconnected(conn)
        for dial in list(self._dials.values()):
            dialled = dial.conn
            dial.hang_up((0, 0))
            if dialled is not None:
                self._shared.sink.disconnected(dialled)
        self._rebind_pause_ms = _REBIND_MS[0]
        self._rebind_ms = self._shared.clock.monotonic_ms()

    def _rebind_due(self) -> float | None:
        """Bind the service port again if it is time to; returns when it is."""
        if self._rebind_ms is None:
            return None
        now = self._shared.clock.monotonic_ms()
        if self._rebind_ms > now:
            return self._rebind_ms
        try:
            self._bind(ConnKind.TCP, self._port)
        except TransportError as error:
            self._rebind_ms = now + self._rebind_pause_ms
            self._rebind_pause_ms = min(2 * self._rebind_pause_ms, _REBIND_MS[1])
            if self._rebind_pause_ms == _REBIND_MS[1]:
                _log.error("port.not-bound", text=str(error))
        else:
            self._rebind_ms = None
        return self._rebind_ms
