"""History: the figures of the last hour in rings of small floats, one for each container and each node. Pure.
What is older is in a file, where there is one (rollup.py, historyfile.py).

A point is what was known at the end of five seconds. Where nothing was told, because nobody watched or the node was
lost, the points are NaN: a gap is a gap and never zero.
"""

import math
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tsbus.dashboard.state import Model
from tsbus.dashboard.views import NodeView, Rates
from tsbus.records import Sample

STEP_S: Final = 5
POINTS: Final = 720
"""Of each figure: one hour."""
CONTAINER_FIGURES: Final = ("cpu", "memory", "net_rx", "net_tx", "block_read", "block_write")
"""As in Sample and Rates: percent of a core, bytes, and bytes per second."""
NODE_FIGURES: Final = ("cpu", "containers_cpu", "containers_memory", "rtt_ms")
"""As in NodeView."""
MAX_BYTES: Final = 96 << 20
"""Of all points: 5,800 containers at 17,280 bytes each. The series that was not added to for longest goes first."""
FRESH_MS: Final = 2 * STEP_S * 1000
"""Figures that came longer ago are not of now: monitors tell once a second, also that nothing has changed."""
MINUTE: Final = 60 // STEP_S
"""Points of a minute; an hour is a whole number of them, so those of one minute stand side by side."""

_GAP: Final = math.nan
Key = tuple[str, str]
"""Node and short id of a container; of the node itself an empty one."""


@dataclass(frozen=True, slots=True)
class Lines:
    """The points of one series, oldest first."""

    start_ms: int
    """Unix milliseconds of the first one; the others follow in steps."""
    step_ms: int
    figures: "dict[str, array[float]]"
    """By name, all of one length; NaN where nothing is known."""
    highest: "dict[str, array[float]]" = field(default_factory=dict)
    """The same of steps that stand for many points, whose means `figures` are; else nothing."""


class _Ring:
    """The points of one series: figure after figure, each `POINTS` long, in the place that the time says."""

    __slots__ = ("_last", "_points", "_width")

    def __init__(self, width: int) -> None:
        self._points = array("f", [_GAP]) * (width * POINTS)
        self._width = width
        self._last = -POINTS
        """Number of the newest step."""

    @property
    def bytes(self) -> int:
        return len(self._points) * self._points.itemsize

    def put(self, step: int, values: Sequence[float]) -> None:
        if step < self._last or step - self._last >= POINTS:
            # The clock was set back, or nothing is of the last hour: what is there is of another time.
            self._points = array("f", [_GAP]) * len(self._points)
        else:
            for missed in range(self._last + 1, step):
                self._write(missed, [_GAP] * self._width)
        self._last = step
        self._write(step, values)

    def minute(self, minute: int) -> "list[array[float]]":
        """Return the points of a minute, figure after figure; nothing where it has none."""
        first = minute * MINUTE
        count = min(self._last + 1 - first, MINUTE)
        if count <= 0 or first <= self._last - POINTS:
            return []
        places = range(first % POINTS, len(self._points), POINTS)
        return [self._points[place : place + count] for place in places]

    def put_minute(self, minute: int, values: Sequence[float]) -> None:
        """Let all points of a minute have `values`; what is between it and the newest one stays a gap."""
        first = minute * MINUTE
        for figure, value in enumerate(values):
            place = figure * POINTS + first % POINTS
            self._points[place : place + MINUTE] = array("f", [value]) * MINUTE
        self._last = max(self._last, first + MINUTE - 1)

    def _write(self, step: int, values: Sequence[float]) -> None:
        place = step % POINTS
        for value in values:
            self._points[place] = value
            place += POINTS

    def read(self, figure: int, first: int, last: int) -> "array[float]":
        """Return the points of the steps `first` to `last`, both included, at most an hour of them."""
        line = array("f", [_GAP]) * (last - first + 1)
        for step in range(max(first, self._last - POINTS + 1), min(last, self._last) + 1):
            line[step - first] = self._points[figure * POINTS + step % POINTS]
        return line


class History:
    """The rings of all containers and nodes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """`max_bytes`: of all points together."""
        self._max_bytes = max_bytes
        self._rings: OrderedDict[Key, _Ring] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rings)

    def record(self, model: Model, now_ms: int) -> None:
        """Add what is known now; to be called once in each step. Figures that are not of now are left out."""
        step = now_ms // 1000 // STEP_S
        for name, node in model.nodes.items():
            if not node.stats_ms or now_ms - node.stats_ms > FRESH_MS:
                continue
            self._put((name, ""), step, _of_node(node))
            for short, view in model.containers.get(name, {}).items():
                if view.sample is not None:
                    self._put((name, short), step, _of_container(view.sample, view.rates))

    def lines(self, node: str, container: str, now_ms: int, minutes: int = 60) -> Lines:
        """Return the points of the last `minutes`, 1 to 60, of a container by its short id, or with "" of the node."""
        last = now_ms // 1000 // STEP_S
        first = last - min(minutes * 60 // STEP_S, POINTS) + 1
        names = figures_of(container)
        ring = self._rings.get((node, container)) or _Ring(len(names))
        figures = {name: ring.read(number, first, last) for number, name in enumerate(names)}
        return Lines(first * STEP_S * 1000, STEP_S * 1000, figures)

    def minute(self, minute: int) -> "list[tuple[Key, list[array[float]]]]":
        """Return the points of a minute of all series that have some, to be rolled up (rollup.py)."""
        return [(key, points) for key, ring in self._rings.items() if (points := ring.minute(minute))]

    def restore(self, key: Key, minute: int, values: Sequence[float]) -> None:
        """Take back a minute of before this dashboard was started."""
        self._ring(key, len(values)).put_minute(minute, values)

    def _put(self, key: Key, step: int, values: Sequence[float]) -> None:
        self._ring(key, len(values)).put(step, values)

    def _ring(self, key: Key, width: int) -> _Ring:
        """Return the ring of a series, which is now the last to go."""
        ring = self._rings.get(key)
        if ring is not None:
            self._rings.move_to_end(key)
            return ring
        ring = self._rings[key] = _Ring(width)
        self.bytes += ring.bytes
        while self.bytes > self._max_bytes:
            self.bytes -= self._rings.popitem(last=False)[1].bytes
        return ring


def figures_of(container: str) -> tuple[str, ...]:
    """Return the names of the figures of a container, or with "" of a node."""
    return CONTAINER_FIGURES if container else NODE_FIGURES


def _of_node(view: NodeView) -> tuple[float, ...]:
    rtt_ms = _GAP if view.rtt_ms is None else view.rtt_ms
    return view.cpu, view.containers_cpu, float(view.containers_memory), rtt_ms


def _of_container(sample: Sample, rates: Rates | None) -> tuple[float, ...]:
    flows = (rates.net_rx, rates.net_tx, rates.block_read, rates.block_write) if rates is not None else (_GAP,) * 4
    return sample.cpu, float(sample.memory), *flows
