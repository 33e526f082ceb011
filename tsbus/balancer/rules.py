"""Rules: which packet rules, settings and addresses a host needs so that its balancers work, and why. Pure.

A kernel that balances by NAT sees a connection whole only if the answers come back through it. Where a server could
answer the client directly (it is on another machine, or on the same bridge as the client), the source is masqueraded.
Where it could not, nothing is done and the server sees the client's own address. Which case needs what was measured
with a real kernel; tests/guest/test_paths_rules.py has all of them. docs/decisions/helper-rules.md has the choices.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import product
from typing import Final, Literal, NamedTuple

from tsbus.balancer.report import Problem
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import IP, Forward, Mark, Protocol
from tsbus.config import Balancer
from tsbus.lb_records import Origin
from tsbus.records import Container

Subnet = IPv4Network | IPv6Network
Backend = Literal["ipvs", "nftables"]
Version = Literal[4, 6]
Place = Literal["here", "same", "inside", "elsewhere"]
"""Where a server is: on this host itself, on the same bridge as the client, on another one, or on another machine."""
_ANY: Final[dict[Version, IP]] = {4: IPv4Address(0), 6: IPv6Address(0)}
FORWARDING: Final[dict[Version, str]] = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


class Listen(NamedTuple):
    """Where clients connect: one address with a range of ports, mostly of one."""

    protocol: Protocol
    ip: IP
    first: int
    last: int

    @property
    def version(self) -> Version:
        """Of IP."""
        return self.ip.version

    @property
    def ports(self) -> str:
        """As `80` or `80-89`."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __str__(self) -> str:
        ip = f"[{self.ip}]" if self.version == 6 else str(self.ip)
        return f"{self.protocol.name.lower()} {ip}:{self.ports}"


@dataclass(frozen=True, slots=True)
class Front:
    """A balancer as its host sees it."""

    name: str
    listens: tuple[Listen, ...]
    pool: Pool
    manage_vip: bool = False


def front(balancer: Balancer, pool: Pool) -> Front:
    """Return the front of a balancer whose wanted pool this is."""
    protocol = Protocol[balancer.protocol.upper()]
    listens = tuple(Listen(protocol, ip_address(each.ip), each.first, each.last) for each in balancer.listens)
    return Front(balancer.name, listens, pool, balancer.manage_vip)


def listens_of(fronts: Iterable[Front]) -> dict[Mark, tuple[Listen, ...]]:
    """Return what the marks of these fronts stand for."""
    return {each.pool.service.key: each.listens for each in fronts if isinstance(each.pool.service.key, Mark)}


class Network(NamedTuple):
    """A bridge whose members have this host as their only way out, such as one of Docker."""

    device: str
    subnets: tuple[Subnet, ...]
    ports: tuple[str, ...] = ()
    """The devices of its members."""


class Link(NamedTuple):
    """A subnet of IPv6 at a device, whose members ask each other who has an address (neighbour discovery)."""

    device: str
    subnet: Subnet


class Proxy(NamedTuple):
    """A device by which this host answers who asks for an address that is at another one of its devices."""

    device: str
    ip: IP


class Route(NamedTuple):
    """How a packet of the host gets somewhere."""

    device: str
    source: IP | None
    """The host's address that it has then."""
    local: bool
    """It is an address that the host takes for its own."""


@dataclass(frozen=True, slots=True)
class Host:
    """What is known of a host."""

    backend: Backend = "ipvs"
    kernel: tuple[int, int] = (6, 1)
    addresses: frozenset[IP] = frozenset()
    """Of all its devices."""
    networks: tuple[Network, ...] = ()
    bridge_filter: bool = False
    """Bridged packets pass the packet rules, too (br_netfilter)."""
    advertised: tuple[str, ...] = ()
    """Devices whose IPv6 routes come from router advertisements, which a host that forwards ignores by default."""
    links: tuple[Link, ...] = ()
    """Of all devices but the balancer's own."""


class Rule(NamedTuple):
    """A packet rule for what clients send to `listen`, and for the answers."""

    kind: Literal["mark", "masquerade", "accept"]
    listen: Listen
    why: str
    number: int = 0
    """The mark to set."""


class Inside(NamedTuple):
    """Where masquerading is only for clients of the same bridge."""

    device: str
    subnet: Subnet


