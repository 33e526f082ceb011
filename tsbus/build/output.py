"""Output: cuts what a program on a server says into lines, and keeps a bounded part of it. Pure."""

from collections import deque
from typing import Final

MAX_LINE: Final = 16_384
"""Bytes of a line; of a longer one the rest is left out, and said to be."""
MAX_KEPT: Final = 1 << 20
"""Bytes of all lines that are kept: the last."""


class Lines:
    """Takes bytes as they come and returns whole lines, without their ends. A lone carriage return ends one as well."""

    def __init__(self, most: int = MAX_LINE) -> None:
        self._most = most
        self._rest = bytearray()
        self._left_out = 0
        self._after_return = False

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` ends."""
        again = self._after_return and data.startswith(b"\n")  # what it ends has been returned
        if data:
            self._after_return = data.endswith(b"\r")
        data = data[again:]
        *whole, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        lines = []
        for piece in whole:
            self._take(piece)
            lines.append(self._line())
        self._take(rest)
        return lines

    def end(self) -> list[str]:
        """Return the last line where nothing ends it."""
        return [self._line()] if self._rest or self._left_out else []

    def _take(self, piece: bytes) -> None:
        room = self._most - len(self._rest)
        self._rest += piece[:room]
        self._left_out += max(0, len(piece) - room)

    def _line(self) -> str:
        text = self._rest.decode("utf-8", "replace")
        if self._left_out:
            text += f" ... ({self._left_out} bytes more)"
        self._rest.clear()
        self._left_out = 0
        return text


class Tail:
    """The last lines of a stream, as many as fit."""

    def __init__(self, most: int = MAX_KEPT) -> None:
        self._most = most
        self._lines: deque[str] = deque()
        self._size = 0
        self.dropped = 0
        """How many lines are gone."""

    def add(self, line: str) -> None:
        """Keep one more line; older ones may have to go."""
        self._lines.append(line)
        self._size += len(line) + 1
        while self._size > self._most and len(self._lines) > 1:
            self._size -= len(self._lines.popleft()) + 1
            self.dropped += 1

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)
