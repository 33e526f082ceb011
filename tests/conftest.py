"""Fixtures that tests of several rings share."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from lone_router import LoneRouter

# How long an example takes depends on what else the machine does: nothing here is a timed test.
settings.register_profile("treescale", deadline=None)
settings.load_profile("treescale")


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
