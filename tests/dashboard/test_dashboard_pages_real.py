"""The pages in a real browser, against seven nodes with real engines, containers, executors and a balancer in a kernel.

What is clicked must have happened: the engine itself, the kernel's table and the audit log of the node are asked.
Pictures of all screens are kept in build/screenshots, to be looked at.
"""

import json
from collections.abc import Iterator

import pytest
from browser import Browser
from dockerd import Dockerd
from live import EVIL
from real import Real
from visit import PICTURES, WIDE, agree, follow, keep, look, row, says, sign_in, signed_in, tour
from waiting import wait

PROGRAM = "sh -c 'if grep -q db1.toml /proc/$PPID/cmdline; then echo other >&2; exit 1; fi; echo \"<img src=x>\"'"
"""It says the same on all nodes but one: they are on one machine, and what has started it knows which it is."""


@pytest.fixture(scope="module")
def site(dockerd: Dockerd) -> Iterator[Real]:
    with Real(dockerd) as real:
        yield real


def screens(site: Real) -> dict[str, tuple[str, str]]:
    """Every screen: its address, and words that are there when the real thing has told what belongs on it."""
    return {
        "tree": ("/", " %"), "containers": ("/containers", "ledger"), "node": ("/node/web1", "root → web1"),
        "container": (site.path("ticker"), "tick "), "balancers": ("/balancers", "/s"),
        "events": ("/events", "container.started"), "bus": ("/bus", "edge → far"),
        "commands": ("/commands", "What ran last"), "alerts": ("/alerts", "far-away"),
    }  # fmt: skip


# Finding one's way.


def test_sign_in(site: Real, browser: Browser, axe: str) -> None:
    """A wrong password is told, a right one leads to the deep link that was asked for, and who signs out is out."""
    with browser.tab(*WIDE) as tab:
        tab.go(site.url + "/containers?q=shop")
        tab.wait("the sign-in page", "location.pathname === '/sign-in'")
        assert [look(tab, axe, "sign-in", dark) for dark in (False, True)] == [{}, {}]
        for password in ("wrong", "correct horse"):
            tab.js("document.querySelector('[name=name]').value = 'alice'")
            tab.type(password, "[name=password]")
            tab.press("Enter")
            if password == "wrong":
                tab.shows("Wrong name or password")
                keep(tab, "sign-in-wrong")
        tab.wait("the list with its filter", "document.querySelector('[type=search]')?.value === 'shop'")
        tab.wait("the three of the shop", "document.querySelector('.bar .total').innerText === '3'")
        tab.click(".me button")
        tab.wait("the sign-in page", "location.pathname === '/sign-in'")


def test_keyboard_and_search(site: Real, browser: Browser) -> None:
    """Everything can be reached without a mouse: search, rows, screens, folding."""
    with signed_in(browser, site) as tab:
        tab.wait("rows", "document.querySelectorAll('.tree .body .row').length === 7")
        tab.press("j", "j")
        tab.wait("the mark", "document.querySelector('.row.current')?.dataset.key === 'web1'")
        tab.press("h")
        tab.wait("it is folded", "document.querySelectorAll('.tree .body .row').length === 5")
        tab.press("l", "Enter")
        tab.wait("the node", "location.pathname === '/node/web1'")
        tab.shows("root → web1")
        tab.press("g", "c")
        tab.wait("the list", "location.pathname === '/containers'")
        tab.press("/")
        tab.wait("the field", "document.activeElement.id === 'search'")
        tab.type("tick")
        tab.wait("one hit", "document.querySelectorAll('.hit').length === 1")
        tab.screenshot(PICTURES / "search-1400-light.png")
        tab.press("Enter")
        tab.wait("the container", f"location.pathname === {json.dumps(site.path('ticker'))}")
        tab.js("history.back()")
        tab.wait("back", "location.pathname === '/containers'")
        tab.wait("its rows", "document.querySelectorAll('.body .row').length === 7")


# What flows while somebody looks.


