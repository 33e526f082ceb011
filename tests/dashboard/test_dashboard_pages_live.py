"""The pages in a real browser, against a live tree: every screen, wide and narrow, light and dark, and what people do.

Pictures of all screens are kept in build/screenshots, to be looked at.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from browser import Browser, Tab
from live import EVIL, PASSWORDS, Site

FOLDER = Path(__file__).parent
PICTURES = FOLDER.parents[1] / "build/screenshots"
WIDE, NARROW = (1400, 900), (360, 780)
AXE = FOLDER / "node_modules/axe-core/axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, which is installed once for a checkout."""
    if not AXE.exists():
        argv = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(argv, cwd=FOLDER, check=True, capture_output=True)
    return AXE.read_text()


def sign_in(tab: Tab, site: Site, name: str, path: str = "/") -> None:
    """Open a page, and sign in on the way."""
    tab.go(site.url + path)
    tab.wait("the sign-in page", "location.pathname === '/sign-in'")
    for field, value in (("name", name), ("password", PASSWORDS[name][0])):
        tab.js(f"document.querySelector('[name={field}]').focus()")
        tab.type(value)
    tab.press("Enter")
    tab.wait("the dashboard", f"location.pathname === {json.dumps(path.partition('?')[0])}")
    tab.shows("live")


@contextmanager
def signed_in(browser: Browser, site: Site, name: str = "alice", path: str = "/", dark: bool = False) -> Iterator[Tab]:
    """A page of somebody; in the end it must have had no error, and run nothing that came from outside."""
    with browser.tab(*WIDE, dark) as tab:
        sign_in(tab, site, name, path)
        yield tab
        assert tab.errors == []
        assert tab.js("window.pwned === undefined && !document.querySelector('img')")
        assert not [url for url in tab.fetched if not url.startswith((site.url, "data:"))]


def short(site: Site, node: str, name: str) -> str:
    """The address of a container's page."""
    return next(f"/container/{node}/{one.id[:12]}" for one in site.nodes[node].containers.values() if one.name == name)


def row(words: str) -> str:
    """JavaScript for the row that has these words."""
    return f"[...document.querySelectorAll('.body .row')].find((one) => one.innerText.includes({json.dumps(words)}))"


def broken_rules(tab: Tab) -> list[str]:
    """What axe finds on the page as it is now."""
    report = "(one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(' | ')}`"
    run = f"axe.run(document, {{runOnly: {json.dumps(RULES)}}}).then((found) => found.violations.map({report}))"
    return list(tab.js(run))


SCREENS = {
    "tree": ("/", "web3"), "containers": ("/containers", "redis-1"), "node": ("/node/web2", "Figures"),
    "container": ("", "GET /cart"), "balancers": ("/balancers", "shop-1"), "events": ("/events", "Listen to more"),
    "bus": ("/bus", "root → web1"), "commands": ("/commands", "alice by"), "alerts": ("/alerts", "far-away"),
}  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_screen(site: Site, browser: Browser, axe: str, dark: bool) -> None:
    """Every screen is there wide and narrow, without an error, for everybody, and nothing is to scroll sideways."""
    faults: dict[str, object] = {}
    with signed_in(browser, site, dark=dark) as tab:
        for name, (path, words) in SCREENS.items():
            tab.look(*WIDE, dark)
            tab.go(site.url + (path or short(site, "web2", EVIL)))
            tab.shows(words)
            tab.js(axe)
            for width, height in (WIDE, NARROW):
                tab.look(width, height, dark)
                tab.screenshot(PICTURES / f"{name}-{width}-{'dark' if dark else 'light'}.png")
                place = f"{name} at {width}"
                if found := broken_rules(tab):
                    faults[place] = found
                if (wide := tab.js("document.documentElement.scrollWidth")) > width:
                    faults[f"{place}: width"] = wide
    assert faults == {}, json.dumps(faults, indent=1)


