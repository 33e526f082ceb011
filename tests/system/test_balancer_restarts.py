"""Balancer and engine end and come back under traffic: the kernel goes on balancing, and its table is right."""

import os
import signal

import pytest
from clients import Visitors, ask
from machines import Machines, wait

pytestmark = pytest.mark.guest("docker")


def test_the_balancers_process(site: Machines) -> None:
    """While the balancer is away and when it is back, however it ended, the table is the same and no client notices."""
    top = site.top
    for name in ("calm1", "calm2"):
        top.run(name, "--label=treescale.balancer=labelled")
    top.listens("calm1", "calm2")
    table = {top.place(name): 1 for name in ("calm1", "calm2")}
    top.wait_table(81, table)
    with Visitors(site.client, ("10.0.0.1", 81), holding=1) as visitors:
        visitors.wait_more("calm1", "calm2")
        before = top.saved()

        def unchanged() -> bool:
            assert top.saved() == before
            return True

        for number in (signal.SIGKILL, signal.SIGTERM):
            top.balancer.end(number)
            visitors.wait_more("calm1", "calm2")
            assert unchanged()
            top.balancer.start()
            wait("the balancer works", lambda: unchanged() and top.balances())
            assert top.lb("sync")["steps"] == []
            visitors.wait_more("calm1", "calm2")
            assert unchanged()
    assert visitors.failed == []


def test_the_engine(site: Machines) -> None:
    """An engine that ends with its containers empties the table; one whose containers live on changes nothing."""
    low = site.low
    for name in ("one", "two"):
        low.run(name, "--label=treescale.balancer=own", "--restart=always")
    table = {low.place(name): 1 for name in ("one", "two")}
    low.wait_table(80, table)
    site.top.wait_table(82, {"10.0.0.3:80": 2})

    site.dockerd.end()
    low.wait_table(80, {})
    site.top.wait_table(82, {"10.0.0.3:80": 0})
    site.dockerd.live_restore(on=True)
    site.dockerd.start()
    low.find("one", "two")
    table = {low.place(name): 1 for name in ("one", "two")}
    low.wait_table(80, table)
    site.top.wait_table(82, {"10.0.0.3:80": 2})
    low.listens("one", "two")
    process = int(low.docker("inspect", "--format", "{{.State.Pid}}", "two"))

    with Visitors(site.client, ("10.0.0.3", 80), holding=1) as visitors:
        visitors.wait_more("one", "two")
        before = low.saved()
        site.dockerd.end()
        wait("the monitor knows", lambda: not low.engine_is_up())
        visitors.wait_more("one", "two")
        assert low.saved() == before
        site.dockerd.start()
        wait("the monitor knows", low.engine_is_up)
        assert low.lb("sync")["steps"] == []
        visitors.wait_more("one", "two")
        assert low.saved() == before
    assert visitors.failed == []

    # Nobody but the kernel can tell of the end of a container whose engine is away.
    site.dockerd.end()
    os.kill(process, signal.SIGKILL)
    low.wait_table(80, {low.place("one"): 1})
    site.top.wait_table(82, {"10.0.0.3:80": 1})
    assert {ask(site.client, ("10.0.0.3", 80)).server for _ in range(3)} == {"one"}
    site.dockerd.start()
    low.find("two")
    low.wait_table(80, {low.place(name): 1 for name in ("one", "two")})
