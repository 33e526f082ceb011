"""Copies: what a node has of the tree, as the console and the node itself must say it alike. Pure.

The copies of a tree differ in one line, `current_node`. In the shared text it is ".", as a target says "this node": the
console sends that to all, and each node makes its own copy of it (docs/build.md, Configuration from the bus). Files
are compared by their SHA-256.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from tsbus.config import Tree, dump

_SHARED_LINE: Final = 'current_node = "."\n'


class Copies:
    """The copies of all servers of a tree, with the public keys of all that have one."""

    def __init__(
        self, tree: Tree, keys: Mapping[str, str], other_keys: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`keys` and `other_keys`, node -> public key, go before those of the tree's file; "" is no key."""
        servers = {
            name: replace(
                each,
                public_key=keys.get(name, each.public_key),
                other_public_key=other_keys.get(name, each.other_public_key),
            )
            for name, each in tree.servers.items()
        }
        self.shared: Final = dump(replace(tree, servers=servers, current_node="."))
        """The text for all nodes: made once, because writing a tree of 1,000 servers takes a second."""

    @property
    def sealed(self) -> dict[str, str]:
        """The shared text as `node.config` takes it from a program: the half of one is not taken for a tree."""
        return {"tree": self.shared, "sha256": digest(self.shared)}

    def text(self, name: str) -> str:
        """Return the copy of one server."""
        return own_copy(self.shared, name)


def own_copy(shared: str, name: str) -> str:
    """Return the copy of one server, from the shared text. Raises ValueError when it is none."""
    before, line, after = shared.partition(_SHARED_LINE)
    if not line:
        raise ValueError(f"it has no line {_SHARED_LINE.rstrip()}, in whose place each node puts its own name")
    return f'{before}current_node = "{name}"\n{after}'


def digest(text: str) -> str:
    """Return the SHA-256 of a text, as `sha256sum` says it of its file."""
    return hashlib.sha256(text.encode()).hexdigest()


_OWN_LINES: Final = re.compile(r"^(password=|environment=SUPERVISOR_PASSWORD=).*$", re.MULTILINE)


def supervisor_digest(text: str) -> str:
    """Return the SHA-256 of a supervisord.conf without its password, which each node makes itself, like probe.sh."""
    return digest(_OWN_LINES.sub(r"\1", text))
