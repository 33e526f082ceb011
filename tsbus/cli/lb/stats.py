"""Stats: `treescale lb stats` and `lb watch`, what balancers and their servers have to do, as their kernels count it.

`Board` holds what the nodes said last; the rest asks and draws.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli.containers.ls import problems
from tsbus.cli.containers.options import any_target_argument
from tsbus.cli.containers.words import count, natural
from tsbus.cli.edge import Code, bus_option, connect, json_option, run
from tsbus.cli.job import NO_LIMIT_S
from tsbus.cli.lb.asking import Answers, Part, ask_parts, counted, parts, tree_of
from tsbus.cli.lb.options import balancer_option, terminal_width
from tsbus.cli.lb.words import address
from tsbus.cli.report import Ending, ending_of, exit_code, summary
from tsbus.cli.screen import Screen, within
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import Progress, safe, size
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.errors import BusError
from tsbus.lb_records import BalancerTraffic, Traffic

if TYPE_CHECKING:
    from tsbus.client import Client

REDRAW_S = 0.5
RETRY_S = 2.0
"""After so long a node that stopped telling is asked again."""

SORTS = ("node", "name", "connections", "active", "bytes")
_COLUMNS = (
    Column("BALANCER / SERVER", least=18),
    Column("ADDRESS", spare=1),
    Column("WEIGHT", right=True, spare=2),
    Column("CONN/S", right=True),
    Column("ACTIVE", right=True),
    Column("IN/S", right=True),
    Column("OUT/S", right=True),
    Column("PACKETS/S IN/OUT", right=True, spare=4),
    Column("CONNECTIONS", right=True, spare=3),
    Column("TOTAL IN/OUT", right=True, spare=5),
)


class Board:
    """What the balancers of some nodes said last."""

    def __init__(self) -> None:
        self.traffic: dict[tuple[str, str], BalancerTraffic] = {}
        """By node and balancer."""
        self.endings: dict[str, Ending] = {}

    def take(self, node: str, told: BalancerTraffic) -> None:
        """Note what a node says of a balancer."""
        self.traffic[node, told.name] = told
        self.endings[node] = Ending(Outcome.OK)

    def fill(self, answers: Answers[BalancerTraffic]) -> None:
        """Note what nodes answered, and who did not."""
        self.endings |= answers.endings
        self.traffic |= {(node, one.name): one for node, told in answers.said.items() for one in told}

    def down(self, node: str, ending: Ending) -> None:
        """A node does not tell any more: what it said last is not true now."""
        self.endings[node] = ending
        for key in [key for key in self.traffic if key[0] == node]:
            del self.traffic[key]

    def lines(self, sort: str, width: int | None) -> list[str]:
        """Return the lines to print."""
        keys = sorted(self.traffic, key=lambda key: (natural(key[0]), natural(key[1])))
        keys.sort(key=lambda key: _order(sort, self.traffic[key], key[1]))
        lines = [self._title()]
        if rows := [row for key in keys for row in _rows(key[0], self.traffic[key], sort)]:
            lines += ["", *table(_COLUMNS, rows, width)]
        if trouble := list(problems(self.endings)):
            lines += ["", *trouble]
        return lines

    def _title(self) -> str:
        every = self.traffic.values()
        nodes = count(len({node for node, _ in self.traffic}), "node")
        rate = f"{sum(one.cps for one in every):,} connections/s, {sum(one.active for one in every):,} active"
        flow = f"in {size(sum(one.in_bps for one in every))}/s, out {size(sum(one.out_bps for one in every))}/s"
        return f"{nodes}, {count(len(self.traffic), 'balancer')}: {rate}, {flow}"


def _order(sort: str, one: Traffic, name: str) -> Any:
    match sort:
        case "name":
            return natural(name)
        case "connections":
            return (-one.cps, -one.connections)
        case "active":
            return -one.active
        case "bytes":
            return -one.in_bps - one.out_bps
    return 0


def _rows(node: str, one: BalancerTraffic, sort: str) -> Iterable[tuple[str, ...]]:
    yield (f"{node}/{safe(one.name)}", "", *_cells(one))
    servers = sorted(one.servers, key=lambda server: (natural(server.name), natural(server.ip), server.port))
    for server in sorted(servers, key=lambda server: _order(sort, server, server.name)):
        where = address(server)
        yield (f"  {safe(server.name) or where}", where, *_cells(server))


def _cells(one: Traffic) -> tuple[str, ...]:
    return (
        str(one.weight),
        f"{one.cps:,}",
        f"{one.active:,}",
        size(one.in_bps),
        size(one.out_bps),
        f"{one.in_pps:,} / {one.out_pps:,}",
        f"{one.connections:,}",
        f"{size(one.in_bytes)} / {size(one.out_bytes)}",
    )


def _as_json(node: str, told: BalancerTraffic) -> str:
    return json.dumps({"node": node} | msgspec.to_builtins(told))


_sort_option = click.option("--sort", type=click.Choice(SORTS), default="node", show_default=True, help="Order.")


@click.command()
@any_target_argument
@balancer_option
@_sort_option
@json_option
@bus_option
def stats(target: str, balancers: tuple[str, ...], sort: str, as_json: bool, bus: str | None) -> int:
    """Show what balancers and each of their servers have to do: rates, and totals since they were added.

    CONN/S: new connections. ACTIVE: connections that are open. A narrow terminal leaves out packets and totals;
    --json has everything.

    \b
    Examples:
      treescale lb stats
      treescale lb stats node1 -b web --json
    """
    return run(_stats(bus, target, balancers, sort, as_json))


async def _stats(bus: str | None, target: str, balancers: Sequence[str], sort: str, as_json: bool) -> int:
    board, progress = Board(), Progress()
    async with connect(bus, "treescale-lb") as client:
        answers = await ask_parts(client, target, balancers, "stats", BalancerTraffic)
    board.fill(answers)
    if as_json:
        for (node, _), one in board.traffic.items():
            click.echo(_as_json(node, one))
        click.echo(json.dumps(summary(answers.endings, progress.elapsed_s)))
    else:
        click.echo("\n".join(board.lines(sort, terminal_width())))
    return exit_code([ending.outcome for ending in answers.endings.values()])


@click.command()
@any_target_argument
@balancer_option
@click.option("--every", "every_s", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, metavar="S",
              help="Seconds between two readings.")  # fmt: skip
@_sort_option
@json_option
@bus_option
def watch(target: str, balancers: tuple[str, ...], every_s: float, sort: str, as_json: bool, bus: str | None) -> int:
    """Show what balancers and each of their servers have to do, live, until Ctrl-C.

    The kernel brings its rates up to date every 2 s. With --json a line for each balancer and reading.

    \b
    Examples:
      treescale lb watch
      treescale lb watch node1 -b web --every 5
      treescale lb watch '*' --sort connections
    """
    return run(_watch(bus, target, balancers, every_s, sort, as_json))


async def _watch(
    bus: str | None, target: str, balancers: Sequence[str], every_s: float, sort: str, as_json: bool
) -> int:
    async with connect(bus, "treescale-lb") as client:
        # Asked once, so that a target without balancers ends here.
        first = await ask_parts(client, target, balancers, "stats", BalancerTraffic)
        groups, _ = await parts(client, target, balancers)
        live = _Live(client, every_s, as_json)
        live.board.fill(first)
        await asyncio.gather(*map(live.follow, groups), *([] if as_json else [live.draw(sort)]))
    return Code.OK


class _Live:
    """The figures that stay: each node tells them until it is gone, and is asked again then."""

    def __init__(self, client: "Client", every_s: float, as_json: bool) -> None:
        self.board = Board()
        self._client, self._every_s, self._as_json = client, every_s, as_json
        self._changed = asyncio.Event()

    async def follow(self, part: Part) -> None:
        """Listen to the nodes of `part`, and ask those again that ended. Never returns."""
        having = (await tree_of(self._client)).balancing
        body = part.body | {"every_s": self._every_s}
        ended, broken = set[str](), {part.target}
        listening: set[asyncio.Task[None]] = set()
        while True:
            targets = broken | {fold(ended)} if ended else set(broken)
            ended.clear()
            broken.clear()
            for task in [task for task in listening if task.done()]:
                listening.remove(task)
                task.result()
            listening |= {asyncio.create_task(self._listen(each, body, having, ended, broken)) for each in targets}
            await asyncio.sleep(RETRY_S)

    async def _listen(
        self, target: str, body: dict[str, Any], having: frozenset[str] | None, ended: set[str], broken: set[str]
    ) -> None:
        """Take what the nodes of `target` tell. Those that end are added to `ended`, a call that breaks to `broken`."""
        decode = msgspec.json.Decoder(BalancerTraffic).decode
        told: set[str] = set()
        try:
            async with self._client.request(target, "lb.watch", body, timeout_s=NO_LIMIT_S) as call:
                async for reply in call:
                    if not reply.last:
                        self._take(reply.node, decode(reply.body))
                        told.add(reply.node)
                        continue
                    told.discard(reply.node)
                    for node, ending in counted({reply.node: ending_of(reply)}, having).items():
                        self._down(node, ending)
                        ended.add(node)
        except BusError as error:  # the router here is away
            broken.add(target)
            for node in told:
                self._down(node, Ending(Outcome.UNREACHABLE, safe(str(error))))

    def _down(self, node: str, ending: Ending) -> None:
        over = Ending(Outcome.FAILED, "it stopped telling")
        self.board.down(node, over if ending.outcome is Outcome.OK else ending)
        self._changed.set()

    def _take(self, node: str, told: BalancerTraffic) -> None:
        self.board.take(node, told)
        self._changed.set()
        if self._as_json:
            click.echo(_as_json(node, told))
            sys.stdout.flush()

    async def draw(self, sort: str) -> None:
        """Draw what is known, whenever it is something else."""
        with Screen() as screen:
            while True:
                self._changed.clear()
                width = shutil.get_terminal_size().columns if screen.is_terminal else None
                screen.show(self.board.lines(sort, width))
                await asyncio.sleep(REDRAW_S)
                await within(self._changed, None)
