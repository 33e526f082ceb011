"""Audit: `treescale audit`, who did what on nodes, from the audit logs there."""

import json
import time
from datetime import datetime

import click
import msgspec

from tsbus.audit import MAX_ENTRIES, Entry, Trail, Wish
from tsbus.cli.completion import complete_target
from tsbus.cli.containers.times import moment
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run, timeout_option
from tsbus.cli.report import Ending, account, ending_of, exit_code, summary
from tsbus.cli.screen import columns
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import duration, millis, safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold

_COLUMNS = (
    Column("TIME"),
    Column("NODE", least=8),
    Column("WHO", least=10),
    Column("COMMAND", spare=2),
    Column("WHAT", least=16),
    Column("ENDED", least=10, style=lambda text: {} if text.startswith("ok") else {"fg": "red"}),
    Column("TOOK", right=True, spare=1),
)


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> float:
    try:
        return moment(value, time.time()) if value else 0.0
    except ValueError:
        words = f"{value!r} is neither an age like 10m or 2h30m, nor a time like 2026-01-31T12:00:00, nor Unix seconds"
        raise click.BadParameter(words, ctx, param) from None


@click.command()
@click.argument("target", default="*", shell_complete=complete_target)
@click.option("--person", default="", metavar="NAME", help="Only what NAME did: a person, a user or an operator.")
@click.option("--command", default="", metavar="TEXT", help="Only commands that have TEXT in them.")
@click.option("--since", metavar="TIME", callback=_moment, help="From then on: 10m (ago), or a date and time.")
@click.option("-n", "--last", type=click.IntRange(1, MAX_ENTRIES), default=100, show_default=True, metavar="N",
              help="The last N of each node.")  # fmt: skip
@timeout_option(30.0)
@json_option
@bus_option
def audit(
    target: str, person: str, command: str, since: float, last: int, timeout_s: float, as_json: bool, bus: str | None
) -> int:  # fmt: skip
    """Show who did what on nodes: programs that were run, containers that were changed, trees that were taken.

    It is in the audit logs of the nodes; to read them takes the role operate. The oldest comes first.

    \b
    Examples:
      treescale audit
      treescale audit @web --person alice --since 2h
      treescale audit web1 --command containers.stop -n 10 --json
    """
    wish = Wish(last=last, since_ms=round(since * 1000), person=person, command=command)
    return run(_audit(bus, target, wish, timeout_s, as_json))


async def _audit(bus: str | None, target: str, wish: Wish, timeout_s: float, as_json: bool) -> int:
    endings: dict[str, Ending] = {}
    heads: dict[str, Trail] = {}
    found: list[tuple[str, Entry]] = []
    started = time.monotonic()
    async with (
        connect(bus, "treescale-audit") as client,
        client.request(target, "exec.audit", wish, timeout_s=timeout_s) as call,
    ):
        async for reply in call:
            try:
                if reply.last:
                    endings[reply.node] = ending_of(reply)
                elif reply.node not in heads:
                    heads[reply.node] = msgspec.json.decode(reply.body, type=Trail)
                else:
                    found += ((reply.node, entry) for entry in msgspec.json.decode(reply.body, type=list[Entry]))
            except msgspec.DecodeError as error:
                raise Fault(f"the answer of {reply.node} cannot be read: {error}", Code.FAILED) from None
    seconds = time.monotonic() - started
    found.sort(key=lambda one: (one[1].time_ms, one[0]))
    more = sorted(node for node, head in heads.items() if not head.whole)
    for node, head in sorted(heads.items()):
        if head.problems:
            click.echo(f"{node}: {safe('; '.join(head.problems))}", err=True)
    if as_json:
        for node, entry in found:
            click.echo(msgspec.json.encode({"node": node, **msgspec.to_builtins(entry)}))
        click.echo(json.dumps(summary(endings, seconds) | {"more": more}))
    else:
        _print(found)
        if more:
            click.echo(f"there is more on {fold(more)}: narrow it by --since, --person or --command", err=True)
        for line in account(endings, seconds) if set(endings.values()) != {Ending(Outcome.OK)} else ():
            click.echo(line, err=True)
    return exit_code([ending.outcome for ending in endings.values()])


def _print(found: list[tuple[str, Entry]]) -> None:
    if not found:
        click.echo("nothing that fits was written down")
        return
    click.echo("\n".join(table(_COLUMNS, [row(node, entry) for node, entry in found], columns())))


def row(node: str, entry: Entry) -> list[str]:
    """Return the cells of an entry."""
    where = f"{entry.who}@{entry.origin}" if entry.origin else entry.who
    ended = entry.outcome if entry.outcome != "open" else "no end yet"
    took = entry.took_ms
    return [
        datetime.fromtimestamp(entry.time_ms / 1000).strftime("%Y-%m-%d %H:%M:%S"),
        node,
        safe(f"{entry.person} ({where})" if entry.person else where),
        safe(entry.command),
        safe(entry.what),
        safe(f"{ended}: {entry.why}" if entry.why else ended),
        "" if took is None else millis(took) if took < 1000 else duration(took / 1000),
    ]
