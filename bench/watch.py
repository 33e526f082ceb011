"""Programs that watch all containers of an engine once a second: `python -m bench.watch KIND HOST`.

`statistics` is our own reading without the bus, `docker-py` the SDK's way: a stream and a thread for each container.
Each prints {"ready": true} when it has seen all, and then the same every second with what it knows of its rounds.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict

import docker
import msgspec

PERIOD_S = 1.0


def watch_statistics(host: str) -> None:
    from tsbus.containers.stats import Statistics

    client = docker.APIClient(host, version="auto")
    running = {one["Id"]: client.inspect_container(one["Id"])["State"]["Pid"] for one in client.containers()}
    client.close()
    statistics, size = Statistics("n1"), 0
    statistics.begin()
    while True:
        time.sleep(statistics.wait_s())
        events = statistics.round(running)
        size += sum(len(msgspec.json.encode(event)) for event in events)
        print(json.dumps({"bytes": size, **asdict(statistics.counts())}), flush=True)


def watch_docker_py(host: str) -> None:
    seen: dict[str, int] = {}

    def follow(container: str) -> None:
        client = docker.APIClient(host, version="auto")
        for stats in client.stats(container, decode=True):
            seen[container] = stats["cpu_stats"]["cpu_usage"]["total_usage"]

    ids = [one["Id"] for one in docker.APIClient(host, version="auto").containers()]
    for container in ids:
        threading.Thread(target=follow, args=(container,), daemon=True).start()
    while True:
        time.sleep(PERIOD_S)
        if len(seen) == len(ids):
            print(json.dumps({"ready": True}), flush=True)


if __name__ == "__main__":
    {"statistics": watch_statistics, "docker-py": watch_docker_py}[sys.argv[1]](sys.argv[2])
