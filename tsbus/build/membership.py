"""Membership: nodes that come into a tree that stands, and nodes that leave it.

Over SSH only the new ones and their parents are touched, or those that leave. All others get the new tree over the bus,
and keep every link that stays.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from tsbus.build import jobs
from tsbus.build.bus import tell_tree
from tsbus.build.campaign import Campaign
from tsbus.build.reports import Noted, Report
from tsbus.build.run import Options
from tsbus.build.ssh import ServerTrouble
from tsbus.build.store import Store
from tsbus.build.uninstall import Uninstall
from tsbus.config import Console, Server, Tree
from tsbus.copies import Copies
from tsbus.core.target import fold

DRAIN_S: Final = 300.0
"""How long the balancers may take to end the connections to nodes that leave."""


def with_parents(tree: Tree, names: Collection[str]) -> tuple[str, ...]:
    """Return nodes and their parents, in the tree's order: whom an addition touches over SSH."""
    topology = tree.topology()
    parents = {topology.parent(name) for name in names}
    return tuple(name for name in topology.names if name in names or name in parents)


class Add(Campaign):
    """A run that makes nodes of new servers; `options.names` are these and their parents."""

    def look_after(self, others: Collection[str]) -> Iterator[Report]:
        """Let the others have the tree."""
        yield from tell_tree(self, others, Copies(self.tree, self.valid_keys))


class Remove(Uninstall):
    """A run that takes servers out of a tree whose file does not have them any more; `options.names` are these."""

    def __init__(
        self, tree: Tree, console: Console, options: Options, store: Store, supervisors: Mapping[str, str]
    ) -> None:
        """All as for a campaign. Raises StoreError."""
        self.staying = tree
        # Those that leave have no place in the tree any more; to be looked at they need one.
        root = tree.servers[tree.topology().root]
        gone = {name: Server(name, console.ssh[name].host, 1) for name in options.names}
        servers = {**tree.servers, root.name: replace(root, childs=(*root.childs, *gone)), **gone}
        super().__init__(replace(tree, servers=servers), console, options, store,
                         {**supervisors, **dict.fromkeys(gone, "")})  # fmt: skip

    def apply(self) -> Iterator[Report]:
        """Drain them, let the others have the tree without them, which cuts them off, then take away what was built.

        One that cannot be reached is cut off all the same. Raises StoreError.
        """
        try:
            yield from self.take_lock()
            if self.holder:
                return
            yield from self._drain()
            self.keys = {name: key for name, key in self.keys.items() if name not in self.names}
            yield from tell_tree(self, tuple(self.keys), Copies(self.staying, self.valid_keys))
            self.store.save_keys(self.keys)
            yield from self.clean()
        finally:
            self.close()

    def _drain(self) -> Iterator[Report]:
        """Let no balancer send anybody there any more, and wait until nobody is left."""
        if not any(server.balancers for server in self.staying.servers.values()):
            return
        log = partial(self.transcripts.add, self.topology.root)
        words = ["lb", "drain", "*", *self.names, "--wait", "--json"]
        try:
            done = self.at_root(lambda session: jobs.treescale(session, words, log, limit_s=DRAIN_S, check=False))
        except ServerTrouble as error:
            yield Noted("", f"no balancer was told that {fold(self.names)} leaves: {error.trouble.text}")
        else:
            # 2: no balancer has such a server.
            if done.status not in (0, 2):
                yield Noted("", f"not all connections to {fold(self.names)} came to an end")
