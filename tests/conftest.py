"""Fixtures that tests of several rings share."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def lone_bus() -> Iterator[str]:
    """Run the router of a tree of one node, `solo`, and give the address of its bus."""
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:  # short enough for a socket's address
        config = Path(folder, "treescale.toml")
        config.write_text(
            'current_node = "solo"\n[servers.solo]\nname = "solo"\nip = "127.0.0.1"\nservice_port = 4999\n'
        )
        argv = [sys.executable, ROOT / "services/ts_router.py", "--config", config, "--run-dir", folder]
        router = subprocess.Popen(argv)
        yield f"{folder}/bus"
        router.terminate()
        router.wait(10)
