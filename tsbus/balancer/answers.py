"""Answers: what the planner and the kernel tell, in the records of the bus. Pure."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from tsbus.balancer.life import IN_TABLE, State
from tsbus.balancer.report import Event, Problem, Report, ServerReport
from tsbus.balancer.table import Counts, Destination, Entry, Service
from tsbus.config import Balancer
from tsbus.lb_records import (
    Alive,
    BalancerTraffic,
    CapacityEvent,
    Details,
    LbEvent,
    LeftOut,
    ProblemRecord,
    ServerRecord,
    Summary,
    Touched,
    Traffic,
)

MAX_SERVERS: Final = 1000
"""Servers of one piece of an answer: 300 bytes each, of the megabyte that a piece may have."""


def server(one: ServerReport, now: float) -> ServerRecord:
    """Return a real server as `lb.show` tells it."""
    return ServerRecord(
        id=one.id, name=one.name, node=one.node, ip=str(one.address.ip), port=one.address.port, state=one.state.value,
        reason=one.reason, since_s=max(0.0, round(now - one.since, 3)), weight=one.weight, base=one.base, rule=one.rule,
        connections=one.connections,
    )  # fmt: skip


def problem(one: Problem, balancer: str = "") -> ProblemRecord:
    """Return a problem as it is told."""
    return ProblemRecord(balancer=balancer, text=one.text, mend=one.mend, note=one.note)


def event(one: Event, node: str, time_ns: int, now: float) -> LbEvent:
    """Return the body of an event of the planner."""
    return LbEvent(
        node=node, balancer=one.balancer, time_ns=time_ns, cause=one.cause, was=one.was,
        server=server(one.server, now) if one.server else None,
    )  # fmt: skip


def summary(balancer: Balancer, backend: str, report: Report, state: str, problems: Iterable[Problem]) -> Summary:
    """Return a balancer as `lb.ls` tells it."""
    return Summary(
        name=balancer.name, addresses=_addresses(balancer), protocol=balancer.protocol, alg=balancer.alg,
        backend=backend, state=state, problems=sum(not each.note for each in problems),
        active=sum(each.state is State.ACTIVE and each.weight > 0 for each in report.servers),
        servers=sum(each.state in IN_TABLE for each in report.servers),
    )  # fmt: skip


def details(
    balancer: Balancer, backend: str, report: Report, state: str, problems: Iterable[Problem], now: float
) -> Iterator[Details]:
    """Yield a balancer as `lb.show` tells it, in pieces."""
    servers = [server(each, now) for each in report.servers]
    yield Details(
        name=balancer.name, addresses=_addresses(balancer), protocol=balancer.protocol, alg=balancer.alg,
        backend=backend, state=state, servers=tuple(servers[:MAX_SERVERS]),
        left_out=tuple(
            LeftOut(name=each.name, node=each.node, reason=each.reason) for each in report.left_out[:MAX_SERVERS]
        ),
        problems=tuple(map(problem, problems)),
    )  # fmt: skip
    for start in range(MAX_SERVERS, len(servers), MAX_SERVERS):
        yield Details(name=balancer.name, servers=tuple(servers[start : start + MAX_SERVERS]))


def traffic(balancer: Balancer, report: Report, entry: Entry | None) -> BalancerTraffic:
    """Return what the kernel has counted for a balancer: sums, and each server; zeros when it has none."""
    entry = entry or Entry(Service(report.key))
    known = {each.address: each for each in report.servers if each.state in IN_TABLE}
    servers = tuple(
        _traffic(each, entry.counts[address], known.get(address)) for address, each in entry.destinations.items()
    )
    names = [name for name in Traffic.__struct_fields__ if name not in ("id", "name", "ip", "port")]
    sums = {name: sum(getattr(each, name) for each in servers) for name in names}
    return BalancerTraffic(name=balancer.name, servers=servers, **sums)


def capacity(
    node: str, pairs: Iterable[tuple[Balancer, Report]], undone: Collection[str], told: CapacityEvent | None
) -> CapacityEvent:
    """Return what is alive behind the balancers of a node; of those that are `undone` no more than was `told` last."""
    found = {}
    for each, report in pairs:
        value = round(report.capacity, 2)
        if each.name in undone:
            before = told.balancers.get(each.name) if told else None
            value = min(value, before.capacity if before else 0.0)
        found[each.name] = Alive(addresses=_addresses(each), protocol=each.protocol, capacity=value)
    return CapacityEvent(node=node, balancers=found)


def touched(balancer: str, one: ServerReport) -> Touched:
    """Return what an order did to a server."""
    return Touched(
        id=one.id, name=one.name, balancer=balancer, state=one.state.value, connections=one.connections
    )  # fmt: skip


def _addresses(balancer: Balancer) -> tuple[str, ...]:
    return tuple(map(str, balancer.listens))


def _traffic(one: Destination, counts: Counts, known: ServerReport | None) -> Traffic:
    return Traffic(
        id=known.id if known else "", name=known.name if known else "",
        ip=str(one.address.ip), port=one.address.port, weight=one.weight,
        active=counts.active, inactive=counts.inactive, connections=counts.connections,
        in_packets=counts.in_packets, out_packets=counts.out_packets,
        in_bytes=counts.in_bytes, out_bytes=counts.out_bytes,
        cps=counts.connections_s, in_pps=counts.in_packets_s, out_pps=counts.out_packets_s,
        in_bps=counts.in_bytes_s, out_bps=counts.out_bytes_s,
    )  # fmt: skip
