"""Tests that run in other pytests: what is told of them here, also when the other one ends or says nothing."""

import os
import subprocess
import sys
from pathlib import Path

SUITE = {
    "conftest": """
import elsewhere, pytest
from elsewhere import pytest_configure

elsewhere.END_S = 5

def pytest_runtest_logstart(nodeid):
    if "silent" in nodeid:
        elsewhere.SILENT_S = 3

@pytest.fixture
def sandboxed(): ...

@pytest.fixture
def lab(): ...

@pytest.fixture(scope="session")
def started():
    yield
    print("what was started has ended")
""",
    "test_a_here": """
def test_here(started): ...
""",
    "test_b_beside": """
import os, signal

def test_passes(sandboxed): ...

def test_fails(sandboxed):
    assert False, "as it is"

def test_kills(sandboxed):
    os.kill(os.getpid(), signal.SIGKILL)

def test_after(sandboxed): ...
""",
    "test_c_silent": """
import time

def test_is_silent(lab):
    time.sleep(1000)

def test_late(lab): ...
""",
}


def test_what_runs_elsewhere_is_told_here(tmp_path: Path) -> None:
    """Each test has its outcome; whose pytest was killed, or tells nothing for long, has failed, with the reason.

    What the tests of here have started ends before the others are waited for, and writes nothing after the summary.
    """
    for name, text in SUITE.items():
        (tmp_path / f"{name}.py").write_text(text)
    mine = ("TREESCALE_REPORTS", "UML", "PYTEST_ADDOPTS")
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    argv = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    told = [line.split("::")[1].split(" [")[0].rstrip() for line in done.stdout.splitlines() if "%]" in line]
    assert told == [
        "test_here PASSED",
        "test_passes PASSED", "test_fails FAILED", "test_kills FAILED", "test_after FAILED",
        "test_is_silent FAILED", "test_late FAILED",
    ], done.stdout + done.stderr  # fmt: skip
    assert "as it is" in done.stdout
    assert "The pytest of aside ended (-9) before this test" in done.stdout
    assert "The pytest of engines ended (" in done.stdout
    assert "what was started has ended" not in done.stdout
