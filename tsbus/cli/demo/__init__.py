"""Demo: `treescale demo`, a tree of seven real nodes on this machine, shown with the commands that anybody would use.

nodes.py, containers.py, balancing.py and board.py are the parts of the show, stage.py is what they stand on,
borrowed.py the machine's Docker engine. At the end, however it comes, no process, no file, no container, no image and
no rule in the kernel of ours is left.
"""

import contextlib
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import click

from tsbus.blocking import connect_blocking
from tsbus.cli.demo import balancing, containers, nodes
from tsbus.cli.demo.board import Board
from tsbus.cli.demo.borrowed import Borrowed
from tsbus.cli.demo.stage import Stage, say
from tsbus.cli.edge import Code, Fault

__all__ = ["demo"]


@click.command()
@click.option("--once", is_flag=True, help="End after the show instead of staying up.")
def demo(once: bool) -> int:
    """Show a living tree: seven nodes in three levels, events, commands, containers and a balancer, deaths, a worker,
    a dashboard.

    It prints each command that it runs; repeat them in another terminal while it stays up. Ctrl-C ends it and removes
    everything. Containers are shown where there is a Docker engine that you may use.

    \b
    Example:
      treescale demo --once
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="treescale-demo-"))
    stage = Stage(folder / "tree.toml")
    docker = Borrowed(secrets.token_hex(2), containers.NODES)
    board = Board()
    try:
        _show(stage, docker)
        board.show(stage)
        if not once:
            say("\nThe tree stays up: try it in another terminal, with the export lines of part 1. Ctrl-C ends it.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
            click.echo()
    except Fault:
        stage.tell_logs()
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            board.stop()
            stage.stop()
            balancing.remove(stage)
            stage.remove()
            shutil.rmtree(folder)
        finally:
            docker.remove()  # last, when no node can carry out an order any more
        say("\nAll nodes are stopped; what was made for them is removed.")
    return Code.OK


def _show(stage: Stage, docker: Borrowed) -> None:
    """Show all of it. Raises Fault when something does not go as told."""
    docker.find()
    special: dict[str, dict[str, Any]] = {node: {"docker": policy} for node, policy in docker.policies.items()}
    if not balancing.possible(docker):
        special[balancing.NODE] |= balancing.KEYS
    nodes.come_up(stage, special)
    with connect_blocking(stage.bus("root"), name="demo") as bus:
        nodes.send_event(stage)
        nodes.run_command(stage)
        containers.show(stage, bus, docker)
        balancing.show(stage, bus, docker)
        nodes.kill_node(stage, bus)
        nodes.kill_process(stage, bus)
        nodes.plug_in_worker(stage)
