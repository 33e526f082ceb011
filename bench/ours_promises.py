"""What TreeScale promises of itself and no peer is measured for: a stopped child, the start of its commands."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tsbus
from bench.contestant import CHAIN
from bench.harness import Fleet, memory_mib
from bench.ours import PATIENCE_S, TOPIC, Ours, connect

BODY = b"x" * 10_000
EVENTS = 100_000  # 1 GB in all
PAUSE_S = 0.002  # between two pings, so that they measure and do not load


class OursStopped(Ours):
    """A root with two children; one is stopped, and a publisher sends it 1 GB as fast as it can."""

    def measure(self) -> dict[str, float]:
        with Fleet() as fleet:
            self.start(fleet, (None, 0, 0))
            return asyncio.run(self._measure(fleet))

    async def _measure(self, fleet: Fleet) -> dict[str, float]:
        root, publisher = await connect(self.endpoint(0, "")), await connect(self.endpoint(0, ""))
        stopped = await connect(self.endpoint(1, ""))
        news: dict[str, float] = {}

        def on_news(event: tsbus.Event) -> None:
            news.setdefault(event.topic, time.monotonic())

        for topic in ("bus.slow", "node.lost"):
            await root.subscribe(topic, callback=on_news)
        await stopped.subscribe(TOPIC, callback=lambda _: None)
        while not (await root.call("*", "router.ping")).complete:
            await asyncio.sleep(0.05)
        idle = await self._ping(root, 2.0)

        pid = fleet.named("router 1").pid
        before = memory_mib(pid, "Rss")
        os.kill(fleet.named("router 2").pid, signal.SIGSTOP)
        begun = time.monotonic()
        flood = asyncio.create_task(self._flood(publisher))
        watch = asyncio.create_task(self._peak(pid))
        busy = await self._ping(root, 2.0)
        await flood
        watch.cancel()
        return {
            "root grew MiB": (await asyncio.gather(watch))[0] - before,
            "idle sibling p50 us": idle,
            "sibling p50 us": busy,
            "slow after ms": (news["bus.slow"] - begun) * 1e3,
            "lost after ms": (news["node.lost"] - begun) * 1e3,
        }

    async def _ping(self, client: tsbus.Client, seconds: float) -> float:
        times = []
        end = time.monotonic() + seconds
        while (start := time.monotonic()) < end:
            (await client.call("n3", "router.ping")).raise_for_status()
            times.append(time.monotonic() - start)
            await asyncio.sleep(PAUSE_S)
        return statistics.median(times) * 1e6

    async def _flood(self, client: tsbus.Client) -> None:
        for number in range(EVENTS):
            await client.publish(TOPIC, BODY, to="n2")
            if number % 100 == 0:
                await asyncio.sleep(0)
        await client.flush()

    async def _peak(self, pid: int) -> float:
        peak = 0.0
        try:
            while True:
                peak = max(peak, memory_mib(pid, "Rss"))
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            return peak


class OursCommands(Ours):
    """From the start of a command to its exit, beside an idle tree."""

    def measure(self) -> dict[str, float]:
        with Fleet() as fleet:
            self.start(fleet, CHAIN)
            asyncio.run(self._wait_tree())
            where = {**os.environ, "TREESCALE_BUS": self.endpoint(0, "")}
            commands = {
                "python -c pass": [sys.executable, "-c", "pass"],
                "ts-pub": [self._program("ts-pub"), "bench.event", "hello"],
                "treescale --help": [self._program("treescale"), "--help"],
                "treescale status": [self._program("treescale"), "status"],
            }
            return {f"{name} ms": median_ms(argv, where) for name, argv in commands.items()}

    async def _wait_tree(self) -> None:
        async with tsbus.connect(self.endpoint(0, ""), timeout_s=PATIENCE_S) as client:
            while not (await client.call("*", "router.ping")).complete:
                await asyncio.sleep(0.05)

    @staticmethod
    def _program(name: str) -> str:
        return str(Path(sys.executable).with_name(name))


def median_ms(argv: Sequence[str], env: dict[str, str], runs: int = 11) -> float:
    """Milliseconds that a program takes from its start to its exit, the median of `runs`."""
    times = []
    for _ in range(runs):
        start = time.monotonic()
        subprocess.run(argv, env=env, check=True, capture_output=True)
        times.append(time.monotonic() - start)
    return statistics.median(times) * 1e3
