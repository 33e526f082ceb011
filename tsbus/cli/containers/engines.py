"""Engines: `treescale docker events`, `info` and `df`."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli import eventlines
from tsbus.cli.containers.images import ask
from tsbus.cli.containers.ls import down
from tsbus.cli.containers.options import ASK_S, any_target_argument, awaited
from tsbus.cli.containers.words import natural
from tsbus.cli.edge import bus_option, json_option
from tsbus.cli.screen import columns as wide
from tsbus.cli.sub import Printer, Wanted, count_option, follow, timeout_option
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import duration, safe, size
from tsbus.records import EngineFacts

if TYPE_CHECKING:
    from tsbus import Event, Reply

PATTERNS = ("container.>", "image.>", "network.>", "docker.>")
KEYS = ("type", "event", "container", "image", "label", "node")


def _filters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if key not in KEYS or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE with a key of {', '.join(KEYS)}", ctx, param)
        filters.setdefault(key, []).append(text)
    return filters


def accepting(filters: Mapping[str, Sequence[str]]) -> "Callable[[Event], bool]":
    """Return what tells whether an event is wanted: any value of a key, and all keys."""

    def accepts(event: "Event") -> bool:
        kind, _, action = event.topic.partition(".")
        try:
            facts = msgspec.json.decode(event.body)
        except msgspec.DecodeError:
            return False
        return all(
            any(_fits(key, value, kind, action, event.origin, facts) for value in values)
            for key, values in filters.items()
        )

    return accepts


def _fits(key: str, value: str, kind: str, action: str, node: str, facts: Any) -> bool:
    container = facts.get("container") if kind == "container" else None
    match key:
        case "type":
            return kind == value
        case "event":
            return action == value
        case "node":
            return fnmatchcase(node, value)
        case "image" if kind == "image":
            return value in (facts.get("name", ""), facts.get("name", "").partition(":")[0])
        case "container" if kind == "network":
            return bool(value) and facts.get("container", "").startswith(value)
    if not isinstance(container, dict):
        return False
    if key == "container":
        return fnmatchcase(container["name"], value) or (bool(value) and container["id"].startswith(value))
    if key == "image":
        image = container["image"]
        return value in (image["given"], image.get("repo"), f"{image.get('repo')}:{image.get('tag')}")
    name, equals, text = value.partition("=")
    labels = container.get("labels", {})
    return name in labels and (not equals or labels[name] == text)


@click.command()
@any_target_argument
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", callback=_filters,
              help="Only what matches: type=container, event=died, container=web*, image=nginx, label=a=b, "
              "node=web*.")  # fmt: skip
@count_option
@timeout_option
@json_option
@bus_option
@awaited
async def events(
    target: str,
    filters: dict[str, list[str]],
    count: int | None,
    timeout_s: float | None,
    as_json: bool,
    bus: str | None,
) -> int:
    """Watch what happens to containers, images, networks and the engines themselves, as it happens.

    \b
    Examples:
      treescale docker events
      treescale docker events @web --filter event=died --filter event=oom
      treescale docker events --filter container=web --count 1 --timeout 60
    """
    accepts = accepting(filters) if filters else None
    origins = None if target == "*" else target
    wanted = Wanted(bus, PATTERNS, origins=origins, count=count, timeout_s=timeout_s, accepts=accepts)
    line = eventlines.as_json if as_json else eventlines.told
    return await follow(wanted, "treescale-docker-events", lambda gate: Printer(gate, line))


class _Info(msgspec.Struct, frozen=True):
    engine: EngineFacts
    containers: int = 0
    running: int = 0
    images: int = 0
    driver: str = ""
    warnings: list[str] = []


_INFO = (
    Column("NODE", least=10),
    Column("ENGINE"),
    Column("UP", style=lambda text: {"fg": "red"} if text == "DOWN" else {}),
    Column("RUNNING", right=True),
    Column("IMAGES", right=True),
    Column("CPUS", right=True, spare=3),
    Column("MEMORY", right=True, spare=3),
    Column("DRIVER", spare=2),
    Column("CGROUP", spare=2),
    Column("API", spare=4),
    Column("OS", least=6, spare=5),
)


@click.command()
@any_target_argument
@json_option
@bus_option
@awaited
async def info(target: str, as_json: bool, bus: str | None) -> int:
    """Show the engine of every node: version, counts, what it runs on, and why it cannot be reached.

    An engine that is down counts as failed in the exit code.

    \b
    Examples:
      treescale docker info
    """
    told: dict[str, _Info] = {}

    def take(reply: "Reply") -> None:
        told[reply.node] = msgspec.json.decode(reply.body, type=_Info)

    asked = await ask(bus, target, "docker.info", b"", take, ASK_S)
    now_ns = time.time_ns()
    asked.endings |= {node: down(one.engine, now_ns) for node, one in told.items() if not one.engine.up}
    nodes = sorted(told, key=natural)
    if as_json:
        for node in nodes:
            click.echo(json.dumps({"node": node} | msgspec.to_builtins(told[node])))
        return asked.finish(as_json)
    click.echo("\n".join(table(_INFO, [_info_row(node, told[node], now_ns) for node in nodes], wide())))
    if notes := [f"{node}: {safe(text)}" for node in nodes for text in told[node].warnings]:
        click.echo("\n".join(["", *notes]))
    return asked.finish(as_json)


def _info_row(node: str, told: _Info, now_ns: int) -> tuple[str, ...]:
    engine = told.engine
    if not engine.up:
        return (node, safe(f"{engine.name} {engine.version}".strip()) or "?", "DOWN", *("?",) * (len(_INFO) - 3))
    return (
        node,
        safe(f"{engine.name} {engine.version}"),
        duration(max(now_ns - engine.since_ns, 0) / 1e9) if engine.since_ns else "?",
        f"{told.running} of {told.containers}",
        str(told.images),
        str(engine.cpus or "?"),
        size(engine.memory) if engine.memory else "?",
        safe(told.driver) or "?",
        safe(engine.cgroup) or "?",
        safe(engine.api) or "?",
        safe(engine.os) or "?",
    )


_KINDS = ("images", "containers", "volumes", "cache")
_USAGE = (
    Column("NODE", least=10),
    *(Column(kind.upper(), right=True, spare=place) for place, kind in enumerate(_KINDS)),
    Column("TO FREE"),
)


@click.command()
@any_target_argument
@json_option
@bus_option
@awaited
async def df(target: str, as_json: bool, bus: str | None) -> int:
    """Show the disk space that images, containers, volumes and build caches take, and what could be freed.

    \b
    Examples:
      treescale docker df
      treescale docker df node1 --json
    """
    told: dict[str, dict[str, dict[str, int]]] = {}

    def take(reply: "Reply") -> None:
        told[reply.node] = reply.json()

    asked = await ask(bus, target, "docker.df", b"", take, 120.0)
    nodes = sorted(told, key=natural)
    if as_json:
        for node in nodes:
            click.echo(json.dumps({"node": node} | told[node]))
        return asked.finish(as_json)
    totals = {
        kind: {key: sum(told[node][kind][key] for node in nodes) for key in ("count", "active", "bytes", "reclaimable")}
        for kind in _KINDS
    }
    rows = [_df_row(node, told[node]) for node in nodes]
    if len(nodes) > 1:
        rows.append(_df_row("all", totals))
    click.echo("\n".join(table(_USAGE, rows, wide())))
    return asked.finish(as_json)


def _df_row(node: str, told: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    free = sum(told[kind]["reclaimable"] for kind in _KINDS)
    total = sum(told[kind]["bytes"] for kind in _KINDS)
    share = f" ({free * 100 / total:.0f} %)" if total else ""
    cells = (f"{size(told[kind]['bytes'])} in {told[kind]['count']}" for kind in _KINDS)
    return (node, *cells, f"{size(free)}{share}")
