"""Sub: the program `ts-sub`, which prints events or hands them to a command, and `treescale events`.

A fast stream is written in as few pieces as the event loop has turns; when the reader is slow, writing waits, so the
router sees a slow worker and drops the oldest events, which shows here as a gap.
"""

import asyncio
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import click

from tsbus.cli import eventlines
from tsbus.cli.completion import complete_target
from tsbus.cli.edge import HELP, Code, Tool, bus_option, connect, forget_stdout, json_option, run
from tsbus.cli.job import nodes_of
from tsbus.cli.terminal import safe
from tsbus.core.body import body_json
from tsbus.core.topic import check_pattern, matches

if TYPE_CHECKING:
    from tsbus import Event, Gap
    from tsbus.client import Client
    from tsbus.subscription import Subscription

BUS_EVENTS = ("node.>", "bus.>", "worker.>", "process.>", "handler.>", "alert.>")
COMMAND_LINES = ("treescale-", "ts-pub", "ts-sub", "completion")
"""How their names on the bus begin."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events, and when it is enough."""

    bus: str | None
    patterns: Sequence[str]
    scope: str = "all"
    origins: str | None = None
    """A target; None for all nodes."""
    count: int | None = None
    timeout_s: float | None = None
    accepts: "Callable[[Event], bool] | None" = None
    """What else an event must be."""


def _patterns(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        check_pattern(value)
    return values


def _argv(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    try:
        return shlex.split(value) if value else []
    except ValueError as error:
        raise click.BadParameter(f"{error}: {value!r}", ctx, param) from None


count_option = click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N events.")
timeout_option = click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="S",
                        help="Stop after S seconds; exit code 4 if --count was not reached.")  # fmt: skip


@click.command(name="ts-sub", cls=Tool, context_settings=HELP)
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True, callback=_patterns)
@json_option
@click.option("--raw", is_flag=True, help="Print the body alone.")
@count_option
@timeout_option
@click.option("--from", "origins", metavar="TARGET", shell_complete=complete_target,
              help="Only events that were published on these nodes.")  # fmt: skip
@click.option("--scope", type=click.Choice(["all", "subtree", "node"]), default="all", show_default=True,
              help="How far to listen: subtree is this node and those below it.")  # fmt: skip
@click.option("--exec", "argv", metavar="CMD", callback=_argv,
              help="Run CMD for each event, one at a time and without a shell: the body on its standard input, the "
              "rest in TREESCALE_TOPIC, _ORIGIN, _WHO and _TIME_MS.")  # fmt: skip
@bus_option
def sub(
    patterns: tuple[str, ...],
    as_json: bool,
    raw: bool,
    count: int | None,
    timeout_s: float | None,
    origins: str | None,
    scope: str,
    argv: list[str],
    bus: str | None,
) -> int:
    """Print the events whose topic matches: one a line, as node, topic and body.

    In a PATTERN, * is one word and a last > all the rest. Events that were dropped because we did not keep up are
    counted on stderr.

    \b
    Examples:
      ts-sub 'deploy.>'
      ts-sub 'alert.*' --json --from @web
      ts-sub backup.done --count 1 --timeout 60 --raw
      ts-sub 'container.died' --exec 'logger -t tree'
    """
    wanted = Wanted(bus, patterns, scope, origins, count, timeout_s)
    if argv:
        return run(follow(wanted, "ts-sub", lambda gate: _Runner(gate, argv)))
    line = eventlines.as_json if as_json else eventlines.raw if raw else eventlines.plain
    return run(follow(wanted, "ts-sub", lambda gate: Printer(gate, line)))


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, callback=_patterns)
@json_option
@count_option
@timeout_option
@bus_option
def events(
    patterns: tuple[str, ...], as_json: bool, count: int | None, timeout_s: float | None, bus: str | None
) -> int:
    """Watch what happens in the tree: nodes, workers and processes that come and go, peers that do not keep up, alerts.

    Command lines come and go, too: they are shown only where a PATTERN asks for worker events.

    \b
    Examples:
      treescale events
      treescale events node.lost --count 1
      treescale events 'lb.*'              what balancers do, and why
      treescale events '>'                 everything that anybody publishes
    """
    accepts = None if patterns else _is_news
    wanted = Wanted(bus, patterns or BUS_EVENTS, count=count, timeout_s=timeout_s, accepts=accepts)
    line = eventlines.as_json if as_json else eventlines.told
    return run(follow(wanted, "treescale-events", lambda gate: Printer(gate, line)))


def _is_news(event: "Event") -> bool:
    """Tell whether an event is more than the coming and going of a command line."""
    if not event.topic.startswith("worker."):
        return True
    facts = body_json(event.body).get("body")
    return not (isinstance(facts, dict) and str(facts.get("name")).startswith(COMMAND_LINES))


