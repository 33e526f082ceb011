"""Ways: how a packet gets from a client to a real server and back, and how each packet rule on the way sees it. Pure.

With IPVS a request comes in through INPUT, is balanced there and leaves through OUTPUT; one that a program of the host
sends goes straight to OUTPUT. With nft it is translated before anything else and forwarded. The answers are forwarded
with both, or come in through INPUT for a program of the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from tsbus.balancer.firewall import (
    MAX_IP,
    Fate,
    Field,
    Hook,
    Packet,
    Table,
    Value,
    address,
    filtered,
    network,
    number,
    translated,
    without,
)
from tsbus.balancer.rules import WAYS, Host, Listen, Network, Place, Route, WayNeeds, home
from tsbus.balancer.table import IP, Destination, Entry, Forward, Key, Protocol
from tsbus.lb_records import Origin

TRACKING: Final = "net.ipv4.vs.conntrack"
COUNT, MAX = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"
CLIENT: Final = "the client's own address"
_CLIENT_PORTS: Final = (1024, 65535)
_SYN, _SYN_ACK = 2, 18
_Direction = Literal["original", "reply"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found out about a host, at one moment."""

    host: Host
    routes: Mapping[IP, Route]
    """To the balancer's address and to the servers; one that is missing leads nowhere."""
    outside: frozenset[str] = frozenset()
    """Devices by which clients elsewhere may come."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """Of the kernel, by sysctl name; one that is missing does not exist."""
    saved: Mapping[str, str] = field(default_factory=dict)
    """What each tool of iptables says, by its name."""
    listed: str = ""
    """What `nft -j list ruleset` says, and what it says without -j and with -a."""
    written: str = ""
    unread: tuple[str, ...] = ()
    """Which packet rules could not be read, and why."""
    listeners: frozenset[tuple[Protocol, IP | None, int]] = frozenset()
    """Ports at which programs of the host listen; None: at all addresses."""
    no_hairpin: frozenset[str] = frozenset()
    """Ports of bridges that do not send a packet back where it came from."""
    table: Mapping[Key, Entry] | None = None
    """What balances; None where it could not be read."""


@dataclass(frozen=True, slots=True)
class Site:
    """What all ways of one question have in common."""

    evidence: Evidence
    tables: tuple[Table, ...]
    """The packet rules."""
    listen: Listen
    """The address and the one port that the client connects to."""
    origin: Origin

    @property
    def ipvs(self) -> bool:
        """Whether IPVS balances, not nft."""
        return self.evidence.host.backend == "ipvs"

    @property
    def tracked(self) -> bool:
        """Whether the kernel tracks connections as what they are, from the client to this address."""
        return not self.ipvs or self.evidence.settings.get(TRACKING) == 1

    def clients(self) -> tuple[Network | None, ...]:
        """Return where the client may be: on one of the bridges, for one in a container."""
        if self.origin != "container":
            return (None,)
        usable = [each for each in self.evidence.host.networks if self._subnets(each)]
        return tuple([each for each in usable if each.ports] or usable)

    @property
    def own(self) -> IP:
        """The address with which a program of the host connects to the balancer."""
        route = self.evidence.routes.get(self.listen.ip)
        return route.source if route and route.source else self.listen.ip

    def sources(self, client: Network | None) -> tuple[Value, ...]:
        """Return the addresses that the client may have."""
        if client is not None:
            return self._subnets(client)
        if self.origin == "local":
            return (address(self.own),)
        version, host = self.listen.version, self.evidence.host
        ours = [address(ip) for ip in host.addresses if ip.version == version]
        ours += [each for network in host.networks for each in self._subnets(network)]
        return without((0, MAX_IP[version]), ours)

    def devices(self, client: Network | None) -> tuple[str, ...]:
        """Return the devices by which packets of the client may come."""
        if client is not None:
            return (client.device,)
        return ("lo",) if self.origin == "local" else tuple(self.evidence.outside)

    def _subnets(self, bridge: Network) -> tuple[tuple[int, int], ...]:
        return tuple(network(each) for each in bridge.subnets if each.version == self.listen.version)

    def packet(self, hook: Hook, direction: _Direction, **values: tuple[Value, ...]) -> Packet:
        """Return a first packet, or the first answer; where it comes from and goes to is in `values`."""
        listen, first = self.listen, direction == "original"
        syn = _SYN if first else _SYN_ACK
        known: dict[Field, tuple[Value, ...]] = {
            "version": (number(listen.version),),
            "protocol": (number(listen.protocol),),
            "direction": (direction,),
            "origin": (address(listen.ip),),
            "origin_port": (number(listen.first),),
            "origin_protocol": (number(listen.protocol),),
            "translated": ("no" if self.ipvs else "yes",),
            "state": (self._state(direction),),
            "flags": (number(syn),) if listen.protocol is Protocol.TCP else (),
            "in": ("",),
            "out": ("",),
        }
        known |= values  # type: ignore[arg-type]  # the names of the arguments are fields
        return Packet(hook, listen.version, known)

    def _state(self, direction: _Direction) -> str:
        """What tracking makes of it. IPVS without it hides its connections, so an answer belongs to none."""
        if direction == "original":
            return "new"
        if self.tracked:
            return "established"
        return "new" if self.listen.protocol is Protocol.UDP else "invalid"

    def arriving(self, client: Network | None) -> Packet:
        """Return the request as it comes in, before it is balanced."""
        return self.packet(
            "input", "original", source=self.sources(client), target=(address(self.listen.ip),),
            sport=(_CLIENT_PORTS,), dport=(number(self.listen.first),), target_type=("local",),
            source_type=("local" if self.origin == "local" else "unicast",), **{"in": self.devices(client)},
            translated=("no",),
        )  # fmt: skip

    def filtered(self, client: Network | None) -> Fate:
        """Return whether the filters let the request come in."""
        return filtered(self.tables, self.arriving(client))

    def published(self, client: Network | None) -> Fate:
        """Return whether a rule translates the request before IPVS sees it."""
        before = self.arriving(client)
        hook: Hook = "output" if self.origin == "local" else "prerouting"
        return translated(self.tables, Packet(hook, before.version, before.values))


@dataclass(frozen=True, slots=True)
class Way:
    """From one kind of client to one real server."""

    site: Site
    client: Network | None
    """The bridge of a client in a container."""
    server: Destination
    name: str

    @property
    def place(self) -> Place:
        """Where the server is."""
        evidence, ip = self.site.evidence, self.server.address.ip
        if ip in evidence.host.addresses or self._route.local:
            return "here"
        bridge = home(evidence.host, ip)
        if bridge is None:
            return "elsewhere"
        return "same" if bridge == self.client else "inside"

    @property
    def direct(self) -> bool:
        """Whether the server answers the client itself (dr, tunnel)."""
        return self.server.forward in (Forward.DIRECT, Forward.TUNNEL)

    @property
    def needs(self) -> WayNeeds:
        """What this way needs."""
        return WayNeeds() if self.direct or self.place == "here" else WAYS[self.site.origin, self.place]

    @property
    def device(self) -> str:
        """By which a packet gets to the server, and its answer back."""
        return self._route.device

    @property
    def _route(self) -> Route:
        return self.site.evidence.routes.get(self.server.address.ip) or Route("", None, local=False)

    def _port(self) -> tuple[Value, ...]:
        return (number(self.server.address.port or self.site.listen.first),)

    def request(self, hook: Hook) -> Packet:
        """Return the request on its way to the server, after it was balanced."""
        site = self.site
        return site.packet(
            hook, "original", source=site.sources(self.client), target=(address(self.server.address.ip),),
            sport=(_CLIENT_PORTS,), dport=self._port(), out=(self.device,),
            source_type=("local" if site.origin == "local" else "unicast",),
            target_type=("local" if self.place == "here" else "unicast",),
            state=("new" if site.tracked else "untracked",),
            **{"in": site.devices(self.client) if hook == "forward" else ("",)},
        )  # fmt: skip

    def answer(self, hook: Hook) -> Packet:
        """Return the server's answer: forwarded to the client, or coming in for one of the host."""
        site = self.site
        local = site.origin == "local"
        return site.packet(
            hook, "reply", source=(address(self.server.address.ip),), target=site.sources(self.client),
            sport=self._port(), dport=(_CLIENT_PORTS,), source_type=("unicast",),
            target_type=("local" if local else "unicast",), out=("",) if local else site.devices(self.client),
            **{"in": (self.device,)},
        )  # fmt: skip

    def masked(self) -> Fate:
        """Return whether the source is changed on the way out."""
        if not self.site.tracked or self.direct or self.place == "here":
            return Fate("accept")
        return translated(self.site.tables, self.request("postrouting"))

    def seen(self) -> str:
        """Return which address the server sees as the client's, '' when that cannot be told."""
        fate = self.masked()
        if fate.result == "translate":
            return fate.to or str(self._route.source or "")
        if fate.result == "unknown":
            return ""
        if self.site.origin == "local":
            return str(self.site.own)
        return CLIENT

    def knocks(self) -> bool:
        """Tell whether the filters surely let this host connect to the server by itself, and the answer come in."""
        tables, version = self.site.tables, self.site.listen.version
        ours = tuple(address(ip) for ip in self.site.evidence.host.addresses if ip.version == version)
        there, port = (address(self.server.address.ip),), self._port()
        own: dict[Field, tuple[Value, ...]] = {"origin": there, "origin_port": port, "translated": ("no",)}
        out = {**self.request("output").values, **own, "source": ours, "source_type": ("local",), "state": ("new",)}
        back = {**self.answer("input").values, **own, "target": ours, "target_type": ("local",), "out": ("",)}
        back["state"] = ("established",)
        ends = (filtered(tables, Packet("output", version, out)), filtered(tables, Packet("input", version, back)))
        return all(each.result == "accept" for each in ends)

    def passes(self, hook: Hook, *, answer: bool) -> Fate:
        """Return whether the filters let the request, or the answer, pass."""
        return filtered(self.site.tables, self.answer(hook) if answer else self.request(hook))
