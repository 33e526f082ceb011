"""Deaths: learns from the kernel that containers of this node have ended, before or without the engine. An edge.

A descriptor of a process becomes readable at its end, and stays with it whoever gets its number later. The container's
id in the path of its cgroup proves that the process is the container's first one: neither a later one with its number,
nor one that has this number because we, the engine or the container are in another namespace.
"""

import asyncio
import os
import resource
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from tsbus.balancer.world import Run

MAX_WATCHED: Final = 4096
"""Containers whose descriptors are held; the ends of others are told by the engine alone."""


class Deaths:
    """Watches the first processes of some containers, in this loop."""

    def __init__(self, on_death: Callable[[str, Run], None]) -> None:
        """`on_death` is called once for a run that ends."""
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._held: dict[str, tuple[Run, int]] = {}
        self._done: dict[str, Run] = {}
        """Runs that are over, or whose process is not seen here."""
        self._room = _room()

    @property
    def held(self) -> int:
        """How many are watched."""
        return len(self._held)

    def watch(self, runs: Mapping[str, Run]) -> None:
        """Watch these runs, by the container's id, and no others."""
        for id_, (run, _) in list(self._held.items()):
            if runs.get(id_) != run:
                self._drop(id_)
        self._done = {id_: run for id_, run in self._done.items() if runs.get(id_) == run}
        for id_, run in runs.items():
            if id_ not in self._held and id_ not in self._done and len(self._held) < self._room:
                self._hold(id_, run)

    def close(self) -> None:
        """Watch nothing any more."""
        self.watch({})

    def _hold(self, id_: str, run: Run) -> None:
        descriptor = _first_process(id_, run.pid)
        if descriptor is None:
            self._done[id_] = run
            return
        self._held[id_] = run, descriptor
        self._loop.add_reader(descriptor, self._ended, id_)

    def _ended(self, id_: str) -> None:
        run = self._done[id_] = self._drop(id_)
        self._on_death(id_, run)

    def _drop(self, id_: str) -> Run:
        run, descriptor = self._held.pop(id_)
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        return run


def _first_process(container: str, pid: int) -> int | None:
    """Return a descriptor of process `pid` if it is the container's, and seen here."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        with suppress(OSError):
            if container in Path(f"/proc/{pid}/cgroup").read_text():
                return descriptor
        os.close(descriptor)
    return None


def _room() -> int:
    """Let this process open twice as many files as are watched, if it may; return how many can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_WATCHED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_WATCHED if soft == resource.RLIM_INFINITY else min(MAX_WATCHED, soft // 2)
