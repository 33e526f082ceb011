"""Address: where a balancer listens, an IP address with a port or a range of ports, read from its text."""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class Address(NamedTuple):
    """One IP address and a range of ports, mostly of one."""

    ip: str
    """In its canonical form."""
    first: int
    last: int

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.ip else 4

    def overlaps(self, other: "Address") -> bool:
        """Tell whether some IP and port belong to both."""
        return self.ip == other.ip and self.first <= other.last and other.first <= self.last

    def covers(self, ip: str, port: int) -> bool:
        """Tell whether `ip`, in its canonical form, and `port` are in it."""
        return self.ip == ip and self.first <= port <= self.last

    def __str__(self) -> str:
        ip = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{ip}:{self.first}" + (f"-{self.last}" if self.last > self.first else "")


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """Return the address in `text`: `10.0.0.1:443`, `10.0.0.1:8000-8010` or `[fd00::1]:443`. Raises ValueError."""
    ip, _, ports = text.rpartition(":")
    bracketed = ip.startswith("[") and ip.endswith("]")
    parsed = ip_address(ip[1:-1] if bracketed else ip)
    found = _PORTS.fullmatch(ports)
    if found is None or bracketed != (parsed.version == 6):
        raise ValueError(text)
    first, last = int(found[1]), int(found[2] or found[1])
    if not 0 < first <= last <= 65535:
        raise ValueError(text)
    return Address(str(parsed), first, last)


def unusable(ip: str) -> str:
    """Return why the kernel cannot balance at `ip`, or ''."""
    parsed: IPv4Address | IPv6Address = ip_address(ip)
    if parsed.is_unspecified:
        return "stands for all addresses, and the kernel balances one"
    if parsed.is_loopback:
        return "is a loopback address, which the kernel does not balance"
    if parsed.is_multicast:
        return "is a multicast address"
    return "needs a zone" if isinstance(parsed, IPv6Address) and parsed.is_link_local else ""