class Setting(NamedTuple):
    """A setting of the kernel, by its sysctl name."""

    name: str
    value: int
    why: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What a host needs."""

    rules: tuple[Rule, ...] = ()
    inside: tuple[Inside, ...] = ()
    accept_new: bool = False
    """The accept rules are for first packets, too: with nftables these are forwarded, with IPVS they are not."""
    settings: tuple[Setting, ...] = ()
    hairpins: frozenset[str] = frozenset()
    """Ports of bridges that must send packets back where they came from."""
    held: frozenset[IP] = frozenset()
    """Addresses for the balancer's own device."""
    proxies: frozenset[Proxy] = frozenset()
    """Of those addresses, for neighbours: with IPv6 a host answers only for what the device has that was asked."""
    problems: tuple[Problem, ...] = field(default=(), compare=False)
    """What a person must mend."""

    def has_rules(self, version: Version) -> bool:
        """Tell whether there are rules for this version of IP."""
        return any(rule.listen.version == version for rule in self.rules)

    def rules_for(self, kind: str, version: Version) -> tuple[Rule, ...]:
        """Return those of one kind and version of IP."""
        return tuple(rule for rule in self.rules if rule.kind == kind and rule.listen.version == version)


class WayNeeds(NamedTuple):
    """What a packet and its answer need on one way, beside filters that let them through."""

    forwarding: bool = False
    tracking: bool = False
    """By IPVS; nft cannot do without."""
    masquerade: bool = False


WAYS: Final[dict[tuple[Origin, Place], WayNeeds]] = {
    ("remote", "inside"): WayNeeds(forwarding=True),
    ("remote", "elsewhere"): WayNeeds(forwarding=True, tracking=True, masquerade=True),
    ("local", "inside"): WayNeeds(),
    ("local", "elsewhere"): WayNeeds(),
    ("container", "same"): WayNeeds(forwarding=True, tracking=True, masquerade=True),
    ("container", "inside"): WayNeeds(forwarding=True, tracking=True),
    ("container", "elsewhere"): WayNeeds(forwarding=True, tracking=True, masquerade=True),
}
"""With NAT; a server that is here needs nothing. The table of docs/decisions/helper-rules.md, way by way."""


def needs(fronts: Iterable[Front], host: Host) -> Needs:
    """Return what these balancers need of their host."""
    cases = [_Case(each, host) for each in fronts]
    hairpins = {port for case in cases for network in case.inside for port in network.ports}
    return Needs(
        rules=tuple(rule for case in cases for rule in case.rules()),
        inside=tuple(Inside(each.device, subnet) for each in _used(cases, host) for subnet in each.subnets),
        accept_new=host.backend == "nftables",
        settings=tuple(_settings(cases, host)),
        hairpins=frozenset(hairpins if host.bridge_filter else ()),
        held=frozenset(_held(cases)),
        proxies=frozenset(_proxies(cases, host)),
        problems=tuple(problem for case in cases for problem in case.problems()),
    )


def real_server_needs(ips: Iterable[IP], forward: Forward) -> Needs:
    """Return what a node needs that is a real server for these addresses, with DIRECT or TUNNEL.

    It must have the address, and must not say so to anybody who asks for it with ARP: that is the balancer's. With IPv6
    a host answers only for what the device has that was asked, so an address at another device says nothing.
    """
    held = frozenset(ips)
    why = f"{', '.join(sorted(map(str, held)))} is also here, and only the balancer may answer for it"
    settings = [Setting("net.ipv4.conf.all.arp_ignore", 1, why), Setting("net.ipv4.conf.all.arp_announce", 2, why)]
    if forward is Forward.TUNNEL:
        why = "the packets in the tunnel come from clients that are not reached through it"
        settings += [Setting(f"net.ipv4.conf.{name}.rp_filter", 0, why) for name in ("all", "tunl0")]
    return Needs(settings=tuple(settings) if any(ip.version == 4 for ip in held) else (), held=held)


def published(fronts: Iterable[Front], containers: Iterable[Container]) -> Iterator[Problem]:
    """Yield where Docker publishes a port of this host's containers that a balancer listens on.

    With IPVS Docker's rules come first and the balancer gets nothing; our table of nft comes before them.
    """
    ports = [(each, one) for each in containers for one in each.endpoints if one.host_port]
    for front, (container, port) in product(fronts, ports):
        for listen in front.listens:
            if (
                listen.protocol is Protocol[port.protocol.upper()]
                and listen.first <= port.host_port <= listen.last
                and ip_address(port.host_ip or "0.0.0.0") in (listen.ip, _ANY[listen.version])  # noqa: S104
            ):
                text = f"container {container.name} publishes this port, so Docker takes the packets to {listen}"
                yield Problem(text, f"publish another port of {container.name}, or give {front.name} another address")