def test_sign_in(site: Site, browser: Browser, axe: str) -> None:
    """A wrong password is told, a right one leads to the page that was asked for, and who signs out is out."""
    with browser.tab(*WIDE) as tab:
        tab.go(site.url + "/containers?q=redis")
        tab.wait("the sign-in page", "location.pathname === '/sign-in'")
        tab.js(axe)
        assert broken_rules(tab) == []
        for dark in (False, True):
            for width, height in (WIDE, NARROW):
                tab.look(width, height, dark)
                tab.screenshot(PICTURES / f"sign-in-{width}-{'dark' if dark else 'light'}.png")
        for password in ("wrong", PASSWORDS["alice"][0]):
            tab.js("document.querySelector('[name=name]').value = 'alice'")
            tab.js("document.querySelector('[name=password]').focus()")
            tab.type(password)
            tab.press("Enter")
            if password == "wrong":
                tab.shows("Wrong name or password")
        tab.wait("the list with its filter", "document.querySelector('[type=search]')?.value === 'redis'")
        tab.wait("seven fit", "document.querySelector('.bar .total').innerText === '7'")
        tab.click(".me button")
        tab.wait("the sign-in page", "location.pathname === '/sign-in'")


def test_an_event_on_a_leaf_is_seen(site: Site, browser: Browser) -> None:
    """What happens on a leaf shows in the tree and among the problems, and goes when it is over."""
    place = site.nodes["far"]
    one = next(one for one in place.containers.values() if one.name == "queue-1")
    with signed_in(browser, site) as tab:
        tab.wait("the leaf", f"!!{row('far')}")
        site.do(place.change(one, "unhealthy", health="unhealthy"))
        tab.wait("the tree says so", f"{row('far')}?.innerText.includes('1 unhealthy')")
        tab.shows("queue-1 on far is unhealthy")
        site.do(place.change(one, "healthy", health=""))
        tab.wait("it is over", f"!{row('far')}.innerText.includes('unhealthy')")


def test_keyboard_and_search(site: Site, browser: Browser) -> None:
    """Everything can be reached without a mouse: search, rows, screens, folding."""
    with signed_in(browser, site) as tab:
        tab.wait("rows", "document.querySelectorAll('.tree .body .row').length === 7")
        tab.press("j", "j")
        tab.wait("the mark", "document.querySelector('.row.current')?.dataset.key === 'web1'")
        tab.press("h")
        tab.wait("it is folded", "document.querySelectorAll('.tree .body .row').length === 5")
        tab.press("l", "Enter")
        tab.wait("the node", "location.pathname === '/node/web1'")
        tab.shows("Docker 27.5.1")
        tab.press("g", "c")
        tab.wait("the list", "location.pathname === '/containers'")
        tab.press("/")
        tab.wait("the field", "document.activeElement.id === 'search'")
        tab.type("state:unhealthy")
        tab.wait("one hit", "document.querySelectorAll('.hit').length === 1")
        tab.screenshot(PICTURES / "search-1400-light.png")
        tab.press("Enter")
        tab.wait("the container", f"location.pathname === {json.dumps(short(site, 'web2', 'api-1'))}")
        tab.js("history.back()")
        tab.wait("back", "location.pathname === '/containers'")
        tab.wait("its rows", "document.querySelectorAll('.body .row').length > 20")


def test_a_list_has_only_what_is_in_sight(site: Site, browser: Browser) -> None:
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

    async def remove() -> None:
        for one in [one for one in place.containers.values() if one.name.startswith("job-")]:
            await place.change(one, "destroyed")

    site.do(remove())


def test_drain_and_undrain(site: Site, browser: Browser) -> None:
    """Draining asks with the name of the server, is done for the person, shows at once, and can be taken back."""
    with signed_in(browser, site, path="/balancers") as tab:
        tab.wait("a button", "!!document.querySelector('[data-act=drain]')")
        tab.click("[data-act=drain]")
        tab.shows("Drain shop-1 (10.20.1.2:8080) on web?")
        tab.screenshot(PICTURES / "drain-1400-light.png")
        assert site.balancer.asked == []
        tab.click(".dialog .primary")
        tab.shows("alice drained it")
        assert site.balancer.asked == [("drain", {"servers": ["10.20.1.2:8080"], "balancers": ["web"]})]
        assert site.balancer.persons == ["alice"]
        tab.click(".dialog .ends .btn")
        tab.wait("the dialog is gone", "!document.querySelector('.dialog')")
        tab.click("[data-act=undrain]")
        tab.click(".dialog .primary")
        tab.wait("it takes part again", f"{row('10.20.1.2')}.innerText.includes('active')")
        tab.click(".dialog .ends .btn")
        tab.wait("the dialog is gone", "!document.querySelector('.dialog')")
        tab.click(".title .btn")
        tab.shows("It goes to one of three servers")
        tab.shows(f"vs.conntrack is 0 {EVIL}")
        tab.screenshot(PICTURES / "why-1400-light.png")


