"""Verdicts: a table of services in the words of nft, and back. Pure.

The table `treescale-lb` has a map from what clients connect to, to the chain of its service; this chain gives a slot
(slots.py) to the chain of a server; and this one has one rule that translates. So all that a change touches is the
chain of one service, and a transaction replaces what is in it without a moment in between.

Of a connection only the first packet comes here, the others are translated by the kernel's tracking. Two sets, with the
packets to servers and from them, count.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from tsbus.balancer.rules import Listen, Version
from tsbus.balancer.slots import MANY, SCHEDULERS, slots
from tsbus.balancer.table import IP, Address, Destination, Forward, Key, Mark, Protocol, Service, Virtual

TABLE: Final = "treescale-lb"
_SEED: Final = 0x5453
"""Of the hash: other tools of the kernel hash addresses too, and should not agree with us on which are alike."""
_FAMILIES: Final[dict[Version, str]] = {4: "ip", 6: "ip6"}
_WEIGHT: Final = re.compile(r"weight (\d+)")


class Tally(NamedTuple):
    """What the kernel has counted for one server since it was added."""

    connections: int = 0
    in_packets: int = 0
    in_bytes: int = 0
    out_packets: int = 0
    out_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A service as this table holds it."""

    service: Service
    listens: tuple[Listen, ...]
    destinations: Mapping[Address, Destination] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """What nft lists of our table."""

    there: bool = False
    pools: Mapping[Key, Held] = field(default_factory=dict)
    tallies: Mapping[tuple[Key, Address], Tally] = field(default_factory=dict)
    objects: frozenset[tuple[str, str]] = frozenset()
    """Kind and name: chains and counters of services and servers."""
    elements: frozenset[tuple[str, str]] = frozenset()
    """Name of the map or set, and element."""
    whole: bool = False
    """It is as script() leaves it: nothing is there that belongs to no service, and nothing is missing."""


class Script(NamedTuple):
    """Two transactions: what puts a table into force, and what removes that which is no more in use.

    Not one: older kernels do not let go of a chain in the transaction in which its last user goes.
    """

    switch: str
    clean: str
    left: Listing
    """What is there then, without tallies."""


def impossible(service: Service, destinations: Iterable[Destination] = ()) -> str:
    """Return why this table cannot hold a service, or ''."""
    if service.scheduler not in SCHEDULERS:
        known = ", ".join(sorted(SCHEDULERS))
        return f"without IPVS nobody counts open connections for the scheduler {service.scheduler}: use one of {known}"
    if service.persistent_s:
        return "without IPVS no client is kept with its server for a time: use the scheduler sh"
    if service.one_packet or service.hash_port or service.client_prefix:
        return "without IPVS there is neither scheduling of single packets nor hashing of ports and prefixes"
    if any(each.forward is not Forward.NAT or each.upper for each in destinations):
        return 'without IPVS there is only forward = "nat", and no thresholds'
    return ""


# ---- To nft ----


def script(found: Listing, wanted: Mapping[Key, Held]) -> Script:
    """Return what leads from what is there to what is wanted; empty texts where there is nothing to do."""
    lines: list[str] = [] if found.there or not wanted else [_skeleton()]
    different = {key for key in (*wanted, *found.pools) if wanted.get(key) != found.pools.get(key)}
    new = {key: pool for key, pool in wanted.items() if key in different or not found.whole}
    old = {key: pool for key, pool in found.pools.items() if key in different}
    new_objects = {each for key, pool in new.items() for each in _objects(key, pool)}
    new_elements = {each for key, pool in new.items() for each in _elements(key, pool)}
    old_objects, old_elements = found.objects, found.elements
    if found.whole:
        old_objects = frozenset(each for key, pool in old.items() for each in _objects(key, pool))
        old_elements = frozenset(each for key, pool in old.items() for each in _elements(key, pool))
    for kind, name in sorted(new_objects - old_objects):
        lines.append(f"add {kind} inet {TABLE} {name}")
    for key, pool in new.items():
        if key in different:
            lines += _rules(key, pool, old.get(key), old_objects)
    stale = old_elements - new_elements
    lines += [*_of_sets("delete", stale), *_of_sets("add", new_elements - old_elements)]
    gone = old_objects - new_objects
    chains = sorted((name for kind, name in gone if kind == "chain"))
    clean = [f"flush chain inet {TABLE} {name}" for name in chains]
    clean += [f"delete chain inet {TABLE} {name}" for name in chains]
    clean += [f"delete counter inet {TABLE} {name}" for kind, name in sorted(gone) if kind == "counter"]
    if not wanted:
        return Script("", f"delete table inet {TABLE}\n" if found.there else "", Listing(whole=True))
    objects = (found.objects - gone) | new_objects
    elements = (found.elements - stale) | new_elements
    return Script(_text(lines), _text(clean), Listing(True, wanted, {}, objects, elements, whole=True))


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _skeleton() -> str:
    lines = [f"table inet {TABLE} {{"]
    for version in _FAMILIES:
        ip = f"ipv{version}_addr"
        lines.append(f"map services{version} {{ type inet_proto . {ip} . inet_service : verdict; flags interval; }}")
        flow = f"inet_proto . {ip} . inet_service . {ip} . inet_service"
        lines += [f"set {way}{version} {{ type {flow}; flags interval; counter; }}" for way in ("to", "from")]
    ways = [
        f"meta l4proto . {family} daddr . th dport vmap @services{version};" for version, family in _FAMILIES.items()
    ]
    # Before the rules of Docker (at dstnat): who configures a balancer at an address means it.
    for hook in ("prerouting", "output"):
        lines.append(f"chain {hook} {{ type nat hook {hook} priority -105; {' '.join(ways)} }}")
    # nft knows what a port of a tracked connection is only after the protocol was named.
    counts = [
        f"meta l4proto {int(protocol)} ct direction {direction} meta l4proto . ct original {family} daddr . "
        f"ct original proto-dst . ct reply {family} saddr . ct reply proto-src @{way}{version};"
        for protocol in Protocol
        for version, family in _FAMILIES.items()
        for direction, way in (("original", "to"), ("reply", "from"))
    ]
    lines.append(f"chain count {{ {' '.join(counts)} }}")
    lines.append("chain leaving { type filter hook postrouting priority 0; ct status dnat goto count; }")
    lines.append('chain arriving { type filter hook input priority 0; iifname != "lo" ct status dnat goto count; }')
    return "\n".join((*lines, "}"))