def test_the_tree_tells_what_the_engines_tell(site: Real, browser: Browser) -> None:
    """A container that turns unwell on a leaf shows in the tree and among the problems, and goes when it is well."""
    with signed_in(browser, site) as tab:
        tab.wait("its figures", says("web3", "%"))
        list(site.engines["web3"].exec(site.ids["cache"], ["rm", "/tmp/ok"]))
        tab.wait("the tree says so", says("web3", "1 unhealthy"))
        tab.shows("cache on web3 is unhealthy")
        list(site.engines["web3"].exec(site.ids["cache"], ["touch", "/tmp/ok"]))
        tab.wait("it is over", f"!{says('web3', 'unhealthy')}")


def test_figures_flow_only_for_viewers(site: Real, browser: Browser) -> None:
    """Monitors measure while a page shows figures, and no longer when it is closed."""
    with signed_in(browser, site) as tab:
        tab.wait("figures", says("web3", "%"))
        wait("both of its containers are measured", lambda: site.measured("web3") == 2)
        tab.press("g", "e")
        wait("nobody wants figures of a page of events", lambda: site.measured("web3") == 0)
    wait("nobody looks", lambda: site.measured("db1") == 0)


def test_graphs_move_and_the_log_flows(site: Real, browser: Browser) -> None:
    """A container's graphs go on, its log grows, the filter hides lines, and the log ends with the page."""
    last = "[...document.querySelectorAll('.graph .last')].map((one) => one.innerText)"
    wait("no page of before follows it", lambda: site.streams("web2") == 0)
    with signed_in(browser, site, path=site.path("ticker")) as tab:
        tab.wait("all graphs have values", f"{last}.length === 4 && {last}.slice(0, 3).every(Boolean)")
        before = tab.js(f"{last}[0]")
        wait("its log is followed", lambda: site.streams("web2") == 1)
        count = "document.querySelectorAll('.lines div').length"
        lines = tab.js(count)
        tab.wait("lines come", f"{count} > {lines + 3}")
        tab.shows(EVIL)
        tab.type("img", ".log input")
        tab.wait("others are hidden", "!document.querySelector('.lines div:not([hidden])').innerText.includes('tick')")
        tab.wait("the CPU's moves", f"{last}[0] !== {json.dumps(before)}")
        tab.press("Escape", "g", "t")
        tab.wait("the tree", "location.pathname === '/'")
        wait("nobody follows the log", lambda: site.streams("web2") == 0)


def test_the_bus_is_as_it_is(site: Real, browser: Browser) -> None:
    """Each link and each worker is there once, with its round trip and what waits."""
    with signed_in(browser, site, path="/bus") as tab:
        tab.wait("six links", "document.querySelectorAll('[aria-label=Links] .body .row').length === 6")
        tab.wait("a round trip", says("edge → far", " ms"))
        for worker in ("dashboard", "lb", "exec", "containers"):
            tab.wait(worker, f"!!{row(worker)}")


def test_events_are_read_paused_and_loaded(site: Real, browser: Browser) -> None:
    """The feed shows what happens, waits while it is paused, opens to the whole event, and can be taken away."""
    with signed_in(browser, site, path="/events?topic=shop.*") as tab:
        tab.shows("Listening to shop.*")
        publisher = site.do(site.tree.connect("far", name="shop"))
        site.do(site.is_wanted("shop.sold", publisher))
        site.do(publisher.publish("shop.sold", {"name": EVIL}))
        tab.wait("it is there", f"!!{row(EVIL)}")
        tab.press("j", "Enter")
        tab.wait("all of it", f"document.querySelector('.dialog pre')?.innerText.includes({json.dumps('<img src=x')})")
        tab.click(".dialog .btn")
        tab.wait("the dialog is gone", "!document.querySelector('.dialog')")
        tab.click(".table .bar .btn", "Pause")
        tab.shows("Go on")
        site.engines["web3"].restart(site.ids["busy"])
        tab.shows(" new")
        assert not tab.js(says("container.died", "busy"))
        tab.click(".table .bar .btn", "Go on")
        tab.wait("it is shown now", says("container.died", "busy"))
        tab.type("topic:container.died", ".table input")
        tab.wait("the rest is hidden", f"!{row('shop.sold')}")
        tab.screenshot(PICTURES / "events-filtered-1400-light.png")
        lines = tab.js("fetch('/events.jsonl').then((answer) => answer.text())").splitlines()
        assert any(json.loads(line).get("body") == {"name": EVIL} for line in lines)


