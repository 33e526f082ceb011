"""Options: arguments and options that several commands have, and the question before what cannot be taken back."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tsbus.cli.completion import complete_container, complete_target
from tsbus.cli.edge import Code, Fault

_F = TypeVar("_F", bound=Callable[..., Any])
ASK_S = 5.0
"""Patience with what a monitor knows by heart."""
ACT_S = 600.0
"""Patience with what an engine does; a container may take its time to stop."""


def target_argument(command: _F) -> _F:
    """Give a command its TARGET."""
    return click.argument("target", shell_complete=complete_target)(command)


def any_target_argument(command: _F) -> _F:
    """Give a command a TARGET that may be left out: then it is all nodes."""
    return click.argument("target", default="*", shell_complete=complete_target)(command)


def names_argument(command: _F) -> _F:
    """Give a command the NAMEs of containers, at least one."""
    return click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_container)(
        command
    )


def name_argument(command: _F) -> _F:
    """Give a command the NAME of one container."""
    return click.argument("name", shell_complete=complete_container)(command)


def each_option(command: _F) -> _F:
    """Give a command `--each`."""
    return click.option("--each", is_flag=True, help="Act on all that have the name, when several nodes do.")(command)


def yes_option(command: _F) -> _F:
    """Give a command `--yes`."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def confirm(question: str, *, yes: bool, needed: bool = False) -> None:
    """Ask on a terminal, unless `yes`; where nobody can be asked it is a fault if the answer is `needed`."""
    if yes:
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm(question, abort=True, err=True)
    elif needed:
        raise Fault(f"{question} Nobody can be asked here: say --yes", Code.USAGE)
