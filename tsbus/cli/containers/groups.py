"""Groups: which commands `treescale container`, `image` and `docker` have, and where they are."""

import click

from tsbus.cli.edge import EXIT_CODES
from tsbus.cli.lazy import LazyGroup

_HERE = "tsbus.cli.containers"
CONTAINER = {
    "ls": (f"{_HERE}.ls:ls", "List containers of the whole tree."),
    "ps": (f"{_HERE}.ls:ls", ""),
    "run": (f"{_HERE}.run:run_", "Make containers and start them."),
    "create": (f"{_HERE}.run:create", "Make containers without starting them."),
    "start": (f"{_HERE}.verbs:start", "Start containers."),
    "stop": (f"{_HERE}.verbs:stop", "Stop containers, by their stop signal first."),
    "restart": (f"{_HERE}.verbs:restart", "Stop containers and start them again."),
    "pause": (f"{_HERE}.verbs:pause", "Freeze containers."),
    "unpause": (f"{_HERE}.verbs:unpause", "Let frozen containers go on."),
    "kill": (f"{_HERE}.verbs:kill", "Send a signal to containers."),
    "rm": (f"{_HERE}.verbs:rm", "Remove containers."),
    "rename": (f"{_HERE}.verbs:rename", "Give a container another name."),
    "wait": (f"{_HERE}.verbs:wait", "Wait until containers have ended, or are healthy, running, removed."),
    "logs": (f"{_HERE}.logs:logs", "Show what containers wrote, of many nodes at once."),
    "exec": (f"{_HERE}.exec:exec_", "Run a program in a container."),
    "stats": (f"{_HERE}.stats:stats", "Show what containers use, live."),
    "top": (f"{_HERE}.inspect:top", "Show the processes in containers."),
    "inspect": (f"{_HERE}.inspect:inspect", "Show everything that the engine knows of containers."),
}
IMAGE = {
    "ls": (f"{_HERE}.images:ls", "List images of the whole tree, equal ones once."),
    "pull": (f"{_HERE}.images:pull", "Fetch an image onto nodes."),
    "tag": (f"{_HERE}.images:tag", "Give an image another name."),
    "rm": (f"{_HERE}.images:rm", "Remove images."),
    "prune": (f"{_HERE}.images:prune", "Remove images that no container uses."),
}
DOCKER = {
    "events": (f"{_HERE}.engines:events", "Watch what happens to containers, images and networks."),
    "info": (f"{_HERE}.engines:info", "Show what engines the nodes have, and which are down."),
    "df": (f"{_HERE}.engines:df", "Show the disk space that Docker takes."),
}


@click.group(cls=LazyGroup, table=CONTAINER, epilog=EXIT_CODES, no_args_is_help=True)
def container() -> None:
    """List, run and control containers on the nodes of the tree.

    Every command begins with its TARGET: the nodes where to look. A container is named by its name, its id or the
    beginning of one, and looked for on all nodes of the target.

    \b
    Examples:
      treescale container ls
      treescale container run @web nginx --name web --publish 8080:80
      treescale container logs @web web -f
      treescale container stop node1 web
    """


@click.group(cls=LazyGroup, table=IMAGE, epilog=EXIT_CODES, no_args_is_help=True)
def image() -> None:
    """List, pull and remove images on the nodes of the tree.

    \b
    Examples:
      treescale image ls
      treescale image pull @web nginx:1.27
    """


@click.group(cls=LazyGroup, table=DOCKER, epilog=EXIT_CODES, no_args_is_help=True)
def docker() -> None:
    """The Docker engines of the nodes: what happens there, which there are, what they take.

    \b
    Examples:
      treescale docker events @web --filter event=died
      treescale docker info
    """
