"""The two beds that every contract test lies in: a tree in memory, and the same tree of processes on real sockets."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tsbus import Client, Worker
from tsbus.config import BusSettings, Server, Tree, dump
from tsbus.core.session import WINDOW
from tsbus.testing import MemoryTree
from tsbus.transport import new_keypair, open_channel

CHILDREN: dict[str, list[str]] = {"root": ["a", "b"], "a": ["c"], "b": [], "c": []}
TAGS = {"web": ["a", "c"]}
SETTINGS = BusSettings(adopt_after_s=60.0, heartbeat_timeout_ms=30_000, torpid_after=60)
"""Nobody adopts while a test has a node stopped, so that what cannot be reached is the same in both beds.

Who stands still is not lost: in the bed of sockets a busy machine lets processes do so.
"""
LIMIT_S = 60.0
HOST = f"127.{os.getpid() >> 8 & 127 | 128}.{os.getpid() & 255}.2"
"""An address of our own: no other run of tests, nor any program's own choice of a port, gets in the way."""
_marks = itertools.count(1)

T = TypeVar("T")


class Bed(Protocol):
    """What a contract test may do."""

    async def connect(self, node: str, *, window: int = WINDOW) -> Client:
        """Return a client on `node`."""

    async def run(self, worker: Worker, node: str) -> Worker:
        """Run a worker on `node` and wait until it serves."""

    async def kill(self, worker: Worker) -> None:
        """End a worker without a word."""

    async def stop(self, node: str) -> None:
        """Kill the router of `node`."""

    async def start(self, node: str) -> None:
        """Start it again."""

    async def done(self, action: Coroutine[Any, Any, T]) -> T:
        """Wait for `action`, while time goes on."""

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so()`, while time goes on; fails after LIMIT_S."""

    async def heard(self, publisher: Client, *subscribers: Client) -> None:
        """Wait until every router on the way from the publisher knows what these others have subscribed to."""


class _Shared:
    async def done(self, action: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(action)
        try:
            await self.until(task.done)
        finally:
            task.cancel()
        return task.result()

    async def until(self, is_so: Callable[[], bool]) -> None:
        raise NotImplementedError

    async def heard(self, publisher: Client, *subscribers: Client) -> None:
        for subscriber in subscribers:
            # Nobody else wants it, and routers pass interest on in order: where it is known, all before it is.
            last = f"known.{next(_marks)}"
            async with subscriber.subscribe(last), publisher.interest(last) as interest:
                await self.until(lambda: interest.wanted)


class MemoryBed(_Shared):
    """The tree in memory."""

    def __init__(self, tree: MemoryTree) -> None:
        self.tree = tree
        self.connect, self.run, self.kill = tree.connect, tree.run, tree.kill

    async def stop(self, node: str) -> None:
        self.tree.stop(node)

    async def start(self, node: str) -> None:
        self.tree.start(node)
        await self.tree.advance(1)

    async def until(self, is_so: Callable[[], bool]) -> None:
        await self.tree.settle()
        for _ in range(round(LIMIT_S / 0.05)):
            if is_so():
                return
            await self.tree.advance(0.05)
        raise AssertionError("it did not come to that")


class Processes:
    """The routers of the tree as processes; they outlive a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pairs = {name: new_keypair() for name in CHILDREN}
        self.secrets = {name: secret for name, (_, secret) in pairs.items()}
        servers = {
            name: Server(
                name,
                HOST,
                port,
                tags=tuple(tag for tag, nodes in TAGS.items() if name in nodes),
                childs=tuple(CHILDREN[name]),
                public_key=pairs[name][0],
            )
            for port, name in enumerate(CHILDREN, 7001)
        }
        self.tree = Tree(servers=servers, bus=SETTINGS)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node: str) -> None:
        file = self.folder / f"{node}.toml"
        file.write_text(dump(self.tree.with_current(node)))
        script = Path(__file__).with_name("router_process.py")
        argv = [sys.executable, script, file, self.secrets[node], self.folder / node]
        self.running[node] = subprocess.Popen(argv)

    def stop(self, node: str) -> None:
        process = self.running.pop(node)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(LIMIT_S)


class SocketBed(_Shared):
    """The tree of processes, with the clients of one test."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._clients: list[Client] = []
        self._workers: dict[Worker, tuple[str, Client, asyncio.Task[None]]] = {}

    async def whole(self) -> None:
        """Wait until the root reaches every node."""
        client = await self.connect("root")
        deadline = time.monotonic() + LIMIT_S
        while not (result := await client.call("*", "router.ping")).complete:
            assert time.monotonic() < deadline, result.explain()
            await asyncio.sleep(0.02)

    async def alone(self) -> None:
        """Wait until no router knows anybody of an earlier test: it could give him the commands of this one."""
        deadline = time.monotonic() + LIMIT_S
        while await self._connected("*") > 1:
            assert time.monotonic() < deadline, "somebody of an earlier test is still there"
            await asyncio.sleep(0.02)

    async def _connected(self, nodes: str) -> int:
        """How many clients and workers the routers of these nodes have."""
        told = await self._clients[0].call(nodes, "router.stats")
        return sum(len(stats["workers"]) for stats in told.values().values())

    async def connect(self, node: str, *, window: int = WINDOW) -> Client:
        address = f"ipc://{self.processes.folder / node / 'bus'}"
        client = Client(lambda: open_channel(address), name="test", where=address, window=window)
        self._clients.append(client)
        await client.open(LIMIT_S)
        return client

    async def run(self, worker: Worker, node: str) -> Worker:
        client = await self.connect(node)
        task = asyncio.create_task(worker.serve(client))
        await self.done(worker.wait_ready())
        self._workers[worker] = (node, client, task)
        return worker

    async def kill(self, worker: Worker) -> None:
        """End it, and wait until its router knows: a call that comes before that is lost with it."""
        node, client, task = self._workers.pop(worker)
        before = await self._connected(node)
        client.abort()
        await _end(task)
        deadline = time.monotonic() + LIMIT_S
        while await self._connected(node) == before:
            assert time.monotonic() < deadline, "the router has not noticed"
            await asyncio.sleep(0.005)

    async def stop(self, node: str) -> None:
        self.processes.stop(node)

    async def start(self, node: str) -> None:
        self.processes.start(node)
        await self.whole()

    async def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, "it did not come to that"
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        for _, _, task in self._workers.values():
            await _end(task)
        for client in self._clients:
            client.abort()
        for node in CHILDREN.keys() - self.processes.running.keys():
            self.processes.start(node)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def memory_tree() -> MemoryTree:
    """Return the tree of the contract, in memory."""
    return MemoryTree(CHILDREN, tags=TAGS, settings=replace(SETTINGS))


def short_folder() -> "tempfile.TemporaryDirectory[str]":
    """Return a folder whose path is short enough for socket addresses."""
    return tempfile.TemporaryDirectory(prefix="ts-")
