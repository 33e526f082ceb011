"""Drained: containers that are stopped, restarted or replaced with their connections drained first, as people see it.

tsbus.draining and tsbus.rolling do it; this asks for it, tells how far it is, and makes the account.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from tsbus.cli.containers.acts import Acts, act
from tsbus.cli.containers.finding import Match
from tsbus.cli.containers.words import count, natural
from tsbus.cli.edge import Fault, stacked
from tsbus.cli.job import telling
from tsbus.cli.report import Ending, exit_code
from tsbus.cli.terminal import safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.records import Done

if TYPE_CHECKING:
    from tsbus.client import Client
    from tsbus.draining import Balancers, Box, Seat

MAX_TOLD = 3
"""Containers whose state the line of progress tells."""


@dataclass(frozen=True, slots=True)
class Draining:
    """What was said on the command line about draining."""

    skip_lost: bool = False
    parallel: int = 1
    wait_s: float = 0.0


skip_lost_option = click.option(
    "--skip-lost", is_flag=True,
    help="Drain without the balancers of nodes that cannot be reached, because they are gone themselves.",
)  # fmt: skip
drain_option = stacked(
    click.option("--drain", is_flag=True,
                 help="First let no balancer send it connections any more, and wait until the last one is over."),
    skip_lost_option,
)  # fmt: skip
rolling_options = stacked(
    click.option("--parallel", type=click.IntRange(min=1), metavar="N",
                 help="So many at the same time [default: one after the other]."),
    click.option("--wait", "wait_s", type=click.FloatRange(min=0.1), metavar="S",
                 help="Seconds until one must be active in its balancers again [default: 60]."),
)  # fmt: skip


def draining_of(
    wanted: bool, switch: str, *, skip_lost: bool, parallel: int | None = None, wait_s: float | None = None
) -> Draining | None:
    """Return what the options say; None where nothing is to be drained. Raises UsageError for some without `switch`."""
    for given, name in ((skip_lost, "--skip-lost"), (parallel, "--parallel"), (wait_s, "--wait")):
        if given and not wanted:
            raise click.UsageError(f"{name} goes with {switch}.")
    return Draining(skip_lost, parallel or 1, wait_s or 60.0) if wanted else None


@dataclass(slots=True)
class Phases:
    """What each container is at."""

    total: int
    over: int = 0
    now: dict[str, str] = field(default_factory=dict)
    """Label -> words, of those under way."""

    def words(self) -> str:
        """Tell of them on one line; nothing while none is under way."""
        if not self.now:
            return ""
        of = [f"{self.over} of {self.total} done"] if self.total > 1 else []
        shown = [f"{label} {words}" for label, words in list(self.now.items())[:MAX_TOLD]]
        more = [f"and {len(self.now) - MAX_TOLD} more"] if len(self.now) > MAX_TOLD else []
        return "; ".join([*of, *shown, *more])


async def act_drained(
    client: "Client",
    command: str,
    matches: Sequence[Match],
    options: Mapping[str, Any],
    acts: Acts,
    timeout_s: float,
    draining: Draining,
) -> bool:
    """Drain all containers at the same time, then run `containers.COMMAND` on them. Returns False after Ctrl-C."""
    from tsbus.draining import NotDrained
    from tsbus.rolling import draining_words

    balancers = await _balancers(client, draining, acts)
    boxes = {match.label: _box(match) for match in matches}
    phases = Phases(len(boxes), now={fold(boxes): "draining"})

    def told(seats: "Sequence[Seat]") -> None:
        still = {safe(seat.box.label) for seat in seats}
        phases.over = len(boxes) - len(still)
        phases.now = {label: draining_words([s for s in seats if safe(s.box.label) == label]) for label in still}

    try:
        async with telling(acts.progress, phases.words), balancers.drain(boxes.values(), told=told):
            phases.now = {}
            whole = await act(client, command, matches, options, acts, timeout_s)
    except NotDrained as error:
        acts.endings |= dict.fromkeys(boxes, ending_of_error(error, "nothing was done: "))
        return True
    except asyncio.CancelledError:
        acts.endings |= dict.fromkeys(boxes, Ending(Outcome.CANCELLED, "interrupted before anything was done"))
        return False
    if command == "kill":  # perhaps with a signal that ends nothing
        await balancers.let_go(boxes.values())
    await balancers.undrain([box for label, box in boxes.items() if acts.endings[label].outcome is not Outcome.OK])
    return whole


async def restart_rolling(
    client: "Client", matches: Sequence[Match], options: Mapping[str, Any], acts: Acts, draining: Draining
) -> bool:
    """Drain and restart one container after the other. Returns False after Ctrl-C."""
    from tsbus.rolling import Told, restart

    balancers = await _balancers(client, draining, acts)

    def step(match: Match) -> _Step:
        def run(told: Told) -> Awaitable[Done]:
            return restart(balancers, _box(match), options, told, wait_s=draining.wait_s)

        return _Step(match.label, match.node, match.id, match.name, run)

    return await _roll([step(match) for match in matches], acts, draining.parallel)


async def replace_rolling(
    client: "Client",
    nodes: Collection[str],
    name: str,
    order: Mapping[str, Any],
    acts: Acts,
    draining: Draining,
    patience_s: float,
) -> bool:
    """Let new containers take the place of those called `name`, one after the other. Returns False after Ctrl-C."""
    from tsbus.errors import BusError
    from tsbus.rolling import Replacement, Told

    balancers = await _balancers(client, draining, acts)
    places = {node: Replacement(balancers, node, name, order, patience_s) for node in sorted(nodes, key=natural)}
    try:
        await asyncio.gather(*(place.look() for place in places.values()))
    except BusError as error:
        ending = ending_of_error(error, "nothing was done: ")
        raise Fault(ending.reason, exit_code([ending.outcome])) from None

    def step(node: str, place: Replacement) -> _Step:
        def run(told: Told) -> Awaitable[Done]:
            return place.run(told, wait_s=draining.wait_s)

        return _Step(f"{node}/{safe(name)}", node, "", name, run)

    return await _roll([step(*pair) for pair in places.items()], acts, draining.parallel)


class _Step(NamedTuple):
    """What is done to one container."""

    label: str
    node: str
    id: str
    name: str
    run: Callable[[Callable[[str], object]], Awaitable[Done]]


async def _roll(steps: Sequence[_Step], acts: Acts, parallel: int) -> bool:
    """Take one step after the other, and note how each ended. Returns False after Ctrl-C."""
    from tsbus.errors import BusError
    from tsbus.rolling import one_after_the_other

    phases = Phases(len(steps))

    async def take(step: _Step) -> bool:
        def told(words: str) -> None:
            phases.now[step.label] = words

        try:
            acts.done(step.node, await step.run(told))
        except BusError as error:
            ending = ending_of_error(error)
            acts.done(step.node, Done(id=step.id, name=step.name, ok=False, error=ending.reason))
            acts.endings[step.label] = ending
        except asyncio.CancelledError:
            acts.endings[step.label] = Ending(Outcome.CANCELLED, f"interrupted ({phases.now.get(step.label, '')})")
            raise
        finally:
            phases.now.pop(step.label, None)
            phases.over += 1
        return acts.endings[step.label].outcome is Outcome.OK

    whole = True
    try:
        async with telling(acts.progress, phases.words):
            await one_after_the_other(steps, take, parallel=parallel)
    except asyncio.CancelledError:
        whole = False
    bad = [ending.outcome for ending in acts.endings.values() if ending.outcome is not Outcome.OK]
    left = Ending(Outcome.CANCELLED if not whole else bad[-1] if bad else Outcome.OK, "left as it is")
    for step in steps:
        acts.endings.setdefault(step.label, left)
    return whole


async def _balancers(client: "Client", draining: Draining, acts: Acts) -> "Balancers":
    from tsbus.draining import Balancers

    def cut(seat: "Seat") -> None:
        acts.progress.clear()
        number, where = count(seat.connections or 0, "connection"), f"{seat.balancer} on {seat.node}"
        click.echo(f"{safe(seat.box.label)}: {number} still open when the time for draining {where} was over", err=True)

    return await Balancers.ask(client, skip_lost=draining.skip_lost, on_cut=cut)


def _box(match: Match) -> "Box":
    from tsbus.draining import Box

    return Box(match.node, match.id, match.name)


def ending_of_error(error: Exception, before: str = "") -> Ending:
    """Return how something ended that raised `error`."""
    from tsbus.draining import NotDrained
    from tsbus.errors import CallFailed
    from tsbus.rolling import NotReplaced, reason

    outcome = Outcome.FAILED
    if isinstance(error, NotReplaced) and isinstance(error.__cause__, CallFailed):
        return Ending(ending_of_error(error.__cause__).outcome, before + safe(str(error)))
    if isinstance(error, NotDrained):
        (outcome,) = set(error.outcomes.values())
    elif isinstance(error, CallFailed):
        (outcome,) = set(error.result.outcomes.values())
    return Ending(outcome, before + safe(reason(error)))
