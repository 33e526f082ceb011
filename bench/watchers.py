"""Who watches the containers of a node: ours, with and without the bus, `docker stats`, the SDK, Glances, and nobody.

Each contestant starts its processes in the role `watcher`; the scenario `statistics` says what they, and the engine
because of them, take.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from abc import ABC, abstractmethod
from importlib.metadata import version
from typing import Any, ClassVar

from bench.contestant import Tree
from bench.farm import Farm, farm
from bench.harness import CACHE, ROOT, BenchError, Fleet, output
from bench.ours import Ours

COUNT, AWAKE = 200, 20
SETTLE_S = 20.0  # streams and threads have begun by then
WINDOW_S = 30.0
ALONE: Tree = (None,)


class Watcher(ABC):
    """Watches all containers, once a second if it is told how often."""

    name: ClassVar[str]

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def watch(self, fleet: Fleet, farm: Farm) -> None:
        """Start it, and return when it has seen all containers."""

    def told(self, fleet: Fleet) -> dict[str, float]:
        """What it says of itself in the end."""
        return {}

    def measure(self, awake: int) -> dict[str, float]:
        """What it takes while it watches, and what the engine takes meanwhile."""
        containers = farm(COUNT, awake)
        with Fleet() as fleet:
            self.watch(fleet, containers)
            time.sleep(SETTLE_S)
            before, engine_before = fleet.cpu_by_role().get("watcher", 0.0), containers.engine_cpu_s()
            time.sleep(WINDOW_S)
            used = fleet.cpu_by_role().get("watcher", 0.0) - before
            engine = containers.engine_cpu_s() - engine_before
            for process in fleet.processes:
                process.check()
            figures = {
                "watcher core %": used / WINDOW_S * 100,
                "engine core %": engine / WINDOW_S * 100,
                "watcher MiB": fleet.memory_by_role("Rss").get("watcher", 0.0),
            }
            return figures | self.told(fleet)


class Nobody(Watcher):
    """What the engine takes by itself."""

    name = "nobody"

    def version(self) -> str:
        return "no watcher"

    def watch(self, fleet: Fleet, farm: Farm) -> None:
        pass


class OursStatistics(Watcher):
    """Our reading and composing of events, in a process of its own, without the bus."""

    name = "ours-statistics"

    def version(self) -> str:
        return "tsbus.containers.stats"

    def watch(self, fleet: Fleet, farm: Farm) -> None:
        fleet.python("watcher", "bench.watch", "statistics", farm.host).must_hear(60)

    def told(self, fleet: Fleet) -> dict[str, float]:
        last: dict[str, Any] = {}
        while told := fleet.named("watcher").hear(0):
            last = told
        print(f"    {json.dumps(last)}", file=sys.stderr)
        each = last["bytes"] / last["rounds"]
        return {"worst round ms": last["worst_ms"], "late rounds": last["late"], "event B": each}


class OursMonitor(Watcher):
    """The monitor as a node runs it, beside its router, and one who listens to containers.stats."""

    name = "ours-monitor"
    listens = True

    def version(self) -> str:
        return Ours().version()

    def watch(self, fleet: Fleet, farm: Farm) -> None:
        script = ROOT / "services" / "ts_docker.py"
        if not script.exists():
            raise BenchError("services/ts_docker.py is not there")
        node = Ours()
        node.start(fleet, ALONE)
        bus = node.endpoint(0, "")
        options = ["--config", str(fleet.folder / "treescale.toml"), "--node", "n1", "--bus", bus]
        argv = [sys.executable, str(script), *options, "--audit-dir", str(fleet.folder)]
        fleet.start("watcher", argv, DOCKER_HOST=farm.host)
        if self.listens:
            program = shutil.which("ts-sub") or str(ROOT / "bin" / "ts-sub")
            fleet.start("listener", [program, "containers.stats.>"], TREESCALE_BUS=bus)


class OursUnwatched(OursMonitor):
    """The same while nobody listens."""

    name = "ours-unwatched"
    listens = False


class DockerStats(Watcher):
    """The command line, which asks the engine for a stream of each container."""

    name = "docker-stats"

    def version(self) -> str:
        return output("/usr/bin/docker", "--version")

    def watch(self, fleet: Fleet, farm: Farm) -> None:
        fleet.start("watcher", ["sh", "-c", "exec /usr/bin/docker stats >/dev/null"], DOCKER_HOST=farm.host)


class DockerPy(Watcher):
    """The SDK for Python: a stream and a thread for each container."""

    name = "docker-py"

    def version(self) -> str:
        return f"docker {version('docker')}"

    def watch(self, fleet: Fleet, farm: Farm) -> None:
        fleet.python("watcher", "bench.watch", "docker-py", farm.host).must_hear(120)


class Glances(Watcher):
    """Glances with its containers plugin alone, each second."""

    name = "glances"
    program = CACHE / "glances" / "bin" / "glances"

    def version(self) -> str:
        return output(str(self.program), "--version").splitlines()[0]

    def watch(self, fleet: Fleet, farm: Farm) -> None:
        options = "--disable-plugin all --enable-plugin containers -t 1 --stdout containers --disable-check-update"
        if not self.program.exists():
            raise BenchError("Glances is not installed")
        argv = ["sh", "-c", f"exec {self.program} {options} >/dev/null"]
        fleet.start("watcher", argv, DOCKER_HOST=farm.host)
