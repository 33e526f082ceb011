"""What open pages cost: the tree of bench.dashboard, the service itself, and five of its screens in Debian's Chromium.

The service is charged by the kernel, pages by the CPU time of the tasks on their main threads: what a task takes by
the clock on a machine that others use says nothing of the page. A task is what holds up a frame. The bytes are those
of the root's links to its children, as their sockets count them.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import tsbus
from bench.dashboard import NODES, PATIENCE_S, WARM_UP_S, WINDOW_S
from bench.harness import ROOT, BenchError, Fleet, Process, cpu_s, free_ports, memory_mib, output
from bench.ours import configure
from bench.ours_crowd import ten_by_ten
from tests.dashboard.browser import Browser, Tab
from tsbus.config import Dashboard

SCREENS = {"tree": "/", "containers": "/containers?sort=-cpu", "node": "/node/n2", "bus": "/bus", "events": "/events"}
THERE = {"bus": "document.querySelectorAll('.body .row').length > 10", "events": "!!document.querySelector('.feed')"}
FIGURES = "document.querySelectorAll('.body .row').length > 10 && /[MG]iB/.test(document.body.innerText)"
STILL = 10_000  # bytes per second on the root's links: signs of life alone are less
TASK, MARKS = "RunTask", "blink.user_timing"
WORK_MS = 1.0  # shorter tasks are the browser's own
_BYTES = re.compile(r"bytes_(sent|received):(\d+)")


class OursDashboardPages:
    """A dashboard at the root with five pages open, and when they are closed."""

    name = "ours"

    def version(self) -> str:
        return f"treescale {tsbus.__version__}, nicegui {version('nicegui')}, {output('chromium', '--version')}"

    def measure(self) -> dict[str, float]:
        with Fleet() as fleet:
            (port,) = free_ports(1)
            settings = Dashboard(port=port)
            tree = ten_by_ten(NODES)
            config = configure(fleet, tree, more=lambda config: replace(config, dashboard=settings))
            nursery = fleet.python("node nursery", "bench.nursery", config, str(fleet.folder))
            root = nursery.must_hear(PATIENCE_S)["n1"][0]
            buses = [str(fleet.folder / f"n{number}" / "bus") for number in range(1, NODES + 1)]
            fleet.python("monitors", "bench.dashboard", "monitors", *buses).must_hear(PATIENCE_S)
            script = ROOT / "services" / "ts_dashboard.py"
            argv = ["--config", config, "--node", "n1", "--bus", buses[0]]
            service = fleet.python_file("dashboard", script, *argv)
            with Browser() as browser, ExitStack() as open_tabs:
                tabs = {name: open_tabs.enter_context(browser.tab()) for name in SCREENS}
                for name, tab in tabs.items():
                    _visit(tab, settings.url.rstrip("/") + SCREENS[name], THERE.get(name, FIGURES))
                time.sleep(WARM_UP_S)
                with tabs["tree"].traced("disabled-by-default-devtools.timeline", MARKS) as trace:
                    for name, tab in tabs.items():
                        tab.js(f"performance.mark('page {name}') && 0")
                    figures = _cost(service, root, "")
                figures |= _tasks(trace)
            figures["flow ends s"] = _until_still(root)
            return figures | _cost(service, root, "closed ")


def _visit(tab: Tab, url: str, there: str) -> None:
    """Open a page as soon as the service answers, and wait until it shows figures."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            tab.go(url)
            break
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    tab.wait(url, there, PATIENCE_S)


def _cost(service: Process, root: int, when: str) -> dict[str, float]:
    """What the service takes, and what the root's links carry, over a window."""
    service.check()
    before, links, begin = cpu_s(service.pid), _link_bytes(root), time.monotonic()
    time.sleep(WINDOW_S)
    used, after, seconds = cpu_s(service.pid) - before, _link_bytes(root), time.monotonic() - begin
    return {
        f"{when}core %": used / seconds * 100,
        f"{when}MiB": memory_mib(service.pid, "Rss"),
        f"{when}root in kB/s": (after["received"] - links["received"]) / seconds / 1000,
        f"{when}root out kB/s": (after["sent"] - links["sent"]) / seconds / 1000,
    }


def _until_still(root: int) -> float:
    """How long figures flow on: it tells how long after the pages were closed nothing but signs of life came."""
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE_S:
        before = _link_bytes(root)["received"]
        time.sleep(1.0)
        if _link_bytes(root)["received"] - before < STILL:
            return time.monotonic() - begin - 1.0
    raise BenchError(f"figures flow {PATIENCE_S:.0f} s after the last page was closed")


def _link_bytes(router: int) -> dict[str, int]:
    """What the connections of a router have carried since they are there."""
    sums = {"sent": 0, "received": 0}
    for line in output("ss", "-tinpHO").splitlines():
        if f"pid={router}," in line:
            for way, count in _BYTES.findall(line):
                sums[way] += int(count)
    return sums


def _tasks(trace: list[dict[str, Any]]) -> dict[str, float]:
    """For each page: CPU of its main thread, and of the tasks with work in them the 99th of 100 and the longest."""
    pages = {
        (each["pid"], each["tid"]): each["name"].partition(" ")[2]
        for each in trace if each["cat"] == MARKS and each["name"].startswith("page ")
    }  # fmt: skip
    took: dict[str, list[float]] = {name: [] for name in pages.values()}
    for each in trace:
        name = pages.get((each["pid"], each["tid"]))
        if name is not None and each["name"] == TASK and "tdur" in each:
            took[name].append(each["tdur"] / 1000)
    figures = {}
    for name, all_ms in took.items():
        work = sorted(ms for ms in all_ms if ms >= WORK_MS) or [0.0]
        figures[f"{name} core %"] = sum(all_ms) / WINDOW_S / 10
        figures[f"{name} p99 ms"] = work[len(work) * 99 // 100]
        figures[f"{name} worst ms"] = work[-1]
    return figures
