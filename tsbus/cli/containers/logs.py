"""Logs: `treescale container logs`, what containers wrote, of many nodes at once."""

import itertools
import json
import os
import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.containers.acts import code_of
from tsbus.cli.containers.finding import Match, choose, find, order_for
from tsbus.cli.containers.options import ACT_S, awaited, names_argument, target_argument
from tsbus.cli.containers.times import moment
from tsbus.cli.containers.words import natural
from tsbus.cli.edge import Code, bus_option, connect, forget_stdout, json_option
from tsbus.cli.job import NO_LIMIT_S, conclude, follow
from tsbus.cli.output import Lines, write
from tsbus.cli.report import Ending, ending_of, label
from tsbus.cli.terminal import Progress, safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold

if TYPE_CHECKING:
    from tsbus import Reply

_COLORS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return moment(value, time.time())
    except ValueError:
        words = f"{value!r} is neither an age like 10m or 2h30m, nor a time like 2026-01-31T12:00:00, nor Unix seconds"
        raise click.BadParameter(words, ctx, param) from None


def _tail(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value in (None, "all"):
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of lines nor all", ctx, param)
    return int(value)


@click.command()
@target_argument
@names_argument
@click.option("-f", "--follow", "following", is_flag=True, help="Stay, and show what comes.")
@click.option("-n", "--tail", metavar="N", callback=_tail, help="Begin with the last N lines [default: all].")
@click.option("--since", metavar="TIME", callback=_moment, help="From then on: 10m (ago), or a date and time.")
@click.option("--until", metavar="TIME", callback=_moment, help="Until then.")
@click.option("-t", "--timestamps", is_flag=True, help="With the time of each line.")
@click.option("--prefix/--no-prefix", default=None,
              help="NODE/NAME before each line [default: of several containers].")  # fmt: skip
@click.option("--raw", is_flag=True, help="Pass control characters on to the terminal.")
@json_option
@bus_option
@awaited
async def logs(
    target: str,
    names: tuple[str, ...],
    following: bool,
    tail: int | None,
    since: float | None,
    until: float | None,
    timestamps: bool,
    prefix: bool | None,
    raw: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """Show what containers wrote: of one as it is, of several behind node and name, as it comes.

    \b
    Examples:
      treescale container logs node1 web --tail 100
      treescale container logs @web web -f --since 10m
      treescale container logs '*' web db --no-prefix
    """
    options = {"follow": following, "tail": tail, "since": since, "until": until, "timestamps": timestamps}
    body: dict[str, Any] = {key: value for key, value in options.items() if value is not None and value is not False}
    endings: dict[str, Ending] = {}
    progress = Progress()
    async with connect(bus, "treescale-logs") as client:
        finding = await find(client, target, names)
        matches = choose(finding, names, target, single=False)
        endings |= finding.lost
        writer = Writer(matches, prefix=prefix, raw=raw, as_json=as_json)

        def take(reply: "Reply") -> None:
            if not reply.last or (reply.status is Outcome.OK and reply.body):
                writer.feed(reply.node, reply.second, reply.body)
            if reply.last:
                writer.end(reply.node)
                endings[reply.node] = ending = ending_of(reply)
                if following and len(matches) > 1 and ending.outcome not in (Outcome.OK, Outcome.CANCELLED):
                    click.echo(f"{reply.node}: {label(ending.outcome)}: {ending.reason}", err=True)

        body |= order_for(matches)
        nodes = fold(match.node for match in matches)
        timeout_s = NO_LIMIT_S if following else ACT_S
        async with client.request(nodes, "containers.logs", body, timeout_s=timeout_s) as call:
            try:
                whole = await follow(call, take)
            except BrokenPipeError:  # `logs -f | head -1`: the reader has enough
                forget_stdout()
                return Code.OK
    if not whole and sys.stderr.isatty():
        click.echo(err=True)  # behind ^C: the shell's prompt begins a line
    return code_of(whole, conclude(endings, progress.elapsed_s, as_json=False, quiet=not whole))


class Writer:
    """Writes the logs of some containers: as they are, or line by line behind their names, or as JSON."""

    def __init__(self, matches: Sequence[Match], *, prefix: bool | None, raw: bool, as_json: bool) -> None:
        self._names: dict[str, list[str]] = {}
        for match in matches:
            self._names.setdefault(match.node, []).append(match.name)
        prefixed = len(matches) > 1 if prefix is None else prefix
        # A node writes the lines of several containers behind their names already.
        self._cuts = prefixed or as_json or any(len(names) > 1 for names in self._names.values())
        self._shape = self._as_json if as_json else self._as_text
        self._lines = Lines(self._shaped)
        self._escapes = not raw and sys.stdout.isatty()
        self._decoders: dict[tuple[str, bool], Any] = {}
        self._prefixes = _prefixes(matches) if prefixed else {}

    def feed(self, node: str, second: bool, chunk: bytes) -> None:
        """Write what a node sent, as far as its lines are complete."""
        if self._cuts:
            write(second, self._lines.feed(node, second, chunk))
        elif self._escapes:
            write(second, self._escaped(node, second, chunk))
        else:
            write(second, chunk)

    def end(self, node: str) -> None:
        """Write the rest of what a node sent."""
        for second in (False, True):
            write(second, self._lines.end(node, second))

    def _escaped(self, node: str, second: bool, chunk: bytes) -> bytes:
        decoder = self._decoders.get((node, second))
        if decoder is None:
            decoder = self._decoders[node, second] = getincrementaldecoder("utf-8")("backslashreplace")
        return "\n".join(map(clean, decoder.decode(chunk).split("\n"))).encode()

    def _shaped(self, node: str, second: bool, lines: bytes) -> bytes:
        return b"".join(self._shape(*self._named(node, line), node, second) for line in lines.split(b"\n"))

    def _named(self, node: str, line: bytes) -> tuple[str, bytes]:
        names = self._names.get(node, [])
        if len(names) == 1:
            return names[0], line
        name, mark, rest = line.partition(b" | ")
        return (name.decode(errors="replace").rstrip(), rest) if mark else ("?", line)

    def _as_text(self, name: str, line: bytes, node: str, second: bool) -> bytes:
        shown = clean(line.decode(errors="backslashreplace")).encode() if self._escapes else line
        return self._prefixes.get(f"{node}/{safe(name)}", "").encode() + shown + b"\n"

    @staticmethod
    def _as_json(name: str, line: bytes, node: str, second: bool) -> bytes:
        stream = "stderr" if second else "stdout"
        text = line.removesuffix(b"\r").decode(errors="backslashreplace")
        return json.dumps({"node": node, "name": name, "stream": stream, "line": text}).encode() + b"\n"


def _prefixes(matches: Sequence[Match]) -> dict[str, str]:
    """Return what stands before the lines of each container: all of one length, on a terminal in turns of colour."""
    labels = sorted({match.label for match in matches}, key=natural)
    width = max(map(len, labels))
    padded = {name: f"{name:<{width}} | " for name in labels}
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return padded
    colors = itertools.cycle(_COLORS)
    return {name: click.style(text, fg=next(colors)) for name, text in padded.items()}


def clean(line: str) -> str:
    """Return a line whose control characters, but for tabs, are escaped."""
    return "\t".join(map(safe, line.removesuffix("\r").split("\t")))
