"""Up: `treescale up`, the nodes of a tree file on this machine, each under its own supervisord.

tsbus.supervision does the work; this module waits until the tree stands, and tells.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.edge import Code, Fault, connect, json_option, run
from tsbus.cli.status import status as draw_tree
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import Progress, duration
from tsbus.config import Tree, load
from tsbus.errors import BusError
from tsbus.supervision import SupervisionError, control
from tsbus.supervision.local import LocalTree, NodeFolder, Outcome, default_run_dir, folders_in, stop

if TYPE_CHECKING:
    from tsbus.client import Client

UP_S = 30.0
"""A tree of real processes on a busy machine is up well within this."""
JOIN_S = 15.0
"""How long the programs of nodes that are up may take to join them; more is told, and no reason to fail."""
_COLUMNS = (
    Column("NODE"),
    Column("PROGRAM"),
    Column("STATE", style=lambda text: {"fg": "green" if text == "RUNNING" else "red"}),
    Column("NOTE"),
)
_LOOK_S = 0.5
"""How long to wait at most before looking again: some troubles show in no event."""


def _worker(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    workers = {}
    for value in values:
        name, equals, command = value.partition("=")
        if not (name and equals and command.strip()):
            raise click.BadParameter(f"{value!r}; write NAME=COMMAND", ctx, param)
        workers[name] = command
    return workers


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--node", "only", multiple=True, metavar="NAME", help="Only this node; may be given again.")
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="NAME=COMMAND",
    callback=_worker,
    help="Also keep a program of your own running on these nodes, in the current folder.",
)
@click.option("--down", is_flag=True, help="Stop all that was started, and wait for it.")
@click.option("--status", "show", is_flag=True, help="Show the processes of each node.")
@click.option(
    "--run-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for sockets, keys, configurations and logs, one folder a node [default: one of your own for FILE].",
)
@json_option
def up(
    file: Path,
    only: tuple[str, ...],
    workers: dict[str, str],
    down: bool,
    show: bool,
    run_dir: Path | None,
    as_json: bool,
) -> int:
    """Start every node of a tree file that has an address of this machine, and wait until the tree stands.

    Each node has a supervisord of its own, which starts again whatever ends. Keys are made where there are none. What
    runs already goes on: doing it again starts what is missing and follows changes of the file.

    \b
    Examples:
      treescale up tree.toml
      treescale up tree.toml --node web1 --worker greeter='python3 greeter.py'
      treescale up tree.toml --status
      treescale up tree.toml --down
    """
    folder = (run_dir or default_run_dir(file)).absolute()
    try:
        if down:
            return _down(folder, only, as_json)
        if show:
            return _show(folder, only, as_json)
        return _up(LocalTree(load(file), folder, only), workers, as_json)
    except SupervisionError as error:
        raise Fault(str(error), Code.USAGE) from error
    except OSError as error:
        if error.filename or not error.strerror or isinstance(error, BrokenPipeError):
            raise
        raise Fault(f"cannot write in {folder}: {error.strerror}") from error  # a full disk does not say where


def _up(tree: LocalTree, workers: dict[str, str], as_json: bool) -> int:
    if tree.elsewhere:
        click.echo("not on this machine: " + ", ".join(f"{each.name} ({each.ip})" for each in tree.elsewhere), err=True)
    began = time.monotonic()
    outcome = tree.start(workers)
    run(_wait_up(tree))
    _wait_workers(tree, workers)
    run(wait_joined(tree))
    seconds = time.monotonic() - began
    top = tree.folder(next(iter(tree.tops)))
    if as_json:
        buses = {node.name: str(node.files.bus) for node in tree.nodes}
        told = {"started": outcome.started, "changed": outcome.changed, "unchanged": outcome.unchanged}
        click.echo(json.dumps(told | {"run_dir": str(tree.run_dir), "buses": buses, "seconds": round(seconds, 3)}))
        return Code.OK
    click.echo(_summary(outcome, seconds), err=True)
    click.get_current_context().invoke(draw_tree, show_all=False, watch=False, as_json=False, bus=str(top.files.bus))
    click.echo(f"\nTalk to it, here as {top.name}:\n  export TREESCALE_BUS={top.files.bus}")
    dashboards = {node.name: tree.tree.dashboard_for(node.name) for node in tree.nodes}
    for name, dashboard in dashboards.items():
        if dashboard.enabled:
            click.echo(f"See it, from {name} down: {dashboard.url}")
    return Code.OK


def _summary(outcome: Outcome, seconds: float) -> str:
    if not outcome.started and not outcome.changed:
        return f"nothing to do: {len(outcome.unchanged)} nodes run already"
    parts = {"started": outcome.started, "changed": outcome.changed, "as before": outcome.unchanged}
    told = "; ".join(f"{word}: {', '.join(names)}" for word, names in parts.items() if names)
    return f"{told} (in {seconds:.1f} s)"


async def _wait_up(tree: LocalTree) -> int:
    """Wait until each topmost node sees all nodes below it. Raises Fault with what is wrong at UP_S."""
    progress = Progress(after_s=0.3)
    missing = {top: set(below) for top, below in tree.tops.items()}
    try:
        async with asyncio.timeout(UP_S), asyncio.TaskGroup() as group:
            for top in missing:
                group.create_task(_watch(tree.folder(top), "node.>", missing[top], _up_nodes, progress))
    except TimeoutError:
        names = [name for names in missing.values() for name in names]
        lines = [f"not up after {duration(UP_S)}, and left running: {', '.join(names)}"]
        lines += [f"{name}: {_trouble(tree.folder(name))}" for name in names]
        raise Fault("\n".join(lines), Code.UNREACHABLE) from None
    finally:
        progress.clear()
    return Code.OK


async def wait_joined(tree: LocalTree) -> int:
    """Wait until the nodes serve what they should, so that whatever is typed next finds it; tell what they do not."""
    progress = Progress(after_s=0.3)
    missing = {node: services_of(tree.tree, node.name) for node in tree.nodes}
    try:
        async with asyncio.timeout(JOIN_S), asyncio.TaskGroup() as group:
            for node, services in missing.items():
                group.create_task(_watch(node, "worker.>", services, _served, progress))
    except TimeoutError:
        progress.clear()
        for node, services in missing.items():
            if services:
                click.echo(f"{node.name}: nobody serves {', '.join(sorted(services))} yet: treescale check", err=True)
    finally:
        progress.clear()
    return Code.OK


def services_of(tree: Tree, node: str) -> set[str]:
    """Return one command of each program that a node has."""
    monitor = {"containers.snapshot"} if tree.docker_for(node).enabled else set()
    return {"exec.run", "process.stats"} | monitor | ({"lb.ls"} if tree.servers[node].balancers else set())


async def _up_nodes(client: "Client") -> set[str]:
    told = await client.call_one(client.node, "router.status")
    return {node["name"] for node in told["nodes"] if node["state"] == "up"}


async def _served(client: "Client") -> set[str]:
    told = await client.call_one(client.node, "router.stats")
    return {command for worker in told["workers"] for command in worker["services"]}


async def _watch(
    node: NodeFolder,
    changes: str,
    missing: set[str],
    there: "Callable[[Client], Awaitable[set[str]]]",
    progress: Progress,
) -> None:
    """Take from `missing` what is `there` by a node's router, at each of `changes`; return when nothing is left."""
    bus = str(node.files.bus)
    async with connect(bus, "treescale-up", timeout_s=UP_S) as client, client.subscribe(changes) as events:
        while True:
            try:
                missing -= await there(client)
            except BusError:  # the router starts anew
                await client.wait_connected()
                continue
            if not missing:
                return
            progress.show(f"waiting for {', '.join(sorted(missing))}")
            try:
                await events.next(_LOOK_S)
            except TimeoutError:
                continue


