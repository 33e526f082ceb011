"""Verbs: start, stop, restart, pause, unpause, kill, rm, rename and wait."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import click

from tsbus.cli.completion import complete_container
from tsbus.cli.containers.acts import Acts, act, code_of, tell_silent
from tsbus.cli.containers.drained import (
    Draining,
    act_drained,
    drain_option,
    draining_of,
    restart_rolling,
    rolling_options,
)
from tsbus.cli.containers.finding import choose, find
from tsbus.cli.containers.options import ACT_S, confirm, each_option, names_argument, target_argument, yes_option
from tsbus.cli.edge import Option, bus_option, connect, json_option, run, stacked
from tsbus.cli.job import NO_LIMIT_S
from tsbus.cli.terminal import safe
from tsbus.records import Done

_seconds = click.option(
    "-t", "--time", "timeout_s", type=click.FloatRange(min=0), metavar="S",
    help="Seconds between the stop signal and the end by force [default: the container's own].",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be done to containers."""

    command: str
    past: str
    options: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    """Asked before it is done to several containers."""
    yes: bool = True
    one: bool = False
    """The command takes one container by its name."""
    timeout_s: float = ACT_S
    draining: Draining | None = None

    def words(self, done: Done) -> str:
        """Tell of a container with which it went well."""
        if self.command == "rename":
            return f"renamed to {safe(done.name)}"
        code = f" ({done.exit_code})" if done.exit_code is not None else ""
        return (safe(done.state) or self.past) + code


def _verb(
    *options: Option, names: Option = names_argument, each: Option = each_option
) -> Callable[[Callable[..., _Order]], click.Command]:
    """Make a command of a function that is given `options` and returns what is to be done to the named containers."""

    def give(order_of: Callable[..., _Order]) -> click.Command:
        @wraps(order_of)
        def command(
            target: str, names: Sequence[str], as_json: bool, bus: str | None, each: bool = True, **given: Any
        ) -> int:
            return run(_act(bus, order_of(**given), target, names, each, as_json))

        return click.command()(stacked(target_argument, names, *options, each, json_option, bus_option)(command))

    return give


async def _act(bus: str | None, order: _Order, target: str, names: Sequence[str], each: bool, as_json: bool) -> int:
    async with connect(bus, f"treescale-{order.command}") as client:
        finding = await find(client, target, names)
        matches = choose(finding, names, target, single=not each)
        if order.question and len(matches) > 1:
            listed = ", ".join(match.label for match in matches[:10]) + (", ..." if len(matches) > 10 else "")
            confirm(f"{order.question} {len(matches)} containers ({listed})?", yes=order.yes)
        acts = Acts(matches, order.words, as_json=as_json)
        if each:  # all of them were meant, also those that nobody knows of
            acts.endings |= finding.lost
        else:
            tell_silent(finding)
        if order.draining and order.command == "restart":
            whole = await restart_rolling(client, matches, order.options, acts, order.draining)
        elif order.draining:
            whole = await act_drained(
                client, order.command, matches, order.options, acts, order.timeout_s, order.draining
            )
        else:
            whole = await act(client, order.command, matches, order.options, acts, order.timeout_s, one=order.one)
    return code_of(whole, acts.finish())


@_verb()
def start() -> _Order:
    """Start containers that exist.

    \b
    Examples:
      treescale container start node1 web
      treescale container start @web web --each
    """
    return _Order("start", "started")


@_verb(_seconds, drain_option)
def stop(timeout_s: float | None, drain: bool, skip_lost: bool) -> _Order:
    """Stop containers: their stop signal first, and force when that does not help.

    With --drain no client of a balancer meets an error: all of them are drained at the same time, and stopped then.

    \b
    Examples:
      treescale container stop node1 web
      treescale container stop '*' 4f0c --time 30
      treescale container stop @web web --each
      treescale container stop node1 web --drain
    """
    draining = draining_of(drain, "--drain", skip_lost=skip_lost)
    return _Order("stop", "stopped", _given(timeout_s=timeout_s), draining=draining)


