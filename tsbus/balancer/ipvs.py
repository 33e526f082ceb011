"""IPVS: reads and changes the kernel's table over netlink, attribute by attribute.

pyroute2's helpers for this have wrong defaults, lose what they read, and take several times as long.
docs/decisions/ipvs.md lists the traps, and tests/guest/test_ipvs_traps.py has a test for each.

Nothing here empties a table or zeroes counters: what others have put there stays.
"""

import errno
import os
import struct
import sys
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Final, Literal, Self

from tsbus.balancer.netlink import DUMP, GENERIC, NESTED, Netlink, attribute, attributes
from tsbus.balancer.table import (
    IP,
    Address,
    Counts,
    Destination,
    Entry,
    Forward,
    Key,
    Mark,
    Protocol,
    Service,
    Virtual,
)

SCHEDULERS: Final = (
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos",
)  # fmt: skip
"""All that Linux has had. A kernel has some of them."""
_FAMILIES: Final[dict[Literal[4, 6], int]] = {4: AF_INET, 6: AF_INET6}
_BITS: Final = {4: 32, 6: 128}
_PERSISTENT: Final = 0x1
_ONE_PACKET: Final = 0x4
_HASH_FALLBACK: Final = 0x8
_HASH_PORT: Final = 0x10
_OWNED: Final = 0x40000000
_ALL_FLAGS: Final = 0xFFFFFFFF
"""The mask of what a message changes: the upper half, too, where the ownership is."""
_TRAFFIC: Final = range(1, 11)
"""The kinds of the attributes in the kernel's statistics: connections, packets, ..., in the order of Counts."""
_FAMILY_NAME, _FAMILY_ID = 2, 1
_CONTROL, _GET_FAMILY = 16, 3
"""Of generic netlink: who knows the numbers of the others."""
_AT_WORK: Final = Path("/proc/net/ip_vs")
"""Is there when the kernel has IPVS loaded; to ask it in another way would load it."""
_NO_SCHEDULER: Final = "the kernel has no scheduler {!r}: choose another, or install a kernel with the module ip_vs_{}"


