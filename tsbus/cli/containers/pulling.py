"""Pulling: how far many nodes are with fetching an image, on a few lines of a terminal, or told now and then."""

import time
from typing import TYPE_CHECKING

import click
import msgspec

from tsbus.cli.containers.words import count, natural
from tsbus.cli.screen import Block
from tsbus.cli.terminal import safe, size
from tsbus.records import PullProgress

if TYPE_CHECKING:
    from tsbus import Reply

MAX_LINES = 10
"""Nodes that have a line of their own; of more, those that are behind."""
TELL_S = 5.0
"""Without a terminal, so often it is told how far they are."""
BAR = 20


class Pulling:
    """The progress of many nodes."""

    def __init__(self, nodes: int, *, quiet: bool = False) -> None:
        """`nodes`: of how many it will be told. `quiet`: nothing is shown."""
        self._nodes = nodes
        self._quiet = quiet
        self._under_way: dict[str, PullProgress] = {}
        self._ended = 0
        self._block = Block()
        self._told_at = time.monotonic()

    @property
    def under_way(self) -> bool:
        """Whether a node is at it."""
        return bool(self._under_way)

    def takes(self, reply: "Reply") -> bool:
        """Take a reply if it tells how far its node is; else it is somebody else's."""
        if reply.last or b'"layers"' not in reply.body:
            return False
        self.take(reply.node, msgspec.json.decode(reply.body, type=PullProgress))
        return True

    def take(self, node: str, progress: PullProgress) -> None:
        """A node got further."""
        if self._quiet:
            return
        self._under_way[node] = progress
        self._block.show(self.lines())
        if not self._block.is_terminal and time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            click.echo(self.total(), err=True)

    def ended(self, node: str) -> None:
        """A node has it, or gave up; the lines are taken away, so that something can be printed."""
        self._under_way.pop(node, None)
        self._ended += 1
        self._block.show([])

    def lines(self) -> list[str]:
        """Return the lines for a terminal."""
        behind = sorted(self._under_way, key=lambda node: (self._under_way[node].share, natural(node)))
        shown = sorted(behind[:MAX_LINES], key=natural)
        width = max(map(len, shown), default=0)
        lines = [f"{node:<{width}}  {self._line(self._under_way[node])}" for node in shown]
        return [*lines, self.total()] if self._nodes > MAX_LINES else lines

    @staticmethod
    def _line(progress: PullProgress) -> str:
        bar = ("#" * round(progress.share * BAR)).ljust(BAR, ".")
        sizes = f"{size(progress.current)} of {size(progress.total)}  " if progress.total else ""
        layers = f"{progress.done} of {count(progress.layers, 'layer')}  " if progress.layers else ""
        return f"{bar} {progress.share * 100:3.0f} %  {sizes}{layers}{safe(progress.status)}"

    def total(self) -> str:
        """Return how far all are, on one line."""
        current = sum(progress.current for progress in self._under_way.values())
        total = sum(progress.total for progress in self._under_way.values())
        under_way = f", {len(self._under_way)} under way: {size(current)} of {size(total)}" if self._under_way else ""
        return f"{count(self._nodes, 'node')}: {self._ended} done{under_way}"
