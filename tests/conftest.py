"""Fixtures that tests of several rings share."""

import os
import signal
import tempfile
from collections.abc import Iterator

import elsewhere
import pytest
from dockerd import Dockerd
from hypothesis import HealthCheck, settings
from lone_router import LoneRouter

from tsbus.containers.engine import Engine

# How long an example takes depends on what else the machine does: nothing here is a timed test.
settings.register_profile("treescale", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("treescale")


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would the programs that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed, it ends what it has started as well
    config.addinivalue_line("markers", "long: takes minutes, in a guest or on real servers: `make test-long`")
    elsewhere.pytest_configure(config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a run in CI fail when a test was skipped: there, everything that a test needs is installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """The private Docker engine of this run, with the images `box:1` and `checked:1` (healthy while /tmp/ok is there).

    Tests remove their own containers. Whoever stops or kills it starts it again.
    """
    if os.geteuid() != 0:
        pytest.skip("a Docker engine needs root")
    engine = Dockerd()
    try:
        engine.start()
        engine.image("box:1", 'CMD ["sleep", "1000"]')
        check = "HEALTHCHECK --interval=0.2s --timeout=5s --retries=1 CMD test -e /tmp/ok"
        engine.image("checked:1", 'CMD ["sleep", "1000"]', check)
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def engine(dockerd: Dockerd) -> Iterator[Engine]:
    """The edge to the engine of `dockerd`."""
    edge = Engine(dockerd.host)
    yield edge
    edge.close()
