"""In guest: tests that are marked `guest` run under a kernel of their own and are reported here as any other test.

    pytestmark = pytest.mark.guest            # IPVS, network namespaces, cgroup v2: see tests/lab/uml-run
    pytestmark = pytest.mark.guest("docker")  # and a Docker engine at DOCKER_HOST: see tests/lab/uml-docker

All selected tests of one kind run in one guest, in the same order, as root, beside the other tests. A pytest in the
guest writes its reports to a file that the pytest outside reads, so names, failures, output and durations are the real
ones, and -k works.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LAB = Path(__file__).parent / "lab"
LIMIT_S = 900
PASSED = "TREESCALE_TEST_"
"""Variables whose names begin so are for tests, and those in a guest get them, too."""
REPORTS = "TREESCALE_GUEST_REPORTS"
"""The variable that says to a pytest in a guest where the reports go."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", 'guest(kind): runs under a kernel of its own; kind "docker": with an engine')
    if place := os.environ.get(REPORTS):
        config.pluginmanager.register(Inside(config, Path(place)))
    elif "UML" not in os.environ:  # else somebody has called pytest in a guest: the tests just run
        config.pluginmanager.register(Outside())


def kind_of(item: pytest.Item) -> str | None:
    """Which guest a test needs: the word that follows uml-."""
    marker = item.get_closest_marker("guest")
    return marker and (marker.args[0] if marker.args else "run")


class Inside:
    """The pytest in the guest: writes every report down."""

    def __init__(self, config: pytest.Config, place: Path) -> None:
        self.config = config
        self.file = place.open("a")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        print(json.dumps(data), file=self.file, flush=True)


class Outside:
    """The pytest that was called: starts guests and takes the reports of their tests from them."""

    def __init__(self) -> None:
        self.guests: dict[str, Guest] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: kind_of(item) is not None)  # the guests work while the others run

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        for kind in dict.fromkeys(filter(None, map(kind_of, session.items))):
            self.guests[kind] = Guest(kind, [one for one in session.items if kind_of(one) == kind])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        kind = kind_of(item)
        if kind is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.guests[kind].reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        for guest in self.guests.values():
            guest.end()


def end_with_parent() -> None:
    """Let this process be terminated when the one that started it is gone, killed perhaps."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Guest:
    """One guest with a pytest that runs these tests."""

    def __init__(self, kind: str, items: list[pytest.Item]) -> None:
        self.stack = contextlib.ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))
        (folder / "tests").write_text("".join(f"{item.nodeid}\n" for item in items))
        (folder / "reports").touch()
        self.log = folder / "log"
        self.lines = self.stack.enter_context((folder / "reports").open())
        self.done: dict[str, list[pytest.TestReport]] = defaultdict(list)
        passed = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(PASSED)]
        options = ["--share", str(folder), "--limit", str(LIMIT_S)]
        self.process = subprocess.Popen(
            [LAB / f"uml-{kind}", *(options if kind == "run" else ()), "env", f"{REPORTS}={folder / 'reports'}",
             *passed, sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider",
             "-o", f"faulthandler_timeout={LIMIT_S // 2}", f"@{folder / 'tests'}"],
            cwd=items[0].config.rootpath, stdin=subprocess.DEVNULL, stdout=self.stack.enter_context(self.log.open("w")),
            stderr=subprocess.STDOUT, env={**os.environ, "UML_RUN": " ".join(options)}, preexec_fn=end_with_parent,
        )  # fmt: skip

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The reports of one test, when it has run; or one that says why it has not."""
        reports = self.done[item.nodeid]
        while not reports or reports[-1].when != "teardown":
            ended = self.process.poll() is not None
            if not self.read(item) and ended:
                told = "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
                text = f"The guest ended ({self.process.returncode}) before this test:\n{told}"
                reports = [pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")]
                break
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
        for data in news:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            self.done[report.nodeid].append(report)
        return bool(news)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.stack.close()
