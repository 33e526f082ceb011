"""Following: lets the processes of a server follow files that a build has written, and ends nothing that need not end.

The installer runs this, with the Python of the release in use:

    python -m tsbus.supervision.following READ

READ is the tree that the processes have read; where that is not known, there is no such file. incoming.py decides.
"""

import configparser
import sys
from collections.abc import Collection
from pathlib import Path

from tsbus.config import ConfigError, Tree, load
from tsbus.supervision import SupervisionError
from tsbus.supervision.conf import SERVER_FILES
from tsbus.supervision.control import READERS, Supervisord
from tsbus.supervision.incoming import restarts


def outdated(read: Path, tree: Tree) -> Collection[str]:
    """Return the services that must start anew to follow `tree`; `read` has the one that they have read."""
    try:
        return restarts(load(read), tree, tree.current_node)
    except ConfigError:  # it is not known what they have read
        return READERS


def follow(read: Path) -> None:
    """Let supervisord follow its file, and the programs the tree. Who was stopped by hand stays so.

    Raises SupervisionError, ConfigError.
    """
    files = SERVER_FILES
    parser = configparser.RawConfigParser()
    parser.read(files.conf)
    tree = load(files.config)
    supervisord = Supervisord(files, parser["unix_http_server"]["password"])
    stopped = {each.name for each in supervisord.programs() or () if each.state == "STOPPED"}
    anew = supervisord.follow_conf()
    supervisord.stop(anew & stopped)
    supervisord.follow_tree({"router", *outdated(read, tree)} - anew)


if __name__ == "__main__":
    try:
        follow(Path(sys.argv[1]))
    except (SupervisionError, ConfigError) as error:
        sys.exit(str(error))
