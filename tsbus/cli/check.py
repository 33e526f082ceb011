"""Check: `treescale check`, what is wrong in the tree now, and what mends it.

The problems are those of the dashboard's model. Added is what a model learns from events alone, which are over when
somebody begins to look: nodes where a program is away that every node has.
"""

import json
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

import click
import msgspec

from tsbus.cli.completion import complete_target
from tsbus.cli.containers.words import count
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run
from tsbus.cli.lb.words import trouble
from tsbus.cli.screen import columns
from tsbus.cli.terminal import duration
from tsbus.core.target import TargetError, fold
from tsbus.dashboard.problems import Kind, Problem, problems

if TYPE_CHECKING:
    from tsbus.client import Client
    from tsbus.dashboard.feed import Feed

SETTLE_S: Final = 5.0
"""Patience with nodes that have not told their containers and balancers."""
ROUTERS_S: Final = 3.0
"""Patience with routers that have not told their queues and their clocks."""
PROGRAMS: Final = {
    "exec.stats": ("executor", "no program can be run there"),
    "process.stats": ("events", "nobody hears what its processes do, and it takes no new tree"),
}
"""What each node serves -> the program that does, and what is missing without it."""
MENDS: Final[dict[Kind, str]] = {
    "node-lost": "see that the machine runs and can be reached, then its router: supervisorctl status, router.log",
    "node-torpid": "see there what keeps its router busy: top, router.log; supervisorctl restart router ends it",
    "slow-reader": "see what it waits for; what it has missed does not come again",
    "engine-down": "start Docker there",
}
"""What to do about problems that do not say so themselves."""


@click.command()
@click.argument("target", default="*", shell_complete=complete_target)
@json_option
@bus_option
def check(target: str, as_json: bool, bus: str | None) -> int:
    """Tell what is wrong now, of this node and all below it, the worst first, each with what to do. Changes nothing.

    It looks at nodes, clocks, slow readers, programs, Docker engines, containers and balancers. Exit code 0 when
    nothing is wrong, 1 when something is.

    \b
    Examples:
      treescale check
      treescale check @web
      treescale check --json | jq -r .text
    """
    return run(_check(bus, target, as_json))


async def _check(bus: str | None, target: str, as_json: bool) -> int:
    from tsbus.dashboard.feed import Feed

    async with connect(bus, "treescale-check") as client, Feed(client) as feed:
        await feed.wait_settled(SETTLE_S)
        try:
            nodes = feed.model.select(target)
        except TargetError as error:
            raise Fault(str(error), Code.USAGE) from None
        live = [name for name in nodes if feed.model.nodes[name].state == "up"]
        await _wait_routers(feed, live)
        now_ms = time.time_ns() // 1_000_000
        found = [one for one in problems(feed.model, now_ms) if not one.node or one.node in nodes]
        found += await _away(client, live)
    if as_json:
        for one in found:
            click.echo(json.dumps({"severe": one.severe} | msgspec.to_builtins(one) | {"mend": _mend(one)}))
    else:
        click.echo("\n".join(lines_of(found, len(nodes), now_ms, columns())))
    return Code.FAILED if found else Code.OK


async def _wait_routers(feed: "Feed", live: Collection[str]) -> None:
    deadline = time.monotonic() + ROUTERS_S
    with feed.watching():
        while any(not feed.model.nodes[name].router for name in live) and (left := deadline - time.monotonic()) > 0:
            await feed.wait_change(feed.model.revision, left)


async def _away(client: "Client", live: Collection[str]) -> list[Problem]:
    """Return the problems of nodes where one of PROGRAMS does not run."""
    found = []
    for command, (program, missing) in PROGRAMS.items() if live else ():
        told = await client.call(fold(live), command, timeout_s=ROUTERS_S)
        if told.no_such_service:
            names = fold(told.no_such_service)
            mend = f"see there why: supervisorctl status, {program}.log"
            text = f"the program {program} does not run on {names}: {missing}"
            found.append(Problem(kind="process-fatal", node=names, subject=program, text=text, mend=mend))
    return found


def _mend(problem: Problem) -> str:
    return problem.mend or MENDS.get(problem.kind, "")


def lines_of(found: Collection[Problem], nodes: int, now_ms: int, width: int | None) -> Iterator[str]:
    """Return the lines that tell of problems of so many `nodes`."""
    severe = sum(one.severe for one in found)
    parts = [count(number, word) for number, word in ((severe, "problem"), (len(found) - severe, "warning")) if number]
    yield f"{count(nodes, 'node')}: {', '.join(parts) or 'nothing is wrong'}"
    for one in found:
        age = f" ({duration(max(now_ms - one.since_ms, 0) / 1000)})" if one.since_ms else ""
        yield from trouble("problem" if one.severe else "warning", one.text + age, _mend(one), 2, width)
