"""History: points stand where their time is, gaps are gaps, and 2,000 containers take what the page says."""

import math
import sys

import pytest
import told
from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.dashboard.history import CONTAINER_FIGURES, NODE_FIGURES, POINTS, STEP_S, History
from tsbus.dashboard.state import Model
from tsbus.records import Sample

NOW = told.NOW
STEP_MS = STEP_S * 1000


def measured(model: Model, node: str, now_ms: int, *numbers: int, cpu: float = 1.0) -> None:
    model.figures(told.figures(node, {number: Sample(cpu=cpu, memory=7) for number in numbers}, now_ms), now_ms)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_points_stand_where_their_time_is(pauses):
    """Whatever the pauses, an hour back from now each step has its value, and steps without one are NaN."""
    model, history, now, wanted = told.model(), History(), NOW, {}
    told.Node(model, "a", told.container())
    for number, pause in enumerate(pauses):
        now += pause * STEP_MS
        measured(model, "a", now, 1, cpu=number + 1)
        history.record(model, now)
        wanted[now // STEP_MS] = float(number + 1)
    lines = history.lines("a", told.short(), now)
    first = lines.start_ms // STEP_MS
    expected = [wanted.get(step, math.nan) for step in range(first, first + POINTS)]
    assert list(lines.figures["cpu"]) == pytest.approx(expected, nan_ok=True)
    assert {len(line) for line in lines.figures.values()} == {POINTS}


def test_old_figures_make_no_points():
    """Of a node that tells nothing any more there is a gap, not its last value and not zero."""
    model, history = told.model(), History()
    told.Node(model, "a", told.container())
    measured(model, "a", NOW, 1)
    history.record(model, NOW)
    history.record(model, NOW + 60_000)
    lines = history.lines("a", told.short(), NOW + 60_000, minutes=15)
    assert len(lines.figures["memory"]) == 15 * 60 / STEP_S
    points = [point for point in lines.figures["memory"] if not math.isnan(point)]
    assert points == [7.0]
    assert math.isnan(lines.figures["memory"][-1])


def test_a_node_whose_clock_is_hours_off_has_points_of_now():
    """Points stand at the time here, whatever the node's clock says."""
    model, history = told.model(), History()
    for hours in (-2, 2):
        told.Node(model, "a", told.container())
        event = told.figures("a", {1: Sample(cpu=3.0)}, NOW + hours * 3_600_000)
        model.figures(event, NOW)
        history.record(model, NOW)
        assert history.lines("a", told.short(), NOW, minutes=15).figures["cpu"][-1] == 3.0
        assert model.nodes["a"].stats_ms == NOW


def test_a_clock_that_is_set_back_begins_anew():
    """Points of a time that has not come yet are not shown as those of an hour ago."""
    model, history = told.model(), History()
    told.Node(model, "a", told.container())
    for now in (NOW, NOW - 600_000):
        measured(model, "a", now, 1)
        history.record(model, now)
    line = history.lines("a", told.short(), NOW - 600_000).figures["cpu"]
    assert [point for point in line if not math.isnan(point)] == [1.0]


def test_two_thousand_containers_take_what_the_page_says():
    """35 MB for the points of 2,000 containers, and little beside them."""
    model, history = told.model(), History()
    numbers = range(1, 2001)
    told.Node(model, "a", *(told.container(number) for number in numbers))
    measured(model, "a", NOW, *numbers[:1000])
    measured(model, "a", NOW, *numbers[1000:])
    history.record(model, NOW)
    size = POINTS * 4
    assert history.bytes == 2000 * len(CONTAINER_FIGURES) * size + len(NODE_FIGURES) * size < 35_000_000
    assert sum(sys.getsizeof(ring._points) for ring in history._rings.values()) < history.bytes * 1.02


def test_the_series_that_is_oldest_goes_first():
    """The bound holds, whatever comes and goes."""
    model = told.model()
    one = POINTS * 4 * len(CONTAINER_FIGURES)
    history = History(max_bytes=3 * one)
    for number in range(1, 20):
        now = NOW + number * STEP_MS
        told.Node(model, "a", told.container(number))
        measured(model, "a", now, number)
        history.record(model, now)
        assert history.bytes <= 3 * one
    now += STEP_MS
    assert all(math.isnan(point) for point in history.lines("a", told.short(1), now).figures["cpu"])
    assert not all(math.isnan(point) for point in history.lines("a", told.short(19), now).figures["cpu"])
    assert not all(math.isnan(point) for point in history.lines("a", "", now).figures["containers_cpu"])
