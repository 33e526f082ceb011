"""TreeScale as many nodes: a router and an executor for each, told to do something by a client at the root."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import tsbus
from bench.contestant import Crowd, Tree
from bench.harness import ROOT, BenchError, Fleet, wait_until
from bench.nursery import ARRIVAL, MARK, open_marks
from bench.ours import Ours, configure
from tsbus.config import Handler

TRUE = {"argv": ["/bin/true"]}
PATIENCE_S = 60.0


def ten_by_ten(nodes: int) -> Tree:
    """A root with ten children, which have ten each, as far as there are nodes."""
    return (None, *((number - 1) // 10 for number in range(1, nodes)))


class OursCrowd(Crowd):
    """Separate processes for each node; an event runs a program on every node (`[handlers]` of the executor)."""

    name = "ours"

    def version(self) -> str:
        return Ours().version()

    def start(self, fleet: Fleet, nodes: int) -> None:
        self._fleet, self._nodes = fleet, nodes
        self._names = [f"n{number}" for number in range(1, nodes + 1)]
        self._config = configure(fleet, ten_by_ten(nodes), self._handlers)
        self._launch()
        wait_until((fleet.folder / "n1" / "bus").exists, "the root's router", PATIENCE_S)
        self._loop = asyncio.new_event_loop()
        self._client = self._run(self._open())
        self._wait_all_answer()

    def _handlers(self, node: str) -> dict[str, Handler]:
        return {"touch": Handler("touch", on="bench.event", run=("touch", str(self._fleet.folder / f"{node}.event")))}

    def _launch(self) -> None:
        for number, name in enumerate(self._names, 1):
            home = self._fleet.folder / name
            common = ["--config", self._config, "--node", name]
            services = {"ts_router": ["--key", f"{home}.key", "--run-dir", str(home)],
                        "ts_executor": ["--bus", f"{home}/bus", "--audit-dir", str(home)]}  # fmt: skip
            for service, options in services.items():
                self._fleet.python_file(
                    f"node {number} {service}", ROOT / "services" / f"{service}.py", *common, *options
                )

    async def _open(self) -> tsbus.Client:
        client = await tsbus.connect(str(self._fleet.folder / "n1" / "bus"), name="bench", timeout_s=PATIENCE_S)
        self._losses: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        for topic in ("node.lost", "node.torpid"):
            await client.subscribe(topic, callback=self._on_loss)
        return client

    def _on_loss(self, event: tsbus.Event) -> None:
        self._losses.put_nowait((event.json()["node"], time.monotonic()))
        self._published = event.time_ms / 1000

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def _ask(self, command: str, body: object = b"") -> tsbus.Result:
        result: tsbus.Result = self._run(self._client.call("*", command, body, timeout_s=PATIENCE_S))
        return result

    def _wait_all_answer(self) -> None:
        wait_until(lambda: self._ask("exec.stats").complete, "every executor answers", PATIENCE_S, every_s=0.05)

    def _timed(self, command: str, body: object = b"") -> float:
        start = time.monotonic()
        result = self._ask(command, body)
        if not result.complete:
            raise BenchError(result.explain())
        return time.monotonic() - start

    def _event(self) -> float:
        """From the publishing to the last program's touch."""
        files = [self._fleet.folder / f"{name}.event" for name in self._names]
        for file in files:
            file.unlink(missing_ok=True)
        start = time.time()
        self._run(self._publish("bench.event"))
        wait_until(lambda: all(map(Path.exists, files)), "every handler ran")
        return max(file.stat().st_mtime for file in files) - start

    async def _publish(self, topic: str) -> None:
        await self._client.publish(topic)
        await self._client.flush()

    def _killed(self) -> float:
        """From kill -9 of a router to the event at the root's client."""
        victim = self._names.pop()
        start = time.monotonic()
        self._fleet.named(f"node {victim[1:]} ts_router").popen.kill()
        return self._heard_of(victim) - start

    def _heard_of(self, victim: str) -> float:
        async def loss() -> float:
            async with asyncio.timeout(PATIENCE_S):
                while (heard := await self._losses.get())[0] != victim:
                    pass
            return heard[1]

        when: float = self._run(loss())
        return when

    def operations(self) -> dict[str, Callable[[], float]]:
        return {
            "ping": partial(self._timed, "router.ping"),
            "exec": partial(self._timed, "exec.run", TRUE),
            "event": self._event,
            "killed known": self._killed,
        }


class OursForest(OursCrowd):
    """Forked by bench.nursery; the executors themselves note when an event comes, interior routers die and return."""

    def _handlers(self, node: str) -> dict[str, Handler]:
        return {}

    def _launch(self) -> None:
        folder = self._fleet.folder
        self._nursery = self._fleet.python("node nursery", "bench.nursery", self._config, str(folder))
        self._pids = {name: pair[0] for name, pair in self._nursery.must_hear(PATIENCE_S).items()}
        self._marks = open_marks(folder / "marks", self._nodes)
        self.known_to_router: list[float] = []
        self._victims = itertools.cycle(self._names[1:11])

    def _event(self) -> float:
        start = time.monotonic()
        self._run(self._publish(ARRIVAL))

        def arrivals() -> list[float]:
            return [MARK.unpack_from(self._marks, MARK.size * place)[0] for place in range(self._nodes)]

        wait_until(lambda: min(arrivals()) > start, "every executor heard the event", every_s=0.002)
        return max(arrivals()) - start

    def _killed(self) -> float:
        victim = next(self._victims)
        time.sleep(0.5)  # the tree is at rest when it happens
        start, began = time.monotonic(), time.time()
        os.kill(self._pids[victim], signal.SIGKILL)
        known = self._heard_of(victim) - start
        self.known_to_router.append(self._published - began)
        self._pids |= self._nursery.must_hear()
        self._wait_all_answer()
        return known

    def _stopped(self) -> float:
        """From SIGSTOP of an interior router to the event at the root's client."""
        victim = next(self._victims)
        start = time.monotonic()
        os.kill(self._pids[victim], signal.SIGSTOP)
        known = self._heard_of(victim) - start
        os.kill(self._pids[victim], signal.SIGCONT)
        self._wait_all_answer()
        return known

    def _floor(self) -> float:
        """The same number of programs started and awaited here, all at once: what fork and exec alone take."""
        start = time.monotonic()
        for each in [subprocess.Popen(TRUE["argv"]) for _ in self._names]:
            each.wait()
        return time.monotonic() - start

    def operations(self) -> dict[str, Callable[[], float]]:
        return super().operations() | {"fork/exec alone": self._floor, "stopped known": self._stopped}