class _Command(IntEnum):
    """What a message asks for: IPVS_CMD_* of linux/ip_vs.h. "set" is not what pyroute2 calls update, which deletes."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DELETE_SERVICE = 3
    GET_SERVICES = 4
    NEW_DESTINATION = 5
    SET_DESTINATION = 6
    DELETE_DESTINATION = 7
    GET_DESTINATIONS = 8


_SERVICE, _DESTINATION = 1, 2
"""Kinds of attributes of a message."""


class _Svc(IntEnum):
    """Kinds of attributes of a service: IPVS_SVC_ATTR_* of linux/ip_vs.h."""

    FAMILY = 1
    PROTOCOL = 2
    ADDRESS = 3
    PORT = 4
    MARK = 5
    SCHEDULER = 6
    FLAGS = 7
    TIMEOUT = 8
    NETMASK = 9


class _Dest(IntEnum):
    """Kinds of attributes of a destination: IPVS_DEST_ATTR_*."""

    ADDRESS = 1
    PORT = 2
    FORWARD = 3
    WEIGHT = 4
    UPPER = 5
    LOWER = 6
    ACTIVE = 7
    INACTIVE = 8
    PERSISTENT = 9
    FAMILY = 11
    TRAFFIC = 12


class IpvsError(Exception):
    """The kernel refused; the text says what and what to do."""


class NoModule(IpvsError):
    """The kernel has no IPVS."""


class NoPermission(IpvsError):
    """This process may not see or change the table."""


class NoScheduler(IpvsError):
    """The kernel has no scheduler of this name."""


class Exists(IpvsError):
    """What should be added is there."""


class Impossible(IpvsError):
    """The kernel cannot hold such a service or destination."""


class Missing(IpvsError):
    """What should be changed or deleted, or the service it belongs to, is not there."""


def remove(keys: Container[Key]) -> bool:
    """Delete those services among `keys` that have our mark, and return whether there were any. Raises IpvsError."""
    if not _AT_WORK.exists():
        return False
    with Kernel() as kernel:
        ours = [key for key, each in kernel.services(counted=False).items() if key in keys and each.service.owned]
        for key in ours:
            kernel.delete_service(key)
    return bool(ours)


class Kernel:
    """The IPVS table of the network namespace in which this is opened.

    Blocks for the time of a system call. For one thread, and not in one that runs an asyncio loop.
    Raises NoModule or NoPermission when it is opened; every method raises IpvsError when the kernel refuses.
    """

    def __init__(self) -> None:
        with _refusals("opening IPVS"):
            self._netlink = Netlink(GENERIC)
        try:
            with _refusals("opening IPVS"):
                self._family = self._number_of("IPVS")
            self._services()
        except Missing as error:
            self.close()
            raise NoModule("this kernel has no IPVS: load it with `modprobe ip_vs`, or run one that has it") from error
        except IpvsError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the kernel."""
        self._netlink.close()

    def services(self, keys: Collection[Key] | None = None, *, counted: bool = True) -> dict[Key, Entry]:
        """Return those of `keys` that are in the table, without `keys` everything, foreign services too.

        It is read service by service: one that goes in between is without destinations, as if it had none. Without
        `counted` all counts are 0, and it takes a third of the time.
        """
        there = (service for service in self._services() if keys is None or service.key in keys)
        return {service.key: self._entry(service, counted) for service in there}

    def schedulers(self) -> frozenset[str]:
        """Return those of SCHEDULERS that this kernel has, loading their modules; the table stays as it is.

        The kernel looks for the scheduler before it looks at the rest of a new service, so an impossible one (an IPv6
        network of 0 bits) is refused for the one reason or the other. Raises IpvsError where IPVS has no IPv6.
        """
        return frozenset(name for name in SCHEDULERS if self._has_scheduler(name))

    def add_service(self, service: Service) -> None:
        """Add a service. Raises Exists or NoScheduler, and ValueError when it fails its check()."""
        self._change_service(_Command.NEW_SERVICE, service)

    def set_service(self, service: Service) -> None:
        """Give a service other settings; its destinations and connections stay. Raises Missing or NoScheduler."""
        self._change_service(_Command.SET_SERVICE, service)

    def delete_service(self, key: Key) -> None:
        """Delete a service with its destinations. Raises Missing."""
        with _refusals(str(key)):
            self._order(_Command.DELETE_SERVICE, _service_of(_key(key)))

    def add_destination(self, key: Key, destination: Destination) -> None:
        """Add a destination. Raises Exists, Missing for the service, and ValueError when it fails its check()."""
        self._change_destination(_Command.NEW_DESTINATION, key, destination)

    def set_destination(self, key: Key, destination: Destination) -> None:
        """Give a destination other settings; its connections and counts stay. Raises Missing."""
        self._change_destination(_Command.SET_DESTINATION, key, destination)

    def delete_destination(self, key: Key, address: Address) -> None:
        """Delete a destination; net.ipv4.vs.expire_nodest_conn says what its connections get. Raises Missing."""
        with _refusals(f"{address} of {key}"):
            body = _service_of(_key(key)) + attribute(_DESTINATION | NESTED, _address(address))
            self._order(_Command.DELETE_DESTINATION, body)

    def _services(self) -> list[Service]:
        with _refusals("reading the table"):
            read = [*self._dump(_Command.GET_SERVICES, b"")]
        return [service for each in read if (service := _service(each[_SERVICE])) is not None]

    def _entry(self, service: Service, counted: bool) -> Entry:
        with _refusals(str(service.key)):
            asked = _service_of(_key(service.key))
            read = [each[_DESTINATION] for each in self._dump(_Command.GET_DESTINATIONS, asked)]
        found = list(map(_destination, read))
        counts = {one.address: _counts(each) for one, each in zip(found, read, strict=True)} if counted else {}
        return Entry(service, {one.address: one for one in found}, counts)

    def _change_service(self, command: _Command, service: Service) -> None:
        service.check()
        with _refusals(str(service.key), NoScheduler(_NO_SCHEDULER.format(*[service.scheduler] * 2))):
            self._order(command, _service_of(_key(service.key) + _settings(service)))

    def _change_destination(self, command: _Command, key: Key, destination: Destination) -> None:
        destination.check()
        with _refusals(f"{destination.address} of {key}"):
            sent = attribute(_DESTINATION | NESTED, _address(destination.address) + _limits(destination))
            self._order(command, _service_of(_key(key)) + sent)

    def _has_scheduler(self, name: str) -> bool:
        impossible = Virtual(Protocol.TCP, ip_address("::"), 1)
        settings = _settings(Service(impossible, name)) + attribute(_Svc.NETMASK, _netmask(0, 6))
        try:
            with _refusals("probing schedulers", NoScheduler(name)):
                self._order(_Command.NEW_SERVICE, _service_of(_key(impossible) + settings))
        except NoScheduler:
            return False
        except Impossible:
            return True
        raise AssertionError("the kernel took an impossible service")

    def _number_of(self, family: str) -> int:
        """The number that the kernel has given to a part of generic netlink, which it loads if it can."""
        asked = _generic(_GET_FAMILY) + attribute(_FAMILY_NAME, f"{family}\0".encode())
        (told,) = self._netlink.ask(_CONTROL, asked)
        return _number(attributes(told[_GENERIC.size :])[_FAMILY_ID])

    def _order(self, command: _Command, body: bytes) -> None:
        self._netlink.order(self._family, _generic(command) + body)

    def _dump(self, command: _Command, body: bytes) -> Iterator[dict[int, bytes]]:
        for told in self._netlink.ask(self._family, _generic(command) + body, DUMP):
            yield attributes(told[_GENERIC.size :])


