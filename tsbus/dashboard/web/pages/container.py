"""One container: its figures over time, what happened to it, and its log as it is written."""

from collections.abc import Iterator
from typing import Final

from nicegui import ui

from tsbus.dashboard.door import NotAllowed, SessionEnded
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import ContainerView, Mark
from tsbus.dashboard.web.pages import tones
from tsbus.dashboard.web.pages.figures import Span, graphs, spans
from tsbus.dashboard.web.pages.gathered import Gathered
from tsbus.dashboard.web.pages.output import Breaker
from tsbus.dashboard.web.pages.page import Page, missing
from tsbus.dashboard.web.pages.parts import Column, Facts, Lines, Table, button, text
from tsbus.dashboard.web.pages.sheets import Fact, Row, cut
from tsbus.errors import BusError
from tsbus.records import Endpoint

_GRAPHS: Final = (
    ("CPU, share of one core", "percent", ("cpu",)),
    ("Memory", "bytes", ("memory",)),
    ("Network", "rate", ("net_rx", "net_tx")),
    ("Disk", "rate", ("block_read", "block_write")),
)
_MARKS: Final[tuple[Column, ...]] = (
    {"id": "what", "title": "What", "kind": "state", "width": "minmax(130px, 1fr)"},
    {"id": "how", "title": "How", "width": "minmax(0, 2fr)", "line": 2, "label": "", "dim": True},
    {"id": "when", "title": "When", "kind": "time", "width": "70px", "end": True},
    {"id": "ago", "title": "Ago", "kind": "age", "width": "80px", "end": True, "dim": True, "line": 2, "label": "",
     "after": "ago"},
)  # fmt: skip
_TONES: Final[dict[str, tones.Tone]] = {
    "started": "ok", "healthy": "ok", "died": "warn", "oom": "bad", "unhealthy": "bad", "draining": "busy",
}  # fmt: skip
TAIL: Final = 200
"""Lines of the log that are shown of before."""
_LOG_S: Final = 86_400.0


def facts(model: Model, now_ms: int, node: str, short: str) -> Iterator[Fact]:
    """Return what is known of a container."""
    view = model.containers.get(node, {}).get(short)
    if view is None:
        yield Fact("state", "State", "state", ("off", "removed"))
        return
    record = view.record
    lost = model.nodes[node].state == "lost"
    seen = "as of before its node was lost" if lost else ""
    yield Fact("state", "State", "state", tones.of_container(view), note=seen)
    running = record.state == "running"
    at_ns = record.started_ns if running else record.finished_ns or record.created_ns
    yield Fact(
        "since",
        "Runs since" if running else "Ended" if record.finished_ns else "Created",
        "age",
        at_ns // 10**6 or None,
    )
    yield Fact("image", "Image", "text", cut(record.image.given))
    yield Fact("command", "Command", "mono", cut(record.command) or None)
    yield Fact("ports", "Ports", "text", cut(", ".join(_port(one) for one in record.endpoints)) or None)
    yield Fact(
        "networks", "Networks", "text", cut(", ".join(f"{name} {ip}" for name, ip in record.networks.items())) or None
    )
    yield Fact("limits", "Limits", "text", _limits(view))
    policy = record.restart_policy
    yield Fact("restarts", "Restarts", "count", record.restarts, note="" if policy == "no" else policy)
    yield Fact("pids", "Processes", "count", view.sample.pids if view.sample else None)
    throttled = view.sample.throttled_ms if view.sample else 0
    yield Fact("throttled", "Held back by its CPU limit", "span", throttled or None)
    yield Fact("balancers", "Balanced by", "chips", _balanced(model, view) or None)
    yield Fact(
        "labels",
        "Labels",
        "chips",
        [cut(f"{key}={value}", 80) for key, value in list(record.labels.items())[:12]] or None,
    )


def _port(endpoint: Endpoint) -> str:
    inside = f"{endpoint.port}/{endpoint.protocol}"
    return f"{endpoint.host_ip}:{endpoint.host_port} → {inside}" if endpoint.host_port else inside


def _limits(view: ContainerView) -> str | None:
    record = view.record
    words = [
        f"{record.cpus:g} cores" if record.cpus else "",
        tones.size(record.memory_limit) if record.memory_limit else "",
    ]
    return " · ".join(filter(None, words)) or None


def _balanced(model: Model, view: ContainerView) -> list[str]:
    return [
        f"{one.name} on {one.node}: {server.state}"
        for each in model.balancers.values()
        for one in each.values()
        for server in one.servers
        if server.id == view.record.id
    ]


