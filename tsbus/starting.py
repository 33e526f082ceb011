"""Starting: what the mains of a node's services share: options, the configuration, and a run until a signal."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

from tsbus.client import Client, connect
from tsbus.config import ConfigError, Tree, load
from tsbus.errors import BusError
from tsbus.log import setup
from tsbus.worker import CONNECT_S

RUN_DIR: Final = "/run/treescale"


def parser_of(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every service: `--config`, `--node`, `--bus`."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", default=os.environ.get("TREESCALE_CONFIG", "/etc/treescale/treescale.toml"))
    parser.add_argument("--node", help="this node's name; default: current_node in the configuration")
    parser.add_argument("--bus", help="the router's socket; default: $TREESCALE_BUS, else /run/treescale/bus")
    return parser


def add_audit_dir(parser: argparse.ArgumentParser) -> None:
    """Add `--audit-dir`, for services that write an audit log."""
    parser.add_argument(
        "--audit-dir",
        default=os.environ.get("TREESCALE_LOG_DIR", os.environ.get("TREESCALE_RUN_DIR", RUN_DIR)),
        type=Path,
        help="where the audit log goes unless the configuration names a file",
    )


def load_tree(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Tree:
    """Return this node's configuration. Exits with status 2 and a message where it is not in order."""
    try:
        tree = load(options.config, current_node=options.node)
    except ConfigError as error:
        refuse(parser, error)
    if not tree.current_node:
        parser.error("the configuration has no current_node; give --node NAME")
    return tree


def refuse(parser: argparse.ArgumentParser, error: Exception) -> NoReturn:
    """Exit with status 2 and `error`, without the usage: the options are in order, what they name is not."""
    parser.exit(2, f"{parser.prog}: {error}\n")


def run_service(program: str, name: str, serve: Callable[[Client], Awaitable[None]], bus: str | None) -> int:
    """Let `serve` work with a client called `name` until a signal. Returns 1 with a message if the router refuses it.

    Otherwise the process ends here, without waiting for threads in which an engine or a tool has not answered yet.
    """
    setup()
    try:
        asyncio.run(_until_signal(name, serve, bus))
    except BusError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


async def _until_signal(name: str, serve: Callable[[Client], Awaitable[None]], bus: str | None) -> None:
    async def work() -> None:
        async with connect(bus, name=name, timeout_s=CONNECT_S) as client:
            await serve(client)

    task = asyncio.create_task(work())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
