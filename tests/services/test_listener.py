"""The event listener of supervisord: what it has to tell reaches the tree, whatever happens to the router meanwhile."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tsbus import Client, Event
from tsbus.supervision import listener
from tsbus.supervision.listener import Listener
from tsbus.testing import MemoryTree

TURNS = 1000


async def test_events_wait_for_a_router_that_is_slow_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened while the router was away, however long, is told to nodes above when it is back and has joined."""
    async with MemoryTree({"root": ["a"], "a": []}) as tree:
        above, here = await tree.connect("root"), await tree.connect("a")
        heard: list[Event] = []
        opening = asyncio.ensure_future(_subscribe(above, heard))
        await _until(tree, opening.done)
        taken = Listener(None, Path("none"))
        telling = asyncio.create_task(taken.publish(here))
        tree.stop("a")
        await tree.settle()
        monkeypatch.setattr(listener, "JOIN_S", 0.0)
        taken.take("PROCESS_STATE_EXITED", "processname:x groupname:x from_state:RUNNING expected:0 pid:7")
        await tree.settle()
        monkeypatch.setattr(listener, "JOIN_S", 600.0)
        tree.start("a")
        await _until(tree, lambda: taken.counters["published"] == 1)
        await _until(tree, lambda: bool(heard))
        assert (heard[0].topic, heard[0].json()["node"]) == ("process.exited", "a")
        telling.cancel()


async def _subscribe(client: Client, heard: list[Event]) -> None:
    await client.subscribe("process.>", callback=heard.append)


async def _until(tree: MemoryTree, is_so: Callable[[], bool]) -> None:
    for _ in range(TURNS):
        if is_so():
            return
        await tree.advance(0.05)
    raise AssertionError("it did not come to that")
