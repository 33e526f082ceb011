"""Fixtures of the tests of the build: servers to log in to, and what a console knows of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_of_tests import Desk
from targets import Lab, Target

from tsbus.build.ssh import Shared


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real servers take minutes: they are of the long ones."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Where targets are made; its engine comes up in the background."""
    if os.geteuid() != 0:
        pytest.skip("targets need root")
    lab = Lab()
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def sandboxed() -> None:
    """Tests in a sandbox of this machine's files wait a lot: by this they run beside the others (elsewhere.py)."""


@pytest.fixture(scope="session")
def server(lab: Lab) -> Target:
    """A target with Python. Tests leave it as they find it."""
    return lab.target()


@pytest.fixture(scope="session")
def neighbour(lab: Lab) -> Target:
    """Another one, without systemd."""
    return lab.target("plain")


@pytest.fixture
def shared() -> Iterator[Shared]:
    """What sessions share; whatever waits is told to end with the test."""
    shared = Shared()
    yield shared
    shared.cancelled.set()


@pytest.fixture
def desk(shared: Shared, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A console with the lab's key, known_hosts of its own, and no agent."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Desk(shared, tmp_path, lab.key)
