"""Main of the executor: reads options and the configuration, then runs the worker of service.py."""

import argparse
import os
import sys
from pathlib import Path

from tsbus.config import ConfigError, load
from tsbus.core.target import TargetError
from tsbus.executor.service import make_worker


def main() -> int:
    """Run the executor until a signal. Exit status 2: the configuration is not in order."""
    run_dir = os.environ.get("TREESCALE_RUN_DIR", "/run/treescale")
    parser = argparse.ArgumentParser(prog="ts_executor", description="The executor of a node.")
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
        worker = make_worker(tree, options.audit_dir, options.bus)
    except (ConfigError, TargetError) as error:
        print(f"ts_executor: {error}", file=sys.stderr)
        return 2
    worker.run()
    return 0