_GENERIC: Final = struct.Struct("=BBH")
"""Command, version."""
_16: Final = struct.Struct("=H")
_32: Final = struct.Struct("=I")


def _generic(command: int) -> bytes:
    return _GENERIC.pack(command, 1, 0)


def _service_of(sent: bytes) -> bytes:
    return attribute(_SERVICE | NESTED, sent)


def _key(key: Key) -> bytes:
    family = attribute(_Svc.FAMILY, _16.pack(_FAMILIES[key.version]))
    if isinstance(key, Mark):
        return family + attribute(_Svc.MARK, _32.pack(key.number))
    protocol = attribute(_Svc.PROTOCOL, _16.pack(key.protocol))
    return family + protocol + attribute(_Svc.ADDRESS, _bytes(key.ip)) + attribute(_Svc.PORT, key.port.to_bytes(2))


def _settings(service: Service) -> bytes:
    flags = (
        _PERSISTENT * (service.persistent_s > 0)
        | _ONE_PACKET * service.one_packet
        | _HASH_FALLBACK * service.hash_fallback
        | _HASH_PORT * service.hash_port
        | _OWNED * service.owned
    )
    version = service.key.version
    return (
        attribute(_Svc.SCHEDULER, service.scheduler.encode() + b"\0")
        + attribute(_Svc.FLAGS, _32.pack(flags) + _32.pack(_ALL_FLAGS))
        + attribute(_Svc.TIMEOUT, _32.pack(service.persistent_s))
        + attribute(_Svc.NETMASK, _netmask(service.client_prefix or _BITS[version], version))
    )


def _netmask(prefix: int, version: Literal[4, 6]) -> bytes:
    """Of IPv4 the mask itself, of IPv6 the kernel wants the length, as an integer of the machine."""
    return IPv4Network((0, prefix)).netmask.packed if version == 4 else _32.pack(prefix)


def _bytes(ip: IP) -> bytes:
    """The kernel has 16 bytes for both kinds."""
    return ip.packed.ljust(16, b"\0")


def _address(address: Address) -> bytes:
    return (
        attribute(_Dest.FAMILY, _16.pack(_FAMILIES[address.ip.version]))
        + attribute(_Dest.ADDRESS, _bytes(address.ip))
        + attribute(_Dest.PORT, address.port.to_bytes(2))
    )


