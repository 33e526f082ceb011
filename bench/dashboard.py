"""What the dashboard's model costs: 111 nodes with 18 containers each tell figures once a second, somebody watches all.

Routers are forked by bench.nursery; one process is the monitors of all nodes, with made-up containers; another has the
feed at the root, as the dashboard has it, without pages.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from importlib.metadata import version
from typing import Any

import msgspec

import tsbus
from bench.harness import BenchError, Fleet
from bench.ours import configure
from bench.ours_crowd import ten_by_ten
from tsbus.cost import own_cost
from tsbus.dashboard.answers import NodeStatus, Status
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.state import Model
from tsbus.mirror import MONITOR, Mirror
from tsbus.records import Container, EngineFacts, Image, Sample, SnapshotHead, StatsEvent

NODES, EACH = 111, 18
WARM_UP_S = 8.0
WINDOW_S = 30.0
PATIENCE_S = 180.0
PURE_ROUNDS = 60


class OursDashboard:
    """The feed of a dashboard at the root."""

    name = "ours"

    def version(self) -> str:
        return f"treescale {tsbus.__version__}, msgspec {version('msgspec')}"

    def measure(self) -> dict[str, float]:
        with Fleet() as fleet:
            config = configure(fleet, ten_by_ten(NODES))
            fleet.python("node nursery", "bench.nursery", config, str(fleet.folder)).must_hear(PATIENCE_S)
            buses = [str(fleet.folder / f"n{number}" / "bus") for number in range(1, NODES + 1)]
            fleet.python("monitors", __name__, "monitors", *buses).must_hear(PATIENCE_S)
            figures = fleet.python("feed", __name__, "feed", buses[0]).must_hear(PATIENCE_S)
        if "error" in figures:
            raise BenchError(figures["error"])
        return figures | {"fold alone core %": pure_fold()}


def container(node: str, number: int) -> Container:
    name = f"shop-{number}"
    return Container(
        id=f"{abs(hash((node, number))):064x}"[::-1],
        name=name,
        image=Image(given="registry.example:5000/shop/front:1.4.2"),
        state="running",
        labels={f"com.example.label-{each}": "a value of usual length" for each in range(8)},
        memory_limit=1 << 30,
    )


def figures_of(node: str, ids: list[str], second: int) -> StatsEvent:
    """All containers have done something: the dearest event that there is."""
    samples = {
        short: Sample(cpu=random.random() * 50, memory=random.randrange(1 << 29), memory_limit=1 << 30,
                      net_rx=second * 9000, net_tx=second * 5000, block_read=second * 4096, pids=7)
        for short in ids
    }  # fmt: skip
    return StatsEvent(node=node, time_ms=time.time_ns() // 1_000_000, samples=samples, cpu=123.4, cpus=8)


def pure_fold() -> float:
    """What the fold takes without a bus, for one second's events: percent of a core."""
    names = [f"n{number}" for number in range(1, NODES + 1)]
    nodes = [NodeStatus(name=name, state="up", home="" if name == "n1" else "n1") for name in names]
    model = Model()
    model.status(Status(node="n1", nodes=tuple(nodes)), 0)
    there = {name: [container(name, number) for number in range(EACH)] for name in names}
    known = Mirror()
    for name in names:
        head = SnapshotHead(node=name, epoch=1, seq=0, engine=EngineFacts(node=name, up=True), count=EACH)
        known.snapshot(head, there[name])
        model.mirrored(known.view(name))
    ids = {name: [one.id[:12] for one in each] for name, each in there.items()}
    rounds = [
        [msgspec.json.encode(figures_of(name, ids[name], second)) for name in names] for second in range(PURE_ROUNDS)
    ]
    decode = msgspec.json.Decoder(StatsEvent).decode
    begin = time.process_time()
    for second, bodies in enumerate(rounds):
        for body in bodies:
            model.figures(decode(body), second * 1000)
    return (time.process_time() - begin) / PURE_ROUNDS * 100


async def monitors(buses: list[str]) -> None:
    """Be the container monitors of all nodes."""
    clients = [await tsbus.connect(bus, timeout_s=60) for bus in buses]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            there = [container(client.node, number) for number in range(EACH)]
            worker = tsbus.Worker(MONITOR)
            worker.command("snapshot", role="observe")(_snapshot(client.node, there))
            group.create_task(worker.serve(client))
            await worker.wait_ready()
            group.create_task(_tell(client, [one.id[:12] for one in there]))
        print("{}", flush=True)


def _snapshot(node: str, there: list[Container]) -> Any:
    async def snapshot(_: tsbus.Request) -> Any:
        engine = EngineFacts(node=node, up=True, memory=16 << 30, cpus=8)
        yield SnapshotHead(node=node, epoch=1, seq=0, engine=engine, count=len(there))
        yield there

    return snapshot


async def _tell(client: tsbus.Client, ids: list[str]) -> None:
    topic, second = f"containers.stats.{client.node}", 0
    async with client.interest(topic) as interest:
        await asyncio.sleep(random.random())
        while True:
            second += 1
            if interest.wanted:
                await client.publish(topic, figures_of(client.node, ids, second))
            await asyncio.sleep(1.0)


async def watch(bus: str) -> None:
    """Keep a model up and tell what that takes."""
    async with tsbus.connect(bus, timeout_s=60) as client, Feed(client) as feed:
        settled = await feed.wait_settled(60)
        bare = own_cost()["rss_bytes"]
        with feed.watching():
            await asyncio.sleep(WARM_UP_S)
            before, revision, begin = own_cost(), feed.model.revision, time.monotonic()
            await asyncio.sleep(WINDOW_S)
            after, seconds = own_cost(), time.monotonic() - begin
        totals = feed.model.totals()
    told = {
        "containers": totals.running,
        "changes/s": (feed.model.revision - revision) / seconds,
        "feed core %": (after["cpu_s"] - before["cpu_s"]) / seconds * 100,
        "feed MiB": after["rss_bytes"] / (1 << 20),
        "unwatched MiB": bare / (1 << 20),
        "history MiB": feed.history.bytes / (1 << 20),
    }
    print(msgspec.json.encode(told if settled else {"error": "not all nodes have told their containers"}).decode())


if __name__ == "__main__":
    asyncio.run(monitors(sys.argv[2:]) if sys.argv[1] == "monitors" else watch(sys.argv[2]))
