"""Naming: which real servers a caller means, and how what is set for them changes. Pure."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from tsbus.balancer.life import State
from tsbus.balancer.report import Report, ServerReport
from tsbus.balancer.world import Override

MAX_OVERRIDES: Final = 4096
"""So much can be set at the same time."""


ID_DIGITS: Final = 64
"""Of a whole container's id."""
_Pair = tuple[str, ServerReport]
"""A server with its balancer."""


class NotOne(ValueError):
    """A name fits nothing, or too much; the text says what there is."""


class Meant(NamedTuple):
    """What one name means."""

    server: str
    """As an override names it: a container's id, or a node's name."""
    found: tuple[_Pair, ...]
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
    heard: Callable[[str], bool] = lambda _: True,
) -> list[Meant]:
    """Return what each name means. Raises NotOne, for a name that fits nothing unless `if_here`.

    `heard` tells whether a container is known, in a balancer or not: others may be what was found in the kernel.
    """
    known = _Known(balancers, reports, nodes)
    found = {}
    for name in names:
        meant = known.meant(name)
        if meant is not None:
            found[meant.server] = meant
        elif not if_here:
            raise NotOne(f"no server {name!r} in these balancers; there are {known.shown or 'none'}")
        elif known.strangers and not heard(name):
            raise NotOne(f"{name!r} may be {known.strangers}: its node has not told yet what runs there")
    return list(found.values())


def active(
    names: Iterable[str],
    balancers: Sequence[str],
    reports: Iterable[Report],
    nodes: Collection[str],
    undone: Collection[str] = (),
) -> tuple[str, Meant] | None:
    """Return the first name all of whose servers are active, in each of `balancers` or, of none, where it is known.

    `undone` are balancers that the kernel has otherwise. Raises NotOne for a name that means several.
    """
    known = _Known(balancers, reports, nodes)
    for name in names:
        if (meant := known.meant(name)) is None:
            continue
        present = tuple(pair for pair in meant.found if pair[1].state is not State.REMOVED)
        where = {balancer for balancer, _ in present}
        ready = where.issuperset(balancers) and where.isdisjoint(undone)
        if present and ready and all(each.state is State.ACTIVE for _, each in present):
            return name, Meant(meant.server, present)
    return None


def only(report: Report, names: Collection[str]) -> Report:
    """Return a report of these servers alone, by whole name, id, node or address; of all where there are no names."""
    if not names:
        return report
    wanted = frozenset(names)
    servers = (
        each for each in report.servers if not wanted.isdisjoint((each.id, each.name, each.node, str(each.address)))
    )
    left_out = (each for each in report.left_out if not wanted.isdisjoint((each.name, each.node)))
    return replace(report, servers=tuple(servers), left_out=tuple(left_out))


class _Known:
    """The servers of some balancers, by what they can be called."""

    def __init__(self, balancers: Collection[str], reports: Iterable[Report], nodes: Collection[str]) -> None:
        self._nodes = nodes
        self._servers: list[_Pair] = [
            (one.name, each) for one in reports if not balancers or one.name in balancers for each in one.servers
        ]
        names: dict[str, list[_Pair]] = {}
        addresses: dict[str, list[_Pair]] = {}
        self._ids: dict[str, list[_Pair]] = {}
        for pair in self._servers:
            each = pair[1]
            addresses.setdefault(str(each.address), []).append(pair)
            if each.id not in nodes:
                names.setdefault(each.name, []).append(pair)
                self._ids.setdefault(each.id, []).append(pair)
        # A container may be called like a node, and a node like the beginning of an id: the most exact meaning counts.
        self._exact = (names, self._ids, addresses)

    def meant(self, name: str) -> Meant | None:
        """Return what a name means; None when it fits nothing. Raises NotOne when it means several."""
        for by in self._exact:
            if found := by.get(name):
                return _one(name, found)
        if name in self._nodes:
            return Meant(name, tuple(pair for pair in self._servers if pair[1].node == name))
        if len(name) >= ID_DIGITS:
            return None
        found = [pair for id_, pairs in self._ids.items() if id_.startswith(name) for pair in pairs]
        return _one(name, found) if found else None

    @property
    def shown(self) -> str:
        """Some names, for people."""
        there = sorted({each.name for _, each in self._servers})
        return ", ".join(there[:20]) + (" and others" if len(there) > 20 else "")

    @property
    def strangers(self) -> str:
        """The addresses of some that were found in the kernel, and whose node has not told yet."""
        return ", ".join(str(each.address) for _, each in self._ids.get("", ())[:5])


def _one(name: str, found: Sequence[_Pair]) -> Meant:
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
            new = replace(_for(each, wish, balancer), drain=True)
            kept = [one for one in kept if not (_same(one, new) and one.drain and one.once == new.once)]
            kept.append(new)
    return _bounded(kept)


def undrained(
    overrides: Iterable[Override],
    meant: Iterable[Meant],
    balancers: Sequence[str],
    known: Collection[str],
    *,
    once: bool = False,
) -> tuple[Override, ...]:
    """Return the overrides without the drains of these servers in these balancers. Raises NotOne.

    `known` are all balancers: of a drain in all of them, it goes on in the others. `once`: drains for once only, and it
    does not matter that others hold.
    """
    kept = list(overrides)
    for each in meant:
        kept = list(_without(kept, each.server, balancers, known, drain=True, once=once))
        if once:
            continue
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
            kept += [_for(each, wish, balancer) for balancer in balancers or ("",)]
    return _bounded(kept)


def _for(each: Meant, wish: Override, balancer: str) -> Override:
    for _, one in each.found:
        if one.id == each.server != one.node:
            return replace(wish, server=each.server, node=one.node, run=one.run, balancer=balancer)
    return replace(wish, server=each.server, balancer=balancer)


def _same(one: Override, other: Override) -> bool:
    return (one.server, one.balancer) == (other.server, other.balancer)


def _without(
    overrides: Iterable[Override],
    server: str,
    balancers: Sequence[str],
    known: Collection[str],
    *,
    drain: bool,
    once: bool = False,
) -> Iterable[Override]:
    for one in overrides:
        if one.server != server or one.drain != drain or one.once < once:
            yield one
        elif balancers and not one.balancer:
            yield from (replace(one, balancer=name) for name in known if name not in balancers)
        elif balancers and one.balancer not in balancers:
            yield one


def _bounded(overrides: list[Override]) -> tuple[Override, ...]:
    if len(overrides) > MAX_OVERRIDES:
        raise NotOne(f"drains and weights are set for {MAX_OVERRIDES} servers already: take some back first")
    return tuple(overrides)
