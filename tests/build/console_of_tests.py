"""Console of tests: logins to targets, a proxy that cuts connections, and servers that behave badly."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from targets import PASSWORD, Target

from tsbus.build.access import Given, KeyFile, Login
from tsbus.build.ssh import ServerTrouble, Session, Shared
from tsbus.build.trouble import Trouble
from tsbus.config import Secret

T = TypeVar("T")
LIMIT_S = 60.0
"""How long anything may take that must come, on a busy machine."""
TREE = Given(Secret(PASSWORD))
"""The password of the users tree and plain."""


def wait(what: str, is_so: Callable[[], T]) -> T:
    """Wait until `is_so()` is true, and return it; `what` says in a failure what did not come."""
    end = time.monotonic() + LIMIT_S
    while not (value := is_so()):
        assert time.monotonic() < end, f"within {LIMIT_S:g} s this did not come: {what}"
        time.sleep(0.01)
    return value


class Desk:
    """Somebody's console."""

    def __init__(self, shared: Shared, folder: Path, key: Path) -> None:
        self.shared, self.folder = shared, folder
        self.key = KeyFile(key)
        self.known_hosts = folder / "known_hosts"

    def know(self, target: Target, *ports: int, name: str = "") -> None:
        """Write the target's host key into known_hosts."""
        with self.known_hosts.open("a") as file:
            for port in ports or (22,):
                file.write(target.known_host(port, name))

    def login(self, target: Target | str, user: str = "root", **changes: Any) -> Login:
        """Return how to log in with the lab's key; a target's host key is known then."""
        host = target if isinstance(target, str) else target.ip
        login = Login(host, host, 22, user, (self.key,), known_hosts=(self.known_hosts,), connect_timeout_s=LIMIT_S)
        login = replace(login, **changes)
        if isinstance(target, Target) and not login.host_key and not login.accept_new:
            self.know(target, login.port)
        return login

    def session(self, target: Target | str, user: str = "root", **changes: Any) -> Session:
        """Return a session that is not connected yet."""
        return Session(self.login(target, user, **changes), self.shared)

    def trouble(self, target: Target | str, user: str = "root", **changes: Any) -> Trouble:
        """Return why nobody can log in."""
        return trouble_of(self.session(target, user, **changes).connect)


def trouble_of(do: Callable[[], object]) -> Trouble:
    """Return the trouble that ends `do`."""
    with pytest.raises(ServerTrouble) as caught:
        do()
    return caught.value.trouble


class Cutter:
    """A TCP proxy to a port, in threads; cuts connections with a reset, or lets nothing through any more."""

    def __init__(self, host: str, port: int = 22) -> None:
        self._behind = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cut_after: int | None = None
        """Bytes to the server, of all connections together, after which it cuts, once."""
        self.connections = 0
        self.sent = 0
        self.received = 0
        self._flows = threading.Event()
        self._flows.set()
        self._links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections with a reset; new ones get through."""
        links, self._links = self._links, []
        for link in links:
            with contextlib.suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def freeze(self) -> None:
        """Let nothing through from now on, and keep the connections: a cable is out."""
        self._flows.clear()

    def close(self) -> None:
        """Stop for good."""
        self._listener.close()
        self.cut()
        self._flows.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._behind)
                self.connections += 1
                self._links += [near, far]
                for pair in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        try:
            while data := source.recv(4096):
                self._flows.wait()
                sink.sendall(data)
                if not to_server:
                    self.received += len(data)
                    continue
                self.sent += len(data)
                if self.cut_after is not None and self.sent >= self.cut_after:
                    self.cut_after = None
                    self.cut()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            with contextlib.suppress(OSError):  # the end of one side is that of the other
                sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutter(target: Target, port: int = 22) -> Iterator[Cutter]:
    """A proxy in front of a target."""
    proxy = Cutter(target.ip, port)
    try:
        yield proxy
    finally:
        proxy.close()


@contextlib.contextmanager
def saying(*pieces: bytes, again: bytes = b"") -> Iterator[int]:
    """A server that says this to everybody, and `again` for ever, and falls silent; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    links: list[socket.socket] = []

    def talk(link: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                link.sendall(piece)
            while again:
                link.sendall(again)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                links.append(link)
                threading.Thread(target=talk, args=(link,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        for link in (listener, *links):
            link.close()
