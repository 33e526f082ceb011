"""Stats: `treescale container stats`, what containers use, as their monitors publish it. Nobody is polled.

`Board` folds what they say; the rest listens and draws.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli.completion import complete_container, complete_target
from tsbus.cli.containers.finding import ask, choose, find, monitored
from tsbus.cli.containers.ls import Tally, problems, snapshot
from tsbus.cli.containers.options import ASK_S, awaited
from tsbus.cli.containers.words import SHORT_ID, count, natural
from tsbus.cli.edge import Code, bus_option, connect, forget_stdout, json_option
from tsbus.cli.job import nodes_of
from tsbus.cli.report import Ending, exit_code
from tsbus.cli.screen import Screen, columns
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import safe, size
from tsbus.core.accounting import Outcome
from tsbus.core.target import spell
from tsbus.records import ContainerEvent, Sample, StatsEvent

if TYPE_CHECKING:
    from tsbus import Event, Reply
    from tsbus.client import Client

MAX_TOPICS = 32
"""Up to so many nodes are listened to one by one: the monitors of the others stay idle."""
REDRAW_S = 0.5
Key = tuple[str, str]
"""Node and short id."""

SORTS = ("node", "name", "cpu", "memory", "net", "block", "pids")
_COLUMNS = (
    Column("NODE", least=8),
    Column("NAME", least=12),
    Column("CPU %", right=True),
    Column("MEM", right=True),
    Column("LIMIT", right=True, spare=2),
    Column("MEM %", right=True, spare=1),
    Column("NET IN/OUT", right=True, spare=3),
    Column("BLOCK R/W", right=True, spare=4),
    Column("PIDS", right=True, spare=5),
    Column("THROTTLED", right=True, spare=6),
    Column("STALLED CPU/MEM/IO %", right=True, spare=7),
)


class Board:
    """What is known of the running containers of some nodes."""

    def __init__(self, nodes: Collection[str], wanted: Collection[Key] | None = None) -> None:
        """`wanted`: these containers only."""
        self.nodes = nodes
        self._wanted = None if wanted is None else frozenset(wanted)
        self.samples: dict[Key, Sample] = {}
        self.names: dict[Key, str] = {}
        self.costs: dict[str, float] = {}
        self.lost: dict[str, Ending] = {}

    def take(self, node: str, event: StatsEvent) -> list[Key]:
        """Fold in what a node's monitor says; returns the wanted containers that it tells of."""
        if node not in self.nodes:
            return []
        told = {(node, key[:SHORT_ID]): sample for key, sample in event.samples.items()}
        if self._wanted is not None:
            told = {key: sample for key, sample in told.items() if key in self._wanted}
        if event.full:
            self._forget(key for key in self.samples if key[0] == node and key not in told)
        self._forget((node, key[:SHORT_ID]) for key in event.gone)
        self.samples |= told
        self.costs[node] = event.cost
        return list(told)

    def down(self, node: str, ending: Ending) -> None:
        """A node cannot be heard any more: what it said last is not true now."""
        if node in self.nodes:
            self._forget(key for key in self.samples if key[0] == node)
            self.lost[node] = ending

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in list(keys):
            self.samples.pop(key, None)

    def name(self, key: Key) -> str:
        """Return a container's name; as long as it is not known, its id."""
        return safe(self.names.get(key, key[1]))

    def lines(self, sort: str, width: int | None) -> list[str]:
        """Return the lines to print."""
        keys = sorted(self.samples, key=lambda key: (natural(key[0]), natural(self.name(key))))
        orders: dict[str, Callable[[Key], Any]] = {
            "name": lambda key: natural(self.name(key)),
            "cpu": lambda key: -self.samples[key].cpu,
            "memory": lambda key: -self.samples[key].memory,
            "net": lambda key: -self.samples[key].net_rx - self.samples[key].net_tx,
            "block": lambda key: -self.samples[key].block_read - self.samples[key].block_write,
            "pids": lambda key: -self.samples[key].pids,
        }
        if sort in orders:
            keys.sort(key=orders[sort])
        lines = [self._title()]
        if keys:
            lines += ["", *table(_COLUMNS, [self._row(key) for key in keys], width)]
        if self.lost:
            lines += ["", *problems(self.lost)]
        return lines

    def _title(self) -> str:
        nodes = len({node for node, _ in self.samples})
        cpu = sum(sample.cpu for sample in self.samples.values())
        memory = sum(sample.memory for sample in self.samples.values())
        cost = max(self.costs.values(), default=0.0)
        own = f" (measuring: {cost:.1f} %)" if cost else ""
        use = f"CPU {cpu:.0f} %{own}, memory {size(memory)}"
        return f"{count(nodes, 'node')}, {count(len(self.samples), 'running container')}, {use}"

    def _row(self, key: Key) -> tuple[str, ...]:
        sample = self.samples[key]
        pressure = sample.pressure
        return (
            key[0],
            self.name(key),
            f"{sample.cpu:.1f}",
            size(sample.memory),
            size(sample.memory_limit) if sample.memory_limit else "-",
            f"{sample.memory * 100 / sample.memory_limit:.1f}" if sample.memory_limit else "-",
            f"{size(sample.net_rx)} / {size(sample.net_tx)}",
            f"{size(sample.block_read)} / {size(sample.block_write)}",
            f"{sample.pids} of {sample.pids_limit}" if sample.pids_limit else str(sample.pids),
            f"{sample.throttled_ms / 1000:.1f} s" if sample.throttled_ms else "-",
            f"{pressure.cpu:.0f} / {pressure.memory:.0f} / {pressure.io:.0f}" if pressure else "-",
        )


