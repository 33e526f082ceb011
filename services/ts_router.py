#!/usr/bin/env python3
"""The router of a node: what supervisord starts first (DESIGN section 4)."""

import argparse
import os
import sys
from pathlib import Path

from tsbus import log
from tsbus.config import ConfigError, Tree, load
from tsbus.loop import RouterProcess
from tsbus.transport import TransportError, read_secret


def main() -> int:
    """Run the router until a signal. Exit status 2: the configuration, the key or the sockets are not in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=os.environ.get("TREESCALE_CONFIG", "/etc/treescale/treescale.toml"))
    parser.add_argument("--node", help="this node's name; default: current_node in the configuration")
    parser.add_argument("--key", default=os.environ.get("TREESCALE_KEY"), help="file with this node's secret key")
    parser.add_argument("--run-dir", default=os.environ.get("TREESCALE_RUN_DIR", "/run/treescale"), type=Path)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args()
    log.setup(options.log_level)

    def load_tree() -> Tree:
        return load(options.config, current_node=options.node)

    try:
        tree = load_tree()
        if not tree.current_node:
            parser.error("the configuration has no current_node; give --node NAME")
        secret = read_secret(options.key) if options.key else None
        process = RouterProcess(tree, secret, options.run_dir, load_tree)
    except (ConfigError, TransportError) as error:
        print(f"ts_router: {error}", file=sys.stderr)
        return 2
    process.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
