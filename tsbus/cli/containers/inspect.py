"""Inspect: `treescale container inspect` and `top`, what an engine knows of containers and what runs in them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.containers.finding import ask, choose, find, order_for
from tsbus.cli.containers.options import awaited, names_argument, target_argument
from tsbus.cli.edge import bus_option, connect, json_option
from tsbus.cli.job import conclude
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import Progress, safe
from tsbus.core.target import fold

if TYPE_CHECKING:
    from tsbus import Reply

PATIENCE_S = 30.0
Show = Callable[[str, Any], None]
"""Prints an answer of a node."""


async def _each(
    bus: str | None,
    command: str,
    target: str,
    names: Sequence[str],
    options: Mapping[str, Any],
    show: Show,
    as_json: bool,
) -> int:
    """Run a command that reads on all containers of the names, and show every answer."""
    progress = Progress()
    async with connect(bus, f"treescale-{command}") as client:
        finding = await find(client, target, names)
        matches = choose(finding, names, target, single=False)
        body, nodes = {**order_for(matches), **options}, fold(match.node for match in matches)

        def take(reply: "Reply") -> None:
            show(reply.node, reply.json())

        endings = await ask(client, nodes, f"containers.{command}", body, take, PATIENCE_S)
    return conclude(finding.lost | endings, progress.elapsed_s, as_json=as_json)


@click.command()
@target_argument
@names_argument
@json_option
@bus_option
@awaited
async def inspect(target: str, names: tuple[str, ...], as_json: bool, bus: str | None) -> int:
    """Show everything that the engine knows of containers, as JSON; with --json one line for each.

    \b
    Examples:
      treescale container inspect node1 web
      treescale container inspect @web web --json | jq .container.State
    """

    def show(node: str, told: Any) -> None:
        click.echo(json.dumps({"node": node, "container": told}, indent=None if as_json else 2, ensure_ascii=as_json))

    return await _each(bus, "inspect", target, names, {}, show, as_json)


@click.command()
@target_argument
@names_argument
@click.option("--ps", "ps_args", metavar="ARGS", default="", help="Arguments for ps on the node: -eo pid,rss,comm.")
@json_option
@bus_option
@awaited
async def top(target: str, names: tuple[str, ...], ps_args: str, as_json: bool, bus: str | None) -> int:
    """Show the processes in containers, as their nodes see them.

    \b
    Examples:
      treescale container top node1 web
      treescale container top @web web --ps '-eo pid,pcpu,args'
    """

    def show(node: str, told: Any) -> None:
        if as_json:
            click.echo(json.dumps({"node": node} | told))
            return
        columns = [Column(safe(title)) for title in told["titles"]]
        rows = [[safe(str(cell)) for cell in row] for row in told["processes"]]
        click.secho(f"{node}/{safe(told['name'])}:", bold=True)
        click.echo("\n".join(table(columns, rows)))

    return await _each(bus, "top", target, names, {"ps_args": ps_args} if ps_args else {}, show, as_json)
