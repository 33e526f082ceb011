"""A whole tree in memory, for tests: real routers and real clients in one event loop, no socket, and a clock by hand.

    async with MemoryTree({"root": ["a", "b"], "a": [], "b": []}, tags={"web": ["a", "b"]}) as tree:
        await tree.run(greeter, "b")
        client = await tree.connect("a")
        result = await client.call("@web", "greeter.hello")

While the tree is open, the loop's clock is the tree's: sleeps and timeouts end when `advance` says so, and only then.
Links are cut and mended, nodes stopped and started. The same inputs give the same course, always. The contract tests
(tests/contract) hold it to what real sockets do.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from tsbus.client import Client
from tsbus.config import BusSettings, Server, Tree
from tsbus.connection import Connection
from tsbus.core.roles import Role
from tsbus.core.session import WINDOW
from tsbus.peer import Conn, ConnKind
from tsbus.router import TICK_MS, Router
from tsbus.worker import Worker

_START_WALL_MS = 1_700_000_000_000
_QUIET_TURNS = 5
"""So many turns of the loop without a frame under way mean that nothing more will happen by itself."""
_REDIAL_MS = 200
_REDIAL_REFUSED_MS = 1000


class ManualClock:
    """Time that stands still until it is told to go on."""

    def __init__(self) -> None:
        self._ms = 0.0

    def go_on(self, ms: float) -> None:
        """Let so many milliseconds pass."""
        self._ms += ms

    def monotonic_ms(self) -> float:
        """Milliseconds since the tree was opened, and a day: nothing may depend on starting at 0."""
        return 86_400_000 + self._ms

    def wall_ms(self) -> int:
        """Unix milliseconds of a made-up day."""
        return _START_WALL_MS + int(self._ms)


class _End:
    """One end of a connection in memory: hands what the other end sends to whoever is here."""

    def __init__(self) -> None:
        self.other: _End | None = None

    def send(self, frame: bytes) -> bool:
        """Pass a frame to the other end; False once the connection is cut."""
        if self.other is None:
            return False
        self.other.arrived(frame)
        return True

    def cut(self) -> None:
        """End the connection; the other end is told, this one knows."""
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            other.ended()

    def arrived(self, frame: bytes) -> None:
        """Take a frame."""
        raise NotImplementedError

    def ended(self) -> None:
        """Learn that the other end cut the connection."""
        raise NotImplementedError


def _join(one: _End, two: _End) -> None:
    one.other, two.other = two, one


class _RouterEnd(_End):
    """An end at a router, which knows it as a `Conn`."""

    def __init__(self, node: "_Node", conn: Conn) -> None:
        super().__init__()
        self._node = node
        self.conn = conn
        node.ends[conn] = self

    def arrived(self, frame: bytes) -> None:
        self._node.later(lambda router: router.received(self.conn, frame))

    def ended(self) -> None:
        del self._node.ends[self.conn]
        self._node.later(lambda router: router.disconnected(self.conn))


class _Channel(_End):
    """An end at a client (a connection.Channel)."""

    def __init__(self, tree: "MemoryTree", node: str, uid: int, role: Role) -> None:
        super().__init__()
        self._tree = tree
        self.node, self.uid, self.role = node, uid, role
        self._closed = False

    def start(self, user: Connection) -> None:
        self._user = user
        self._tree.channels.append(self)
        self._tree.attach(self)

    def up(self) -> None:
        self._tell(self._user.up)

    def arrived(self, frame: bytes) -> None:
        self._tell(lambda: self._user.received(frame))

    def ended(self) -> None:
        self._tell(self._user.down)

    def _tell(self, action: Callable[[], object]) -> None:
        self._tree.soon(lambda: self._closed or action())

    def close(self) -> None:
        self._closed = True
        self._tree.channels.remove(self)
        self.cut()


class _Node:
    """A router and its transport in memory."""

    def __init__(self, tree: "MemoryTree", name: str, incarnation: int) -> None:
        self._tree = tree
        self._name = name
        self.ends: dict[Conn, _RouterEnd] = {}
        self._roles: dict[Conn, Role] = {}
        self._dials: dict[str, Conn | None] = {}
        self._again: dict[str, float] = {}
        self._inbox: deque[Callable[[Router], None]] = deque()
        self._due = False
        self.router = Router(
            tree.config.with_current(name),
            self,
            tree.clock,
            role_of=lambda conn: self._roles[conn],
            release="memory",
            incarnation=incarnation,
        )

    def start(self) -> None:
        self.later(lambda router: router.start())

    def stop(self) -> None:
        """Die without a word."""
        self._inbox.clear()
        for end in list(self.ends.values()):
            end.cut()

    def later(self, event: Callable[[Router], None]) -> None:
        """Let the router see `event` in its next turn."""
        self._inbox.append(event)
        if not self._due:
            self._due = True
            self._tree.soon(self._turn)

    def _turn(self) -> None:
        """One turn of the router's loop (loop.py)."""
        self._due = False
        router = self.router
        router.now = self._tree.clock.monotonic_ms()
        for _ in range(len(self._inbox)):
            self._inbox.popleft()(router)
        router.flush()
        if self._inbox:
            self.later(self._inbox.popleft())

    def tick(self) -> None:
        self._redial()
        self.later(lambda router: router.tick())

    def accept(self, channel: _Channel) -> None:
        """Take a local client."""
        conn = Conn(ConnKind.LOCAL, f"uid:{channel.uid}", uid=channel.uid, gid=channel.uid)
        self._roles[conn] = channel.role
        _join(_RouterEnd(self, conn), channel)
        channel.up()

    # The transport of the router (peer.Transport).

    def send(self, conn: Conn, frame: bytes) -> bool:
        """See peer.Transport."""
        end = self.ends.get(conn)
        return end is not None and end.send(frame)

    def set_dials(self, nodes: frozenset[str]) -> None:
        """See peer.Transport."""
        for gone in self._dials.keys() - nodes:
            conn = self._dials.pop(gone)
            if conn is not None:
                self.close(conn)
        for node in sorted(nodes - self._dials.keys()):
            self._dials[node] = None
        self._redial()

    def close(self, conn: Conn) -> None:
        """See peer.Transport."""
        end = self.ends.pop(conn, None)
        if end is not None:
            end.cut()
        if self._dials.get(conn.name) is conn:
            self._dials[conn.name] = None
            self._again[conn.name] = self._tree.clock.monotonic_ms() + _REDIAL_REFUSED_MS

    def drop_dial(self, name: str) -> None:
        """Cut the connection that was dialled to `name`; both ends are told."""
        conn = self._dials.get(name)
        end = self.ends.get(conn) if conn is not None else None
        if end is not None:
            end.cut()
            end.ended()

    def _redial(self) -> None:
        """Connect to the nodes that should be dialled, as far as they are there and it is time."""
        now = self._tree.clock.monotonic_ms()
        for name, conn in self._dials.items():
            if conn is not None and conn not in self.ends:  # the far end cut it
                self._dials[name] = None
                self._again[name] = now + _REDIAL_MS
            elif conn is None and self._again.get(name, 0.0) <= now and (far := self._tree.reach(self._name, name)):
                self._dials[name] = dialled = Conn(ConnKind.DIAL, name)
                _join(_RouterEnd(self, dialled), _RouterEnd(far, Conn(ConnKind.TCP, f"node:{self._name}")))
                self.later(lambda router, conn=dialled: router.connected(conn))  # type: ignore[misc]


