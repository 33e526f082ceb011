"""Groups: which commands `treescale lb` has, and where they are."""

import click

from tsbus.cli.edge import EXIT_CODES
from tsbus.cli.lazy import LazyGroup

_HERE = "tsbus.cli.lb"
LB = {
    "ls": (f"{_HERE}.ls:ls", "List the balancers of the whole tree."),
    "show": (f"{_HERE}.show:show", "Show balancers with their servers, and what is wrong."),
    "stats": (f"{_HERE}.stats:stats", "Show what balancers and servers have to do, once."),
    "watch": (f"{_HERE}.stats:watch", "Show what balancers and servers have to do, live."),
    "drain": (f"{_HERE}.orders:drain", "Give servers no new connections, and let the others end."),
    "undrain": (f"{_HERE}.orders:undrain", "Take a drain back."),
    "weight": (f"{_HERE}.orders:weight", "Set the weight of servers, or take it back."),
    "sync": (f"{_HERE}.check:sync", "Compare the kernel with what should be, now, and mend it."),
    "check": (f"{_HERE}.check:check", "Tell what is wrong with balancers and their hosts, and what mends it."),
    "why": (f"{_HERE}.why:why", "Follow a packet: why does an address answer, or not?"),
}


@click.group(cls=LazyGroup, table=LB, epilog=EXIT_CODES, no_args_is_help=True)
def lb() -> None:
    """The load balancers of the nodes: what they do, what is wrong, and how to take servers out.

    TARGET means nodes with balancers; where it may be left out, it is all of them. A server is named by its
    container's name, its id or the beginning of one, by its node, or by IP:PORT.

    \b
    Examples:
      treescale lb ls
      treescale lb show node1 -b web
      treescale lb drain '*' web3 --wait
      treescale lb why 10.0.0.1:443
    """
