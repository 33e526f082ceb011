"""Lan: a small network in namespaces without names, with servers that say who asked. Gone when the process is gone.

    client 10.0.0.2 --+                                      +-- docker0 172.17.0.1/16 -- c1 172.17.0.2, c2 172.17.0.3
                      switch -- eth0 10.0.0.1, host ---------+
    node   10.0.0.3 --+                                      +-- br-two  172.18.0.1/16 -- c3 172.18.0.2

The same with IPv6: fd00::1 for 10.0.0.1, fd17::2 for 172.17.0.2, fd18::2 for 172.18.0.2. The host is a namespace as
well, so this runs wherever there is root, next to the machine's own network, and in a guest.
"""

import contextlib
import ctypes
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PORT = 8080
KINDS = ("tcp", "udp")
"""What every server answers."""
_SOCKETS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
LIMIT_S = 60.0
"""How long an answer may take that must come; on a busy machine, in a guest."""
PATIENCE_S = 1.0
"""How long to wait for an answer that must not come."""
_DOCKER = """\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {one} ! -o docker0 -j MASQUERADE
-A POSTROUTING -s {two} ! -o br-two -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER -i br-two -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A FORWARD -o br-two -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br-two -j DOCKER
-A FORWARD -i br-two ! -o br-two -j ACCEPT
-A FORWARD -i br-two -o br-two -j ACCEPT
-A DOCKER-USER -j RETURN
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -i br-two ! -o br-two -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -o br-two -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
COMMIT
"""
"""The rules of an engine with two networks, of the form that engines 20 to 27 write."""
_CLONE_NEWNET = 0x40000000
_NETS = {"lan": ("10.0.0", "fd00:"), "docker0": ("172.17.0", "fd17:"), "br-two": ("172.18.0", "fd18:")}
_PLACES = {
    "host": ("lan", 1), "client": ("lan", 2), "node": ("lan", 3),
    "c1": ("docker0", 2), "c2": ("docker0", 3), "c3": ("br-two", 2),
}  # fmt: skip


def address(name: str, version: int = 4) -> str:
    """Of the one of the picture, or of a bridge of the host."""
    net, number = _PLACES.get(name) or (name, 1)
    v4, v6 = _NETS[net]
    return f"{v4}.{number}" if version == 4 else f"{v6}:{number}"


def enter(fd: int) -> None:
    """Take this thread to another network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def inside(box: "Box") -> Iterator[None]:
    """Be in a namespace, with this thread."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(box.fd)
    try:
        yield
    finally:
        enter(here)
        os.close(here)


class Answer(NamedTuple):
    """Which server answered, and whom it thinks it answered."""

    server: str
    source: str


