"""Rig: the balancer's surroundings, made of network namespaces in a guest, with servers that say who asked.

    client 10.0.0.2 ---+
                       switch --- eth0 10.0.0.1, the balancer's host (the guest itself) --- br0 172.17.0.1/16
    node   10.0.0.3 ---+                                                                     +-- c1 172.17.0.2
                                                                                             +-- c2 172.17.0.3

A socket stays in the namespace in which it was made. So all of them live in this process, and each is made in a thread
that has gone there.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

HOST = "host"
ADDRESSES = {HOST: "10.0.0.1", "client": "10.0.0.2", "node": "10.0.0.3", "c1": "172.17.0.2", "c2": "172.17.0.3"}
PORT = 8080
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
LIMIT_S = 20.0
"""For what must come."""
SILENCE_S = 1.0
"""For what must not come."""
_CLONE_NEWNET = 0x40000000


def _ip(space: str | None, *lines: str) -> None:
    """Run lines of ip in a namespace, in one process: each costs a tenth of a second here."""
    words = ["ip", *(["-n", space] if space else []), "-batch", "-"]
    done = subprocess.run(words, input="\n".join(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def cable(name: str, bridge: str) -> list[str]:
    """A cable between a bridge and the eth0 of a namespace."""
    where = os.getpid() if name == HOST else name
    return [f"link add to-{name} type veth peer name eth0 netns {where}", f"link set to-{name} master {bridge} up"]


class Answer(NamedTuple):
    """Which server answered, and whom it thinks it answered."""

    server: str
    source: str


class Rig:
    """The namespaces and servers, while this is entered."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        names = ["switch", *(name for name in ADDRESSES if name != HOST)]
        self._stack.callback(_ip, None, *(f"netns delete {name}" for name in names), "link delete br0")
        _ip(None, *(f"netns add {name}" for name in names))
        _ip(
            "switch",
            "link add sw type bridge",
            "link set sw up",
            *cable(HOST, "sw"),
            *cable("client", "sw"),
            *cable("node", "sw"),
        )
        _ip(None, "link add br0 type bridge", *cable("c1", "br0"), *cable("c2", "br0"))
        _ip(None, "address add 172.17.0.1/16 dev br0", "link set br0 up")
        _ip(None, "address add 10.0.0.1/24 dev eth0", "link set eth0 up")
        for name in ("client", "node"):
            _ip(name, f"address add {ADDRESSES[name]}/24 dev eth0", "link set eth0 up")
        for name in ("c1", "c2"):
            _ip(
                name,
                f"address add {ADDRESSES[name]}/16 dev eth0",
                "link set eth0 up",
                "route add default via 172.17.0.1",
            )
        self.sysctl("net.ipv4.ip_forward", 1)
        for name in ("node", "c1", "c2"):
            self._serve(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sysctl(self, name: str, value: int) -> None:
        """Set something of the host until the rig is taken down."""
        place = Path("/proc/sys", name.replace(".", "/", 1).replace(".", "/"))
        self._stack.callback(place.write_text, place.read_text())
        place.write_text(str(value))

    def socket(self, name: str, kind: str) -> socket.socket:
        """A socket in a namespace."""

        def make() -> socket.socket:
            if name != HOST:
                with Path("/run/netns", name).open() as place:
                    if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), name)
            return self._stack.enter_context(socket.socket(socket.AF_INET, KINDS[kind]))

        with ThreadPoolExecutor(1) as elsewhere:
            return elsewhere.submit(make).result()

    def _serve(self, name: str) -> None:
        def answer_tcp(listener: socket.socket) -> None:
            while True:
                connection, (source, _) = listener.accept()
                threading.Thread(target=answer_one, args=(connection, source), daemon=True).start()

        def answer_one(connection: socket.socket, source: str) -> None:
            with connection, contextlib.suppress(ConnectionError):
                while connection.recv(100):
                    connection.send(f"{name} {source}".encode())

        def answer_udp(receiver: socket.socket) -> None:
            while True:
                _, (source, port) = receiver.recvfrom(100)
                receiver.sendto(f"{name} {source}".encode(), (source, port))

        def start(kind: str, answer: Callable[[socket.socket], None]) -> None:
            def body() -> None:
                with contextlib.suppress(OSError):  # shut down with the rig
                    answer(server)

            server = self.socket(name, kind)
            server.bind(("0.0.0.0", PORT))  # noqa: S104
            if kind == "tcp":
                server.listen()
            thread = threading.Thread(target=body, daemon=True)
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(_shut, server)

        start("tcp", answer_tcp)
        start("udp", answer_udp)

    def flow(self, name: str, kind: str, to: tuple[str, int]) -> "Flow":
        """A connection from a namespace. Raises OSError, TimeoutError among them, when it cannot be made."""
        end = self.socket(name, kind)
        end.settimeout(LIMIT_S)
        end.connect(to)
        return Flow(end)

    def request(self, name: str, kind: str, to: tuple[str, int]) -> Answer:
        """What one new connection from a namespace is answered."""
        flow = self.flow(name, kind, to)
        try:
            return flow.ask()
        finally:
            flow.end.close()


def _shut(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


class Flow:
    """One TCP connection, or packets of UDP from one port."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def ask(self) -> Answer:
        """Raises OSError, TimeoutError among them, when there is no answer."""
        self.end.send(b"who?")
        answer = self.end.recv(100)
        if not answer:
            raise ConnectionResetError("the server ended the connection")
        return Answer(*answer.decode().split())

    def hears_nothing(self) -> bool:
        """Ask, and return whether there was no answer."""
        self.end.settimeout(SILENCE_S)
        try:
            self.ask()
        except TimeoutError:
            return True
        finally:
            self.end.settimeout(LIMIT_S)
        return False
