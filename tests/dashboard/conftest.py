"""Tests of the dashboard use the trees of real processes that the system tests have."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "system"))
from browser import Browser

FOLDER = Path(__file__).parent
AXE = FOLDER / "node_modules/axe-core/axe.min.js"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser for all tests: it has loaded what the pages need."""
    with Browser() as running:
        yield running


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which is installed once for a checkout."""
    if not AXE.exists():
        argv = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(argv, cwd=FOLDER, check=True, capture_output=True)
    return AXE.read_text()
