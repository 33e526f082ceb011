"""Framing: the three ways in which the engine packs a stream into bytes. Pure.

wire.py reads the bytes and engine.py gives the pieces to its callers. Each decoder takes bytes as they come and keeps
no more of them than a header or one line, so a log line of any length passes through in pieces.
"""

from collections.abc import Iterator
from typing import Final

MAX_LINE: Final = 16 << 20
"""Bytes of one JSON object of a stream; the engine's own are a few hundred, or as long as a container's labels."""
_MAX_SIZE_LINE: Final = 256


class FramingError(ValueError):
    """The bytes are not packed as the engine packs them."""


class Chunks:
    """A body in HTTP's chunked encoding (RFC 9112, section 7.1). `ended` once the last chunk is there."""

    def __init__(self) -> None:
        self.ended = False
        self._left = 0
        """Of the present chunk."""
        self._line = b""
        """A size that is not whole yet."""
        self._after_chunk = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes and yield what they carry. Raises FramingError."""
        while data and not self.ended:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self._after_chunk = not self._left
                yield piece
                continue
            line, found, data = data.partition(b"\n")
            self._line += line
            if len(self._line) > _MAX_SIZE_LINE:
                raise FramingError("a chunk's size is longer than any size")
            if found:
                self._begin(self._line.partition(b";")[0].strip())
                self._line = b""

    def _begin(self, size: bytes) -> None:
        if self._after_chunk and not size:
            self._after_chunk = False
            return
        try:
            self._left = int(size, 16)
        except ValueError:
            raise FramingError(f"{size[:20]!r} is no chunk's size") from None
        if self._after_chunk or self._left < 0:
            raise FramingError("a chunk is longer than its size")
        self.ended = self._left == 0


class Frames:
    """Two outputs in one connection: each frame is a header of 8 bytes (which output, how many bytes) and the bytes."""

    def __init__(self) -> None:
        self._header = b""
        self._left = 0
        self._second = False

    def feed(self, data: bytes) -> Iterator[tuple[bool, bytes]]:
        """Take the next bytes and yield pieces, each with whether it is of the second output. Raises FramingError."""
        while data:
            if not self._left:
                missing = 8 - len(self._header)
                self._header, data = self._header + data[:missing], data[missing:]
                if len(self._header) < 8:
                    return
                # 3 is a message of the engine itself.
                if self._header[0] > 3 or any(self._header[1:4]):
                    raise FramingError("the engine's stream is out of step")
                self._second = self._header[0] >= 2
                self._left = int.from_bytes(self._header[4:], "big")
                self._header = b""
                continue
            piece, data = data[: self._left], data[self._left :]
            self._left -= len(piece)
            yield self._second, piece


class Lines:
    """JSON objects, one a line."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._waiting = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes and yield the lines that are whole now, without empty ones. Raises FramingError."""
        *whole, rest = data.split(b"\n")
        for line in whole:
            full = b"".join([*self._rest, line]).strip()
            self._rest.clear()
            self._waiting = 0
            if full:
                yield full
        self._rest.append(rest)
        self._waiting += len(rest)
        if self._waiting > MAX_LINE:
            raise FramingError(f"the engine sends a line of more than {MAX_LINE >> 20} MiB")
