"""A tree of real router processes on loopback, which tests kill, stop, cut off and bring back.

`Tree("a:b c;b:d")` writes keys and one configuration for each node and runs services/ts_router.py for every node. A
link may lead through a `Cutter`, a proxy that cuts it, freezes it, or lets little through. Everything that waits, waits
for a condition, and fails with what it saw when LIMIT_S is over.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from waiting import LIMIT_S

from tsbus import Client, Event, Worker, connect
from tsbus.config import BusSettings, Operator, Policy, Server, dump
from tsbus.config import Tree as Config
from tsbus.errors import ConnectionLost
from tsbus.transport import Curve, new_keypair, public_of

ROUTER = Path(__file__).parents[2] / "services/ts_router.py"
QUICK = BusSettings(
    heartbeat_ms=200, heartbeat_timeout_ms=1000, ping_ms=200, reset_after_s=1.0, steady_s=0.5, adopt_after_s=0.5
)  # fmt: skip
"""Impatient, so that tests need not wait long."""

HOST = f"127.{os.getpid() >> 8 & 127 | 128}.{os.getpid() & 255}.1"
"""An address of our own: no other run of these tests, nor any program's own choice of a port, gets in the way."""
_ports = itertools.count(7001)


def new_port() -> int:
    """Return a port of HOST that nobody has had yet."""
    return next(_ports)


async def until(what: str, is_so: Callable[[], Awaitable[Any] | Any], limit_s: float = LIMIT_S) -> Any:
    """Wait until `is_so()` is true, and return it; `what` says in a failure what did not come."""
    deadline = time.monotonic() + limit_s
    while True:
        value = is_so()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"within {limit_s} s this did not come: {what}"
        await asyncio.sleep(0.01)


