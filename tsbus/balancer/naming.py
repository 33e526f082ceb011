"""Naming: which real servers a caller means, and how what is set for them changes. Pure."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from tsbus.balancer.report import Report, ServerReport
from tsbus.balancer.world import Override

MAX_OVERRIDES: Final = 4096
"""So much can be set at the same time."""


class NotOne(ValueError):
    """A name fits nothing, or too much; the text says what there is."""


class Meant(NamedTuple):
    """What one name means."""

    server: str
    """As an override names it: a container's id, or a node's name."""
    found: tuple[tuple[str, ServerReport], ...]
    """Each with its balancer; of a node all servers on it, perhaps none."""


def check_balancers(names: Iterable[str], known: Collection[str]) -> None:
    """Raise NotOne if one of these is no balancer."""
    for name in names:
        if name not in known:
            there = f"there are {', '.join(sorted(known))}" if known else "this node has none"
            raise NotOne(f"no balancer {name!r}: {there}")


def resolve(
    names: Sequence[str],
    balancers: Collection[str],
    reports: Iterable[Report],
    nodes: Collection[str],
    *,
    if_here: bool,
) -> list[Meant]:
    """Return what each name means. Raises NotOne, for a name that fits nothing unless `if_here`."""
    servers = [(one.name, each) for one in reports if not balancers or one.name in balancers for each in one.servers]
    found = [meant for name in names if (meant := _resolve(name, servers, nodes, if_here=if_here)) is not None]
    return list({meant.server: meant for meant in found}.values())


def _resolve(
    name: str, servers: Sequence[tuple[str, ServerReport]], nodes: Collection[str], *, if_here: bool
) -> Meant | None:
    # A container may be called like a node, and a node like the beginning of an id: the most exact meaning counts.
    exact: tuple[Callable[[ServerReport], bool], ...] = (
        lambda each: each.name == name and each.id not in nodes,
        lambda each: each.id == name and each.id not in nodes,
        lambda each: str(each.address) == name,
    )
    for fits in exact:
        if found := [pair for pair in servers if fits(pair[1])]:
            return _one(name, found)
    if name in nodes:
        return Meant(name, tuple(pair for pair in servers if pair[1].node == name))
    if found := [pair for pair in servers if name and pair[1].id not in nodes and pair[1].id.startswith(name)]:
        return _one(name, found)
    if if_here:
        return None
    there = sorted({each.name for _, each in servers})
    shown = ", ".join(there[:20]) + (" and others" if len(there) > 20 else "")
    raise NotOne(f"no server {name!r} in these balancers; there are {shown or 'none'}")


def _one(name: str, found: Sequence[tuple[str, ServerReport]]) -> Meant:
    ids = {each.id for _, each in found}
    if len(ids) > 1:
        called = ", ".join(sorted({f"{each.name} on {each.node} ({each.id[:12]})" for _, each in found}))
        raise NotOne(f"{name!r} means several: {called}; give more of the id, or IP:PORT")
    (server,) = ids
    if not server:
        raise NotOne(f"{name!r} was found in the kernel, and its node has not told yet which container it is")
    return Meant(server, tuple(found))


def drained(
    overrides: Iterable[Override], meant: Iterable[Meant], balancers: Sequence[str], wish: Override
) -> tuple[Override, ...]:
    """Return the overrides with a drain of these servers like `wish`. Raises NotOne when there are too many."""
    kept = list(overrides)
    for each in meant:
        for balancer in balancers or ("",):
            new = replace(wish, server=each.server, balancer=balancer, drain=True)
            kept = [one for one in kept if not (_same(one, new) and one.drain and one.once == new.once)]
            kept.append(new)
    return _bounded(kept)


def undrained(
    overrides: Iterable[Override], meant: Iterable[Meant], balancers: Sequence[str], known: Collection[str]
) -> tuple[Override, ...]:
    """Return the overrides without the drains of these servers in these balancers. Raises NotOne.

    `known` are all balancers: of a drain in all of them, it goes on in the others.
    """
    kept = list(overrides)
    for each in meant:
        kept = list(_without(kept, each.server, balancers, known, drain=True))
        nodes = {server.node for _, server in each.found if server.node != each.server}
        for one in kept:
            if one.drain and one.server in nodes and (not balancers or one.balancer in ("", *balancers)):
                raise NotOne(f"{each.found[0][1].name} is on {one.server}, which is drained: undrain {one.server}")
    return _bounded(kept)


def weighed(
    overrides: Iterable[Override],
    meant: Iterable[Meant],
    balancers: Sequence[str],
    known: Collection[str],
    wish: Override,
) -> tuple[Override, ...]:
    """Return the overrides with the weight of `wish` for these servers; None takes theirs away. Raises NotOne."""
    kept = list(overrides)
    for each in meant:
        kept = list(_without(kept, each.server, balancers, known, drain=False))
        if wish.weight is not None:
            kept += [replace(wish, server=each.server, balancer=balancer) for balancer in balancers or ("",)]
    return _bounded(kept)


def _same(one: Override, other: Override) -> bool:
    return (one.server, one.balancer) == (other.server, other.balancer)


def _without(
    overrides: Iterable[Override], server: str, balancers: Sequence[str], known: Collection[str], *, drain: bool
) -> Iterable[Override]:
    for one in overrides:
        if one.server != server or one.drain != drain:
            yield one
        elif balancers and not one.balancer:
            yield from (replace(one, balancer=name) for name in known if name not in balancers)
        elif balancers and one.balancer not in balancers:
            yield one


def _bounded(overrides: list[Override]) -> tuple[Override, ...]:
    if len(overrides) > MAX_OVERRIDES:
        raise NotOne(f"drains and weights are set for {MAX_OVERRIDES} servers already: take some back first")
    return tuple(overrides)
