"""Top view: what `treescale top` shows of a model, and what a key makes of it. Pure; top.py listens and draws."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from tsbus.cli.containers.words import count, natural, state_words
from tsbus.cli.table import Column, cut, table
from tsbus.cli.terminal import duration, millis, safe, size
from tsbus.cli.treeview import Line, TreeView
from tsbus.cli.treeview import Node as TreeNode
from tsbus.dashboard.problems import problems
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import ContainerView, NodeView

Kind = Literal["nodes", "containers"]
SORTS: Final[dict[Kind, tuple[str, ...]]] = {
    "nodes": ("tree", "cpu", "memory", "name"),
    "containers": ("cpu", "memory", "net", "name", "node"),
}
MAX_FILTER: Final = 64
STALE_S: Final = 5.0
"""Figures that are older are marked with their age."""
HELP: Final = "q quit  Tab other  Enter open  s sort  / filter"

_MARK: Final = Column("")
"""Of the chosen row."""
_STATES: Final[dict[str, dict[str, Any]]] = {
    "up": {"fg": "green"}, "torpid": {"fg": "yellow"}, "LOST": {"fg": "red", "bold": True},
    "Up": {"fg": "green"}, "Exited": {"fg": "red"}, "Restarting": {"fg": "yellow"}, "?": {"fg": "red"},
}  # fmt: skip
_NODES: Final[tuple[Column, ...]] = (
    Column("NODE", least=12),
    Column("STATE", style=lambda text: _STATES.get(text, {})),
    Column("CPU %", right=True),
    Column("OF CORES", right=True, spare=4),
    Column("MEM", right=True, spare=1),
    Column("BOXES", right=True),
    Column("RTT", right=True, spare=3),
    Column("NOTES", least=8, spare=2),
)
_CONTAINERS: Final[tuple[Column, ...]] = (
    Column("NODE", least=8),
    Column("NAME", least=12),
    Column("STATE", least=8, spare=2, style=lambda text: _STATES.get(text.split(" ")[0], {})),
    Column("CPU %", right=True),
    Column("MEM", right=True),
    Column("MEM %", right=True, spare=1),
    Column("NET IN/s", right=True, spare=3),
    Column("OUT/s", right=True, spare=3),
    Column("DISK/s", right=True, spare=4),
)


@dataclass(frozen=True, slots=True)
class Look:
    """What is looked at, and how."""

    kind: Kind = "nodes"
    sorts: dict[Kind, str] = field(default_factory=lambda: {"nodes": "tree", "containers": "cpu"})
    wanted: str = ""
    """Part of a name, an image or a state."""
    node: str = ""
    """Only containers of this node."""
    place: int = 0
    """Which row is chosen."""
    typing: bool = False
    """Keys go into `wanted`."""

    @property
    def sort(self) -> str:
        """By what the rows are sorted."""
        return self.sorts[self.kind]


def after_key(look: Look, key: str, chosen: str) -> Look | None:
    """Return what is looked at after a key; None ends it. `chosen`: the name in the chosen row."""
    if look.typing:
        return _typed(look, key)
    match key:
        case "q":
            return None
        case "j" | "down":
            return replace(look, place=look.place + 1)
        case "k" | "up":
            return replace(look, place=max(look.place - 1, 0))
        case "g":
            return replace(look, place=0)
        case "\t":
            other: Kind = "containers" if look.kind == "nodes" else "nodes"
            return replace(look, kind=other, node="", place=0)
        case "s":
            sorts = SORTS[look.kind]
            following = sorts[(sorts.index(look.sort) + 1) % len(sorts)]
            return replace(look, sorts=look.sorts | {look.kind: following}, place=0)
        case "/":
            return replace(look, typing=True)
        case "\r" | "\n" if look.kind == "nodes" and chosen:
            return replace(look, kind="containers", node=chosen, wanted="", place=0)
        case "esc" if look.wanted:
            return replace(look, wanted="", place=0)
        case "esc" if look.node:
            return replace(look, kind="nodes", node="", place=0)
    return look


def _typed(look: Look, key: str) -> Look:
    if key in ("\r", "\n"):
        return replace(look, typing=False)
    if key == "esc":
        return replace(look, typing=False, wanted="", place=0)
    if key == "\x7f":
        return replace(look, wanted=look.wanted[:-1], place=0)
    if len(key) == 1 and key.isprintable():
        return replace(look, wanted=(look.wanted + key)[:MAX_FILTER], place=0)
    return look


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be drawn."""

    lines: list[str]
    chosen: str
    """The name in the chosen row, "" without one."""
    place: int
    """Which row is chosen really: there may be fewer than thought."""


