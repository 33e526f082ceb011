"""Nftables: the balancer of a kernel without IPVS, with the shape of ipvs.Kernel, in a table of its own.

What the table holds is written and read in verdicts.py. Each change is one transaction: a client meets the service as
it was or as it is, never in between. Connections are the kernel's tracking (conntrack.py).
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Final

from tsbus.balancer import conntrack
from tsbus.balancer.nft import News, Nft
from tsbus.balancer.programs import Failed, HostError, NoFeature, NoProgram, run
from tsbus.balancer.rules import Listen
from tsbus.balancer.steps import (
    AddDestination,
    AddService,
    DeleteDestination,
    DeleteService,
    SetDestination,
    SetService,
    Step,
)
from tsbus.balancer.table import IP, Address, Counts, Entry, Key, Mark, Virtual
from tsbus.balancer.verdicts import TABLE, Held, Listing, Script, Tally, impossible, parse, script

_RATE_S: Final = 1.0
"""Rates are means over at least so long."""


class Impossible(HostError):
    """A service needs what only IPVS has."""


def why_unavailable() -> str | None:
    """Return why this process cannot balance with nftables here, and what to do about it; None when it can."""
    probe = f"table inet {TABLE}-probe {{ chain pre {{ type nat hook prerouting priority dstnat; }}; }}\n"
    try:
        run("nft", "--check", "-f", "-", text=probe)
    except HostError as error:
        return str(error)
    return None


def remove() -> bool:
    """Remove the table with all its services, and return whether there was one. Raises HostError."""
    try:
        run("nft", "delete", "table", "inet", TABLE)
    except (NoProgram, NoFeature):  # nft says "No such file or directory" of the one and of the other
        return False
    return True


class Table:
    """The services of the network namespace in which this is used. Blocks while nft runs; for one thread."""

    def __init__(self) -> None:
        self._nft = Nft()
        self._news: News | None = None
        self._known: Listing | None = None
        """What is there, until somebody else changes it."""
        self._ended: dict[Key, Held] = {}
        """Deleted servers whose connections are to be forgotten."""
        self._at_once = True
        """Whether the kernel lets go of a chain in the transaction in which its last user goes."""
        self._measured: dict[tuple[Key, Address], tuple[float, Tally]] = {}
        self._rates: dict[tuple[Key, Address], Tally] = {}

    def close(self) -> None:
        """End what works for this; the table stays in force."""
        with suppress(HostError):
            self.finish()
        self._nft.close()
        if self._news is not None:
            self._news.close()

    def services(self, keys: Collection[Key] | None = None, *, counted: bool = True) -> dict[Key, Entry]:
        """Return those of `keys` that are in the table, without `keys` everything. Raises HostError."""
        if not counted:
            pools = self._listing().pools.items()
            return {key: Entry(pool.service, pool.destinations) for key, pool in pools if keys is None or key in keys}
        self._known = None
        listing = self._listing()
        flows = list(_flows_of(listing.pools))
        active = Counter(place for place, flow in flows if flow.established)
        inactive = Counter(place for place, flow in flows if not flow.established)
        rates = self._measure(listing)
        entries = {}
        for key, pool in listing.pools.items():
            if keys is not None and key not in keys:
                continue
            counts = {}
            for address in pool.destinations:
                place = key, address
                tally, rate = listing.tallies[place], rates[place]
                counts[address] = Counts(
                    active[place], inactive[place], 0,
                    tally.connections, tally.in_packets, tally.out_packets, tally.in_bytes, tally.out_bytes,
                    rate.connections, rate.in_packets, rate.out_packets, rate.in_bytes, rate.out_bytes,
                )  # fmt: skip
            entries[key] = Entry(pool.service, pool.destinations, counts)
        return entries

    def untouched(self) -> bool:
        """Tell whether nobody has changed the table since it was read or changed here."""
        if self._heard() != 0:
            self._known = None
        return self._known is not None

    def connections(self, watched: Iterable[tuple[Key, Address]]) -> dict[tuple[Key, Address], int]:
        """Return how many connections of these servers are not over. Raises HostError."""
        wanted = set(watched)
        pools = {
            key: replace(pool, destinations={at: each for at, each in pool.destinations.items() if (key, at) in wanted})
            for key, pool in self._listing().pools.items()
        }
        counted = Counter(place for place, flow in _flows_of(pools) if not flow.over)
        return {place: counted[place] for place in wanted}

    def apply(self, steps: Iterable[Step], listens: Mapping[Mark, tuple[Listen, ...]] | None = None) -> None:
        """Take all steps at once; `listens` says what the marks among the services stand for.

        Connections of a server that is deleted go on until finish(). Raises Impossible before anything is changed,
        and HostError.
        """
        found, self._known = self._listing(), None
        try:
            wanted = _taken(found, steps, listens or {})
        except KeyError as error:
            raise Failed(f"{error.args[0]} is not in the table", "read it again") from error
        different = {key for key in (*wanted, *found.pools) if wanted.get(key) != found.pools.get(key)}
        for key in different & wanted.keys():
            pool = wanted[key]
            pool.service.check()
            for each in pool.destinations.values():
                each.check()
            if why := impossible(pool.service, pool.destinations.values()):
                raise Impossible(f"{key}: {why}", 'or set backend = "ipvs" in [balancing]')
        todo = script(found, wanted)
        if self._carry_out(todo):
            self._known = todo.left
        before = {key: pool for key, pool in found.pools.items() if key in different}
        for key, pool in before.items():
            there = wanted[key].destinations if key in wanted else {}
            gone = {address: each for address, each in pool.destinations.items() if address not in there}
            if gone:
                earlier = self._ended[key].destinations if key in self._ended else {}
                self._ended[key] = replace(pool, destinations={**earlier, **gone})

    def finish(self) -> None:
        """Have the connections of deleted servers forgotten: clients get a reset with TCP, another server with UDP.

        It is apart from apply() since the kernel looks through its whole table of connections for it, 9 ms where that
        is large. Raises HostError; then these connections stay until they are over.
        """
        ended, self._ended = self._ended, {}
        if ended:
            conntrack.end([flow for _, flow in _flows_of(ended)])

    def _carry_out(self, todo: Script) -> bool:
        """Change the table; tell whether nobody else has changed it since it was read."""
        texts = [text for text in (todo.switch, todo.clean) if text]
        if len(texts) > 1 and self._at_once:
            try:
                self._nft.change("".join(texts))
                return self._heard() == 1
            except Failed:
                self._at_once = False
        for text in texts:
            self._nft.change(text)
        return self._heard() == len(texts)

    def _listing(self) -> Listing:
        """What is there: as it was left or read, or read again where somebody else has changed it."""
        if not self.untouched() or self._known is None:
            self._known = _read()
        return self._known

    def _heard(self) -> int | None:
        """How many transactions have changed the table since this was asked last, None where that is not known."""
        try:
            if self._news is None:
                self._news = News(TABLE)
                return None
            return self._news.transactions()
        except OSError:
            return None

    def _measure(self, listing: Listing) -> dict[tuple[Key, Address], Tally]:
        """Rates since the last reading that is long enough ago."""
        now = time.monotonic()
        rates = {}
        measured = {}
        for place, tally in listing.tallies.items():
            since, before = self._measured.get(place, (now, tally))
            span = now - since
            if span >= _RATE_S and tally.connections >= before.connections:
                rates[place] = Tally(*(round((new - old) / span) for new, old in zip(tally, before, strict=True)))
                since, before = now, tally
            else:
                rates[place] = self._rates.get(place, Tally())
            measured[place] = since, before
        self._measured, self._rates = measured, rates
        return rates


def _read() -> Listing:
    try:
        return parse(json.loads(run("nft", "-j", "list", "table", "inet", TABLE))["nftables"])
    except NoFeature:
        return Listing()


def _taken(found: Listing, steps: Iterable[Step], listens: Mapping[Mark, tuple[Listen, ...]]) -> dict[Key, Held]:
    """The table after these steps."""
    pools = dict(found.pools)
    for step in steps:
        match step:
            case AddService(service) | SetService(service):
                before = pools.get(service.key)
                pools[service.key] = Held(service, (), before.destinations if before else {})
            case DeleteService(key):
                del pools[key]
            case AddDestination(key, one) | SetDestination(key, one):
                pools[key] = replace(pools[key], destinations={**pools[key].destinations, one.address: one})
            case DeleteDestination(key, address):
                rest = {each: one for each, one in pools[key].destinations.items() if each != address}
                pools[key] = replace(pools[key], destinations=rest)
    return {key: replace(pool, listens=_listens(key, pool, listens)) for key, pool in pools.items()}


def _listens(key: Key, pool: Held, listens: Mapping[Mark, tuple[Listen, ...]]) -> tuple[Listen, ...]:
    match key:
        case Virtual(protocol, ip, port):
            return (Listen(protocol, ip, port, port),)
        case Mark():
            known = tuple(sorted(listens.get(key, pool.listens)))
            if not known:
                raise Impossible(f"{key}: nothing says which addresses it stands for", "name them in the configuration")
            return known


def _flows_of(pools: Mapping[Key, Held]) -> Iterator[tuple[tuple[Key, Address], conntrack.Flow]]:
    """The tracked connections of all servers of these pools."""
    index: dict[tuple[int, IP, Address], list[tuple[Listen, Key, Address]]] = defaultdict(list)
    for key, pool in pools.items():
        for listen, address in product(pool.listens, pool.destinations):
            index[listen.protocol, listen.ip, address].append((listen, key, address))
    for version in {ip.version for _, ip, _ in index}:
        for flow in conntrack.flows(version, {server.ip for _, _, server in index if server.ip.version == version}):
            for server in (flow.server, Address(flow.server.ip, 0)):
                for listen, key, address in index.get((flow.protocol, flow.virtual.ip, server), ()):
                    if listen.first <= flow.virtual.port <= listen.last:
                        yield (key, address), flow
