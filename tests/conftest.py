"""Fixtures that tests of several rings share."""

import tempfile
from collections.abc import Iterator

import pytest
from lone_router import LoneRouter


@pytest.fixture
def lone_router() -> Iterator[LoneRouter]:
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:  # short enough for a socket's address
        router = LoneRouter(folder)
        yield router
        router.kill()


@pytest.fixture
def lone_bus(lone_router: LoneRouter) -> str:
    """The address of the lone router's bus."""
    return lone_router.bus
