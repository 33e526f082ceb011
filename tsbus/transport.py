"""Sockets: the only file that imports zmq (protocol section 1).

`SocketTransport` serves a router: the ROUTER sockets that it binds, a DEALER for each node it dials, their monitors and
the ZAP handler, all in one thread and one epoll. `open_channel` serves a client. The comments P1 to P13 name libzmq
traps that docs/decisions/libzmq-traps.md explains and tests/system/test_traps.py reproduces.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import select
import socket as tcp
import stat
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from tsbus.core.message import MAX_FRAME
from tsbus.log import Log
from tsbus.peer import Clock, Conn, ConnKind

_log = Log("transport")

# Plain numbers, because combining the library's own flags makes an object each time, on every message.
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)

_HWM = 256
"""Messages in each libzmq pipe: the window bounds bytes, this only bounds the number of tiny messages (P11)."""
_ROUND_BYTES = 512 * 1024
"""A socket is read for so many bytes in one round, then the others have their turn."""
_ROUND_FRAMES = 64
_LAST_ROUNDS = 8
"""Rounds in which a connection that ended is still read from while others are busy."""
_MAX_DEAD = 10_000
"""Ended connections remembered, should a socket never be empty."""
_SOCKET_BUFFER = 1024 * 1024
_REDIAL_MS = (100, 400)
_REDIAL_REFUSED_MS = (700, 1300)
_REBIND_MS = (5, 5000)
"""The first and the longest pause between two tries to bind the port again: libzmq lets go of it in its own thread."""
_LAST_WORDS_MS = 200
"""So long has what was sent to leave, BYE above all, before a connection is ended."""
_HANDSHAKE_MS = 5000
_MONITORED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
)


class TransportError(Exception):
    """The sockets cannot be opened; the text says which and what to do."""


# Keys -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """Keys of one side of a connection, Z85 text of 40 characters each. The secret never shows."""

    public: str
    secret: str
    server: str = ""
    """The public key that the other side must have (for those who connect)."""

    def __repr__(self) -> str:
        return f"Curve(public={self.public!r}, server={self.server!r})"


def new_keypair() -> tuple[str, str]:
    """Return a new (public, secret) pair as Z85 text."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def public_of(secret: str) -> str:
    """Return the public key that belongs to a secret one. Raises TransportError when it is no key."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (ValueError, zmq.ZMQError) as error:
        raise TransportError(f"not a secret key of 40 Z85 characters: {error}") from None


def read_secret(path: str | os.PathLike[str]) -> str:
    """Read a secret key file: one line. Raises TransportError when it is missing, no key, or readable by others."""
    file = Path(path)
    try:
        mode = file.stat().st_mode
        secret = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TransportError(f"no secret key at {file}: {error}; make one with: treescale keys new {file}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TransportError(f"{file} can be read by others (mode {mode & 0o777:04o}); do: chmod 600 {file}")
    public_of(secret)
    return secret


def own_secret(path: str | os.PathLike[str], public_key: str) -> str:
    """Read the secret key that belongs to `public_key`: that in the file, or else the next one beside it, PATH.next.

    So the configuration alone says when a node goes on with its next key (docs/build.md, Keys). Where neither fits, and
    where there is no `public_key`, it is that in the file. Raises TransportError like `read_secret`.
    """
    secret, following = read_secret(path), next_key(path)
    if public_key not in ("", public_of(secret)) and following.exists():
        other = read_secret(following)
        return other if public_of(other) == public_key else secret
    return secret


def next_key(path: str | os.PathLike[str]) -> Path:
    """Return where the key is that follows the one at `path`."""
    return Path(f"{os.fspath(path)}.next")


# The router's side ----------------------------------------------------------------------------------------------------


class _Sink(Protocol):
    """What the transport calls: a router."""

    def connected(self, conn: Conn) -> None: ...
    def received(self, conn: Conn, frame: bytes) -> None: ...
    def disconnected(self, conn: Conn, cause: str = "closed") -> None: ...
    def key_refused(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Dial:
    """A node to dial: the socket while there is one, and when to make the next."""

    node: str
    key: str = ""
    """Which of the node's keys its socket expects."""
    address: str = ""
    socket: "zmq.Socket[Any] | None" = None
    descriptor: int = -1
    monitor: "zmq.Socket[Any] | None" = None
    conn: Conn | None = None
    again_ms: float = 0.0
    failures: int = 0


