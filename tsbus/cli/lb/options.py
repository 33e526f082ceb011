"""Options: what several commands of `treescale lb` have, and the width they write in."""

import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tsbus.cli.completion import complete_balancer, complete_server

_F = TypeVar("_F", bound=Callable[..., Any])


def balancer_option(command: _F) -> _F:
    """Give a command `--balancer`."""
    return click.option(
        "-b", "--balancer", "balancers", metavar="NAME", multiple=True, shell_complete=complete_balancer,
        help="Only this balancer; may be given several times.",
    )(command)  # fmt: skip


def servers_argument(command: _F) -> _F:
    """Give a command the SERVERs, at least one."""
    return click.argument("servers", metavar="SERVER...", nargs=-1, required=True, shell_complete=complete_server)(
        command
    )


def whole_option(command: _F) -> _F:
    """Give a command `--no-trunc`."""
    return click.option("--no-trunc", "whole", is_flag=True, help="Cut nothing.")(command)


def terminal_width(*, whole: bool = False) -> int | None:
    """Return the width of the terminal; None where there is none, or nothing is to be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() and not whole else None
