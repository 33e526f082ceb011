"""Containers whose end the kernel tells: real processes in cgroups that are named like those of engines."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from model_kernel import box
from site_of_balancer import ENGINE, KEYS, replace_struct, site
from waiting import LIMIT_S

from tsbus.balancer import deaths
from tsbus.balancer.deaths import Deaths
from tsbus.balancer.world import Run

C2, C3 = box("c2", "172.17.0.2"), box("c3", "172.17.0.3")
Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process in a cgroup with the id of a container."""
    top = next(
        path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if (path / "cgroup.procs").exists()
    )
    processes: list[tuple[Path, subprocess.Popen[bytes]]] = []

    def started(id_: str) -> subprocess.Popen[bytes]:
        folder = top / f"test-{os.getpid()}-{id_}"
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(["sleep", "1000"])
        processes.append((folder, process))
        (folder / "cgroup.procs").write_text(str(process.pid))
        return process

    yield started
    for _, process in processes:
        process.kill()
        process.wait()
    for folder in {folder for folder, _ in processes}:
        folder.rmdir()


async def test_the_end_of_a_process_is_told_once(start: Start) -> None:
    """A run whose first process ends is told, others go on, and no descriptor is left when nothing is watched."""
    told: asyncio.Queue[tuple[str, Run]] = asyncio.Queue()
    watcher = Deaths(lambda id_, run: told.put_nowait((id_, run)))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    one, two = start(C2.id), start(C3.id)
    runs = {C2.id: Run(one.pid, 1), C3.id: Run(two.pid, 1)}
    watcher.watch(runs)
    assert watcher.held == 2
    one.kill()
    async with asyncio.timeout(LIMIT_S):
        assert await told.get() == (C2.id, runs[C2.id])
    watcher.watch(runs)
    assert (watcher.held, told.qsize()) == (1, 0)
    again = start(C2.id)
    watcher.watch({C2.id: Run(again.pid, 2)})
    assert watcher.held == 1
    watcher.close()
    two.kill()
    again.send_signal(signal.SIGKILL)
    await asyncio.to_thread(again.wait)
    assert (watcher.held, told.qsize()) == (0, 0)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_only_processes_of_the_container(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that another process has, or none that is seen here, says nothing; and so many are watched at most."""
    watcher = Deaths(lambda *_: None)
    one, stranger = start(C2.id), subprocess.Popen(["true"])
    stranger.wait()
    watcher.watch({C3.id: Run(one.pid, 1), "ab" * 32: Run(stranger.pid, 1), "cd" * 32: Run(2**22 + 1, 1)})
    assert watcher.held == 0
    watcher.close()
    monkeypatch.setattr(deaths, "MAX_WATCHED", 1)
    watcher = Deaths(lambda *_: None)
    watcher.watch({C2.id: Run(one.pid, 1), C3.id: Run(start(C3.id).pid, 1)})
    assert watcher.held == 1
    watcher.close()


async def test_a_death_while_the_engine_is_down(start: Start, tmp_path: Path) -> None:
    """A container that ends while its engine is away leaves the table, and comes back with its next run."""
    process = start(C2.id)
    boxes = replace_struct(C2, pid=process.pid), replace_struct(C3, pid=start(C3.id).pid)
    async with site(tmp_path, KEYS, *boxes) as one:
        await one.servers(c2=1, c3=1)
        client = one.monitors["n1"].client
        down = replace_struct(ENGINE, node="n1", up=False, since_ns=2)
        await client.publish("docker.down", msgspec.to_builtins(down))
        process.kill()
        await one.servers(c3=1)
        (gone,) = await one.until(lambda: one.topics("lb.removed"))
        assert (gone["server"]["name"], gone["cause"]) == ("c2", "its container ended")
        await client.publish("docker.up", msgspec.to_builtins(replace_struct(down, up=True, since_ns=3)))
        fresh = replace_struct(boxes[0], pid=start(C2.id).pid, started_ns=C2.started_ns + 1)
        await one.monitors["n1"].has(fresh, "started")
        await one.servers(c2=1, c3=1)
