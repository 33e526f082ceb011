"""Pool: the real servers of one balancer, from plan to plan. Pure.

A plan finds out who takes part (members.py), what the facts say of each (judge.py), what lost links may take out; then
states (life.py) and weights (weights.py) follow.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from tsbus.balancer import weights
from tsbus.balancer.judge import UNHEARD, Judge, base, grace
from tsbus.balancer.life import Kind, Server, ServerId, State, Wish
from tsbus.balancer.match import RUNNING
from tsbus.balancer.members import NOWHERE, Candidate, Members
from tsbus.balancer.report import Event, Missing, Problem, Report, ServerReport
from tsbus.balancer.sight import News
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Destination, Entry, Forward, Key, Protocol, Service, Virtual
from tsbus.balancer.world import Override, World
from tsbus.config import Balancer
from tsbus.config.address import parse_address

SORRY: Final = "sorry"
_FORWARD: Final = {"nat": Forward.NAT, "dr": Forward.DIRECT, "tunnel": Forward.TUNNEL}
_HASHING: Final = ("sh", "mh")
"""Without their fallback these refuse the clients of a server with weight 0."""


def virtual(balancer: Balancer) -> Virtual | None:
    """Return the one address and port of a balancer as the kernel's key, or None when there are more."""
    first = balancer.listens[0]
    if len(balancer.listens) > 1 or first.first != first.last:
        return None
    return Virtual(Protocol[balancer.protocol.upper()], ip_address(first.ip), first.first)


