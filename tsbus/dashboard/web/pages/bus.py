"""The bus: links and what waits on them, slow readers, round trips, and the workers of each node."""

from collections.abc import Iterator
from typing import Final

from tsbus.dashboard.state import Model
from tsbus.dashboard.views import NodeView, PeerView
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Column, Facts, Table
from tsbus.dashboard.web.pages.sheets import Fact, Row, cut

_LINKS: Final[tuple[Column, ...]] = (
    {"id": "link", "title": "Link", "width": "minmax(150px, 1.5fr)"},
    {"id": "state", "title": "State", "kind": "state", "width": "84px"},
    {"id": "rtt", "title": "Round trip", "kind": "ms", "width": "82px", "end": True, "line": 2},
    {"id": "queued", "title": "Waiting", "kind": "bytes", "width": "82px", "end": True, "line": 2},
    {"id": "dropped", "title": "Dropped", "kind": "count", "width": "76px", "end": True, "line": 2},
    {"id": "in", "title": "Frames in", "kind": "count", "width": "80px", "end": True, "line": 0, "dim": True},
    {"id": "out", "title": "Frames out", "kind": "count", "width": "80px", "end": True, "line": 0, "dim": True},
    {"id": "since", "title": "Up since", "kind": "age", "width": "90px", "end": True, "line": 0, "dim": True},
)
_WORKERS: Final[tuple[Column, ...]] = (
    {"id": "worker", "title": "Worker", "width": "minmax(140px, 1.5fr)"},
    {"id": "state", "title": "State", "kind": "state", "width": "84px"},
    {"id": "node", "title": "Node", "width": "minmax(80px, 0.8fr)", "line": 2, "label": ""},
    {"id": "who", "title": "Who", "width": "110px", "dim": True, "line": 0},
    {"id": "services", "title": "Services", "width": "minmax(80px, 1fr)", "dim": True, "line": 0},
    {
        "id": "subscriptions",
        "title": "Subscribed",
        "kind": "count",
        "width": "86px",
        "end": True,
        "line": 0,
        "dim": True,
    },
    {"id": "queued", "title": "Waiting", "kind": "bytes", "width": "82px", "end": True, "line": 2},
    {"id": "dropped", "title": "Dropped", "kind": "count", "width": "76px", "end": True, "line": 2},
)


def totals(model: Model, now_ms: int) -> Iterator[Fact]:
    """Return the sums over all routers."""
    routers = [node.router for node in model.nodes.values() if node.router is not None]
    peers = [peer for router in routers for peer in (*router.links, *router.workers)]
    trips = sorted(node.rtt_ms for node in model.nodes.values() if node.rtt_ms is not None and node.state != "lost")
    slow = sum(peer.slow for peer in peers)
    dropped = sum(peer.dropped for peer in peers)
    yield Fact("links", "Links up", "text", str(sum(node.state == "up" for node in model.nodes.values() if node.home)))
    yield Fact("slow", "Slow readers", "text", str(slow) if slow else "none", "warn" if slow else "")
    yield Fact("waiting", "Waiting", "bytes", sum(peer.queued for peer in peers) if routers else None)
    yield Fact("dropped", "Events dropped", "count", dropped if routers else None, "warn" if dropped else "")
    yield Fact("median", "Median trip", "ms", trips[len(trips) // 2] if trips else None)
    yield Fact("worst", "Longest trip", "ms", trips[-1] if trips else None)
    yield Fact("calls", "Calls under way", "count", sum(router.calls for router in routers) if routers else None)


def link_rows(model: Model, now_ms: int, of: str = "") -> Iterator[Row]:
    """Return all links, each as the node above it sees it, or those of one node."""
    for node in model.nodes.values():
        for link in node.router.links if node.router else ():
            if (link.kind != "parent" and not of) or node.name == of:
                yield _link(node, link)


def _link(node: NodeView, link: PeerView) -> Row:
    tone = ("warn", "slow") if link.slow else ("ok", "up") if link.state == "up" else ("warn", link.state)
    tone = ("lost", "lost") if node.state == "lost" else tone
    ends = (link.name, node.name) if link.kind == "parent" else (node.name, link.name)
    return Row(
        key=f"{node.name} {link.kind} {link.name}",
        cells=(" → ".join(ends), tone, link.rtt_ms, link.queued, link.dropped, link.frames_in, link.frames_out,
               link.since_ms or None),
        href=f"/node/{link.name}",
        note="adopted" if link.kind == "adopted" else "",
        tone="lost" if node.state == "lost" else "",
    )  # fmt: skip


def worker_rows(model: Model, now_ms: int) -> Iterator[Row]:
    """Return who is plugged into the routers."""
    for node in model.nodes.values():
        for worker in node.router.workers if node.router else ():
            mark = ("warn", "slow") if worker.slow else ("ok", worker.state)
            services = cut(", ".join(worker.services)) or None
            who = cut(worker.who) or None
            cells = (
                cut(worker.name),
                mark,
                node.name,
                who,
                services,
                worker.subscriptions,
                worker.queued,
                worker.dropped,
            )
            yield Row(
                key=f"{node.name} {worker.name} {worker.since_ms}",
                cells=cells,
                note="operator" if worker.kind == "operator" else "",
                tone="lost" if node.state == "lost" else "",
            )


def links(page: Page, node: str) -> None:
    """Add the links of one node."""
    narrow = [column for column in _LINKS if column["id"] not in ("in", "out", "since")]
    page.painter.show(Table("Links", narrow, title="Links", empty="It has not told of its links yet."), _links_of, node)


def _links_of(model: Model, now_ms: int, node: str) -> Iterator[Row]:
    for row in link_rows(model, now_ms, node):
        row.cells = row.cells[:5]
        yield row


def build(page: Page) -> None:
    """Show the bus."""
    page.watch()
    page.painter.show(Facts("Totals", "figures"), totals)
    empty = "No router has told yet; they are asked while this page is open."
    page.painter.show(Table("Links", _LINKS, title="Links", empty=empty, filter="Filter: node"), link_rows)
    page.painter.show(Table("Workers", _WORKERS, title="Workers", empty=empty), worker_rows)
