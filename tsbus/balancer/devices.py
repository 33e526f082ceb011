"""Devices: the host's addresses and bridges over rtnetlink, and the balancer's own device `ts0` for addresses.

The numbers are those of linux/rtnetlink.h, if_link.h, if_addr.h and neighbour.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final, Self

from tsbus.balancer.inventory import DEVICE, Card, Interface, Inventory
from tsbus.balancer.netlink import DUMP, NESTED, ROUTE, Netlink, attribute, attributes
from tsbus.balancer.programs import Failed, HostError, NoFeature, NotAllowed
from tsbus.balancer.rules import Proxy, Route
from tsbus.balancer.table import IP

_KINDS: Final = ("dummy", "bridge")
"""Of our own device. A small kernel may have no dummies; a bridge without members holds addresses as well."""
_TRIES: Final = 10
"""So often a list is read that changes meanwhile."""
_NEW_LINK, _DELETE_LINK, _GET_LINK, _SET_LINK = 16, 17, 18, 19
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_GET_ROUTE = 26
_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR, _GET_NEIGHBOUR = 28, 29, 30
_CREATE: Final = 0x600
"""A flag: what is made must not be there."""
_LINK = struct.Struct("=BxHiII")
"""Family, type, index, flags, and which flags to change."""
_LINK_NAME, _LINK_MASTER, _LINK_PORT, _LINK_INFO, _LINK_EXTENT = 3, 10, 12, 18, 29
_INFO_KIND, _INFO_PORT = 1, 5
_PORT_HAIRPIN: Final = 4
_NO_STATISTICS: Final = 0x8
_UP: Final = 0x1
_ADDRESS = struct.Struct("=BBBBi")
"""Family, prefix, flags, scope, device."""
_ADDRESS_PEER, _ADDRESS_OWN = 1, 2
_NO_DAD: Final = 0x2
"""The address is usable at once: nobody else on a dummy device could have it."""
_LINK_SCOPE: Final = 253
_ROUTE = struct.Struct("=8BI")
"""Family, bits of destination and source, service, table, protocol, scope, type; flags."""
_ROUTE_TO, _ROUTE_DEVICE, _ROUTE_SOURCE = 1, 4, 7
_FROM_ADVERTISEMENT: Final = 9
_LOCAL: Final = 2
"""A route to the host itself."""
_NEIGHBOUR = struct.Struct("=B3xiHBB")
"""Family, device, state, flags, type."""
_NEIGHBOUR_IP: Final = 1
_PERMANENT, _PROXY = 0x80, 0x8
"""The state and the flag of a neighbour for whom this host answers."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_BRIDGE: Final = 7
_32 = struct.Struct("=I")