# What people do.


def test_run_a_program(site: Real, browser: Browser) -> None:
    """A program runs on real nodes after a question that names it; equal output is folded, and audit logs have who."""
    with signed_in(browser, site, path="/commands") as tab:
        tab.type("*", "[name=target]")
        tab.type(PROGRAM, "[name=command]")
        tab.press("Enter")
        tab.shows("on 7 nodes?")
        agree(tab)
        tab.shows("7 of 7 nodes have ended.")
        tab.shows("edge,far,root,web[1-3] (6)")
        assert tab.js("document.querySelector('.lines').innerText").count("<img src=x>") == 1
        tab.wait("who ran it", says("db1", "alice by"))
        tab.wait("the question is gone", "!document.querySelector('.dialog')")  # it gives the focus back when it goes
        tab.type("x", "[name=target]")
        tab.press("Enter")
        tab.wait("the mistake is told", "document.querySelector('.said.bad')?.innerText.includes('*x')")
    for node in site.tree.names:
        assert ("run", "alice") in site.audit(node), node


def test_restart(site: Real, browser: Browser) -> None:
    """A restart asks with the container's name, the engine has done it, and the node's audit log has who wanted it."""
    before = site.seen("ledger").started_ns
    with signed_in(browser, site, path=site.path("ledger")) as tab:
        tab.click(".actions .btn", "Restart")
        tab.shows("Restart ledger on db1?")
        assert site.seen("ledger").started_ns == before
        assert agree(tab) == "ledger is running"
        tab.js("scrollTo(0, document.body.scrollHeight)")
        tab.wait("the page says what happened", f"{says('died', 's')} && {says('started', 's')}")
    assert site.seen("ledger").started_ns > before
    assert ("restart", "alice") in site.audit("db1")


def test_stop_with_drain_and_start(site: Real, browser: Browser) -> None:
    """A balanced container is out of the table before it is stopped: no client sees an error; then it is back."""
    site.answers.clear()
    with signed_in(browser, site, path=site.path("shop-3")) as tab:
        tab.shows("shop on web1: active")
        wait("it is asked", lambda: site.answers["shop-3"])
        happened = site.do(site.tree.collect("web1", "*.*"))
        tab.click(".actions .btn", "Stop")
        tab.shows("Stop shop-3 on web1?")
        assert agree(tab) == "shop-3 is exited"
        assert site.seen("shop-3").state == "exited"
        wait("it is out of the table", lambda: len(site.weights()) == 2)
        tab.wait("it can only be started", "document.querySelector('.actions').innerText.trim() === 'Start'")
        wait("its end is told here as well", lambda: "container.died" in [event.topic for event in happened])
        topics = [event.topic for event in happened]
        assert topics.index("lb.draining") < topics.index("container.died")
        tab.click(".actions .btn", "Start")
        assert agree(tab) == "shop-3 is running"
        wait("it is balanced again", lambda: list(site.weights().values()) == [1, 1, 1])
    assert site.seen("shop-3").state == "running"
    assert site.answers[""] == 0
    assert {("stop", "alice"), ("start", "alice")} <= site.audit("web1")


def test_drain_and_undrain(site: Real, browser: Browser) -> None:
    """Draining asks with the server's name, changes the kernel's table for the person, and can be taken back."""
    with signed_in(browser, site, path="/balancers") as tab:
        tab.wait("rates", says("shop-1", "/s"))
        place = tab.js(f"{row('shop-1')}.querySelector('.note').innerText")
        assert site.weights()[place] == 1
        tab.js(f"{row('shop-1')}.querySelector('[data-act=drain]').click()")
        tab.shows(f"Drain shop-1 ({place}) on shop?")
        tab.screenshot(PICTURES / "drain-1400-light.png")
        assert site.weights()[place] == 1
        agree(tab)
        wait("the kernel gives it nothing more", lambda: not site.weights().get(place))
        tab.wait("the page says who did it", says("shop-1", "alice"))
        tab.js(f"{row('shop-1')}.querySelector('[data-act=undrain]').click()")
        agree(tab)
        tab.wait("it takes part again", says("shop-1", "active"))
        wait("the kernel gives it connections", lambda: site.weights().get(place) == 1)


