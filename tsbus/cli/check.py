"""Check: `treescale check`, what is wrong in the tree now, and what mends it.

The problems are those of the dashboard's model. Added is what a model learns from events alone, which are over when
somebody begins to look: nodes where a program is away that every node has; and what programs tell of themselves when
they are asked.
"""

import asyncio
import json
import time
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import click
import msgspec

from tsbus.cli.completion import complete_target
from tsbus.cli.containers.words import count
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run
from tsbus.cli.lb.words import trouble
from tsbus.cli.screen import columns
from tsbus.cli.terminal import duration
from tsbus.core.accounting import Outcome
from tsbus.core.target import TargetError, fold
from tsbus.dashboard.problems import Problem, problems

if TYPE_CHECKING:
    from tsbus.client import Client
    from tsbus.dashboard.feed import Feed
    from tsbus.dashboard.views import NodeView

SETTLE_S: Final = 5.0
"""Patience with nodes that have not told their containers and balancers."""
ROUTERS_S: Final = 3.0
"""Patience with routers that have not told their queues and their clocks."""
PROGRAMS_S: Final = 6.0
"""Patience with programs that have not told of themselves."""
MAX_TEXT: Final = 500
"""Characters of what a program tells."""
PROGRAMS: Final = {
    "containers": ("docker", "its containers are not seen"),
    "exec": ("executor", "no program can be run there"),
    "process": ("events", "nobody hears what its processes do, and it takes no new tree"),
}
"""Name of a worker that each node's router has -> the program of supervisord that it is, and what it is for."""
TOLD: Final = {
    "exec": (
        "executor",
        "every program is refused on {nodes}: {text}",
        "make room there, or let the executor write that file; nothing needs to be started anew",
    ),
    "process": (
        "supervisord",
        "supervisord of {nodes} {text}: the programs there run, but nobody starts one again that ends",
        "see its state there with ps: kill -CONT lets a stopped one go on; otherwise restart the service treescale, or "
        "end it with treescale up FILE --down --node NAME",
    ),
}
"""Name of a worker that is asked -> who has the trouble that it tells, what that means, and what to do."""


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
        _, told = await asyncio.gather(_wait_routers(feed, live), _ask_programs(client, live))
        now_ms = time.time_ns() // 1_000_000
        views = feed.model.nodes
        found = [*cut_off(views[client.node])] if client.node in live else []
        found += (one for one in problems(feed.model, now_ms) if not one.node or one.node in nodes)
        found += away([views[name] for name in live])
        found += troubled(told)
    if as_json:
        for one in found:
            click.echo(json.dumps({"severe": one.severe} | msgspec.to_builtins(one)))
    else:
        click.echo("\n".join(lines_of(found, len(nodes), now_ms, columns())))
    return Code.FAILED if found else Code.OK


async def _wait_routers(feed: "Feed", live: Collection[str]) -> None:
    deadline = time.monotonic() + ROUTERS_S
    with feed.watching():
        while any(not feed.model.nodes[name].router for name in live) and (left := deadline - time.monotonic()) > 0:
            await feed.wait_change(feed.model.revision, left)


async def _ask_programs(client: "Client", live: Collection[str]) -> dict[tuple[str, str], list[str]]:
    """Return which nodes have a trouble, by worker and text; the text of a worker that does not answer is ""."""
    found: dict[tuple[str, str], list[str]] = {}

    async def ask(worker: str) -> None:
        async with client.request(fold(live), f"{worker}.stats", timeout_s=PROGRAMS_S) as call:
            async for reply in call:
                told = reply.json() if reply.status is Outcome.OK else None
                text = told.get("trouble") if isinstance(told, dict) else None
                if text or reply.status is Outcome.TIMEOUT:
                    found.setdefault((worker, str(text or "")[:MAX_TEXT]), []).append(reply.node)

    if live:
        await asyncio.gather(*map(ask, TOLD))
    return found


def troubled(told: Mapping[tuple[str, str], Collection[str]]) -> Iterator[Problem]:
    """Return the problems that programs tell of themselves, as `_ask_programs` found them."""
    for (worker, text), nodes in told.items():
        names = fold(nodes)
        if text:
            subject, words, mend = TOLD[worker]
            words = words.format(nodes=names, text=text)
        else:
            subject, missing = PROGRAMS[worker]
            words = f"the program {subject} does not answer on {names}: {missing}"
            mend = f"see there what it waits for: {subject}.log; supervisorctl restart {subject} ends it"
        yield Problem(kind="process-fatal", node=names, subject=subject, text=words, mend=mend)


def cut_off(here: "NodeView") -> Iterator[Problem]:
    """Return what is wrong above the node that is asked: it sees only what is below, and all of that may be well."""
    if here.home and (here.link == "lost" or here.adopted):
        how = f"{here.parent} has adopted it" if here.parent and here.adopted else f"{here.cause or 'no link'}"
        text = f"{here.name} is not linked to {here.home}, the node above it: {how}"
        mend = f"treescale check on {here.home}; if nothing is wrong there, see the network in between"
        yield Problem(kind="node-lost", node=here.name, text=text, mend=mend, since_ms=here.since_ms)


def away(live: Collection["NodeView"]) -> Iterator[Problem]:
    """Return the problems of nodes where one of PROGRAMS does not run."""
    for worker, (program, missing) in PROGRAMS.items():
        without = [
            node.name
            for node in live
            if node.router is not None and worker not in (peer.name for peer in node.router.workers)
        ]
        if without:
            text = f"the program {program} does not run on {fold(without)}: {missing}"
            mend = f"see there why: supervisorctl status, {program}.log"
            yield Problem(kind="process-fatal", node=fold(without), subject=program, text=text, mend=mend)


def lines_of(found: Collection[Problem], nodes: int, now_ms: int, width: int | None) -> Iterator[str]:
    """Return the lines that tell of problems of so many `nodes`."""
    severe = sum(one.severe for one in found)
    parts = [count(number, word) for number, word in ((severe, "problem"), (len(found) - severe, "warning")) if number]
    yield f"{count(nodes, 'node')}: {', '.join(parts) or 'nothing is wrong'}"
    for one in found:
        age = f" ({duration(max(now_ms - one.since_ms, 0) / 1000)})" if one.since_ms else ""
        yield from trouble("problem" if one.severe else "warning", one.text + age, one.mend, 2, width)
