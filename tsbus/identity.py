"""Who a local process or an operator is, and the role the configuration gives it (protocol 1.3 and 4.3).

The only file that asks the system's user and group databases for the router.
"""

import grp
import os
import pwd

from tsbus.config import Tree
from tsbus.core.roles import Role
from tsbus.peer import Conn, ConnKind


def role_of(tree: Tree, conn: Conn) -> Role:
    """Return the role of whoever is at the other end; NONE when nothing in the configuration gives one.

    The user that runs the router, and root, are ADMIN: they could replace the router anyway.
    """
    if conn.kind is ConnKind.TCP:
        operator = tree.operators.get(conn.name.removeprefix("operator:"))
        return operator.role if operator is not None and conn.name.startswith("operator:") else Role.NONE
    if conn.uid in (0, os.getuid()):
        return Role.ADMIN
    users = tree.policy_for(tree.current_node).users
    name, groups = names_of(conn.uid, conn.gid)
    granted = [users[key] for key in (name, str(conn.uid), *(f"@{group}" for group in groups)) if key in users]
    return max(granted, default=Role.NONE)


def names_of(uid: int, gid: int) -> tuple[str, frozenset[str]]:
    """Return a user's name ("" when it has none) and the names of all its groups."""
    try:
        name = pwd.getpwuid(uid).pw_name
        gids = os.getgrouplist(name, gid)
    except KeyError:
        name, gids = "", [gid]
    groups = set()
    for number in gids:
        try:
            groups.add(grp.getgrgid(number).gr_name)
        except KeyError:
            groups.add(str(number))
    return name, frozenset(groups)
