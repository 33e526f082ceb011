"""The pages in a real browser, with what no engine would say: names that are markup, and hundreds of containers.

What people do with them, and how they look, is tested with the real thing in test_dashboard_pages_real.py.
"""

import json
from collections.abc import Iterator

import msgspec
import pytest
from browser import Browser
from live import EVIL, Hostile
from visit import row, signed_in, tour


@pytest.fixture(scope="module")
def site() -> Iterator[Hostile]:
    with Hostile() as live:
        yield live


@pytest.fixture(scope="module")
def evil(site: Hostile) -> str:
    """The address of the container whose name, image, labels, command and log are markup."""
    return next(f"/container/web2/{one.id[:12]}" for one in site.nodes["web2"].containers.values() if one.name == EVIL)


def test_hostile_words_on_every_screen(site: Hostile, browser: Browser, axe: str, evil: str) -> None:
    """Whatever things are called, they are text: nothing runs, nothing is loaded, and no page gets too wide."""
    screens = {
        "containers": ("/containers", EVIL), "node": ("/node/web2", EVIL), "container": (evil, f"{EVIL} in a log"),
        "balancers": ("/balancers", f"it publishes no port {EVIL}"), "bus": ("/bus", "root → web1"),
        "commands": ("/commands", EVIL), "tree": ("/", f"vs.conntrack is 0 {EVIL}"),
    }  # fmt: skip
    with signed_in(browser, site) as tab:
        faults = tour(tab, site, axe, screens, pictures=False)
        tab.type("img", "#search")
        tab.wait("it is found", "[...document.querySelectorAll('.hit')].some((one) => one.innerText.includes('<img'))")
    assert faults == {}, json.dumps(faults, indent=1)


def test_a_list_has_only_what_is_in_sight(site: Hostile, browser: Browser) -> None:
    """However many containers there are, the page has the rows that can be seen; sorting and filters know all."""
    place = site.nodes["edge"]
    template = next(iter(place.containers.values()))

    async def add() -> None:
        for number in range(300):
            name, short_id = f"job-{number:03}", f"{number:012}".ljust(64, "0")
            one = msgspec.structs.replace(template, id=short_id, name=name, health="")
            await place.change(one, "started")

    site.do(add())
    with signed_in(browser, site, path="/containers?q=job-") as tab:
        tab.wait("all are known", "document.querySelector('.bar .total').innerText === '300'")
        assert tab.js("document.querySelectorAll('.body .row').length") < 50
        tab.js("scrollTo(0, document.body.scrollHeight)")
        tab.wait("the last", f"!!{row('job-299')}")
        assert tab.js("document.querySelectorAll('.body .row').length") < 50
        tab.js("scrollTo(0, 0)")
        tab.click("[role=columnheader]:first-child button")
        tab.wait("its address says so", "location.search.includes('sort=name')")
        tab.click("[role=columnheader]:first-child button")
        tab.wait("the last is first", "document.querySelector('.body .row').innerText.includes('job-299')")


def test_nothing_was_wrong_in_the_dashboard(site: Hostile) -> None:
    """In all this the dashboard itself met no error."""
    assert "Traceback" not in site.log()
