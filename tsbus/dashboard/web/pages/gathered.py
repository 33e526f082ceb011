"""Lines on their way to a page: what comes within a moment goes there together, and a flood waits."""

import asyncio
from collections.abc import Iterable
from typing import Final, Self

from tsbus.dashboard.web.pages.output import Line
from tsbus.dashboard.web.pages.parts import Lines

PAUSE_S: Final = 0.1
MAX_LINES: Final = 1000
"""In one pause: more than anybody reads, and what a browser takes without a jerk."""


class Gathered:
    """Lines for one `Lines`."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._waiting: list[Line] = []
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._send()

    def add(self, lines: Iterable[Line]) -> None:
        """Send these soon."""
        self._waiting.extend(lines)
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._send)

    async def room(self) -> None:
        """Wait while as much is under way as a page takes: so whoever writes is held up, and not our memory filled."""
        while len(self._waiting) >= MAX_LINES:
            await asyncio.sleep(PAUSE_S)

    def _send(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._lines.append(waiting)
