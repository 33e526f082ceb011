"""Main of the balancer: reads options and the configuration, then runs the worker of service.py."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

from tsbus import BusError, connect
from tsbus.balancer.service import NAME, Service
from tsbus.config import ConfigError, load
from tsbus.log import setup

CONNECT_S: Final = 3600.0
"""A balancer that starts before its router waits this long for it."""


def main() -> int:
    """Run the balancer until a signal. Exit status 2: the configuration is not in order."""
    parser = argparse.ArgumentParser(prog="ts_balancer", description="The balancer of a node.")
    parser.add_argument("--config", default=os.environ.get("TREESCALE_CONFIG", "/etc/treescale/treescale.toml"))
    parser.add_argument("--node", help="this node's name; default: current_node in the configuration")
    parser.add_argument("--bus", help="the router's socket; default: $TREESCALE_BUS, else /run/treescale/bus")
    parser.add_argument(
        "--run-dir",
        default=os.environ.get("TREESCALE_RUN_DIR", "/run/treescale"),
        type=Path,
        help="where the state file is",
    )
    options = parser.parse_args()
    try:
        tree = load(options.config, current_node=options.node)
    except ConfigError as error:
        print(f"ts_balancer: {error}", file=sys.stderr)
        return 2
    if not tree.current_node:
        parser.error("the configuration has no current_node; give --node NAME")
    setup()
    try:
        asyncio.run(_serve(Service(tree, options.run_dir), options.bus))
    except BusError as error:
        print(f"ts_balancer: {error}", file=sys.stderr)
        return 1
    # Without waiting for the kernel's thread: a tool may hang, and the table stays in force anyway.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


async def _serve(service: Service, bus: str | None) -> None:
    task = asyncio.ensure_future(_connect_and_serve(service, bus))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def _connect_and_serve(service: Service, bus: str | None) -> None:
    async with connect(bus, name=NAME, timeout_s=CONNECT_S) as client:
        await service.serve(client)
