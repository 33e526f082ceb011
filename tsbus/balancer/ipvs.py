"""IPVS: reads and changes the kernel's table over netlink. The only file that knows pyroute2's IPVS.

pyroute2 sends and receives the messages, but what goes into them is written here attribute by attribute: its helpers
for services and destinations have wrong defaults and lose what they read. docs/decisions/ipvs.md lists its traps, and
tests/guest/test_ipvs_traps.py has a test for each.

Nothing here empties a table or zeroes counters: what others have put there stays.
"""

import errno
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from socket import AF_INET, AF_INET6, inet_ntoa
from types import TracebackType
from typing import Any, Final, Literal, Self

from pyroute2.ipvs import IPVS, AsyncIPVS
from pyroute2.netlink import genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket
from pyroute2.netlink.generic.ipvs import GENL_NAME

from tsbus.balancer.table import IP, Address, Counts, Destination, Entry, Forward, Key, Mark, Protocol, Service, Virtual

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
"""The mask of what a message changes. pyroute2 leaves the upper half out, and so the ownership."""
_TRAFFIC: Final = range(1, 11)
"""The kinds of the attributes in the kernel's statistics: connections, packets, ..., in the order of Counts."""
_KIND: Final = 0x3FFF
"""What is no flag in the kind of an attribute."""
_NO_SCHEDULER: Final = "the kernel has no scheduler {!r}: choose another, or install a kernel with the module ip_vs_{}"


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


def why_unavailable() -> str | None:
    """Return why this process cannot use IPVS here, and what to do about it; None when it can."""
    try:
        Kernel().close()
    except IpvsError as error:
        return str(error)
    return None


class Kernel:
    """The IPVS table of the network namespace in which this is opened.

    Blocks for the time of a system call. For one thread, and not in one that runs an asyncio loop.
    Raises NoModule or NoPermission when it is opened; every method raises IpvsError when the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = _Socket()
        try:
            with _refusals("opening IPVS"):
                self._socket.bind(GENL_NAME, _Answer)
            self._services()
        except Missing as error:
            self.close()
            raise NoModule("this kernel has no IPVS: load it with `modprobe ip_vs`, or run one that has it") from error
        except IpvsError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the kernel."""
        self._socket.close()

    def services(self) -> dict[Key, Entry]:
        """Return everything in the table, foreign services too.

        It is read service by service: one that goes in between is without destinations, as if it had none.
        """
        return {service.key: Entry(service, self._destinations(service.key)) for service in self._services()}

    def schedulers(self) -> frozenset[str]:
        """Return those of SCHEDULERS that this kernel has, loading their modules; the table stays as it is.

        The kernel looks for the scheduler before it looks at the rest of a new service, so an impossible one (an IPv6
        network of 0 bits) is refused for the one reason or the other. Raises IpvsError where IPVS has no IPv6.
        """
        return frozenset(name for name in SCHEDULERS if self._has_scheduler(name))

    def add_service(self, service: Service) -> None:
        """Add a service. Raises Exists or NoScheduler, and ValueError when it fails its check()."""
        self._change_service("add", service)

    def set_service(self, service: Service) -> None:
        """Give a service other settings; its destinations and connections stay. Raises Missing or NoScheduler."""
        self._change_service("set", service)

    def delete_service(self, key: Key) -> None:
        """Delete a service with its destinations. Raises Missing."""
        with _refusals(str(key)):
            self._socket.service("del", service=_Sent(_key(key)))

    def add_destination(self, key: Key, destination: Destination) -> None:
        """Add a destination. Raises Exists, Missing for the service, and ValueError when it fails its check()."""
        self._change_destination("add", key, destination)

    def set_destination(self, key: Key, destination: Destination) -> None:
        """Give a destination other settings; its connections and counts stay. Raises Missing."""
        self._change_destination("set", key, destination)

    def delete_destination(self, key: Key, address: Address) -> None:
        """Delete a destination; net.ipv4.vs.expire_nodest_conn says what its connections get. Raises Missing."""
        with _refusals(f"{address} of {key}"):
            self._socket.dest("del", service=_Sent(_key(key)), dest=_Sent(_address(address)))

    def _services(self) -> list[Service]:
        with _refusals("reading the table"):
            messages = self._socket.service("dump")
        return [service for message in messages if (service := _service(message)) is not None]

    def _destinations(self, key: Key) -> dict[Address, tuple[Destination, Counts]]:
        with _refusals(str(key)):
            messages = self._socket.dest("dump", service=_Sent(_key(key)))
        return {one.address: (one, counts) for one, counts in map(_destination, messages)}

    def _change_service(self, command: Literal["add", "set"], service: Service) -> None:
        service.check()
        with _refusals(str(service.key), NoScheduler(_NO_SCHEDULER.format(*[service.scheduler] * 2))):
            self._socket.service(command, service=_Sent(_key(service.key) + _settings(service)))

    def _change_destination(self, command: Literal["add", "set"], key: Key, destination: Destination) -> None:
        destination.check()
        with _refusals(f"{destination.address} of {key}"):
            attributes = _address(destination.address) + _limits(destination)
            self._socket.dest(command, service=_Sent(_key(key)), dest=_Sent(attributes))

    def _has_scheduler(self, name: str) -> bool:
        impossible = Virtual(Protocol.TCP, ip_address("::"), 1)
        settings = dict(_settings(Service(impossible, name))) | {"IPVS_SVC_ATTR_NETMASK": _netmask(0, 6)}
        try:
            with _refusals("probing schedulers", NoScheduler(name)):
                self._socket.service("add", service=_Sent([*_key(impossible), *settings.items()]))
        except NoScheduler:
            return False
        except Impossible:
            return True
        raise AssertionError("the kernel took an impossible service")


