"""TreeScale itself: the real router of services/ on CURVE links, with clients of the public API."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from importlib.metadata import version

import tsbus
from bench.contestant import Contestant, Tally, Tree
from bench.harness import ROOT, Fleet, free_ports, wait_until
from tsbus.config import Handler, Server, dump
from tsbus.config import Tree as Config
from tsbus.transport import new_keypair

TOPIC = "bench.event"
PATIENCE_S = 10.0


def configure(
    fleet: Fleet,
    tree: Tree,
    handlers: Callable[[str], dict[str, Handler]] = lambda _: {},
    more: Callable[[Config], Config] = lambda config: config,
) -> str:
    """Write keys and one configuration for nodes n1, n2, ... and return its path.

    `handlers` gives those of a node; `more` may add what else a configuration has.
    """
    ports = free_ports(len(tree))
    servers = {}
    for index, port in enumerate(ports):
        public, secret = new_keypair()
        fleet.file(f"n{index + 1}.key", secret).chmod(0o600)
        children = tuple(f"n{child + 1}" for child, above in enumerate(tree) if above == index)
        name = f"n{index + 1}"
        servers[name] = Server(
            name, "127.0.0.1", port, childs=children, public_key=public, handlers=handlers(name)
        )  # fmt: skip
    return str(fleet.file("treescale.toml", dump(more(Config(servers)))))


class Ours(Contestant):
    name = "ours"

    def version(self) -> str:
        return f"treescale {tsbus.__version__}, pyzmq {version('pyzmq')}, msgspec {version('msgspec')}"

    def start(self, fleet: Fleet, tree: Tree) -> None:
        config = configure(fleet, tree, more=self.more)
        self._sockets = [fleet.folder / str(number) / "bus" for number in range(1, len(tree) + 1)]
        for number, socket in enumerate(self._sockets, 1):
            options = ["--config", config, "--node", f"n{number}", "--key", str(fleet.folder / f"n{number}.key")]
            script = ROOT / "services" / "ts_router.py"
            fleet.python_file(f"router {number}", script, *options, "--run-dir", str(socket.parent))
        wait_until(lambda: all(socket.exists() for socket in self._sockets), "the routers' sockets")

    def more(self, config: Config) -> Config:
        """What is added to the configuration."""
        return config

    def endpoint(self, router: int, kind: str) -> str:
        return str(self._sockets[router])


async def connect(endpoint: str) -> tsbus.Client:
    return await tsbus.connect(endpoint, name="bench", timeout_s=PATIENCE_S)


class _Connected:
    """A private event loop with open clients: it runs only while the harness's command is carried out."""

    def __init__(self, endpoint: str, connections: int = 1) -> None:
        self.loop = asyncio.new_event_loop()
        self.clients = [self.loop.run_until_complete(connect(endpoint)) for _ in range(connections)]


class Publisher(_Connected):
    def send(self, count: int, body: bytes) -> None:
        self.loop.run_until_complete(self._send(count, body))

    async def _send(self, count: int, body: bytes) -> None:
        if len(self.clients) == 1:
            publish = self.clients[0].publish
            for _ in range(count):
                await publish(TOPIC, body)
        else:
            for client in itertools.islice(itertools.cycle(self.clients), count):
                await client.publish(TOPIC, body)
        for client in self.clients:
            await client.flush()


class Subscriber(_Connected):
    def __init__(self, endpoint: str, connections: int) -> None:
        super().__init__(endpoint, connections)
        self._tally = Tally(connections)
        for number, client in enumerate(self.clients):
            self.loop.run_until_complete(self._subscribe(client, number))

    async def _subscribe(self, client: tsbus.Client, number: int) -> None:
        add = self._tally.add

        def on_event(event: tsbus.Event) -> None:
            add(number, len(event.body))

        await client.subscribe(TOPIC, callback=on_event)

    def receive(self, each: int, size: int, silence_s: float) -> int:
        self._tally.want(each, size)
        self.loop.run_until_complete(self._wait_settled(size, silence_s))
        return self._tally.received(each, size)

    async def _wait_settled(self, size: int, silence_s: float) -> None:
        while not self._tally.settled(size, silence_s):
            await asyncio.sleep(0.002)


class Requester(_Connected):
    def ask(self, seconds: float, body: bytes) -> list[float]:
        return self.loop.run_until_complete(self._ask(seconds, body))

    async def _ask(self, seconds: float, body: bytes) -> list[float]:
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            result = await self.clients[0].call("n3", "bench.ask", body, timeout_s=PATIENCE_S)
            result.raise_for_status()
            latencies.append(time.perf_counter() - start)
        return latencies


class Answerer(_Connected):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._worker = tsbus.Worker("bench")
        self._worker.command("ask")(lambda request: request.body)
        self._serving = self.loop.create_task(self._worker.serve(self.clients[0]))
        self.loop.run_until_complete(self._worker.wait_ready())

    def serve(self) -> None:
        self.loop.run_until_complete(self._serving)