def _limits(destination: Destination) -> bytes:
    return (
        attribute(_Dest.FORWARD, _32.pack(destination.forward))
        + attribute(_Dest.WEIGHT, _32.pack(destination.weight))
        + attribute(_Dest.UPPER, _32.pack(destination.upper))
        + attribute(_Dest.LOWER, _32.pack(destination.lower))
    )


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _ip(family: bytes, value: bytes) -> IP:
    return IPv4Address(value[:4]) if _number(family) == AF_INET else IPv6Address(value)


def _service(data: bytes) -> Service | None:
    """A service of a dump; None for one of a protocol that IPVS has learned since."""
    read = attributes(data)
    version: Literal[4, 6] = 4 if _number(read[_Svc.FAMILY]) == AF_INET else 6
    key: Key
    if _Svc.MARK in read:
        key = Mark(_number(read[_Svc.MARK]), version)
    elif (protocol := _number(read[_Svc.PROTOCOL])) in list(Protocol):
        ip = _ip(read[_Svc.FAMILY], read[_Svc.ADDRESS])
        key = Virtual(Protocol(protocol), ip, int.from_bytes(read[_Svc.PORT], "big"))
    else:
        return None
    flags = _number(read[_Svc.FLAGS][:4])
    mask = _number(read[_Svc.NETMASK])
    return Service(
        key,
        read[_Svc.SCHEDULER].rstrip(b"\0").decode(),
        persistent_s=_number(read[_Svc.TIMEOUT]) if flags & _PERSISTENT else 0,
        client_prefix=mask.bit_count() if version == 4 else mask,
        one_packet=bool(flags & _ONE_PACKET),
        hash_fallback=bool(flags & _HASH_FALLBACK),
        hash_port=bool(flags & _HASH_PORT),
        owned=bool(flags & _OWNED),
    )


def _counts(data: bytes) -> Counts:
    read = attributes(data)
    traffic = attributes(read[_Dest.TRAFFIC])
    connections = (_number(read[kind]) for kind in (_Dest.ACTIVE, _Dest.INACTIVE, _Dest.PERSISTENT))
    return Counts(*connections, *(_number(traffic[kind]) for kind in _TRAFFIC))


def _destination(data: bytes) -> Destination:
    read = attributes(data)
    return _settled(*map(read.__getitem__, _SETTLED))


_SETTLED: Final = (
    _Dest.FAMILY, _Dest.ADDRESS, _Dest.PORT, _Dest.WEIGHT, _Dest.FORWARD, _Dest.UPPER, _Dest.LOWER,
)  # fmt: skip


@lru_cache(maxsize=20_000)
def _settled(*values: bytes) -> Destination:
    """What was set of a destination. It is mostly the same as when it was read before."""
    family, ip, port, weight, forward, upper, lower = values
    address = Address(_ip(family, ip), int.from_bytes(port, "big"))
    return Destination(address, _number(weight), Forward(_number(forward)), _number(upper), _number(lower))


@contextmanager
def _refusals(what: str, no_entry: IpvsError | None = None) -> Iterator[None]:
    """Translate the kernel's numbers. `no_entry` is what ENOENT means, when it is not that `what` is missing."""
    try:
        yield
    except OSError as error:
        raise _refusal(error.errno or 0, what, no_entry) from error


def _refusal(code: int, what: str, no_entry: IpvsError | None) -> IpvsError:
    match code:
        case errno.EEXIST:
            return Exists(f"{what} is in the kernel's table already: read the table again")
        case errno.ENOENT if no_entry:
            return no_entry
        case errno.ENOENT | errno.ESRCH:
            return Missing(f"{what} is not in the kernel's table: read the table again")
        case errno.EPERM | errno.EACCES:
            return NoPermission(
                f"{what}: IPVS needs root with CAP_NET_ADMIN, of the host and not only of a user namespace"
            )
        case errno.EINVAL | errno.ERANGE:
            return Impossible(f"{what}: the kernel finds it impossible, such as IPv4 and IPv6 mixed under NAT")
        case errno.EAFNOSUPPORT:
            return IpvsError(f"{what}: this kernel's IPVS has no IPv6")
    return IpvsError(f"{what}: {os.strerror(code)}")
