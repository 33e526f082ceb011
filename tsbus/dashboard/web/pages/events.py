"""Events: everything that the tree tells, as it comes."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tsbus.core.body import body_json
from tsbus.dashboard.eventlog import EventLog
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import EventRecord
from tsbus.dashboard.web.pages import tones
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Column, Table, button, text
from tsbus.dashboard.web.pages.sheets import Row, cut
from tsbus.errors import BusError

DOWNLOAD: Final = "/events.jsonl"
SHOWN: Final = 500
"""Of what came before the page was opened."""
_COLUMNS: Final[tuple[Column, ...]] = (
    {"id": "topic", "title": "Topic", "kind": "state", "width": "minmax(150px, 220px)"},
    {"id": "what", "title": "What", "width": "minmax(0, 1fr)", "dim": True, "line": 2, "label": ""},
    {"id": "node", "title": "Node", "width": "110px", "line": 2, "label": ""},
    {"id": "time", "title": "Time", "kind": "time", "width": "70px", "end": True},
)
_WORDS: Final = (
    "name",
    "balancer",
    "server",
    "container",
    "peer",
    "text",
    "reason",
    "cause",
    "nodes",
    "state",
    "action",
)
"""What of a body says what happened, in this order."""
_ID: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""Of a container or a network: its first 12 letters are what people know."""


def row(event: EventRecord) -> Row:
    """Return the row of an event."""
    cells = ((tones.of_topic(event.topic), cut(event.topic)), cut(summary(event)), event.node, event.time_ms)
    return Row(str(event.number), cells, hay=cut(f"topic:{event.topic} node:{event.node} who:{event.who}"))


def summary(event: EventRecord) -> str:
    """Return in one line what an event says."""
    told = event.json()
    if not isinstance(told, dict):
        return event.body[:400].decode(errors="replace")
    words = []
    for key in _WORDS:
        value = told.get(key)
        if isinstance(value, dict):
            value = value.get("name")
        if isinstance(value, str) and value and not (key == "action" and event.topic.endswith("." + value)):
            value = _ID.sub(r"\1", value)
            words.append(value if key in ("name", "container", "text", "nodes") else f"{key} {value}")
    return " · ".join(words) or cut(json.dumps(told))


def details(event: EventRecord) -> str:
    """Return the whole event for people."""
    told = event.json()
    body = json.dumps(told, indent=2, ensure_ascii=False) if told is not None else event.body.decode(errors="replace")
    return f"node  {event.node}\nwho   {event.who}\n\n{body}"


class Drawing:
    """What a feed is sent: the events after the last that it has."""

    def __init__(self, node: str = "") -> None:
        """`node`: only those of one node."""
        self._node = node
        self._last: int | None = None

    def __call__(self, model: Model, now_ms: int) -> dict[str, Any] | None:
        """Return what is new."""
        log = model.events
        if self._last == log.last:
            return None
        after = max(0, log.last - SHOWN) if self._last is None else self._last
        self._last = log.last
        found, lost = log.since(after)
        rows = [row(event) for event in found if self._node in ("", event.node)]
        if lost and after:
            rows.insert(0, Row(f"gap {after}", (("warn", "gap"), f"{lost} events came too fast to show", "", now_ms)))
        return {"add": rows[::-1]} if rows else None


def download(log: EventLog) -> Iterator[bytes]:
    """Return all events that are kept as lines of JSON, the oldest first."""
    for event in list(log):
        facts = {"time_ms": event.time_ms, "topic": event.topic, "node": event.node, "who": event.who}
        yield msgspec.json.encode(facts | body_json(event.body)) + b"\n"


def find(log: EventLog, number: str) -> EventRecord | None:
    """Return the event of a row, if it is still kept."""
    if not number.isdigit() or int(number) < log.first:
        return None
    return next(iter(log.since(int(number) - 1)[0]), None)


def feed(page: Page, node: str = "") -> Table:
    """Add the feed, of the whole tree or of a node."""

    def act(key: str, action: str) -> None:
        event = find(page.model.events, key)
        if event is not None:
            page.tell(event.topic, details(event))

    table = Table(
        "Events", [column for column in _COLUMNS if not (node and column["id"] == "node")], title="Events", feed=True,
        empty="Nothing has happened since the dashboard began to listen.", on_act=act,
        filter="" if node else "container.died, node3 …",
    )  # fmt: skip
    page.painter.draw(table, Drawing(node) if not node else _Of(node))
    return table


class _Of(Drawing):
    """The feed of one node, without the column that says so."""

    def __call__(self, model: Model, now_ms: int) -> dict[str, Any] | None:
        message = super().__call__(model, now_ms)
        for one in message["add"] if message else ():
            one.cells = (*one.cells[:2], one.cells[3])
        return message


def build(page: Page, topic: str = "") -> None:
    """Show the feed; `topic`: a pattern that is listened to besides what the dashboard always hears."""
    paused = False
    table = feed(page)

    def pause() -> None:
        nonlocal paused
        paused = not paused
        table.put({"paused": paused})
        toggle._text = "Go on" if paused else "Pause"
        toggle._props["aria-pressed"] = str(paused).lower()
        toggle.update()

    with table:
        toggle = button("Pause", pause, "small")
        text("a", "Download", "btn small", href=DOWNLOAD, download="events.jsonl")
    with text("form", classes="form inline", method="get", action="/events"):
        with text("label"):
            text("span", "Listen to more topics")
            text("input", classes="field", name="topic", **{"^value": topic}, placeholder="orders.*", maxlength="200")
        text("button", "Listen", "btn", type="submit")
        said = text("p", f"Listening to {topic} while this page is open." if topic else "", "dim", role="status")
    if topic:
        page.start(_listen(page, topic, said))


async def _listen(page: Page, topic: str, said: Any) -> None:
    try:
        async with page.feed.listening(topic):
            await asyncio.Event().wait()
    except (BusError, ValueError) as error:
        said._text = str(error)
        said.update()
