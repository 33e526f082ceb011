"""Words: how balancers and servers are told to people. Pure."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from tsbus.cli.containers.words import count
from tsbus.cli.terminal import safe
from tsbus.lb_records import ServerRecord, Traffic

COLORS = {
    "ok": "green", "active": "green", "joining": "yellow", "out": "yellow", "draining": "yellow", "kept": "yellow",
    "waiting": "yellow", "sorry": "yellow", "panic": "red", "empty": "red", "clash": "red",
}  # fmt: skip
"""State of a balancer or a server -> its colour."""
IN_TABLE = ("active", "out", "draining", "kept")
"""States of servers that the kernel has."""


_QUOTED = re.compile("`[^`]*`")
_GLUE = "\N{NO-BREAK SPACE}"


def style(cell: str) -> dict[str, Any]:
    """Return the options of `click.style` for a state."""
    return {"fg": COLORS[cell]} if cell in COLORS else {}


def address(server: ServerRecord | Traffic) -> str:
    """Return IP:PORT."""
    ip = f"[{server.ip}]" if ":" in server.ip else server.ip
    return f"{safe(ip)}:{server.port}"


def active_of(servers: Iterable[ServerRecord]) -> str:
    """Tell how many of the servers in the table have a weight."""
    there = [server for server in servers if server.state in IN_TABLE]
    active = sum(server.state == "active" and server.weight > 0 for server in there)
    return f"{active} of {count(len(there), 'server')} active" if there else "no servers"


def left(connections: int | None) -> str:
    """Tell how many connections a drain waits for; nothing where they cannot be counted."""
    return "" if connections is None else f"{count(connections, 'connection')} left"


def wrapped(text: str, indent: int, width: int | None) -> Iterator[str]:
    """Return `text` as lines that begin with `indent` spaces and fit `width`; what is `quoted` so stays on one line."""
    pad = " " * indent
    if width is None or len(text) + indent <= width:
        yield pad + text
        return
    whole = _QUOTED.sub(lambda found: found[0].replace(" ", _GLUE), text)
    width = max(width - indent, 20)
    for line in textwrap.wrap(whole, width, break_on_hyphens=False, break_long_words=False):
        yield pad + line.replace(_GLUE, " ")


def trouble(kind: str, text: str, mend: str, indent: int, width: int | None) -> Iterator[str]:
    """Return the lines of a problem; what mends it stands below."""
    yield from wrapped(f"{kind}: {safe(text)}", indent, width)
    if mend:
        yield from wrapped(f"mend: {safe(mend)}", indent + 2, width)
