"""Roll-up: what becomes of figures that are older than an hour: rows of a minute, then of a quarter of an hour. Pure.

A row has the mean of what it stands for, and the highest point: a mean hides what hurt for a moment.

history.py has the last hour in steps of five seconds; historyfile.py keeps what is decided here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tsbus.dashboard.history import Key

DAY_MINUTES: Final = 1440
LEAST: Final = 60
"""Steps of the finer rows that are kept as long as there are coarser ones which can go."""

Values = tuple[float | None, ...]
"""The figures of one series in one step, in the order of `history.figures_of`; None where nothing is known."""
Rolled = tuple[Key, Values, Values]
"""A series with its means and its highest points."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Rows of one length of time."""

    name: str
    """Of the table."""
    minutes: int
    """How long one step is."""

    @property
    def step_ms(self) -> int:
        """The same in milliseconds."""
        return self.minutes * 60_000


MINUTES: Final = Tier("minutes", 1)
"""They are kept for a day."""
QUARTERS: Final = Tier("quarters", 15)
"""Each is the mean of its minutes, and the highest of them."""
TIERS: Final = (MINUTES, QUARTERS)


@dataclass(frozen=True, slots=True)
class Span:
    """The steps of the rows that a tier has, both included."""

    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many there may be."""
        return self.last - self.first + 1


def rolled(series: "Iterable[tuple[Key, Sequence[Sequence[float]]]]") -> list[Rolled]:
    """Return the row of each series from its points of a minute; a series of which nothing is known has none."""
    rows = ((key, tuple(map(_mean, lines)), tuple(map(_highest, lines))) for key, lines in series)
    return [row for row in rows if any(value is not None for value in row[1])]


def _mean(points: Sequence[float]) -> float | None:
    total = math.fsum(points) if points else math.nan
    if not math.isfinite(total):
        points = [point for point in points if math.isfinite(point)]
        total = math.fsum(points)
    return total / len(points) if points else None


def _highest(points: Sequence[float]) -> float | None:
    return max((point for point in points if math.isfinite(point)), default=None)


def tier_for(minutes: int) -> Tier:
    """Return which rows show so many minutes: what was within a day minute by minute, more than that in quarters."""
    return MINUTES if minutes <= DAY_MINUTES else QUARTERS


def steps_of(tier: Tier, minutes: int, now_ms: int) -> Span:
    """Return the steps that show the last `minutes`."""
    last = now_ms // tier.step_ms
    return Span(last - max(minutes // tier.minutes, 1) + 1, last)


def first_kept(tier: Tier, minute: int, days: int) -> int:
    """Return the first step that is not too old when `minute` is now and `days` are kept."""
    kept = DAY_MINUTES * (1 if tier is MINUTES else days)
    return (minute - kept) // tier.minutes


def first_left(spans: "dict[Tier, Span]") -> tuple[Tier, int] | None:
    """Return what makes room in a file that is too large: of which tier the oldest go, and the first step that stays.

    A tenth goes at a time: of the minutes down to the last hour, since their quarters stay, then of the quarters. None
    where nothing is left.
    """
    fine, coarse = spans.get(MINUTES), spans.get(QUARTERS)
    tier = MINUTES if fine and (fine.steps > LEAST or not coarse) else QUARTERS
    span = spans.get(tier)
    return (tier, span.first + max(span.steps // 10, 1)) if span else None
