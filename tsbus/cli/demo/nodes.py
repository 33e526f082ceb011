"""Nodes: the parts of the demo about the tree itself: it comes up, carries events and commands, and heals."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from tsbus.blocking import BlockingClient, BlockingSubscription
from tsbus.cli.demo.stage import CHECKOUT, HERE, Stage, chapter, expect, free_ports, say
from tsbus.cli.edge import Code, Fault
from tsbus.config import DockerPolicy, Server, Tree, dump
from tsbus.supervision import control

TREE = {
    "root": ("east", "west"),
    "east": ("web1", "db1"),
    "west": ("web2", "db2"),
    "web1": (),
    "db1": (),
    "web2": (),
    "db2": (),
}
TAGS = {"web1": "web", "web2": "web", "db1": "db", "db2": "db"}


def come_up(stage: Stage, special: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the tree and start it; `special` has more for some servers: their keys in the configuration."""
    chapter("1. Seven nodes come up")
    say("Each is a supervisord with a router and its services; all links are encrypted.")
    ports = free_ports(len(TREE))
    servers = {
        name: replace(
            Server(name, HERE, port, tags=(TAGS[name],) if name in TAGS else (), childs=childs),
            **special.get(name, {}),
        )
        for (name, childs), port in zip(TREE.items(), ports, strict=True)
    }
    stage.file.write_text(dump(Tree(servers, docker=DockerPolicy(enabled=False))))
    stage.run(stage.up)
    say(f"  export PATH={stage.programs}:$PATH")
    say("With these two lines you can repeat all that follows.")


def send_event(stage: Stage) -> None:
    """An event finds its listeners."""
    chapter("2. An event from a leaf reaches the root and everybody with the tag db")
    say("Three listen, at the root and on the two nodes with the tag; then web1 says something to them.")
    with stage.listening(["ts-sub", "order.>", "--count", "1", "--timeout", "60"], ("root", "db1", "db2")) as tell:
        stage.run(["ts-pub", "order.paid", '{"order": 1207}', "--to", "root,@db"], at="web1")
        tell()


def run_command(stage: Stage) -> None:
    """A command on all nodes."""
    chapter("3. A command on all nodes; equal answers are folded")
    stage.run(["treescale", "exec", "*", "--", "uname", "-a"])


def kill_node(stage: Stage, bus: BlockingClient) -> None:
    """A node dies, its children are adopted, it comes back."""
    chapter("6. A whole node dies: kill -9 of all its processes at once")
    with bus.subscribe("node.lost") as lost:
        supervisords, programs = control.pids_of(stage.folder("east").files)
        took_ms = _kill(stage, [*supervisords, *programs], lost)
    say(f"The root knew it {took_ms:.1f} ms after the kill. A command does not wait for the dead, it names them:")
    stage.run(["treescale", "exec", "*", "--", "uname", "-r"], expected=Code.PARTIAL)
    say("\nThe children of east live. Two seconds later the root has adopted them:")
    stage.wait_up(bus, set(TREE) - {"east"})
    stage.run(["treescale", "status"])
    say("\nThe node comes back:")
    stage.run([*stage.up, "--node", "east"], quiet=True)
    stage.wait_up(bus, set(TREE))
    stage.run(["treescale", "exec", "*", "--", "uname", "-r"])


def kill_process(stage: Stage, bus: BlockingClient) -> None:
    """A process dies and is started again."""
    chapter("7. One process dies: nobody has to do anything")
    with bus.subscribe("node.lost") as lost, bus.subscribe("node.up") as back:
        programs = stage.folder("west").programs() or []
        began = time.monotonic()
        took_ms = _kill(stage, [each.pid for each in programs if each.name == "router"], lost)
        expect(back, "west")
        back_ms = (time.monotonic() - began) * 1000
    say(f"The root knew it after {took_ms:.1f} ms. supervisord started it again: back after {back_ms:.0f} ms.")
    stage.wait_up(bus, set(TREE))


def plug_in_worker(stage: Stage) -> None:
    """A worker of 15 lines."""
    chapter("8. A worker of your own")
    file = CHECKOUT / "examples" / "greeter.py"
    if not file.exists():
        raise Fault("the last part shows a file of the checkout: clone the project and use `make demo`")
    stage.run(["cat", str(file)])
    say("\nsupervisord of web2 keeps it running from now on; anybody above may call it:")
    command = shlex.join([sys.executable, str(file)])
    stage.run([*stage.up, "--node", "web2", "--worker", f"greeter={command}"], quiet=True)
    stage.run(["treescale", "call", "web2", "greeter.hello", '{"name": "reader"}'])


def _kill(stage: Stage, pids: Sequence[int], lost: BlockingSubscription) -> float:
    """Kill processes; return the milliseconds until the root said that their node is lost."""
    click.echo()
    stage.tell_command(["kill", "-9", *map(str, pids)])
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    expect(lost)
    return (time.monotonic() - began) * 1000
