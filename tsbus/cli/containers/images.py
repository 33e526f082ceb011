"""Images: `treescale image ls`, `pull`, `tag`, `rm` and `prune`."""

import json
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli.completion import complete_image
from tsbus.cli.containers.acts import code_of
from tsbus.cli.containers.finding import ask as ask_nodes
from tsbus.cli.containers.finding import monitored
from tsbus.cli.containers.ls import problems
from tsbus.cli.containers.options import ACT_S, any_target_argument, awaited, confirm, target_argument, yes_option
from tsbus.cli.containers.pulling import Pulling
from tsbus.cli.containers.words import SHORT_ID, count, natural
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, timeout_option
from tsbus.cli.job import conclude, follow, waiting
from tsbus.cli.report import Ending, ending_of, exit_code, summary
from tsbus.cli.screen import columns
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import Progress, duration, safe, size
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold

if TYPE_CHECKING:
    from tsbus import Reply

MAX_NODES = 24
"""Characters that the names of the nodes may take in a narrow table, at least."""
PULL_S = 3600.0


class Row(msgspec.Struct, frozen=True):
    """An image of a node."""

    id: str
    names: list[str] = []
    digests: list[str] = []
    created_ns: int = 0
    size: int = 0
    containers: int = 0


@dataclass(slots=True)
class Group:
    """An image under one name, equal on several nodes."""

    name: str
    row: Row
    nodes: list[str] = field(default_factory=list)
    containers: int = 0


def grouped(rows: Mapping[str, Collection[Row]]) -> list[Group]:
    """Return the images of many nodes, each name and id once, sorted by name."""
    groups: dict[tuple[str, str], Group] = {}
    for node in sorted(rows, key=natural):
        for row in rows[node]:
            for name in row.names or ["<none>"]:
                group = groups.setdefault((name, row.id), Group(name, row))
                group.nodes.append(node)
                group.containers += max(row.containers, 0)
    return sorted(groups.values(), key=lambda group: (group.name == "<none>", natural(group.name), group.row.id))


_COLUMNS = (
    Column("IMAGE", least=20),
    Column("ID", spare=2),
    Column("CREATED", spare=1),
    Column("SIZE", right=True),
    Column("USED BY", right=True),
    Column("NODES", least=MAX_NODES),
)


def table_of(groups: Collection[Group], now_ns: int, width: int | None) -> list[str]:
    """Return the images as lines."""
    cells = [
        (
            safe(group.name),
            short(group.row.id),
            f"{duration(max(now_ns - group.row.created_ns, 0) / 1e9)} ago",
            size(group.row.size),
            str(group.containers),
            f"{len(group.nodes)}: {fold(group.nodes)}" if len(group.nodes) > 1 else group.nodes[0],
        )
        for group in groups
    ]
    return table(_COLUMNS, cells, width)


def short(image: str) -> str:
    """Return the short form of an image's id."""
    return safe(image.removeprefix("sha256:")[:SHORT_ID])


@click.command()
@any_target_argument
@click.option("-a", "--all", "show_all", is_flag=True, help="Also layers that are kept for building.")
@click.option("--no-trunc", "whole", is_flag=True, help="Cut nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only, each once.")
@json_option
@bus_option
@awaited
async def ls(target: str, show_all: bool, whole: bool, quiet: bool, as_json: bool, bus: str | None) -> int:
    """List the images of the tree; an image that several nodes have is one line.

    \b
    Examples:
      treescale image ls
      treescale image ls @web --json
    """
    rows: dict[str, list[Row]] = {}

    def take(reply: "Reply") -> None:
        rows[reply.node] = msgspec.convert(reply.json()["images"], list[Row])

    asked = await ask(bus, target, "images.ls", {"all": True} if show_all else b"", take)
    groups = grouped(rows)
    if as_json:
        for node in sorted(rows, key=natural):
            for row in rows[node]:
                click.echo(json.dumps({"node": node} | msgspec.to_builtins(row)))
    elif quiet:
        for image in dict.fromkeys(group.row.id for group in groups):
            click.echo(image if whole else short(image))
    else:
        click.echo(f"{count(len(rows), 'node')}, {count(len({group.row.id for group in groups}), 'image')}")
        if groups:
            click.echo("\n".join(["", *table_of(groups, time.time_ns(), None if whole else columns())]))
    return asked.finish(as_json)


@dataclass(slots=True)
class Asked:
    """How a question to many nodes ended."""

    endings: dict[str, Ending]
    seconds: float

    def finish(self, as_json: bool) -> int:
        """Tell who did not answer; returns the exit code."""
        with_monitor = monitored(self.endings)
        if as_json:
            click.echo(json.dumps(summary(self.endings, self.seconds)))
        else:
            for line in problems(with_monitor):
                click.echo(line, err=True)
        return exit_code([ending.outcome for ending in with_monitor.values()])


async def ask(
    bus: str | None, target: str, command: str, body: object, take: "Callable[[Reply], None]", timeout_s: float = 30.0
) -> Asked:
    """Ask the nodes of `target` for what one reply says; raises Fault when none of them has a monitor."""
    progress = Progress()
    async with connect(bus, "treescale-docker") as client:
        endings = await ask_nodes(client, target, command, body, take, timeout_s)
    monitored(endings)
    return Asked(endings, progress.elapsed_s)


