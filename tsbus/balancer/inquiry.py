"""Inquiry: `lb.why` from the order to the answer: what the keeper knows, what the kernel says, and the judgement.

It works as far as can be when nothing is balanced: without a kernel that balances, that is the answer.
"""

import asyncio
from contextlib import suppress
from ipaddress import ip_address

from tsbus.balancer import evidence
from tsbus.balancer.evidence import Knocks
from tsbus.balancer.keeper import Keeper
from tsbus.balancer.machine import MachineError
from tsbus.balancer.naming import NotOne
from tsbus.balancer.plan import keys_of
from tsbus.balancer.question import Question, nobody, servers_of
from tsbus.balancer.rules import Front, Listen, front
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Forward, Protocol, Service
from tsbus.balancer.why import judge
from tsbus.config.address import Address as Place
from tsbus.config.address import parse_address
from tsbus.lb_records import Why, WhyAnswer


async def answer(keeper: Keeper, order: Why) -> WhyAnswer:
    """Return what becomes of a packet. Raises NotOne for what is neither a balancer nor an address; HostError."""
    question = _question(keeper, order)
    if question is None:
        return nobody(order.address, order.protocol, order.client, keeper.balancers.values())
    # The table is read before anything else gets to the thread, so it belongs to what was wanted just now.
    table = None
    with suppress(MachineError):
        table = await keeper.in_thread(keeper.machine.services) if keeper.machine else None
    servers = servers_of(question, table)
    wanted = [each.address for each in servers if each.forward is Forward.NAT]
    addresses = [each if each.port else Address(each.ip, question.listen.first) for each in wanted]
    asked = addresses if question.listen.protocol is Protocol.TCP else []
    ips = [each.address.ip for each in servers]
    facts = await keeper.in_thread(evidence.read, question.backend, question.listen.ip, ips, table)
    knocks = await keeper.in_thread(Knocks, asked)
    accepted = await asyncio.to_thread(knocks.wait)
    accepts = {each: accepted[one] for each, one in zip(wanted, addresses, strict=True) if one in accepted}
    return await asyncio.to_thread(judge, question, facts, accepts)


def _question(keeper: Keeper, order: Why) -> Question | None:
    """Return which balancer is meant and what is known of it; None where no balancer has the address."""
    name, place, loopback = _meant(keeper, order)
    if place is None:
        return None
    balancer = keeper.balancers[name]
    protocol = Protocol[balancer.protocol.upper()]
    report = keeper.standing.reports.get(name)
    machine = keeper.machine
    wanted = keeper.standing.front(name)
    return Question(
        node=keeper.node,
        balancer=balancer,
        listen=Listen(protocol, ip_address(place.ip), place.first, place.first),
        asked=str(place) if name == order.address else order.address,
        origin=order.client,
        front=wanted or _without_servers(keeper, name),
        backend=machine.backend if machine else keeper.likely,
        report=report if wanted else None,
        loopback=loopback,
        unusable=keeper.standing.unusable,
        unable=machine.why_not(wanted.pool) if machine and wanted else None,
        problems=tuple(keeper.standing.lasting(name) or keeper.problems()),
        clash=report is not None and keeper.standing.state(report) == "clash",
        containers=keeper.containers,
    )


def _meant(keeper: Keeper, order: Why) -> tuple[str, Place | None, bool]:
    """Return the balancer, its address with one port, and whether an address of the loopback device was given."""
    if order.address in keeper.balancers:
        first = keeper.balancers[order.address].listens[0]
        return order.address, first._replace(last=first.first), False
    try:
        asked = parse_address(order.address)
    except ValueError:
        known = ", ".join(sorted(keeper.balancers)) or "none"
        raise NotOne(f"{order.address!r} is neither IP:PORT nor one of the balancers here ({known})") from None
    loopback = ip_address(asked.ip).is_loopback
    for name, balancer in keeper.balancers.items():
        for each in balancer.listens if balancer.protocol == order.protocol else ():
            if each.covers(each.ip if loopback and each.family == asked.family else asked.ip, asked.first):
                return name, Place(each.ip, asked.first, asked.first), loopback
    return "", None, loopback


def _without_servers(keeper: Keeper, name: str) -> Front:
    balancer = keeper.balancers[name]
    return front(balancer, Pool(Service(keys_of(keeper.balancers)[name], balancer.alg)))