def test_why(site: Real, browser: Browser) -> None:
    """The balancer is asked what happens to a connection, and says it with every step that it has looked at."""
    with signed_in(browser, site, path="/balancers") as tab:
        tab.click(".title .btn", "Why")
        tab.wait("its checks", "document.querySelectorAll('.dialog .check').length > 3")
        verdict = tab.js("document.querySelector('.dialog p').innerText")
        assert all(name in verdict for name in ("shop-1", "shop-2", "shop-3", "the client's own address"))
        tab.screenshot(PICTURES / "why-1400-light.png")


def test_who_may_only_see(site: Real, browser: Browser) -> None:
    """The role view sees everything but logs, and each button says why it does nothing."""
    with signed_in(browser, site, "victor", "/balancers") as tab:
        tab.wait("a button", "!!document.querySelector('[data-act=drain]')")
        assert "may see, and not change anything" in tab.js("document.querySelector('[data-act=drain]').title")
        tab.click("[data-act=drain]")
        tab.go(site.url + site.path("ticker"))
        tab.shows("takes the role operate")
        assert tab.js("[...document.querySelectorAll('.title .btn')].every((one) => one.ariaDisabled === 'true')")
        tab.click(".title .btn")
        tab.go(site.url + "/commands")
        tab.shows("Not possible")
        assert tab.js("document.querySelector('.dialog')") is None


def test_a_session_that_ends_in_the_middle(site: Real, browser: Browser) -> None:
    """Who is not a user any more while a question is open does nothing, and has to sign in."""
    with browser.tab(*WIDE) as tab:
        sign_in(tab, site, "alice", "/balancers")
        tab.click("[data-act=drain]")
        tab.shows("Drain shop-")
        site.dismiss("alice")
        try:
            tab.click(".dialog .primary")
            tab.wait("the sign-in page", "location.pathname === '/sign-in'")
            tab.shows("Your session has ended")
            keep(tab, "session-ended")
            assert list(site.weights().values()) == [1, 1, 1]
        finally:
            site.admit("alice")


# What is wrong somewhere.


def test_an_engine_that_is_down(site: Real, browser: Browser) -> None:
    """The node stays up, says that its engine is down, and its containers are as last known; then all is as before."""
    with signed_in(browser, site) as tab:
        tab.wait("its containers", says("db1", "1"))
        site.db.kill()
        try:
            tab.wait("the tree says so", says("db1", "no engine"))
            tab.shows("the Docker engine of db1 is down")
            assert tab.js(says("db1", "up"))
            keep(tab, "engine-down")
        finally:
            site.db.start()
        tab.wait("it is over", f"!{says('db1', 'no engine')}")
        site.engines["db1"].start(site.ids["ledger"])


def test_a_node_that_is_killed(site: Real, browser: Browser) -> None:
    """A dead node is grey, says when it was last seen, keeps its figures instead of zeros, and comes back."""
    with signed_in(browser, site) as tab:
        tab.wait("its figures", says("web3", "%"))
        site.kill("web3")
        tab.wait("it is grey", f"{row('web3')}?.classList.contains('lost')")
        tab.wait("it says since when", says("web3", "last seen"))
        assert "%" in tab.js(f"{row('web3')}.innerText")
        assert " 0 %" not in tab.js(f"{row('web3')}.innerText")
        tab.shows("web3 is lost")
        tab.shows("see that the machine runs")
        keep(tab, "lost")
        follow(tab, "/node/web3")
        tab.shows("see that the machine runs")
        keep(tab, "lost-node")
        follow(tab, site.path("busy"))
        tab.shows("as of before its node was lost")
        tab.go(site.url)
        site.tree.start("web3")
        site.serve("web3")
        tab.wait("it is back", f"!{row('web3')}?.classList.contains('lost') && {says('web3', '%')}")


