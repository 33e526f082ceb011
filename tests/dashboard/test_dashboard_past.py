"""What is older than an hour, in a real browser: graphs from the history file, and the audit logs of the nodes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from served import PASSWORD, URL, Served
from visit import says

from tsbus.audit import Entry
from tsbus.dashboard.historyfile import HistoryFile
from tsbus.dashboard.web.pages.commands import audit

CHOICE = "([...document.querySelectorAll('.seg button')].find((one) => one.innerText === %r))"
SHOWN = "[...document.querySelectorAll('.graph .last')].map((one) => one.innerText).join()"
"""What the graphs show last: elsewhere on the page any figures may be."""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as living:
        yield living


def test_an_entry_tells_who_did_what():
    """The row of an entry has the person behind the dashboard, what was done, and why it failed."""
    ran = Entry(
        time_ms=7,
        command="exec.run",
        what="df -h",
        who="uid:7",
        person="alice",
        outcome="failed",
        why="exit 3",
        took_ms=40,
    )
    stopped = Entry(time_ms=8, command="containers.stop", what="web", who="uid:0", origin="root", outcome="open")
    first, second = audit("a", [ran, stopped], 5)
    assert (first.key, first.cells) == ("a 5", ("df -h", ("warn", "failed"), "a", "alice by uid:7", "exit 3", 40, 7))
    assert second.cells[:4] == ("containers.stop web", ("busy", "no end yet"), "a", "uid:0 at root")


def test_days_are_shown_from_the_file_and_the_audit_log_is_listed(served: Served, browser: Browser) -> None:
    """A day and a week can be chosen where there is a history file, and what was run is in the list with its person."""
    file = HistoryFile(served.tree.folder / "history.db", 7, 1 << 20)
    now = time.time_ns() // 60_000_000_000
    for ago in (300, 299, 298):
        file.put(now - ago, [(("b", ""), (61.0, 40.0, 7e6, 1.0), (93.0, 50.0, 8e6, 2.0))])
    with browser.tab() as tab:
        tab.go(f"{URL}/node/b")
        tab.wait("the sign-in page", "location.pathname === '/sign-in'")
        for field, value in (("name", "alice"), ("password", PASSWORD)):
            tab.js(f"document.querySelector('[name={field}]').focus()")
            tab.type(value)
        tab.press("Enter")
        tab.shows("Figures")
        for words in ("24 h", "7 d"):
            tab.wait(words, f"!!({CHOICE % words})")
            tab.js(f"{CHOICE % words}.click()")
            tab.wait("it is chosen", f"{CHOICE % words}.ariaPressed === 'true'")
            tab.wait("what was hours ago", f"{SHOWN}.includes('61 %')")
            tab.screenshot(Path(__file__).parents[2] / f"build/screenshots/past-{words.replace(' ', '')}.png")
            tab.js(f"{CHOICE % '15 min'}.click()")
            tab.wait("it is not of now", f"!{SHOWN}.includes('61 %')")
        assert (
            served.post("/api/v1/request", {"target": "c", "command": "exec.run", "body": {"argv": ["false"]}}).status
            == 200
        )
        tab.go(f"{URL}/commands")
        tab.shows("token:operate by uid:")
        tab.wait("it failed", says("token:operate", "failed"))
        tab.wait("it is listed once", "document.querySelectorAll('.body .row').length === 1")
        tab.screenshot(Path(__file__).parents[2] / "build/screenshots/past-audit.png")
        assert tab.errors == []
