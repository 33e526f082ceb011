"""Members: who takes part in one balancer at a moment, with address and base weight. Pure."""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Final, NamedTuple

from tsbus.balancer.life import ServerId
from tsbus.balancer.match import RUNNING, LeftOut, best_key, client_port, match, place
from tsbus.balancer.report import Missing
from tsbus.balancer.sight import Changed, Seen
from tsbus.balancer.table import IP, Address
from tsbus.balancer.world import NodeView, World
from tsbus.config import Balancer, Tree
from tsbus.records import Container, Image

NOWHERE: Final = NodeView()
"""A node that nothing is known of."""
MAX_IMAGES: Final = 4096
"""For so many images it is remembered which key fits."""


class Candidate(NamedTuple):
    """Somebody who takes part."""

    id: ServerId
    name: str
    node: str
    base: int
    rule: str
    record: Container | None = None
    """Of a container."""
    capacity: float | None = None
    """What the node says is alive behind it."""
    awaited: bool = False
    """The node has a balancer there, and has not told yet what is alive behind it."""


class Members:
    """Finds the members of one balancer of `node`."""

    def __init__(
        self,
        node: str,
        balancer: Balancer,
        nodes: Collection[str],
        servers: Mapping[str, Collection[str]],
        tree: Tree,
    ) -> None:
        """`nodes`: whose containers may take part; `servers`: the nodes that each key of the balancer's names."""
        self._node, self._balancer, self.nodes, self._servers, self._tree = node, balancer, nodes, servers, tree
        self._listens, self._keeps_port = balancer.listens, balancer.keeps_port
        self.others = {*nodes, *(name for names in servers.values() for name in names)} - {node}
        self._known: dict[str, tuple[Container, NodeView, Candidate | Missing]] = {}
        """By id: the record of a container that takes part or was meant to, its node as it was then, and what it is."""
        self._keys: dict[Image, tuple[str, str] | None] = {}
        """The key that fits an image best; many containers have the same."""

    def update(self, world: World, changed: Changed) -> bool:
        """Look at the containers that have changed; tell whether that changes who takes part."""
        before = self._known.keys() & changed.ids
        for id_ in before:
            del self._known[id_]
        fitting = (some for image, some in changed.by_image.items() if self._key(image) is not None)
        for seen in chain(changed.labelled, *fitting):
            self._take(seen, world)
        return bool(before) or not self._known.keys().isdisjoint(changed.ids)

    def relook(self, world: World) -> None:
        """Look again at the containers of nodes whose addresses have changed."""
        for id_, (record, view, found) in list(self._known.items()):
            now = world.nodes.get(found.node, NOWHERE)
            if now.ips != view.ips:
                del self._known[id_]
                self._take(Seen(id_, found.node, record), world)

    def find(self, world: World) -> tuple[dict[ServerId, Candidate], list[Missing]]:
        """Return who takes part, and who was meant to and cannot."""
        found: dict[ServerId, Candidate] = {}
        left_out: list[Missing] = []
        taken: dict[Address, Candidate] = {}
        for each in (*self._named(world), *self._containers(world)):
            if isinstance(each, Missing):
                left_out.append(each)
            elif why := self._unreachable(each.id.address):
                left_out.append(Missing(each.name, each.node, why))
            elif (other := taken.setdefault(each.id.address, each)) is each:
                found[each.id] = each
            elif other.id != each.id:
                reason = f"{each.id.address} takes part already, as {other.name}"
                left_out.append(Missing(each.name, each.node, reason))
        return found, left_out

    def _unreachable(self, address: Address) -> str:
        """Return why the kernel would not get a connection to this address, or ''."""
        if any(each.covers(str(address.ip), address.port or each.first) for each in self._listens):
            return f"{address} is the balancer's own address"
        if self._keeps_port and address.port not in (0, client_port(self._balancer)):
            return f"its port is {address.port}, and the kernel leaves the one that the client came to"
        return ""

    def silent(self, world: World) -> set[str]:
        """Return the nodes below that are up and have not told yet what the balancer needs to know of them."""
        up = {name for name, view in world.nodes.items() if view.up and name != self._node}
        silent = {name for name in up & set(self.nodes) if world.nodes[name].picture == "unknown"}
        for member, names in self._servers.items():
            silent |= {name for name in up & set(names) if self._awaited(name, member, world)}
        return silent

    def _awaited(self, node: str, member: str, world: World) -> bool:
        if node in world.capacities:
            return False
        listens = (each for one in self._tree.servers[node].balancers.values() for each in one.listens)
        return any(each.first <= self._port(member) <= each.last for each in listens)

    def _port(self, member: str) -> int:
        return self._balancer.servers[member] or client_port(self._balancer)

    def _named(self, world: World) -> Iterator[Candidate | Missing]:
        family = self._balancer.listens[0].family
        for member, names in self._servers.items():
            base = self._balancer.server_weights.get(member, 1)
            for name in names:
                ips = world.nodes.get(name, NOWHERE).ips
                ip = next((ip for ip in ips if ip.version == family), None)
                if ip is None:
                    reason = f"it has no IPv{family} address" if ips else "its name cannot be resolved yet"
                    yield Missing(name, name, reason)
                    continue
                address = Address(ip, self._port(member))
                capacity = self._capacity(name, address, world)
                awaited = self._awaited(name, member, world)
                yield Candidate(ServerId(name, address), name, name, base, f"server {member}", None, capacity, awaited)

    def _capacity(self, node: str, address: Address, world: World) -> float | None:
        port = address.port or self._balancer.listens[0].first
        for each in world.capacities.get(node, ()):
            fits = each.protocol == self._balancer.protocol
            if fits and any(listens.covers(str(address.ip), port) for listens in each.listens):
                return each.value
        return None

    def _containers(self, world: World) -> Iterator[Candidate | Missing]:
        for id_, (_, _, found) in self._known.items():
            if id_ not in world.dead:
                yield found

    def _take(self, seen: Seen, world: World) -> None:
        """Remember a container if it takes part or was meant to."""
        record, view = seen.record, world.nodes.get(seen.node, NOWHERE)
        if record is None or seen.node not in self.nodes or record.state not in RUNNING:
            return
        if (found := self._look(record, seen.node, view.ips)) is not None:
            self._known[seen.id] = (record, view, found)

    def _key(self, image: Image) -> tuple[str, str] | None:
        """Return the key that fits an image best."""
        if image not in self._keys:
            self._keys = self._keys if len(self._keys) < MAX_IMAGES else {}
            self._keys[image] = best_key(self._balancer, image)
        return self._keys[image]

    def _look(self, record: Container, node: str, ips: tuple[IP, ...]) -> Candidate | Missing | None:
        try:
            found = match(self._balancer, self._node, record, self._key(record.image))
            if found is None:
                return None
            local = node == self._node
            address = place(record, self._balancer, found.port, local=local, ips=ips, node=node)
        except LeftOut as error:
            return Missing(record.name, node, str(error))
        return Candidate(ServerId(record.id, address), record.name, node, found.weight, found.rule, record)
