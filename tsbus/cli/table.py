"""Table: rows of text in columns. Pure. What does not fit a terminal is cut where that hurts least, or left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and what may be done to it where there is little room."""

    title: str
    least: int | None = None
    """Its cells may be cut to so many characters; None: never."""
    spare: int = 0
    """0: it is always there; else columns are left out beginning with the highest number."""
    right: bool = False
    """Numbers stand at the right."""
    style: Callable[[str], dict[str, Any]] = lambda _: {}
    """Options of `click.style` for a cell; colour only repeats what the words say."""


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return the heading and the rows as lines of at most `width` characters, as far as the columns allow that."""
    every = [[column.title for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*every, strict=True)]
    shown = list(range(len(columns)))
    if width is not None:
        shown = _spared(columns, widths, width)
        _cut(columns, widths, shown, width)
    lines = []
    for number, row in enumerate(every):
        cells = []
        for place in shown:
            column, cell = columns[place], cut(row[place], widths[place])
            pad = " " * (widths[place] - len(cell))  # not by a format: codes of colours take no room
            style = column.style(cell) if number else {}
            styled = click.style(cell, **style) if style else cell
            cells.append(pad + styled if column.right else styled + pad)
        lines.append(GAP.join(cells).rstrip())
    return lines


def cut(text: str, width: int) -> str:
    """Return `text`, cut to `width` characters with a mark where it was cut."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _total(widths: list[int], shown: list[int]) -> int:
    return sum(widths[place] for place in shown) + len(GAP) * (len(shown) - 1)


def _spared(columns: Sequence[Column], widths: list[int], width: int) -> list[int]:
    """Return the columns that can be there when all that may be cut are as narrow as can be."""
    narrow = [
        own if column.least is None else min(own, max(column.least, len(column.title)))
        for column, own in zip(columns, widths, strict=True)
    ]
    shown = list(range(len(columns)))
    for place in sorted(range(len(columns)), key=lambda place: (-columns[place].spare, -place)):
        if columns[place].spare and _total(narrow, shown) > width:
            shown.remove(place)
    return shown


def _cut(columns: Sequence[Column], widths: list[int], shown: list[int], width: int) -> None:
    """Make columns narrower, the widest first, until the lines fit or nothing more may be cut."""
    while (excess := _total(widths, shown) - width) > 0:
        can = [
            place
            for place in shown
            if (least := columns[place].least) is not None and widths[place] > max(least, len(columns[place].title))
        ]
        if not can:
            return
        widest, *others = sorted(can, key=lambda place: -widths[place])
        least = max(columns[widest].least or 0, len(columns[widest].title))
        # Down to the next one, then both in turns.
        step = max(widths[widest] - max((widths[place] for place in others), default=0), 1)
        widths[widest] -= min(excess, step, widths[widest] - least)
