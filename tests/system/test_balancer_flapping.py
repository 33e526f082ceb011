"""A container that dies again and again, next to others: what the balancer's table has, and what clients notice."""

from pathlib import Path

import pytest
from clients import Visitors
from machines import ANSWER, Machines, wait

pytestmark = pytest.mark.guest("docker")

QUICK, PATIENT = ("10.0.0.1", 84), ("10.0.0.1", 86)


def test_flapping(site: Machines, tmp_path: Path) -> None:
    """Who dies before `start_grace_s` is over never gets a client; who dies later loses only its own."""
    top = site.top
    label = "--label=treescale.balancer=quick,patient"
    for name in ("calm1", "calm2"):
        top.run(name, label)
    calm = {top.place(name): 1 for name in ("calm1", "calm2")}
    top.listens("calm1", "calm2")
    top.wait_table(84, calm)
    top.wait_table(86, calm)

    life = tmp_path / "life"
    life.write_text("2")
    script = f"{ANSWER} & sleep $(cat /life)"
    with Visitors(site.client, QUICK, brief=1) as quick, Visitors(site.client, PATIENT, brief=1) as patient:
        top.run("flap", label, "--restart=always", f"--volume={life}:/life:ro", script=script)
        wait("three lives", lambda: site.told("quick", "flap").count("active") >= 3)
        life.write_text("1000")
        wait("it lives on", lambda: top.show("quick").get("flap", {}).get("since_s", 0) > 4)
        quick.wait_more("calm1", "calm2", "flap")
        assert "active" not in site.told("patient", "flap")
        patient.wait_more("calm1", "calm2")
    assert patient.failed == []
    assert {each.server for each in quick.failed} <= {"", "flap"}
    top.find("flap")
    top.wait_table(84, {**calm, top.place("flap"): 1})
    lives = 1 + int(top.docker("inspect", "--format", "{{.RestartCount}}", "flap"))
    told = site.told("quick", "flap")
    assert len(told) <= 3 * lives
    assert told.count("joining") == told.count("removed") + 1
    assert site.told("quick", "calm1") == site.told("patient", "calm1") == ["joining", "active"]