class ServerPool:
    """One balancer of `node`."""

    balancer: Balancer
    key: Key
    members: Members
    pool: Pool
    """What the kernel should have."""
    report: Report
    """What there is to tell."""

    def __init__(self, node: str, found: Entry | None) -> None:
        """`found`: its service in the kernel at the start, if that is ours."""
        self.events: list[Event] = []
        self.wake: float | None = None
        self._node = node
        self._fresh = True
        self._ids: set[str] = set()
        self._servers: dict[ServerId, Server] = {}
        self._sorries: dict[ServerId, Server] = {}
        self._found = dict(found.destinations) if found else {}
        self._left_out: list[Missing] = []
        self._flags = {"empty": False, "sorry": False, "panic": False}
        self._told: dict[str, bool] = {}
        self._exists, self._begun = found is not None, False

    def configure(self, balancer: Balancer, key: Key, members: Members) -> None:
        """Take the configuration; servers that stay keep their states."""
        self.balancer, self.key, self.members, self._fresh = balancer, key, members, True
        self._judge = Judge(self._node, balancer, self._found)
        if not self._begun:
            serving = {self._is_sorry(address) for address, each in self._found.items() if each.weight}
            self._told = {"empty": self._exists and False not in serving, "sorry": True in serving}

    def plan(self, world: World, news: News, spent: set[Override]) -> None:
        """Bring the servers up to date; `events` are those of this plan. Adds to the `spent` overrides."""
        self.events = []
        concerned = self.members.update(world, news.containers) or not self._ids.isdisjoint(news.containers.ids)
        if news.general:
            self.members.relook(world)
        due = self.wake is not None and self.wake <= world.now
        counted = news.readings and any(server.state is State.DRAINING for server in self._all())
        loaded = news.headroom and self.balancer.weights == "cpu"
        if self._fresh or concerned or news.general or due or counted or loaded:
            self._fresh = False
            self._replan(world, spent)
            self._ids = {each.id for each in self._servers}
            self.pool, self.report = self._pool(), self._report()

    def _replan(self, world: World, spent: set[Override]) -> None:
        self.wake = None
        candidates, self._left_out = self.members.find(world)
        self._welcome(candidates, world)
        others = {each.address for each in candidates}
        before = {each: (server.state, server.weight) for each, server in self._servers.items()}
        overrides = {each: self._judge.overrides(server, world, spent) for each, server in self._servers.items()}
        wishes = {
            each: self._judge.wish(server, candidates.get(each), others, overrides[each], world)
            for each, server in self._servers.items()
        }
        for time in self._judge.wakes:
            self._wake_at(time)
        self._judge.wakes.clear()
        self._flags["panic"] = self._spare_the_many(wishes)
        for each, server in list(self._servers.items()):
            self._move(server, wishes[each], world)
            self._weigh(server, overrides[each], world)
            self._tell(server, *before[each])
            if server.state is State.REMOVED and each not in candidates:
                self._forget(server, wishes[each], world, spent)
        self._sorry(world, others)
        self._tell_flags()
        self._begun = True

    def _pool(self) -> Pool:
        balancer = self.balancer
        service = Service(
            self.key,
            balancer.alg,
            balancer.persistence_s,
            hash_fallback=balancer.alg in _HASHING,
            owned=True,
        )
        forward = _FORWARD[balancer.forward]
        servers = [server for server in self._all() if server.in_table]
        return Pool(service, {each.id.address: Destination(each.id.address, each.weight, forward) for each in servers})

    def watched(self) -> Iterator[Address]:
        """Yield the servers whose connections must be counted."""
        if self.balancer.protocol != "udp":
            yield from (server.id.address for server in self._all() if server.state is State.DRAINING)

    def _report(self) -> Report:
        state = next((name for name in ("panic", "sorry", "empty") if self._flags[name]), "ok")
        unit = weights.HIGHEST if self.balancer.weights == "cpu" else 1
        capacity = sum(server.weight for server in self._servers.values()) / unit
        servers = tuple(_report(server) for server in self._all())
        return Report(
            self.balancer.name, self.key, state, servers, tuple(self._left_out), tuple(self._problems()), capacity
        )

    # ---- Who is there ----

    def _all(self) -> Iterable[Server]:
        return [*self._servers.values(), *self._sorries.values()]

    def _welcome(self, candidates: Mapping[ServerId, Candidate], world: World) -> None:
        """Make servers of those who are new, with the state in which the kernel has them."""
        for each, candidate in candidates.items():
            record, server = candidate.record, self._servers.get(each)
            if server and record and server.run != record.started_ns:
                was = server.state
                server.end("it was started again", world.now)
                self._tell(server, was, server.weight)
                server = None
            if server is None:
                server = Server(each, candidate.name, candidate.node, container=record is not None)
                server.run = record.started_ns if record else 0
                self._servers[each] = server
                self._servers.pop(ServerId("", each.address), None)
                if not self._resume(server, world.now) and record:
                    server.ready_at = world.now + grace(record, self.balancer, world.time_ns)
            server.name, server.base, server.rule = candidate.name, candidate.base, candidate.rule
            server.capacity, server.awaited = candidate.capacity, candidate.awaited
        for address in list(self._found):
            if self._is_sorry(address):
                continue
            owner = self._owner(address, world)
            view = world.nodes.get(owner, NOWHERE)
            if view.picture in UNHEARD or (owner != self._node and not view.ips):
                kept = Server(ServerId("", address), str(address), owner, rule="found in the kernel", state=State.KEPT)
                kept.weight, kept.since = self._found[address].weight, world.now
                self._servers.setdefault(kept.id, kept)
            else:
                del self._found[address]

    def _resume(self, server: Server, now: float) -> bool:
        """Take over the state in which the kernel has a server; tell whether it has connections there."""
        found = self._found.pop(server.id.address, None)
        if found is None:
            return False
        server.state, server.weight, server.since = State.ACTIVE if found.weight else State.OUT, found.weight, now
        server.kind = Kind.SERVE if found.weight else Kind.WAIT
        return found.weight > 0

    def _owner(self, address: Address, world: World) -> str:
        unresolved = ""
        for name in self.members.others:
            ips = world.nodes.get(name, NOWHERE).ips
            if address.ip in ips:
                return name
            unresolved = unresolved if ips else name
        return unresolved or self._node

    def _spare_the_many(self, wishes: dict[ServerId, Wish | str]) -> bool:
        """Keep the servers of lost links where these are too many; tell whether they are."""
        kinds = {each: wish.kind for each, wish in wishes.items() if isinstance(wish, Wish)}
        serving = [
            each
            for each, kind in kinds.items()
            if kind is Kind.SERVE or (kind is Kind.KEEP and self._servers[each].weight)
        ]
        lost = [each for each, kind in kinds.items() if kind is Kind.LOST and self._servers[each].in_table]
        if len(lost) <= self.balancer.panic * (len(serving) + len(lost)):
            return False
        for each in lost:
            wishes[each] = Wish(Kind.SERVE, "kept, though the link to its node is lost: too many are")
        return True

    # ---- What follows ----

    def _move(self, server: Server, wish: Wish | str, world: World) -> None:
        if isinstance(wish, str):
            server.end(wish, world.now)
            return
        server.follow(wish, world.now)
        if server.state is State.DRAINING:
            self._drain(server, world)
            return
        lost = server.state is State.OUT and server.kind is Kind.LOST
        if lost and self._wake_at(server.since + self.balancer.hold_s) <= world.now:
            server.end(f"{server.reason}, for {self.balancer.hold_s:g} s", world.now)

    def _drain(self, server: Server, world: World) -> None:
        reading = world.readings.get((self.key, server.id.address))
        if reading and reading.at > server.since and self.balancer.protocol != "udp":
            server.connections = reading.connections
        if server.connections == 0:
            server.end(f"{server.reason}; its last connection is over", world.now)
        elif self._wake_at(server.since + self.balancer.drain_timeout_s) <= world.now:
            connections = server.connections
            left = "" if connections is None else f"; {connections} connections were left"
            server.end(f"{server.reason}; {self.balancer.drain_timeout_s:g} s are over{left}", world.now)
            server.connections = connections

    def _weigh(self, server: Server, overrides: list[Override], world: World) -> None:
        if server.state is State.KEPT or not server.id.id:
            found = self._found.get(server.id.address)
            server.weight = found.weight if found and server.state in (State.KEPT, State.ACTIVE) else 0
        elif server.state is not State.ACTIVE:
            server.weight = 0
        elif server.kind is not Kind.KEEP:
            server.weight = self._weight(server, overrides, world)

    def _weight(self, server: Server, overrides: list[Override], world: World) -> int:
        own, given = base(server, overrides), any(each.weight is not None for each in overrides)
        if server.awaited and server.weight and not given:
            return server.weight
        if given or (server.capacity is None and self.balancer.weights == "fixed"):
            return weights.clamp(own)
        if server.capacity is not None:
            return weights.clamp(own * server.capacity * (weights.HIGHEST if self.balancer.weights == "cpu" else 1))
        free = world.headroom.get(server.id.id)
        known, moved_at = server.weighed
        usual = weights.LOWEST * own <= server.weight <= weights.HIGHEST * own
        if not usual or known not in (0, own):
            server.weighed = (own, world.now)
            return weights.wanted(own, 1.0 if free is None else free)
        server.weighed = (own, moved_at)
        weight = server.weight if free is None else weights.moved(server.weight, weights.wanted(own, free))
        if weight == server.weight or self._wake_at(moved_at + weights.PACE_S) > world.now:
            return server.weight
        server.weighed = (own, world.now)
        return weight

    def _sorry(self, world: World, others: set[Address]) -> None:
        """Let the sorry server serve while nobody else does."""
        current = None
        if self.balancer.sorry_server:
            address = parse_address(self.balancer.sorry_server)
            current = ServerId(SORRY, Address(ip_address(address.ip), address.first))
            if current.address not in others and current not in self._sorries:
                self._sorries[current] = Server(current, SORRY, "", rule="sorry_server")
                self._resume(self._sorries[current], world.now)
        needed = not self._serving()
        for each, server in list(self._sorries.items()):
            before = (server.state, server.weight)
            if each.address in others:
                self._move(server, "its address is another's now", world)
            elif each == current and needed:
                self._move(server, Wish(Kind.SERVE, "no other server"), world)
            elif server.state is not None:
                self._move(server, Wish(Kind.DRAIN, "there are others again"), world)
            server.weight = 1 if server.state is State.ACTIVE else 0
            if server.state is not None:
                self._tell(server, *before)
            if not server.in_table:
                del self._sorries[each]

    def _is_sorry(self, address: Address) -> bool:
        if not self.balancer.sorry_server:
            return False
        sorry = parse_address(self.balancer.sorry_server)
        return address == Address(ip_address(sorry.ip), sorry.first)

    def _serving(self) -> bool:
        return any(server.weight for server in self._servers.values() if server.in_table)

    def _forget(self, server: Server, wish: Wish | str, world: World, spent: set[Override]) -> None:
        """Let go of a server that is gone, and of what was set for the run of its container or for a destroyed one."""
        del self._servers[server.id]
        if not server.id.id:
            self._found.pop(server.id.address, None)
        record = world.nodes.get(server.node, NOWHERE).containers.get(server.id.id)
        ended = record is None or record.state not in RUNNING or record.id in world.dead
        if server.container and isinstance(wish, str) and ended:
            own = [each for each in world.overrides if each.server == server.id.id]
            spent |= {each for each in own if each.once or record is None}

    def _wake_at(self, time: float) -> float:
        """Ask for a plan at `time` at the latest, and return it."""
        self.wake = time if self.wake is None else min(time, self.wake)
        return time

    # ---- What is told ----

    def _tell(self, server: Server, was: State | None, weight: int) -> None:
        if server.state is None or (server.state, server.weight) == (was, weight):
            return
        moved = server.state is not was
        if not moved and server.state is not State.ACTIVE:
            return
        if not self._begun and was is None and not server.in_table:
            return  # the table does not change
        follows = self.balancer.weights == "cpu" or server.capacity is not None
        changed = "its weight follows what is free or alive" if follows else "its weight was set"
        cause = server.reason or ("ready" if moved else changed)
        topic = server.state.value if moved else "weight"
        self.events.append(Event(topic, self.balancer.name, cause, _report(server), was.value if was else "", weight))

    def _tell_flags(self) -> None:
        lost = sum(server.reason.startswith("kept, though") for server in self._servers.values())
        now = {
            "empty": (not self._serving(), "no server can take connections"),
            "sorry": (any(each.weight for each in self._sorries.values()), "the sorry server answers"),
            "panic": (self._flags["panic"], f"{lost} servers of lost links are kept: more than the share `panic`"),
        }
        for name, (state, text) in now.items():
            if state != self._told.get(name, False):
                self._told[name] = state
                topic, over = _OVER[name]
                self.events.append(Event(name if state else topic, self.balancer.name, text if state else over))
        self._flags = {name: state for name, (state, _) in now.items()}

    def _problems(self) -> Iterator[Problem]:
        if self._flags["panic"]:
            yield Problem(
                "the links to more than the share `panic` of the servers are lost; these servers are kept",
                "see `treescale status`; drain those that are really gone",
            )
        if self._flags["empty"]:
            mend = "see why in the list of servers" if self._servers else "start one"
            yield Problem("no server can take connections", mend, note=not self._servers)


_OVER: Final = {
    "empty": ("filled", "a server can take connections"),
    "sorry": ("unsorry", "the sorry server is not needed any more"),
    "panic": ("calm", "few enough links are lost"),
}


def _report(server: Server) -> ServerReport:
    state = server.state or State.JOINING
    return ServerReport(
        server.id.id, server.name, server.node, server.id.address, state, server.reason, server.since, server.weight,
        server.base, server.rule, server.connections, server.run,
    )  # fmt: skip
