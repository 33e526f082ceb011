"""Worker: `treescale worker`, programs of the user's own on this node. tsbus.supervision.workers does the work."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from tsbus.cli.edge import Code, Fault, json_option
from tsbus.cli.table import Column, table
from tsbus.supervision import SupervisionError
from tsbus.supervision.conf import SERVER_FILES
from tsbus.supervision.workers import Worker, Workers

_COLUMNS = (Column("NAME"), Column("STATE"), Column("PID", right=True), Column("COMMAND"))


def _of_node(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--conf`, and turn what goes wrong into one line."""

    @wraps(command)
    def wrapped(conf_file: Path, **options: Any) -> Any:
        if not conf_file.exists():
            raise Fault(
                f"no node here: there is no {conf_file}; treescale build makes it on servers, and with treescale up "
                "it is in the node's folder: name it with --conf",
                Code.USAGE,
            )
        try:
            return command(Workers(conf_file), **options)
        except SupervisionError as error:
            raise Fault(str(error), Code.USAGE) from error

    return click.option(
        "--conf",
        "conf_file",
        metavar="FILE",
        default=SERVER_FILES.conf,
        show_default=True,
        type=click.Path(path_type=Path),
        help="The node's supervisord.conf; with `treescale up`, that in the node's folder.",
    )(wrapped)


@click.group(no_args_is_help=True)
def worker() -> None:
    """Programs of your own that this node keeps running.

    supervisord starts them with the node, and again when they end. They find the bus by $TREESCALE_BUS; what they
    print goes to the node's log folder.

    \b
    Examples:
      treescale worker add greeter --user deploy -- python3 /srv/greeter.py
      treescale worker ls
    """


@worker.command()
@click.argument("name")
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--user", default="", metavar="USER", help="As whom; needed on a server, where supervisord is root.")
@click.option(
    "--cwd",
    metavar="DIR",
    default=".",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where it runs [default: the current folder].",
)
@click.option("--replace", is_flag=True, help="Take the place of a worker of this name.")
@_of_node
def add(workers: Workers, name: str, command: tuple[str, ...], user: str, cwd: Path, replace: bool) -> int:
    """Keep a program running, and wait until it has lasted a second. Doing it again changes nothing.

    \b
    Examples:
      treescale worker add greeter --user deploy -- /opt/treescale/current/bin/python /srv/greeter.py
      treescale worker add greeter --conf DIR/web1/supervisord.conf -- python3 greeter.py
    """
    is_new = workers.add(name, command, cwd.absolute(), user, replace=replace)
    if user and not workers.uses_bus(user):
        click.echo(f"{user} is not in the group treescale, and cannot use the bus", err=True)
    try:
        program = workers.wait_stays(name)
    except SupervisionError as error:
        raise Fault(str(error)) from error
    if program is None:
        click.echo(f"{workers.node}: {name} will start with the node, which does not run", err=True)
    else:
        click.echo(f"{workers.node}: {name} {'runs' if is_new else 'runs already'} (pid {program.pid})", err=True)
    return Code.OK


@worker.command()
@json_option
@_of_node
def ls(workers: Workers, as_json: bool) -> int:
    """List the workers of this node.

    \b
    Examples:
      treescale worker ls
      treescale worker ls --conf DIR/web1/supervisord.conf
    """
    found = list(map(_facts, workers.all()))
    if as_json:
        for facts in found:
            click.echo(json.dumps(facts))
    elif not found:
        click.echo(f"{workers.node} has no workers of your own", err=True)
    else:
        click.echo("\n".join(table(_COLUMNS, [[str(value or "-") for value in facts.values()] for facts in found])))
    return Code.OK


@worker.command()
@click.argument("name")
@_of_node
def remove(workers: Workers, name: str) -> int:
    """Stop a worker, and do not start it any more.

    \b
    Example:
      treescale worker remove greeter
    """
    workers.remove(name)
    click.echo(f"{workers.node}: {name} is gone", err=True)
    return Code.OK


def _facts(each: Worker) -> dict[str, Any]:
    state, pid = (each.program.state, each.program.pid) if each.program else (None, 0)
    return {"name": each.name, "state": state, "pid": pid, "command": each.command}
