"""Wire: a connection of its own to the engine, for an answer that does not end soon: events, logs, programs, pulls.

api.py makes the short calls with docker-py. Its streams cannot be used here: they wait for ever without a way to end
the wait from another thread, mix the two outputs of a container or of a program, and lose bytes that arrive together
with the head of the answer. This one is read by one thread, may be written by a second and closed by any.
"""

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from tsbus.containers.framing import Chunks, FramingError

PIECE_BYTES: Final = 64 << 10
MAX_HEAD: Final = 64 << 10
MAX_ERROR: Final = 64 << 10
"""Bytes of the body of a refusal."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of certificates (PEM). Empty: the machine's authorities; no certificate of our own."""

    ca: str = ""
    """Of the authority that the engine's certificate must be from."""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens: `path` of a socket, or `host` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As docker-py takes it."""
        return f"unix://{self.path}" if self.path else f"{'https' if self.tls else 'tcp'}://{self}"


def address_of(host: str, tls: TlsFiles | None, env: Mapping[str, str]) -> Address:
    """Return the address of an engine: `host`, else what `env` says as for Docker's own command line, else the usual.

    Raises ValueError with a text that says what to write instead.
    """
    host = host or env.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if tls is None and env.get("DOCKER_TLS_VERIFY"):
        folder = env.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")  # noqa: PTH111
        tls = TlsFiles(*(os.path.join(folder, name) for name in ("ca.pem", "cert.pem", "key.pem")))  # noqa: PTH118
    hint = "write it like unix:///var/run/docker.sock or tcp://10.0.0.1:2376"
    try:
        parts = urlsplit(host)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{host!r} is no address of an engine ({error}): {hint}") from None
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return Address(path=parts.path)
    if parts.scheme in ("tcp", "http", "https") and parts.hostname and parts.path in ("", "/"):
        if parts.scheme == "https":
            tls = tls or TlsFiles()
        return Address(host=parts.hostname, port=port or (2376 if tls else 2375), tls=tls)
    raise ValueError(f"{host!r} is no address of an engine that we can use: {hint}")


class AnswerError(Exception):
    """The engine's answer is an HTTP error: its status and its body."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body