def _objects(key: Key, pool: Held) -> Iterator[tuple[str, str]]:
    yield "chain", _name(key)
    for address in pool.destinations:
        yield "chain", _name(key, address)
        yield "counter", _name(key, address)


def _elements(key: Key, pool: Held) -> Iterator[tuple[str, str]]:
    version = key.version
    for listen in pool.listens:
        place = f"{int(listen.protocol)} . {listen.ip} . {listen.ports}"
        yield f"services{version}", f"{place} : goto {_name(key)}"
        for address in pool.destinations:
            port = address.port or listen.ports
            for way in ("to", "from"):
                yield f"{way}{version}", f"{place} . {address.ip} . {port}"


def _of_sets(verb: str, elements: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One command for all elements of a set: of 5,000 servers nft then takes two thirds of the time."""
    for name, some in groupby(sorted(elements), key=itemgetter(0)):
        yield f"{verb} element inet {TABLE} {name} {{ {', '.join(element for _, element in some)} }}"


def _rules(key: Key, pool: Held, before: Held | None, there: Collection[tuple[str, str]]) -> Iterator[str]:
    known = before.destinations if before else {}
    for address, each in pool.destinations.items():
        if each != known.get(address):
            name = _name(key, address)
            ip = f"[{address.ip}]" if address.port and address.ip.version == 6 else address.ip
            to = f"{_FAMILIES[key.version]} to {ip}" + (f":{address.port}" if address.port else "")
            protocol = int(pool.listens[0].protocol)
            if ("chain", name) in there:
                yield f"flush chain inet {TABLE} {name}"
            yield (
                f"add rule inet {TABLE} {name} meta l4proto {protocol} counter name {name} dnat {to} "
                f'comment "weight {each.weight}"'
            )
    if ("chain", _name(key)) in there:
        yield f"flush chain inet {TABLE} {_name(key)}"
    for rule in _choice(key, pool):
        yield f"add rule inet {TABLE} {_name(key)} {rule}"


def _choice(key: Key, pool: Held) -> Iterator[str]:
    """Which server a connection gets; the first rule bears the scheduler's name."""
    scheduler = pool.service.scheduler
    order = slots(scheduler, pool.destinations.values())
    first = f"goto {_name(key, order[0])}" if order else "reject"
    if len(set(order)) < 2:
        yield f'{first} comment "{scheduler}"'
        return
    number = f"numgen inc mod {len(order)}"
    if scheduler == "sh":
        number = f"jhash {_FAMILIES[key.version]} saddr mod {MANY} seed {_SEED:#x}"
    parts = []
    position = 0
    for address, run in groupby(order):
        last = position + len(list(run)) - 1
        span = f"{position}-{last}" if last > position else str(position)
        parts.append(f"{span} : goto {_name(key, address)}")
        position = last + 1
    yield f'{number} vmap {{ {", ".join(parts)} }} comment "{scheduler}"'
    # A kernel that replaces the rule above takes the elements from its map while packets are still in it (seen with
    # 6.18): such a packet finds none, and would be refused by the host itself.
    yield first


@lru_cache(maxsize=20_000)
def _name(key: Key, address: Address | None = None) -> str:
    """Of the chain of a service or server. nft takes letters, digits and `/-_.` in names."""
    if isinstance(key, Mark):
        words = ["m", key.number, key.version]
    else:
        words = ["s", key.protocol.name.lower(), _word(key.ip), key.port]
    if address:
        words += [_word(address.ip), address.port]
    return "/".join(map(str, words))


def _word(ip: IP) -> str:
    return str(ip).replace(":", "-")


# ---- From nft ----


def parse(listed: Iterable[Mapping[str, Any]]) -> Listing:
    """Return what the objects of `nft -j list table` say. What is in the table and not of our making is passed over."""
    objects: set[tuple[str, str]] = set()
    elements: set[tuple[str, str]] = set()
    counted: dict[tuple[str, str], tuple[int, int]] = {}
    choices: dict[Key, Mapping[str, Any]] = {}
    servers: dict[Key, dict[Address, Mapping[str, Any]]] = defaultdict(dict)
    places: dict[Key, list[Listen]] = defaultdict(list)
    for item in listed:
        for kind, each in item.items():
            match kind:
                case "chain" | "counter" if _read_name(each["name"]):
                    objects.add((kind, each["name"]))
                    if kind == "counter":
                        counted["", each["name"]] = each["packets"], each["bytes"]
                case "rule" if name := _read_name(each["chain"]):
                    key, address = name
                    if address:
                        servers[key][address] = each
                    else:
                        choices.setdefault(key, each)  # what follows it is for the moment of a change
                case "map":
                    for place, verdict in each.get("elem", ()):
                        listen, chain = _listen(_concat(place)), verdict["goto"]["target"]
                        if name := _read_name(chain):
                            places[name[0]].append(listen)
                            text = f"{int(listen.protocol)} . {listen.ip} . {listen.ports} : goto {chain}"
                            elements.add((each["name"], text))
                case "set":
                    for element in each.get("elem", ()):
                        text = " . ".join(_concat(element["elem"]["val"]))
                        counter = element["elem"]["counter"]
                        counted[each["name"], text] = counter["packets"], counter["bytes"]
                        elements.add((each["name"], text))
    pools: dict[Key, Held] = {}
    tallies = {}
    for key, listens in places.items():
        if key not in choices:
            continue
        scheduler = choices[key].get("comment", "")
        service = Service(key, scheduler, hash_fallback=scheduler == "sh", owned=True)
        destinations = _destinations(service, choices[key], servers[key])
        pools[key] = Held(service, tuple(sorted(listens)), destinations)
        for address in destinations:
            tallies[key, address] = _tally(key, address, listens, counted)
    return Listing(True, pools, tallies, frozenset(objects), frozenset(elements))


def _concat(value: Mapping[str, Any]) -> list[str]:
    words = []
    for each in value["concat"]:
        match each:
            case {"range": [first, last]}:
                words.append(f"{first}-{last}")
            case str() if each.upper() in Protocol.__members__:
                words.append(str(int(Protocol[each.upper()])))
            case _:
                words.append(str(each))
    return words


def _listen(words: list[str]) -> Listen:
    first, _, last = words[2].partition("-")
    return Listen(Protocol(int(words[0])), ip_address(words[1]), int(first), int(last or first))


@lru_cache(maxsize=20_000)
def _read_name(name: str) -> tuple[Key, Address | None] | None:
    """Whose chain it is."""
    match name.split("/"):
        case ["m", number, version, *rest]:
            key: Key = Mark(int(number), 4 if version == "4" else 6)
        case ["s", protocol, ip, port, *rest]:
            key = Virtual(Protocol[protocol.upper()], _ip(ip), int(port))
        case _:
            return None
    return key, Address(_ip(rest[0]), int(rest[1])) if rest else None


def _ip(word: str) -> IP:
    return ip_address(word.replace("-", ":"))


def _targets(rule: Mapping[str, Any]) -> frozenset[str]:
    """The chains to which the rule of a service leads."""
    for each in rule["expr"]:
        match each:
            case {"goto": {"target": str(target)}}:
                return frozenset({target})
            case {"vmap": {"data": {"set": parts}}}:
                return frozenset(verdict["goto"]["target"] for _, verdict in parts)
    return frozenset()


def _destinations(
    service: Service, choice: Mapping[str, Any], servers: Mapping[Address, Mapping[str, Any]]
) -> dict[Address, Destination]:
    """The servers with the weights that their chains say.

    One to which nothing leads has none, unless it is one of those whose share of sh is less than a slot.
    """
    noted = {address: Destination(address, _weight(rule)) for address, rule in servers.items()}
    chosen = _targets(choice)
    idle = {address for address, each in noted.items() if each.weight and servers[address]["chain"] not in chosen}
    if idle and service.scheduler == "sh" and not idle & set(slots("sh", noted.values())):
        return noted
    return {address: replace(each, weight=0) if address in idle else each for address, each in noted.items()}


def _weight(rule: Mapping[str, Any]) -> int:
    found = _WEIGHT.fullmatch(rule.get("comment", ""))
    return int(found[1]) if found else 0


def _tally(
    key: Key, address: Address, listens: Iterable[Listen], counted: Mapping[tuple[str, str], tuple[int, int]]
) -> Tally:
    sums = [0, 0, 0, 0]
    for listen in listens:
        text = f"{int(listen.protocol)} . {listen.ip} . {listen.ports} . {address.ip} . {address.port or listen.ports}"
        for number, way in enumerate(("to", "from")):
            packets, size = counted.get((f"{way}{key.version}", text), (0, 0))
            sums[2 * number] += packets
            sums[2 * number + 1] += size
    return Tally(counted.get(("", _name(key, address)), (0, 0))[0], *sums)
