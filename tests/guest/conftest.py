"""Fixtures of the tests in a guest."""

from collections.abc import Iterator

import pytest
from ipvsadm import run

from tsbus.balancer.ipvs import Kernel


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """The kernel with an empty table."""
    run("ipvsadm", "-C")
    with Kernel() as kernel:
        yield kernel
