"""Main: the program `treescale`. Each command lives in a module that is imported when the command is used."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from tsbus import __version__
from tsbus.cli.edge import EXIT_CODES, Tool

COMMANDS = {
    "status": ("tsbus.cli.status:status", "Draw the tree: who is up, who is lost, and why."),
    "ping": ("tsbus.cli.ping:ping", "Measure the round trip to nodes."),
    "exec": ("tsbus.cli.exec:exec_", "Run a program on nodes."),
    "call": ("tsbus.cli.call:call", "Call any worker's command on nodes."),
    "events": ("tsbus.cli.sub:events", "Watch the tree's own events."),
    "config": ("tsbus.cli.config:config", "Check and show configuration files."),
    "keys": ("tsbus.cli.keys:keys", "Make and show CURVE keys."),
    "up": ("tsbus.cli.up:up", "Start the nodes of a tree file on this machine."),
    "demo": ("tsbus.cli.demo:demo", "Show a small living tree on this machine."),
    "version": ("tsbus.cli.version:version", "Print the version."),
    "completion": ("tsbus.cli.completion:completion", "Print the completion script for a shell."),
}
"""Command -> where it is, and its line in `treescale --help`."""


class _Commands(Tool, click.Group):
    """The group of COMMANDS; listing them imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.NoSuchCommand(args[0], possibilities=list(COMMANDS), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_Commands, name="treescale", context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES
)
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
