"""Many containers of one private engine, for scenarios that look at them; started once for all contestants."""

from __future__ import annotations

import atexit
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import docker

from bench.harness import cpu_s
from tests.dockerd import Dockerd

IDLE = ["sleep", "100000"]
AWAKE = ["sh", "-c", "while :; do sleep 1; done"]  # works a little each second, as most services do


class Farm:
    """`count` containers, of which `awake` are not quite idle. Docker's bridge has room for 1,000."""

    def __init__(self, count: int, awake: int) -> None:
        self._engine = Dockerd()
        atexit.register(self._engine.stop)
        self._engine.start()
        self._engine.image("box:1")
        self.host = self._engine.host
        with ThreadPoolExecutor(4) as pool:
            self.running = dict(pool.map(self._run, [AWAKE] * awake + [IDLE] * (count - awake)))

    def _run(self, command: list[str]) -> tuple[str, int]:
        client = docker.APIClient(self.host, version="auto", timeout=300)
        try:
            config = client.create_host_config(network_mode="bridge")
            made = client.create_container("box:1", command, host_config=config)["Id"]
            client.start(made)
            return made, client.inspect_container(made)["State"]["Pid"]
        finally:
            client.close()

    def engine_cpu_s(self) -> float:
        """CPU of dockerd, containerd and the shims until now."""
        mark = str(self._engine.folder).encode()
        total = 0.0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                is_engine = b"docker" in words[0] or b"containerd" in words[0]
                if is_engine and any(mark in word for word in words):
                    total += cpu_s(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended while we looked
        return total


@cache
def farm(count: int, awake: int) -> Farm:
    """The farm of this run."""
    return Farm(count, awake)
