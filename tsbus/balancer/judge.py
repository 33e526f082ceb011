"""Judge: what the facts say of a real server: serve, wait, drain, lost, or gone. Pure."""

from typing import Final

from tsbus.balancer.life import Kind, Server, State, Wish
from tsbus.balancer.match import RUNNING
from tsbus.balancer.members import NOWHERE, Candidate
from tsbus.balancer.table import Address, Destination
from tsbus.balancer.world import NodeView, Override, World
from tsbus.config import Balancer
from tsbus.records import Container

UNHEARD: Final = ("unknown", "absent", "down")
"""Pictures in which a container that is missing may well run."""


class Judge:
    """Judges the servers of one balancer of `node`."""

    def __init__(self, node: str, balancer: Balancer, found: dict[Address, Destination]) -> None:
        """`found`: what the kernel had at the start and no node has told of yet."""
        self.wakes: list[float] = []
        """When time alone will change a judgement; the caller empties it."""
        self._node, self._balancer, self._found = node, balancer, found

    def overrides(self, server: Server, world: World, spent: set[Override]) -> list[Override]:
        """Return what operators have set for a server and still holds."""
        found = []
        for each in world.overrides:
            if each.server not in (server.id.id, server.node) or each.balancer not in ("", self._balancer.name):
                continue
            if each.until_ns:
                if each.until_ns <= world.time_ns:
                    continue
                self.wakes.append(world.now + (each.until_ns - world.time_ns) / 1e9)
            if each.once and each.server == server.id.id and server.run != each.run:
                spent.add(each)
            else:
                found.append(each)
        return found

    def wish(
        self, server: Server, candidate: Candidate | None, others: set[Address], overrides: list[Override], world: World
    ) -> Wish | str:
        """Return what the facts say of a server, or why it is gone. `others`: addresses that somebody has for sure."""
        view = world.nodes.get(server.node, NOWHERE)
        if candidate is None:
            found = self._unnamed(server, view, others, world)
            if isinstance(found, str):
                return found
            wish = found
        else:
            wish = self._ready(server, candidate.record, overrides, world)
        if server.node != self._node:
            # Containers may have gone in the meantime: one that is out comes back when its node has told.
            told = not server.container or view.picture in ("complete", "down") or server.state is State.ACTIVE
            server.cut = not view.up or (server.cut and not told)
        if drains := [each for each in overrides if each.drain]:
            return Wish(Kind.DRAIN, f"drained by {drains[-1].by or 'an operator'}")
        if server.cut and wish.kind in (Kind.SERVE, Kind.KEEP):
            return Wish(Kind.LOST, "its node has not told yet" if view.up else f"the link to {server.node} is lost")
        return wish

    def _unnamed(self, server: Server, view: NodeView, others: set[Address], world: World) -> Wish | str:
        """Return the wish of a server that does not take part any more, or why it is gone."""
        if server.id.address in others:
            return "its address is another's now"
        if not server.id.id:
            if server.id.address not in self._found:
                return "its node does not have it"
            # Not KEEP, when it comes back after its link was lost.
            usual = server.state is State.KEPT or not self._found[server.id.address].weight
            return Wish(Kind.KEEP if usual else Kind.SERVE, "as it was found: its node has not told yet")
        if server.node != self._node and not view.ips:
            return Wish(Kind.KEEP, f"the address of {server.node} is not known")
        if not server.container:
            return Wish(Kind.DRAIN, "the configuration does not name it any more")
        record = view.containers.get(server.id.id)
        if record is None:
            return Wish(Kind.KEEP, server.reason) if view.picture in UNHEARD else "its container is gone"
        if record.state not in RUNNING or record.id in world.dead:
            return "its container ended" + (f" with exit code {record.exit_code}" if record.exit_code else "")
        if not _holds(record, server.id.address, local=server.node == self._node):
            return "its container does not have this address any more"
        return Wish(Kind.DRAIN, "the configuration does not name it any more")

    def _ready(self, server: Server, record: Container | None, overrides: list[Override], world: World) -> Wish:
        """Return the wish of a server that takes part."""
        if record and record.draining:
            return Wish(Kind.DRAIN, "its stop signal was sent")
        if record and record.state == "paused":
            return Wish(Kind.WAIT, "paused")
        if record and self._balancer.health and record.health:
            if record.health != "healthy":
                failed = record.health == "unhealthy"
                return Wish(Kind.WAIT, "unhealthy" if failed else "its health check has not passed")
        elif world.now < server.ready_at:
            self.wakes.append(server.ready_at)
            return Wish(Kind.WAIT, f"started less than {self._balancer.start_grace_s:g} s ago")
        if server.capacity is not None and server.capacity <= 0:
            return Wish(Kind.WAIT, "nothing is alive behind it")
        if not base(server, overrides):
            return Wish(Kind.WAIT, "weight 0")
        return Wish(Kind.SERVE)


def base(server: Server, overrides: list[Override]) -> int:
    """Return the weight that an operator has given, or that the configuration and labels say."""
    given = [each.weight for each in overrides if each.weight is not None]
    return given[-1] if given else server.base


def grace(record: Container, balancer: Balancer, time_ns: int) -> float:
    """Return how long a container is still to wait; no more than the grace, whatever the clocks say."""
    return min(balancer.start_grace_s, max(0.0, balancer.start_grace_s - (time_ns - record.started_ns) / 1e9))


def _holds(record: Container, address: Address, *, local: bool) -> bool:
    """Tell whether a container still is at an address, as far as its record says."""
    if "host" in record.networks or not address.port:
        return True
    if local:
        return str(address.ip) in record.networks.values()
    return any(each.host_port == address.port for each in record.endpoints)
