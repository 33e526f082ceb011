"""Devices: the host's addresses and bridges over rtnetlink, and the balancer's own device `ts0` for addresses."""

import errno
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface
from socket import AF_INET, AF_INET6
from types import TracebackType
from typing import Any, Final, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tsbus.balancer.programs import Failed, HostError, NoFeature, NotAllowed
from tsbus.balancer.rules import Link, Network, Proxy, Route, Subnet
from tsbus.balancer.table import IP

DEVICE: Final = "ts0"
_KINDS: Final = ("dummy", "bridge")
"""Of our own device. A small kernel may have no dummies; a bridge without members holds addresses as well."""
_VIRTUAL: Final = ("veth", "tun")
"""Kinds of bridge ports with a container or a machine behind them, which has no other way out."""
_HAIRPIN: Final = 1
_BITS: Final = {4: 32, 6: 128}
_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_NO_DAD: Final = 0x2
"""The address is usable at once: nobody else on a dummy device could have it."""
_FROM_ADVERTISEMENT: Final = 9
_LINK_SCOPE: Final = 253
_PROXY: Final = 0x8
"""The flag of a neighbour for whom this host answers."""
_LOCAL: Final = 2
"""A route to the host itself."""
_UP: Final = 0x1
_LOOPBACK: Final = 0x8