class Box:
    """A network namespace, and a thread that lives in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.fd = self._thread.submit(self._enter).result()

    @staticmethod
    def _enter() -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns when it is called there; sockets and programs that it makes stay there."""
        return self._thread.submit(function, *args, **kwargs).result()

    def run(self, *words: str, text: str | None = None) -> str:
        """What a program says that runs there; AssertionError with its errors when it fails."""
        done = self.call(subprocess.run, words, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return str(done.stdout)

    def ip(self, *lines: str) -> None:
        """Run `ip` with many commands at once."""
        self.run("ip", "-batch", "-", text="\n".join(lines))

    def sysctl(self, name: str, value: int | None = None) -> int:
        """Read a setting, after it was set if a value is given."""
        place = Path("/proc/sys", name.replace(".", "/"))
        if value is not None:
            self.call(place.write_text, str(int(value)))
        return int(self.call(place.read_text))

    def close(self) -> None:
        os.close(self.fd)
        self._thread.shutdown()


class Lan:
    """The namespaces and servers, while this is entered."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Box:
        return self.boxes[name]

    @property
    def host(self) -> Box:
        return self.boxes["host"]

    def _build(self) -> None:
        self.boxes = {name: Box(name) for name in ("switch", *_PLACES)}
        for box in self.boxes.values():
            self._stack.callback(box.close)
            box.sysctl("net.ipv6.conf.default.accept_dad", 0)  # no wait until addresses of links are known to be free
        switch = self.boxes["switch"]
        switch.ip("link add lan type bridge", "link set lan up")
        bridges = [name for name in _NETS if name != "lan"]
        self.host.ip(*(line for name in bridges for line in (
            f"link add {name} type bridge",
            f"address add {address(name)}/16 dev {name}",
            f"address add {address(name, 6)}/64 dev {name} nodad",
            f"link set {name} up",
        )))  # fmt: skip
        for name, (net, _) in _PLACES.items():
            self._plug(name, switch if net == "lan" else self.host, net)
        for name in ("node", "c1", "c2", "c3"):
            for kind in KINDS:
                self.serve(name, kind)

    def _plug(self, name: str, other: Box, bridge: str) -> None:
        """A cable between eth0 of one and a bridge."""
        box, link = self.boxes[name], f"to-{name}"
        place = f"/proc/{os.getpid()}/fd/{box.fd}"
        other.ip(f"link add {link} type veth peer name eth0 netns {place}", f"link set {link} master {bridge} up")
        prefixes = (24, 64) if bridge == "lan" else (16, 64)
        lines = ["link set lo up", "link set eth0 up"]
        lines += [f"address add {address(name, version)}/{prefix} dev eth0" + " nodad" * (version == 6)
                  for version, prefix in zip((4, 6), prefixes, strict=True)]  # fmt: skip
        if bridge != "lan":
            lines += [f"route add default via {address(bridge, version)}" for version in (4, 6)]
        box.ip(*lines)

    def serve(self, name: str, kind: str, port: int = PORT) -> None:
        """Answer there, for both versions of IP, until this is left."""

        def answer() -> None:
            if kind == "udp":
                _, source = server.recvfrom(100)
                server.sendto(words(source[0]), source)
            else:
                connection, (source, *_) = server.accept()
                threading.Thread(target=answer_all, args=(connection, source), daemon=True).start()

        def answer_all(connection: socket.socket, source: str) -> None:
            with connection, contextlib.suppress(ConnectionError):
                while connection.recv(100):
                    connection.send(words(source))

        def words(source: str) -> bytes:
            return f"{name} {source.removeprefix('::ffff:')}".encode()

        def body() -> None:
            while far not in select.select([server, far], [], [])[0]:
                with contextlib.suppress(OSError):  # the client went away
                    answer()

        server = self.boxes[name].call(socket.socket, socket.AF_INET6, *_SOCKETS[kind])
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        if kind != "udp":
            server.listen()
        near, far = socket.socketpair()
        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        for each in (server.close, far.close, thread.join, near.close):
            self._stack.callback(each)

    def docker(self) -> None:
        """Docker's rules on the host, made anew; as after its restart, all others in these tables are gone."""
        nets = {4: ("127.0.0.0/8", "172.17.0.0/16", "172.18.0.0/16"), 6: ("::1/128", "fd17::/64", "fd18::/64")}
        for tool, version in (("iptables-restore", 4), ("ip6tables-restore", 6)):
            names = dict(zip(("loopback", "one", "two"), nets[version], strict=True))
            self.host.run(tool, text=_DOCKER.format(**names))

    def flow(self, name: str, kind: str, to: tuple[str, int], limit_s: float = LIMIT_S, source: str = "") -> "Flow":
        """A connection from somewhere, there from one of several addresses.

        Raises OSError, TimeoutError among them, when it cannot be made.
        """
        family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
        end = self.boxes[name].call(socket.socket, family, *_SOCKETS[kind])
        self._stack.callback(end.close)
        end.settimeout(limit_s)
        if source:
            end.bind((source, 0))
        end.connect(to)
        return Flow(end, limit_s)

    def ask(self, name: str, kind: str, to: tuple[str, int], limit_s: float = LIMIT_S, source: str = "") -> Answer:
        """What one new connection from somewhere is answered."""
        flow = self.flow(name, kind, to, limit_s, source)
        with flow.end:
            return flow.ask()

    def silent(self, name: str, to: tuple[str, int], kind: str = "udp") -> bool:
        """Tell whether nothing answers, not even a refusal."""
        try:
            self.ask(name, kind, to, PATIENCE_S)
        except TimeoutError:
            return True
        return False


class Flow:
    """One TCP connection, or packets of UDP from one port."""

    def __init__(self, end: socket.socket, limit_s: float) -> None:
        self.end = end
        end.settimeout(limit_s)

    def ask(self) -> Answer:
        """Raises OSError, TimeoutError among them, when there is no answer."""
        self.end.send(b"who?")
        answer = self.end.recv(100)
        if not answer:
            raise ConnectionResetError("the server ended the connection")
        return Answer(*answer.decode().split())

    def silent(self) -> bool:
        """Ask, and tell whether there was no answer, not even a refusal."""
        limit_s = self.end.gettimeout()
        self.end.settimeout(PATIENCE_S)
        try:
            self.ask()
        except TimeoutError:
            return True
        finally:
            self.end.settimeout(limit_s)
        return False
