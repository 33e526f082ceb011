"""Main of the container monitor: reads options and the configuration, then runs the workers of service.py."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

from tsbus import BusError, connect
from tsbus.config import ConfigError, load
from tsbus.containers.engine import EngineError
from tsbus.containers.service import Service
from tsbus.log import setup

CONNECT_S: Final = 3600.0
"""A monitor that starts before its router waits this long for it."""


def main() -> int:
    """Run the container monitor until a signal. Exit status 2: the configuration is not in order."""
    run_dir = os.environ.get("TREESCALE_RUN_DIR", "/run/treescale")
    parser = argparse.ArgumentParser(prog="ts_docker", description="The container monitor of a node.")
    parser.add_argument("--config", default=os.environ.get("TREESCALE_CONFIG", "/etc/treescale/treescale.toml"))
    parser.add_argument("--node", help="this node's name; default: current_node in the configuration")
    parser.add_argument("--bus", help="the router's socket; default: $TREESCALE_BUS, else /run/treescale/bus")
    parser.add_argument(
        "--audit-dir",
        default=os.environ.get("TREESCALE_LOG_DIR", run_dir),
        type=Path,
        help="where the audit log goes unless the configuration names a file",
    )
    options = parser.parse_args()
    try:
        tree = load(options.config, current_node=options.node)
        if not tree.current_node:
            parser.error("the configuration has no current_node; give --node NAME")
        service = Service(tree, options.audit_dir)
    except (ConfigError, EngineError) as error:
        print(f"ts_docker: {error}", file=sys.stderr)
        return 2
    setup()
    try:
        asyncio.run(_serve(service, options.bus))
    except BusError as error:
        print(f"ts_docker: {error}", file=sys.stderr)
        return 1
    # Without waiting for threads in which the engine has not answered yet: a stop may take minutes.
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
    async with connect(bus, name="containers", timeout_s=CONNECT_S) as client:
        await service.serve(client)