def _wait_workers(tree: LocalTree, workers: dict[str, str]) -> None:
    """Wait until supervisord has seen each worker last for a second. Raises Fault when one ends."""
    waiting = [(node, worker) for node in tree.nodes for worker in workers]
    while waiting:
        node, worker = waiting[0]
        state = next(program.state for program in node.programs() or () if program.name == worker)
        if state in ("BACKOFF", "FATAL", "EXITED"):
            raise Fault(f"{node.name}: {worker} does not stay, and is tried again: {node.last_words(worker)}")
        if state == "RUNNING":
            waiting.pop(0)
        else:
            time.sleep(_LOOK_S / 5)


def _trouble(node: NodeFolder) -> str:
    """Return why a node may not be up: its programs that do not run, or the last words of its router."""
    if not node.files.bus.exists():
        restart = f"supervisorctl -c {node.files.conf} restart router"
        return f"the socket of its router was removed, {node.files.bus}; do: {restart}"
    ill = [program for program in node.programs() or () if program.state != "RUNNING"]
    told = [f"{program.name} {program.state}: {node.last_words(program.name) or program.note}" for program in ill]
    return "; ".join(told) or f"its router runs, but its parent does not reach it; see {node.files.log_dir}/router.log"


def _down(run_dir: Path, only: tuple[str, ...], as_json: bool) -> int:
    progress = Progress(after_s=0.3)
    folders = folders_in(run_dir, only)
    progress.show(f"stopping {len(folders)} nodes")
    stopped = stop(folders)
    progress.clear()
    if as_json:
        click.echo(json.dumps({"stopped": stopped, "run_dir": str(run_dir)}))
    else:
        click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing to do: no node runs", err=True)
    return Code.OK


def _show(run_dir: Path, only: tuple[str, ...], as_json: bool) -> int:
    """Exit code 0: all runs; 4: something does not."""
    nodes: dict[str, list[control.Program] | None] = {}
    frozen: dict[str, str] = {}
    for node in folders_in(run_dir, only):
        try:
            nodes[node.name] = node.programs()
        except SupervisionError as error:  # the others are to be seen
            nodes[node.name], frozen[node.name] = None, str(error)
    if as_json:
        click.echo(json.dumps({name: _as_objects(programs) for name, programs in nodes.items()}))
    elif not nodes:
        click.echo(f"no node was started in {run_dir}", err=True)
    else:
        rows = [row for name, programs in nodes.items() for row in _rows(name, programs, frozen.get(name))]
        click.echo("\n".join(table(_COLUMNS, rows)))
    well = nodes and all(programs and all(each.state == "RUNNING" for each in programs) for programs in nodes.values())
    return Code.OK if well else Code.UNREACHABLE


def _as_objects(programs: list[control.Program] | None) -> list[dict[str, Any]] | None:
    if programs is None:
        return None
    return [{"name": each.name, "state": each.state, "pid": each.pid, "note": each.note} for each in programs]


def _rows(node: str, programs: list[control.Program] | None, trouble: str | None) -> list[tuple[str, str, str, str]]:
    if trouble:
        return [(node, "-", "FROZEN", trouble)]
    if programs is None:
        return [(node, "-", "DOWN", "its supervisord does not run; treescale up FILE starts it")]
    return [(node, each.name, each.state, each.note) for each in programs]
