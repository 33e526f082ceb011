"""Top: `treescale top`, what the nodes and containers of the tree use, live. topview.py decides what is shown.

It looks at the same model as the dashboard, and needs nothing of its extra.
"""

import asyncio
import os
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli.completion import complete_target
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run
from tsbus.cli.screen import Screen, columns, within
from tsbus.cli.topview import SORTS, Kind, Look, after_key, picture
from tsbus.core.target import TargetError
from tsbus.dashboard.problems import problems

if TYPE_CHECKING:
    from tsbus.dashboard.feed import Feed
    from tsbus.dashboard.state import Model

SETTLE_S = 5.0
"""Patience with nodes that have not told their containers."""
FIGURES_S = 3.0
"""With `--once`: patience with those that have not told what they use; two readings take a second."""
REDRAW_S = 0.5
"""Between two drawings, unless a key is pressed; figures come once a second."""
PRINT_S = 1.0
"""Between two objects of `--json`."""
_KEYS = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x1b": "esc", "\x03": "q"}


@click.command()
@click.argument("target", default="*", shell_complete=complete_target)
@click.option("--containers", "kind", flag_value="containers", help="Begin with the containers.")
@click.option("--nodes", "kind", flag_value="nodes", default="nodes", help="Begin with the nodes.  [default]")
@click.option("--sort", type=click.Choice(sorted({word for words in SORTS.values() for word in words})), help="Order.")
@click.option("--filter", "wanted", default="", help="Only what has this in its name, image, tags or state.")
@click.option("--once", is_flag=True, help="Print what there is after a moment, and end.")
@json_option
@bus_option
def top(
    target: str, kind: Kind, sort: str | None, wanted: str, once: bool, as_json: bool, bus: str | None
) -> int:  # fmt: skip
    """Show what nodes and containers use, live: of this node and all below it.

    CPU of a node: the share of all its cores, 100 % at most; of a container: 100 % is one core, as in `docker stats`.
    MEM: what the containers use. BOXES: containers that run, of all there are.

    Keys: Tab nodes or containers, Enter the containers of a node, Esc back, s sort, / filter, j and k move, q quit.

    \b
    Examples:
      treescale top
      treescale top @web --containers --sort memory
      treescale top --once --json
    """
    look = Look(kind=kind, wanted=wanted)
    if sort is not None:
        if sort not in SORTS[kind]:
            raise click.BadParameter(f"{kind} are sorted by {', '.join(SORTS[kind])}", param_hint="--sort")
        look = replace(look, sorts=look.sorts | {kind: sort})
    return run(_top(bus, target, look, once, as_json))


async def _top(bus: str | None, target: str, look: Look, once: bool, as_json: bool) -> int:
    from tsbus.dashboard.feed import Feed

    async with connect(bus, "treescale-top") as client, Feed(client) as feed:
        await feed.wait_settled(SETTLE_S)
        _select(feed.model, target)
        with feed.watching():
            if once or as_json:
                await _print(feed, target, look, once, as_json)
            else:
                await _Top(feed, target, look).run()
    return Code.OK


def _select(model: "Model", target: str) -> frozenset[str]:
    try:
        return model.select(target)
    except TargetError as error:
        raise Fault(str(error), Code.USAGE) from None


async def _print(feed: "Feed", target: str, look: Look, once: bool, as_json: bool) -> None:
    """Print the picture, or all that is known as an object; without `once` every second."""
    deadline = time.monotonic() + FIGURES_S
    while not _has_figures(feed.model) and (left := deadline - time.monotonic()) > 0:
        await feed.wait_change(feed.model.revision, left)
    while True:
        nodes, now_ms = _select(feed.model, target), _now_ms()
        if as_json:
            click.echo(msgspec.json.encode(as_object(feed.model, nodes, now_ms)))
        else:
            click.echo("\n".join(picture(feed.model, nodes, look, now_ms, width=columns(), height=None).lines))
        sys.stdout.flush()
        if once:
            return
        await asyncio.sleep(PRINT_S)


def _has_figures(model: "Model") -> bool:
    """Whether all who can have told what their containers use."""
    return all(
        view.stats_ms and all(one.sample for one in model.containers[name].values() if one.record.state == "running")
        for name, view in model.nodes.items()
        if view.standing == "live"
    )


def as_object(model: "Model", nodes: frozenset[str], now_ms: int) -> dict[str, Any]:
    """Return what is known of `nodes` for programs."""
    return {
        "time_ms": now_ms,
        "connected": model.connected,
        "nodes": [view for name, view in model.nodes.items() if name in nodes],
        "containers": [
            view for name in model.nodes if name in nodes for view in model.containers.get(name, {}).values()
        ],
        "balancers": [view for name in model.nodes if name in nodes for view in model.balancers.get(name, {}).values()],
        "problems": [one for one in problems(model, now_ms) if not one.node or one.node in nodes],
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class _Top:
    """The screen that stays."""

    def __init__(self, feed: "Feed", target: str, look: Look) -> None:
        self._feed, self._target, self._look = feed, target, look
        self._pressed = asyncio.Event()
        self._chosen = ""
        self._over = False

    async def run(self) -> None:
        """Draw until `q` or Ctrl-C."""
        with _keys(self._press), Screen() as screen:
            while not self._over:
                self._pressed.clear()
                self._draw(screen)
                await within(self._pressed, REDRAW_S)

    def _draw(self, screen: Screen) -> None:
        model = self._feed.model
        width, height = shutil.get_terminal_size()
        place = (width, height) if screen.is_terminal else (None, None)
        shown = picture(model, _select(model, self._target), self._look, _now_ms(), width=place[0], height=place[1])
        self._chosen = shown.chosen
        self._look = replace(self._look, place=shown.place)
        screen.show(shown.lines)

    def _press(self, key: str) -> None:
        look = after_key(self._look, key, self._chosen)
        self._over = look is None
        self._look = look or self._look
        self._pressed.set()


@contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Give each key that is pressed to `press`, as long as standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    file, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(file)

    def read() -> None:
        text = os.read(file, 64).decode(errors="replace")
        # A key that is no character comes as one piece that begins with ESC.
        for key in [text] if text.startswith("\x1b") else text or "q":
            press(_KEYS.get(key, key))

    tty.setcbreak(file)
    loop.add_reader(file, read)
    try:
        yield
    finally:
        loop.remove_reader(file)
        termios.tcsetattr(file, termios.TCSADRAIN, before)
