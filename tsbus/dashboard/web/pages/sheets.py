"""Sheets: what a part of a screen shows, as items by key, and what differs from the time before. Pure.

Pages that show the same share a sheet: it is worked out once, and each of them gets the same difference.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from tsbus.dashboard.state import Model

MAX_CELL: Final = 300
"""Characters of a text that a cell gets."""


class Item(Protocol):
    """What a sheet has: comparable, with a key of its own."""

    @property
    def key(self) -> str:
        """Which one it is, among those of the sheet."""


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(slots=True)
class Row:
    """A row of a table. The kinds of its cells are in the table's columns; `static/cells.js` says what each takes."""

    key: str
    cells: Sequence[Any]
    href: str = ""
    """Where the first cell leads to."""
    tone: str = ""
    note: str = ""
    """Beside the first cell, dim."""
    depth: int = 0
    kids: bool = False
    """It can be folded."""
    hay: str = ""
    """What the filter finds it by, besides its cells."""


@dataclass(slots=True)
class Fact:
    """A named value. `kind` as of a column."""

    key: str
    label: str
    kind: str
    value: Any
    tone: str = ""
    note: str = ""
    href: str = ""


@dataclass(slots=True)
class Difference(Generic[ItemT]):
    """What has to be done to what is shown: these set, those dropped, and the order if it is another."""

    set: list[ItemT] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    order: list[str] | None = None

    def __bool__(self) -> bool:
        return bool(self.set or self.drop or self.order is not None)


class Sheet(Generic[ItemT]):
    """Items as of the last look at the model."""

    def __init__(self, items: Callable[[Model, int], Iterable[ItemT]]) -> None:
        """`items` makes them all, in order, from nothing but the model and the time in ms."""
        self._items = items
        self._shown: dict[str, ItemT] = {}

    def refresh(self, model: Model, now_ms: int) -> Difference[ItemT]:
        """Work them out anew; return what is different."""
        before, self._shown = self._shown, {item.key: item for item in self._items(model, now_ms)}
        difference = Difference(
            [item for key, item in self._shown.items() if (was := before.get(key)) is not item and was != item],
            [key for key in before if key not in self._shown],
        )
        if list(before) != (order := list(self._shown)):
            difference.order = order
        return difference

    def whole(self) -> Difference[ItemT]:
        """Return all of it, for a page that shows nothing yet."""
        return Difference(list(self._shown.values()), [], list(self._shown))


def cut(text: str, limit: int = MAX_CELL) -> str:
    """Return a text from outside as long as a cell may be."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
