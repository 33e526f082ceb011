"""The painter: draws on all open pages what has changed in the model, and nothing else.

What several pages show is worked out once. The first of a burst of changes is drawn at once, the rest together.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from tsbus.dashboard.feed import Feed, unix_ms
from tsbus.dashboard.state import Model
from tsbus.dashboard.web.pages.parts import Part
from tsbus.dashboard.web.pages.sheets import Difference, Item, Sheet

PAUSE_S: Final = 0.15
"""Between two drawings."""
IDLE_S: Final = 1.0
"""A page hears at least so often that all is as it was."""

Items = Callable[..., Iterable[Item]]
"""Makes what a part shows from the model, the time in ms, and what else it is given."""
Drawing = Callable[[Model, int], dict[str, Any] | None]
"""What a part is sent, made from the model and the time in ms; None: nothing."""


class Painter:
    """Keeps parts up until their page is gone."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._sheets: dict[tuple[Any, ...], tuple[Sheet[Any], list[Part]]] = {}
        self._drawings: list[tuple[Part, Drawing]] = []

    def show(self, part: Part, items: Items | Callable[[], Items], *arguments: Any) -> None:
        """Keep `part` up with `items(model, now_ms, *arguments)`; who shows the same shares it.

        Where `items` is a class, one of it is made for all who share: it remembers what it has made.
        """
        key = (items, *arguments)
        now_ms = unix_ms()
        if key not in self._sheets:
            make: Any = items() if isinstance(items, type) else items
            sheet: Sheet[Any] = Sheet(lambda model, now_ms: make(model, now_ms, *arguments))
            sheet.refresh(self._feed.model, now_ms)
            self._sheets[key] = (sheet, [])
        sheet, parts = self._sheets[key]
        parts.append(part)
        _put(part, sheet.whole(), now_ms)

    def draw(self, part: Part, drawing: Drawing) -> None:
        """Keep `part` up with what `drawing` makes at every turn."""
        self._drawings.append((part, drawing))
        now_ms = unix_ms()
        if (message := drawing(self._feed.model, now_ms)) is not None:
            part.put({"now": now_ms, **message})

    async def run(self) -> None:
        """Draw until cancelled."""
        while True:
            drawn = self._feed.model.revision
            self.turn(unix_ms())
            await asyncio.sleep(PAUSE_S)
            await self._feed.wait_change(drawn, IDLE_S)

    def turn(self, now_ms: int) -> None:
        """Draw once what is different now."""
        model = self._feed.model
        self._drawings = [(part, drawing) for part, drawing in self._drawings if not _is_gone(part)]
        for part, drawing in self._drawings:
            if (message := drawing(model, now_ms)) is not None:
                part.put({"now": now_ms, **message})
        for key, (sheet, parts) in list(self._sheets.items()):
            parts[:] = [part for part in parts if not _is_gone(part)]
            if not parts:
                del self._sheets[key]
            elif difference := sheet.refresh(model, now_ms):
                for part in parts:
                    _put(part, difference, now_ms)


def _put(part: Part, difference: Difference[Any], now_ms: int) -> None:
    message: dict[str, Any] = {"now": now_ms, "set": difference.set, "drop": difference.drop}
    if difference.order is not None:
        message["order"] = difference.order
    part.put(message)


def _is_gone(part: Part) -> bool:
    return part.is_deleted or part.client.is_deleted