class Wire:
    """One request and the stream that answers it: `begin`, iterate, `close` in any case."""

    def __init__(
        self, address: Address, request: str, *, timeout_s: float, headers: Mapping[str, str], body: bytes = b""
    ) -> None:
        """Connect and send `request` (method and path), each within `timeout_s`. Raises OSErrors."""
        self._closed = False
        self._reading, self._writing = threading.Lock(), threading.Lock()
        # OpenSSL takes no reads and writes of one connection at the same time. Nobody waits while holding it.
        self._using = threading.Lock()
        self._rest = b""
        """What came behind the head of the answer."""
        self._chunks: Chunks | None = None
        self._deadline_s: float | None = None
        """Of the whole answer."""
        self._sock = _dial(address, timeout_s)
        lines = [f"{request} HTTP/1.1", "Host: engine", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            self.write("\r\n".join([*lines, "", ""]).encode() + body)
        except BaseException:
            self.close()
            raise

    def begin(self, timeout_s: float) -> None:
        """Wait for the head of the answer. Raises AnswerError, FramingError, TimeoutError and other OSErrors."""
        deadline_s = time.monotonic() + timeout_s
        status, fields, self._rest = self._read_head(deadline_s)
        self._chunks = Chunks() if fields.get("transfer-encoding") == "chunked" else None
        if status >= 400:
            length = fields.get("content-length", "")
            raise AnswerError(status, self._read_error(int(length) if length.isdigit() else MAX_ERROR, deadline_s))

    def whole(self, timeout_s: float) -> bytes:
        """Wait for the whole answer. Raises as `begin` and as iterating do, TimeoutError also in its middle."""
        self._deadline_s = time.monotonic() + timeout_s
        self.begin(timeout_s)
        return b"".join(self)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes as they come, at most PIECE_BYTES at once, to the end of the answer or `close`.

        Raises FramingError and OSErrors, ConnectionError when the connection ends in the middle of the answer.
        """
        while data := self._rest or self._receive(self._deadline_s):
            self._rest = b""
            if self._chunks is None:
                yield data
                continue
            yield from self._chunks.feed(data)
            if self._chunks.ended:
                break
        if self._chunks and not self._chunks.ended and not self._closed:
            raise ConnectionError("the engine ended the connection in the middle of its answer")

    def write(self, data: bytes) -> None:
        """Send bytes, waiting while the other side does not take them. Raises OSErrors."""
        rest = memoryview(data)
        with self._writing:
            while rest:
                if self._closed:
                    raise BrokenPipeError("closed")
                try:
                    with self._using:
                        rest = rest[self._sock.send(rest[:PIECE_BYTES]) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    self._wait(select.POLLOUT)
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN)

    def close_input(self) -> None:
        """Say that no more is written; what the other side still says can be read."""
        with self._writing, contextlib.suppress(OSError, ValueError):
            if isinstance(self._sock, ssl.SSLSocket):
                with self._using:
                    # It raises that it wants the other side's goodbye, which comes when that has finished.
                    self._sock.unwrap()
            else:
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the connection; whoever reads or writes it in another thread is let go. May be called again."""
        self._closed = True
        # Of the socket below TLS: SSLSocket's own would take the reader's state away from under it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        with self._reading, self._writing:
            self._sock.close()

    def _receive(self, deadline_s: float | None = None) -> bytes:
        """The next bytes; none at the end and after `close`."""
        with self._reading:
            while not self._closed:
                try:
                    with self._using:
                        return self._sock.recv(PIECE_BYTES)
                except (BlockingIOError, ssl.SSLWantReadError):
                    self._wait(select.POLLIN, deadline_s)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT, deadline_s)
                except ssl.SSLZeroReturnError:
                    return b""
                except OSError:
                    if not self._closed:
                        raise
            return b""

    def _wait(self, ready: int, deadline_s: float | None = None) -> None:
        poll = select.poll()
        poll.register(self._sock.fileno(), ready)
        left_ms = None if deadline_s is None else max(0.0, deadline_s - time.monotonic()) * 1000
        if not poll.poll(left_ms):
            raise TimeoutError from None

    def _read_head(self, deadline_s: float) -> tuple[int, dict[str, str], bytes]:
        """The status of the answer, its fields in small letters, and what came behind the head."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self._receive(deadline_s)
            if not more or len(data) > MAX_HEAD:
                raise FramingError("what answers does not speak HTTP")
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").lower().split("\r\n")
        protocol, _, status = first.partition(" ")
        if not protocol.startswith("http/1.") or not status[:3].isdigit():
            raise FramingError("what answers does not speak HTTP")
        fields = (line.partition(":") for line in lines)
        return int(status[:3]), {name.strip(): value.strip() for name, _, value in fields}, rest

    def _read_error(self, length: int, deadline_s: float) -> bytes:
        body = b""
        while len(body) < min(length, MAX_ERROR) and (data := self._rest or self._receive(deadline_s)):
            self._rest = b""
            body += b"".join(self._chunks.feed(data)) if self._chunks else data
            if self._chunks and self._chunks.ended:
                break
        return body


def knock(address: Address, timeout_s: float) -> None:
    """Return when somebody accepts connections at the address. Raises OSErrors."""
    _dial(address, timeout_s).close()


def _dial(address: Address, timeout_s: float) -> socket.socket:
    if address.path:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
    else:
        sock = socket.create_connection((address.host, address.port), timeout_s)
        # A cut cable says nothing: without it a follower of a silent log would follow for ever.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        if address.tls:
            context = ssl.create_default_context(cafile=address.tls.ca or None)
            if address.tls.cert:
                context.load_cert_chain(address.tls.cert, address.tls.key or None)
            sock = context.wrap_socket(sock, server_hostname=address.host)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