class SocketTransport:
    """All sockets of one router. Call `wait` and `read` in a loop; they report to the sink of `serve`."""

    def __init__(
        self,
        clock: Clock,
        *,
        keys: Curve | None,
        allowed: Mapping[str, str],
        dial_addresses: Mapping[str, tuple[str, tuple[str, ...]]],
        heartbeat_ms: int = 500,
        heartbeat_timeout_ms: int = 1500,
        context: "zmq.Context[Any] | None" = None,
    ) -> None:
        """Open nothing yet.

        `allowed`: public key -> name ("node:NAME", "operator:NAME"); `dial_addresses`: node -> (address, its keys).
        """
        self._clock = clock
        self._keys = keys
        self._allowed = dict(allowed)
        self._dial_addresses = dict(dial_addresses)
        self._port = ""
        """The address of the service port, once it was bound."""
        self._rebind_ms: float | None = None
        """When to try to bind it again."""
        self._rebind_pause_ms = 0
        self._ending: deque[tuple[float, tcp.socket]] = deque()
        """TCP connections to end, and when: what was sent last gets a moment to leave."""
        self._heartbeat = (heartbeat_ms, heartbeat_timeout_ms)
        self._context = context or zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 65_000)
        self._epoll = select.epoll()
        self._readers: dict[int, tuple[zmq.Socket[Any], Callable[[], bool]]] = {}
        self._hot: set[int] = set()
        """File descriptors whose socket may have more to read: an edge is told only once (P13)."""
        self._listeners: list[_Listener] = []
        self._dials: dict[str, _Dial] = {}
        self._undialled = False
        """Whether a dial waits for its time."""
        self._homes: dict[Conn, _Listener | _Dial] = {}
        self._locks: list[int] = []
        self._sink: _Sink
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._watch(self._zap, self._answer_zap)

    def serve(self, sink: _Sink) -> None:
        """Report to `sink` from now on."""
        self._sink = sink

    # Binding ------------------------------------------------------------------------------------------------------

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
        finally:
            os.umask(old)

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
        if self._keys is None:
            raise TransportError("a router without a key does not open a port (P10); give it one: treescale keys new")
        self._port = address
        self._bind(ConnKind.TCP, address)

    def _bind(self, kind: ConnKind, address: str) -> None:
        socket = self._context.socket(zmq.ROUTER)
        _options(socket)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if kind is ConnKind.TCP and self._keys is not None:
            _heartbeat(socket, *self._heartbeat)
            socket.curve_server = True
            socket.curve_publickey = self._keys.public.encode()
            socket.curve_secretkey = self._keys.secret.encode()
            socket.zap_domain = b"treescale"
            socket.setsockopt(zmq.BACKLOG, 128)
        listener = _Listener(self, kind, socket)
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            listener.close()
            raise TransportError(f"cannot listen on {address}: {error}; is another router running there?") from None
        self._listeners.append(listener)

    # Following another configuration ------------------------------------------------------------------------------

    def follow(
        self,
        keys: Curve | None,
        port: str,
        allowed: Mapping[str, str],
        dial_addresses: Mapping[str, tuple[str, tuple[str, ...]]],
    ) -> None:
        """Use these from now on, as in the constructor; `port` is the address of the service port.

        Another key or port of our own makes all TCP connections anew. Otherwise those that stand are left alone: the
        router cuts whom it does not want any more.
        """
        self._allowed, self._dial_addresses = dict(allowed), dict(dial_addresses)
        if keys is not None and (keys, port) != (self._keys, self._port):
            self._keys, self._port = keys, port
            self._reopen()
        for dial in self._dials.values():
            address, known = self._dial_addresses.get(dial.node, ("", ()))
            if dial.conn is None and (dial.address != address or dial.key not in known):
                # libzmq would go on to try with these, and the wrong one may answer one day.
                self._hang_up(dial, again_ms=(0, 0))

    def _reopen(self) -> None:
        """Make everything over TCP anew, as soon as libzmq has let go of the port."""
        for listener in [each for each in self._listeners if each.kind is ConnKind.TCP]:
            self._listeners.remove(listener)
            listener.close(_LAST_WORDS_MS)
            for conn in listener.conns():
                self._homes.pop(conn, None)
                self._sink.disconnected(conn)
        for dial in list(self._dials.values()):
            dialled = dial.conn
            self._hang_up(dial, again_ms=(0, 0))
            if dialled is not None:
                self._sink.disconnected(dialled)
        self._rebind_pause_ms = _REBIND_MS[0]
        self._rebind_ms = self._clock.monotonic_ms()

    def _rebind_due(self) -> float | None:
        """Bind the service port again if it is time to; returns when it is."""
        now = self._clock.monotonic_ms()
        if self._rebind_ms is None or self._rebind_ms > now:
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

    # Dialling -----------------------------------------------------------------------------------------------------

    def set_dials(self, nodes: frozenset[str]) -> None:
        """Dial exactly these nodes from now on; connections to others end."""
        for node in self._dials.keys() - nodes:
            self._hang_up(self._dials.pop(node))
        for node in nodes - self._dials.keys():
            self._dials[node] = _Dial(node)
        self._undialled = True
        self._dial_due()

    def _dial_due(self) -> float | None:
        """Make the sockets that are due; returns when the next one is."""
        if not self._undialled:
            return None
        now = self._clock.monotonic_ms()
        for dial in self._dials.values():
            if dial.socket is None and dial.again_ms <= now:
                self._dial(dial)
        waiting = [dial.again_ms for dial in self._dials.values() if dial.socket is None]
        self._undialled = bool(waiting)
        return min(waiting, default=None)

    def _dial(self, dial: _Dial) -> None:
        if dial.node not in self._dial_addresses or self._keys is None:
            dial.again_ms = self._clock.monotonic_ms() + _REDIAL_REFUSED_MS[1]
            return
        dial.address, known = self._dial_addresses[dial.node]
        # While a key is exchanged the node has one or the other: after the end of a connection it may be the other.
        dial.key = known[(known.index(dial.key) + 1) % len(known)] if dial.key in known else known[0]
        socket = self._context.socket(zmq.DEALER)
        _options(socket)
        _heartbeat(socket, *self._heartbeat)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # P4: nothing is kept for the next incarnation
        socket.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
        socket.setsockopt(zmq.TCP_MAXRT, 5000)
        # P5: with RECONNECT_IVL_MAX set libzmq has no jitter at all, so the interval itself is random.
        socket.setsockopt(zmq.RECONNECT_IVL, random.randint(*_REDIAL_MS))  # noqa: S311
        _curve(socket, Curve(self._keys.public, self._keys.secret, dial.key))
        dial.socket = socket
        dial.descriptor = _fd(socket)
        dial.monitor = socket.get_monitor_socket(_MONITORED)
        dial.conn = None
        self._watch(dial.monitor, partial(self._read_dial_monitor, dial))
        self._watch(socket, partial(self._read_dial, dial))
        try:
            socket.connect(dial.address)
        except zmq.ZMQError as error:
            _log.warning("dial.bad-address", node=dial.node, address=dial.address, error=str(error))
            self._hang_up(dial, again_ms=_REDIAL_REFUSED_MS)

    def _hang_up(self, dial: _Dial, again_ms: tuple[int, int] | None = None) -> None:
        """Close a dial's sockets; P4 and P6: the next try is always a new socket."""
        if dial.monitor is not None and dial.socket is not None:
            self._unwatch(dial.monitor)
            self._unwatch(dial.socket)
            dial.socket.disable_monitor()
            dial.monitor.close(0)
            dial.socket.close(0)
        if dial.conn is not None:
            self._homes.pop(dial.conn, None)
        dial.socket = dial.monitor = dial.conn = None
        self._undialled = True
        if again_ms is not None:
            dial.again_ms = self._clock.monotonic_ms() + random.randint(*again_ms)  # noqa: S311

    def _read_dial_monitor(self, dial: _Dial) -> bool:
        monitor = dial.monitor
        while monitor is not None and monitor is dial.monitor and _readable(monitor):
            event = parse_monitor_message(monitor.recv_multipart(_NOBLOCK))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dial.failures = 0
                dial.conn = Conn(ConnKind.DIAL, dial.node, dial.key)
                self._homes[dial.conn] = dial
                self._sink.connected(dial.conn)
            elif event == zmq.EVENT_DISCONNECTED:
                conn = dial.conn
                if conn is not None and dial.socket is not None:
                    self._read_dial(dial)  # what it said before the end still counts
                self._hang_up(dial, again_ms=_REDIAL_MS)
                if conn is not None:
                    self._sink.disconnected(conn)
            elif event in _FAILED:
                dial.failures += 1
                if dial.failures == 1:
                    _log.warning("dial.refused", node=dial.node, hint="wrong key here or there; compare public_key")
                self._hang_up(dial, again_ms=_REDIAL_REFUSED_MS)
        return False

    def _read_dial(self, dial: _Dial) -> bool:
        """Read one round. Returns whether there may be more."""
        socket, taken = dial.socket, 0
        for _ in range(_ROUND_FRAMES):
            if socket is None or socket is not dial.socket or not _readable(socket):
                return False
            frame = socket.recv(_NOBLOCK)
            if socket.getsockopt(zmq.RCVMORE):
                _skip(socket)
                frame = b""
            if dial.conn is None:
                self._read_dial_monitor(dial)
            if dial.conn is not None:
                self._sink.received(dial.conn, frame)
            taken += len(frame)
            if taken > _ROUND_BYTES:
                break
        return True

    # Sending ------------------------------------------------------------------------------------------------------

    def send(self, conn: Conn, frame: bytes) -> bool:
        """Hand over one frame; False if the connection takes no more now, or is gone."""
        home = self._homes.get(conn)
        if isinstance(home, _Listener):
            return home.send(conn, frame)
        if home is None or home.socket is None:
            return False
        try:
            home.socket.send(frame, _NOBLOCK)
        except zmq.ZMQError:
            return False
        finally:
            self._hot.add(home.descriptor)
        return True

    def close(self, conn: Conn) -> None:
        """End a connection; see peer.Transport."""
        home = self._homes.get(conn)
        if isinstance(home, _Listener):
            home.close_one(conn)
        elif home is not None:
            self._hang_up(home, again_ms=_REDIAL_REFUSED_MS)

    # The loop -----------------------------------------------------------------------------------------------------

    def wait(self, timeout_ms: float) -> set[int]:
        """Wait at most so long for anything to happen; hand what it returns to `read`."""
        dues = (self._dial_due(), self._rebind_due(), self._end_due())
        due = min((each for each in dues if each is not None), default=None)
        if due is not None:
            timeout_ms = min(timeout_ms, max(0.0, due - self._clock.monotonic_ms()))
        ready: set[int] = set()
        for descriptor in self._hot:
            reader = self._readers.get(descriptor)
            # Sending on a socket may swallow the edge of what came in meanwhile: look again before waiting (P13).
            if reader is not None and _readable(reader[0]):
                ready.add(descriptor)
        self._hot.clear()
        for descriptor, _ in self._epoll.poll(0 if ready else timeout_ms / 1000):
            ready.add(descriptor)
        return ready

    def read(self, ready: set[int]) -> None:
        """Report what came in on these descriptors, one round for each."""
        for descriptor in ready:
            reader = self._readers.get(descriptor)
            if reader is not None and reader[1]():
                self._hot.add(descriptor)

    def _watch(self, socket: "zmq.Socket[Any]", read: Callable[[], bool]) -> None:
        descriptor = _fd(socket)
        self._readers[descriptor] = (socket, read)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._hot.add(descriptor)

    def _unwatch(self, socket: "zmq.Socket[Any]") -> None:
        descriptor = _fd(socket)
        self._readers.pop(descriptor, None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(descriptor)

    def _answer_zap(self) -> bool:
        """Let in the keys of the configuration, and nobody else (P10)."""
        while _readable(self._zap):
            version, request, _, address, _, mechanism, *credentials = self._zap.recv_multipart()
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
            if key not in self._allowed:
                self._sink.key_refused()
                _log.warning("key.refused", address=address.decode(errors="replace"), key=key)
                answer = [version, request, b"400", b"key not allowed", b"", b""]
            else:  # its name is looked up when it speaks: it may be silent until the key is another's, or nobody's
                answer = [version, request, b"200", b"OK", key.encode(), b""]
            self._zap.send_multipart(answer)
        return False

    def _end_later(self, connection: tcp.socket) -> None:
        """End a TCP connection, which libzmq cannot do with one of a ROUTER (P9), after its last words have left."""
        self._ending.append((self._clock.monotonic_ms() + _LAST_WORDS_MS, connection))

    def _end_due(self) -> float | None:
        """End the connections whose time has come; returns when the next one's does."""
        while self._ending and self._ending[0][0] <= self._clock.monotonic_ms():
            connection = self._ending.popleft()[1]
            with contextlib.suppress(OSError):
                connection.shutdown(tcp.SHUT_RDWR)
            connection.close()
        return self._ending[0][0] if self._ending else None

    def stop(self) -> None:
        """Close everything; what was sent gets 200 ms to leave (BYE)."""
        for dial in self._dials.values():
            if dial.socket is not None:
                dial.socket.linger = _LAST_WORDS_MS
                if dial.monitor is not None:
                    dial.socket.disable_monitor()
                    dial.monitor.close(0)
                dial.socket.close()
        for listener in self._listeners:
            listener.close(_LAST_WORDS_MS)
        for _, connection in self._ending:
            connection.close()
        self._zap.close(0)
        self._context.term()
        self._epoll.close()
        for descriptor in self._locks:
            os.close(descriptor)


class _Listener:
    """One bound ROUTER socket and its connections, which are known by their routing id and by their descriptor."""

    def __init__(self, transport: SocketTransport, kind: ConnKind, socket: "zmq.Socket[Any]") -> None:
        self.kind = kind
        self._transport = transport
        self._socket = socket
        self._descriptor = _fd(socket)
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
        self._monitor = socket.get_monitor_socket(_MONITORED)
        transport._watch(self._monitor, self._read_monitor)
        transport._watch(socket, self._read)

    def _read(self) -> bool:
        socket, taken = self._socket, 0
        received = self._transport._sink.received
        for _ in range(_ROUND_FRAMES):
            if not _readable(socket):
                self._bury(everybody=True)
                return False
            identity = socket.recv(_NOBLOCK)
            if identity in self._by_id:
                conn = self._by_id[identity]
                frame = socket.recv(_NOBLOCK)
            else:
                first = socket.recv(_NOBLOCK, copy=False)
                conn = self._accept(identity, first)
                frame = first.bytes
            if socket.getsockopt(zmq.RCVMORE):
                _skip(socket)
                frame = b""
            if conn is not None:
                received(conn, frame)
            taken += len(frame)
            if taken > _ROUND_BYTES:
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
        conn = Conn(self.kind)
        if self.kind is ConnKind.TCP:
            conn.key = str(frame.get("User-Id"))
            conn.name = self._transport._allowed.get(conn.key, "")
        else:
            # "localhost:UID:GID:PID" (measured); the kernel says so, not the peer
            with contextlib.suppress(ValueError, zmq.ZMQError):
                _, uid, gid, pid = str(frame.get("Peer-Address")).rsplit(":", 3)
                conn.uid, conn.gid, conn.pid = int(uid), int(gid), int(pid)
            conn.name = f"uid:{conn.uid}"
        self._by_id[identity] = conn
        self._ids[conn] = identity
        if self.kind is ConnKind.TCP:
            with contextlib.suppress(OSError):  # it ended just now
                self._inodes[conn] = os.fstat(descriptor).st_ino
        self._transport._homes[conn] = self
        if not conn.name:
            _log.warning("key.refused", key=conn.key, hint="it was taken away after the handshake")
            self._transport._sink.key_refused()
            self.close_one(conn)
            return None
        return conn

    def _read_monitor(self) -> bool:
        while _readable(self._monitor):
            message = parse_monitor_message(self._monitor.recv_multipart(_NOBLOCK))
            descriptor = int(message["value"])
            if message["event"] == zmq.EVENT_ACCEPTED:
                self._open.add(descriptor)
            elif message["event"] == zmq.EVENT_DISCONNECTED:
                self._open.discard(descriptor)
                identity = self._by_fd.pop(descriptor, None)
                if identity is not None:
                    self._dying[identity] = _LAST_ROUNDS
        if self._dying:
            if not _readable(self._socket):
                self._bury(everybody=True)
            else:
                self._transport._hot.add(self._descriptor)  # to have looked may have swallowed the edge (P13)
        return False

    def _gone(self, identity: bytes) -> None:
        del self._dying[identity]
        conn = self._by_id[identity]
        self._by_id[identity] = None
        self._dead.append(identity)
        if conn is not None:
            self._ids.pop(conn, None)
            self._inodes.pop(conn, None)
            self._transport._homes.pop(conn, None)
            self._transport._sink.disconnected(conn)

    def send(self, conn: Conn, frame: bytes) -> bool:
        identity = self._ids.get(conn)
        if identity is None:
            return False
        try:
            self._socket.send(identity, _NOBLOCK | _SNDMORE)
            self._socket.send(frame, _NOBLOCK)
        except zmq.ZMQError:
            return False  # full (EAGAIN), or gone and not yet told so (EHOSTUNREACH)
        finally:
            self._transport._hot.add(self._descriptor)
        return True

    def conns(self) -> list[Conn]:
        return list(self._ids)

    def close_one(self, conn: Conn) -> None:
        """Do not hear a connection any more; end it behind libzmq's back, which cannot (P9), if it is TCP.

        A local one stays as it is: its socket would only connect again, and cost twice the memory.
        """
        identity, inode = self._ids.pop(conn, None), self._inodes.pop(conn, None)
        self._transport._homes.pop(conn, None)
        if identity is None:
            return
        self._by_id[identity] = None
        if inode is None:
            return
        for descriptor in [each for each, owner in self._by_fd.items() if owner == identity]:
            with contextlib.suppress(OSError):
                connection = tcp.socket(fileno=os.dup(descriptor))
                if os.fstat(connection.fileno()).st_ino == inode:
                    self._transport._end_later(connection)
                else:
                    connection.close()

    def close(self, linger: int = 0) -> None:
        self._transport._unwatch(self._monitor)
        self._transport._unwatch(self._socket)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger)


