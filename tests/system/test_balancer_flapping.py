"""A container that dies again and again, next to others: what the balancer's table has, and what clients notice."""

from pathlib import Path

import pytest
from clients import Visitors
from machines import ANSWER, Machines, wait

pytestmark = [pytest.mark.guest("docker"), pytest.mark.long]

QUICK, PATIENT = ("10.0.0.1", 84), ("10.0.0.1", 86)


def test_flapping(site: Machines, tmp_path: Path) -> None:
    """Who dies before `start_grace_s` is over never gets a client; who dies later loses only its own."""
    top = site.top
    top.wait_table(86, site.calm)
    life = tmp_path / "life"
    life.write_text("2")
    script = f"{ANSWER} & sleep $(cat /life)"
    with Visitors(site.client, QUICK, brief=1) as quick, Visitors(site.client, PATIENT, brief=1) as patient:
        top.run(
            "flap",
            "--label=treescale.balancer=quick,patient",
            "--restart=always",
            f"--volume={life}:/life:ro",
            script=script,
        )
        wait("three lives", lambda: site.told("quick", "flap").count("active") >= 3)
        assert "active" not in site.told("patient", "flap")
        life.write_text("1000")
        wait("it lives on", lambda: top.show("quick").get("flap", {}).get("since_s", 0) > 4)
        quick.wait_more("calm1", "calm2", "flap")
        patient.wait_more("calm1", "calm2")
    assert patient.failed == []
    assert {each.server for each in quick.failed} <= {"", "flap"}
    top.find("flap")
    top.wait_table(84, {**site.calm, top.place("flap"): 1})
    lives = 1 + top.api.inspect("flap").restarts
    told = site.told("quick", "flap")
    assert len(told) <= 3 * lives  # joining, active, removed
    assert told[-1] == "active"
    assert site.told("quick", "calm1") == []
    assert set(site.told("patient", "calm1")) <= {"active"}  # its first, 15 s after its start
