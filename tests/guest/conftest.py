"""Fixtures of the tests in a guest."""

from collections.abc import Iterator

import pytest
from ipvsadm import run
from lan import Lan
from stage import Stage

from tsbus.balancer.ipvs import Kernel


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """The kernel with an empty table."""
    run("ipvsadm", "-C")
    with Kernel() as kernel:
        yield kernel


@pytest.fixture(scope="session")
def bare() -> Iterator[Stage]:
    """The one network of all tests here, to build which takes seconds; use `stage`."""
    run("modprobe", "-a", "ip_vs", "ipip", "ip6_tunnel", "dummy", "sctp")
    with Lan() as lan:
        yield Stage(lan)


@pytest.fixture
def stage(bare: Stage) -> Stage:
    """A host that forwards, with an empty table and fresh settings."""
    bare.clear()
    return bare