def marks(model: Model, now_ms: int, node: str, short: str) -> Iterator[Row]:
    """Return what happened to a container, the newest first."""
    view = model.containers.get(node, {}).get(short)
    for number, mark in reversed(list(enumerate(view.marks if view else ()))):
        yield Row(
            key=f"{mark.at_ms} {number}",
            cells=((_TONES.get(mark.action, "off"), mark.action), _how(mark), mark.at_ms, mark.at_ms),
        )


def _how(mark: Mark) -> str:
    words = []
    if mark.exit_code is not None:
        words.append(f"exit code {mark.exit_code}")
    if mark.oom:
        words.append("out of memory")
    if mark.signal:
        words.append(f"signal {mark.signal}")
    if mark.late:
        words.append("seen late, by a comparison")
    return ", ".join(words)


def build(page: Page, node: str, short: str) -> None:
    """Show a container."""
    view = page.model.container(node, short) if node in page.model.nodes else None
    if view is None:
        missing(f"There is no container {short} on {node}.")
        return
    page.watch(node)
    with text("div", classes="title"):
        text("h1", cut(view.name))
        with text("span", "on ", "dim"):
            text("a", node, href=f"/node/{node}")
        text("span", view.id, "dim mono")
        with text("div", classes="actions"):
            buttons = _actions(page, view)
    known = Facts(f"Container {view.name}")
    page.painter.show(known, facts, node, view.id)
    page.painter.draw(known, lambda model, _: _offer(buttons, model.containers.get(node, {}).get(view.id)))
    span = Span()
    with ui.element("section"):
        with text("div", classes="bar"):
            text("h2", "Figures")
            spans(span)
        with text("div", classes="halves"):
            graphs(page, span, node, view.id, _GRAPHS)
    _log(page, view)
    table = Table("What happened", _MARKS, title="What happened",
                  empty="Nothing since the dashboard began to look.")  # fmt: skip
    page.painter.show(table, marks, node, view.id)


def _actions(page: Page, view: ContainerView) -> dict[str, ui.element]:
    """Add the buttons, by what they do."""
    refused, actions = page.refused, page.site.actions
    where = f"{view.name} on {view.node}"

    def restart() -> None:
        page.confirm(
            f"Restart {where}?", "Where it is balanced it is drained first, and takes part again when it is ready.",
            "Restart", lambda person, told: actions.restart(person, view.node, view.record.id, told),
        )  # fmt: skip

    def stop() -> None:
        page.confirm(
            f"Stop {where}?", "Where it is balanced it is drained first: connections that are there end by themselves.",
            "Stop", lambda person, told: actions.stop(person, view.node, view.record.id, told), grave=True,
        )  # fmt: skip

    def start() -> None:
        page.confirm(
            f"Start {where}?", "It starts as it was made.", "Start",
            lambda person, _: actions.start(person, view.node, view.record.id),
        )  # fmt: skip

    acts = {"Restart": restart, "Stop": stop, "Start": start}
    return {verb: button(verb, act, refused=refused) for verb, act in acts.items()}


def _offer(buttons: dict[str, ui.element], view: ContainerView | None) -> None:
    """Show the buttons that make sense for a container as it is now."""
    runs = view is not None and view.record.state in ("running", "restarting", "paused")
    for verb, made in buttons.items():
        made.set_visibility(view is not None and (verb == "Start") != runs)


def _log(page: Page, view: ContainerView) -> None:
    if page.refused:
        with ui.element("section"):
            text("h2", "Log")
            text("p", f"A log may hold secrets, so reading it takes the role operate: {page.refused}.", "empty")
        return
    lines = Lines("Log", "Nothing was written yet.")
    page.start(_follow(page, view, lines))


async def _follow(page: Page, view: ContainerView, lines: Lines) -> None:
    """Show the log as it grows."""
    body = {"containers": [view.record.id], "follow": True, "tail": TAIL}
    streams = {False: Breaker(), True: Breaker(tone="warn")}
    with Gathered(lines) as gathered:
        try:
            client = page.site.actions.client_for(page.visitor.must_operate())
            async with client.request(view.node, "containers.logs", body, timeout_s=_LOG_S) as call:
                async for reply in call:
                    if reply.last:
                        gathered.add([*streams[False].end(), *streams[True].end()])
                        gathered.add(
                            [("", f"- the log ends here: {reply.text() or reply.status.name.lower()} -", "dim")]
                        )
                    else:
                        gathered.add(streams[reply.second].feed(reply.body))
                    await gathered.room()
        except (BusError, NotAllowed, SessionEnded) as error:
            gathered.add([("", str(error), "bad")])
