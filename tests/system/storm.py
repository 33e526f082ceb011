"""A storm: containers start, are drained, stopped and killed at random among clients that come and clients that stay.

It lasts longer by hand: TREESCALE_TEST_STORM_S=60 .venv/bin/pytest tests/system/test_balancer_storm.py
"""

import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from typing import NamedTuple

from clients import Flow, Visitors
from lan import Box
from machines import CALM, Machine, Site, wait

ACTORS = 2
PORT = 85
VIP = ("10.0.0.1", PORT)


class Harm(NamedTuple):
    """A container that was ended under its clients, from when until it was out of the table."""

    name: str
    began: float
    ended: float


class Actor:
    """Starts one container after another, and ends each in another way."""

    def __init__(self, machine: Machine, client: Box, number: int) -> None:
        self._machine, self._client, self._number = machine, client, number
        ends = [self._drain, self._kill, self._stop]
        self._ends = cycle(ends[number % 3 :] + ends[: number % 3])
        self.made: list[str] = []
        self.drained: list[str] = []
        self.harm: list[Harm] = []

    def run(self, until: float) -> None:
        """End at least one; leaves one running."""
        self._start()
        while len(self.made) < 2 or time.monotonic() < until:
            time.sleep(random.uniform(0, 1))
            next(self._ends)(self.made[-1])
            self._start()

    def _start(self) -> None:
        """A container gets clients when its program listens: until then its weight is 0."""
        name = f"actor{self._number}-{len(self.made)}"
        self._machine.run(name, "--label=treescale.balancer=storm", "--label=treescale.weight=0")
        self._machine.listens(name)
        wait(f"the balancer knows {name}", lambda: name in self._machine.show("storm"))
        self._machine.lb("weight", {"servers": [name], "weight": 1})
        self.made.append(name)

    def _drain(self, name: str) -> None:
        place = self._machine.place(name)
        flow = wait(f"a connection to {name}", lambda: self._flow(name))
        with ThreadPoolExecutor(1) as elsewhere:
            order = {"servers": [name], "once": True, "wait": True}
            draining = elsewhere.submit(self._machine.lb, "drain", order)
            wait(f"{name} drains", lambda: self._machine.table(PORT)[place] == 0)
            assert flow.ask().server == name
            assert not draining.done()
            flow.close()
            assert draining.result()["state"] == "removed"
        self.drained.append(name)
        self._machine.remove(name)

    def _flow(self, name: str) -> Flow | None:
        with suppress(OSError):
            flow = Flow(self._client, VIP)
            if flow.first.server == name:
                return flow
            flow.close()
        return None

    def _kill(self, name: str) -> None:
        self._harm(name, self._machine.api.kill)

    def _stop(self, name: str) -> None:
        self._harm(name, self._machine.api.stop)  # without a drain: clients that stay too long meet the end

    def _harm(self, name: str, end: Callable[[str], None]) -> None:
        began, place = time.monotonic(), self._machine.place(name)
        end(name)
        wait(f"{name} is out of the table", lambda: place not in self._machine.table(PORT))
        self.harm.append(Harm(name, began, time.monotonic()))
        self._machine.remove(name)


def storm(site: Site, seconds: float) -> None:
    """No client notices starts and drains, only its own clients that a container is killed; nothing is left over."""
    top, rules = site.top, site.top.rules()
    actors = [Actor(top, site.client, number) for number in range(ACTORS)]
    until = time.monotonic() + float(os.environ.get("TREESCALE_TEST_STORM_S", seconds))
    with (
        Visitors(site.client, VIP, holding=4) as visitors,
        ThreadPoolExecutor(ACTORS) as pool,
    ):
        visitors.wait_more(*CALM)
        for done in [pool.submit(actor.run, until) for actor in actors]:
            done.result()
        running = [*CALM, *(actor.made[-1] for actor in actors)]
        visitors.wait_more(*running)
    harm = [each for actor in actors for each in actor.harm]
    unexplained = [
        failure
        for failure in visitors.failed
        if not any(
            failure.server in ("", each.name) and failure.began <= each.ended and failure.ended >= each.began
            for each in harm
        )
    ]
    drained = [name for actor in actors for name in actor.drained]
    assert not unexplained, f"{unexplained[:5]} although only these were harmed: {harm}"
    assert drained
    assert harm

    assert set(top.docker("ps", "--format", "{{.Names}}").split()) == set(running)
    top.wait_table(PORT, {top.place(name): 1 for name in running})
    assert {name: one["state"] for name, one in top.show("storm").items()} == dict.fromkeys(running, "active")
    wait("all is as it should be", lambda: top.lb("sync")["steps"] == [])  # what changed while it was read is done next
    top.remove()
    top.wait_table(PORT, site.calm)
    wait("the rules are as before", lambda: top.rules() == rules)
    wait("nothing is noted", lambda: json.loads(top.state_file.read_text())["overrides"] == [])
