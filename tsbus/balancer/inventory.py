"""Inventory: the devices and addresses of a host at one moment, and what they mean to a balancer. Pure."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Final, NamedTuple

from tsbus.balancer.rules import Link, Network, Subnet
from tsbus.balancer.table import IP

DEVICE: Final = "ts0"
"""The balancer's own device, for addresses that it manages."""
_VIRTUAL: Final = ("veth", "tun")
"""Kinds of bridge ports with a container or a machine behind them, which has no other way out."""
_UP: Final = 0x1
_LOOPBACK: Final = 0x8


@dataclass(frozen=True, slots=True)
class Card:
    """A device."""

    index: int
    name: str
    kind: str = ""
    """Of a virtual one, as `ip` calls it."""
    bridge: int = 0
    """The index of what it is a port of."""
    flags: int = 0
    hairpin: bool = False
    """As a port of a bridge it sends a packet back where it came from."""


class Interface(NamedTuple):
    """An address of a device, which means something beyond its link."""

    card: int
    ip: IP
    prefix: int

    @property
    def subnet(self) -> Subnet:
        """Whom it reaches there."""
        return ip_interface((self.ip, self.prefix)).network


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a host has."""

    cards: Mapping[int, Card]
    """By index."""
    interfaces: tuple[Interface, ...]

    @property
    def addresses(self) -> frozenset[IP]:
        """Of all devices."""
        return frozenset(each.ip for each in self.interfaces)

    @property
    def own(self) -> Card | None:
        """The balancer's own device, or somebody else's with its name."""
        return next((each for each in self.cards.values() if each.name == DEVICE), None)

    @property
    def held(self) -> frozenset[IP]:
        """The addresses of the balancer's own device."""
        own = self.own
        return frozenset(each.ip for each in self.interfaces if own and each.card == own.index)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The bridges whose ports all have a container or a virtual machine behind them.

        A bridge with a network card, a VLAN or a tunnel among its ports is a part of the network outside.
        """
        ports: dict[int, list[Card]] = defaultdict(list)
        for each in self.cards.values():
            ports[each.bridge].append(each)
        subnets: dict[int, set[Subnet]] = defaultdict(set)
        for one in self.interfaces:
            subnets[one.card].add(one.subnet)
        return tuple(
            Network(
                card.name,
                tuple(sorted(subnets[index], key=str)),
                tuple(sorted(each.name for each in ports[index])),
            )
            for index, card in self.cards.items()
            if card.kind == "bridge"
            and card.name != DEVICE
            and index in subnets
            and all(each.kind in _VIRTUAL for each in ports[index])
        )

    @property
    def links(self) -> tuple[Link, ...]:
        """The subnets of IPv6 of all devices but ours and the loopback."""
        return tuple(
            Link(card.name, each.subnet)
            for each in self.interfaces
            if each.ip.version == 6
            and (card := self.cards.get(each.card))
            and card.name != DEVICE
            and not card.flags & _LOOPBACK
        )

    @property
    def outside(self) -> frozenset[str]:
        """The devices by which packets may come from elsewhere: all that are up, but those of containers."""
        inside = {network.device for network in self.networks}
        return frozenset(
            each.name
            for each in self.cards.values()
            if each.flags & _UP
            and not each.flags & _LOOPBACK
            and not each.bridge
            and each.kind != "dummy"
            and each.name not in (*inside, DEVICE)
        )

    def without_hairpin(self, ports: Collection[str]) -> tuple[Card, ...]:
        """Return which of these ports of bridges do not send a packet back where it came from."""
        some = (each for each in self.cards.values() if each.name in ports and each.bridge and not each.hairpin)
        return tuple(sorted(some, key=lambda each: each.name))
