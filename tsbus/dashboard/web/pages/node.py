"""One node: how it is, its links, containers, balancers and events."""

from collections.abc import Iterator

from nicegui import ui

from tsbus.dashboard.state import Model
from tsbus.dashboard.views import NodeView
from tsbus.dashboard.web.pages import balancers, bus, containers, events, tones, tree
from tsbus.dashboard.web.pages.figures import Span, graphs, spans
from tsbus.dashboard.web.pages.page import Page, missing
from tsbus.dashboard.web.pages.parts import Facts, Table, text
from tsbus.dashboard.web.pages.sheets import Fact

_GRAPHS = (
    ("CPU, share of the machine", "percent", ("cpu",)),
    ("Memory of its containers", "bytes", ("containers_memory",)),
)


def facts(model: Model, now_ms: int, name: str) -> Iterator[Fact]:
    """Return what is known of a node; of a lost one in grey."""
    node = model.nodes.get(name)
    if node is None:
        return
    for fact in _facts(model, node):
        fact.tone = "lost" if node.state == "lost" else fact.tone
        yield fact


def _facts(model: Model, node: NodeView) -> Iterator[Fact]:
    engine, router = node.engine, node.router
    yield Fact("state", "State", "state", tones.of_node(node), note=node.cause if node.state != "up" else "")
    seen = model.heard_ms.get(node.name) or node.since_ms
    yield Fact("since", "Last seen" if node.state == "lost" else "Link since", "age",
               (seen if node.state == "lost" else node.since_ms) or None)  # fmt: skip
    home = f"home: {node.home}" if node.adopted else ""
    yield Fact("parent", "Parent", "text", node.parent or None, "", home, f"/node/{node.parent}" if node.parent else "")
    yield Fact("rtt", "Round trip", "ms", node.rtt_ms)
    yield Fact("engine", "Engine", "text", f"{engine.name} {engine.version}".strip() if engine else None,
               "" if not engine or engine.up else "bad", "" if not engine or engine.up else engine.reason)  # fmt: skip
    if engine:
        yield Fact("os", "System", "text", " · ".join(filter(None, (engine.os, engine.kernel, engine.cgroup))) or None)
        yield Fact(
            "size", "Machine", "text", f"{engine.cpus} cores · {tones.size(engine.memory)}" if engine.cpus else None
        )
    yield Fact("tags", "Tags", "chips", node.tags or None)
    yield Fact("release", "TreeScale", "text", router.release if router else None)
    yield Fact("config", "Configuration", "mono", router.config[:12] if router else None)
    if node.stats_ms:
        yield Fact("monitor", "Cost of measuring", "percent", node.monitor_cpu, note="of a core")
    if abs(node.skew_ms) > 2000:
        yield Fact("skew", "Clock", "text", f"{node.skew_ms / 1000:+.1f} s", "warn", "against the one here")


def build(page: Page, name: str) -> None:
    """Show a node."""
    node = page.model.nodes.get(name)
    if node is None:
        missing(f"There is no node {name} in this tree.")
        return
    page.watch(name)
    with text("div", classes="title"):
        text("h1", name)
        text("span", "node", "dim")
    page.painter.show(Facts(f"Node {name}"), facts, name)
    page.painter.show(Table("Problems", tree.PROBLEMS, quiet=True), tree.troubles, name)
    span = Span()
    with ui.element("section"):
        with text("div", classes="bar"):
            text("h2", "Figures")
            spans(span)
        with text("div", classes="halves"):
            graphs(page, span, name, "", _GRAPHS)
    containers.table(page, name)
    if node.balancers:
        balancers.cards(page, name)
    with text("div", classes="halves"):
        bus.links(page, name)
        with ui.element("div"):
            events.feed(page, node=name)
