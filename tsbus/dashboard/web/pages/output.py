"""Output: bytes of a log or a program as lines to show, bounded. Pure."""

from typing import Final

MAX_LINE: Final = 4096
"""Bytes of a line; a longer one goes on in the next."""

Line = tuple[str, str, str]
"""Who said it, what, and a tone: as `parts.Lines` takes them."""


class Breaker:
    """Cuts one stream of bytes into lines."""

    def __init__(self, source: str = "", tone: str = "") -> None:
        """`source` stands before each line."""
        self._source, self._tone = source, tone
        self._rest = b""

    def feed(self, data: bytes) -> list[Line]:
        """Return the lines that are whole now."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) >= MAX_LINE:
            whole.append(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]
        return [self._line(line) for one in whole for line in _pieces(one)]

    def end(self) -> list[Line]:
        """Return what is left without an end of line."""
        rest, self._rest = self._rest, b""
        return [self._line(rest)] if rest else []

    def _line(self, data: bytes) -> Line:
        return self._source, data.decode(errors="replace").rstrip("\r"), self._tone


def _pieces(line: bytes) -> list[bytes]:
    return [line[start : start + MAX_LINE] for start in range(0, max(len(line), 1), MAX_LINE)]
