"""Exec: `treescale exec`, running a program on nodes. The executor's service does the work (docs/executor.md).

output.py shapes what the programs write, report.py the account.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.completion import complete_target
from tsbus.cli.edge import Code, bus_option, connect, json_option, run
from tsbus.cli.job import conclude, follow, send_stdin, waiting
from tsbus.cli.output import Kept, Lines, write
from tsbus.cli.report import Ending, ending_of, exit_code
from tsbus.cli.terminal import Progress
from tsbus.core.accounting import Outcome
from tsbus.core.body import BodyError
from tsbus.core.message import Content

if TYPE_CHECKING:
    from tsbus import Call, Reply
    from tsbus.client import Client


def _max_fail(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, bool] | None:
    """Return the number of `--max-fail`, and whether it is a percentage."""
    if value is None:
        return None
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a number of nodes nor a percentage like 10%", ctx, param)
    return number, value.endswith("%")


def variables(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read options of the form NAME=VALUE."""
    if bad := [value for value in values if not value.partition("=")[0] or "=" not in value]:
        raise click.BadParameter(f"{bad[0]!r} is not NAME=VALUE", ctx, param)
    return dict(value.split("=", 1) for value in values)


@dataclass(frozen=True, slots=True)
class Look:
    """How the output is to be shown."""

    as_json: bool
    fold: bool | None
    live: bool
    prefix: bool
    quiet: bool
    own_exit: bool = False
    """One program on one node: its exit code is ours, which says all."""


@click.command(name="exec")
@click.argument("target", shell_complete=complete_target)
@click.argument("words", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--shell", is_flag=True, help="CMD is a line for the shell, with pipes and variables.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=300.0, show_default=True,
              metavar="S", help="Seconds for the program; then it is killed.")  # fmt: skip
