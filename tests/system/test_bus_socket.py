"""A router's socket file that is taken away, and a reload that is asked for before the router runs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import LIMIT_S, wait

ROOT = Path(__file__).parents[2]
TREE = 'current_node = "solo"\n[servers.solo]\nip = "127.0.0.1"\nservice_port = 4999\n'


class Started:
    """A router in `folder`, as supervisord starts it."""

    def __init__(self, folder: Path) -> None:
        self.bus = folder / "bus"
        self._log = folder / "log"
        argv = [sys.executable, ROOT / "services/ts_router.py", "--config", folder / "tree.toml", "--run-dir", folder]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(argv, stderr=log)

    def wait_told(self, word: str) -> None:
        """Wait until the log has it."""
        wait(word, lambda: word in self._log.read_text() or self.process.poll() is not None)
        assert word in self._log.read_text(), f"ended with {self.process.returncode}"

    def lines(self, word: str) -> list[str]:
        """Return the lines of the log that have it."""
        return [line for line in self._log.read_text().splitlines() if word in line]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield Path(name)


@pytest.fixture
def router(folder: Path) -> Iterator[Started]:
    (folder / "tree.toml").write_text(TREE)
    router = Started(folder)
    router.wait_told("router.start")
    yield router
    router.process.kill()
    router.process.wait()


def replace(bus: Path) -> None:
    """Put another socket in the place of a router's."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{bus}.new")
    Path(f"{bus}.new").replace(bus)


@pytest.mark.parametrize("take", [Path.unlink, replace])
def test_a_router_whose_socket_is_taken_away_ends(router: Started, take) -> None:
    """Nobody can reach it any more: it says so in one line and fails, so that its supervisor starts it again."""
    take(router.bus)
    assert router.process.wait(LIMIT_S) == 1
    (line,) = router.lines("bus.gone")
    assert str(router.bus) in line


def test_a_reload_before_a_router_runs_is_done_when_it_does(folder: Path) -> None:
    """SIGHUP while a router still reads its configuration does not end it: it reads the file again once it runs."""
    file = folder / "tree.toml"
    os.mkfifo(file)
    router = Started(folder)

    def opened() -> int | None:
        with contextlib.suppress(OSError):  # nobody reads it yet
            return os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        return None

    try:
        with os.fdopen(wait("the router reads its file", opened), "w") as pipe:
            (folder / "new.toml").write_text(TREE)
            (folder / "new.toml").replace(file)
            router.process.send_signal(signal.SIGHUP)
            pipe.write(TREE)
        router.wait_told("config.unchanged")
    finally:
        router.process.kill()
        router.process.wait()
