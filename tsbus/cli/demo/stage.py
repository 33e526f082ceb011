"""Stage: what the parts of the demo stand on: its nodes, and commands that are shown as they run."""

import contextlib
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from tsbus.blocking import BlockingClient, BlockingSubscription, connect_blocking
from tsbus.cli.edge import Code, Fault
from tsbus.cli.screen import columns
from tsbus.core.events import Event
from tsbus.supervision.conf import SERVICES
from tsbus.supervision.local import NodeFolder, default_run_dir, folders_in, port_is_free, stop

WAIT_S: Final = 60.0
"""Longer than anything takes here, on a busy machine."""
HERE: Final = "127.0.0.1"
CHECKOUT: Final = Path(__file__).parents[3]
_PORTS: Final = range(10_000, 30_000)
"""Below the ports that the system gives to outgoing connections, which could take one that is free for a moment."""


def say(text: str) -> None:
    """Print a line for the reader, at once; on a terminal words are not broken."""
    width = columns()
    click.echo(
        text if width is None or text.startswith(" ") else click.wrap_text(text, width, preserve_paragraphs=True)
    )
    sys.stdout.flush()


def chapter(title: str) -> None:
    """Begin a part."""
    click.echo()
    click.secho(f"== {title}", bold=True)


class Stage:
    """The nodes of the demo, and its commands."""

    def __init__(self, file: Path) -> None:
        """`file`: where the tree is, or will be."""
        self.file = file
        self.run_dir = default_run_dir(file)
        self.up = ("treescale", "up", str(file))
        programs = CHECKOUT / "bin"
        self.programs = programs if programs.is_dir() else Path(sys.executable).parent

    def stop(self) -> None:
        """End all that runs."""
        stop(folders_in(self.run_dir))

    def remove(self) -> None:
        """Remove what is in the run directory."""
        shutil.rmtree(self.run_dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.run_dir.parent.rmdir()  # unless others have trees in it

    def tell_logs(self) -> None:
        """Print the last line of every log, before they are removed."""
        for node in folders_in(self.run_dir):
            for service in SERVICES:
                click.echo(f"{node.name} {service}: {node.last_words(service)}", err=True)

    def bus(self, node: str) -> str:
        """Return the address of a node's router."""
        return str(self.run_dir / node / "bus")

    def folder(self, node: str) -> NodeFolder:
        """Return where the things of a node are."""
        return NodeFolder(node, self.run_dir / node)

    # Commands.

    def tell_command(self, argv: Sequence[str], at: str = "root", end: str = "") -> None:
        """Print a command line as the reader would type it."""
        where = "" if at == "root" else f"TREESCALE_BUS={self.bus(at)} "
        click.secho(f"$ {where}{shlex.join(argv)}{end}", fg="cyan")
        sys.stdout.flush()

    def start(self, argv: Sequence[str], at: str = "root", **options: Any) -> subprocess.Popen[str]:
        """Start a command."""
        program = self.programs / argv[0]
        command = [str(program) if program.exists() else argv[0], *argv[1:]]
        return subprocess.Popen(command, env=os.environ | {"TREESCALE_BUS": self.bus(at)}, **options)

    def run(self, argv: Sequence[str], at: str = "root", expected: int = Code.OK, *, quiet: bool = False) -> None:
        """Run a command that the reader sees. Raises Fault when it does not end as expected."""
        with self.running(argv, at, expected, stdout=subprocess.DEVNULL if quiet else None):
            pass

    @contextlib.contextmanager
    def running(self, argv: Sequence[str], at: str = "root", expected: int = Code.OK, **options: Any) -> Iterator[None]:
        """Run a command that the reader sees, until its end. Raises Fault when that is not as expected."""
        click.echo()
        self.tell_command(argv, at)
        with self.start(argv, at, **options) as process:
            try:
                yield
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        if code != expected:
            raise Fault(f"{shlex.join(argv)} ended with {code} instead of {int(expected)}")

    @contextlib.contextmanager
    def listening(self, argv: Sequence[str], nodes: Sequence[str]) -> Iterator[Callable[[], None]]:
        """Run a command that listens on some nodes; gives what waits for its end and prints what was heard."""
        listeners: dict[str, subprocess.Popen[str]] = {}
        click.echo()
        try:
            for name in nodes:
                self.tell_command(argv, name, " &")
                listeners[name] = self.start(argv, name, stdout=subprocess.PIPE, text=True)
            for name in nodes:
                self._wait_listening(name)
            yield partial(_tell_heard, listeners)
        finally:
            for listener in listeners.values():
                listener.kill()

    def _wait_listening(self, node: str) -> None:
        """Wait until the subscription of the command that listens on `node` is known there."""
        with connect_blocking(self.bus(node), name="demo") as bus:
            for _ in until(f"what listens on {node} did not start"):
                workers = bus.call_one(node, "router.stats")["workers"]
                if any(each["name"] in ("ts-sub", "treescale-events") and each["subscriptions"] for each in workers):
                    return

    def wait_up(self, bus: BlockingClient, names: set[str]) -> None:
        """Wait until the root knows that nodes are up."""
        for _ in until(f"not up: {', '.join(sorted(names))}"):
            nodes = bus.call_one("root", "router.status")["nodes"]
            if names <= {each["name"] for each in nodes if each["state"] == "up"}:
                return


def _tell_heard(listeners: dict[str, "subprocess.Popen[str]"]) -> None:
    for name, listener in listeners.items():
        heard, _ = listener.communicate()
        if listener.returncode:
            raise Fault(f"the event did not reach {name}")
        for line in heard.splitlines():
            say(f"  at {name}: {line.strip()}")


def expect(events: BlockingSubscription, node: str = "") -> Event:
    """Wait for an event about `node`, or any. Raises Fault after WAIT_S."""
    with contextlib.suppress(TimeoutError):
        while True:
            event = events.next(WAIT_S)
            if isinstance(event, Event) and (not node or event.json()["node"] == node):
                return event
    raise Fault(f"nobody told of {node or 'a lost node'}")


def until(trouble: str) -> Iterator[None]:
    """Try again and again. Raises Fault with `trouble` after WAIT_S."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    raise Fault(trouble)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    start = random.choice(_PORTS[:-1000])  # noqa: S311 - it only keeps two demos apart
    return [port for port in range(start, _PORTS[-1]) if port_is_free(HERE, port)][:count]
