"""Terminals: programs that run at a terminal of their own, as if somebody sat there."""

import codecs
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Self

LIMIT_S = 60.0
"""How long it may take until something is shown, on a busy machine."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _take_terminal() -> None:
    """In the new process: the terminal is its own, and so are the signals of one, whatever nohup told these tests."""
    ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """A program at a terminal; `seen` is all that it wrote there."""

    def __init__(self, argv: Sequence[str | Path], env: Mapping[str, str], folder: Path, size: tuple[int, int]) -> None:
        """`size` is in lines and columns."""
        self._fd, inner = pty.openpty()
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.resize(*size)
        self.process = subprocess.Popen(
            argv, env={**env, "TERM": "xterm"}, cwd=folder, stdin=inner, stdout=inner, stderr=inner,
            start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(inner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def resize(self, lines: int, columns: int) -> None:
        ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def read_until(self, *wanted: str) -> str:
        """Read until all of `wanted` has come since the last call, without the codes of colours; returns what came."""
        raw, came, until = "", "", time.monotonic() + LIMIT_S
        while not all(each in came for each in wanted):
            assert time.monotonic() < until, f"{wanted} did not come, but at the end {came[-2000:]!r}"
            piece = self._read()
            assert piece, f"{wanted} did not come before the end, but {came!r}"
            raw += piece
            came = _CODES.sub("", raw)  # of all: a code may come in two pieces
        return came

    def end(self) -> tuple[int, str]:
        """Wait for the end of the program; returns its exit code and what came since the last call."""
        raw, until = "", time.monotonic() + LIMIT_S
        while piece := self._read():
            assert time.monotonic() < until, f"it does not end, and writes: {self.seen[-3000:]!r}"
            raw += piece
        return self.process.wait(LIMIT_S), _CODES.sub("", raw)

    def _read(self) -> str:
        """What comes next, "" at the end; a character may come in two pieces."""
        piece = ""
        while not piece:
            ready, _, _ = select.select([self._fd], [], [], LIMIT_S)
            assert ready, f"nothing more came; the end of what did: {self.seen[-3000:]!r}"
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # nobody has the terminal any more
                return ""
            if not data:
                return ""
            piece = self._decoder.decode(data)
        self.seen += piece
        return piece
