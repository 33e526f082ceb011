"""The lab itself: a guest is a machine of its own, says why it fails, and leaves nothing behind."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait

LIMIT_S = 300.0
"""For a guest to boot and to end."""
UML_RUN = Path(__file__).parents[1] / "lab" / "uml-run"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where guests keep their files."""
    with tempfile.TemporaryDirectory(prefix="lab-") as name:
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([UML_RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(guest: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit status, output, errors."""
    out, err = guest.communicate(timeout=LIMIT_S)
    return guest.returncode, out, err


def processes_of(folder: Path) -> list[str]:
    """The command lines of living processes that name a folder."""
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


def test_two_guests_are_two_machines(folder: Path) -> None:
    """Two at once have their own kernels, output in order and exit statuses, and only a share is written through."""
    shared = folder / "shared"
    shared.mkdir()
    script = f"""echo $0 out; echo $0 err >&2
    echo $0 > {shared}/through; echo $0 > {folder}/here; cat {folder}/here
    ip link add only-$0 type dummy && exit $1"""
    guests = [start("--share", str(shared), "sh", "-c", script, *words) for words in (("a", "3"), ("b", "4"))]
    assert [outcome(guest) for guest in guests] == [(3, "a out\na err\na\n", ""), (4, "b out\nb err\nb\n", "")]
    assert (shared / "through").read_text() in ("a\n", "b\n")
    assert list(folder.iterdir()) == [shared]


def test_the_kernel_died(folder: Path) -> None:
    """When the guest's kernel dies, the status is 125 and its last words are told."""
    status, out, err = outcome(start("sh", "-c", "echo before; echo c > /proc/sysrq-trigger"))
    assert (status, out) == (125, "before\n")
    assert "while the command ran" in err
    assert "Kernel panic" in err


def test_the_time_was_up(folder: Path) -> None:
    """A guest that has not even booted when its time is up ends as 125, with the kernel's messages."""
    status, _, err = outcome(start("--limit", "0.2", "true"))
    assert status == 125
    assert "ended after 0.2 s, as --limit says; it had not booted" in err
    assert not processes_of(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays(folder: Path, number: signal.Signals) -> None:
    """Whatever ends uml-run, the guest's processes and files go with it."""
    guest = start("--limit", str(LIMIT_S), "sleep", "1000")
    wait("the guest's kernel", lambda: processes_of(folder))
    guest.send_signal(number)
    outcome(guest)
    wait("nothing", lambda: not processes_of(folder) and not list(folder.iterdir()))
    assert guest.returncode in (-signal.SIGKILL, 128 + number)


def test_what_is_missing(tmp_path: Path) -> None:
    """A machine without the packages is told their names."""
    done = subprocess.run(
        [sys.executable, UML_RUN, "true"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 125
    assert "apt-get install user-mode-linux" in done.stderr