@click.command()
@click.argument("target", default="*", shell_complete=complete_target)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_container)
@click.option("--no-stream", "once", is_flag=True, help="Measure once, print and end.")
@click.option("--sort", type=click.Choice(SORTS), default="node", show_default=True, help="Order.")
@json_option
@bus_option
@awaited
async def stats(target: str, names: tuple[str, ...], once: bool, sort: str, as_json: bool, bus: str | None) -> int:
    """Show what the running containers of the tree use, live, until Ctrl-C.

    CPU: 100 % is one core. MEM: without the file cache. NET, BLOCK: since the start. THROTTLED: how long its limit kept
    it from the CPU. STALLED: the share of the last 10 s in which some process waited (kernels with cgroup v2). With
    --json a line for each sample.

    \b
    Examples:
      treescale container stats
      treescale container stats @web --sort cpu
      treescale container stats node1 web --no-stream --json
    """
    async with connect(bus, "treescale-stats") as client:
        wanted = None
        if names:
            finding = await find(client, target, names)
            matches = choose(finding, names, target, single=False)
            wanted = [(match.node, match.id[:SHORT_ID]) for match in matches]
        board = Board(await nodes_of(client, target), wanted)
        if not once:
            return await _Live(client, board, sort, as_json).run(target)
        endings = await _begin(client, target, board, as_json)
        if not as_json:
            click.echo("\n".join(board.lines(sort, columns())))
    return exit_code([ending.outcome for ending in endings.values()])


async def _begin(client: "Client", target: str, board: Board, as_json: bool) -> dict[str, Ending]:
    """Ask once for names and numbers; returns how that ended. Raises Fault when no node has a monitor."""
    tally = Tally()
    await snapshot(client, target, (), tally, ASK_S)
    board.names |= {(node, container.id[:SHORT_ID]): container.name for node, container in tally.rows}

    def measured(reply: "Reply") -> None:
        take(board, reply.node, reply.body, as_json)

    endings = monitored(await ask(client, target, "containers.sample", b"", measured, ASK_S))
    for node, ending in endings.items():
        if ending.outcome is not Outcome.OK:
            board.down(node, ending)
    return endings


def take(board: Board, node: str, body: bytes, as_json: bool) -> None:
    """Fold a StatsEvent into the board, and print it if it is to be printed."""
    event = msgspec.json.decode(body, type=StatsEvent)
    for key in board.take(node, event):
        if as_json:
            about = {"node": node, "id": key[1], "name": board.names.get(key, ""), "time_ms": event.time_ms}
            click.echo(json.dumps(about | msgspec.to_builtins(board.samples[key])))
    if as_json:
        sys.stdout.flush()


class _Live:
    """The table that stays."""

    def __init__(self, client: "Client", board: Board, sort: str, as_json: bool) -> None:
        self._client = client
        self._board = board
        self._sort = sort
        self._as_json = as_json
        self._changed = asyncio.Event()
        self._unread: BrokenPipeError | None = None
        """Nobody reads what we print any more."""

    async def run(self, target: str) -> int:
        """Listen and draw, until Ctrl-C or until nobody reads it."""
        try:
            await self._listen(target)
        except BrokenPipeError:  # `stats --json | head`: the reader has enough
            forget_stdout()
        return Code.OK

    async def _listen(self, target: str) -> None:
        board = self._board
        few = len(board.nodes) <= MAX_TOPICS
        topics = [f"containers.stats.{node}" for node in board.nodes] if few else ["containers.stats.>"]
        for topic in topics:
            await self._client.subscribe(topic, callback=self._measured)
        for action in ("created", "started", "renamed"):
            await self._client.subscribe(f"container.{action}", callback=self._named)
        await self._client.subscribe("node.*", callback=self._node)
        await _begin(self._client, target, board, self._as_json)
        while self._as_json:
            if self._unread:
                raise self._unread
            self._changed.clear()
            await self._changed.wait()
        with Screen() as screen:
            while True:
                self._changed.clear()
                screen.show(board.lines(self._sort, columns()))
                await asyncio.sleep(REDRAW_S)
                await self._changed.wait()

    def _measured(self, event: "Event") -> None:
        self._board.lost.pop(event.origin, None)
        try:
            take(self._board, event.origin, event.body, self._as_json)
        except BrokenPipeError as error:
            self._unread = error
        self._changed.set()

    def _named(self, event: "Event") -> None:
        container = msgspec.json.decode(event.body, type=ContainerEvent).container
        self._board.names[event.origin, container.id[:SHORT_ID]] = container.name

    def _node(self, event: "Event") -> None:
        if event.topic == "node.lost":
            facts = event.json()
            for node in spell(facts["nodes"]):
                self._board.down(node, Ending(Outcome.UNREACHABLE, safe(str(facts["cause"]))))
            self._changed.set()
