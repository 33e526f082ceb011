"""Table: what a kernel's load balancer (IPVS) holds, as frozen values. Pure.

A service is a virtual address (or a firewall mark) and how its connections are spread; destinations are where they go.
plan.py makes the wanted table, ipvs.py reads the actual one and changes it, steps.py compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, NamedTuple

IP = IPv4Address | IPv6Address
MAX_WEIGHT: Final = 65535
"""What ipvsadm takes; the kernel would take more, and its schedulers would multiply it beyond their integers."""
_MAX_PORT: Final = 65535
_MAX_U32: Final = 2**32 - 1
_MAX_PERSISTENT_S: Final = 31 * 86400
"""What ipvsadm takes, too."""
_BITS: Final = {4: 32, 6: 128}


class Protocol(IntEnum):
    """What a virtual address may carry, with the numbers of IP."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Forward(IntEnum):
    """How packets get to a destination, with the kernel's numbers."""

    NAT = 0
    """Its address is written into them; replies must come back this way."""
    LOCAL = 1
    """Only ever read: to the host itself, as some tools write it."""
    TUNNEL = 2
    """Wrapped in packets to it (IPIP); it must have the virtual address, and answers the client itself."""
    DIRECT = 3
    """Sent to its hardware address, unchanged; it must have the virtual address, and answers the client itself."""
    OTHER = 7
    """Only ever read: a number without a meaning here. The kernel keeps any."""

    @classmethod
    def _missing_(cls, value: object) -> "Forward":
        return cls.OTHER


class Address(NamedTuple):
    """Names a destination within its service."""

    ip: IP
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


class Virtual(NamedTuple):
    """Names a service: what clients connect to. Port 0 means every port, for persistent services only."""

    protocol: Protocol
    ip: IP
    port: int

    @property
    def version(self) -> Literal[4, 6]:
        """Of IP."""
        return self.ip.version

    def __str__(self) -> str:
        return f"{self.protocol.name.lower()} {Address(self.ip, self.port)}"


class Mark(NamedTuple):
    """Names a service: packets that the firewall has given this mark (1 to 2**32-1), of one version of IP."""

    number: int
    version: Literal[4, 6] = 4

    def __str__(self) -> str:
        return f"mark {self.number} (IPv{self.version})"


Key = Virtual | Mark


@dataclass(frozen=True, slots=True)
class Service:
    """One virtual service."""

    key: Key
    scheduler: str = "rr"
    persistent_s: int = 0
    """So long (seconds) after its last connection a client gets the same destination again; 0: not kept."""
    client_prefix: int = 0
    """For persistence, clients whose addresses share so many bits are one client; 0: each address by itself."""
    one_packet: bool = False
    """UDP only: every packet is scheduled for itself."""
    hash_fallback: bool = False
    """Schedulers sh and mh: a client whose destination cannot be used gets another, not a refusal."""
    hash_port: bool = False
    """Schedulers sh and mh: the client's port counts, too."""
    owned: bool = False
    """Made by TreeScale. The kernel keeps this as a flag that it does not know; an edit by ipvsadm removes it."""

    def __post_init__(self) -> None:
        if self.client_prefix == _BITS[self.key.version]:
            object.__setattr__(self, "client_prefix", 0)  # one value for one meaning: what was written is what is read

    def check(self) -> None:
        """Raise ValueError when a kernel cannot hold this. One that was read may hold more than we write."""
        _check("the length of the scheduler's name", len(self.scheduler), 1, 15)
        _check("persistent_s", self.persistent_s, 0, _MAX_PERSISTENT_S)
        _check("client_prefix", self.client_prefix, 0, _BITS[self.key.version])
        match self.key:
            case Virtual(port=port):
                _check("the port", port, 0 if self.persistent_s else 1, _MAX_PORT)
            case Mark(number=number):
                _check("the mark", number, 1, _MAX_U32)


@dataclass(frozen=True, slots=True)
class Destination:
    """One place where connections of a service go."""

    address: Address
    weight: int = 1
    """0: no new connections; those that are there go on."""
    forward: Forward = Forward.NAT
    upper: int = 0
    """With so many connections it gets no new ones, until they are fewer than `lower`; 0: any number."""
    lower: int = 0
    """0: three quarters of `upper`, as the kernel does it."""

    def check(self) -> None:
        """Raise ValueError when a kernel cannot hold this, or should not."""
        _check("the port", self.address.port, 0, _MAX_PORT)
        _check("the weight", self.weight, 0, MAX_WEIGHT)
        _check("the upper threshold", self.upper, 0, _MAX_U32)
        _check("the lower threshold", self.lower, 0, self.upper)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the kernel has counted for one destination. Connections of now, and totals and rates that lag up to 2 s.

    One that is added again while connections from before live is the old one to the kernel: its counters go on.
    """

    active: int
    """Connections that are established."""
    inactive: int
    """Connections in any other state; all of UDP."""
    persistent: int
    connections: int
    """Ever made."""
    in_packets: int
    out_packets: int
    in_bytes: int
    out_bytes: int
    connections_s: int
    """Per second, by the kernel's own estimator (a mean over some seconds), as the four below."""
    in_packets_s: int
    out_packets_s: int
    in_bytes_s: int
    out_bytes_s: int


class Entry(NamedTuple):
    """A service with its destinations, as the kernel has them."""

    service: Service
    destinations: Mapping[Address, Destination] = {}
    counts: Mapping[Address, Counts] = {}
    """Of all destinations, or of none where they were not asked for."""


def _check(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{what} is {value}: it can be {least} to {most}")
