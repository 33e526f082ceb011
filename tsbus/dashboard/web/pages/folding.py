"""Folding: the output of a program on many nodes, with the nodes that wrote the same put together. Pure."""

from typing import Final

import msgspec

from tsbus.core.accounting import Outcome
from tsbus.core.exchanges import Reply
from tsbus.core.target import fold
from tsbus.dashboard.web.pages.output import Breaker, Line

MAX_LINES: Final = 1000
"""Of one node; the last ones are kept."""


class _Node:
    def __init__(self) -> None:
        self.streams = {False: Breaker(), True: Breaker(tone="warn")}
        self.lines: list[Line] = []
        self.lost = 0
        self.how = "runs"
        self.tone = "busy"

    def add(self, lines: list[Line]) -> None:
        self.lines += lines
        if (more := len(self.lines) - MAX_LINES) > 0:
            del self.lines[:more]
            self.lost += more


class Folded:
    """What the nodes of one call have written so far, and how they ended."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def begin(self, nodes: frozenset[str]) -> None:
        """These were asked."""
        for name in sorted(nodes):
            self._nodes.setdefault(name, _Node())

    def take(self, reply: Reply) -> None:
        """A piece of a node's answer came."""
        node = self._nodes.setdefault(reply.node, _Node())
        if not reply.last:
            node.add(node.streams[reply.second].feed(reply.body))
            return
        node.add([*node.streams[False].end(), *node.streams[True].end()])
        node.how, node.tone = _ending(reply)

    @property
    def ended(self) -> int:
        """How many nodes have ended."""
        return sum(node.how != "runs" for node in self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def lines(self) -> list[Line]:
        """Return what is to be shown: for nodes that wrote the same their names, how it ended, and the lines once."""
        groups: dict[tuple[str, int, tuple[Line, ...]], list[str]] = {}
        for name, node in self._nodes.items():
            groups.setdefault((node.how, node.lost, tuple(node.lines)), []).append(name)
        shown: list[Line] = []
        for (how, lost, lines), names in groups.items():
            count = f" ({len(names)})" if len(names) > 1 else ""
            shown.append((f"{fold(names)}{count}", how, self._nodes[names[0]].tone))
            if lost:
                shown.append(("", f"  … {lost} lines before these", "dim"))
            shown += lines
        return shown


def _ending(reply: Reply) -> tuple[str, str]:
    """Return in words how a node ended, and a tone."""
    try:
        told = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        told = None
    if reply.status in (Outcome.OK, Outcome.FAILED) and isinstance(told, dict):
        if told.get("signal"):
            return f"killed by {told['signal']} {told.get('reason') or ''}".strip(), "bad"
        code, reason = told.get("exit"), told.get("reason") or ""
        return f"exit {code} {reason}".strip(), "ok" if code == 0 and not reason else "warn"
    words = reply.status.name.lower().replace("_", " ")
    return f"{words}: {reply.text()}" if reply.body else words, "ok" if reply.status is Outcome.OK else "bad"
