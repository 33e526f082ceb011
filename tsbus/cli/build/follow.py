"""Follow: shows a run of the build while it goes: drawn over on a terminal, as lines or JSON objects elsewhere.

The main thread draws, in the handler of a timer's signal: it waits in the run for what servers say, and a thread that
drew beside it would write in between what others write.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final, Self

import click

from tsbus.build.reports import Noted, Report
from tsbus.cli.build.picture import Line, picture, plain
from tsbus.cli.build.progress import Progress
from tsbus.cli.build.reportlines import line_of, object_of
from tsbus.cli.terminal import safe

if TYPE_CHECKING:
    from rich.console import Group

DRAW_S: Final = 0.2
_PAPER: Final = (120, 60)
"""Width and height of a picture where there is no terminal."""


class Interrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C; the run has ended, and its connections are cut."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress


def follow(reports: Iterator[Report], title: str, *, as_json: bool = False) -> None:
    """Show a run to its end. Raises Interrupted at Ctrl-C."""
    progress = Progress(time.monotonic())
    kind = _Objects if as_json else _Drawing if _can_draw() else _Lines
    shown: _Shown = kind(progress, title)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(shown)
            if isinstance(reports, Generator):
                stack.callback(reports.close)  # an end that comes while we draw ends the run as well
            for report in reports:
                progress.take(report, time.monotonic())
                shown.tell(report)
    except KeyboardInterrupt:
        raise Interrupted(progress) from None


def _can_draw() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class _Shown:
    """A run that is shown in some way; SIGUSR1 shows the present picture."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._title = title
        self._before: list[tuple[int, Any]] = []
        self._over = False
        """It has come to its end: who has failed, and why, is told by what follows."""

    def __enter__(self) -> Self:
        self._handle(signal.SIGUSR1, self._print)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = kind is None
        while self._before:
            signal.signal(*self._before.pop())

    def tell(self, report: Report) -> None:
        """Show what has been reported, as far as it is shown at once."""

    def _handle(self, number: int, handler: Callable[[], None]) -> None:
        self._before.append((number, signal.signal(number, lambda _number, _frame: handler())))

    def _picture(self, width: int, height: int) -> list[Line]:
        return picture(self._progress, self._title, time.monotonic(), width, height, failed=not self._over)

    def _print(self) -> None:
        # Past the buffer of stderr, which may be half-way through a line of its own.
        os.write(sys.stderr.fileno(), "".join(f"{plain(line).rstrip()}\n" for line in self._picture(*_PAPER)).encode())


class _Objects(_Shown):
    """For scripts: an object for each report."""

    def tell(self, report: Report) -> None:
        click.echo(json.dumps(object_of(report)))


class _Lines(_Shown):
    """For logs: a line for each change."""

    def __enter__(self) -> Self:
        click.echo(self._title, err=True)
        return super().__enter__()

    def tell(self, report: Report) -> None:
        if line := line_of(report):
            click.echo(line, err=True)


class _Drawing(_Shown):
    """For people: a picture that is drawn over, and stays at the end. Notes on the whole run go above it."""

    def __init__(self, progress: Progress, title: str) -> None:
        super().__init__(progress, title)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, force_terminal=True, highlight=False)
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
            get_renderable=self._render, vertical_overflow="crop",
        )  # fmt: skip
        self._widths: list[int] = []
        """Of the lines on the screen."""
        self._busy = False

    def __enter__(self) -> Self:
        super().__enter__()
        self._live.start()
        self._handle(signal.SIGWINCH, self._draw)
        self._handle(signal.SIGALRM, self._draw)
        signal.setitimer(signal.ITIMER_REAL, DRAW_S, DRAW_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        super().__exit__(kind)
        self._mend_wrapped()
        self._live.stop()

    def tell(self, report: Report) -> None:
        if isinstance(report, Noted) and not report.name:
            self._show(lambda: self._console.print(safe(report.text), markup=False))

    def _print(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if not self._busy:  # else the signal came while we do
            self._show(self._live.refresh)

    def _show(self, show: Callable[[], None]) -> None:
        self._busy = True
        self._mend_wrapped()
        show()
        self._busy = False

    def _mend_wrapped(self) -> None:
        """Where the terminal is narrower now it has wrapped our lines: go up by as many as there are more of them."""
        width = self._console.width
        more = sum((each - 1) // width for each in self._widths if each > width)
        self._console.file.write("\r" + "\x1b[2K\x1b[A" * more)

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        size = self._console.size
        # The last column and the last line stay free: a terminal that is made smaller would scroll.
        lines = self._picture(size.width - 1, size.height - 2)
        self._widths = [len(plain(line)) for line in lines]
        return Group(*(Text.assemble(*line, no_wrap=True, overflow="crop") for line in lines))
