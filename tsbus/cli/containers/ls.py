"""Ls: `treescale container ls`, the containers of the whole tree in one table."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli.containers.finding import ask, monitored
from tsbus.cli.containers.options import ASK_S, any_target_argument, awaited
from tsbus.cli.containers.words import SHORT_ID, STYLES, count, image_words, natural, port_words, state_words
from tsbus.cli.edge import Code, bus_option, connect, forget_stdout, json_option, timeout_option
from tsbus.cli.report import Ending, exit_code, label, summary
from tsbus.cli.screen import Screen, columns, within
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import Progress, duration, safe, size
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.records import Container, EngineFacts, Sample, SnapshotHead, StatsEvent

if TYPE_CHECKING:
    from tsbus import Reply
    from tsbus.client import Client
    from tsbus.mirror import Mirror

PAUSE_S = 0.1
"""Between two drawings at least, when much changes."""
REDRAW_S = 1.0
"""On a terminal the ages grow; this asks nobody anything."""


def _style(cell: str) -> dict[str, Any]:
    color = "red" if "(unhealthy)" in cell else STYLES.get(cell.split(maxsplit=1)[0].rstrip(",")) if cell else None
    return {"fg": color} if color else {}


_NODE = Column("NODE", least=10)
_NAME = Column("NAME", least=14)
_IMAGE = Column("IMAGE", least=14, spare=1)
_STATE = Column("STATE", style=_style)
_USE = (Column("CPU %", right=True), Column("MEMORY", right=True))
_PORTS = Column("PORTS", least=14, spare=2)
_ID = Column("ID", spare=3)

SORTS = ("name", "node", "state", "cpu", "memory", "created", "image")
_ORDER = {state: place for place, state in enumerate(
    ("running", "restarting", "paused", "created", "removing", "exited", "dead")
)}  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What the monitors of many nodes said."""

    rows: list[tuple[str, Container]] = field(default_factory=list)
    """Node and container."""
    engines: dict[str, EngineFacts] = field(default_factory=dict)
    """Of the nodes that answered."""
    endings: dict[str, Ending] = field(default_factory=dict)
    """How it ended on every node of the target."""
    samples: dict[tuple[str, str], Sample] = field(default_factory=dict)
    """By node and short id."""

    def close(self, now_ns: int) -> None:
        """Count nodes whose engine is down as such: what they said is what was last known."""
        for node, engine in self.engines.items():
            if not engine.up and self.endings[node].outcome is Outcome.OK:
                self.endings[node] = down(engine, now_ns)


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be shown, and how."""

    show_all: bool = False
    sort: str = "node"
    whole: bool = False
    quiet: bool = False
    as_json: bool = False
    filtered: bool = False

    def lines(self, tally: Tally, now_ns: int, width: int | None) -> Iterator[str]:
        """Return the lines to print."""
        rows = self._rows(tally)
        if self.quiet:
            return (container.id if self.whole else container.id[:SHORT_ID] for _, container in rows)
        if self.as_json:
            return (json.dumps(_as_object(tally, node, container)) for node, container in rows)
        return self._text(tally, rows, now_ns, width)

    def _rows(self, tally: Tally) -> list[tuple[str, Container]]:
        rows = [row for row in tally.rows if self.show_all or row[1].state in ("running", "paused", "restarting")]
        rows.sort(key=lambda row: (natural(row[0]), natural(row[1].name)))
        none = Sample()

        def used(row: tuple[str, Container]) -> Sample:
            return tally.samples.get((row[0], row[1].id[:SHORT_ID]), none)

        keys: dict[str, Callable[[tuple[str, Container]], Any]] = {
            "node": lambda row: 0,
            "name": lambda row: natural(row[1].name),
            "state": lambda row: _ORDER[row[1].state],
            "image": lambda row: row[1].image.given,
            "created": lambda row: -row[1].created_ns,
            "cpu": lambda row: -used(row).cpu,
            "memory": lambda row: -used(row).memory,
        }
        rows.sort(key=keys[self.sort])
        return rows

    def _text(
        self, tally: Tally, rows: Sequence[tuple[str, Container]], now_ns: int, width: int | None
    ) -> Iterator[str]:
        yield self._title(tally, len(rows))
        uses = _USE if self.sort in ("cpu", "memory") else ()
        columns = (_NODE, _NAME, _IMAGE, _STATE, *uses, _PORTS, _ID)
        if rows:
            yield ""
            cells = [self._cells(tally, node, container, now_ns, bool(uses)) for node, container in rows]
            yield from table(columns, cells, None if self.whole else width)
        if trouble := list(problems(tally.endings)):
            yield ""
            yield from trouble

    def _title(self, tally: Tally, shown: int) -> str:
        running = sum(container.state == "running" for _, container in tally.rows)
        nodes = next(iter(tally.engines)) if len(tally.engines) == 1 else count(len(tally.engines), "node")
        match = " that match" if self.filtered else ""
        hidden = f" ({len(tally.rows) - shown} not shown: -a shows all)" if shown < len(tally.rows) else ""
        return f"{nodes}, {count(len(tally.rows), 'container')}{match}, {running:,} running{hidden}"

    def _cells(self, tally: Tally, node: str, container: Container, now_ns: int, uses: bool) -> tuple[str, ...]:
        state = state_words(container, now_ns)
        if tally.endings[node].outcome is not Outcome.OK:
            state = f"? was {state[0].lower()}{state[1:]}"
        sample = tally.samples.get((node, container.id[:SHORT_ID]))
        return (
            node,
            safe(container.name),
            image_words(container.image, whole=self.whole),
            state,
            *((f"{sample.cpu:.1f}", size(sample.memory)) if sample else ("-", "-") if uses else ()),
            port_words(container.endpoints),
            container.id if self.whole else container.id[:SHORT_ID],
        )


def _as_object(tally: Tally, node: str, container: Container) -> dict[str, Any]:
    about: dict[str, Any] = {"node": node} | msgspec.to_builtins(container)
    sample = tally.samples.get((node, container.id[:SHORT_ID]))
    return about | ({"sample": msgspec.to_builtins(sample)} if sample else {})


def down(engine: EngineFacts, now_ns: int) -> Ending:
    """Return how a question ended on a node whose engine is down."""
    age = f" for {duration(max(now_ns - engine.since_ns, 0) / 1e9)}" if engine.since_ns else ""
    return Ending(Outcome.FAILED, f"engine down{age}: {safe(engine.reason)}")


def problems(endings: dict[str, Ending]) -> Iterator[str]:
    """Return lines that name the nodes that did not answer, or not as they should, and why."""
    groups: dict[str, list[str]] = {}
    for node, ending in endings.items():
        if ending.outcome is Outcome.NO_SUCH_SERVICE:
            groups.setdefault("no container monitor", []).append(node)
        elif ending.outcome is Outcome.FAILED:
            groups.setdefault(ending.reason, []).append(node)
        elif ending.outcome is not Outcome.OK:
            why = f" ({ending.reason})" if ending.reason else ""
            groups.setdefault(f"no answer: {label(ending.outcome)}{why}", []).append(node)
    for reason, nodes in groups.items():
        yield f"{fold(nodes)}: {reason}"


@click.command()
@any_target_argument
@click.option("-a", "--all", "show_all", is_flag=True, help="Also containers that do not run.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", callback=lambda _, __, v: _checked(v),
              help="Only what matches: image=, label=, state=, health=, node=, name=. Of one key any, of several "
              "keys all must match.")  # fmt: skip
@click.option("--sort", type=click.Choice(SORTS), default="node", show_default=True,
              help="Order; cpu and memory are measured, and shown.")  # fmt: skip
@click.option("--watch", is_flag=True, help="Stay, and draw again whenever something changes.")
@click.option("--no-trunc", "whole", is_flag=True, help="Cut nothing, and show whole ids.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@timeout_option(ASK_S)
@json_option
@bus_option
@awaited
async def ls(
    target: str,
    show_all: bool,
    filters: tuple[str, ...],
    sort: str,
    watch: bool,
    whole: bool,
    quiet: bool,
    timeout_s: float,
    as_json: bool,
    bus: str | None,
) -> int:
    """List containers of the whole tree, or of TARGET.

    Nodes that did not answer, or whose engine is down, are named below the table.

    \b
    Examples:
      treescale container ls
      treescale container ls @web -a --filter image=nginx --filter state=exited
      treescale container ls --sort cpu
      treescale container ls --watch
    """
    look = Look(show_all, sort, whole, quiet, as_json, bool(filters))
    if watch:
        if sort in ("cpu", "memory"):
            raise click.UsageError(f"--watch asks nobody, so it cannot sort by {sort}: see treescale container stats.")
        return await _watch(bus, target, filters, look)
    tally, progress = Tally(), Progress()
    async with connect(bus, "treescale-container") as client:
        asking = [snapshot(client, target, filters, tally, timeout_s)]
        if sort in ("cpu", "memory"):
            asking.append(measure(client, target, tally, timeout_s))
        await asyncio.gather(*asking)
    now_ns = time.time_ns()
    tally.close(now_ns)
    endings = monitored(tally.endings)
    if lines := list(look.lines(tally, now_ns, columns())):
        click.echo("\n".join(lines))
    if as_json:
        click.echo(json.dumps(summary(tally.endings, progress.elapsed_s)))
    elif quiet:
        for line in problems(endings):
            click.echo(line, err=True)
    return exit_code([ending.outcome for ending in endings.values()])


def _checked(texts: tuple[str, ...]) -> tuple[str, ...]:
    if texts:
        from tsbus.filters import Filter, FilterError

        try:
            Filter.parse(*texts)
        except FilterError as error:
            raise click.BadParameter(str(error)) from None
    return texts


async def snapshot(client: "Client", target: str, filters: Sequence[str], tally: Tally, timeout_s: float) -> None:
    """Ask the nodes of `target` for their containers."""
    containers = msgspec.json.Decoder(list[Container]).decode
    head = msgspec.json.Decoder(SnapshotHead).decode
    rows: dict[str, list[Container]] = {}

    def take(reply: "Reply") -> None:
        if reply.body.startswith(b"{"):
            tally.engines[reply.node] = head(reply.body).engine
        else:
            rows.setdefault(reply.node, []).extend(containers(reply.body))

    body = {"filters": list(filters), "all": True}
    tally.endings |= await ask(client, target, "containers.snapshot", body, take, timeout_s)
    for node, ending in tally.endings.items():
        if ending.outcome is Outcome.OK:
            tally.rows += ((node, container) for container in rows.get(node, ()))


async def measure(client: "Client", target: str, tally: Tally, timeout_s: float) -> None:
    """Ask the nodes of `target` what their containers use."""

    def take(reply: "Reply") -> None:
        event = msgspec.json.decode(reply.body, type=StatsEvent)
        tally.samples.update(((reply.node, key[:SHORT_ID]), sample) for key, sample in event.samples.items())

    await ask(client, target, "containers.sample", b"", take, timeout_s)


async def _watch(bus: str | None, target: str, filters: Sequence[str], look: Look) -> int:
    """Draw at every change, until Ctrl-C."""
    from tsbus.live_mirror import follow

    changed = asyncio.Event()
    async with (
        connect(bus, "treescale-container") as client,
        follow(client, target, filters=filters, on_change=lambda _: changed.set()) as mirror,
    ):
        await mirror.wait_settled(ASK_S)
        try:
            with Screen() as screen:
                while True:
                    changed.clear()
                    now_ns = time.time_ns()
                    tally = tally_of(mirror)
                    tally.close(now_ns)
                    screen.show(list(look.lines(tally, now_ns, columns())))
                    await asyncio.sleep(PAUSE_S)
                    await within(changed, REDRAW_S if screen.is_terminal else None)
        except BrokenPipeError:  # `ls --watch | head`: the reader has enough
            forget_stdout()
            return Code.OK


def tally_of(mirror: "Mirror") -> Tally:
    """Return what a mirror knows."""
    tally = Tally(rows=list(mirror.containers()))
    for node, view in mirror.nodes.items():
        if view.engine is not None:
            tally.engines[node] = view.engine
        if view.lost:
            tally.endings[node] = Ending(Outcome.UNREACHABLE, safe(view.why))
        elif view.complete:
            tally.endings[node] = Ending(Outcome.OK)
        else:
            known = view.engine is not None
            tally.endings[node] = Ending(Outcome.FAILED if known else Outcome.NO_SUCH_SERVICE, safe(view.why))
    return tally
