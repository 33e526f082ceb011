"""Balancer and engine end and come back under traffic: the kernel goes on balancing, and its table is right."""

import os
import signal

import pytest
from clients import Visitors, ask
from machines import CALM, Machines, wait

pytestmark = [pytest.mark.guest("docker"), pytest.mark.long]


def test_the_balancers_process(site: Machines) -> None:
    """While the balancer is away and when it is back, however it ended, the table is the same and no client notices."""
    top = site.top
    with Visitors(site.client, ("10.0.0.1", 84), holding=1) as visitors:
        visitors.wait_more(*CALM)
        before = top.saved()

        def unchanged() -> bool:
            assert top.saved() == before
            return True

        for number in (signal.SIGKILL, signal.SIGTERM):
            top.balancer.end(number)
            visitors.wait_more(*CALM)
            assert unchanged()
            top.balancer.start()
            wait("the balancer works", lambda: unchanged() and top.balances())
            assert top.lb("sync")["steps"] == []
            visitors.wait_more(*CALM)
            assert unchanged()
    assert visitors.failed == []


def test_the_engine(site: Machines) -> None:
    """An engine that is away changes nothing while its containers live; those that end meanwhile are out at once."""
    top, low = site.top, site.low
    low.run("one", "--label=treescale.balancer=own")
    low.wait_table(80, {low.place("one"): 1})
    low.listens("one")
    with Visitors(site.client, ("10.0.0.3", 80), holding=1) as visitors:
        visitors.wait_more("one")
        before = low.saved()
        site.dockerd.end()
        wait("the monitor knows", lambda: not low.engine_is_up())
        visitors.wait_more("one")
        assert low.saved() == before
        site.dockerd.start()
        wait("the monitor knows", low.engine_is_up)
        visitors.wait_more("one")
        assert low.lb("sync")["steps"] == []
        assert low.saved() == before
    assert visitors.failed == []

    # A container that ends with its engine: nobody but the kernel can tell.
    top.wait_table(82, {"10.0.0.3:80": 1})
    process = low.api.inspect("one").pid
    site.dockerd.end()
    os.kill(process, signal.SIGKILL)
    low.wait_table(80, {})
    top.wait_table(82, {"10.0.0.3:80": 0})
    site.dockerd.start()
    low.docker("start", "one")  # not by its restart policy: Docker 20.10 may start one twice, and give up
    low.find("one")
    low.wait_table(80, {low.place("one"): 1})
    low.listens("one")
    top.wait_table(82, {"10.0.0.3:80": 1})
    assert ask(site.client, ("10.0.0.1", 82)).server == "one"
