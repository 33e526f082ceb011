"""Containers in the balancer's table: two real engines, two kernels' tables in IPVS, and clients on another machine."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from answerer import PORT
from clients import Answer, Flow, Visitors, answers
from machines import SHOP, Machines, wait

pytestmark = pytest.mark.guest("docker")

WEB = ("10.0.0.1", 80)


def test_web_containers_come_and_go(site: Machines) -> None:
    """Containers of an image get into the table, are asked in turn, see the client, and are gone when they died."""
    top, low, client = site.top, site.low, site.client
    names = ("web1", "web2", "web3")
    for name in names:
        top.run(name, image=SHOP)
    place = {name: top.place(name) for name in names}
    top.wait_table(80, dict.fromkeys(place.values(), 1))
    top.listens(*names)
    assert answers(client, WEB, 6) == {Answer(name, "10.0.0.2"): 2 for name in place}

    # One on the node below, at the port that it is published at; across two machines the balancer's address is seen.
    low.run("web4", "--publish", f"9000:{PORT}", image=SHOP)
    top.wait_table(80, dict.fromkeys((*place.values(), "10.0.0.3:9000"), 1))
    low.listens("web4")
    assert answers(client, WEB, 4)[Answer("web4", "10.0.0.1")] == 1

    # One is killed: who was with it may notice, nobody else.
    with Visitors(client, WEB) as visitors:
        wait("visitors", lambda: len(visitors.answered) == 4)
        top.api.kill("web1")
        top.wait_table(80, dict.fromkeys((place["web2"], place["web3"], "10.0.0.3:9000"), 1))
        visitors.forget()
        wait("visitors of the others", lambda: min(visitors.answered[name] for name in ("web2", "web3", "web4")) > 2)
        assert "web1" not in visitors.answered
    assert {each.server for each in visitors.failed} <= {"", "web1"}
    site.wait_told("web", "active", "removed", name="web1")
    assert len(site.told("web", "web1")) == 2

    # One is told to stop, and takes its time: no new connections, the old one goes on until the container died.
    flow = next(flow for flow in (Flow(client, WEB) for _ in range(3)) if flow.first.server == "web2")
    with ThreadPoolExecutor(1) as elsewhere:
        stopping = elsewhere.submit(top.api.stop, "web2", 600)
        top.wait_table(80, {place["web2"]: 0, place["web3"]: 1, "10.0.0.3:9000": 1})
        assert {each.server for each in answers(client, WEB, 4)} == {"web3", "web4"}
        assert flow.ask() == Answer("web2", "10.0.0.2")
        assert top.show("web")["web2"]["state"] == "draining"
        top.api.kill("web2")
        top.wait_table(80, {place["web3"]: 1, "10.0.0.3:9000": 1})
        stopping.result()
    low.api.kill("web4")
    top.wait_table(80, {place["web3"]: 1})
    assert set(answers(client, WEB, 3)) == {Answer("web3", "10.0.0.2")}


def test_labels_health_and_pause(site: Machines) -> None:
    """Labels choose balancer, port and weight; a container with a check takes part while it is healthy, unpaused."""
    top, client = site.top, site.client
    labels = {"balancer": "labelled", "port": str(PORT), "weight": "7"}
    check = ("--health-cmd", "test -e /ok", "--health-interval", "3s", "--health-retries", "1")
    top.run("sick", *(f"--label=treescale.{key}={value}" for key, value in labels.items()), *check, image=SHOP)
    top.run("shy", "--label=treescale.enable=false", image=SHOP)
    wait("the check has not passed", lambda: top.show("labelled").get("sick", {}).get("state") == "joining")
    assert top.table(81) == {}
    place = top.place("sick")

    top.docker("exec", "sick", "touch", "/ok")
    top.wait_table(81, {place: 7})
    assert answers(client, ("10.0.0.1", 81), 1) == {Answer("sick", "10.0.0.2"): 1}
    top.api.pause("sick")
    top.wait_table(81, {place: 0})
    top.api.unpause("sick")
    top.wait_table(81, {place: 7})
    top.docker("exec", "sick", "rm", "/ok")
    top.wait_table(81, {place: 0})
    assert top.show("labelled")["sick"]["reason"] == "unhealthy"
    assert site.told("labelled", "sick")[:2] == ["joining", "active"]
    assert top.table(80) == {}  # the image alone would have let both in
