"""Table: what a kernel's load balancer holds, as frozen values that the planner and the kernel's edges share. Pure.

plan.py makes the wanted table, ipvs.py reads the actual one and changes it, steps.py compares the two. Addresses are
texts in the canonical form of `ipaddress` ("fd00::1", not "FD00:0::1").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

Protocol = Literal["tcp", "udp", "sctp"]
Forward = Literal["nat", "dr", "tunnel"]

FALLBACK: Final = 0x08
"""Scheduler flag of sh and mh: a connection whose server has weight 0 goes to another one instead of nowhere."""
BY_PORT: Final = 0x10
"""Scheduler flag of sh and mh: the client's port counts too."""
ONE_PACKET: Final = 0x04
"""Each UDP packet is scheduled for itself."""
MAX_WEIGHT: Final = 65_535


def family_of(ip: str) -> Literal[4, 6]:
    """Return 4 or 6. Raises ValueError when `ip` is no address."""
    return 4 if ip_address(ip).version == 4 else 6


class ServiceKey(NamedTuple):
    """What the kernel knows a service by: protocol, address and port, or a firewall mark and the family."""

    family: Literal[4, 6]
    protocol: Protocol
    ip: str
    port: int
    fwmark: int = 0
    """With a mark the other three are "tcp", "" and 0: the kernel has no protocol for it."""

    def __str__(self) -> str:
        if self.fwmark:
            return f"mark {self.fwmark:#x}" + (" (IPv6)" if self.family == 6 else "")
        return f"{self.protocol} " + (f"[{self.ip}]:{self.port}" if self.family == 6 else f"{self.ip}:{self.port}")


class DestinationKey(NamedTuple):
    """What the kernel knows a real server of one service by."""

    ip: str
    port: int
    """0 in a service by mark: the port that the client came to."""

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual service."""

    key: ServiceKey
    scheduler: str = "rr"
    persistence_s: int = 0
    """A client stays with its server this long after its last connection; 0: not at all."""
    prefix: int = 0
    """Clients of one network of this prefix length count as one client for persistence; 0: each for itself."""
    flags: int = 0
    """Of the scheduler: FALLBACK, BY_PORT, ONE_PACKET."""
    ours: bool = True
    """Whether it has our mark of ownership, a flag bit that the kernel keeps and does not use."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A real server of a service."""

    key: DestinationKey
    weight: int = 1
    """0 to MAX_WEIGHT; 0 gets no new connections."""
    forward: Forward = "nat"
    upper: int = 0
    """Connections from which on it gets no new ones; 0: no limit."""
    lower: int = 0
    """Connections below which it gets new ones again."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the kernel counts for a service or a real server: totals, and rates of the last seconds by its estimator."""

    active: int = 0
    """Established connections."""
    inactive: int = 0
    """Entries in any other state, those that only time out included."""
    persistent: int = 0
    connections: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    cps: int = 0
    in_pps: int = 0
    out_pps: int = 0
    in_bps: int = 0
    """Bytes per second, as the kernel says it."""
    out_bps: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A service and its real servers."""

    service: Service
    destinations: Mapping[DestinationKey, Destination] = field(default_factory=dict)


Table = Mapping[ServiceKey, Entry]
