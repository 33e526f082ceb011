"""Ls: `treescale lb ls`, the balancers of the whole tree in one table."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli.containers.ls import problems
from tsbus.cli.containers.options import any_target_argument
from tsbus.cli.containers.words import count, natural
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run
from tsbus.cli.lb.asking import ASK_S, Answers, summaries, tree_of
from tsbus.cli.lb.options import terminal_width, whole_option
from tsbus.cli.lb.words import style
from tsbus.cli.report import Ending, exit_code, summary
from tsbus.cli.screen import Screen, within
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import Progress, safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold, spell
from tsbus.errors import BusError
from tsbus.lb_records import Summary

if TYPE_CHECKING:
    from tsbus import Event
    from tsbus.client import Client
    from tsbus.subscription import Subscription

STATES = ("ok", "empty", "sorry", "panic", "waiting", "clash")
SORTS = ("node", "name", "state", "active", "problems")
PAUSE_S = 0.5
"""Between two questions at least, when much changes."""
ANEW_S = 30.0
"""Problems that no event tells of are looked for so often."""

_COLUMNS = (
    Column("NODE", least=8),
    Column("BALANCER", least=10),
    Column("ADDRESSES", least=18),
    Column("PROTO", spare=2),
    Column("ALG", spare=1),
    Column("BACKEND", spare=3),
    Column("ACTIVE", right=True),
    Column("STATE", style=style),
    Column("PROBLEMS", right=True, style=lambda cell: {} if cell == "-" else {"fg": "red"}),
)
Row = tuple[str, Summary]
_FIELDS: dict[str, Callable[[Row], Iterable[str]]] = {
    "node": lambda row: (row[0],),
    "name": lambda row: (row[1].name,),
    "state": lambda row: (row[1].state,),
    "alg": lambda row: (row[1].alg,),
    "protocol": lambda row: (row[1].protocol,),
    "backend": lambda row: (row[1].backend,),
    "address": lambda row: row[1].addresses,
}
"""What can be filtered by."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be shown, and how."""

    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of each key one of the patterns must fit."""
    sort: str = "node"
    whole: bool = False
    quiet: bool = False
    as_json: bool = False

    def lines(self, answers: Answers[Summary], width: int | None) -> Iterator[str]:
        """Return the lines to print."""
        rows = self._rows(answers)
        if self.quiet:
            return iter(dict.fromkeys(one.name for _, one in rows))
        if self.as_json:
            return (json.dumps({"node": node} | msgspec.to_builtins(one)) for node, one in rows)
        return self._text(answers, rows, None if self.whole else width)

    def _rows(self, answers: Answers[Summary]) -> list[Row]:
        rows = [row for row in rows_of(answers) if self._wants(row)]
        keys: dict[str, Callable[[Row], Any]] = {
            "node": lambda row: 0,
            "name": lambda row: natural(row[1].name),
            "state": lambda row: -STATES.index(row[1].state) if row[1].state in STATES else 0,
            "active": lambda row: row[1].active,
            "problems": lambda row: -row[1].problems,
        }
        return sorted(rows, key=keys[self.sort])

    def _wants(self, row: Row) -> bool:
        return all(
            any(fnmatchcase(value, pattern) for value in _FIELDS[key](row) for pattern in patterns)
            for key, patterns in self.filters.items()
        )

    def _text(self, answers: Answers[Summary], rows: Sequence[Row], width: int | None) -> Iterator[str]:
        yield title(rows, filtered=bool(self.filters))
        if rows:
            yield ""
            yield from table(_COLUMNS, [_cells(*row) for row in rows], width)
        if trouble := list(problems(answers.endings)):
            yield ""
            yield from trouble


def rows_of(answers: Answers[Summary]) -> list[Row]:
    """Return each balancer with its node, in the order in which people count."""
    rows = [(node, one) for node, some in answers.said.items() for one in some]
    return sorted(rows, key=lambda row: (natural(row[0]), natural(row[1].name)))


def title(rows: Sequence[Row], *, filtered: bool) -> str:
    """Return the line that counts."""
    states = Counter(one.state for _, one in rows)
    each = ", ".join(f"{states[state]:,} {safe(state)}" for state in sorted(states, key=lambda state: -states[state]))
    match = " that match" if filtered else ""
    wrong = sum(one.problems for _, one in rows)
    told = f"; {count(wrong, 'problem')}: treescale lb check" if wrong else ""
    nodes = count(len({node for node, _ in rows}), "node")
    return f"{nodes}, {count(len(rows), 'balancer')}{match}{': ' if each else ''}{each}{told}"


def _cells(node: str, one: Summary) -> tuple[str, ...]:
    return (
        node,
        safe(one.name),
        safe(", ".join(one.addresses)),
        safe(one.protocol),
        safe(one.alg),
        safe(one.backend) or "-",
        f"{one.active}/{one.servers}",
        safe(one.state),
        str(one.problems) if one.problems else "-",
    )


def _filters(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, _, pattern = text.partition("=")
        if key not in _FIELDS or not pattern:
            raise click.BadParameter(
                f"{text!r} is no filter; write KEY=VALUE, where KEY is one of {', '.join(_FIELDS)}"
            )
        if key == "state" and pattern not in STATES:
            raise click.BadParameter(f"{text!r}: the state is one of {', '.join(STATES)}")
        found.setdefault(key, []).append(pattern)
    return found


@click.command()
@any_target_argument
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", callback=_filters,
              help="Only what matches: node=, name=, state=, alg=, protocol=, backend=, address=; * is allowed. Of "
              "one key any, of several keys all must match.")  # fmt: skip
@click.option("--sort", type=click.Choice(SORTS), default="node", show_default=True,
              help="Order; state and problems: the worst first, active: the fewest.")  # fmt: skip
@click.option("--watch", "live", is_flag=True, help="Stay, and draw again whenever something changes.")
@whole_option
@click.option("-q", "--quiet", is_flag=True, help="Print names only, each once.")
@json_option
@bus_option
def ls(
    target: str,
    filters: dict[str, list[str]],
    sort: str,
    live: bool,
    whole: bool,
    quiet: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """List the balancers of the whole tree, or of TARGET.

    ACTIVE: servers that get connections, of those in the kernel's table. Nodes that have balancers and did not answer
    are named below; those that have none are not.

    \b
    Examples:
      treescale lb ls
      treescale lb ls --sort state
      treescale lb ls @edge --filter state=empty --filter state=clash
      treescale lb ls --watch
    """
    look = Look(filters, sort, whole, quiet, as_json)
    return run(_watch(bus, target, look) if live else _ls(bus, target, look))


async def _ls(bus: str | None, target: str, look: Look) -> int:
    progress = Progress()
    async with connect(bus, "treescale-lb") as client:
        answers = await summaries(client, target)
    if lines := list(look.lines(answers, terminal_width())):
        click.echo("\n".join(lines))
    if look.as_json:
        click.echo(json.dumps(summary(answers.endings, progress.elapsed_s)))
    elif look.quiet:
        for line in problems(answers.endings):
            click.echo(line, err=True)
    return exit_code([ending.outcome for ending in answers.endings.values()])


async def _watch(bus: str | None, target: str, look: Look) -> int:
    async with connect(bus, "treescale-lb") as client:
        await _Live(client, look).run(target)
    return Code.OK


class _Live:
    """The table that stays: nodes are asked again when they told that something is different."""

    def __init__(self, client: "Client", look: Look) -> None:
        self._client, self._look = client, look
        self._answers: Answers[Summary] = Answers()
        self._nodes: frozenset[str] = frozenset()
        self._due: set[str] = set()
        self._changed = asyncio.Event()

    async def run(self, target: str) -> None:
        """Listen and draw, until Ctrl-C. Raises Fault when there is no balancer."""
        for pattern in ("lb.*", "worker.*"):
            await self._client.subscribe(pattern, callback=lambda event: self._ask((event.origin,)), on_gap=self._gap)
        nodes = await self._client.subscribe("node.*", callback=self._node)
        self._answers = await summaries(self._client, target)
        having = (await tree_of(self._client)).balancing
        self._nodes = frozenset(self._answers.endings) if having is None else await self._within(target) & having
        self._due.clear()
        await asyncio.gather(self._draw(), self._connection(nodes))

    async def _draw(self) -> None:
        with Screen() as screen:
            while True:
                screen.show(list(self._look.lines(self._answers, terminal_width())))
                await asyncio.sleep(PAUSE_S)
                if not await within(self._changed, ANEW_S):
                    self._ask(self._nodes)
                await self._again()

    async def _connection(self, subscription: "Subscription") -> None:
        """Look at all anew when the router here went away, and when it is back."""
        while True:
            await subscription.wait_lost()
            self._ask(self._nodes)
            await subscription.wait_known()
            self._ask(self._nodes)

    async def _within(self, target: str) -> frozenset[str]:
        async with self._client.request(target, "router.ping", timeout_s=ASK_S) as ping:
            return await ping.nodes()

    def _ask(self, nodes: Iterable[str]) -> None:
        self._due.update(nodes)
        self._changed.set()

    def _gap(self, _: object) -> None:
        self._ask(self._nodes)

    def _node(self, event: "Event") -> None:
        self._ask(spell(str(event.json().get("nodes", ""))))

    async def _again(self) -> None:
        self._changed.clear()
        nodes, self._due = self._nodes & self._due, set()
        if not nodes:
            return
        try:
            told = await summaries(self._client, fold(nodes))
        except Fault:  # they have no balancers any more
            told = Answers()
        except BusError as error:
            told = Answers(endings=dict.fromkeys(nodes, Ending(Outcome.UNREACHABLE, safe(str(error)))))
            self._ask(nodes)
        for node in nodes:
            self._answers.said.pop(node, None)
            self._answers.endings.pop(node, None)
        self._answers.said |= told.said
        self._answers.endings |= told.endings
