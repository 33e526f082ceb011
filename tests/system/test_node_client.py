"""Another language on the bus: the example in JavaScript, written from the protocol alone, against a real router."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lone_router import LoneRouter
from waiting import LIMIT_S

import tsbus
from tsbus.core.message import Content

ROOT = Path(__file__).parents[2]
NODE = ROOT / "examples/node"


@pytest.fixture(scope="module")
def node_modules() -> None:
    """Install the two packages of the example, once for a checkout; their binaries are inside them."""
    if not (NODE / "node_modules/zeromq").exists():
        argv = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(argv, cwd=NODE, check=True, capture_output=True)


@pytest.fixture
def example(node_modules: None, lone_bus: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["node", NODE / "client.mjs", lone_bus])
    yield process
    process.kill()
    process.wait()


async def test_javascript_client(lone_bus: str, example: "subprocess.Popen[bytes]") -> None:
    """The example publishes, hears events, answers a command, and reports an error of its handler as failed."""
    async with tsbus.connect(lone_bus, timeout_s=LIMIT_S) as client, client.subscribe("shout.*") as shouts:
        await _listens(client)
        await client.publish("news.today", {"weather": "grün"})
        event = await shouts.next(LIMIT_S)
        while event.topic == "shout.ready":
            event = await shouts.next(LIMIT_S)
        assert event.topic == "shout.heard"
        assert event.json() == {"topic": "news.today", "value": {"weather": "grün"}, "origin": "solo"}
        assert (event.who, event.content, event.time_ms > 0) == (f"uid:{os.getuid()}", Content.JSON, True)
        assert await client.call_one("solo", "shout.upper", b'"abc"') == "ABC"
        failed = await client.call("solo", "shout.upper", 7)
        assert failed.failed == {"solo"}
        assert "TypeError" in failed.errors["solo"]


async def test_javascript_client_survives_the_window(lone_bus: str, example: "subprocess.Popen[bytes]") -> None:
    """More events than a window hold pass through the example and back: it acknowledges and waits as it should."""
    async with tsbus.connect(lone_bus, timeout_s=LIMIT_S) as client, client.subscribe("shout.heard") as heard:
        await _listens(client)
        count = 600
        for number in range(count):
            await client.publish("news.today", {"number": number, "filler": "x" * 6000})
        numbers = [(await heard.next(LIMIT_S)).json()["value"]["number"] for _ in range(count)]
        assert numbers == list(range(count))


async def test_javascript_client_comes_back(
    lone_bus: str, lone_router: LoneRouter, example: "subprocess.Popen[bytes]"
) -> None:
    """After a restart of the router the example connects anew and says its subscriptions and commands again."""
    async with tsbus.connect(lone_bus, timeout_s=LIMIT_S) as client:
        await _listens(client)
        lone_router.kill()
        lone_router.start()
        async with asyncio.timeout(LIMIT_S):
            while client.connected:
                await asyncio.sleep(0.005)
            await client.wait_connected()
            await _listens(client)
        assert await client.call_one("solo", "shout.upper", b'"abc"') == "ABC"


async def _listens(client: tsbus.Client) -> None:
    """Wait until the example has subscribed, and serves what it says right after."""
    async with client.interest("news.today") as interest:
        if not interest.wanted:
            await anext(interest)
    while "shout" not in [worker["name"] for worker in await _serving(client)]:
        await asyncio.sleep(0.01)


async def _serving(client: tsbus.Client) -> list[dict[str, Any]]:
    """Who serves something."""
    return [worker for worker in (await client.call_one("solo", "router.stats"))["workers"] if worker["services"]]


def test_javascript_agrees_with_the_vectors(node_modules: None) -> None:
    """The example's MessagePack reads every vector to its meaning and writes the same bytes."""
    argv = ["node", NODE / "vectors.mjs", ROOT / "tests/vectors"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert "frames agree" in done.stdout
