"""Main: the program `treescale`. Each command lives in a module that is imported when the command is used."""

from collections.abc import Sequence

import click

from tsbus import __version__
from tsbus.cli.edge import EXIT_CODES, HELP
from tsbus.cli.lazy import LazyGroup

COMMANDS = {
    "status": ("tsbus.cli.status:status", "Draw the tree: who is up, who is lost, and why."),
    "check": ("tsbus.cli.check:check", "Tell what is wrong in the tree, and what to do."),
    "top": ("tsbus.cli.top:top", "Show what nodes and containers use, live."),
    "ping": ("tsbus.cli.ping:ping", "Measure the round trip to nodes."),
    "exec": ("tsbus.cli.exec:exec_", "Run a program on nodes."),
    "container": ("tsbus.cli.containers.groups:container", "List, run and control containers."),
    "image": ("tsbus.cli.containers.groups:image", "List, pull and remove images."),
    "docker": ("tsbus.cli.containers.groups:docker", "Docker engines: their events, facts and disk space."),
    "lb": ("tsbus.cli.lb.groups:lb", "Load balancers: servers, traffic, drains, and what is wrong."),
    "dashboard": ("tsbus.cli.dashboard:dashboard", "Serve the dashboard; its users and tokens."),
    "audit": ("tsbus.cli.audit:audit", "Show who did what on nodes."),
    "call": ("tsbus.cli.call:call", "Call any worker's command on nodes."),
    "events": ("tsbus.cli.sub:events", "Watch the tree's own events."),
    "build": ("tsbus.cli.build.groups:build", "Make servers into nodes, over SSH, and look after them."),
    "config": ("tsbus.cli.config:config", "Check and show configuration files."),
    "keys": ("tsbus.cli.keys:keys", "Make and show CURVE keys."),
    "up": ("tsbus.cli.up:up", "Start the nodes of a tree file on this machine."),
    "worker": ("tsbus.cli.worker:worker", "Keep programs of your own running on this node."),
    "demo": ("tsbus.cli.demo:demo", "Show a small living tree on this machine."),
    "version": ("tsbus.cli.version:version", "Print the version."),
    "completion": ("tsbus.cli.completion:completion", "Print the completion script for a shell."),
}
"""Command -> where it is, and its line in `treescale --help`."""


@click.group(cls=LazyGroup, table=COMMANDS, name="treescale", context_settings=HELP, epilog=EXIT_CODES)
@click.option("--bus", metavar="ADDRESS", help="The router's socket, for every command.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli(bus: str | None) -> None:
    """Manage servers as a tree.

    \b
    Targets, wherever a command takes TARGET:
      node1          one node           node[1-40]     several
      @web           all with a tag     *              all
      node1/         node1 and below    .              this node
      @web,!node7    without node7      @web&node1/    both at once
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run `treescale` and exit."""
    cli.main(args)
