"""Main of the executor: reads options and the configuration, then runs the worker of service.py."""

from tsbus.core.target import TargetError
from tsbus.executor.service import make_worker
from tsbus.starting import add_audit_dir, load_tree, parser_of, refuse


def main() -> int:
    """Run the executor until a signal. Exit status 2: the configuration is not in order."""
    parser = parser_of("ts_executor", "The executor of a node.")
    add_audit_dir(parser)
    parser.add_argument("--user", default="", help="as whom programs run where neither caller nor configuration says")
    options = parser.parse_args()
    try:
        worker = make_worker(load_tree(parser, options), options.audit_dir, options.bus, options.user)
    except TargetError as error:
        refuse(parser, error)
    worker.run()
    return 0