# The client's side ----------------------------------------------------------------------------------------------------


class SocketChannel:
    """A client's connection to a router, for asyncio (see connection.Channel). It reconnects until it is closed."""

    def __init__(self, address: str, keys: Curve | None = None) -> None:
        """`address`: "ipc://PATH", or "tcp://host:port" with `keys`, whose `server` is the router's public key."""
        self._address = address
        self._keys = keys
        self._socket: zmq.Socket[Any] | None = None
        self._monitor: zmq.Socket[Any] | None = None
        self._blocked = False
        self._due = False

    def start(
        self,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_frame: Callable[[bytes], None],
        on_writable: Callable[[], None],
    ) -> None:
        """Connect, and reconnect until `close`. `on_writable`: a `send` that returned False may work now."""
        self._on_up, self._on_down, self._on_frame, self._on_writable = on_up, on_down, on_frame, on_writable
        self._loop = asyncio.get_running_loop()
        self._open()

    def _open(self) -> None:
        socket: zmq.Socket[Any] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket = socket
        _options(socket)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # P4
        socket.setsockopt(zmq.RECONNECT_IVL, random.randint(50, 150))  # noqa: S311
        if self._keys is not None:
            _curve(socket, self._keys)
            _heartbeat(socket, 1000, 3000)
        self._monitor = socket.get_monitor_socket(_MONITORED)
        self._loop.add_reader(_fd(self._monitor), self._read_monitor)
        self._loop.add_reader(_fd(socket), self._read)
        try:
            socket.connect(self._address)
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
            self._socket.send(frame, _NOBLOCK)
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
            if self._blocked and events & _POLLOUT:
                self._blocked = False
                self._on_writable()
                continue
            if not events & _POLLIN:
                return
            frame = socket.recv(_NOBLOCK)
            self._on_frame(frame)
            taken += len(frame)
            if taken > _ROUND_BYTES:  # let the loop's other tasks run
                self._soon()
                return

    def _read_monitor(self) -> None:
        monitor = self._monitor
        while monitor is not None and monitor is self._monitor and _readable(monitor):
            event = parse_monitor_message(monitor.recv_multipart(_NOBLOCK))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._on_up()
            elif event == zmq.EVENT_DISCONNECTED:
                self._read()
                self._on_down()
            elif event in _FAILED:  # P6: libzmq gives up for good, we do not
                self._shut()
                self._loop.call_later(1.0, self._reopen)

    def _reopen(self) -> None:
        if self._socket is None and self._on_up is not _nothing:
            self._open()

    def close(self) -> None:
        """End it; nothing is called any more. What was sent gets a moment to leave."""
        self._on_up = self._on_down = self._on_writable = _nothing
        self._shut(linger=200)

    def _shut(self, linger: int = 0) -> None:
        if self._socket is None or self._monitor is None:
            return
        self._loop.remove_reader(_fd(self._socket))
        self._loop.remove_reader(_fd(self._monitor))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger)
        self._socket = self._monitor = None


