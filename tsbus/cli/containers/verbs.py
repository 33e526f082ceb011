"""Verbs: start, stop, restart, pause, unpause, kill, rm, rename and wait."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

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
from tsbus.cli.containers.options import (
    ACT_S,
    confirm,
    each_option,
    name_argument,
    names_argument,
    target_argument,
    yes_option,
)
from tsbus.cli.edge import bus_option, connect, json_option, run
from tsbus.cli.job import NO_LIMIT_S
from tsbus.cli.terminal import safe
from tsbus.records import Done

_seconds = click.option(
    "-t", "--time", "timeout_s", type=click.FloatRange(min=0), metavar="S",
    help="Seconds between the stop signal and the end by force [default: the container's own].",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be done to which containers."""

    command: str
    past: str
    target: str
    names: Sequence[str]
    each: bool = False
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


def _do(bus: str | None, order: _Order, as_json: bool) -> int:
    return run(_act(bus, order, as_json))


async def _act(bus: str | None, order: _Order, as_json: bool) -> int:
    async with connect(bus, f"treescale-{order.command}") as client:
        finding = await find(client, order.target, order.names)
        matches = choose(finding, order.names, order.target, single=not order.each)
        if order.question and len(matches) > 1:
            listed = ", ".join(match.label for match in matches[:10]) + (", ..." if len(matches) > 10 else "")
            confirm(f"{order.question} {len(matches)} containers ({listed})?", yes=order.yes)
        acts = Acts(matches, order.words, as_json=as_json)
        if order.each:  # all of them were meant, also those that nobody knows of
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


@click.command()
@target_argument
@names_argument
@each_option
@json_option
@bus_option
def start(target: str, names: tuple[str, ...], each: bool, as_json: bool, bus: str | None) -> int:
    """Start containers that exist.

    \b
    Examples:
      treescale container start node1 web
      treescale container start @web web --each
    """
    return _do(bus, _Order("start", "started", target, names, each), as_json)


@click.command()
@target_argument
@names_argument
@_seconds
@each_option
@drain_option
@json_option
@bus_option
def stop(
    target: str,
    names: tuple[str, ...],
    timeout_s: float | None,
    each: bool,
    drain: bool,
    skip_lost: bool,
    as_json: bool,
    bus: str | None,
) -> int:
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
    order = _Order("stop", "stopped", target, names, each, _given(timeout_s=timeout_s), draining=draining)
    return _do(bus, order, as_json)


@click.command()
@target_argument
@names_argument
@_seconds
@each_option
@drain_option
@rolling_options
@json_option
@bus_option
def restart(
    target: str,
    names: tuple[str, ...],
    timeout_s: float | None,
    each: bool,
    drain: bool,
    skip_lost: bool,
    parallel: int | None,
    wait_s: float | None,
    as_json: bool,
    bus: str | None,
) -> int:
    """Stop containers, if they run, and start them.

    With --drain one after the other, and no client of a balancer meets an error: the next one follows when the one
    before is active again in every balancer in which it was. If it is not in time, the rest is left as it is.

    \b
    Examples:
      treescale container restart node1 web
      treescale container restart @web web --each --drain
    """
    draining = draining_of(drain, "--drain", skip_lost=skip_lost, parallel=parallel, wait_s=wait_s)
    order = _Order("restart", "restarted", target, names, each, _given(timeout_s=timeout_s), draining=draining)
    return _do(bus, order, as_json)


@click.command()
@target_argument
@names_argument
@each_option
@json_option
@bus_option
def pause(target: str, names: tuple[str, ...], each: bool, as_json: bool, bus: str | None) -> int:
    """Freeze all processes of containers.

    \b
    Examples:
      treescale container pause node1 batch
    """
    return _do(bus, _Order("pause", "paused", target, names, each), as_json)


@click.command()
@target_argument
@names_argument
@each_option
@json_option
@bus_option
def unpause(target: str, names: tuple[str, ...], each: bool, as_json: bool, bus: str | None) -> int:
    """Let containers that were paused go on.

    \b
    Examples:
      treescale container unpause node1 batch
    """
    return _do(bus, _Order("unpause", "running", target, names, each), as_json)


@click.command()
@target_argument
@names_argument
@click.option("-s", "--signal", "signal_name", default="KILL", show_default=True, help="Name or number of the signal.")
@each_option
@drain_option
@yes_option
@json_option
@bus_option
def kill(
    target: str,
    names: tuple[str, ...],
    signal_name: str,
    each: bool,
    drain: bool,
    skip_lost: bool,
    yes: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """Send a signal to the first process of containers. More than one container is asked for.

    \b
    Examples:
      treescale container kill node1 web
      treescale container kill @web web --signal HUP --each --yes
    """
    question = f"Send the signal {signal_name} to"
    draining = draining_of(drain, "--drain", skip_lost=skip_lost)
    order = _Order("kill", "killed", target, names, each, {"signal": signal_name}, question, yes, draining=draining)
    return _do(bus, order, as_json)


@click.command()
@target_argument
@names_argument
@click.option("-f", "--force", is_flag=True, help="Also containers that run: they are killed.")
@click.option("-v", "--volumes", is_flag=True, help="Remove their volumes without a name as well.")
@each_option
@drain_option
@yes_option
@json_option
@bus_option
def rm(
    target: str,
    names: tuple[str, ...],
    force: bool,
    volumes: bool,
    each: bool,
    drain: bool,
    skip_lost: bool,
    yes: bool,
    as_json: bool,
    bus: str | None,
) -> int:
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
    question = "Kill and remove" if force else ""
    return _do(bus, _Order("rm", "removed", target, names, each, options, question, yes, draining=draining), as_json)


@click.command()
@target_argument
@name_argument
@click.argument("new")
@each_option
@json_option
@bus_option
def rename(target: str, name: str, new: str, each: bool, as_json: bool, bus: str | None) -> int:
    """Give a container the name NEW.

    \b
    Examples:
      treescale container rename node1 web web-old
    """
    return _do(bus, _Order("rename", "renamed", target, (name,), each, {"name": new}, one=True), as_json)


@click.command()
@target_argument
@names_argument
@click.option("--for", "state", type=click.Choice(["died", "healthy", "running", "removed"]), default="died",
              show_default=True, help="What to wait for.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.01), metavar="S", default=NO_LIMIT_S,
              help="Give up after S seconds; exit code 4 [default: never].")  # fmt: skip
@json_option
@bus_option
def wait(target: str, names: tuple[str, ...], state: str, timeout_s: float, as_json: bool, bus: str | None) -> int:
    """Wait until containers have ended, and print how; or until they are healthy, running or removed.

    \b
    Examples:
      treescale container wait node1 job
      treescale container wait @web web --for healthy --timeout 60
    """
    order = _Order("wait", state, target, names, each=True, options={"for": state}, timeout_s=timeout_s)
    return _do(bus, order, as_json)


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None: the node knows the default of the others."""
    return {name: value for name, value in options.items() if value is not None}
