"""Main of the container monitor: reads options and the configuration, then runs the workers of service.py."""

from tsbus.containers.engine import EngineError
from tsbus.containers.service import Service
from tsbus.starting import add_audit_dir, load_tree, parser_of, refuse, run_service


def main() -> int:
    """Run the container monitor until a signal. Exit status 2: the configuration is not in order."""
    parser = parser_of("ts_docker", "The container monitor of a node.")
    add_audit_dir(parser)
    options = parser.parse_args()
    try:
        service = Service(load_tree(parser, options), options.audit_dir)
    except EngineError as error:
        refuse(parser, error)
    return run_service(parser.prog, "containers", service.serve, options.bus)