class _AsyncSocket(AsyncIPVS):  # type: ignore[misc]  # pyroute2 has no types
    async def setup_endpoint(self) -> None:
        """Make the socket only: its own way binds it, too, and leaks it where the kernel has no IPVS."""
        await AsyncGenericNetlinkSocket.setup_endpoint(self)


class _Socket(IPVS):  # type: ignore[misc]
    async_class = _AsyncSocket


Attribute = tuple[str, Any]


class _Sent:
    """Takes the place of pyroute2's IPVSService and IPVSDest: what is sent is what is given, and nothing else."""

    def __init__(self, attributes: list[Attribute]) -> None:
        self._attributes = attributes

    def dump_nla(self) -> dict[str, list[Attribute]]:
        return {"attrs": self._attributes}

    dump_key = dump_nla


def _key(key: Key) -> list[Attribute]:
    family = ("IPVS_SVC_ATTR_AF", _FAMILIES[key.version])
    if isinstance(key, Mark):
        return [family, ("IPVS_SVC_ATTR_FWMARK", key.number)]
    return [
        family,
        ("IPVS_SVC_ATTR_PROTOCOL", int(key.protocol)),
        ("IPVS_SVC_ATTR_ADDR", str(key.ip)),
        ("IPVS_SVC_ATTR_PORT", key.port),
    ]


def _settings(service: Service) -> list[Attribute]:
    flags = (
        _PERSISTENT * (service.persistent_s > 0)
        | _ONE_PACKET * service.one_packet
        | _HASH_FALLBACK * service.hash_fallback
        | _HASH_PORT * service.hash_port
        | _OWNED * service.owned
    )
    return [
        ("IPVS_SVC_ATTR_SCHED_NAME", service.scheduler),
        ("IPVS_SVC_ATTR_FLAGS", {"flags": flags, "mask": _ALL_FLAGS}),
        ("IPVS_SVC_ATTR_TIMEOUT", service.persistent_s),
        ("IPVS_SVC_ATTR_NETMASK", _netmask(service.client_prefix or _BITS[service.key.version], service.key.version)),
    ]


def _netmask(prefix: int, version: Literal[4, 6]) -> str:
    """The four bytes that pyroute2 takes for an IPv4 address. Of IPv6 the kernel wants the length, as an integer."""
    return str(IPv4Network((0, prefix)).netmask) if version == 4 else inet_ntoa(struct.pack("=I", prefix))


def _address(address: Address) -> list[Attribute]:
    return [
        ("IPVS_DEST_ATTR_ADDR_FAMILY", _FAMILIES[address.ip.version]),
        ("IPVS_DEST_ATTR_ADDR", str(address.ip)),
        ("IPVS_DEST_ATTR_PORT", address.port),
    ]


def _limits(destination: Destination) -> list[Attribute]:
    return [
        ("IPVS_DEST_ATTR_FWD_METHOD", int(destination.forward)),
        ("IPVS_DEST_ATTR_WEIGHT", destination.weight),
        ("IPVS_DEST_ATTR_U_THRESH", destination.upper),
        ("IPVS_DEST_ATTR_L_THRESH", destination.lower),
    ]


class _Answer(genlmsg):  # type: ignore[misc]
    """A message of a dump, with its service or destination as bytes: pyroute2 takes 0.6 ms to decode one."""

    nla_map = (("NONE", "none"), ("SERVICE", "cdata"), ("DESTINATION", "cdata"))


def _attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a netlink message: each a length with its header, a type, and the value, padded to 4 bytes."""
    found, position = {}, 0
    while position < len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        found[kind & _KIND] = data[position + 4 : position + length]
        position += max(length, 4) + 3 & ~3
    return found


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _ip(family: bytes, value: bytes) -> IP:
    """The kernel gives 16 bytes for both kinds."""
    return IPv4Address(value[:4]) if _number(family) == AF_INET else IPv6Address(value)


def _service(message: Any) -> Service | None:
    """A service of a dump; None for one of a protocol that IPVS has learned since."""
    read = _attributes(message.get_attr("SERVICE"))
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


def _destination(message: Any) -> tuple[Destination, Counts]:
    read = _attributes(message.get_attr("DESTINATION"))
    destination = Destination(
        Address(_ip(read[_Dest.FAMILY], read[_Dest.ADDRESS]), int.from_bytes(read[_Dest.PORT], "big")),
        weight=_number(read[_Dest.WEIGHT]),
        forward=Forward(_number(read[_Dest.FORWARD])),
        upper=_number(read[_Dest.UPPER]),
        lower=_number(read[_Dest.LOWER]),
    )
    traffic = _attributes(read[_Dest.TRAFFIC])
    connections = (_number(read[kind]) for kind in (_Dest.ACTIVE, _Dest.INACTIVE, _Dest.PERSISTENT))
    return destination, Counts(*connections, *(_number(traffic[kind]) for kind in _TRAFFIC))


@contextmanager
def _refusals(what: str, no_entry: IpvsError | None = None) -> Iterator[None]:
    """Translate the kernel's numbers. `no_entry` is what ENOENT means, when it is not that `what` is missing."""
    try:
        yield
    except NetlinkError as error:
        raise _refusal(error.code, what, no_entry) from error


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
