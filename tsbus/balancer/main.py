"""Main of the balancer: reads options and the configuration, then runs the worker of service.py."""

import os
import sys
from pathlib import Path

from tsbus.balancer.clear import clear
from tsbus.balancer.machine import MachineError, Unusable
from tsbus.balancer.service import NAME, Service
from tsbus.balancer.statefile import StateError
from tsbus.balancer.steps import words
from tsbus.config import Tree
from tsbus.starting import RUN_DIR, load_tree, parser_of, run_service


def main() -> int:
    """Run the balancer until a signal, or clear the kernel. Exit status 2: the configuration is not in order."""
    parser = parser_of("ts_balancer", "The balancer of a node.")
    parser.add_argument(
        "--run-dir",
        default=os.environ.get("TREESCALE_RUN_DIR", RUN_DIR),
        type=Path,
        help="where the state file is",
    )
    parser.add_argument(
        "--clear",
        action="store_true",
        help="take everything of this node's balancers out of the kernel, and end; the balancer must not run",
    )
    options = parser.parse_args()
    tree = load_tree(parser, options)
    if options.clear:
        return _clear(parser.prog, tree, options.run_dir)
    return run_service(parser.prog, NAME, Service(tree, options.run_dir).serve, options.bus)


def _clear(program: str, tree: Tree, run_dir: Path) -> int:
    try:
        carried = clear(tree, run_dir)
    except (MachineError, StateError, Unusable) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    for change in (*map(words, carried.steps), *carried.changes):
        print(change)
    for _, problem in carried.problems:
        print(f"{program}: {problem.text}: {problem.mend}", file=sys.stderr)
    return 1 if carried.problems else 0
