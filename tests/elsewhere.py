"""Elsewhere: tests that run in other pytests, all at the same time, and are reported here as any other test.

    pytestmark = pytest.mark.guest            # IPVS, network namespaces, cgroup v2: see tests/lab/uml-run
    pytestmark = pytest.mark.guest("docker")  # and a Docker engine at DOCKER_HOST: see tests/lab/uml-docker

All selected tests of one kind run in one guest, a kernel of their own, in the same order, as root. The modules of
BESIDE run on this machine, in one process for each kind: what a fixture starts is started once, and others work while
they wait. When nothing else is selected they run right here, where --pdb works.

The other pytest writes its reports to a file that this one reads, so names, failures, output and durations are the real
ones, and -k works.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

LAB = Path(__file__).parent / "lab"
SILENT_S = 1500
"""How long another pytest may tell nothing; a test that takes half of this in it ends it."""
GUEST_S = 4 * 3600
"""How long a guest may live: longer than all its tests on a slow machine, for who is silent is ended before."""
END_S = 120
"""How long another pytest may take to end what it has started, before it is killed."""
BESIDE = {
    "browser": "engines",
    "sandboxed": "aside",
    "system": "aside",
    "dockerd": "engines",
    "engine": "engines",
    "lab": "engines",
}
"""Fixture or folder -> the process of the modules that use it or are in it, in this order; of several the last counts.

The lab and other engines are not used at the same time: on a machine with cgroup v1 each systemd of the lab mounts the
hierarchies that nobody has mounted, and containerd has no statistics of what it starts while there are such.
"""
PASSED = "TREESCALE_TEST_"
"""Variables whose names begin so are for tests, and those in a guest get them, too."""
REPORTS = "TREESCALE_REPORTS"
"""The variable that says to another pytest where its reports go."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", 'guest(kind): runs under a kernel of its own; kind "docker": with an engine')
    if place := os.environ.get(REPORTS):
        config.pluginmanager.register(Inside(config, Path(place)))
    elif "UML" not in os.environ:  # else somebody has called pytest in a guest: the tests just run
        config.pluginmanager.register(Outside())


def guest_of(item: pytest.Item) -> str:
    """The program of tests/lab that makes the guest of a test; empty: it needs none."""
    marker = item.get_closest_marker("guest")
    return f"uml-{marker.args[0] if marker.args else 'run'}" if marker else ""


def places(items: Sequence[pytest.Item], config: pytest.Config) -> dict[str, str]:
    """Where each test runs: in a guest, in a process of BESIDE, or, if it is not here, in this one."""
    guests = {item.nodeid: guest for item in items if (guest := guest_of(item))}
    processes, turn = ["", *BESIDE.values()], turns(items)
    found = {item.nodeid: processes[turn.get(item.path, 0)] for item in items if item.nodeid not in guests}
    alone = len(set(found.values())) < 2 or config.option.usepdb or config.option.capture == "no"
    return guests if alone else guests | {name: process for name, process in found.items() if process}


def turns(items: Sequence[pytest.Item]) -> dict[Path, int]:
    """When the modules of BESIDE run: 1 is the first of these."""
    return {
        item.path: turn
        for turn, name in enumerate(BESIDE, 1)
        for item in items
        if name in (*getattr(item, "fixturenames", ()), item.path.parent.name)
    }


class Inside:
    """In the other pytest: writes every report down."""

    def __init__(self, config: pytest.Config, place: Path) -> None:
        self.config = config
        self.file = place.open("a")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        print(json.dumps(data), file=self.file, flush=True)


class Outside:
    """In the pytest that was called: starts the others and takes the reports of their tests from them."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self.others: dict[str, Other] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        self.places = places(session.items, session.config)
        turn = turns(session.items)
        # The others work while those of here run.
        session.items.sort(key=lambda item: (item.nodeid in self.places, turn.get(item.path, 0)))
        for place in dict.fromkeys(self.places.values()):
            self.others[place] = Other(place, [one for one in session.items if self.places.get(one.nodeid) == place])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        place = self.places.get(item.nodeid)
        if place is None and nextitem is not None and nextitem.nodeid in self.places:
            # The last of here: what the session's fixtures have started ends now, and not after the summary.
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            return True
        if place is None:
            return None
        faulthandler.cancel_dump_traceback_later()  # the other pytest has a limit of its own
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.others[place].reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        for other in self.others.values():
            other.process.send_signal(signal.SIGINT)
        for other in self.others.values():
            other.end()
            other.stack.close()


def end_with_parent() -> None:
    """Let this process be interrupted when the one that started it is gone, killed perhaps."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


class Other:
    """Another pytest, in a guest or beside this one, that runs these tests."""

    def __init__(self, place: str, items: list[pytest.Item]) -> None:
        self.place = place
        self.stack = contextlib.ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))
        (folder / "tests").write_text("".join(f"{item.nodeid}\n" for item in items))
        (folder / "reports").touch()
        self.log = folder / "log"
        self.lines = self.stack.enter_context((folder / "reports").open())
        self.done: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self.told_at = time.monotonic()
        options = ["--share", str(folder), "--limit", str(GUEST_S)]
        passed = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(PASSED)]
        guest = [LAB / place, *(options if place == "uml-run" else ()), "env", *passed]
        self.process = subprocess.Popen(
            [*(("env",) if place in BESIDE.values() else guest), f"{REPORTS}={folder / 'reports'}",
             sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider",
             "-o", f"faulthandler_timeout={SILENT_S // 2}", f"@{folder / 'tests'}"],
            cwd=items[0].config.rootpath, stdin=subprocess.DEVNULL, stdout=self.stack.enter_context(self.log.open("w")),
            stderr=subprocess.STDOUT, env={**os.environ, "UML_RUN": " ".join(options)}, preexec_fn=end_with_parent,
            start_new_session=True,  # of Ctrl-C at the terminal it is told once, by us
        )  # fmt: skip

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The reports of one test, when it has run; or one that says why it has not."""
        reports = self.done[item.nodeid]
        while not reports or reports[-1].when != "teardown":
            ended = self.process.poll() is not None
            if not self.read(item) and ended:
                told = "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
                text = f"The pytest of {self.place} ended ({self.process.returncode}) before this test:\n{told}"
                reports = [pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")]
                break
            if not ended and time.monotonic() > self.told_at + SILENT_S:
                self.process.send_signal(signal.SIGINT)
                self.end()
            time.sleep(0.05)
        yield from reports

    def read(self, item: pytest.Item) -> bool:
        """Whether reports have come since last time."""
        position = self.lines.tell()
        news: list[dict[str, Any]] = []
        while (line := self.lines.readline()).endswith("\n"):
            news.append(json.loads(line))
            position = self.lines.tell()
        self.lines.seek(position)  # half a line is read again when it is whole
        if news:
            self.told_at = time.monotonic()
        for data in news:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            self.done[report.nodeid].append(report)
        return bool(news)

    def end(self) -> None:
        """Wait until it has ended, who has been interrupted."""
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
