"""Redis: one server, for it has no tree for events; every event crosses one hop instead of three."""

from __future__ import annotations

import itertools
import time
from importlib.metadata import version

import redis

from bench.contestant import Contestant, Tree
from bench.harness import Fleet, free_ports, output

CHANNEL = "bench.event"
PIPELINE = 100  # publish() alone waits for an answer each time, which would measure round trips


class Redis(Contestant):
    name = "redis"
    can_ask = False

    def version(self) -> str:
        server = output("redis-server", "--version").split()[2]
        return f"redis-server {server}, redis-py {version('redis')}, pipelines of {PIPELINE}, one hop"

    def start(self, fleet: Fleet, tree: Tree) -> None:
        [self.port] = free_ports(1)
        options = ["--bind", "127.0.0.1", "--save", "", "--client-output-buffer-limit", "pubsub 0 0 0"]
        fleet.start("router 1", ["redis-server", "--port", str(self.port), *options], [self.port])

    def endpoint(self, router: int, kind: str) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def hops(self, tree: Tree) -> int:
        return 1


class Publisher:
    def __init__(self, endpoint: str, connections: int) -> None:
        self._clients = [redis.Redis.from_url(endpoint) for _ in range(connections)]

    def send(self, count: int, body: bytes) -> None:
        clients = itertools.cycle(self._clients)
        for start in range(0, count, PIPELINE):
            pipeline = next(clients).pipeline(transaction=False)
            for _ in range(min(PIPELINE, count - start)):
                pipeline.publish(CHANNEL, body)
            pipeline.execute()


class Subscriber:
    def __init__(self, endpoint: str, connections: int) -> None:
        self._channels = []
        for _ in range(connections):
            channel = redis.Redis.from_url(endpoint).pubsub(  # type: ignore[no-untyped-call]
                ignore_subscribe_messages=True
            )
            channel.subscribe(CHANNEL)
            channel.get_message(timeout=1.0)
            self._channels.append(channel)

    def receive(self, each: int, size: int, silence_s: float) -> int:
        received = 0
        for channel in self._channels:
            missing, heard_at = each, time.monotonic()
            while missing and time.monotonic() - heard_at < silence_s:
                message = channel.get_message(timeout=silence_s)
                if message is not None:
                    heard_at = time.monotonic()
                    missing -= len(message["data"]) == size
            received += each - missing
        return received
