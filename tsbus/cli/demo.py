"""Demo: `treescale demo`, a tree of seven real nodes on this machine, shown with the commands that anybody would use.

At the end, however it comes, no process and no file is left.
"""

import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tsbus.blocking import BlockingClient, BlockingSubscription, connect_blocking
from tsbus.cli.edge import Code, Fault
from tsbus.config import Server, Tree, dump
from tsbus.core.message import Gap
from tsbus.supervision import control
from tsbus.supervision.conf import SERVICES
from tsbus.supervision.local import NodeFolder, default_run_dir, folders_in, port_is_free, stop

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
WAIT_S = 20.0
"""Longer than anything takes here."""
_HERE = "127.0.0.1"
_PORTS = range(10_000, 30_000)
"""Below the ports that the system gives to outgoing connections, which could take one that is free for a moment."""
_CHECKOUT = Path(__file__).parents[2]


@click.command()
@click.option("--once", is_flag=True, help="End after the show instead of staying up.")
def demo(once: bool) -> int:
    """Show a living tree: seven nodes in three levels, events, commands, deaths and a worker of your own.

    It prints each command that it runs; repeat them in another terminal while it stays up. Ctrl-C ends it and removes
    everything.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="treescale-demo-"))
    shown = _Demo(folder / "tree.toml")
    try:
        shown.show()
        if not once:
            _say("\nThe tree stays up: try it in another terminal, with the export lines of part 1. Ctrl-C ends it.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
            click.echo()
    except Fault:
        shown.tell_logs()
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        shown.remove()
        shutil.rmtree(folder)
    return Code.OK


def _say(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()


def _chapter(title: str) -> None:
    click.echo()
    click.secho(f"== {title}", bold=True)


class _Demo:
    """The show."""

    def __init__(self, file: Path) -> None:
        """`file`: where to write the tree."""
        self._file = file
        self._run_dir = default_run_dir(file)
        self._up = ["treescale", "up", str(file)]
        programs = _CHECKOUT / "bin"
        self._programs = programs if programs.is_dir() else Path(sys.executable).parent

    def remove(self) -> None:
        """End all that runs and remove what is in the run directory."""
        stop(folders_in(self._run_dir))
        shutil.rmtree(self._run_dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._run_dir.parent.rmdir()  # unless others have trees in it
        _say("\nAll nodes are stopped and their files removed.")

    def tell_logs(self) -> None:
        """Print the last line of every log, before they are removed."""
        for node in folders_in(self._run_dir):
            for service in SERVICES:
                click.echo(f"{node.name} {service}: {node.last_words(service)}", err=True)

    def show(self) -> None:
        """Show all of it. Raises Fault when something does not go as told."""
        self._come_up()
        with connect_blocking(self._bus("root"), name="demo") as bus:
            self._send_event()
            self._run_command()
            self._kill_node(bus)
            self._kill_process(bus)
            self._plug_in_worker()

    def _come_up(self) -> None:
        _chapter("1. Seven nodes come up")
        _say("Each is a supervisord with a router, an executor and an event listener; all links are encrypted.")
        ports = _free_ports(len(TREE))
        servers = {
            name: Server(name, _HERE, port, tags=(TAGS[name],) if name in TAGS else (), childs=childs)
            for (name, childs), port in zip(TREE.items(), ports, strict=True)
        }
        self._file.write_text(dump(Tree(servers)))
        self._run(self._up)
        _say(f"  export PATH={self._programs}:$PATH")
        _say("With these two lines you can repeat all that follows.")

    def _send_event(self) -> None:
        _chapter("2. An event from a leaf reaches the root and everybody with the tag db")
        _say("Three listen, at the root and on the two nodes with the tag; then web1 says something to them.")
        listen = ["ts-sub", "order.>", "--count", "1", "--timeout", "20"]
        listeners = {}
        click.echo()
        try:
            for name in ("root", "db1", "db2"):
                self._tell_command(listen, name, " &")
                listeners[name] = self._start(listen, name, stdout=subprocess.PIPE, text=True)
            for name in listeners:
                self._wait_listening(name)
            self._run(["ts-pub", "order.paid", '{"order": 1207}', "--to", "root,@db"], at="web1")
            for name, listener in listeners.items():
                heard, _ = listener.communicate()
                if listener.returncode:
                    raise Fault(f"the event did not reach {name}")
                _say(f"  at {name}: {heard.strip()}")
        finally:
            for listener in listeners.values():
                listener.kill()

    def _run_command(self) -> None:
        _chapter("3. A command on all nodes; equal answers are folded")
        self._run(["treescale", "exec", "*", "--", "uname", "-a"])

    def _kill_node(self, bus: BlockingClient) -> None:
        _chapter("4. A whole node dies: kill -9 of all its processes at once")
        with bus.subscribe("node.lost") as lost:
            supervisords, programs = control.pids_of(NodeFolder("east", self._run_dir / "east").files)
            took_ms = self._kill([*supervisords, *programs], lost)
        _say(f"The root knew it {took_ms:.1f} ms after the kill. A command does not wait for the dead, it names them:")
        self._run(["treescale", "exec", "*", "--", "uname", "-r"], expected=Code.PARTIAL)
        _say("\nThe children of east live. Two seconds later the root has adopted them:")
        self._wait_up(bus, set(TREE) - {"east"})
        self._run(["treescale", "status"])
        _say("\nThe node comes back:")
        self._run([*self._up, "--node", "east"], quiet=True)
        self._wait_up(bus, set(TREE))
        self._run(["treescale", "exec", "*", "--", "uname", "-r"])

    def _kill_process(self, bus: BlockingClient) -> None:
        _chapter("5. One process dies: nobody has to do anything")
        with bus.subscribe("node.lost") as lost, bus.subscribe("node.up") as back:
            programs = NodeFolder("west", self._run_dir / "west").programs() or []
            began = time.monotonic()
            took_ms = self._kill([each.pid for each in programs if each.name == "router"], lost)
            _await(back, "west")
            back_ms = (time.monotonic() - began) * 1000
        _say(f"The root knew it after {took_ms:.1f} ms. supervisord started it again: back after {back_ms:.0f} ms.")
        self._wait_up(bus, set(TREE))

    def _plug_in_worker(self) -> None:
        _chapter("6. A worker of your own")
        file = _CHECKOUT / "examples" / "greeter.py"
        if not file.exists():
            raise Fault("the last part shows a file of the checkout: clone the project and use `make demo`")
        self._run(["cat", str(file)])
        _say("\nsupervisord of web2 keeps it running from now on; anybody above may call it:")
        command = shlex.join([sys.executable, str(file)])
        self._run([*self._up, "--node", "web2", "--worker", f"greeter={command}"], quiet=True)
        self._run(["treescale", "call", "web2", "greeter.hello", '{"name": "reader"}'])

    # What the parts are made of.

    def _bus(self, node: str) -> str:
        return str(self._run_dir / node / "bus")

    def _tell_command(self, argv: list[str], at: str = "root", end: str = "") -> None:
        where = "" if at == "root" else f"TREESCALE_BUS={self._bus(at)} "
        click.secho(f"$ {where}{shlex.join(argv)}{end}", fg="cyan")
        sys.stdout.flush()

    def _start(self, argv: list[str], at: str = "root", **options: Any) -> subprocess.Popen[str]:
        program = self._programs / argv[0]
        command = [str(program) if program.exists() else argv[0], *argv[1:]]
        return subprocess.Popen(command, env=os.environ | {"TREESCALE_BUS": self._bus(at)}, **options)

    def _run(self, argv: list[str], at: str = "root", expected: int = Code.OK, *, quiet: bool = False) -> None:
        """Run a command that the reader sees. Raises Fault when it does not end as expected."""
        click.echo()
        self._tell_command(argv, at)
        process = self._start(argv, at, stdout=subprocess.DEVNULL if quiet else None)
        with process:
            code = process.wait()
        if code != expected:
            raise Fault(f"{shlex.join(argv)} ended with {code} instead of {int(expected)}")

    def _wait_listening(self, node: str) -> None:
        """Wait until the subscription of the ts-sub on `node` is known there."""
        with connect_blocking(self._bus(node), name="demo") as bus:
            for _ in _until(f"ts-sub on {node} did not start"):
                workers = bus.call_one(node, "router.stats")["workers"]
                if any(each["name"] == "ts-sub" and each["subscriptions"] for each in workers):
                    return

    def _wait_up(self, bus: BlockingClient, names: set[str]) -> None:
        for _ in _until(f"not up: {', '.join(sorted(names))}"):
            nodes = bus.call_one("root", "router.status")["nodes"]
            if names <= {each["name"] for each in nodes if each["state"] == "up"}:
                return

    def _kill(self, pids: list[int], lost: BlockingSubscription) -> float:
        """Kill processes; return the milliseconds until the root said that their node is lost."""
        click.echo()
        self._tell_command(["kill", "-9", *map(str, pids)])
        began = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        _await(lost)
        return (time.monotonic() - began) * 1000


def _await(events: BlockingSubscription, node: str = "") -> None:
    """Wait for an event about `node`, or any. Raises Fault after WAIT_S."""
    with contextlib.suppress(TimeoutError):
        while True:
            event = events.next(WAIT_S)
            if isinstance(event, Gap) or not node or event.json()["node"] == node:
                return
    raise Fault(f"nobody told of {node or 'a lost node'}")


def _until(trouble: str) -> Iterator[None]:
    """Try again and again. Raises Fault with `trouble` after WAIT_S."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        yield
        time.sleep(0.05)
    raise Fault(trouble)


def _free_ports(count: int) -> list[int]:
    start = random.choice(_PORTS[:-1000])  # noqa: S311 - it only keeps two demos apart
    return [port for port in range(start, _PORTS[-1]) if port_is_free(_HERE, port)][:count]
