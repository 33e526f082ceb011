"""Fixtures of the system tests: trees of real processes that are gone when the test is over."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import Machines
from tree import Grow, Tree


@pytest.fixture
async def grow() -> AsyncIterator[Grow]:
    """A function that starts a tree (see Tree) and returns it when every node sees every node."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(spec: str, **options: Any) -> Tree:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ts-"))  # short: it is in socket addresses
            return await stack.enter_async_context(Tree(spec, Path(folder), **options))

        yield start


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """Two machines with balancers, in a guest with Docker; all its tests share them."""
    with Machines() as machines:
        yield machines


@pytest.fixture
def site(machines: Machines) -> Iterator[Machines]:
    """The machines, without containers before and after the test."""
    machines.events.clear()
    yield machines
    machines.settle()