def open_channel(address: str, keys: Curve | None = None) -> SocketChannel:
    """Make a client's channel to a router; see SocketChannel."""
    return SocketChannel(address, keys)


# Options --------------------------------------------------------------------------------------------------------------


def _options(socket: "zmq.Socket[Any]") -> None:
    """Set what all sockets have (protocol 1.4)."""
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = _HWM
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.SNDBUF, _SOCKET_BUFFER)
    socket.setsockopt(zmq.RCVBUF, _SOCKET_BUFFER)
    socket.setsockopt(zmq.IPV6, 1)


def _heartbeat(socket: "zmq.Socket[Any]", every_ms: int, timeout_ms: int) -> None:
    """The second detector: a frozen or cut-off host (protocol 8.1)."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, every_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, timeout_ms)
    socket.setsockopt(zmq.HEARTBEAT_TTL, timeout_ms)


def _curve(socket: "zmq.Socket[Any]", keys: Curve) -> None:
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_serverkey = keys.server.encode()


def _nothing() -> None:
    """Callback of a closed channel."""


def _fd(socket: "zmq.Socket[Any]") -> int:
    return int(socket.FD)


def _readable(socket: "zmq.Socket[Any]") -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & _POLLIN)


def _skip(socket: "zmq.Socket[Any]") -> None:
    """Drop the further parts of a message: the protocol has one (2.1); the caller sees an empty, malformed frame."""
    while socket.getsockopt(zmq.RCVMORE):
        socket.recv(_NOBLOCK)
