"""How a run is shown while it goes: on a terminal that changes its size, in a log, and when somebody stops it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from terminals import LIMIT_S, Terminal

PROGRAM = """
import sys
from tsbus.build.reports import Entered, Left, Noted, Opened
from tsbus.cli.build.follow import Interrupted, follow

def run():
    try:
        yield Opened("docker", ("web1", "web2"))
        yield Entered("web1", "docker", "install Docker from its own packages, which takes its time")
        if not sys.stdout.isatty():
            print("it waits", flush=True)
        sys.stdin.readline()
        yield Left("web1", "docker", 3.0)
        yield Noted("", "a note that stays")
        sys.stdin.readline()
    finally:
        print("the run was closed", flush=True)

try:
    follow(run(), "Building 2 servers")
except Interrupted as stop:
    print("interrupted;", stop.progress.counts()["docker"]["working"], "at work")
"""
ARGV = (sys.executable, "-c", PROGRAM)
FAILS = """\
        from tsbus.build.reports import Failed
        from tsbus.build.trouble import Trouble
        yield Failed("web2", "docker", Trouble("step", "it is on fire", "put it out"), 1.0)
"""


def test_a_picture_follows_the_size_of_the_terminal(tmp_path: Path) -> None:
    """It is drawn anew when the terminal is made narrower; notes stay above it, and so does its end."""
    with Terminal(ARGV, dict(os.environ), tmp_path, (24, 80)) as terminal:
        came = terminal.read_until("0/2", "1 working  1 waiting", "which takes")
        assert all(len(line) < 80 for line in came.splitlines())
        terminal.resize(24, 40)
        terminal.read_until("install Docker …")
        terminal.type("\n")
        came = terminal.read_until("a note that stays", "1/2")
        terminal.type("\n")
        code, end = terminal.end()
        assert code == 0 and "the run was closed" in end
        assert all(len(line) < 40 for line in (came + end).splitlines())
        assert "1/2             1 waiting" in end


def test_the_last_picture_leaves_the_reasons_to_what_follows(tmp_path: Path) -> None:
    """While it goes, it says who has failed and why; at its end only how many."""
    failing = PROGRAM.replace("        sys.stdin.readline()\n", FAILS, 1)
    with Terminal((sys.executable, "-c", failing), dict(os.environ), tmp_path, (24, 80)) as terminal:
        terminal.read_until("1 failed", "web2  docker  it is on fire")
        terminal.type("\n")
        _, end = terminal.end()
        assert "1 failed" in end and "on fire" not in end.rpartition("docker  ━")[2]


def test_ctrl_c_closes_the_run_before_anything_else_is_said(tmp_path: Path) -> None:
    """Then there is what it had come to."""
    with Terminal(ARGV, dict(os.environ), tmp_path, (24, 80)) as terminal:
        terminal.read_until("1 working")
        terminal.type("\x03")
        _, end = terminal.end()
        assert end.index("the run was closed") < end.index("interrupted; 1 at work")


def test_a_log_has_a_line_for_each_change_and_a_picture_when_asked(tmp_path: Path) -> None:
    """Without a terminal nothing is drawn, but on SIGUSR1."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    program = subprocess.Popen(ARGV, **pipes, text=True)
    assert program.stdout and program.stderr
    assert program.stdout.readline() == "it waits\n"
    assert [program.stderr.readline() for _ in range(2)] == ["Building 2 servers\n", "docker: 2 servers\n"]
    program.send_signal(signal.SIGUSR1)
    picture = [program.stderr.readline() for _ in range(5)]
    assert "0/2  1 working  1 waiting" in picture[1] and "install Docker" in picture[4]
    _, rest = program.communicate("\n\n", LIMIT_S)
    assert rest == "web1: docker done (3 s)\na note that stays\n"
