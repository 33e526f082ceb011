"""The first screen: totals, what is wrong now, and the tree."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from nicegui import ui

from tsbus.dashboard.problems import Problem, problems
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import NodeView
from tsbus.dashboard.web.pages import tones
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Column, Facts, Table, text
from tsbus.dashboard.web.pages.sheets import Fact, Row, cut

_TREE: Final[tuple[Column, ...]] = (
    {"id": "name", "title": "Node", "width": "minmax(170px, 1.6fr)"},
    {"id": "state", "title": "State", "kind": "state", "width": "76px"},
    {"id": "rtt", "title": "Round trip", "kind": "ms", "width": "76px", "end": True, "line": 2, "label": "Trip"},
    {"id": "cpu", "title": "CPU", "kind": "meter", "width": "minmax(96px, 0.8fr)", "end": True, "line": 2},
    {"id": "memory", "title": "Memory", "kind": "meter", "width": "minmax(110px, 0.9fr)", "end": True, "line": 2},
    {"id": "count", "title": "Containers", "width": "100px", "end": True, "label": "Containers"},
    {"id": "age", "title": "Age", "kind": "age", "width": "108px", "end": True, "dim": True, "line": 2},
)
PROBLEMS: Final[tuple[Column, ...]] = (
    {"id": "text", "width": "minmax(0, 1fr)"},
    {"id": "kind", "kind": "state", "width": "150px", "line": 2},
    {"id": "since", "kind": "age", "width": "90px", "dim": True, "line": 2},
    {"id": "mend", "width": "minmax(0, 1.4fr)", "dim": True, "line": 2},
)


@lru_cache(maxsize=1)
def _found(model: Model, revision: int, now_ms: int) -> list[Problem]:
    """Return all problems; several parts of several pages show them at one turn."""
    return problems(model, now_ms)


def totals(model: Model, now_ms: int) -> Iterator[Fact]:
    """Return the line above everything."""
    sums = model.totals()
    found = _found(model, model.revision, now_ms)
    tone = "bad" if any(one.severe for one in found) else "warn" if found else ""
    yield Fact("problems", "Problems", "text", str(len(found)) if found else "none", tone)
    yield Fact("nodes", "Nodes up", "text", str(sums.up), "bad" if sums.lost else "", f"of {sums.nodes}")
    yield Fact("containers", "Containers run", "text", str(sums.running), "", f"of {sums.containers}", "/containers")
    if sums.balancers:
        tone = "" if sums.balancers_ok == sums.balancers else "warn"
        yield Fact(
            "balancers", "Balancers ok", "text", str(sums.balancers_ok), tone, f"of {sums.balancers}", "/balancers"
        )
    share = sums.cpu / sums.cpus if sums.cpus else None
    yield Fact("cpu", f"CPU, {sums.cpus} cores" if sums.cpus else "CPU", "percent", share)
    yield Fact("memory", "Containers use", "bytes", sums.memory if sums.freshest_ms else None)
    yield Fact("fresh", "Oldest figures", "age", sums.oldest_ms or None)


def rows(model: Model, now_ms: int) -> Iterator[Row]:
    """Return the tree as it is configured, each node before what is below it."""
    below: dict[str, list[NodeView]] = {}
    for node in model.nodes.values():
        below.setdefault(node.home if node.home in model.nodes else "", []).append(node)
    todo = [(node, 0) for node in reversed(below.get("", ()))]
    while todo:
        node, depth = todo.pop()
        kids = below.get(node.name, ())
        yield _row(model, node, bool(kids), depth)
        todo += [(kid, depth + 1) for kid in reversed(kids)]


def _row(model: Model, node: NodeView, kids: bool, depth: int) -> Row:
    lost, memory = node.state == "lost", node.containers_memory
    seen_ms = model.heard_ms.get(node.name) or node.since_ms
    note = f"adopted by {node.parent}" if node.adopted else node.cause if node.state != "up" else ""
    cpu = (node.cpu / node.cpus / 100, f"{node.cpu / node.cpus:.0f} %") if node.stats_ms and node.cpus else None
    used = (memory / (node.memory or memory or 1), tones.size(memory)) if node.stats_ms else None
    seen = (seen_ms, "last seen ") if lost and seen_ms else node.stats_ms or None
    return Row(
        key=node.name,
        cells=(node.name, tones.of_node(node), None if lost else node.rtt_ms, cpu, used, _count(node), seen),
        href=f"/node/{node.name}",
        tone="lost" if lost else "",
        note=note,
        depth=depth,
        kids=kids,
        hay=" ".join(["state:" + node.state, *("tag:" + tag for tag in node.tags)]),
    )


def _count(node: NodeView) -> str | tuple[str, str] | None:
    if not node.monitored:
        return None
    if node.standing == "engine down":
        return "warn", "no engine"
    if node.unhealthy:
        return "bad", f"{node.unhealthy} unhealthy"
    return str(node.running) if node.running == node.containers else f"{node.running} of {node.containers}"


def troubles(model: Model, now_ms: int, node: str = "") -> Iterator[Row]:
    """Return what is wrong now, everywhere or on one node, the worst first."""
    for one in _found(model, model.revision, now_ms):
        if node in ("", one.node):
            kind = ("bad" if one.severe else "warn", one.kind.replace("-", " "))
            yield Row(
                key=f"{one.kind} {one.node} {one.subject} {one.text[:40]}",
                cells=(cut(one.text), kind, (one.since_ms, "for ") if one.since_ms else None, cut(one.mend)),
                href=one.path,
            )


def build(page: Page) -> None:
    """Show the tree."""
    page.watch()
    model = page.model
    if len(model.nodes) <= 1 and not any(model.containers.values()):
        _start()
    figures = Facts("Totals", "figures")
    page.painter.show(figures, totals)
    with ui.element("div").classes("columns"):
        tree = Table("Tree", _TREE, title="Tree", tree=True, filter="tag:web, state:lost …",
                     empty="No node is known yet.")  # fmt: skip
        page.painter.show(tree, rows)
        wrong = Table("Problems", PROBLEMS, title="Problems", empty="Nothing is wrong.")
        page.painter.show(wrong, troubles)


def _start() -> None:
    """Say what to run when there is nothing to see."""
    with text("section", classes="start"):
        text("h1", "This tree has one node so far.")
        text("p", "Describe more servers in treescale.toml, then let TreeScale set them up over SSH:")
        text("pre", "treescale config check\ntreescale build --dry-run\ntreescale build")
