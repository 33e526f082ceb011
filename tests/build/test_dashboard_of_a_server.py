"""A dashboard on a built server: its packages come to that node alone, and its page answers there."""

import shlex
from dataclasses import replace

import pytest
from console_of_tests import wait
from sites import SNAPSHOT, Site

from tsbus.build.reports import Sent
from tsbus.build.uninstall import Uninstall
from tsbus.build.upgrade import Rollback
from tsbus.config import Dashboard

URL = "http://127.0.0.1:8800"
GET = """\
import sys
from urllib.request import Request, urlopen
headers = dict(each.split("=", 1) for each in sys.argv[2:])
print(urlopen(Request(sys.argv[1], headers=headers), timeout=10).read().decode())
"""
ROUTER = "pgrep -f bin/ts-route[r]"


@pytest.fixture
def site(lab, tmp_path):
    """Two servers, a above b, each with a note of its files."""
    targets = {name: lab.target() for name in "ab"}
    site = Site(targets, tmp_path, lab.key)
    yield site, dict(zip(targets, site.each(SNAPSHOT), strict=True))
    for target in targets.values():
        target.remove()


def test_a_dashboard_is_switched_on_later_and_off_again(site):
    """Only its node gets another release; its page asks who comes, and who is added may see; then it all goes again."""
    site, before = site
    assert site.build().outcome.exit_code == 0
    plain = site.bundler.release.name
    router = site.targets["b"].run(ROUTER)
    _switch(site, on=True)
    campaign = site.build()
    assert (campaign.outcome.exit_code, set(campaign.outcome.answered)) == (0, {"a", "b"})
    assert [step.data["release"] for step in site.steps("release")] == [f"{plain}-dashboard"]
    assert {each.name for each in site.said if isinstance(each, Sent)} == {"a"}
    assert site.targets["b"].run(ROUTER) == router
    _page_answers(site.targets["a"])
    outcome = site.build().outcome
    assert (outcome.exit_code, outcome.changed) == (0, {})
    assert "no release before" in site.build(Rollback, names=("a",)).outcome.failed["a"].text
    _switch(site, on=False)
    assert site.build().outcome.exit_code == 0
    assert not site.steps("release"), "the one without is still there"
    assert site.targets["a"].run("pgrep -f ts-dashboar[d]", check=False) == ""
    assert site.build(Uninstall).outcome.exit_code == 0
    for name, found in zip("ab", site.each(SNAPSHOT), strict=True):
        assert found.splitlines() == before[name].splitlines()


def _switch(site, *, on):
    site.tree.servers["a"] = replace(site.tree.servers["a"], dashboard=Dashboard(enabled=on))


def _get(target, url, *headers):
    """Return what the server itself gets from an address."""
    words = shlex.join(["/opt/treescale/current/bin/python", "-c", GET, url, *headers])
    return target.run(words, check=False)


def _page_answers(target):
    """As nobody it shows a door only; a program with a token sees the tree, from a process without any rights."""
    wait("the page answers", lambda: "password" in _get(target, f"{URL}/", "Accept=text/html").lower())
    token = target.run("/opt/treescale/current/bin/treescale dashboard token add tests").splitlines()[-1]
    known = f"Authorization=Bearer {token}"
    assert '"b"' in _get(target, f"{URL}/api/v1/nodes", known)
    for page in ("", "containers", "node/b", "balancers", "events", "bus", "commands", "alerts"):
        assert "TreeScale" in (text := _get(target, f"{URL}/{page}", known, "Accept=text/html")), text
    pid = target.run("pgrep -f bin/ts-dashboar[d]")
    assert target.run(f"stat -c %U /proc/{pid}") == "treescale-dashboard"
    assert target.run(f"grep -E '^Cap(Eff|Bnd)' /proc/{pid}/status | tr -d '0[:space:]'") == "CapEff:CapBnd:"