def test_a_lost_bus(site: Real, browser: Browser) -> None:
    """While the router here is away one banner says so and figures are dimmed; then all goes on by itself."""
    with signed_in(browser, site) as tab:
        tab.wait("the tree", "document.querySelectorAll('.tree .body .row').length === 7")
        site.tree.kill("root")
        tab.shows("The bus has been away for")
        assert tab.js("document.querySelectorAll('.banner, .q-notification').length") == 1
        assert tab.js("document.body.classList.contains('stale')")
        keep(tab, "bus-lost")
        site.tree.start("root")
        tab.wait("it is back", "!document.querySelector('.banner') && !document.body.classList.contains('stale')")
        tab.wait("all of it", "!document.querySelector('.row.lost')")


def test_a_page_that_is_cut_off(site: Real, browser: Browser) -> None:
    """A page says that the dashboard is away and what to do, and goes on where it was: nothing typed is lost."""
    with signed_in(browser, site, path="/commands") as tab:
        tab.type("web[1-3]", "[name=target]")
        tab.js("void window.socket.disconnect()")
        tab.shows("supervisorctl status dashboard")
        tab.js("void window.socket.connect()")
        tab.wait("it is back", "!document.querySelector('.banner')")
        assert tab.js("document.querySelector('[name=target]').value") == "web[1-3]"


def test_a_node_that_flaps(site: Real, browser: Browser) -> None:
    """A node that comes and goes is told each time, moves no other row, and is up in the end."""
    with signed_in(browser, site) as tab:
        order = "[...document.querySelectorAll('.tree .body .row')].map((one) => one.dataset.key).join()"
        tab.wait("the tree", "document.querySelectorAll('.tree .body .row').length === 7")
        before = tab.js(order)
        for _ in range(4):
            site.tree.kill("far")
            tab.wait("it is lost", f"{row('far')}?.classList.contains('lost')")
            assert tab.js(order) == before
            site.tree.start("far")
            tab.wait("it is up", f"!{row('far')}?.classList.contains('lost')")
        assert tab.js(order) == before
        tab.wait("no problem is left", "!document.body.innerText.includes('far is lost')")
        keep(tab, "flapped")
        tab.go(site.url + "/events?q=node.lost")
        tab.wait("each time is told", f"{row('far')} && +document.querySelector('.bar .total').innerText >= 4")


def test_clocks_that_are_two_hours_off(site: Real, browser: Browser) -> None:
    """A node whose clock is wrong is named; ages are right on it, and in a browser whose own clock is wrong."""
    site.end("web2")
    site.serve("web2", ahead_s=-7200)
    try:
        with browser.tab(*WIDE) as tab:
            wrong = "{const right = Date.now; Date.now = () => right() + 7200e3}"
            tab.call("Page.addScriptToEvaluateOnNewDocument", source=wrong)
            sign_in(tab, site)
            tab.shows("the clock of web2 is 7200 s behind the one here")
            age = "parseInt([...document.querySelectorAll('.figures .fact')].at(-1).querySelector('.value').innerText)"
            tab.wait("the oldest figures are fresh", f"{age} < 30")
            tab.wait("web2's, too", f"/ [0-9] s$/.test({row('web2')}.innerText.replaceAll('\\n', ' '))")
            keep(tab, "clock")
            assert tab.errors == []
    finally:
        site.end("web2")
        site.serve("web2")


# How it looks.


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_screen(site: Real, browser: Browser, axe: str, dark: bool) -> None:
    """Every screen tells what is real, wide and narrow, without an error, for everybody, and within the window."""
    with signed_in(browser, site, dark=dark) as tab:
        site.engines["web3"].restart(site.ids["busy"])  # so that there are events
        faults = tour(tab, site, axe, screens(site), dark)
    assert faults == {}, json.dumps(faults, indent=1)


def test_nothing_was_wrong_in_the_dashboard(site: Real) -> None:
    """In all this neither the dashboard nor another service met an error."""
    logs = {file.name: file.read_text() for file in site.tree.folder.glob("*-*.log")}
    assert len(logs) == 13
    assert not {name: text for name, text in logs.items() if "Traceback" in text}