class Devices:
    """The devices of the network namespace in which this is opened. For one thread, as ipvs.Kernel."""

    def __init__(self) -> None:
        self._route = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the kernel."""
        self._route.close()

    def addresses(self) -> frozenset[IP]:
        """Return all addresses, without those that mean something on one link only."""
        return frozenset(ip for _, ip, _ in self._addresses())

    def networks(self) -> tuple[Network, ...]:
        """Return the bridges whose ports all have a container or a virtual machine behind them.

        A bridge with a network card, a VLAN or a tunnel among its ports is a part of the network outside.
        """
        links = {each["index"]: each for each in self._links()}
        ports: dict[int, list[Any]] = {
            index: [] for index, each in links.items() if _kind(each) == "bridge" and _name(each) != DEVICE
        }
        for each in links.values():
            if (bridge := each.get_attr("IFLA_MASTER")) in ports:
                ports[bridge].append(each)
        subnets: dict[int, set[Subnet]] = defaultdict(set)
        for index, ip, prefix in self._addresses():
            subnets[index].add(ip_interface((ip, prefix)).network)
        return tuple(
            Network(
                _name(links[index]),
                tuple(sorted(subnets[index], key=str)),
                tuple(sorted(_name(each) for each in members)),
            )
            for index, members in ports.items()
            if index in subnets and all(_kind(each) in _VIRTUAL for each in members)
        )

    def links(self) -> tuple[Link, ...]:
        """Return the subnets of IPv6 of all devices but ours and the loopback."""
        names = {each["index"]: _name(each) for each in self._links() if not each["flags"] & _LOOPBACK}
        return tuple(
            Link(names[index], ip_interface((ip, prefix)).network)
            for index, ip, prefix in self._addresses()
            if ip.version == 6 and names.get(index, DEVICE) != DEVICE
        )

    def advertised(self) -> tuple[str, ...]:
        """Return the devices that have IPv6 routes from router advertisements."""
        with _refusals("reading routes"):
            routes = list(self._route.get_routes(family=10, proto=_FROM_ADVERTISEMENT))
        names = {each["index"]: _name(each) for each in self._links()}
        return tuple(sorted({names[index] for route in routes if (index := route.get_attr("RTA_OIF")) in names}))

    def route(self, ip: IP) -> Route | None:
        """Return how a packet of this host gets to an address; None when it does not."""
        try:
            (found,) = self._route.route("get", dst=str(ip), family=_FAMILIES[ip.version])
        except NetlinkError:
            return None
        names = {each["index"]: _name(each) for each in self._links()}
        source = found.get_attr("RTA_PREFSRC")
        device = names.get(found.get_attr("RTA_OIF"), "")
        return Route(device, ip_address(source) if source else None, found["type"] == _LOCAL)

    def outside(self) -> frozenset[str]:
        """Return the devices by which packets may come from elsewhere: all that are up, but those of containers."""
        inside = {network.device for network in self.networks()}
        return frozenset(
            _name(each)
            for each in self._links()
            if each["flags"] & _UP
            and not each["flags"] & _LOOPBACK
            and not each.get_attr("IFLA_MASTER")
            and _kind(each) != "dummy"
            and _name(each) not in (*inside, DEVICE)
        )

    def without_hairpin(self, ports: Collection[str]) -> frozenset[str]:
        """Return which of these ports of bridges do not send a packet back where it came from."""
        if not ports:
            return frozenset()
        found = {_name(each): each for each in self._route.brport("dump")}
        return frozenset(name for name in ports if name in found and not _hairpin(found[name]))

    def set_hairpin(self, port: str) -> None:
        """Have a port of a bridge send packets back where they came from."""
        with _refusals(port):
            for index in self._route.link_lookup(ifname=port):
                self._route.brport("set", index=index, mode=_HAIRPIN)

    def held(self) -> frozenset[IP]:
        """Return the addresses of our own device."""
        index = self._own()
        return frozenset(ip for each, ip, _ in self._addresses() if each == index)

    def hold(self, ips: Collection[IP]) -> None:
        """Give our device these addresses and no others; it is there as long as there are any."""
        index, held = self._own(), self.held()
        if not ips:
            if index is not None:
                with _refusals(DEVICE):
                    self._route.link("del", index=index)
            return
        with _refusals(DEVICE):
            if index is None:
                index = self._make()
            self._route.link("set", index=index, state="up")
        for ip in sorted(set(ips) - held, key=str):
            with _refusals(f"{ip} on {DEVICE}"):
                flags = {"flags": _NO_DAD} if ip.version == 6 else {}
                self._route.addr("add", index=index, address=str(ip), prefixlen=_BITS[ip.version], **flags)
        for ip in sorted(held - set(ips), key=str):
            with _refusals(f"{ip} on {DEVICE}"):
                self._route.addr("del", index=index, address=str(ip), prefixlen=_BITS[ip.version])

    def proxies(self) -> frozenset[Proxy]:
        """Return for which addresses this host answers neighbours, whoever made it so."""
        names = {each["index"]: _name(each) for each in self._links()}
        with _refusals("reading neighbours"):
            found = list(self._route.neigh("dump", dump_filter=None, family=AF_INET6, flags=_PROXY))
        return frozenset(
            Proxy(names[each["ifindex"]], ip_address(each.get_attr("NDA_DST")))
            for each in found
            if each["ifindex"] in names
        )

    def set_proxy(self, proxy: Proxy, *, on: bool) -> None:
        """Answer neighbours at a device for an address, or do not any more."""
        with _refusals(f"{proxy.ip} for the neighbours at {proxy.device}"):
            for index in self._route.link_lookup(ifname=proxy.device):
                where = {"dst": str(proxy.ip), "ifindex": index, "family": AF_INET6, "flags": _PROXY}
                self._route.neigh("add" if on else "del", **where)

    def _make(self) -> int | None:
        try:
            self._route.link("add", ifname=DEVICE, kind=_KINDS[0])
        except NetlinkError as error:
            if error.code != errno.EOPNOTSUPP:
                raise
            self._route.link("add", ifname=DEVICE, kind=_KINDS[1])
        return self._own()

    def _own(self) -> int | None:
        for each in self._links():
            if _name(each) == DEVICE:
                if _kind(each) not in _KINDS:
                    kind = _kind(each) or "network card"
                    raise Failed(f"{DEVICE} is a {kind} and not ours", "give it another name")
                return int(each["index"])
        return None

    def _links(self) -> list[Any]:
        with _refusals("reading devices"):
            return list(self._route.get_links())

    def _addresses(self) -> Iterator[tuple[int, IP, int]]:
        with _refusals("reading addresses"):
            found = list(self._route.get_addr())
        for each in found:
            text = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
            if text and each["scope"] < _LINK_SCOPE:
                yield each["index"], ip_address(text), each["prefixlen"]


def _name(link: Any) -> str:
    return str(link.get_attr("IFLA_IFNAME"))


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return (info and info.get_attr("IFLA_INFO_KIND")) or ""


def _hairpin(port: Any) -> bool:
    data = port.get_attr("IFLA_PROTINFO") or port.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_SLAVE_DATA")
    return bool(data.get_attr("IFLA_BRPORT_MODE"))


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise _refusal(error.code, what) from error


def _refusal(code: int, what: str) -> HostError:
    match code:
        case errno.EPERM | errno.EACCES:
            return NotAllowed(f"{what}: {os.strerror(code)}", "run the balancer as root with CAP_NET_ADMIN")
        case errno.EOPNOTSUPP:
            return NoFeature(f"{what}: the kernel has no device for addresses", "`modprobe dummy`")
    return Failed(f"{what}: {os.strerror(code)}", "see what else changes the devices of this host")
