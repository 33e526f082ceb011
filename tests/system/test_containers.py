"""The container monitor as a process in a real tree, under a storm, with an engine and a monitor that get kill -9."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dockerd import Dockerd
from tree import QUICK, Tree, until

from tsbus.containers.engine import Engine, EngineError
from tsbus.live_mirror import Change, LiveMirror, follow

START = Path(__file__).parents[2] / "services/ts_docker.py"
BOXES = 20
BOX = {"Image": "box:1", "StopTimeout": 0, "HostConfig": {"NetworkMode": "none"}}


class Monitor:
    """services/ts_docker.py on one node."""

    def __init__(self, tree: Tree, node: str, host: str) -> None:
        self._tree, self._node, self._host = tree, node, host
        self.start()

    def start(self) -> None:
        """Run it."""
        tree, node = self._tree, self._node
        argv = [
            sys.executable,
            START,
            "--config",
            tree.write(node),
            "--bus",
            tree.bus(node),
            "--audit-dir",
            tree.folder,
        ]
        with (tree.folder / "docker.log").open("ab") as log:
            self._process = subprocess.Popen(argv, env=os.environ | {"DOCKER_HOST": self._host}, stderr=log)

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def boxes(engine: Engine) -> Iterator[list[str]]:
    """Containers that do nothing and end at once when they are told to."""
    made = [engine.create(f"box-{number}", BOX) for number in range(BOXES)]
    yield made
    for container in made:
        with suppress(EngineError):
            engine.rm(container, force=True)


def storm(engine: Engine, boxes: list[str], rounds: int) -> list[str]:
    """Start and kill all containers, several at a time; returns the errors of acts that the engine has not done.

    The round with the first of these is the last.
    """

    def act(what: Callable[[str], None], container: str) -> str:
        try:
            what(container)
        except EngineError as error:
            return str(error)
        return ""

    errors: list[str] = []
    with ThreadPoolExecutor(6) as pool:
        for _ in range(rounds):
            for what in (engine.start, engine.kill):
                errors += filter(None, pool.map(lambda box, what=what: act(what, box), boxes))
            if errors:
                break
    return errors


def truth(engine: Engine) -> dict[str, tuple[str, str]]:
    """What the engine says that there is: id -> name and state."""
    return {one.id: (one.name, one.state) for one in engine.list()}


def known(mirror: LiveMirror) -> dict[str, tuple[str, str]]:
    """What a follower at the root knows."""
    return {one.id: (one.name, one.state) for _, one in mirror.containers()}


async def equal(mirror: LiveMirror, engine: Engine) -> None:
    """Wait until the follower knows what there is: less than the minute after which a comparison would mend it."""
    seen: list[Any] = []

    async def is_so() -> bool:
        seen[:] = [known(mirror), await asyncio.to_thread(truth, engine)]
        return bool(seen[0] == seen[1])

    try:
        await until("the follower knows what there is", is_so, 45)
    except AssertionError as error:
        differ = {id_: (seen[0].get(id_), seen[1].get(id_)) for id_ in seen[0].keys() | seen[1].keys()}
        raise AssertionError(f"{error}: {[pair for pair in differ.values() if pair[0] != pair[1]]}") from None


async def test_a_storm_with_an_engine_and_a_monitor_that_die(
    grow: Any, dockerd: Dockerd, engine: Engine, boxes: list[str]
) -> None:
    """200 starts and ends, and kill -9 of the engine, then of the monitor: nothing is lost, nothing told twice."""
    # No link is lost here, however long a busy machine lets a router wait: what is told meanwhile is told as a whole.
    tree: Tree = await grow("a:b;b:c", bus=replace(QUICK, heartbeat_timeout_ms=30_000))
    monitor = Monitor(tree, "c", dockerd.host)
    told: list[Change] = []
    try:
        client = await tree.connect("a")
        async with follow(client, "c", on_change=told.append) as mirror:
            await equal(mirror, engine)

            # Without a gap: each act is told, once.
            def actions() -> list[str]:
                return [change.event.action for change in told if change.event and change.event.container.id in boxes]

            assert not await asyncio.to_thread(storm, engine, boxes, 2)
            await until("all ends", lambda: actions().count("died") >= 2 * BOXES)
            await equal(mirror, engine)
            assert actions().count("started") == actions().count("died") == 2 * BOXES
            assert_legal(told, boxes)

            # The engine dies among them, and comes back.
            storming = asyncio.create_task(asyncio.to_thread(storm, engine, boxes, 1000))  # until the engine dies
            before = len(told)
            await until("the storm is on", lambda: len(told) > before + BOXES)
            await asyncio.to_thread(dockerd.kill)
            assert await storming
            await until("the engine is down", lambda: mirror.nodes["c"].state == "engine down")
            dockerd.start()
            await equal(mirror, engine)
            assert_legal(told, boxes)

            # The new engine is followed as the old one was. (It may refuse to start what it lost the end of.)
            await asyncio.to_thread(storm, engine, boxes, 1)
            await equal(mirror, engine)
            assert_legal(told, boxes)
            counters = await client.call_one("c", "containers.stats")
            assert counters.get("repairs", 0) == 0
            assert counters["outbox_dropped"] == 0
            epoch = counters["epoch"]

            # The monitor dies, things happen, and another one starts.
            monitor.kill()
            boxes.append(await asyncio.to_thread(engine.create, "box-new", BOX))
            await asyncio.to_thread(engine.start, boxes[-1])
            await asyncio.to_thread(engine.rm, boxes[1])
            monitor.start()
            await equal(mirror, engine)
            assert mirror.nodes["c"].epoch > epoch
    finally:
        monitor.kill()
    assert "Traceback" not in (tree.folder / "docker.log").read_text()


def assert_legal(told: list[Change], boxes: list[str]) -> None:
    """Fail unless every container starts only when it does not run, and ends only when it does."""
    for box in boxes:
        chain = [change.event for change in told if change.event and change.event.container.id == box]
        runs = [event.action for event in chain if event.action in ("started", "died")]
        assert all(one != two for one, two in pairwise(runs)), "\n".join(map(repr, chain))