def _password(ctx: click.Context, param: click.Parameter, wanted: bool) -> str:
    if not wanted:
        return ""
    if not ctx.params.get("username"):
        raise click.UsageError("--password-stdin needs --username.")
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise Fault("there is no password on standard input", Code.USAGE)
    return password


@click.command()
@target_argument
@click.argument("image", shell_complete=complete_image)
@click.option("--username", metavar="USER", is_eager=True, help="Who we are to the registry.")
@click.option("--password-stdin", "password", is_flag=True, callback=_password,
              help="Read the password from standard input, one line.")  # fmt: skip
@timeout_option(PULL_S)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@bus_option
@awaited
async def pull(
    target: str,
    image: str,
    username: str | None,
    password: str,
    timeout_s: float,
    quiet: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """Fetch an image onto all nodes of TARGET at once, and show how far each of them is.

    \b
    Examples:
      treescale image pull @web nginx:1.27
      treescale image pull '*' registry:5000/team/app --username bob --password-stdin < secret
    """
    if username and not password:
        raise click.UsageError("--username needs --password-stdin: a password on a command line can be seen by others.")
    body = {"image": image} | ({"username": username, "password": password} if username else {})
    return await _each(bus, target, "images.pull", body, as_json, timeout_s=timeout_s, quiet=quiet, shape=_pulled)


def _pulled(told: Mapping[str, Any]) -> str:
    return f"{safe(told['status'])} ({short(told['id'])})" if told.get("status") else short(told.get("id", ""))


async def _each(
    bus: str | None,
    target: str,
    command: str,
    body: Mapping[str, Any],
    as_json: bool,
    *,
    shape: Callable[[Mapping[str, Any]], str],
    timeout_s: float = ACT_S,
    quiet: bool = False,
    lenient: bool = False,
) -> int:
    """Let nodes do something with images, and print a line for what each says of it.

    `lenient`: a node without a monitor, and so without images, has done it.
    """
    endings: dict[str, Ending] = {}
    progress = Progress()
    async with (
        connect(bus, "treescale-image") as client,
        client.request(target, command, body, timeout_s=timeout_s) as call,
    ):
        nodes = await call.nodes()
        pulling = Pulling(len(nodes), quiet=quiet or as_json)

        def take(reply: "Reply") -> None:
            if pulling.takes(reply):
                return
            if reply.last:
                endings[reply.node] = ending_of(reply)
                pulling.ended(reply.node)
            progress.clear()
            if reply.status is Outcome.OK and reply.body:
                told = reply.json()
                click.echo(json.dumps({"node": reply.node} | told) if as_json else f"{reply.node}: {shape(told)}")

        async with waiting(progress, lambda: () if pulling.under_way else nodes - endings.keys(), len(nodes)):
            whole = await follow(call, take)
        if not whole:
            endings |= {node: Ending(Outcome.CANCELLED, "not confirmed") for node in nodes - endings.keys()}
    if whole:
        with_monitor = monitored(endings)
        endings = with_monitor if lenient else endings
    return code_of(whole, conclude(endings, progress.elapsed_s, as_json=as_json))


@click.command()
@target_argument
@click.argument("image", shell_complete=complete_image)
@click.argument("name")
@json_option
@bus_option
@awaited
async def tag(target: str, image: str, name: str, as_json: bool, bus: str | None) -> int:
    """Give IMAGE the further name NAME.

    \b
    Examples:
      treescale image tag @web team/app:1.4 team/app:live
    """
    return await _each(bus, target, "images.tag", {"image": image, "name": name}, as_json, shape=str)


@click.command()
@target_argument
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_image)
@click.option("-f", "--force", is_flag=True, help="Also with several names, or used by a container that has ended.")
@json_option
@bus_option
@awaited
async def rm(target: str, images: tuple[str, ...], force: bool, as_json: bool, bus: str | None) -> int:
    """Remove images from all nodes of TARGET. Takes the role admin.

    \b
    Examples:
      treescale image rm @web nginx:1.26
    """
    body = {"images": list(images), "force": force}
    return await _each(bus, target, "images.rm", body, as_json, shape=_removed, lenient=True)


def _removed(told: Mapping[str, Any]) -> str:
    parts = []
    for word in ("untagged", "removed"):
        names = [short(name) if name.startswith("sha256:") else safe(name) for name in told.get(word, ())]
        parts += [f"{word} {', '.join(names)}"] if names else []
    return "; ".join(parts)


@click.command()
@any_target_argument
@click.option("-a", "--all", "every", is_flag=True, help="All that no container uses, not only those without a name.")
@yes_option
@json_option
@bus_option
@awaited
async def prune(target: str, every: bool, yes: bool, as_json: bool, bus: str | None) -> int:
    """Remove images that no container uses: those without a name, with --all the others as well. Takes the role admin.

    \b
    Examples:
      treescale image prune
      treescale image prune @web --all --yes
    """
    which = "all images that no container uses" if every else "the images without a name that no container uses"
    confirm(f"Remove {which} on {target}?", yes=yes, needed=True)
    return await _each(bus, target, "images.prune", {"all": every}, as_json, shape=_pruned, lenient=True)


def _pruned(told: Mapping[str, Any]) -> str:
    return f"removed {count(len(told['removed']), 'image')}, freed {size(told['freed_bytes'])}"
