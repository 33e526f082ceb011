"""Plan lines: what a build would do, as people and scripts get it, hosts with the same steps together. Pure."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import click

from tsbus.build.fleet import Group, groups
from tsbus.build.plan import HostPlan
from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble
from tsbus.cli.build.reportlines import step_object, trouble_object
from tsbus.cli.containers.words import count
from tsbus.cli.lb.words import wrapped
from tsbus.cli.terminal import safe
from tsbus.core.target import fold

STAYS = "not undone by an uninstall"
_BETWEEN_NAMES = re.compile(r",(?![^\[]*\])")


def plan_lines(plans: Collection[HostPlan], width: int | None, done: str = "built") -> Iterator[str]:
    """Return the plan, group by group, and what it comes to; `done` is what servers in trouble cannot be."""
    for group in groups(plans):
        if group.steps or group.troubles:
            yield from _group(group, width, done)
            yield ""
    yield verdict(plans, done)


def check_lines(plans: Collection[HostPlan], width: int | None) -> Iterator[str]:
    """Return what keeps servers from being built, and warnings, and for how many there is nothing to say."""
    alike: dict[tuple[Trouble, ...], list[str]] = {}
    for plan in plans:
        alike.setdefault(plan.troubles, []).append(plan.name)
    for troubles, names in alike.items():
        if troubles:
            yield from (click.style(line, bold=True) for line in _names(names, 0, width))
            for trouble in troubles:
                yield from trouble_lines(trouble, 2, width)
            yield ""
    bad = sum(not plan.can_go for plan in plans)
    fine = len(alike.get((), ()))
    said = [f"nothing is wrong with {fine}" if fine else "", f"{bad} cannot be built" if bad else ""]
    yield f"{count(len(plans), 'server')}: {', '.join(filter(None, said)) or 'warnings only'}"


def verdict(plans: Collection[HostPlan], done: str = "built") -> str:
    """Return what the plan comes to: `97 servers: 90 to change, 5 as they should be, 2 cannot be built`."""
    ready = [plan for plan in plans if plan.can_go]
    busy = sum(bool(plan.steps) for plan in ready)
    bad = len(plans) - len(ready)
    idle = len(ready) - busy
    if not busy and not bad:
        return f"nothing to do: {count(idle, 'server')} {'is as it' if idle == 1 else 'are as they'} should be"
    said = [f"{busy} to change" if busy else "", f"{idle} as they should be" if idle else "",
            f"{bad} cannot be {done}" if bad else ""]  # fmt: skip
    return f"{count(len(plans), 'server')}: {', '.join(filter(None, said))}"


def plan_object(plan: HostPlan) -> dict[str, Any]:
    """Return the plan of one server for --json."""
    return {
        "node": plan.name,
        "can_go": plan.can_go,
        "steps": list(map(step_object, plan.steps)),
        "troubles": list(map(trouble_object, plan.troubles)),
    }


def _group(group: Group, width: int | None, done: str) -> Iterator[str]:
    yield click.style(group.title(done), bold=True)
    if len(group.names) > 1:
        yield from _names(group.names, 2, width)
    stages = max((len(step.stage) for step in group.steps), default=0)
    for step in group.steps:
        yield from _step(step, stages, width)
    for trouble in group.troubles:
        yield from trouble_lines(trouble, 2, width)


def _names(names: Sequence[str], indent: int, width: int | None) -> Iterator[str]:
    return wrapped(_BETWEEN_NAMES.sub(", ", fold(names)), indent, width)


def _step(step: Step, stages: int, width: int | None) -> Iterator[str]:
    """Yield `  docker     install Docker: there is none`; what does not fit goes on below the words."""
    notes = "" if step.reversible or step.kind == "uninstall" else f" ({STAYS})"
    first, *others = wrapped(f"{safe(str(step))}{notes}", 2 + stages + 2, width)
    yield f"  {step.stage:{stages}}  {first.lstrip()}"
    yield from others


def trouble_lines(trouble: Trouble, indent: int, width: int | None) -> Iterator[str]:
    """Return a trouble or a warning, and below it what mends it."""
    kind, color = ("trouble", "red") if trouble.fatal else ("warning", "yellow")
    first, *others = wrapped(f"{kind}: {safe(trouble.text)}", indent, width)
    yield first.replace(kind, click.style(kind, fg=color), 1)
    yield from others
    if trouble.mend:
        yield from wrapped(f"mend: {safe(trouble.mend)}", indent + 2, width)
