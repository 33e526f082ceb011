"""Options: arguments and options that several commands have, and the question before what cannot be taken back."""

import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import click

from tsbus.cli.completion import complete_container, complete_target
from tsbus.cli.edge import Code, Fault, run

P = ParamSpec("P")

ASK_S = 5.0
"""Patience with what a monitor knows by heart."""
ACT_S = 600.0
"""Patience with what an engine does; a container may take its time to stop."""


target_argument = click.argument("target", shell_complete=complete_target)
any_target_argument = click.argument("target", default="*", shell_complete=complete_target)
"""It may be left out: then it is all nodes."""
names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_container)
each_option = click.option("--each", is_flag=True, help="Act on all that have the name, when several nodes do.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def awaited(command: Callable[P, Coroutine[Any, Any, int]]) -> Callable[P, int]:
    """Make an ordinary function, as click wants it, of an asynchronous command."""

    @wraps(command)
    def call(*args: P.args, **options: P.kwargs) -> int:
        return run(command(*args, **options))

    return call


def confirm(question: str, *, yes: bool, needed: bool = False) -> None:
    """Ask on a terminal, unless `yes`; where nobody can be asked it is a fault if the answer is `needed`.

    Raises Abort for a no, and for Ctrl-C or the end of the input, behind which the shell's prompt begins a line.
    """
    if yes:
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        try:
            with _ended_at_once():
                sure = click.confirm(question, err=True)
        except click.Abort:
            click.echo(err=True)
            raise
        if not sure:
            raise click.Abort
    elif needed:
        raise Fault(f"{question} Nobody can be asked here: say --yes", Code.USAGE)


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """Let what ends us raise KeyboardInterrupt; an event loop would note it and wait for an answer all the same."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # not with nohup
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
