"""What the tree knows of containers: how soon the root hears of them, and what a list of 1,000 takes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker

import tsbus
from bench.contestant import Tree
from bench.harness import ROOT, Fleet
from bench.ours import Ours, connect
from bench.ours_crowd import ten_by_ten
from bench.ours_promises import median_ms
from tests.dockerd import Dockerd
from tsbus.audit import AuditLog
from tsbus.config import DockerPolicy
from tsbus.containers.asking import Asking
from tsbus.containers.desk import Desk
from tsbus.containers.facts import EngineEvent, Summary
from tsbus.containers.watch import Watch
from tsbus.records import Container, EngineFacts, Image

THREE_HOPS: Tree = (None, 0, 1, 2)
LIVES = 200
LIST_NODES, LIST_EACH = 50, 20


class OursContainerEvents(Ours):
    """A chain of four nodes with an engine at its end; a worker at the root hears of containers that come and go."""

    def measure(self) -> dict[str, float]:
        engine = Dockerd()
        try:
            engine.start()
            engine.image("busybox")
            with Fleet() as fleet:
                self.start(fleet, THREE_HOPS)
                bus = self.endpoint(3, "")
                where = {"DOCKER_HOST": engine.host}
                config = str(fleet.folder / "treescale.toml")
                argv = ["--config", config, "--node", "n4", "--bus", bus, "--audit-dir", str(fleet.folder)]
                fleet.start("monitor", [sys.executable, str(ROOT / "services/ts_docker.py"), *argv], **where)
                return asyncio.run(self._measure(engine))
        finally:
            engine.stop()

    async def _measure(self, engine: Dockerd) -> dict[str, float]:
        lags: dict[str, list[float]] = defaultdict(list)
        told: asyncio.Queue[str] = asyncio.Queue()

        def heard(event: tsbus.Event) -> None:
            now_ns = time.time_ns()
            body = event.json()
            kind = "" if body["container"].get("networks", {}).keys() != {"none"} else " without network"
            lags[body["action"] + kind].append((now_ns - body["time_ns"]) / 1e6)
            told.put_nowait(body["action"])

        root = await connect(self.endpoint(0, ""))
        await root.subscribe("container.*", callback=heard)
        while "n4" not in (await root.call("*", "docker.info")).ok:
            await asyncio.sleep(0.1)
        api = docker.APIClient(engine.host, version="auto")
        for number in range(LIVES):
            made = "none" if number % 2 else "bridge"
            for act, action in LIFE:
                made = await asyncio.to_thread(act, api, made) or made
                async with asyncio.timeout(10):
                    while await told.get() != action:
                        pass
        stats = await root.call_one("n4", "containers.stats")
        figures = {"events": sum(map(len, lags.values())), "engine to monitor p50 ms": stats["lag_p50_ms"]}
        for name, values in {"all": [lag for each in lags.values() for lag in each], **lags}.items():
            if name not in ("all", "started", "died", "died without network"):
                continue
            values.sort()
            figures |= {f"{name} p50 ms": values[len(values) // 2], f"{name} p99 ms": values[len(values) * 99 // 100]}
        return figures


def _make(api: docker.APIClient, network: str) -> str:
    config = api.create_host_config(network_mode=network)
    return str(api.create_container("busybox", ["sleep", "60"], host_config=config)["Id"])


LIFE: tuple[tuple[Callable[[docker.APIClient, str], str | None], str], ...] = (
    (_make, "created"),
    (lambda api, made: api.start(made), "started"),
    (lambda api, made: api.pause(made), "paused"),
    (lambda api, made: api.unpause(made), "unpaused"),
    (lambda api, made: api.kill(made), "died"),
    (lambda api, made: api.remove_container(made), "destroyed"),
)
"""What is done to a container, and the event that tells of it. The next follows when the root has heard of the last:
an engine that starts a container answers no question about it, so it would be the engine that is measured. Half of the
containers have no network: kernels without preemption stand still for 10 ms when they take one down."""


class OursContainerList(Ours):
    """`treescale container ls` from its start to its exit, over 50 nodes whose engines are simulated."""

    def measure(self) -> dict[str, float]:
        with Fleet() as fleet:
            self.start(fleet, ten_by_ten(LIST_NODES))
            fleet.start("engines", [sys.executable, "-m", __name__, *map(str, self._sockets)]).must_hear(60)
            asyncio.run(self._wait_tree())
            where = {**os.environ, "TREESCALE_BUS": self.endpoint(0, "")}
            program = str(Path(sys.executable).with_name("treescale"))
            return {
                "python -c pass ms": median_ms([sys.executable, "-c", "pass"], where),
                "status --json ms": median_ms([program, "status", "--json"], where),
                "container ls ms": median_ms([program, "container", "ls"], where),
                "container ls --json ms": median_ms([program, "container", "ls", "--json"], where),
            }

    async def _wait_tree(self) -> None:
        async with tsbus.connect(self.endpoint(0, ""), timeout_s=60) as client:
            while len((await client.call("*", "containers.find", {"containers": ["web-7"]})).ok) < LIST_NODES:
                await asyncio.sleep(0.1)


class SimulatedEngine:
    """Answers what the monitor asks: twenty containers that nothing happens to."""

    def __init__(self, node: str) -> None:
        names = (f"web-{number}" for number in range(LIST_EACH))
        self._containers = {each.id: each for each in (_container(node, name) for name in names)}

    def connect(self) -> EngineFacts:
        return EngineFacts(node="", up=True, name="Docker", version="28.0.0")

    def events(self, _since_ns: int | None) -> Silence:
        return Silence()

    def list(self) -> list[Summary]:
        return [Summary(each.id, each.name, each.state, each.health) for each in self._containers.values()]

    def inspect(self, container: str) -> Container:
        return self._containers[container]

    def close(self) -> None:
        pass


class Silence:
    """A stream of events that stays open and says nothing."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def __iter__(self) -> Iterator[EngineEvent]:
        return self

    def __next__(self) -> EngineEvent:
        os.read(self._read, 1)
        raise StopIteration

    def close(self) -> None:
        os.write(self._write, b"x")


def _container(node: str, name: str) -> Container:
    now_ns = time.time_ns()
    return Container(
        id=hashlib.sha256(f"{node}/{name}".encode()).hexdigest(),
        name=name,
        image=Image(
            given="registry.example:5000/shop/front:1.4.2", repo="registry.example:5000/shop/front", tag="1.4.2"
        ),
        state="running",
        command="/usr/bin/front --listen 0.0.0.0:8443",
        labels={f"com.example.label-{number}": "a value of usual length" for number in range(8)},
        created_ns=now_ns,
        started_ns=now_ns,
    )


async def _simulate(buses: list[str]) -> None:
    """Serve `containers.snapshot` and `containers.find` on each bus, with the service's own code."""
    clients = [await tsbus.connect(bus, timeout_s=60) for bus in buses]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            engine: Any = SimulatedEngine(client.node)
            watch = Watch(engine, client)
            asking = Asking(Desk(DockerPolicy(), AuditLog(Path(os.devnull)), watch))
            worker = tsbus.Worker("containers")
            worker.command("snapshot", role="observe")(asking.snapshot)
            worker.command("find", role="observe")(asking.find)
            group.create_task(watch.run())
            group.create_task(worker.serve(client))
            await worker.wait_ready()
        print("{}", flush=True)


if __name__ == "__main__":
    asyncio.run(_simulate(sys.argv[1:]))