class MemoryTree:
    """See the module. Use it with `async with`; at the end clients are closed and workers stopped."""

    def __init__(
        self,
        children: Mapping[str, Sequence[str]],
        *,
        tags: Mapping[str, Sequence[str]] | None = None,
        settings: BusSettings | None = None,
    ) -> None:
        """Plan a tree: `children` of each node, the nodes of each tag, and the settings of the bus."""
        leaves = {name for kids in children.values() for name in kids} - children.keys()
        children = {**children, **dict.fromkeys(sorted(leaves), ())}
        tagged = {name: tuple(tag for tag, nodes in (tags or {}).items() if name in nodes) for name in children}
        servers = {
            name: Server(name, "127.0.0.1", 4000 + place, tags=tagged[name], childs=tuple(kids))
            for place, (name, kids) in enumerate(children.items())
        }
        self.config = Tree(servers=servers, bus=settings or BusSettings())
        self.clock = ManualClock()
        self.channels: list[_Channel] = []
        self._nodes: dict[str, _Node] = {}
        self._cuts: set[frozenset[str]] = set()
        self._clients: list[Client] = []
        self._workers: dict[Worker, tuple[Client, asyncio.Task[None]]] = {}
        self._starts = 0
        self._active = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        real, start = self._loop.time(), self.clock.monotonic_ms()
        # The loop asks its own `time`, so this is all it takes to hold sleeps and timeouts.
        vars(self._loop)["time"] = lambda: real + (self.clock.monotonic_ms() - start) / 1000
        for name in self.config.servers:
            self._start(name)
        await self.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            if client.connected:
                await client.close()
        for worker in list(self._workers):
            await self._end(worker)
        await self.settle()
        del vars(self._loop)["time"]

    # What tests do.

    async def connect(
        self, node: str, *, name: str = "test", uid: int = 0, role: Role = Role.ADMIN, window: int = WINDOW
    ) -> Client:
        """Return a client on `node` that its router takes for the user `uid` with `role`. Raises Refused."""
        client = Client(lambda: _Channel(self, node, uid, role), name=name, where=f"memory:{node}", window=window)
        self._clients.append(client)
        await client.open()
        return client

    async def run(self, worker: Worker, node: str, *, uid: int = 0, role: Role = Role.ADMIN) -> Worker:
        """Run `worker` on `node`; returns it when its router knows all it serves. Raises what its start raises."""
        client = await self.connect(node, name=worker.name, uid=uid, role=role)
        task = asyncio.create_task(worker.serve(client))
        ready = asyncio.create_task(worker.wait_ready())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            await task
        self._workers[worker] = (client, task)
        return worker

    async def kill(self, worker: Worker) -> None:
        """End a worker as kill -9 does: its connection just ends."""
        client, _ = self._workers[worker]
        client.abort()
        await self._end(worker)
        await self.settle()

    def cut(self, one: str, two: str) -> None:
        """Cut the link between two nodes, until `mend`."""
        self._cuts.add(frozenset((one, two)))
        for node, far in ((one, two), (two, one)):
            if node in self._nodes:
                self._nodes[node].drop_dial(far)

    def mend(self, one: str, two: str) -> None:
        """Let two nodes reach each other again; they do so within a second of `advance`."""
        self._cuts.discard(frozenset((one, two)))

    def stop(self, node: str) -> None:
        """Kill the router of `node`; its clients lose it, and try again."""
        self._nodes.pop(node).stop()

    def start(self, node: str) -> None:
        """Start the router of `node` again, as a new process."""
        self.clock.go_on(1)  # a process never starts in the millisecond of the one before (protocol 6.2)
        self._start(node)
        for channel in self.channels:
            if channel.node == node:
                self.attach(channel)

    async def settle(self) -> None:
        """Let everything happen that happens without time going on."""
        quiet = 0
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = 0 if self._active else quiet + 1

    async def advance(self, seconds: float) -> None:
        """Let time go on, in steps of a router's tick, and everything happen that happens meanwhile."""
        left = seconds * 1000
        while left > 0:
            step = min(left, TICK_MS)
            left -= step
            self.clock.go_on(step)
            for node in list(self._nodes.values()):
                node.tick()
            await self.settle()

    def router(self, node: str) -> Router:
        """Return the router of `node`, to look into its state."""
        return self._nodes[node].router

    # What the parts of the tree need.

    def soon(self, action: Callable[[], object]) -> None:
        """Do something in the next turn of the loop, in order."""
        self._active += 1
        self._loop.call_soon(self._do, action)

    def _do(self, action: Callable[[], object]) -> None:
        self._active -= 1
        action()

    def attach(self, channel: _Channel) -> None:
        """Connect a client to its router, if that runs."""
        node = self._nodes.get(channel.node)
        if node is not None:
            node.accept(channel)

    def reach(self, one: str, two: str) -> _Node | None:
        """Return the node `two`, if it runs and `one` can reach it."""
        return None if frozenset((one, two)) in self._cuts else self._nodes.get(two)

    def _start(self, name: str) -> None:
        self._starts += 1
        node = self._nodes[name] = _Node(self, name, self._starts)
        node.start()

    async def _end(self, worker: Worker) -> None:
        _, task = self._workers.pop(worker)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
