"""What is done on one server in one exchange, on a real one: looked at, changed, asked; and what is said of it."""

import threading
import time

import pytest
from console_of_tests import LIMIT_S, trouble_of, wait

from tsbus.build import jobs, orders
from tsbus.build.bundle import Bundle
from tsbus.build.jobs import Task
from tsbus.build.plan import HostPlan
from tsbus.build.reports import Entered, Noted, Sent, Stepped
from tsbus.build.steps import Platform, Step
from tsbus.build.trouble import WAITING
from tsbus.config import Secret

PYTHON = "/usr/bin/python3"


def scripted(text):
    """A step that runs a script."""
    return Step("packages", "run a script", "it is wanted", {"packages": ["x"]}, text, reversible=False)


@pytest.fixture
def session(desk, server):
    """A session; what an installer has left is taken away."""
    with desk.session(server, name="one") as session:
        yield session
        undo = Task("none", PYTHON, (scripted(""),), (orders.uninstall(),))
        jobs.carry_out(session, desk.shared, undo, lambda _: None, lambda _: None)


def do(session, desk, *steps, python=PYTHON):
    """Let the installer carry out steps; returns what is reported, and the transcript."""
    task = Task.of(HostPlan("one", 0, steps, python=python), {step.stage for step in steps}, "none", {})
    told, lines = [], []
    jobs.carry_out(session, desk.shared, task, told.append, lines.append)
    return told, lines


def test_a_look(session):
    """A probe tells what the server is, and how far its clock is ahead."""
    begun, lines = time.monotonic(), []
    seen = jobs.probe(session, lines.append)
    assert seen.facts.init == "systemd"
    assert abs(seen.offset_s) <= time.monotonic() - begun
    assert "end=1" in lines


def test_steps_are_reported(session, desk):
    """Who watches learns which step is at work, what it waits for, and when it is done; the transcript has all."""
    step = scripted(f"echo one; echo '{WAITING}'; echo '{WAITING}'; echo two")
    told, lines = do(session, desk, step)
    assert told[:2] == [Entered("one", "docker", "run a script"), Noted("one", WAITING)]
    assert [(each.step, each.changed) for each in told if isinstance(each, Stepped)] == [(step, True)]
    assert len(told) == 3
    assert [line for line in lines if line in ("one", "two", WAITING)] == ["one", WAITING, WAITING, "two"]
    assert f"== {step}" in lines


def test_a_password_may_be_any_word(session, desk):
    """What the installer says is understood also where a word of it is a secret, which is masked in what is shown."""
    for word in ("changed", "begin", "ready", "state"):
        desk.shared.secrets.hide(Secret(word))
    told, _ = do(session, desk, scripted("true"))
    assert [type(each) for each in told] == [Entered, Stepped]
    trouble = trouble_of(lambda: do(session, desk, scripted("echo it has changed >&2; exit 3")))
    assert (trouble.kind, trouble.details) == ("step", "it has ***")


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("echo 'E: No space left on device' >&2; exit 1", "disk", "No space left"),
        ("exit 75", "package-lock", "package lock"),
        ("echo one; exit 4", "step", "run a script: ended with 4: one"),
    ],
)
def test_a_step_that_fails(session, desk, script, kind, said):
    """Its trouble has the kind that its output shows; the steps after it are not begun."""
    lines = []
    steps = (scripted(script), scripted("echo after"))
    task = Task.of(HostPlan("one", 0, steps, python=PYTHON), {"docker"}, "none", {})
    told = []
    trouble = trouble_of(lambda: jobs.carry_out(session, desk.shared, task, told.append, lines.append))
    assert (trouble.kind, said in trouble.text) == (kind, True)
    assert told == [Entered("one", "docker", "run a script")]
    assert "after" not in lines


def test_no_interpreter(session, desk):
    """A server on which the installer cannot run is told so."""
    assert trouble_of(lambda: do(session, desk, scripted("true"), python="/usr/bin/python3.99")).kind == "python"


def test_uploads_take_turns(session, desk, server, tmp_path):
    """A bundle waits for its turn, and gives it back, also when what comes is not what was said."""
    path = tmp_path / "bundle"
    path.write_bytes(b"x" * 300_000)
    bundle = Bundle(Platform("x86_64", "glibc", 11), "none", path, "0" * 64, path.stat().st_size)
    steps = (Step("release", "install a release", "it is wanted", {"release": "none"}),)
    task = Task.of(HostPlan("one", 0, steps, python=PYTHON), {"bundle"}, "none", {}, bundle)
    limit, told, troubles = desk.shared.uploads, [], []
    turns = _free(limit)
    waiting = threading.Thread(
        target=lambda: troubles.append(
            trouble_of(lambda: jobs.carry_out(session, desk.shared, task, told.append, lambda _: None))
        )
    )
    waiting.start()
    wait("the installer waits", lambda: server.run("pgrep -f [T]REESCALE_INSTALLER", check=False))
    assert told == []
    limit.release()
    waiting.join(LIMIT_S)
    assert Sent("one", 0, bundle.size) in told
    assert [trouble.kind for trouble in troubles] == ["step"]
    limit.release(turns - 1)
    assert _free(limit) == turns
    limit.release(turns)


def _free(limit):
    """Take all turns that are free; returns how many."""
    turns = 0
    while limit.acquire(blocking=False):
        turns += 1
    return turns


def test_a_server_that_is_no_node_asks_nobody(session):
    """That is its trouble, not that of those who were not asked."""
    trouble = trouble_of(lambda: jobs.ask(session, ["a", "b"], 0, lambda _: None, lambda _: None))
    assert "treescale" in trouble.text + trouble.details
