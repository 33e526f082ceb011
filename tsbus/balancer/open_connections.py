"""Open connections: how many connections of IPVS to a real server are not over.

The kernel counts of each destination exactly how many connections are established and how many are not; but among the
latter are both half-closed ones, for which a drain waits, and those in TIME_WAIT, for which it does not. Which they are
only /proc/net/ip_vs_conn tells, and it may pass over connections, or show them twice, while others come and go. So what
it shows to be over is taken from the kernel's count: one that it passes over is taken to be open.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

from tsbus.balancer.rules import Listen
from tsbus.balancer.table import IP, Address, Counts, Key, Protocol, Virtual

PLACE: Final = Path("/proc/thread-self/net/ip_vs_conn")
"""Of the network namespace of the thread that reads it."""
_OVER: Final = ("TIME_WAIT", "CLOSE", "CLOSED")


class Way(NamedTuple):
    """From what is balanced to a server."""

    protocol: Protocol
    virtual: Address
    server: Address


def over(lines: Iterable[str]) -> Counter[Way]:
    """Return how many connections that are over are listed; one that is there twice counts once."""
    return Counter(way for way, _ in set(_over(lines)))


def _over(lines: Iterable[str]) -> Iterator[tuple[Way, tuple[str, ...]]]:
    for line in lines:
        words = line.split()
        if len(words) < 8 or words[0] not in Protocol.__members__ or words[7] not in _OVER:
            continue
        if words[2] == "0000":
            continue  # which server a client is kept with, not a connection
        way = Way(Protocol[words[0]], _address(words[3], words[4]), _address(words[5], words[6]))
        yield way, (words[1], words[2])


def _address(ip: str, port: str) -> Address:
    found: IP = IPv6Address(ip) if ":" in ip else IPv4Address(int(ip, 16))
    return Address(found, int(port, 16))


def left(counts: Counts, ended: Counter[Way], key: Key, server: Address, listens: Iterable[Listen] = ()) -> int:
    """Return how many connections to a server of a service are not over; `listens` is what a mark stands for.

    `counts` must be older than the list of those that have `ended`: else one of these that the kernel has forgotten in
    between would hide one that is open.
    """
    theirs = sum(
        number
        for way, number in ended.items()
        if way.server.ip == server.ip and server.port in (0, way.server.port) and _balanced(way, key, listens)
    )
    return max(counts.active, counts.active + counts.inactive - theirs)


def _balanced(way: Way, key: Key, listens: Iterable[Listen]) -> bool:
    if isinstance(key, Virtual):
        same = (key.protocol, key.ip) == (way.protocol, way.virtual.ip)
        return same and key.port in (0, way.virtual.port)
    return any(
        (one.protocol, one.ip) == (way.protocol, way.virtual.ip) and one.first <= way.virtual.port <= one.last
        for one in listens
    )
