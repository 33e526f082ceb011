"""Naming: which real servers the names on a command line mean, in which balancers. `find` asks, `choose` decides."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tsbus.cli.edge import Code, Fault
from tsbus.cli.lb.asking import Tree, nobody, tree_of
from tsbus.cli.lb.show import details
from tsbus.cli.lb.words import address
from tsbus.cli.report import Ending
from tsbus.cli.terminal import safe
from tsbus.core.target import fold
from tsbus.lb_records import MAX_NAMES, ServerRecord

if TYPE_CHECKING:
    from tsbus.client import Client

MAX_LISTED = 10
"""Servers that an error lists."""


class Place(NamedTuple):
    """A server in a balancer."""

    node: str
    """Of the balancer."""
    balancer: str
    server: ServerRecord

    @property
    def is_container(self) -> bool:
        """Whether its id is that of a container, and not the name of a node."""
        return self.server.id not in ("", "sorry", self.server.node)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the balancers of a target have."""

    places: Sequence[Place]
    nodes: frozenset[str]
    """Nodes with balancers that answered."""
    tree: Tree
    silent: Mapping[str, Ending] = field(default_factory=dict)
    """Nodes with balancers that did not."""


@dataclass(slots=True)
class Chosen:
    """What the names mean."""

    names: list[str] = field(default_factory=list)
    """As they are ordered: of containers the ids, which cannot mean another one meanwhile."""
    places: list[Place] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    """Nodes with balancers that are told."""
    missed: dict[str, Ending] = field(default_factory=dict)
    """Nodes that may have the servers as well, and could not be asked."""
    bare: list[str] = field(default_factory=list)
    """Nodes that were named and have no servers now."""


async def find(client: "Client", target: str, balancers: Sequence[str]) -> Finding:
    """Ask the balancers of `target` for their servers. Raises Fault when there are none, or none answers."""
    answers = await details(client, target, balancers)
    places = [
        Place(node, one.name, server) for node, some in answers.said.items() for one in some for server in one.servers
    ]
    return Finding(places, frozenset(answers.said), await tree_of(client), answers.silent)


def choose(finding: Finding, names: Sequence[str], target: str, *, each: bool) -> Chosen:
    """Return what `names` mean.

    Raises Fault for a name that means nothing, for the beginning of an id that fits different containers, and unless
    `each` for a name that different containers have.
    """
    if len(names) > MAX_NAMES:
        raise Fault(f"{len(names)} names are too many: at most {MAX_NAMES} at once", Code.USAGE)
    chosen = Chosen()
    for name in dict.fromkeys(names):
        places, is_node = _fitting(finding, name)
        if not places and not is_node:
            known = [word for place in finding.places for word in (place.server.name, place.server.node) if word]
            raise nobody("server", name, target, known, finding.silent)
        _check_one(name, places, is_node=is_node, each=each)
        chosen.places += (place for place in places if place not in chosen.places)
        chosen.names += [name] if is_node else [place.server.id if place.is_container else name for place in places]
        concerned = {name} if is_node else {place.server.node for place in places}
        above = set().union(*map(finding.tree.above, concerned))
        # A node may get servers later, in every balancer above it; a container is where it is.
        told = finding.nodes & above if is_node else {place.node for place in places}
        if not told:
            raise Fault(f"no balancer on {safe(target)} can have servers on {safe(name)}", Code.USAGE)
        chosen.nodes |= told
        chosen.missed |= {node: ending for node, ending in finding.silent.items() if node in above}
        chosen.bare += [name] if not places else []
    chosen.names = list(dict.fromkeys(chosen.names))
    return chosen


def _fitting(finding: Finding, name: str) -> tuple[list[Place], bool]:
    """Return the servers that a name means, and whether it is the name of a node; the most exact meaning counts."""
    for fits in (
        lambda place: place.is_container and place.server.name == name,
        lambda place: place.is_container and place.server.id == name,
        lambda place: address(place.server) == name,
        lambda place: place.server.id == name == "sorry",
    ):
        if found := [place for place in finding.places if fits(place)]:
            return found, False
    if name in finding.tree.parents:
        return [place for place in finding.places if place.server.node == name], True
    return [place for place in finding.places if place.is_container and place.server.id.startswith(name)], False


def _check_one(name: str, places: Iterable[Place], *, is_node: bool, each: bool) -> None:
    ids = {place.server.id: place for place in places}
    if "" in ids and not is_node:
        raise Fault(
            f"{safe(name)} was found in the kernel of {ids[''].node}, and its node has not told yet whose it is"
        )
    if is_node or len(ids) < 2:
        return
    shown = [f"{safe(one.server.name)} on {one.server.node} ({id_[:12]})" for id_, one in ids.items()][:MAX_LISTED]
    listed = ", ".join(shown) + (f" and {len(ids) - MAX_LISTED} more" if len(ids) > MAX_LISTED else "")
    if not any(name in (one.server.name, address(one.server)) for one in ids.values()):
        raise Fault(f"{name!r} begins the ids of different containers: {listed}; give more of it", Code.USAGE)
    if not each:
        nodes = fold(one.server.node for one in ids.values())
        raise Fault(
            f"{name!r} means {len(ids)} servers, nothing was done: {listed}\n"
            f"Give the id of one, or one of {nodes} as the server: all on this node; or say --each for all of them.",
            Code.USAGE,
        )