def test_the_log_flows_while_it_is_looked_at(site: Site, browser: Browser) -> None:
    """Lines show as they are written, the filter hides others, and the log ends with the page."""
    place = site.nodes["web3"]
    with signed_in(browser, site, path=short(site, "web3", "api-1")) as tab:
        tab.shows("GET /cart/39")
        site.do(place.write(f"fresh {EVIL}\n".encode()))
        tab.shows(f"fresh {EVIL}")
        tab.js("document.querySelector('.log input').focus()")
        tab.type("fresh")
        tab.wait("others are hidden", "document.querySelectorAll('.lines div:not([hidden])').length === 1")
        tab.press("Escape")
        tab.press("g", "t")
        tab.wait("the tree", "location.pathname === '/'")
        site.until("nobody follows the log", lambda: not place.followed)


def test_stop_and_start(site: Site, browser: Browser) -> None:
    """A container is stopped and started after a question with its name, and the page follows what it is."""
    with signed_in(browser, site, path=short(site, "edge", "cron-1")) as tab:
        visible = "[...document.querySelectorAll('.actions .btn')].filter((one) => one.checkVisibility())"
        for verb, after in (("Stop", "Start"), ("Start", "Restart,Stop")):
            tab.wait(verb, f"{visible}.map((one) => one.innerText).join().includes('{verb}')")
            tab.js(f"{visible}.find((one) => one.innerText === '{verb}').click()")
            tab.shows(f"{verb} cron-1 on edge?")
            tab.click(".dialog .ends .btn:last-child")
            tab.wait(after, f"{visible}.map((one) => one.innerText).join() === '{after}'")
            tab.wait("it is done", "document.querySelectorAll('.dialog .ends .btn:not(.hidden)').length === 1")
            tab.click(".dialog .ends .btn")
            tab.wait("the dialog is gone", "!document.querySelector('.dialog')")
        tab.js("scrollTo(0, document.body.scrollHeight)")
        tab.shows("died")


def test_run_a_program(site: Site, browser: Browser) -> None:
    """A program runs after a question that names it and the nodes; who wrote the same is shown together."""
    with signed_in(browser, site, path="/commands") as tab:
        for field, words in (("target", "*"), ("command", f"echo '{EVIL}'")):
            tab.js(f"document.querySelector('[name={field}]').focus()")
            tab.type(words)
        tab.press("Enter")
        tab.shows("on 7 nodes?")
        tab.click(".dialog .primary")
        tab.shows("edge,far,root,web[1-3] (6)")
        tab.shows("7 of 7 nodes have ended.")
        tab.click(".dialog .ends .btn")
        assert tab.js("document.querySelector('.lines').innerText").count(EVIL) == 2
        assert tab.js("document.querySelector('[name=target]').value") == "*"
        tab.wait("the question is gone", "!document.querySelector('.dialog')")  # it gives the focus back when it goes
        tab.js("document.querySelector('[name=target]').focus()")
        tab.type("x")
        tab.press("Enter")
        tab.wait("the mistake is told", "document.querySelector('.said.bad')?.innerText.includes('*x')")


