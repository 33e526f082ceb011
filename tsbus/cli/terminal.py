"""Terminal: how durations, sizes and foreign text look, and the one line of progress."""

import shutil
import sys
import time


def safe(text: str) -> str:
    """Return `text` with control characters escaped, so that nobody on the bus can steer the reader's terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """Return a length of time with one sensible unit: 14 s, 3 min, 2 h, 5 d."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} d"


def millis(value: float) -> str:
    """Return milliseconds with two meaningful digits."""
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def size(count: float) -> str:
    """Return a number of bytes with one unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class Progress:
    """One line on stderr that is drawn over: only on a terminal, and only for what takes longer than `after_s`."""

    def __init__(self, after_s: float = 2.0) -> None:
        self._start = time.monotonic()
        self._after_s = after_s
        self._drawn = False

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def show(self, text: str) -> None:
        """Draw `text`, cut to the terminal's width."""
        if sys.stderr.isatty() and self.elapsed_s >= self._after_s:
            width = shutil.get_terminal_size().columns
            self._write(f"\r\x1b[K{text[: width - 1]}")
            self._drawn = True

    def clear(self) -> None:
        """Take the line away; call it before anything else is printed."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        # Not through click, which without colours takes out all codes.
        sys.stderr.write(text)
        sys.stderr.flush()


def body_text(body: bytes) -> str:
    """Return a body as text that is safe on a terminal; what is no text in hexadecimal."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return f"0x{body.hex()}"
    return "\n".join(map(safe, text.split("\n")))


def body_line(body: bytes) -> str:
    """Return a body as one line that is safe on a terminal; what is no text in hexadecimal."""
    try:
        return safe(body.decode().removesuffix("\n"))
    except UnicodeDecodeError:
        return f"0x{body.hex()}"
