"""Pub: the program `ts-pub`, which publishes events."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsbus.cli.completion import complete_target
from tsbus.cli.edge import HELP, Code, Fault, Tool, bus_option, connect, run
from tsbus.cli.stdin import stdin_chunks
from tsbus.core.topic import check_topic

if TYPE_CHECKING:
    from tsbus.client import Client

CHUNK_BYTES = 1 << 18
FLUSH_S = 5.0
"""How long the router may take to accept what was published."""


def _topic(ctx: click.Context, param: click.Parameter, value: str) -> str:
    check_topic(value)
    return value


@click.command(name="ts-pub", cls=Tool, context_settings=HELP)
@click.argument("topic", callback=_topic)
@click.argument("body", metavar="[BODY|-]", default="")
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Publish the bytes of a file."
)
@click.option("--to", metavar="TARGET", default="*", show_default=True, shell_complete=complete_target,
              help="Only subscribers on these nodes get it.")  # fmt: skip
@click.option("--wait", is_flag=True, help=f"Wait until the router has routed it, however long; else {FLUSH_S:.0f} s.")
@bus_option
def pub(topic: str, body: str, file: Path | None, to: str, wait: bool, bus: str | None) -> int:
    """Publish an event, or with BODY "-" one for each line of standard input.

    \b
    Examples:
      ts-pub deploy.started '{"release": "1.4"}'
      ts-pub alert.disk 'node1: /var is full' --to @oncall
      tail -F app.log | ts-pub app.log -
    """
    if file and body:
        raise click.UsageError("give BODY or --file, not both")
    return run(_pub(bus, topic, file.read_bytes() if file else body, to, wait))


async def _pub(bus: str | None, topic: str, body: bytes | str, to: str, wait: bool) -> int:
    async with connect(bus, "ts-pub") as client:
        if body == "-":
            await _publish_lines(client, topic, to)
        else:
            await client.publish(topic, body, to=to)
        try:
            # The router answers in order, so this is also when its complaint about the target would have come.
            await asyncio.wait_for(client.flush(), None if wait else FLUSH_S)
        except TimeoutError:
            raise Fault("the router is too busy to take the event; --wait waits for it", Code.UNREACHABLE) from None
    return Code.OK


async def _publish_lines(client: "Client", topic: str, to: str) -> None:
    rest = b""
    async for chunk in stdin_chunks(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            await client.publish(topic, line, to=to)
    if rest:
        await client.publish(topic, rest, to=to)


def main() -> None:
    """Run `ts-pub` and exit."""
    pub.main()
