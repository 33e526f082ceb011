"""Conntrack: the connections whose destination the kernel translates, over netlink; counts them and ends them.

Written down to the bytes: a balancer may have 100,000 connections, and pyroute2 takes 300 us to read one, this 10 us.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple

from tsbus.balancer.programs import Failed, HostError, NoFeature, NotAllowed
from tsbus.balancer.table import Address

_NETFILTER: Final = 12
_GET, _DELETE = 0x101, 0x102
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_ORIGINAL, _REPLY, _STATUS, _INFO, _ID, _ZONE, _STATUS_MASK = 1, 2, 3, 4, 12, 18, 26
_NESTED: Final = 0x8000
_TRANSLATED: Final = 0x20
"""IPS_DST_NAT"""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_SOURCE_IP: Final = {4: 1, 6: 3}
_DESTINATION_IP: Final = {4: 2, 6: 4}
_OVER: Final = {socket.IPPROTO_TCP: (7, 8), socket.IPPROTO_SCTP: (1,)}
"""TIME_WAIT and CLOSE; CLOSED."""
_ESTABLISHED: Final = {socket.IPPROTO_TCP: 3, socket.IPPROTO_SCTP: 4}

_HEAD = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_PORT = struct.Struct("!H")
_NUMBER = struct.Struct("=i")

Attributes = dict[int, bytes]


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
    """What the kernel knows it by."""
    version: int


def flows(version: int) -> Iterator[Flow]:
    """Return the connections of one version of IP whose destination is translated. Raises HostError."""
    wanted = _attribute(_STATUS, struct.pack("!I", _TRANSLATED)) + _attribute(
        _STATUS_MASK, struct.pack("!I", _TRANSLATED)
    )
    with _open() as kernel:
        kernel.send(_message(_GET, _DUMP, version, wanted))
        for body in _answers(kernel):
            if flow := _flow(body[4:], version):
                yield flow


def end(some: Iterable[Flow]) -> None:
    """Have the kernel forget connections: the next packet of each begins a new one. Raises HostError."""
    with _open() as kernel:
        for each in some:
            kernel.send(_message(_DELETE, _ACK, each.version, each.name))
            list(_answers(kernel))


def _flow(body: bytes, version: int) -> Flow | None:
    attributes = _attributes(body)
    # A kernel before 5.15 tells of all connections, whatever is asked for.
    if not int.from_bytes(attributes[_STATUS]) & _TRANSLATED:
        return None
    ips, protocols = _tuple(attributes[_ORIGINAL])
    answer_ips, answer_protocols = _tuple(attributes[_REPLY])
    if 3 not in protocols or 2 not in answer_protocols:
        return None  # without ports
    protocol = protocols[1][0]
    state = _state(attributes.get(_INFO, b""))
    return Flow(
        protocol,
        Address(ip_address(ips[_DESTINATION_IP[version]]), _PORT.unpack(protocols[3])[0]),
        Address(ip_address(answer_ips[_SOURCE_IP[version]]), _PORT.unpack(answer_protocols[2])[0]),
        over=state in _OVER.get(protocol, ()),
        established=state is not None and state == _ESTABLISHED.get(protocol),
        name=b"".join(_attribute(kind, attributes[kind]) for kind in (_ORIGINAL, _ID, _ZONE) if kind in attributes),
        version=version,
    )


def _tuple(data: bytes) -> tuple[Attributes, Attributes]:
    both = _attributes(data)
    return _attributes(both[1]), _attributes(both[2])


def _state(info: bytes) -> int | None:
    for of_protocol in _attributes(info).values():
        if state := _attributes(of_protocol).get(1):
            return state[0]
    return None


def _attributes(data: bytes) -> Attributes:
    found: Attributes = {}
    position = 0
    while position < len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        found[kind & 0x3FFF] = data[position + 4 : position + length]
        position += (length + 3) & ~3
    return found


def _attribute(kind: int, data: bytes) -> bytes:
    nested = _NESTED if kind in (_ORIGINAL, _REPLY) else 0
    return _ATTRIBUTE.pack(len(data) + 4, kind | nested) + data + b"\0" * (-len(data) % 4)


def _message(kind: int, flags: int, version: int, body: bytes) -> bytes:
    body = bytes([_FAMILIES[version], 0, 0, 0]) + body
    return _HEAD.pack(_HEAD.size + len(body), kind, flags | _REQUEST, 0, 0) + body


def _open() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    except OSError as error:
        raise _refusal(error.errno or 0) from error


def _answers(kernel: socket.socket) -> Iterator[bytes]:
    """The bodies of the messages with which the kernel answers. What is gone already is no error."""
    while True:
        data = kernel.recv(1 << 17)
        position = 0
        while position < len(data):
            length, kind, _, _, _ = _HEAD.unpack_from(data, position)
            body = data[position + _HEAD.size : position + length]
            position += (length + 3) & ~3
            if kind == _DONE:
                return
            if kind != _ERROR:
                yield body
                continue
            code = -_NUMBER.unpack_from(body)[0]
            if code not in (0, errno.ENOENT):
                raise _refusal(code)
            return


def _refusal(code: int) -> HostError:
    text = f"the connections that the kernel tracks: {os.strerror(code)}"
    if code in (errno.EPERM, errno.EACCES):
        return NotAllowed(text, "run the balancer as root with CAP_NET_ADMIN")
    if code in (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
        return NoFeature(text, "`modprobe nf_conntrack_netlink`")
    return Failed(text, "see what the kernel says in dmesg")
