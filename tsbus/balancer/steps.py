"""Steps: from the table that the kernel has to the one that is wanted, in an order without a bad moment. Pure.

New services come with their servers, then new servers and higher weights, then lower weights and zeros, then what
goes. So a service in which somebody shall serve never has a moment in which nobody does. Foreign services are not
touched.
"""

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field, replace

from tsbus.balancer.table import Address, Destination, Entry, Key, Service


@dataclass(frozen=True, slots=True)
class Pool:
    """A wanted service with its real servers."""

    service: Service
    destinations: Mapping[Address, Destination] = field(default_factory=dict)


Wanted = Mapping[Key, Pool]
Actual = Mapping[Key, Entry]


@dataclass(frozen=True, slots=True)
class AddService:
    """Make a service; it has no servers yet."""

    service: Service


@dataclass(frozen=True, slots=True)
class SetService:
    """Change a service in place; its connections go on."""

    service: Service


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Delete a service with its servers."""

    key: Key


@dataclass(frozen=True, slots=True)
class AddDestination:
    """Add a real server."""

    key: Key
    destination: Destination


@dataclass(frozen=True, slots=True)
class SetDestination:
    """Change a real server in place; its connections go on."""

    key: Key
    destination: Destination


@dataclass(frozen=True, slots=True)
class DeleteDestination:
    """Delete a real server; its connections are cut."""

    key: Key
    address: Address


Step = AddService | SetService | DeleteService | AddDestination | SetDestination | DeleteDestination


def key_of(step: Step) -> Key:
    """Return the service that a step concerns."""
    return step.service.key if isinstance(step, AddService | SetService) else step.key


def words(step: Step) -> str:
    """Return a step as a person reads it."""
    match step:
        case AddService(service):
            return f"add service {service.key} ({service.scheduler})"
        case SetService(service):
            return f"set service {service.key} ({service.scheduler})"
        case DeleteService(key):
            return f"delete service {key}"
        case AddDestination(key, one):
            return f"add {one.address} to {key}, weight {one.weight}"
        case SetDestination(key, one):
            return f"set {one.address} of {key}, weight {one.weight}"
        case DeleteDestination(key, address):
            return f"delete {address} from {key}"


@dataclass(frozen=True, slots=True)
class Change:
    """What to do, in this order."""

    steps: tuple[Step, ...] = ()
    clashes: tuple[Key, ...] = ()
    """Wanted services where there is a foreign one: nothing is done there."""
    claims: frozenset[Key] = frozenset()
    """What the state file must hold before the first step, and what is `held` from then on."""


def owned(actual: Actual, recorded: Container[Key] | None, held: Collection[Key] = ()) -> frozenset[Key]:
    """Return which services are ours.

    `recorded` are the keys of the state file, None where there is none. `held` are those that were ours before in this
    run: another tool's edit takes the kernel's mark away, and they stay ours.
    """
    return frozenset(
        key
        for key, entry in actual.items()
        if key in held or (entry.service.owned and (recorded is None or key in recorded))
    )


def change(wanted: Wanted, actual: Actual, ours: Collection[Key], adopt: Collection[Key] = ()) -> Change:
    """Return the way from `actual` to `wanted`; the services in `adopt` are taken over where they are foreign."""
    clashes = tuple(key for key in wanted if key in actual and key not in ours and key not in adopt)
    pools = {key: pool for key, pool in wanted.items() if key not in clashes}
    lists: list[list[Step]] = [[] for _ in range(7)]
    new, changed, added, raised, lowered, zeroed, deleted = lists
    for key, pool in pools.items():
        entry = actual.get(key)
        service = replace(pool.service, owned=True)
        if entry is None:
            new.append(AddService(service))
            new += [AddDestination(key, each) for each in _heaviest_first(pool)]
            continue
        if entry.service != service:
            changed.append(SetService(service))
        if entry.destinations == pool.destinations:
            continue
        for each in _heaviest_first(pool):
            old = entry.destinations.get(each.address)
            if old is None:
                added.append(AddDestination(key, each))
            elif old != each:
                group = zeroed if not each.weight else raised if each.weight >= old.weight else lowered
                group.append(SetDestination(key, each))
        deleted += [DeleteDestination(key, each) for each in entry.destinations if each not in pool.destinations]
    gone = [DeleteService(key) for key in actual if key in ours and key not in pools]
    claims = frozenset(pools) | {key for key in ours if key in actual}
    return Change((*new, *changed, *added, *raised, *lowered, *zeroed, *deleted, *gone), clashes, claims)


def _heaviest_first(pool: Pool) -> list[Destination]:
    return sorted(pool.destinations.values(), key=lambda each: -each.weight)