class Devices:
    """The devices of the network namespace in which this is opened. For one thread, as ipvs.Kernel."""

    def __init__(self) -> None:
        with _refusals("reading devices"):
            self._netlink = Netlink(ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the kernel."""
        self._netlink.close()

    def look(self) -> Inventory:
        """Return what there is. Raises HostError."""
        extent = attribute(_LINK_EXTENT, _32.pack(_NO_STATISTICS))
        cards = map(_card, self._all(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0) + extent))
        found = map(_interface, self._all(_GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, 0)))
        return Inventory({each.index: each for each in cards}, tuple(each for each in found if each is not None))

    def advertised(self, inventory: Inventory) -> tuple[str, ...]:
        """Return the devices that have IPv6 routes from router advertisements. Raises HostError."""
        names = set()
        for told in self._all(_GET_ROUTE, _ROUTE.pack(socket.AF_INET6, *[0] * 8)):
            if _ROUTE.unpack_from(told)[5] == _FROM_ADVERTISEMENT:
                index = _number(attributes(told[_ROUTE.size :]).get(_ROUTE_DEVICE))
                names |= {inventory.cards[index].name} if index in inventory.cards else set()
        return tuple(sorted(names))

    def route(self, ip: IP) -> Route | None:
        """Return how a packet of this host gets to an address; None when it does not."""
        body = _ROUTE.pack(_FAMILIES[ip.version], ip.max_prefixlen, *[0] * 7) + attribute(_ROUTE_TO, ip.packed)
        try:
            (told,) = self._netlink.ask(_GET_ROUTE, body)
            read = attributes(told[_ROUTE.size :])
            device = socket.if_indextoname(_number(read.get(_ROUTE_DEVICE)))
        except OSError:
            return None
        source = read.get(_ROUTE_SOURCE)
        return Route(device, ip_address(source) if source else None, _ROUTE.unpack_from(told)[7] == _LOCAL)

    def set_hairpin(self, port: Card) -> None:
        """Have a port of a bridge send packets back where they came from. Raises HostError."""
        mode = attribute(_LINK_PORT | NESTED, attribute(_PORT_HAIRPIN, b"\1"))
        with _refusals(port.name):
            self._netlink.order(_SET_LINK, _LINK.pack(_BRIDGE, 0, port.index, 0, 0) + mode)

    def hold(self, ips: Collection[IP]) -> None:
        """Give our device these addresses and no others; it is there as long as there are any. Raises HostError."""
        inventory = self.look()
        own, held = _ours(inventory), inventory.held
        with _refusals(DEVICE):
            if not ips:
                if own is not None:
                    self._netlink.order(_DELETE_LINK, _LINK.pack(0, 0, own.index, 0, 0))
                return
            index = own.index if own is not None else self._make()
            self._netlink.order(_NEW_LINK, _LINK.pack(0, 0, index, _UP, _UP))
        for ip in sorted(set(ips) - held, key=str):
            self._address(_NEW_ADDRESS, index, ip, _CREATE)
        for ip in sorted(held - set(ips), key=str):
            self._address(_DELETE_ADDRESS, index, ip)

    def proxies(self, inventory: Inventory) -> frozenset[Proxy]:
        """Return for which addresses this host answers neighbours, whoever made it so. Raises HostError."""
        found = set()
        for told in self._all(_GET_NEIGHBOUR, _NEIGHBOUR.pack(socket.AF_INET6, 0, 0, _PROXY, 0)):
            index, ip = _NEIGHBOUR.unpack_from(told)[1], attributes(told[_NEIGHBOUR.size :])[_NEIGHBOUR_IP]
            if index in inventory.cards:
                found.add(Proxy(inventory.cards[index].name, ip_address(ip)))
        return frozenset(found)

    def set_proxy(self, proxy: Proxy, *, on: bool) -> None:
        """Answer neighbours at a device for an address, or do not any more. Raises HostError."""
        kind, flags = (_NEW_NEIGHBOUR, _CREATE) if on else (_DELETE_NEIGHBOUR, 0)
        with _refusals(f"{proxy.ip} for the neighbours at {proxy.device}"):
            head = _NEIGHBOUR.pack(socket.AF_INET6, socket.if_nametoindex(proxy.device), _PERMANENT, _PROXY, 0)
            self._netlink.order(kind, head + attribute(_NEIGHBOUR_IP, proxy.ip.packed), flags)

    def _all(self, kind: int, body: bytes) -> list[bytes]:
        with _refusals("reading devices"):
            for _ in range(_TRIES):
                try:
                    return [*self._netlink.ask(kind, body, DUMP)]
                except InterruptedError as error:
                    torn = error
            raise torn

    def _make(self) -> int:
        for kind in _KINDS:
            info = attribute(_LINK_INFO | NESTED, attribute(_INFO_KIND, kind.encode()))
            name = attribute(_LINK_NAME, DEVICE.encode() + b"\0")
            try:
                self._netlink.order(_NEW_LINK, _LINK.pack(0, 0, 0, 0, 0) + name + info, _CREATE)
                break
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP or kind == _KINDS[-1]:
                    raise
        return socket.if_nametoindex(DEVICE)

    def _address(self, kind: int, index: int, ip: IP, flags: int = 0) -> None:
        body = _ADDRESS.pack(_FAMILIES[ip.version], ip.max_prefixlen, _NO_DAD if ip.version == 6 else 0, 0, index)
        body += attribute(_ADDRESS_OWN, ip.packed) + attribute(_ADDRESS_PEER, ip.packed)
        with _refusals(f"{ip} on {DEVICE}"):
            self._netlink.order(kind, body, flags)


def _card(told: bytes) -> Card:
    _, _, index, flags, _ = _LINK.unpack_from(told)
    read = attributes(told[_LINK.size :])
    info = attributes(read.get(_LINK_INFO, b""))
    port = attributes(info.get(_INFO_PORT, b""))
    return Card(
        index,
        _text(read[_LINK_NAME]),
        _text(info.get(_INFO_KIND, b"")),
        _number(read.get(_LINK_MASTER)),
        flags,
        port.get(_PORT_HAIRPIN, b"\0") != b"\0",
    )


def _interface(told: bytes) -> Interface | None:
    """An address; None for one that means something on one link only."""
    _, prefix, _, scope, index = _ADDRESS.unpack_from(told)
    read = attributes(told[_ADDRESS.size :])
    ip = read.get(_ADDRESS_OWN) or read.get(_ADDRESS_PEER)
    return Interface(index, ip_address(ip), prefix) if ip and scope < _LINK_SCOPE else None


def _ours(inventory: Inventory) -> Card | None:
    own = inventory.own
    if own is not None and own.kind not in _KINDS:
        raise Failed(f"{DEVICE} is a {own.kind or 'network card'} and not ours", "give it another name")
    return own


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _number(value: bytes | None) -> int:
    return _32.unpack(value)[0] if value else 0


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(error.errno or 0, what) from error


def _refusal(code: int, what: str) -> HostError:
    match code:
        case errno.EPERM | errno.EACCES:
            return NotAllowed(f"{what}: {os.strerror(code)}", "run the balancer as root with CAP_NET_ADMIN")
        case errno.EOPNOTSUPP:
            return NoFeature(f"{what}: the kernel has no device for addresses", "`modprobe dummy`")
    return Failed(f"{what}: {os.strerror(code)}", "see what else changes the devices of this host")
