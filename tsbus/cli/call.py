"""Call: `treescale call`, any command of any worker."""

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.completion import complete_command, complete_target
from tsbus.cli.edge import bus_option, connect, json_option, run, timeout_option
from tsbus.cli.job import conclude
from tsbus.cli.report import Ending, ending_of
from tsbus.cli.terminal import body_text
from tsbus.core.accounting import Outcome
from tsbus.core.body import body_json

if TYPE_CHECKING:
    from tsbus import Reply

WIDE = 100
"""A longer JSON answer is printed over several lines."""


def _body(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    text = sys.stdin.read() if value == "-" else value
    if text is None:
        return b""
    if ctx.params.get("as_text"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}: {text[:60]!r}; --text sends it as it is", ctx, param) from None


@click.command()
@click.argument("target", shell_complete=complete_target)
@click.argument("command", metavar="SERVICE.COMMAND", shell_complete=complete_command)
@click.argument("body", metavar="[JSON|-]", required=False, callback=_body)
@click.option("--text", "as_text", is_flag=True, is_eager=True, help="The argument is plain text, not JSON.")
@timeout_option(30.0)
@json_option
@bus_option
def call(target: str, command: str, body: Any, as_text: bool, timeout_s: float, as_json: bool, bus: str | None) -> int:
    """Call a worker's command on nodes and print every answer as it comes.

    The argument is JSON; "-" reads it from standard input. Every worker answers SERVICE.stats.

    \b
    Examples:
      treescale call @web greeter.hello '{"name": "x"}'
      treescale call . router.stats
      treescale call '*' exec.stats --json
    """
    return run(_call(bus, target, command, body, timeout_s, as_json))


async def _call(bus: str | None, target: str, command: str, body: Any, timeout_s: float, as_json: bool) -> int:
    endings: dict[str, Ending] = {}
    async with (
        connect(bus, "treescale-call") as client,
        client.request(target, command, body, timeout_s=timeout_s) as pending,
    ):
        started = time.monotonic()
        async for reply in pending:
            if reply.last:
                endings[reply.node] = ending_of(reply)
            if as_json:
                click.echo(json.dumps(_as_object(reply)))
            elif not reply.last or (reply.status is Outcome.OK and reply.body):
                click.echo(_as_text(reply), err=reply.second)
            sys.stdout.flush()
    return conclude(endings, time.monotonic() - started, as_json=as_json)


def _as_object(reply: "Reply") -> dict[str, Any]:
    outcome = {"outcome": reply.status.name.lower()} if reply.last else {}
    return {"node": reply.node} | outcome | body_json(reply.body)


def _as_text(reply: "Reply") -> str:
    text = body_text(reply.body).removesuffix("\n")
    if len(text) > WIDE and text.startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return f"{reply.node}:\n{text}" if "\n" in text else f"{reply.node}: {text}"
