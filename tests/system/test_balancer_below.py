"""The balancer of a node as a server of its parent's: weighed by what is alive behind it, and out when its link is."""

import pytest
from clients import Answer, answers, ask
from machines import Machines, wait

pytestmark = [pytest.mark.guest("docker"), pytest.mark.long]

BELOW, OWN = ("10.0.0.1", 82), "10.0.0.3:80"


def test_a_balancer_behind_a_balancer(site: Machines) -> None:
    """A child gets what it can carry, nothing when all behind it died, and is out of the table while it is cut off."""
    top, low, client = site.top, site.low, site.client
    low.run("one", "--label=treescale.balancer=own")
    top.wait_table(82, {OWN: 1})
    low.run("two", "--label=treescale.balancer=own")
    top.wait_table(82, {OWN: 2})
    low.listens("one", "two")
    assert answers(client, BELOW, 4) == {Answer("one", "10.0.0.1"): 2, Answer("two", "10.0.0.1"): 2}
    low.api.kill("two")
    top.wait_table(82, {OWN: 1})
    top.wait_table(83, {OWN: 1})

    # The cable: no new connections, then it is removed. Who trusts its only server more than its own links keeps it.
    site.cable(plugged=False)
    top.wait_table(82, {OWN: 0})
    assert top.show("below")["low"]["reason"] == "the link to low is lost"
    top.wait_table(82, {})
    assert top.table(83) == {OWN: 1}
    site.wait_told("below", "out", "empty", "removed")
    wait("panic", lambda: "panic" in site.told("trusting"))
    site.cable(plugged=True)
    top.wait_table(82, {OWN: 1})
    wait("calm", lambda: site.told("trusting")[-1] == "calm")
    assert ask(client, BELOW) == Answer("one", "10.0.0.1")

    low.api.kill("one")
    top.wait_table(82, {OWN: 0})
    assert top.show("below")["low"]["reason"] == "nothing is alive behind it"
    with pytest.raises(ConnectionRefusedError):
        ask(client, BELOW)
    low.api.start("one")
    top.wait_table(82, {OWN: 1})
    low.listens("one")
    assert ask(client, BELOW) == Answer("one", "10.0.0.1")
