"""Main of the balancer: reads options and the configuration, then runs the worker of service.py."""

import os
from pathlib import Path

from tsbus.balancer.service import NAME, Service
from tsbus.starting import RUN_DIR, load_tree, parser_of, run_service


def main() -> int:
    """Run the balancer until a signal. Exit status 2: the configuration is not in order."""
    parser = parser_of("ts_balancer", "The balancer of a node.")
    parser.add_argument(
        "--run-dir",
        default=os.environ.get("TREESCALE_RUN_DIR", RUN_DIR),
        type=Path,
        help="where the state file is",
    )
    options = parser.parse_args()
    service = Service(load_tree(parser, options), options.run_dir)
    return run_service(parser.prog, NAME, service.serve, options.bus)