class _Case:
    """One balancer on its host: where its servers are."""

    def __init__(self, front: Front, host: Host) -> None:
        self.front, self.host = front, host
        self.version: Version = front.pool.service.key.version
        servers = [each.address.ip for each in front.pool.destinations.values() if each.forward is Forward.NAT]
        elsewhere = [ip for ip in servers if ip not in host.addresses]
        self.inside = [network for network in host.networks if any(_holds(network, ip) for ip in elsewhere)]
        self.remote = [ip for ip in elsewhere if not any(_holds(network, ip) for network in host.networks)]

    def rules(self) -> Iterator[Rule]:
        for listen in self.front.listens:
            if isinstance(key := self.front.pool.service.key, Mark) and self.host.backend == "ipvs":
                yield Rule("mark", listen, f"{self.front.name} has several addresses or ports", key.number)
            if why := self._why_masquerade():
                yield Rule("masquerade", listen, why)
            if why := self._why_accept():
                yield Rule("accept", listen, why)

    def _why_masquerade(self) -> str:
        if self.remote:
            return f"{self.remote[0]} is not behind this host and would answer the client directly"
        if self.inside:
            device = self.inside[0].device
            return f"a client on {device} may be given a server on {device}, which would answer it directly"
        return ""

    def _why_accept(self) -> str:
        if self.host.backend == "nftables" and (self.remote or self.inside):
            return "the firewall sees the packets on their way to the servers, and may know only published ports"
        if self.remote:
            return f"the answers of {self.remote[0]} are forwarded to the client, which Docker's rules forbid"
        if self.inside and len(self.host.networks) > 1:
            return f"answers from {self.inside[0].device} to other bridges are forbidden by Docker's rules"
        return ""

    def problems(self) -> Iterator[Problem]:
        for listen in self.front.listens:
            if not self.front.manage_vip and listen.ip not in self.host.addresses:
                mend = f"`ip address add {listen.ip} dev DEVICE`, or manage_vip = true in balancer {self.front.name}"
                yield Problem(f"{listen.ip} is not an address of this host, so no packet comes to {listen}", mend)


def home(host: Host, ip: IP) -> Network | None:
    """Return the bridge of containers that an address is behind, None when there is none."""
    return next((network for network in host.networks if _holds(network, ip)), None)


def _holds(network: Network, ip: IP) -> bool:
    return any(ip in subnet for subnet in network.subnets)


def _used(cases: Iterable[_Case], host: Host) -> list[Network]:
    used = {network.device for case in cases for network in case.inside}
    return [network for network in host.networks if network.device in used]


def _held(cases: Iterable[_Case]) -> Iterator[IP]:
    return (listen.ip for case in cases if case.front.manage_vip for listen in case.front.listens)


def _proxies(cases: Iterable[_Case], host: Host) -> Iterator[Proxy]:
    return (Proxy(link.device, ip) for ip, link in product(_held(cases), host.links) if ip in link.subnet)


def _settings(cases: list[_Case], host: Host) -> Iterator[Setting]:
    balanced = [case for case in cases if case.inside or case.remote]
    for version, forwarding in FORWARDING.items():
        names = ", ".join(case.front.name for case in balanced if case.version == version)
        asked = sorted({proxy.device for proxy in _proxies(cases, host)}) if version == 6 else ()
        if not (names or asked):
            continue
        for device in host.advertised if version == 6 else ():
            why = f"the IPv6 routes of {device} come from advertisements, which would be ignored with forwarding on"
            yield Setting(f"net.ipv6.conf.{device.replace('.', '/')}.accept_ra", 2, why)
        why = "else neighbours that ask for a managed address get no answer"
        yield Setting(forwarding, 1, f"the answers of servers are forwarded to clients ({names})" if names else why)
        for device in asked:
            path = device.replace(".", "/")
            yield Setting(f"net.ipv6.conf.{path}.proxy_ndp", 1, why)
            yield Setting(f"net.ipv6.neigh.{path}.proxy_delay", 0, "else they get it up to 0.8 s later")
    if host.backend != "ipvs" or not cases:
        return
    if balanced:
        names = ", ".join(case.front.name for case in balanced)
        yield Setting("net.ipv4.vs.conntrack", 1, f"without it nothing is masqueraded ({names})")
    yield Setting("net.ipv4.vs.expire_nodest_conn", 1, "else packets for servers that are gone vanish for minutes")
    if any(case.front.pool.service.persistent_s for case in cases):
        why = "else clients are kept with a server that is drained"
        yield Setting("net.ipv4.vs.expire_quiescent_template", 1, why)
    yield Setting("net.ipv4.vs.run_estimation", 1, "the rates of `lb stats` come from it")
    if host.kernel < (5, 9):
        why = "before 5.9 a client that uses a port again waits a second"
        yield Setting("net.ipv4.vs.conn_reuse_mode", 0, why)
