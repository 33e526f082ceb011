"""Conntrack: the connections whose destination the kernel translates, over netlink; counts them and ends them.

A balancer may have 100,000 connections, and pyroute2 takes 300 us to read one; this takes 10 us.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import islice
from typing import Final, NamedTuple

from tsbus.balancer.netlink import DUMP, NESTED, NETFILTER, Attributes, Netlink, attribute, attributes
from tsbus.balancer.programs import Failed, HostError, NoFeature, NotAllowed
from tsbus.balancer.table import IP, Address

_GET, _DELETE = 0x101, 0x102
_ORIGINAL, _REPLY, _STATUS, _INFO, _ID, _ZONE, _STATUS_MASK = 1, 2, 3, 4, 12, 18, 26
_TRANSLATED: Final = 0x20
"""IPS_DST_NAT"""
_FEW: Final = 16
"""Servers that are looked for in the bytes; with more, all is read."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_SOURCE_IP: Final = {4: 1, 6: 3}
_DESTINATION_IP: Final = {4: 2, 6: 4}
_OVER: Final = {socket.IPPROTO_TCP: (7, 8), socket.IPPROTO_SCTP: (1,)}
"""TIME_WAIT and CLOSE; CLOSED."""
_ESTABLISHED: Final = {socket.IPPROTO_TCP: 3, socket.IPPROTO_SCTP: 4}

_PORT = struct.Struct("!H")


class Flow(NamedTuple):
    """One connection, as the kernel tracks it."""

    protocol: int
    virtual: Address
    """What the client connected to."""
    server: Address
    """Who answers."""
    over: bool
    established: bool
    name: bytes
    """What the kernel knows it by: the answers, which come from the server.

    Its other half, what the client sends, may be another connection's soon: to another server from the same port, and
    with the same id, which is made of the place in memory that the kernel has just freed.
    """
    version: int


def flows(version: int, servers: Iterable[IP] = ()) -> Iterator[Flow]:
    """Return the connections of one version of IP whose destination is translated. Raises HostError.

    Those of others than `servers` need not be among them, where some are given: it is cheaper so.
    """
    translated = struct.pack("!I", _TRANSLATED)
    wanted = attribute(_STATUS, translated) + attribute(_STATUS_MASK, translated)
    marks = [ip.packed for ip in islice(servers, _FEW + 1)]
    some = 0 < len(marks) <= _FEW
    with _opened() as kernel:
        for body in kernel.ask(_GET, _family(version) + wanted, DUMP):
            if some and not any(mark in body for mark in marks):
                continue
            if flow := _flow(body[4:], version):
                yield flow


def end(some: Iterable[Flow]) -> None:
    """Have the kernel forget connections: the next packet of each begins a new one. Raises HostError."""
    with _opened() as kernel:
        kernel.order_many(_DELETE, (_family(each.version) + each.name for each in some))


def _flow(body: bytes, version: int) -> Flow | None:
    read = attributes(body)
    # A kernel before 5.15 tells of all connections, whatever is asked for.
    if not int.from_bytes(read[_STATUS]) & _TRANSLATED:
        return None
    ips, protocols = _tuple(read[_ORIGINAL])
    answer_ips, answer_protocols = _tuple(read[_REPLY])
    if 3 not in protocols or 2 not in answer_protocols:
        return None  # without ports
    protocol = protocols[1][0]
    state = _state(read.get(_INFO, b""))
    return Flow(
        protocol,
        Address(ip_address(ips[_DESTINATION_IP[version]]), _PORT.unpack(protocols[3])[0]),
        Address(ip_address(answer_ips[_SOURCE_IP[version]]), _PORT.unpack(answer_protocols[2])[0]),
        over=state in _OVER.get(protocol, ()),
        established=state is not None and state == _ESTABLISHED.get(protocol),
        name=b"".join(
            attribute(kind | flag, read[kind])
            for kind, flag in ((_REPLY, NESTED), (_ID, 0), (_ZONE, 0))
            if kind in read
        ),
        version=version,
    )


def _tuple(data: bytes) -> tuple[Attributes, Attributes]:
    both = attributes(data)
    return attributes(both[1]), attributes(both[2])


def _state(info: bytes) -> int | None:
    for of_protocol in attributes(info).values():
        if state := attributes(of_protocol).get(1):
            return state[0]
    return None


def _family(version: int) -> bytes:
    return bytes([_FAMILIES[version], 0, 0, 0])


@contextmanager
def _opened() -> Iterator[Netlink]:
    try:
        with Netlink(NETFILTER) as kernel:
            yield kernel
    except OSError as error:
        raise _refusal(error.errno or 0) from error


def _refusal(code: int) -> HostError:
    text = f"the connections that the kernel tracks: {os.strerror(code)}"
    if code in (errno.EPERM, errno.EACCES):
        return NotAllowed(text, "run the balancer as root with CAP_NET_ADMIN")
    if code in (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
        return NoFeature(text, "`modprobe nf_conntrack_netlink`")
    return Failed(text, "see what the kernel says in dmesg")