class Cutter:
    """A TCP proxy in front of a node's port. It runs in the loop of the test."""

    def __init__(self, port: int) -> None:
        self.port = new_port()
        self._behind = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._bytes_per_s = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def mend(self) -> None:
        """Let connections through."""
        self._flows.set()
        self._bytes_per_s = 0
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, HOST, self.port)

    def freeze(self) -> None:
        """Let nothing through from now on, and keep the connections: a cable is out."""
        self._flows.clear()

    def slow_down(self, bytes_per_s: int) -> None:
        """Let this much through, in each direction of each connection."""
        self._bytes_per_s = bytes_per_s

    def cut(self) -> None:
        """End all connections with a reset and take no new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """End all connections with a reset; new ones get through."""
        for writer in self._writers:
            _reset(writer)
        self._writers.clear()

    def close(self) -> None:
        """Stop for good."""
        self.cut()
        for pump in self._pumps:
            pump.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._behind)
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(16_384):
                if self._bytes_per_s:
                    await asyncio.sleep(len(data) / self._bytes_per_s)
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
            await self._flows.wait()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: no FIN, nothing that is under way arrives."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


class Tree:
    """Routers of the tree `spec`: "a:b c;b:d" is the root a with the children b and c, and d below b."""

    def __init__(
        self,
        spec: str,
        folder: Path,
        *,
        bus: BusSettings = QUICK,
        cut: tuple[str, ...] = (),
        operators: dict[str, Operator] | None = None,
        policy: Policy | None = None,
        tags: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        """`cut`: nodes that their parents reach through a Cutter. Nothing runs yet: use `async with`."""
        children = {name: tuple(kids.split()) for name, _, kids in (part.partition(":") for part in spec.split(";"))}
        children |= {kid: () for kids in list(children.values()) for kid in kids if kid not in children}
        self.folder = folder
        self.secrets: dict[str, str] = {}
        servers = {}
        for name, kids in children.items():
            public, self.secrets[name] = new_keypair()
            servers[name] = Server(
                name, HOST, new_port(), childs=kids, public_key=public, tags=(tags or {}).get(name, ())
            )
        self.config = Config(servers=servers, bus=bus, operators=operators or {}, policy=policy or Policy())
        self.topology = self.config.topology()
        self.names = self.topology.names
        self.cutters = {name: Cutter(servers[name].service_port) for name in cut}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: list[Client] = []
        self._watchers: dict[str, Client] = {}
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for cutter in self.cutters.values():
            await cutter.mend()
        self.start(*self.names)
        await self.whole()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._workers:
            task.cancel()
        for client in self._clients:
            client.abort()
        for cutter in self.cutters.values():
            cutter.close()
        dead = {name: process.poll() for name, process in self.processes.items() if process.poll() is not None}
        self.kill(*self.processes)
        logs = {name: self.log(name) for name in self.names}
        if kind is None:
            assert not dead, f"routers ended by themselves: {dead} {[logs[name][-2000:] for name in dead]}"
            assert not any("Traceback" in text for text in logs.values()), logs
        else:
            for name, text in logs.items():
                sys.stderr.write(f"--- {name}\n{text[-3000:]}")

    # Processes.

    def write(self, node: str) -> Path:
        """Write the node's configuration and key, as it sees the tree; returns the configuration's path."""
        servers = dict(self.config.servers)
        for child in self.config.servers[node].childs:
            if child in self.cutters:
                servers[child] = replace(servers[child], service_port=self.cutters[child].port)
        file = self.folder / f"{node}.toml"
        file.write_text(dump(replace(self.config, servers=servers).with_current(node)))
        key = self.folder / f"{node}.key"
        key.write_text(self.secrets[node])
        key.chmod(0o600)
        return file

    def argv(self, node: str) -> list[str]:
        """Return the command line of the node's router."""
        file, key = self.write(node), self.folder / f"{node}.key"
        return [
            sys.executable, str(ROUTER), "--config", str(file), "--key", str(key), "--run-dir", str(self.folder / node)
        ]  # fmt: skip

    def start(self, *nodes: str) -> None:
        """Start routers."""
        for node in nodes:
            with (self.folder / f"{node}.log").open("ab") as log:
                self.processes[node] = subprocess.Popen(self.argv(node), stderr=log)

    def kill(self, *nodes: str) -> None:
        """Kill routers without a word."""
        for node in nodes:
            self.signal(signal.SIGKILL, node)
        for node in nodes:
            self.processes.pop(node).wait()

    def signal(self, number: signal.Signals, *nodes: str) -> None:
        """Send a signal to routers."""
        for node in nodes:
            self.processes[node].send_signal(number)

    def log(self, node: str) -> str:
        """Return what the node's routers have logged."""
        file = self.folder / f"{node}.log"
        return file.read_text() if file.exists() else ""

    def rss_kib(self, node: str) -> int:
        """Return the resident memory of the node's router."""
        status = Path(f"/proc/{self.processes[node].pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    # Clients.

    def bus(self, node: str) -> str:
        """Return the address of the node's bus."""
        return f"ipc://{self.folder / node / 'bus'}"

    def address(self, node: str) -> str:
        """Return the TCP address of the node's router."""
        server = self.config.servers[node]
        return f"tcp://{server.ip}:{server.service_port}"

    def keys(self, node: str, secret: str) -> Curve:
        """Return what a peer with the key `secret` needs to connect to `node`."""
        return Curve(public_of(secret), secret, self.config.servers[node].public_key)

    async def connect(self, node: str, **options: Any) -> Client:
        """Return a client on `node`; it is closed with the tree."""
        client = await connect(self.bus(node), timeout_s=LIMIT_S, **options)
        self._clients.append(client)
        return client

    async def run(self, worker: Worker, node: str) -> Worker:
        """Run a worker on `node`, until the tree is closed; returns it when it serves."""
        client = await self.connect(node, name=worker.name)
        self._workers.append(asyncio.create_task(worker.serve(client)))
        await asyncio.wait_for(worker.wait_ready(), LIMIT_S)
        return worker

    async def collect(self, node: str, pattern: str) -> list[Event]:
        """Subscribe on `node`; returns a list that grows with every event, once all running nodes know of the wish."""
        events: list[Event] = []
        client = await self.connect(node)
        await client.subscribe(pattern, callback=events.append)
        for other in self.processes:
            async with (await self._watcher(other)).interest(pattern) as interest:
                await until(f"{other} knows that {node} wants {pattern}", lambda: interest.wanted)
        return events

    async def _watcher(self, node: str) -> Client:
        watcher = self._watchers.get(node)
        if watcher is None:
            watcher = self._watchers[node] = await self.connect(node, name="watcher")
        await watcher.wait_connected(LIMIT_S)
        return watcher

    async def ask(self, node: str, command: str, body: object = b"") -> Any:
        """Return what the node's own router answers."""
        while True:
            watcher = await self._watcher(node)
            try:
                return await watcher.call_one(node, command, body)
            except ConnectionLost:  # the router that we asked has just been killed
                continue

    async def status(self, node: str) -> dict[str, dict[str, Any]]:
        """Return the whole tree as `node` sees it, by name."""
        return {entry["name"]: entry for entry in (await self.ask(node, "router.status"))["nodes"]}

    async def up(self, node: str) -> set[str]:
        """Return the nodes that `node` reaches."""
        return {name for name, entry in (await self.status(node)).items() if entry["state"] != "lost"}

    async def counters(self, node: str) -> dict[str, int]:
        """Return the counters of the node's router."""
        found: dict[str, int] = (await self.ask(node, "router.stats"))["counters"]
        return found

    # Waiting.

    async def whole(self) -> None:
        """Wait until every node reaches every node, each below its own parent, and all know the same of them.

        Who has not missed a router that was killed and is back knows the one before.
        """
        seen: dict[str, dict[str, dict[str, Any]]] = {}

        async def is_so() -> bool:
            seen.clear()
            for node in self.names:
                seen[node] = await self.status(node)
            known = [{name: (one["epoch"], one["incarnation"]) for name, one in each.items()} for each in seen.values()]
            at_home = all(
                one["state"] != "lost" and one["parent"] == one["home"]
                for each in seen.values()
                for one in each.values()
            )
            return at_home and all(each == known[0] and each.keys() == set(self.names) for each in known)

        await self._until_seen("every node reaches every node", is_so, seen)

    async def wait_seen(self, node: str, up: set[str], *, home: bool = False) -> None:
        """Wait until `node` reaches exactly `up`; `home`: and these hang below their own parents."""
        seen: dict[str, dict[str, Any]] = {}

        async def is_so() -> bool:
            seen.clear()
            seen.update(await self.status(node))
            reached = {name for name, entry in seen.items() if entry["state"] != "lost"}
            at_home = all(entry["parent"] == entry["home"] for name, entry in seen.items() if name in up)
            return reached == up and (at_home or not home)

        await self._until_seen(f"{node} reaches exactly {sorted(up)}", is_so, seen)

    async def _until_seen(self, what: str, is_so: Callable[[], Awaitable[bool]], seen: dict[str, Any]) -> None:
        """Wait, and tell what was seen last if it does not come."""
        try:
            await until(what, is_so)
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {json.dumps(seen, indent=1)}") from None


Grow = Callable[..., Awaitable[Tree]]
"""Starts a tree, with the arguments of `Tree`; the fixture `grow` is one."""


def bodies(events: list[Event]) -> list[Any]:
    """Return what events say, in JSON."""
    return [event.json() for event in events]
