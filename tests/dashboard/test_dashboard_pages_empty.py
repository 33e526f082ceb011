"""The pages in a real browser, where there is nothing to see yet: each says what to run."""

import json
from collections.abc import Iterator

import pytest
from browser import Browser
from live import Alone
from visit import WIDE, tour


@pytest.fixture(scope="module")
def site() -> Iterator[Alone]:
    with Alone() as alone:
        yield alone


def test_every_screen_without_anything_on_it(site: Alone, browser: Browser, axe: str) -> None:
    """A tree of one node says what to run for more nodes, containers, a balancer, and to let people sign in."""
    screens = {
        "empty-tree": ("/", "treescale build"), "empty-containers": ("/containers", "treescale container run"),
        "empty-balancers": ("/balancers", "[servers.node1.balancers.web]"),
        "empty-commands": ("/commands", "No executor"), "gone": ("/node/nobody", "There is no node nobody"),
    }  # fmt: skip
    with browser.tab(*WIDE) as tab:
        faults = tour(tab, site, axe, screens)
        assert faults == {}, json.dumps(faults, indent=1)
        tab.click(".me a")
        tab.shows("Nobody has to sign in here")
        assert tab.errors == []