def test_events_are_read_paused_and_loaded(site: Site, browser: Browser) -> None:
    """The feed shows what happens, waits while it is paused, opens to the whole event, and can be taken away."""
    place = site.nodes["db1"]
    with signed_in(browser, site, path="/events?topic=shop.*") as tab:
        tab.shows("Listening to shop.*")
        site.do(place.worker.publish("container.changed", {"container": {"name": EVIL}}))
        tab.wait("it is there", f"!!{row(EVIL)}")
        tab.press("j", "Enter")
        tab.wait("all of it", f"document.querySelector('.dialog pre')?.innerText.includes({json.dumps('<img src=x')})")
        tab.click(".dialog .btn")
        tab.wait("the dialog is gone", "!document.querySelector('.dialog')")
        tab.click(".table .bar .btn:not(a)")
        tab.shows("Go on")
        site.do(place.worker.publish("container.changed", {"container": {"name": "later"}}))
        tab.shows("1 new")
        assert not tab.js(f"!!{row('later')}")
        tab.click(".table .bar .btn[aria-pressed=true]")
        tab.wait("it is shown now", f"!!{row('later')}")
        lines = tab.js("fetch('/events.jsonl').then((answer) => answer.text())").splitlines()
        assert any(json.loads(line)["body"] == {"container": {"name": "later"}} for line in lines)


def test_who_may_only_see(site: Site, browser: Browser) -> None:
    """The role view sees everything but logs, and each button says why it does nothing."""
    with signed_in(browser, site, "victor", "/balancers") as tab:
        tab.wait("a button", "!!document.querySelector('[data-act=drain]')")
        assert "may see, and not change anything" in tab.js("document.querySelector('[data-act=drain]').title")
        tab.click("[data-act=drain]")
        tab.go(site.url + short(site, "web1", "api-1"))
        tab.shows("takes the role operate")
        assert tab.js("[...document.querySelectorAll('.title .btn')].every((one) => one.ariaDisabled === 'true')")
        tab.click(".title .btn")
        tab.go(site.url + "/commands")
        tab.shows("Not possible")
        assert tab.js("document.querySelector('.dialog')") is None


def test_figures_flow_only_for_viewers(site: Site, browser: Browser) -> None:
    """Nodes tell figures while a page shows them, and no longer when it is closed."""
    with signed_in(browser, site) as tab:
        tab.wait("figures", f"{row('web1')}?.innerText.includes('%')")
        assert site.watched
        tab.press("g", "e")
        site.until("nobody wants figures of a page of events", lambda: not site.watched)
        tab.press("g", "t")
        site.until("they flow again", lambda: site.watched)
    site.until("nobody wants figures", lambda: not site.watched)


def test_a_lost_node(site: Site, browser: Browser) -> None:
    """A lost node is grey, says when it was last seen, keeps its figures, and comes back."""
    with signed_in(browser, site) as tab:
        tab.wait("its figures", f"{row('far')}?.innerText.includes('%')")
        site.tree.kill("far")
        tab.wait("it is grey", f"{row('far')}?.classList.contains('lost')")
        tab.wait("it says since when", f"{row('far')}.innerText.includes('last seen')")
        assert "%" in tab.js(f"{row('far')}.innerText")
        tab.shows("far is lost")
        tab.screenshot(PICTURES / "lost-1400-light.png")
        site.tree.start("far")
        tab.wait("it is back", f"!{row('far')}.classList.contains('lost')")


def test_a_session_that_ends_in_the_middle(site: Site, browser: Browser) -> None:
    """Who is not a user any more while a question is open does nothing, and has to sign in."""
    with browser.tab(*WIDE) as tab:
        sign_in(tab, site, "alice", "/balancers")
        tab.click("[data-act=drain]")
        tab.shows("Drain shop-1")
        asked = len(site.balancer.asked)
        site.dismiss("alice")
        try:
            tab.click(".dialog .primary")
            tab.wait("the sign-in page", "location.pathname === '/sign-in'")
            assert len(site.balancer.asked) == asked
        finally:
            site.admit("alice")


def test_a_lost_bus(site: Site, browser: Browser) -> None:
    """While the router here is away a banner says so and figures are dimmed; then all goes on by itself."""
    with signed_in(browser, site) as tab:
        tab.wait("the tree", "document.querySelectorAll('.tree .body .row').length === 7")
        site.tree.kill("root")
        tab.shows("The bus has been away for")
        assert tab.js("document.body.classList.contains('stale')")
        tab.screenshot(PICTURES / "bus-lost-1400-light.png")
        site.tree.start("root")
        tab.wait("it is back", "!document.querySelector('.banner') && !document.body.classList.contains('stale')")


def test_nothing_was_wrong_in_the_dashboard(site: Site) -> None:
    """In all this the dashboard itself met no error."""
    assert "Traceback" not in site.log()
