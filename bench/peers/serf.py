"""Serf: gossiping agents on one machine with their default (lan) timing, each with an event handler script.

A handler's touched file tells when it ran, so nothing needs to poll an agent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from bench.contestant import Crowd
from bench.harness import Fleet, free_ports, output, wait_until

HANDLER = """#!/bin/sh
[ "$SERF_EVENT" = user ] && name=$SERF_USER_EVENT || read name rest
: > "{folder}/$SERF_EVENT.$name.$SERF_SELF_NAME"
"""


class Serf(Crowd):
    name = "serf"

    def version(self) -> str:
        return f"serf {output('serf', 'version').splitlines()[0]}"

    def start(self, fleet: Fleet, nodes: int) -> None:
        self._fleet, self._nodes, self._numbers = fleet, nodes, itertools.count(1)
        self._alive = list(range(1, nodes + 1))
        ports = free_ports(2 * nodes)
        addresses = [f"127.0.0.1:{port}" for port in ports[nodes:]]
        self._rpc = addresses[0]
        handler = fleet.file("handler", HANDLER.format(folder=fleet.folder))
        handler.chmod(0o755)
        for number in self._alive:
            gossip, rpc = ports[number - 1], ports[nodes + number - 1]
            argv = ["serf", "agent", f"-node=n{number}", f"-bind=127.0.0.1:{gossip}", f"-rpc-addr=127.0.0.1:{rpc}",
                    f"-event-handler=user={handler}", f"-event-handler=member-failed={handler}",
                    f"-join=127.0.0.1:{ports[0]}"]  # fmt: skip
            fleet.start(f"node {number}", argv, [rpc])
        for address in addresses:
            wait_until(lambda: self._members(address) == nodes, "all agents know all", 60, every_s=0.5)  # noqa: B023

    def _members(self, address: str) -> int:
        return len(output("serf", "members", f"-rpc-addr={address}", "-status=alive").splitlines())

    def _event(self) -> float:
        """From the command's start to the last handler's touch."""
        name = f"bench{next(self._numbers)}"
        start = time.time()
        # Without coalescing, for it holds every event back for a second.
        output("serf", "event", "-coalesce=false", f"-rpc-addr={self._rpc}", name)
        wait_until(lambda: len(self._touched(f"user.{name}.*")) == len(self._alive), "every handler ran", 30)
        return max(path.stat().st_mtime for path in self._touched(f"user.{name}.*")) - start

    def _killed(self) -> float:
        """From kill -9 of one agent to the first agent's handler."""
        victim = self._alive.pop()
        start = time.time()
        self._fleet.named(f"node {victim}").kill()
        wait_until(lambda: self._touched(f"member-failed.n{victim}.n1"), "the first agent knows", 60)
        return self._touched(f"member-failed.n{victim}.n1")[0].stat().st_mtime - start

    def _touched(self, pattern: str) -> list[Path]:
        return list(self._fleet.folder.glob(pattern))

    def operations(self) -> dict[str, Callable[[], float]]:
        return {"event": self._event, "killed known": self._killed}
