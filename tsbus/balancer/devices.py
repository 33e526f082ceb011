"""Devices: the host's addresses and bridges over rtnetlink, and the balancer's own device `ts0` for addresses.

The one home of pyroute2. What the host has is read in two lists and judged by inventory.py.
"""

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, if_indextoname
from typing import Any, Final, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tsbus.balancer.inventory import DEVICE, Card, Interface, Inventory
from tsbus.balancer.programs import Failed, HostError, NoFeature, NotAllowed
from tsbus.balancer.rules import Proxy, Route
from tsbus.balancer.table import IP

_KINDS: Final = ("dummy", "bridge")
"""Of our own device. A small kernel may have no dummies; a bridge without members holds addresses as well."""
_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_HAIRPIN: Final = 1
_NO_DAD: Final = 0x2
"""The address is usable at once: nobody else on a dummy device could have it."""
_LINK_SCOPE: Final = 253
_FROM_ADVERTISEMENT: Final = 9
_LOCAL: Final = 2
"""A route to the host itself."""
_PROXY: Final = 0x8
"""The flag of a neighbour for whom this host answers."""


class Devices:
    """The devices of the network namespace in which this is opened. For one thread, as ipvs.Kernel."""

    def __init__(self) -> None:
        with _refusals("reading devices"):
            self._route = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the kernel."""
        self._route.close()

    def look(self) -> Inventory:
        """Return what there is. Raises HostError."""
        with _refusals("reading devices"):
            cards = {each.index: each for each in map(_card, self._route.get_links())}
            found = [*map(_interface, self._route.get_addr())]
        return Inventory(cards, tuple(each for each in found if each is not None))

    def advertised(self, inventory: Inventory) -> tuple[str, ...]:
        """Return the devices that have IPv6 routes from router advertisements. Raises HostError."""
        with _refusals("reading routes"):
            routes = [*self._route.get_routes(family=AF_INET6, proto=_FROM_ADVERTISEMENT)]
        indices = {route.get_attr("RTA_OIF") for route in routes}
        return tuple(sorted(card.name for index, card in inventory.cards.items() if index in indices))

    def route(self, ip: IP) -> Route | None:
        """Return how a packet of this host gets to an address; None when it does not."""
        try:
            (found,) = self._route.route("get", dst=str(ip), family=_FAMILIES[ip.version])
            device = if_indextoname(found.get_attr("RTA_OIF"))
        except (NetlinkError, OSError):
            return None
        source = found.get_attr("RTA_PREFSRC")
        return Route(device, ip_address(source) if source else None, found["type"] == _LOCAL)

    def set_hairpin(self, port: Card) -> bool:
        """Have a port of a bridge send packets back where they came from; False if it is none any more.

        Raises HostError.
        """
        with _refusals(port.name):
            try:
                self._route.brport("set", index=port.index, mode=_HAIRPIN)
            except NetlinkError as error:
                if error.code in (errno.ENODEV, errno.EOPNOTSUPP):  # it went with its container since it was seen
                    return False
                raise
        return True

    def hold(self, ips: Collection[IP]) -> None:
        """Give our device these addresses and no others; it is there as long as there are any. Raises HostError."""
        inventory = self.look()
        own, held = _ours(inventory), inventory.held
        with _refusals(DEVICE):
            if not ips:
                if own is not None:
                    self._route.link("del", index=own.index)
                return
            index = own.index if own is not None else self._make()
            self._route.link("set", index=index, state="up")
        for ip in sorted(set(ips) - held, key=str):
            self._address("add", index, ip)
        for ip in sorted(held - set(ips), key=str):
            self._address("del", index, ip)

    def proxies(self, inventory: Inventory) -> frozenset[Proxy]:
        """Return for which addresses this host answers neighbours, whoever made it so. Raises HostError."""
        with _refusals("reading neighbours"):
            found = [*self._route.neigh("dump", dump_filter=None, family=AF_INET6, flags=_PROXY)]
        return frozenset(
            Proxy(card.name, ip_address(each.get_attr("NDA_DST")))
            for each in found
            if (card := inventory.cards.get(each["ifindex"]))
        )

    def set_proxy(self, proxy: Proxy, *, on: bool) -> None:
        """Answer neighbours at a device for an address, or do not any more. Raises HostError."""
        with _refusals(f"{proxy.ip} for the neighbours at {proxy.device}"):
            for index in self._route.link_lookup(ifname=proxy.device):
                where = {"dst": str(proxy.ip), "ifindex": index, "family": AF_INET6, "flags": _PROXY}
                self._route.neigh("add" if on else "del", **where)

    def _make(self) -> int:
        for kind in _KINDS:
            try:
                self._route.link("add", ifname=DEVICE, kind=kind)
                break
            except NetlinkError as error:
                if error.code != errno.EOPNOTSUPP or kind == _KINDS[-1]:
                    raise
        (index,) = self._route.link_lookup(ifname=DEVICE)
        return int(index)

    def _address(self, verb: str, index: int, ip: IP) -> None:
        flags = {"flags": _NO_DAD} if ip.version == 6 else {}
        with _refusals(f"{ip} on {DEVICE}"):
            self._route.addr(verb, index=index, address=str(ip), prefixlen=ip.max_prefixlen, **flags)


def _card(told: Any) -> Card:
    info = told.get_attr("IFLA_LINKINFO")
    port = info and info.get_attr("IFLA_INFO_SLAVE_DATA")
    return Card(
        told["index"],
        told.get_attr("IFLA_IFNAME"),
        (info and info.get_attr("IFLA_INFO_KIND")) or "",
        told.get_attr("IFLA_MASTER") or 0,
        told["flags"],
        bool(port and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge" and port.get_attr("IFLA_BRPORT_MODE")),
    )


def _interface(told: Any) -> Interface | None:
    """An address; None for one that means something on one link only."""
    ip = told.get_attr("IFA_LOCAL") or told.get_attr("IFA_ADDRESS")
    return Interface(told["index"], ip_address(ip), told["prefixlen"]) if ip and told["scope"] < _LINK_SCOPE else None


def _ours(inventory: Inventory) -> Card | None:
    own = inventory.own
    if own is not None and own.kind not in _KINDS:
        raise Failed(f"{DEVICE} is a {own.kind or 'network card'} and not ours", "give it another name")
    return own


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise _refusal(error.code, what) from error
    except OSError as error:
        raise _refusal(error.errno or 0, what) from error


def _refusal(code: int, what: str) -> HostError:
    match code:
        case errno.EPERM | errno.EACCES:
            return NotAllowed(f"{what}: {os.strerror(code)}", "run the balancer as root with CAP_NET_ADMIN")
        case errno.EOPNOTSUPP:
            return NoFeature(f"{what}: the kernel has no device for addresses", "`modprobe dummy`")
    return Failed(f"{what}: {os.strerror(code)}", "see what else changes the devices of this host")
