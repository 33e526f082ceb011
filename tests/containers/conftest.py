"""Fixtures of the tests of containers."""

from collections.abc import Iterator

import pytest
from boxes import Make, containers_of

from tsbus.containers.engine import Engine


@pytest.fixture
def make(engine: Engine) -> Iterator[Make]:
    """A function that makes a container and, unless `start` is false, starts it; `config` and `host` are the API's."""
    with containers_of(engine) as make:
        yield make
