"""A node on a real server: probed, planned and built over SSH, under systemd, through kills and a restart, and away."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from console_of_tests import Desk, wait
from installing import parcel_of
from node_bundle import CACHE, made
from sites import RUN_S, SNAPSHOT
from targets import Lab, Target

import tsbus.build
from tsbus.build import orders, units
from tsbus.build.bundle import Bundler
from tsbus.build.facts import parse
from tsbus.build.orders import Report
from tsbus.build.places import CONFIG, SUPERVISOR, UNITS
from tsbus.build.plan import HostPlan, plan
from tsbus.build.steps import Step
from tsbus.build.wanted import wanted
from tsbus.config import BuildSettings, Tree
from tsbus.config import Server as TreeServer
from tsbus.copies import Copies, supervisor_digest
from tsbus.supervision.conf import render_server

PROBE = Path(tsbus.build.__file__).with_name("probe.sh").read_text()


class Console:
    """Builds a tree of one server."""

    def __init__(self, target: Target, desk: Desk) -> None:
        self.target, self.desk = target, desk
        self.before = target.run(SNAPSHOT)
        self.tree = Tree(servers={"a": TreeServer("a", target.ip, 8888)})
        self.keys: dict[str, str] = {}
        self.supervisor = render_server("a", port=8888, balancer=False)

    def plan(self) -> HostPlan:
        """Look at the server, and say what is to be done."""
        with self.desk.session(self.target) as session:
            facts = parse(session.run(PROBE, stage="probe").out.encode())
        supervisors = {"a": supervisor_digest(self.supervisor)}
        release = Bundler(CACHE).release
        wish = wanted(self.tree, BuildSettings(docker="no"), release, saved=self.keys, supervisors=supervisors)
        return plan(wish["a"], facts)

    def build(self) -> list[Report]:
        """Carry a plan out in two exchanges: between them the key is known, and with it the copy of the tree."""
        steps = self.plan().steps
        late = [step for step in steps if step.stage in ("configure", "activate")]
        reports = self.do(*(step for step in steps if step not in late), bundle=made().path.read_bytes())
        self.keys = {"a": reports[-1].told["public_key"]}
        return reports + self.do(*late)

    def do(self, *steps: Step | dict[str, Any], bundle: bytes | None = None) -> list[Report]:
        """Carry out orders in one exchange; returns what was said at the end of each."""
        texts = {UNITS["systemd"]: units.SYSTEMD, CONFIG: Copies(self.tree, self.keys).text("a"),
                 SUPERVISOR: self.supervisor}  # fmt: skip
        parcel = parcel_of(bundle) if bundle is not None else None
        told = [step if isinstance(step, dict) else orders.order(step, texts, parcel) for step in steps]
        document = orders.document(made().release, told, parcel)

        def rest(line: str) -> BinaryIO:
            first = orders.parse(line)
            assert first is not None and first.state == "ready", line
            return io.BytesIO(document + (bundle[first.have :] if bundle is not None else b""))

        with self.desk.session(self.target) as session:
            script = orders.script(f"/usr/bin/python3.{made().platform.python}", parcel)
            outcome = session.run(script, stage="bundle", stdin=rest, timeout_s=RUN_S)
        reports = [each for line in outcome.out.splitlines() if (each := orders.parse(line))]
        assert "failed" not in [each.state for each in reports], outcome.out
        return [each for each in reports if each.state in ("ok", "changed")]

    def answers(self) -> bool:
        return "1 up" in self.target.run("/opt/treescale/current/bin/treescale status", check=False)


@pytest.fixture
def console(lab: Lab, desk: Desk) -> Iterator[Console]:
    target = lab.target()
    yield Console(target, desk)
    target.remove()


def test_the_life_of_a_node_under_systemd(console: Console) -> None:
    """It is built, and then there is nothing to do; it comes back when it is killed and when the machine starts; and it
    goes without a trace."""
    target = console.target
    assert [report.state for report in console.build()] == ["changed"] * 7
    assert console.answers()
    assert console.plan().steps == ()
    assert target.run("systemctl is-enabled treescale; systemctl is-active treescale") == "enabled\nactive"
    assert target.run(f"systemd-analyze verify {UNITS['systemd']} 2>&1 | grep -i treescale", check=False) == ""

    target.run("kill -9 $(systemctl show -P MainPID treescale)")
    wait("systemd starts it again", console.answers)
    assert target.run("pgrep -c -f bin/ts-route[r]") == "1"

    target.restart()
    wait("it starts with the machine", console.answers)
    assert target.run("stat -c '%U %a' /run/treescale /run/treescale/router") == "root 750\ntreescale 750"
    assert console.plan().steps == ()

    console.do(orders.uninstall())
    left = target.run("pgrep -f opt/treescal[e]; ls /run | grep treescale; systemctl is-failed treescale", check=False)
    assert left in ("inactive", "unknown")
    assert target.run(SNAPSHOT).splitlines() == console.before.splitlines()
