"""Show: `treescale lb show`, balancers with their servers and what is wrong with them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from tsbus.cli.containers.ls import problems
from tsbus.cli.containers.options import any_target_argument
from tsbus.cli.containers.words import natural
from tsbus.cli.edge import bus_option, connect, json_option, run
from tsbus.cli.lb.asking import Answers, ask_parts
from tsbus.cli.lb.options import balancer_option, terminal_width, whole_option
from tsbus.cli.lb.words import active_of, address, style, trouble, wrapped
from tsbus.cli.report import exit_code, summary
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import Progress, duration, safe
from tsbus.core.target import fold
from tsbus.lb_records import Details, LeftOut, ServerRecord

if TYPE_CHECKING:
    from tsbus.client import Client

INDENT = 2
_COLUMNS = (
    Column("STATE", style=style),
    Column("WEIGHT", right=True),
    Column("SERVER", least=12),
    Column("NODE", least=8),
    Column("ADDRESS"),
    Column("SINCE", right=True),
    Column("OPEN", right=True),
    Column("RULE", least=10, spare=1),
)
_OPEN = 6
"""The column with what drains wait for: only there while something drains."""


async def details(client: "Client", target: str, balancers: Sequence[str]) -> Answers[Details]:
    """Ask for balancers with all their servers. Raises Fault when there are none, or a name fits none."""
    answers = await ask_parts(client, target, balancers, "show", Details)
    answers.said = {node: joined(pieces) for node, pieces in answers.said.items()}
    return answers


def joined(pieces: Iterable[Details]) -> list[Details]:
    """Return each balancer once; those with many servers came in several pieces."""
    whole: dict[str, Details] = {}
    for piece in pieces:
        first = whole.get(piece.name)
        more = msgspec.structs.replace(first, servers=first.servers + piece.servers) if first else piece
        whole[piece.name] = more
    return list(whole.values())


def lines_of(node: str, one: Details, width: int | None) -> Iterator[str]:
    """Return a balancer as lines: what it is, its servers, who is missing, what is wrong."""
    state = click.style(safe(one.state), **style(one.state))
    name = click.style(f"{node}/{safe(one.name)}", bold=True)
    where = safe(", ".join(one.addresses))
    how = safe(", ".join(word for word in (f"{where} {one.protocol}", one.alg, one.backend) if word))
    yield f"{name}  {how}: {state}, {active_of(one.servers)}"
    if one.servers:
        yield from _servers(one.servers, width)
    yield from _left_out(one.left_out, width)
    for problem in one.problems:
        kind = "note" if problem.note else "problem"
        yield from trouble(kind, problem.text, problem.mend, INDENT, width)


def _servers(servers: Sequence[ServerRecord], width: int | None) -> Iterator[str]:
    ordered = sorted(servers, key=lambda one: (one.state == "removed", natural(one.name), natural(one.node), one.port))
    draining = any(server.connections is not None for server in servers)
    shown = [place for place in range(len(_COLUMNS)) if place != _OPEN or draining]
    cells = [_cells(server) for server in ordered]
    head, *rows = table(
        [_COLUMNS[place] for place in shown],
        [[row[place] for place in shown] for row in cells],
        None if width is None else width - INDENT,
    )
    pad = " " * INDENT
    yield pad + head
    for server, row in zip(ordered, rows, strict=True):
        yield pad + row
        if server.reason:
            yield from wrapped(safe(server.reason), 2 * INDENT + 2, width)


def _cells(server: ServerRecord) -> tuple[str, ...]:
    return (
        safe(server.state),
        str(server.weight),
        safe(server.name) or "?",
        server.node or "-",
        address(server),
        duration(server.since_s),
        "-" if server.connections is None else str(server.connections),
        safe(server.rule),
    )


def _left_out(left_out: Iterable[LeftOut], width: int | None) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for one in left_out:
        groups.setdefault(one.reason, []).append(f"{one.node}/{safe(one.name)}")
    for reason, names in groups.items():
        yield from wrapped(f"left out: {fold(names)}: {safe(reason)}", INDENT, width)


@click.command()
@any_target_argument
@balancer_option
@whole_option
@json_option
@bus_option
def show(target: str, balancers: tuple[str, ...], whole: bool, as_json: bool, bus: str | None) -> int:
    """Show balancers with their servers: state, weight, since when, and the reason where one is not active.

    OPEN: connections that a drain waits for. RULE: what let the server in. Below the servers stands who fits the
    configuration and cannot take part, and what is wrong, with what mends it.

    \b
    Examples:
      treescale lb show
      treescale lb show node1 -b web
      treescale lb show '*' -b web --json | jq .servers
    """
    return run(_show(bus, target, balancers, as_json, whole))


async def _show(bus: str | None, target: str, balancers: Sequence[str], as_json: bool, whole: bool) -> int:
    progress = Progress()
    async with connect(bus, "treescale-lb") as client:
        answers = await details(client, target, balancers)
    width = terminal_width(whole=whole)
    blocks: list[str] = []
    for node in sorted(answers.said, key=natural):
        for one in sorted(answers.said[node], key=lambda one: natural(one.name)):
            told = json.dumps({"node": node} | msgspec.to_builtins(one)) if as_json else None
            blocks.append(told or "\n".join(lines_of(node, one, width)))
    if missing := [] if as_json else list(problems(answers.endings)):
        blocks.append("\n".join(missing))
    if blocks:
        click.echo(("\n" if as_json else "\n\n").join(blocks))
    if as_json:
        click.echo(json.dumps(summary(answers.endings, progress.elapsed_s)))
    return exit_code([ending.outcome for ending in answers.endings.values()])