def picture(
    model: Model, nodes: frozenset[str], look: Look, now_ms: int, *, width: int | None, height: int | None
) -> Picture:
    """Return what is to be drawn of `nodes` on so many columns and lines; None: as many as it takes."""
    names, rows = (_node_rows if look.kind == "nodes" else _container_rows)(model, nodes, look, now_ms)
    place = min(look.place, max(len(rows) - 1, 0))
    columns = _NODES if look.kind == "nodes" else _CONTAINERS
    head, foot = [_title(model, nodes, now_ms), _trouble(model, now_ms), ""], [""]
    if height is not None:
        foot.append(_foot(replace(look, place=place), len(rows)))
        room = max(height - len(head) - len(foot) - 2, 1)  # the table's heading, and a line that terminals scroll at
        first = min(max(place - room // 2, 0), max(len(rows) - room, 0))
        rows = [(">" if number == place else "", *row) for number, row in enumerate(rows)][first : first + room]
        columns = (_MARK, *columns)
    body = table(columns, rows, width) if rows else [_nothing(look)]
    lines = [*_fitting(head, width), *body, *_fitting(foot if height is not None else [], width)]
    return Picture(lines, names[place] if names else "", place)


def _fitting(lines: Sequence[str], width: int | None) -> list[str]:
    return [line if width is None else cut(line, width) for line in lines]


def _title(model: Model, nodes: frozenset[str], now_ms: int) -> str:
    if not model.connected:
        return f"the router here is away since {_age(model.connected_ms, now_ms)}: this is what was known last"
    views = [view for name, view in model.nodes.items() if name in nodes]
    lost = sum(view.state == "lost" for view in views)
    told = [view for view in views if view.stats_ms and view.state != "lost"]
    cpu, cpus = sum(view.cpu for view in told), sum(view.cpus for view in told)
    memory = sum(view.containers_memory for view in told)
    running, every = sum(view.running for view in views), sum(view.containers for view in views)
    parts = [
        count(len(views), "node") + (f", {lost} LOST" if lost else ""),
        f"{running} of {count(every, 'container')} running",
        f"CPU {cpu / max(cpus, 1):.0f} %, memory {size(memory)}" if told else "no figures yet",
    ]
    return f"{safe(model.here)}: " + " | ".join(parts)


def _trouble(model: Model, now_ms: int) -> str:
    found = problems(model, now_ms)
    if not found:
        return "nothing is wrong"
    since = f" ({_age(found[0].since_ms, now_ms)})" if found[0].since_ms else ""
    return f"{count(len(found), 'problem')}: {safe(found[0].text)}{since}"


def _nothing(look: Look) -> str:
    where = f" on {safe(look.node)}" if look.node else ""
    return f"no {look.kind}{where} with {safe(look.wanted)!r} in them" if look.wanted else f"no {look.kind}{where}"


def _foot(look: Look, rows: int) -> str:
    if look.typing:
        return f"/{safe(look.wanted)}_   Enter keep, Esc clear"
    place = f"{look.place + 1}/{rows}" if rows else "0"
    wanted = f"  /{safe(look.wanted)} (Esc clears)" if look.wanted else ""
    on = f" on {safe(look.node)}" if look.node else ""
    return f"{place} {look.kind}{on} by {look.sort}{wanted}  {HELP}"


def _age(then_ms: int, now_ms: int) -> str:
    return duration(max(now_ms - then_ms, 0) / 1000)


Row = tuple[str, ...]

# Nodes ----------------------------------------------------------------------------------------------------------------


def _node_rows(model: Model, nodes: frozenset[str], look: Look, now_ms: int) -> tuple[Sequence[str], Sequence[Row]]:
    views = [view for name, view in model.nodes.items() if name in nodes and _has(look, name, view.state, *view.tags)]
    if look.sort == "tree" and not look.wanted:
        drawn = list(TreeView(map(_tree_node, views), fold=False).lines())
        return [line.names[0] for line in drawn], [_tree_row(line, model, now_ms) for line in drawn]
    orders: dict[str, Callable[[NodeView], Any]] = {
        "cpu": lambda view: -view.cpu / max(view.cpus, 1),
        "memory": lambda view: -view.containers_memory,
        "name": lambda view: natural(view.name),
    }
    if look.sort in orders:
        views.sort(key=orders[look.sort])
    return [view.name for view in views], [_node_row(view, safe(view.name), (), now_ms) for view in views]


def _tree_node(view: NodeView) -> TreeNode:
    return TreeNode(view.name, view.state, view.parent, home=view.home, link=view.link, cause=view.cause)


def _tree_row(line: Line, model: Model, now_ms: int) -> Row:
    view = model.nodes[line.names[0]]
    return _node_row(view, line.stem + safe(view.name), tuple(line.below), now_ms)


def _node_row(view: NodeView, name: str, below: Sequence[str], now_ms: int) -> Row:
    told = view.stats_ms > 0
    return (
        name,
        "LOST" if view.state == "lost" else view.state,
        f"{view.cpu / view.cpus:.0f}" if told and view.cpus else "-",
        str(view.cpus) if told and view.cpus else "-",
        size(view.containers_memory) if told else "-",
        f"{view.running}/{view.containers}" if view.monitored else "-",
        millis(view.rtt_ms) if view.rtt_ms is not None else "-",
        "; ".join(_notes(view, below, now_ms)),
    )


def _notes(view: NodeView, below: Sequence[str], now_ms: int) -> Iterator[str]:
    if view.state == "lost":
        if view.link != "lost":
            yield "out of reach"
        else:
            yield (
                "never seen" if view.cause == "never" else f"{view.cause}, last seen {_age(view.since_ms, now_ms)} ago"
            )
        if below:
            yield f"with it {len(below)} below"
        return
    if view.adopted:
        yield f"adopted by {safe(view.parent)}" if view.parent else "acting root"
    if view.standing == "engine down":
        yield "engine down"
    elif view.standing == "stale" and view.monitored:
        yield "containers may be old"
    if view.unhealthy:
        yield f"{view.unhealthy} unhealthy"
    if view.slow:
        yield f"slow: {', '.join(safe(peer.name) for peer in view.slow[:3])}"
    if view.stats_ms and now_ms - view.stats_ms > STALE_S * 1000:
        yield f"figures {_age(view.stats_ms, now_ms)} old"


# Containers -----------------------------------------------------------------------------------------------------------


def _container_rows(
    model: Model, nodes: frozenset[str], look: Look, now_ms: int
) -> tuple[Sequence[str], Sequence[Row]]:
    views = [
        view
        for node in model.nodes
        if node in nodes and look.node in ("", node)
        for view in model.containers.get(node, {}).values()
        if _has(look, view.name, node, view.record.image.given, view.record.state, view.record.health)
    ]
    orders: dict[str, Callable[[ContainerView], Any]] = {
        "cpu": lambda view: -(view.sample.cpu if view.sample else -1),
        "memory": lambda view: -(view.sample.memory if view.sample else -1),
        "net": lambda view: -(view.rates.net_rx + view.rates.net_tx if view.rates else -1),
        "name": lambda view: 0,
        "node": lambda view: natural(view.node),
    }
    views.sort(key=lambda view: (orders[look.sort](view), natural(view.name), natural(view.node)))
    return [view.name for view in views], [_container_row(model, view, now_ms) for view in views]


def _container_row(model: Model, view: ContainerView, now_ms: int) -> Row:
    words = state_words(view.record, now_ms * 1_000_000)
    if model.nodes[view.node].standing not in ("live", "engine down"):
        words = f"? was {words[0].lower()}{words[1:]}"
    sample, rates = view.sample, view.rates
    limited = sample is not None and sample.memory_limit > 0
    return (
        safe(view.node),
        safe(view.name),
        words,
        f"{sample.cpu:.1f}" if sample else "-",
        size(sample.memory) if sample else "-",
        f"{sample.memory * 100 / sample.memory_limit:.0f}" if sample and limited else "-",
        size(rates.net_rx) if rates else "-",
        size(rates.net_tx) if rates else "-",
        size(rates.block_read + rates.block_write) if rates else "-",
    )


def _has(look: Look, *texts: str) -> bool:
    return not look.wanted or any(look.wanted.lower() in text.lower() for text in texts)
