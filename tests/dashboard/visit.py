"""Visits: what tests do with the pages, in the words of the product, and what every page owes its visitors."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from browser import Browser, Tab
from live import PASSWORDS, Site

PICTURES = Path(__file__).parents[2] / "build/screenshots"
WIDE, NARROW = (1400, 900), (360, 780)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
_FOLLOW = """((path) => {
  const screen = document.querySelector(".screen");
  const here = location.pathname + location.search === path;
  if (screen && !here && window.followed !== path) {
    window.followed = path;
    screen.dataset.before = true;
    const link = Object.assign(document.createElement("a"), {href: path});
    document.body.append(link);
    link.click();
    link.remove();
  }
  return screen && here && !screen.dataset.before;
})(%s)"""
"""Clicks on a link, once in each document; true when its screen is there."""


def sign_in(tab: Tab, site: Site, name: str = "alice", path: str = "/") -> None:
    """Open a page, and sign in on the way unless this browser is signed in."""
    tab.go(site.url + path)
    tab.wait("a page", "location.pathname === '/sign-in' || document.body.innerText.includes('live')")
    if tab.js("location.pathname") == "/sign-in":
        tab.type(name, "[name=name]")
        tab.type(PASSWORDS[name][0], "[name=password]")
        tab.press("Enter")
    tab.wait("the dashboard", f"location.pathname === {json.dumps(path.partition('?')[0])}")
    tab.shows("live")


@contextmanager
def signed_in(browser: Browser, site: Site, name: str = "alice", path: str = "/", dark: bool = False) -> Iterator[Tab]:
    """A page of somebody, who signs in once; in the end it must have had no error, and run nothing from outside."""
    with browser.tab(*WIDE, dark, known=name) as tab:
        sign_in(tab, site, name, path)
        yield tab
        assert not tab.errors, tab.errors
        assert tab.js("window.pwned === undefined && !document.querySelector('img')")
        assert not [url for url in tab.fetched if not url.startswith((site.url, "data:"))]


def row(words: str) -> str:
    """JavaScript for the row that has these words."""
    return f"[...document.querySelectorAll('.body .row')].find((one) => one.innerText.includes({json.dumps(words)}))"


def says(words: str, more: str) -> str:
    """JavaScript: whether the row that has `words` also says `more`."""
    return f"!!{row(words)}?.innerText.includes({json.dumps(more)})"


def agree(tab: Tab) -> str:
    """Say yes in the dialog that is open; returns what came of it, when it is closed again."""
    tab.click(".dialog .ends .btn:last-child")
    done = "document.querySelectorAll('.dialog .ends .btn:not(.hidden)').length === 1"
    tab.wait("it is done", f"{done} || !!document.querySelector('.dialog .said.bad')")
    said = str(tab.js("document.querySelector('.dialog .said').innerText"))
    tab.click(".dialog .ends .btn")
    tab.wait("the dialog is gone", "!document.querySelector('.dialog')")
    return said


def broken_rules(tab: Tab, axe: str) -> list[str]:
    """What axe finds on the page as it is now; a page that loads itself anew meanwhile is asked again."""
    report = "(one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(' | ')}`"
    options = json.dumps({"runOnly": RULES, "resultTypes": ["violations"]})
    run = f"axe.run(document, {options}).then((found) => [found.violations.map({report})])"
    return list(tab.wait("what axe finds", f"if (!window.axe) {{ {axe} }}\n;{run}")[0])


def keep(tab: Tab, name: str) -> None:
    """Keep pictures of the page as it is, wide and narrow."""
    for width, height in (NARROW, WIDE):
        tab.look(width, height)
        tab.screenshot(PICTURES / f"{name}-{width}-light.png")


def look(tab: Tab, axe: str, name: str, dark: bool = False, *, pictures: bool = True) -> dict[str, object]:
    """Return what is wrong with this page, wide and narrow; `pictures` of it are kept."""
    faults: dict[str, object] = {}
    for width, height in (NARROW, WIDE):
        tab.look(width, height, dark)
        place = f"{name}-{width}-{'dark' if dark else 'light'}"
        # Lists take their other form in the frame after the size has changed.
        with suppress(AssertionError):
            tab.wait("it is no wider", f"document.documentElement.scrollWidth <= {width}")
        if (wide := tab.js("document.documentElement.scrollWidth")) > width:
            faults[f"{place}: width"] = wide
        if pictures:
            tab.screenshot(PICTURES / f"{place}.png")
        # Colours do not depend on the width, nor the rest on colours: light is examined wide, dark narrow.
        if dark == (width == NARROW[0]) and (found := broken_rules(tab, axe)):
            faults[place] = found
    return faults


def follow(tab: Tab, path: str) -> None:
    """Go to another screen as by a link, which loads nothing anew; wait until the screen before it is gone.

    A page that was cut off from its server for long loads itself anew, where it was: it is told again.
    """
    tab.wait(path, _FOLLOW % json.dumps(path))


def tour(tab: Tab, site: Site, axe: str, screens: Mapping[str, tuple[str, str]], dark: bool = False, *,
         pictures: bool = True) -> dict[str, object]:  # fmt: skip
    """Look at each of `screens`, name -> address and words that come last; returns what is wrong with them."""
    faults: dict[str, object] = {}
    for number, (name, (path, words)) in enumerate(screens.items()):
        if number:
            follow(tab, path)
        else:
            tab.go(site.url + path)
        tab.shows(words)
        faults |= look(tab, axe, name, dark, pictures=pictures)
    return faults