@click.option(
    "--max-fail", callback=_max_fail, metavar="N|N%", help="Cancel the rest once more than N nodes have failed."
)
@click.option("--sudo-user", metavar="USER", help="Run as this user; the nodes' policy must allow it.")
@click.option("-e", "--env", metavar="NAME=VALUE", multiple=True, callback=variables, help="Add to the environment.")
@click.option("--cwd", metavar="DIR", help="Working directory on the nodes.")
@click.option("--stdin", is_flag=True, help="Send our standard input to the program on every node.")
@click.option("--fold/--no-fold", default=None, help="Print equal output once, at the end [default: on several nodes].")
@click.option("--live", is_flag=True, help="Print lines as they come, even when they are folded at the end.")
@click.option("--no-prefix", is_flag=True, help="Print the bytes as they come, without the node's name.")
@click.option("-q", "--quiet", is_flag=True, help="Print output only: no progress, no account.")
@json_option
@bus_option
def exec_(
    target: str,
    words: tuple[str, ...],
    shell: bool,
    timeout_s: float,
    max_fail: tuple[float, bool] | None,
    sudo_user: str | None,
    env: dict[str, str],
    cwd: str | None,
    stdin: bool,
    fold: bool | None,
    live: bool,
    no_prefix: bool,
    quiet: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """Run a program on nodes and show its output and the exact account of how it ended on every one of them.

    On one node, lines are printed as they come. On several, equal output is printed once, when all is there, behind
    the names of the nodes. Ctrl-C ends the program everywhere.

    \b
    Examples:
      treescale exec '*' -- uname -r
      treescale exec @web --max-fail 10% -- systemctl reload nginx
      treescale exec 'node[1-3]' --shell -- 'df -h | grep /var'
      treescale exec node1 --no-prefix -- tar c /etc > etc.tar
    """
    body: dict[str, Any] = {"shell": " ".join(words)} if shell else {"argv": list(words)}
    options = {"user": sudo_user, "env": env, "cwd": cwd, "stdin": stdin}
    body |= {key: value for key, value in options.items() if value}
    look = Look(as_json, False if no_prefix else fold, live, not no_prefix, quiet)
    return run(_exec(bus, target, body, timeout_s, max_fail, look))


async def _exec(
    bus: str | None,
    target: str,
    body: dict[str, Any],
    timeout_s: float,
    max_fail: tuple[float, bool] | None,
    look: Look,
) -> int:
    async with connect(bus, "treescale-exec") as client:
        return await execute(client, target, "exec.run", body, look, timeout_s=timeout_s, max_fail=max_fail)


async def execute(
    client: "Client",
    target: str,
    command: str,
    body: dict[str, Any],
    look: Look,
    *,
    timeout_s: float,
    max_fail: tuple[float, bool] | None = None,
    fact: "Callable[[Reply], None] | None" = None,
) -> int:
    """Run `command`, which answers with a program's output and how it ended, on nodes; show it, and the account.

    `fact` is given the pieces of the answers that are JSON, not output. Returns the exit code.
    """
    wants_input = bool(body.get("stdin"))
    async with client.request(target, command, body, timeout_s=timeout_s, input=wants_input) as call:
        nodes = await call.nodes()
        job = _Job(call, nodes, _view(look, nodes), _limit(max_fail, len(nodes)), fact)
        async with contextlib.AsyncExitStack() as helpers:
            if not look.quiet:
                await helpers.enter_async_context(job.show_progress())
            if wants_input:
                sending = asyncio.create_task(send_stdin(call))
                helpers.callback(sending.cancel)
            code = await job.follow()
        job.finish(look)
        return job.exits[0] if look.own_exit and job.exits else code


def _limit(max_fail: tuple[float, bool] | None, nodes: int) -> float:
    if max_fail is None:
        return nodes
    number, is_share = max_fail
    return nodes * number / 100 if is_share else number


class _Job:
    """One run on many nodes, from the first reply to the account."""

    def __init__(
        self,
        call: "Call",
        nodes: frozenset[str],
        view: "_Text | _Json",
        max_fail: float,
        fact: "Callable[[Reply], None] | None",
    ) -> None:
        self._call = call
        self._nodes = nodes
        self._view = view
        self._max_fail = max_fail
        self._fact = fact
        self.exits: list[int] = []
        self._endings: dict[str, Ending] = {}
        self._progress = Progress()

    async def follow(self) -> int:
        """Show replies until every node has ended, or Ctrl-C. Returns the exit code."""
        if await follow(self._call, self._take):
            return exit_code([ending.outcome for ending in self._endings.values()])
        for node in self._waiting():
            self._endings[node] = Ending(Outcome.CANCELLED, "not confirmed")
        return Code.INTERRUPTED

    def _take(self, reply: "Reply") -> None:
        self._progress.clear()
        if not reply.last:
            if self._fact is not None and reply.content == Content.JSON:
                self._fact(reply)
            else:
                self._view.chunk(reply.node, reply.second, reply.body)
            return
        ending, facts = read_ending(reply)
        self._endings[reply.node] = ending
        if isinstance(facts.get("exit"), int):
            self.exits.append(facts["exit"])
        self._view.ended(reply.node, ending, facts)
        if sum(one.outcome is not Outcome.OK for one in self._endings.values()) > self._max_fail:
            self._call.cancel()

    def _waiting(self) -> frozenset[str]:
        return self._nodes - self._endings.keys()

    def show_progress(self) -> AbstractAsyncContextManager[None]:
        """Tell whom we wait for, unless what they write is seen anyway."""
        return waiting(self._progress, lambda: () if self._view.live else self._waiting(), len(self._nodes))

    def finish(self, look: Look) -> None:
        """Print what is printed at the end."""
        self._progress.clear()
        self._view.finish()
        quiet = look.quiet or bool(look.own_exit and self.exits)
        conclude(self._endings, self._progress.elapsed_s, as_json=look.as_json, quiet=quiet)


def read_ending(reply: "Reply") -> tuple[Ending, dict[str, Any]]:
    """Return how the program ended by the node's last reply, and what the executor tells about it."""
    try:
        facts = reply.json()
    except BodyError:
        facts = None
    if not isinstance(facts, dict):
        return ending_of(reply), {}
    return Ending(reply.status, "" if reply.status is Outcome.OK else ", ".join(_reasons(facts))), facts


def _reasons(facts: dict[str, Any]) -> Iterator[str]:
    if facts.get("exit") is not None:
        yield f"exit {facts['exit']}"
    if facts.get("signal"):
        yield f"signal {facts['signal']}"
    if facts.get("reason"):
        yield str(facts["reason"])


def _view(look: Look, nodes: frozenset[str]) -> "_Text | _Json":
    if look.as_json:
        return _Json(len(nodes))
    folded = len(nodes) > 1 if look.fold is None else look.fold
    kept = Kept(len(nodes)) if folded else None
    return _Text(kept, Lines() if look.live or not folded else None, prefix=look.prefix)


class _Text:
    """Lines as they come, or folded at the end, or both."""

    def __init__(self, kept: Kept | None, lines: Lines | None, *, prefix: bool) -> None:
        self.live = lines is not None
        self._kept = kept
        self._lines = lines
        self._prefix = prefix

    def chunk(self, node: str, second: bool, data: bytes) -> None:
        """A node's program wrote `data`."""
        if self._kept:
            self._kept.feed(node, second, data)
        if self._lines:
            write(second, self._lines.feed(node, second, data) if self._prefix else data)

    def ended(self, node: str, ending: Ending, facts: dict[str, Any]) -> None:
        """A node has ended."""
        if self._lines:
            for second in (False, True):
                write(second, self._lines.end(node, second))

    def finish(self) -> None:
        """All nodes have ended."""
        if self._kept is None:
            return
        for second in (False, True):
            for heading, output in self._kept.folded(second):
                click.secho(heading, bold=True, nl=False, err=second)
                write(second, output)
        for node, count in self._kept.cut.items():
            click.echo(f"{node}: {count} more bytes are not shown; --no-fold shows all", err=True)


class _Json:
    """One object for each node, as it ends."""

    live = True

    def __init__(self, nodes: int) -> None:
        self._kept = Kept(nodes)

    def chunk(self, node: str, second: bool, data: bytes) -> None:
        """A node's program wrote `data`."""
        self._kept.feed(node, second, data)

    def ended(self, node: str, ending: Ending, facts: dict[str, Any]) -> None:
        """A node has ended."""
        output = {
            name: self._kept.take(node, second).decode(errors="backslashreplace")
            for name, second in (("stdout", False), ("stderr", True))
        }
        cut = self._kept.cut.get(node, 0)
        about = {"node": node, "outcome": ending.outcome.name.lower()}
        told = facts | {"reason": ending.reason} | ({"not_shown_bytes": cut} if cut else {})
        click.echo(json.dumps(about | told | output))

    def finish(self) -> None:
        """All nodes have ended: nothing is left to print."""
