"""Balancers: for each address the rates, and the servers with their state and the reason for it."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import msgspec
from nicegui import ui

from tsbus.core.accounting import Outcome
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import BalancerView, ServerView
from tsbus.dashboard.web.pages import tones
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Column, Facts, Table, button, text
from tsbus.dashboard.web.pages.sheets import Fact, Row, cut
from tsbus.errors import BusError
from tsbus.lb_records import WhyAnswer

_COLUMNS: Final[tuple[Column, ...]] = (
    {"id": "name", "title": "Server", "width": "minmax(150px, 1.4fr)"},
    {"id": "state", "title": "State", "kind": "state", "width": "104px"},
    {"id": "since", "title": "Since", "kind": "age", "width": "90px", "dim": True, "line": 0},
    {"id": "reason", "title": "Reason", "width": "minmax(120px, 1.6fr)", "dim": True, "line": 2, "label": ""},
    {"id": "weight", "title": "Weight", "kind": "share", "width": "130px", "end": True, "line": 0},
    {"id": "connections", "title": "Connections", "kind": "count", "width": "90px", "end": True, "line": 0},
    {"id": "rate", "title": "New", "kind": "each", "width": "70px", "end": True, "line": 2},
    {"id": "bytes", "title": "Out", "kind": "rate", "width": "90px", "end": True, "line": 0},
    {"id": "acts", "title": "Do", "kind": "actions", "width": "80px", "sort": False},
)
_TROUBLE: Final[tuple[Column, ...]] = ({"id": "text"}, {"id": "mend", "dim": True, "line": 2})
_CHECKS: Final[dict[str, tones.Tone]] = {"ok": "ok", "fail": "bad", "warn": "warn", "unknown": "off"}
_WHY_S: Final = 15.0
_read_why: Final = msgspec.json.Decoder(WhyAnswer).decode


def _find(model: Model, node: str, name: str) -> BalancerView | None:
    return model.balancers.get(node, {}).get(name)


def facts(model: Model, now_ms: int, node: str, name: str) -> Iterator[Fact]:
    """Return how a balancer is, and what flows through it."""
    view = _find(model, node, name)
    if view is None:
        return
    traffic = view.traffic
    yield Fact("state", "State", "state", tones.of_balancer(view))
    yield Fact("servers", "Servers", "text", f"{view.active} of {len(view.servers)} take part")
    yield Fact("cps", "New connections", "each", traffic.cps if traffic else None)
    yield Fact("active", "Connections", "count", traffic.active if traffic else None)
    yield Fact("in", "In", "rate", traffic.in_bps if traffic else None)
    yield Fact("out", "Out", "rate", traffic.out_bps if traffic else None)
    yield Fact("alg", "Scheduler", "text", " · ".join(filter(None, (view.alg, view.backend))) or None)


def rows(model: Model, now_ms: int, node: str, name: str, refused: str) -> Iterator[Row]:
    """Return the servers of a balancer, and who was left out."""
    view = _find(model, node, name)
    if view is None:
        return
    heaviest = max((server.weight for server in view.servers), default=0)
    for server in view.servers:
        yield _row(server, node, heaviest, refused)
    for left in view.left_out:
        cells = (cut(left.name), ("off", "left out"), None, cut(left.reason), None, None, None, None, ())
        yield Row(f"left {left.node} {left.name}", cells, tone="lost", note=left.node)


def _row(server: ServerView, here: str, heaviest: int, refused: str) -> Row:
    traffic = server.traffic
    act = ("undrain", "Undrain") if server.state in ("draining", "removed") else ("drain", "Drain")
    connections = server.connections if server.connections is not None else traffic.active if traffic else None
    container = server.id and server.id not in (server.node, "sorry")
    return Row(
        key=f"{server.id} {server.ip} {server.port}",
        cells=(
            cut(server.name),
            tones.of_server(server),
            server.since_ms or None,
            cut(server.reason) or None,
            (server.weight / heaviest if heaviest else 0, str(server.weight)),
            connections,
            traffic.cps if traffic else None,
            traffic.out_bps if traffic else None,
            ((*act, refused),) if server.id != "sorry" else (),
        ),
        href=f"/container/{server.node}/{server.id[:12]}" if container and server.node else "",
        note=" ".join(
            filter(None, ("" if server.node in (server.name, here) else server.node, f"{server.ip}:{server.port}"))
        ),
        hay=cut(f"state:{server.state} {server.rule}"),
    )


def troubles(model: Model, now_ms: int, node: str, name: str) -> Iterator[Row]:
    """Return what is wrong with a balancer."""
    view = _find(model, node, name)
    for number, problem in enumerate(view.problems if view else ()):
        yield Row(
            f"{number} {problem.text[:60]}", (("off" if problem.note else "warn", cut(problem.text)), cut(problem.mend))
        )


def build(page: Page) -> None:
    """Show all balancers."""
    page.watch()
    if not any(page.model.balancers.values()):
        with text("section", classes="start"):
            text("h1", "No node has a balancer.")
            text(
                "p",
                "A balancer spreads connections over containers. Give a server one in treescale.toml:",
            )
            text("pre", '[servers.node1.balancers.web]\naddress = "10.0.0.1:80"\nalg = "wlc"\n\n'
                        '[servers.node1.balancers.web.containers]\n"nginx" = 80')  # fmt: skip
        return
    for node in page.model.nodes:
        cards(page, node)


def cards(page: Page, node: str) -> None:
    """Add a card for each balancer of a node."""
    for name in page.model.balancers.get(node, {}):
        _card(page, node, name)


def _card(page: Page, node: str, name: str) -> None:
    view = page.model.balancers[node][name]
    with text("section", classes="card", **{"aria-label": f"Balancer {name} on {node}"}):
        with text("div", classes="title"):
            text("h1", name)
            text("span", f"{', '.join(view.addresses)} {view.protocol}", "mono")
            with text("span", "on ", "dim"):
                text("a", node, href=f"/node/{node}")
            with text("div", classes="actions"):
                button("Why", partial(_why, page, node, name), "small")
        page.painter.show(Facts(f"Balancer {name}"), facts, node, name)
        page.painter.show(Table(f"Problems of {name}", _TROUBLE, quiet=True), troubles, node, name)
        empty = "No container fits its configuration."
        table = Table(f"Servers of {name}", _COLUMNS, empty=empty, on_act=partial(_act, page, node, name), headed=True)
        page.painter.show(table, rows, node, name, page.refused)


def _act(page: Page, node: str, name: str, key: str, action: str) -> None:
    view = _find(page.model, node, name)
    server = next((one for one in view.servers if f"{one.id} {one.ip} {one.port}" == key), None) if view else None
    if server is None:
        return
    actions = page.site.actions
    place = f"{server.ip}:{server.port}"
    if action == "drain":
        words = "New connections go to the other servers until it is undrained; those that are there end by themselves."
        page.confirm(f"Drain {server.name} ({place}) on {name}?", words, "Drain",
                     lambda person, _: actions.drain(person, node, name, place))  # fmt: skip
    elif action == "undrain":
        page.confirm(f"Undrain {server.name} ({place}) on {name}?", "It gets new connections again.", "Undrain",
                     lambda person, _: actions.undrain(person, node, name, place))  # fmt: skip


async def _why(page: Page, node: str, name: str) -> None:
    """Ask the balancer what happens to a new connection, and show its answer."""
    with ui.dialog().props('aria-label="Why"') as dialog, text("div", classes="dialog wide"):
        text("h1", f"What happens to a new connection to {name}")
        said = text("p", "Asking …", role="status")
        checks = ui.element("div").classes("checks")
        with text("div", classes="ends"):
            button("Close", dialog.close)
    dialog.on("hide", dialog.delete)
    dialog.open()
    try:
        async with page.site.client.request(node, "lb.why", {"address": name}, timeout_s=_WHY_S) as call:
            answer: WhyAnswer | None = None
            why = ""
            async for reply in call:
                if reply.body and reply.status is Outcome.OK:
                    answer = _read_why(reply.body)
                elif reply.last:
                    why = reply.text() or reply.status.name.lower()
    except (BusError, msgspec.DecodeError) as error:
        answer, why = None, str(error)
    if said.is_deleted:
        return
    said._text = answer.verdict if answer else f"It could not be asked: {why or 'nobody answered'}"
    said.update()
    with checks:
        for check in answer.checks if answer else ():
            _check(check)


def _check(check: Any) -> None:
    with text("div", classes="check"):
        with text("span", classes=f"state {_CHECKS[check.result]}"):
            text("i", **{"aria-hidden": "true"})
            text("span", check.name)
        text("span", check.text)
        if check.mend:
            text("pre", check.mend)
