"""Lazy: a group of commands, each in a module that is imported when the command is used."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from tsbus.cli.edge import Tool

Commands = Mapping[str, tuple[str, str]]
"""Command -> `module:attribute` where it is, and its line in the help; without a line it is another name for one."""


class LazyGroup(Tool, click.Group):
    """A group of `table`; listing the commands imports none of them."""

    def __init__(self, *args: Any, table: Commands, **options: Any) -> None:
        super().__init__(*args, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names to show."""
        return [name for name, (_, line) in self.table.items() if line]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command that is meant; an unknown one is an error that names the nearest."""
        if args[0] not in self.table and not args[0].startswith("-"):
            raise click.NoSuchCommand(args[0], possibilities=self.list_commands(ctx), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table into the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items() if line])
