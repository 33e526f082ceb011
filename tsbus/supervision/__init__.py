"""Supervision: the supervisord of a node, its programs, and what it tells about them. The only home of supervisor.

conf.py writes its configuration and states.py reads its events (both pure); control.py talks to it, local.py prepares
and starts the nodes of a tree file on this machine (`treescale up`), workers.py adds programs of the user's own.
listener.py puts process events on the bus, and in the same process node.py takes a new tree from it: incoming.py, which
is pure, says whether, and who has to know. following.py does the same for files that a build has written.
"""


class SupervisionError(Exception):
    """A node cannot be prepared, started or stopped; the text says what, where and how to mend it."""
