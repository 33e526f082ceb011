"""Real supervisords in trouble: a frozen one, a router that has only just been started, a disk that is full."""

import json
import os
import signal
import subprocess

import pytest
from test_up import ROOT, Machine
from waiting import wait

from tsbus.supervision import control
from tsbus.supervision.local import NodeFolder


@pytest.fixture(scope="module")
def tree():
    """Two nodes that are up."""
    machine = Machine({"a": ["b"], "b": []})
    machine.run()
    yield machine
    machine.end()


def check(tree):
    """Return what `treescale check` finds, by subject."""
    argv = [ROOT / "bin/treescale", "check", "--json", "--bus", tree.bus("a")]
    lines = subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout.splitlines()
    return {one["subject"]: one for one in map(json.loads, lines)}


def test_a_full_disk_and_a_frozen_supervisord_are_told(tree):
    """`check` tells that an executor refuses all and that a supervisord is frozen, with the mends, while it is so."""
    (supervisord,), _ = control.pids_of(tree.files("a"))
    log = tree.files("b").log_dir / "exec-audit.log"
    log.mkdir()
    os.kill(supervisord, signal.SIGSTOP)
    try:
        found = check(tree)
    finally:
        os.kill(supervisord, signal.SIGCONT)
        log.rmdir()
    full, frozen = found["executor"], found["supervisord"]
    assert full["text"] == f"every program is refused on b: cannot write the audit log {log}: Is a directory"
    assert frozen["text"].startswith("supervisord of a does not answer within 3 s: the programs there run, ")
    assert (full["node"], full["severe"], frozen["node"], frozen["severe"]) == ("b", True, "a", True)
    assert "make room" in full["mend"]
    assert "kill -CONT" in frozen["mend"]
    wait("it is over", lambda: not {"supervisord", "executor"} & check(tree).keys())


def test_a_router_that_has_just_started_follows_and_lives(tree):
    """Told of a new tree as soon as it is started, before its first line, a router reads the tree and goes on."""
    supervisord = NodeFolder("b", tree.run_dir / "b").supervisord
    log = tree.files("b").log_dir / "router.log"
    for _ in range(4):
        before = wait("the router runs", lambda: tree.pid("b", "router"))
        told = log.read_text().count("config.unchanged")
        os.kill(before, signal.SIGKILL)
        (pid,) = wait("it is started again", lambda before=before: {supervisord.alive().get("router", 0)} - {before, 0})
        supervisord.follow_tree(["router"])
        wait("it has read the tree again", lambda told=told: log.read_text().count("config.unchanged") > told)
        assert supervisord.alive()["router"] == pid
