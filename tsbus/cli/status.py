"""Status: `treescale status`, the tree as the local router sees it, with what the other routers tell of themselves.

treeview.py decides which lines there are; this module asks the routers and prints.
"""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.edge import Code, bus_option, connect, json_option, run
from tsbus.cli.screen import Screen, within
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import duration, millis, safe, size
from tsbus.cli.treeview import FOLD_ABOVE, Line, Node, TreeView
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.errors import BusError

if TYPE_CHECKING:
    from tsbus.client import Client

PATIENCE_S = 1.0
"""How long the other routers may take to tell their figures; a tree that is half dead must be drawn too."""
REDRAW_S = 1.0
"""On a terminal the ages grow; this asks nobody anything."""
SETTLE_S = 2.0
"""So long after a change the routers are asked once more: new links have no round trip yet."""
MAX_NAME = 48

_STYLES: dict[str, dict[str, Any]] = {
    "up": {"fg": "green"},
    "torpid": {"fg": "yellow"},
    "lost": {"fg": "red", "bold": True},
}
_COLUMNS = (
    Column("NODE"),
    Column("STATE", style=lambda text: _STYLES.get(text.lower(), {})),
    *map(Column, ("FOR", "RTT", "RELEASE", "QUEUED", "NOTES")),
)


@click.command()
@click.option("--all", "show_all", is_flag=True, help=f"A line for each node, also in trees of more than {FOLD_ABOVE}.")
@click.option("--watch", is_flag=True, help="Stay, and draw again whenever something changes.")
@json_option
@bus_option
def status(show_all: bool, watch: bool, as_json: bool, bus: str | None) -> int:
    """Draw the tree: who is up, who is torpid (connected, but its program hangs) or lost, why and for how long.

    In large trees, siblings of which the same is to be said share a line. A lost node speaks for all below it.

    \b
    Examples:
      treescale status
      treescale status --watch
      treescale status --json
    """
    return run(_status(bus, _Drawing(show_all, as_json), watch))


async def _status(bus: str | None, drawing: "_Drawing", watch: bool) -> int:
    async with connect(bus, "treescale-status") as client:
        if watch:
            await _watch(client, drawing)
        click.echo("\n".join(drawing.lines(await _ask(client), time.time() * 1000)))
    return Code.OK


@dataclass(frozen=True, slots=True)
class Facts:
    """What the routers said."""

    status: dict[str, Any]
    """`router.status` of the local router."""
    stats: Mapping[str, dict[str, Any]]
    """`router.stats` of those that answered."""


async def _ask(client: "Client") -> Facts:
    told = await client.call_one(client.node, "router.status", b"")
    stats = {}
    async with client.request("*", "router.stats", timeout_s=PATIENCE_S) as call:
        async for reply in call:
            if reply.status is Outcome.OK:
                stats[reply.node] = reply.json()
    return Facts(told, stats)


async def _watch(client: "Client", drawing: "_Drawing") -> None:
    """Draw at every change, until Ctrl-C."""
    changed = asyncio.Event()

    def note(_: object) -> None:
        changed.set()

    for pattern in ("node.>", "bus.>"):
        await client.subscribe(pattern, callback=note, on_gap=note)
    settled = False
    with Screen() as screen:
        while True:
            changed.clear()
            try:
                facts = await _ask(client)
            except BusError as error:
                screen.show([f"the router is away, waiting for it: {error}"])
                await client.wait_connected(None)
                continue
            ask_again = math.inf if settled else time.monotonic() + SETTLE_S
            settled = True
            while settled and time.monotonic() < ask_again:
                screen.show(list(drawing.lines(facts, time.time() * 1000)))
                patience = REDRAW_S if screen.is_terminal else None if ask_again == math.inf else SETTLE_S
                settled = not await within(changed, patience)


def nodes_of(facts: Facts, now_ms: float) -> list[Node]:
    """Return what is known of every node. `now_ms`: Unix milliseconds."""
    rtts = {
        link["name"]: link.get("rtt_ms") for told in facts.stats.values() for link in told["links"]
        if link["kind"] == "child"
    }  # fmt: skip
    nodes = []
    for told in facts.status["nodes"]:
        name = told["name"]
        stats = facts.stats.get(name)
        peers = [*stats["links"], *stats["workers"]] if stats else []
        nodes.append(
            Node(
                name=name,
                # Whoever answers is alive, also when its own link is lost and with it all above.
                state="up" if name == facts.status["node"] else told["state"],
                parent=told["parent"] or "",
                home=told["home"] or "",
                link=told["link"],
                cause=told["cause"],
                since_s=max(now_ms - told["since_ms"], 0) / 1000,
                release=stats["release"] if stats else told.get("release") or "",
                config=stats["config"] if stats else told.get("config") or "",
                rtt_ms=rtts.get(name),
                queued=sum(sum(peer["queue"].values()) for peer in peers) if stats else None,
                slow=tuple(peer["name"] for peer in peers if peer["slow"]),
            )
        )
    return nodes


