"""Waiting for a condition, with a limit, in tests that block; those with a loop have `tree.until`."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from tsbus import connect

T = TypeVar("T")

LIMIT_S = 60.0
"""How long anything may take that must come, on a busy machine."""


def wait(what: str, is_so: Callable[[], T], limit_s: float = LIMIT_S, pause_s: float = 0.02) -> T:
    """Wait until `is_so()` is true, and return it; `what` says in a failure what did not come."""
    end = time.monotonic() + limit_s
    while not (value := is_so()):
        assert time.monotonic() < end, f"within {limit_s:g} s this did not come: {what}"
        time.sleep(pause_s)
    return value


def wait_wanted(topic: str, bus: str) -> None:
    """Wait until the router of this bus knows that somebody wants events of a topic, here or at another node."""

    async def wanted() -> None:
        async with connect(bus) as client, client.interest(topic) as interest:
            while not interest.wanted:
                await anext(interest)

    asyncio.run(asyncio.wait_for(wanted(), LIMIT_S))