class Gate:
    """Lets each wanted event through once, until it is enough: then `enough` is done."""

    def __init__(self, wanted: Wanted, origins: frozenset[str] | None) -> None:
        self.enough: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._patterns = wanted.patterns
        self._origins = origins
        self._accepts = wanted.accepts
        self._left = wanted.count or sys.maxsize
        self._first = lru_cache(4096)(self._first_pattern)

    def _first_pattern(self, topic: str) -> str:
        return next(pattern for pattern in self._patterns if matches(pattern, topic))

    def lets(self, event: "Event", pattern: str) -> bool:
        """Tell whether to take the event that came for `pattern`. One that fits several patterns comes for each."""
        if self._origins is not None and event.origin not in self._origins:
            return False
        if not self._left or (len(self._patterns) > 1 and self._first(event.topic) != pattern):
            return False
        if self._accepts is not None and not self._accepts(event):
            return False
        self._left -= 1
        return True

    @property
    def full(self) -> bool:
        """Whether the last event was let through."""
        return not self._left

    def end(self, error: OSError | None = None) -> None:
        """It is enough, or cannot go on."""
        if self.enough.done():
            return
        if error is None:
            self.enough.set_result(None)
        else:
            self.enough.set_exception(error)


async def follow(wanted: Wanted, name: str, sink: "Callable[[Gate], Printer | _Runner]") -> int:
    """Hand events to `sink` until it is enough; returns the exit code. `name` is ours on the bus."""
    async with connect(wanted.bus, name) as client:
        gate = Gate(wanted, await nodes_of(client, wanted.origins) if wanted.origins else None)
        take = sink(gate).take
        for place, pattern in enumerate(wanted.patterns):
            # Every subscription is told of a gap; once is enough.
            on_gap = None if place else _tell_gap
            callback = partial(take, pattern)
            last = await client.subscribe(pattern, scope=wanted.scope, callback=callback, on_gap=on_gap)
        telling = asyncio.create_task(_tell_away(client, last))
        try:
            async with asyncio.timeout(wanted.timeout_s):
                await gate.enough
        except BrokenPipeError:
            forget_stdout()
        except TimeoutError:
            return Code.UNREACHABLE if wanted.count else Code.OK
        finally:
            telling.cancel()
    return Code.OK


async def _tell_away(client: "Client", subscription: "Subscription") -> None:
    """Tell when the router goes away, and when it is back: what happens meanwhile, nobody hears."""
    while True:
        await subscription.wait_lost()
        click.echo("the router is away: waiting for it", err=True)
        await client.wait_connected()
        await subscription.wait_known()
        click.echo("the router is back: what happened meanwhile was missed", err=True)


def _tell_gap(gap: "Gap") -> None:
    click.echo(f"{gap.count} events were dropped at {safe(gap.at)}: somebody did not keep up", err=True)


class Printer:
    """Prints lines: in one piece for all events that came in one turn of the loop."""

    def __init__(self, gate: Gate, line: "Callable[[Event], bytes]") -> None:
        self._gate = gate
        self._line = line
        self._lines: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def take(self, pattern: str, event: "Event") -> None:
        """Take an event that came for `pattern`."""
        if self._gate.lets(event, pattern):
            if not self._lines:
                self._loop.call_soon(self._flush)
            self._lines.append(self._line(event))
            if self._gate.full:
                self._loop.call_soon(self._gate.end)

    def _flush(self) -> None:
        data = b"".join(self._lines)
        self._lines.clear()
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as error:
            self._gate.end(error)


class _Runner:
    """Runs a command for each event, one after the other."""

    def __init__(self, gate: Gate, argv: list[str]) -> None:
        self._gate = gate
        self._argv = argv
        self._turn = asyncio.Lock()

    async def take(self, pattern: str, event: "Event") -> None:
        """Take an event that came for `pattern`; the next one waits in the subscription."""
        async with self._turn:
            if self._gate.lets(event, pattern):
                try:
                    await self._run_for(event)
                except OSError as error:
                    self._gate.end(error)
                if self._gate.full:
                    self._gate.end()

    async def _run_for(self, event: "Event") -> None:
        facts = {"TOPIC": event.topic, "ORIGIN": event.origin, "WHO": event.who, "TIME_MS": str(event.time_ms)}
        env = os.environ | {f"TREESCALE_{key}": value for key, value in facts.items()}
        process = await asyncio.create_subprocess_exec(*self._argv, stdin=asyncio.subprocess.PIPE, env=env)
        await process.communicate(event.body)
        if process.returncode:
            click.echo(f"{self._argv[0]}: exit {process.returncode} for {safe(event.topic)}", err=True)


def main() -> None:
    """Run `ts-sub` and exit."""
    sub.main()
