"""Open connections: how many connections of IPVS to a real server are not over, as /proc/net/ip_vs_conn has them.

The kernel's counts know "established" and "all others", and among the others are both those that are half closed and
those in TIME_WAIT. A drain waits for the first and not for the second.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

from tsbus.balancer.rules import Listen
from tsbus.balancer.table import IP, Address, Key, Protocol, Virtual

PLACE: Final = Path("/proc/thread-self/net/ip_vs_conn")
"""Of the network namespace of the thread that reads it."""
_OVER: Final = ("TIME_WAIT", "CLOSE", "CLOSED")


class Connection(NamedTuple):
    """Of one client to one server."""

    protocol: Protocol
    virtual: Address
    server: Address


def count(lines: Iterable[str]) -> Counter[Connection]:
    """Return how many connections that are not over there are, by what is balanced and where they go."""
    return Counter(_open(lines))


def _open(lines: Iterable[str]) -> Iterator[Connection]:
    for line in lines:
        words = line.split()
        if len(words) < 8 or words[0] not in Protocol.__members__ or words[7] in _OVER:
            continue
        if words[2] == "0000":
            continue  # which server a client is kept with, not a connection
        virtual, server = _address(words[3], words[4]), _address(words[5], words[6])
        yield Connection(Protocol[words[0]], virtual, server)


def _address(ip: str, port: str) -> Address:
    found: IP = IPv6Address(ip) if ":" in ip else IPv4Address(int(ip, 16))
    return Address(found, int(port, 16))


def of(counted: Counter[Connection], key: Key, server: Address, listens: Iterable[Listen] = ()) -> int:
    """Return how many of these go to one server of a service; `listens` is what a mark stands for."""
    return sum(
        number
        for each, number in counted.items()
        if each.server.ip == server.ip and server.port in (0, each.server.port) and _balanced(each, key, listens)
    )


def _balanced(each: Connection, key: Key, listens: Iterable[Listen]) -> bool:
    if isinstance(key, Virtual):
        same = (key.protocol, key.ip) == (each.protocol, each.virtual.ip)
        return same and key.port in (0, each.virtual.port)
    return any(
        (one.protocol, one.ip) == (each.protocol, each.virtual.ip) and one.first <= each.virtual.port <= one.last
        for one in listens
    )