class _Drawing:
    """Turns facts into lines of text."""

    def __init__(self, show_all: bool, as_json: bool) -> None:
        self._show_all = show_all
        self._as_json = as_json

    def lines(self, facts: Facts, now_ms: float) -> Iterable[str]:
        """Return the lines to print. `now_ms`: Unix milliseconds."""
        nodes = nodes_of(facts, now_ms)
        if self._as_json:
            return [_as_object(facts, nodes)]
        lines = list(TreeView(nodes, fold=len(nodes) > FOLD_ABOVE and not self._show_all).lines())
        usual = Counter(node.config for node in nodes if node.config).most_common(1)
        rows = [_row(line, facts.status["node"], usual[0][0] if usual else "") for line in lines]
        return [_title(facts, nodes, lines), "", *table(_COLUMNS, rows)]


def _as_object(facts: Facts, nodes: list[Node]) -> str:
    more = {
        node.name: {"rtt_ms": node.rtt_ms, "queued_bytes": node.queued, "slow": list(node.slow),
                    "release": node.release, "config": node.config, "adopted": node.adopted}
        for node in nodes
    }  # fmt: skip
    return json.dumps(facts.status | {"nodes": [told | more[told["name"]] for told in facts.status["nodes"]]})


def _title(facts: Facts, nodes: list[Node], lines: list[Line]) -> str:
    states = Counter(node.state for node in nodes)
    cut_off = {name for line in lines for name in line.below}
    parts = [f"{states[state]} {state}" for state in ("up", "torpid", "lost") if states[state]]
    if cut_off:
        parts.append(f"{len(cut_off)} of these below a lost one")
    return f"{safe(facts.status['node'])} sees {len(nodes)} nodes: {', '.join(parts)}"


def _row(line: Line, here: str, usual_config: str) -> tuple[str, ...]:
    nodes, first = line.nodes, line.nodes[0]
    if first.state == "lost":
        return (line.stem + _names(line.names), "LOST", *_lost(line))
    rtts = [node.rtt_ms for node in nodes if node.rtt_ms is not None]
    queued = [node.queued for node in nodes if node.queued is not None]
    return (
        line.stem + _names(line.names),
        first.state,
        duration(min(node.since_s for node in nodes)),
        _range(rtts),
        first.release or "?",
        # Less than this is mostly the answers to our own questions.
        "?" if not queued else size(max(queued)) if max(queued) >= 1024 else "-",
        "; ".join(_notes(line, here, usual_config)),
    )


def _names(names: Collection[str]) -> str:
    text = fold(names)
    if len(names) == 1:
        return text
    return (text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "...") + f" ({len(names)})"


def _lost(line: Line) -> tuple[str, ...]:
    first = line.nodes[0]
    if first.link != "lost":
        seen = "out of reach from here"
    elif first.cause == "never":
        seen = "never seen"
    else:
        seen = f"{first.cause}, last seen {duration(min(node.since_s for node in line.nodes))} ago"
    below = f"; with it {_names(line.below)}" if line.below else ""
    return ("", "", "", "", seen + below)


def _range(rtts: list[float]) -> str:
    if not rtts:
        return ""
    return millis(max(rtts)) if len(rtts) == 1 else f"<= {millis(max(rtts))}"


def _notes(line: Line, here: str, usual_config: str) -> list[str]:
    first = line.nodes[0]
    notes = ["here"] if any(node.name == here for node in line.nodes) else []
    if first.state == "torpid":
        notes.append(f"does not answer ({first.cause})")
    if first.link == "lost":
        notes.append(f"cut off from {first.home} ({first.cause})")
    elif first.adopted:
        notes.append(
            f"adopted, at home below {first.home}" if first.parent else f"acting root, instead of {first.home}"
        )
    if any(node.slow for node in line.nodes):
        notes.append("slow: " + ", ".join(sorted({safe(name) for node in line.nodes for name in node.slow})))
    if first.config and first.config != usual_config:
        notes.append(f"config {first.config}, others have {usual_config}")
    return notes
