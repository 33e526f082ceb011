"""Graphs over the last quarter of an hour, the last hour, or what the history file has, with marks of what happened."""

import asyncio
import math
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tsbus.dashboard.history import STEP_S, Lines
from tsbus.dashboard.historyfile import RING_MINUTES, HistoryError, Keeper
from tsbus.dashboard.rollup import DAY_MINUTES
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import Mark
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Graph, text

MINUTES: Final = {15: "15 min", 60: "1 h", DAY_MINUTES: "24 h", 7 * DAY_MINUTES: "7 d"}
"""Those of more than an hour are offered where a history file has them."""
AGAIN_S: Final = 60.0
"""So often the file is read again."""
WORDS: Final = {
    "net_rx": "in", "net_tx": "out", "block_read": "read", "block_write": "written",
}  # fmt: skip
MARKED: Final = {
    "started": "ok", "died": "warn", "oom": "bad", "unhealthy": "bad", "healthy": "ok", "draining": "busy",
}  # fmt: skip
"""What is marked in a graph, and in which tone."""


Wanted = tuple[str, str, tuple[str, ...]]
"""A graph: its label, the kind of its values, and the figures of the history."""


@dataclass
class Span:
    """How many minutes the graphs of a page show, and how many they could; `changed` are told of another."""

    minutes: int = 15
    longest: int = RING_MINUTES
    changed: list[Callable[[], None]] = field(default_factory=list)
    past: tuple[int, Lines] | None = None
    """What the file has of so many minutes."""

    def set(self, minutes: int) -> None:
        """Show so many minutes."""
        self.minutes = minutes
        for tell in self.changed:
            tell()


def spans(span: Span) -> None:
    """Add the choice of the span."""
    with text("div", classes="seg", role="group", **{"aria-label": "Span of the graphs"}):
        choices = {minutes: text("button", words, type="button") for minutes, words in MINUTES.items()}

    def mark() -> None:
        for minutes, choice in choices.items():
            choice._props["aria-pressed"] = "true" if minutes == span.minutes else "false"
            choice.set_visibility(minutes <= span.longest)
            choice.update()

    for minutes, choice in choices.items():
        choice.on("click", lambda minutes=minutes: span.set(minutes), [])
    span.changed.append(mark)
    mark()


def graphs(page: Page, span: Span, node: str, container: str, wanted: Sequence[Wanted]) -> None:
    """Add graphs of a container, or with "" of the node."""
    for label, kind, names in wanted:
        graph = Graph(label, kind)
        drawing = Drawing(page, span, node, container, names)
        page.painter.draw(graph, drawing)
    if (keeper := page.site.keeper) is not None:
        span.longest = keeper.days * DAY_MINUTES
        page.start(_read(keeper, span, node, container))
        span.set(span.minutes)


async def _read(keeper: Keeper, span: Span, node: str, container: str) -> None:
    """Keep up what the file has, for as long as more than an hour is shown. That it has nothing, a problem tells."""
    other = asyncio.Event()
    span.changed.append(other.set)
    while True:
        other.clear()
        if (minutes := span.minutes) > RING_MINUTES:
            with suppress(HistoryError):
                span.past = minutes, await keeper.lines(node, container, minutes)
        with suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S):
                await other.wait()


class Drawing:
    """What one graph is sent: once in each step, and when the span is another."""

    def __init__(self, page: Page, span: Span, node: str, container: str, names: tuple[str, ...]) -> None:
        self._page, self._span, self._names = page, span, names
        self._node, self._container = node, container
        self._drawn: tuple[Any, ...] = ()

    def __call__(self, model: Model, now_ms: int) -> dict[str, Any] | None:
        """Return the points, if there are others than the last time."""
        view = model.containers.get(self._node, {}).get(self._container)
        marks = view.marks if view else ()
        minutes = self._span.minutes
        past = self._span.past[1] if self._span.past and self._span.past[0] == minutes > RING_MINUTES else None
        if past is None and minutes > RING_MINUTES:  # it is being read
            return None
        step = now_ms // 1000 // STEP_S if past is None else id(past)
        state = (step, minutes, len(marks), bool(marks) and marks[-1])
        if state == self._drawn:
            return None
        self._drawn = state
        lines = past or self._page.feed.history.lines(self._node, self._container, now_ms, minutes)
        drawn: dict[str, Any] = {
            "from": now_ms - minutes * 60_000,
            "to": now_ms,
            "lines": [
                (
                    WORDS.get(name, name),
                    *(self._points(lines, points[name]) for points in (lines.figures, lines.highest) if points),
                )
                for name in self._names
            ],
            "marks": [_mark(mark) for mark in marks if mark.action in MARKED and mark.at_ms > lines.start_ms],
        }
        limit = view.sample.memory_limit if view and view.sample else 0
        if "memory" in self._names and limit:
            drawn["limit"] = limit
        return drawn

    def _points(self, lines: Lines, values: "array[float]") -> list[tuple[int, float | None]]:
        """Return moments and values; the CPU of a machine as a share of all its cores, as everywhere on the pages."""
        node = self._page.model.nodes.get(self._node)
        scale = 1 / max(node.cpus, 1) if node and not self._container and self._names == ("cpu",) else 1
        return [(lines.start_ms + lines.step_ms * number, _known(value * scale)) for number, value in enumerate(values)]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


def _mark(mark: Mark) -> tuple[int, str, str]:
    word = f"exit {mark.exit_code}" if mark.action == "died" and mark.exit_code is not None else mark.action
    return mark.at_ms, word, MARKED[mark.action]
