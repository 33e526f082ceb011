"""Screen: the whole terminal, for what is drawn again and again, and a few lines of it, for what moves on."""

import asyncio
import shutil
import sys
from collections.abc import Sequence

import click


def columns() -> int | None:
    """Return how wide what we print may be; None where it does not go to a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


async def within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait for the event; tell whether it came in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


class Screen:
    """The whole terminal, given back at the end; elsewhere, one drawing after the other."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()

    def __enter__(self) -> "Screen":
        # The other screen, no cursor, and long lines are cut instead of wrapped.
        self._control("\x1b[?1049h\x1b[?25l\x1b[?7l")
        return self

    def __exit__(self, *_: object) -> None:
        self._control("\x1b[?7h\x1b[?25h\x1b[?1049l")

    def show(self, lines: list[str]) -> None:
        """Draw `lines` over what is there."""
        height = shutil.get_terminal_size().lines - 1
        if self.is_terminal and len(lines) > height:
            lines = [*lines[: height - 1], f"... and {len(lines) - height + 1} more lines"]
        self._control("\x1b[H")
        for line in lines:
            self._control("\x1b[K")
            click.echo(line)
        self._control("\x1b[J")

    def _control(self, code: str) -> None:
        # Not through click, which without colours takes out all codes.
        if self.is_terminal:
            sys.stdout.write(code)
            sys.stdout.flush()


class Block:
    """A few lines at the end of stderr that are drawn over, on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self._height = 0

    def show(self, lines: Sequence[str]) -> None:
        """Draw `lines` over those before, each cut to the terminal's width, the rest of too many counted."""
        if not self.is_terminal:
            return
        width, height = shutil.get_terminal_size()
        if len(lines) > height - 2:
            lines = [*lines[: height - 3], f"... and {len(lines) - height + 3} more"]
        # In one piece: a terminal that shows half of it flickers.
        up = f"\x1b[{self._height}A" if self._height else ""
        sys.stderr.write(up + "\r\x1b[J" + "".join(f"{line[: width - 1]}\n" for line in lines))
        sys.stderr.flush()
        self._height = len(lines)