@_verb(_seconds, drain_option, rolling_options)
def restart(
    timeout_s: float | None, drain: bool, skip_lost: bool, parallel: int | None, wait_s: float | None
) -> _Order:
    """Stop containers, if they run, and start them.

    With --drain one after the other, and no client of a balancer meets an error: the next one follows when the one
    before is active again in every balancer in which it was. If it is not in time, the rest is left as it is.

    \b
    Examples:
      treescale container restart node1 web
      treescale container restart @web web --each --drain
    """
    draining = draining_of(drain, "--drain", skip_lost=skip_lost, parallel=parallel, wait_s=wait_s)
    return _Order("restart", "restarted", _given(timeout_s=timeout_s), draining=draining)


@_verb()
def pause() -> _Order:
    """Freeze all processes of containers.

    \b
    Examples:
      treescale container pause node1 batch
    """
    return _Order("pause", "paused")


@_verb()
def unpause() -> _Order:
    """Let containers that were paused go on.

    \b
    Examples:
      treescale container unpause node1 batch
    """
    return _Order("unpause", "running")


_signal = click.option(
    "-s", "--signal", "signal_name", default="KILL", show_default=True, help="Name or number of the signal."
)
_force = click.option("-f", "--force", is_flag=True, help="Also containers that run: they are killed.")
_volumes = click.option("-v", "--volumes", is_flag=True, help="Remove their volumes without a name as well.")


@_verb(_signal, drain_option, yes_option)
def kill(signal_name: str, drain: bool, skip_lost: bool, yes: bool) -> _Order:
    """Send a signal to the first process of containers. More than one container is asked for.

    \b
    Examples:
      treescale container kill node1 web
      treescale container kill @web web --signal HUP --each --yes
    """
    question = f"Send the signal {signal_name} to"
    draining = draining_of(drain, "--drain", skip_lost=skip_lost)
    return _Order("kill", "killed", {"signal": signal_name}, question, yes, draining=draining)


@_verb(_force, _volumes, drain_option, yes_option)
def rm(force: bool, volumes: bool, drain: bool, skip_lost: bool, yes: bool) -> _Order:
    """Remove containers. With --force, more than one is asked for.

    \b
    Examples:
      treescale container rm node1 web
      treescale container rm '*' web --force --each
      treescale container rm node1 web --force --drain
    """
    if drain and not force:
        raise click.UsageError("--drain goes with --force: without it only containers that do not run are removed.")
    draining = draining_of(drain, "--drain", skip_lost=skip_lost)
    options = _given(force=force or None, volumes=volumes or None)
    return _Order("rm", "removed", options, "Kill and remove" if force else "", yes, draining=draining)


_one_name = click.argument(
    "names", metavar="NAME", shell_complete=complete_container, callback=lambda _, __, name: (name,)
)


@_verb(click.argument("new"), names=_one_name)
def rename(new: str) -> _Order:
    """Give a container the name NEW.

    \b
    Examples:
      treescale container rename node1 web web-old
    """
    return _Order("rename", "renamed", {"name": new}, one=True)


_for = click.option("--for", "state", type=click.Choice(["died", "healthy", "running", "removed"]), default="died",
                    show_default=True, help="What to wait for.")  # fmt: skip
_patience = click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.01), metavar="S", default=NO_LIMIT_S,
                         help="Give up after S seconds; exit code 4 [default: never].")  # fmt: skip


@_verb(_for, _patience, each=stacked())  # it is always for each of them
def wait(state: str, timeout_s: float) -> _Order:
    """Wait until containers have ended, and print how; or until they are healthy, running or removed.

    \b
    Examples:
      treescale container wait node1 job
      treescale container wait @web web --for healthy --timeout 60
    """
    return _Order("wait", state, {"for": state}, timeout_s=timeout_s)


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None: the node knows the default of the others."""
    return {name: value for name, value in options.items() if value is not None}
