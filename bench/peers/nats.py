"""NATS: Debian's nats-server joined by leaf-node links, with nats-py clients."""

from __future__ import annotations

import asyncio
import itertools
import time
from importlib.metadata import version

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from bench.contestant import Contestant, Tally, Tree
from bench.harness import Fleet, free_ports, output

SUBJECT = "bench.event"
UNBOUNDED = 1 << 40
CONFIG = """
listen: "127.0.0.1:{clients}"
max_pending: 4GB          # the default cuts a subscriber that lags by 64 MiB, and we count every event
write_deadline: "60s"
leafnodes {{
  listen: "127.0.0.1:{leaves}"
  {remotes}
}}
"""


class Nats(Contestant):
    name = "nats"

    def version(self) -> str:
        return f"{output('nats-server', '--version')}, nats-py {version('nats-py')}"

    def start(self, fleet: Fleet, tree: Tree) -> None:
        self.ports = [free_ports(2) for _ in tree]
        for router, parent in enumerate(tree):
            clients, leaves = self.ports[router]
            remotes = "" if parent is None else f'remotes: [{{url: "nats-leaf://127.0.0.1:{self.ports[parent][1]}"}}]'
            text = CONFIG.format(clients=clients, leaves=leaves, remotes=remotes)
            config = fleet.file(f"nats{router}.conf", text)
            fleet.start(f"router {router + 1}", ["nats-server", "-c", str(config)], self.ports[router])

    def endpoint(self, router: int, kind: str) -> str:
        return f"nats://127.0.0.1:{self.ports[router][0]}"


class _Connected:
    """A private event loop with open connections: it runs only while the harness's command is carried out."""

    def __init__(self, endpoint: str, connections: int = 1) -> None:
        self.loop = asyncio.new_event_loop()
        self.clients = [self.loop.run_until_complete(nats.connect(endpoint)) for _ in range(connections)]


class Publisher(_Connected):
    def send(self, count: int, body: bytes) -> None:
        self.loop.run_until_complete(self._send(count, body))

    async def _send(self, count: int, body: bytes) -> None:
        if len(self.clients) == 1:
            publish = self.clients[0].publish
            for _ in range(count):
                await publish(SUBJECT, body)
        else:
            for client in itertools.islice(itertools.cycle(self.clients), count):
                await client.publish(SUBJECT, body)
        for client in self.clients:
            await client.flush(60)


class Subscriber(_Connected):
    def __init__(self, endpoint: str, connections: int) -> None:
        super().__init__(endpoint, connections)
        self._tally = Tally(connections)
        for number, client in enumerate(self.clients):
            self.loop.run_until_complete(self._subscribe(client, number))

    async def _subscribe(self, client: Client, number: int) -> None:
        add = self._tally.add

        async def on_event(message: Msg) -> None:
            add(number, len(message.data))

        await client.subscribe(SUBJECT, cb=on_event, pending_msgs_limit=UNBOUNDED, pending_bytes_limit=UNBOUNDED)
        await client.flush()

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
            await self.clients[0].request("bench.ask", body, timeout=10)
            latencies.append(time.perf_counter() - start)
        return latencies


class Answerer(_Connected):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.loop.run_until_complete(self._subscribe())

    async def _subscribe(self) -> None:
        async def on_request(message: Msg) -> None:
            await message.respond(message.data)

        await self.clients[0].subscribe("bench.ask", cb=on_request)
        await self.clients[0].flush()

    def serve(self) -> None:
        self.loop.run_forever()
