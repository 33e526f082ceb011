"""Limits: how often somebody may do something, for a bounded number of somebodies. Pure; time is passed in."""

import ipaddress
from collections import OrderedDict
from typing import Final

MAX_KEYS: Final = 4096


class Limit:
    """Each key may do `burst` things at once, and `per_s` a second after that.

    When there are more than MAX_KEYS, the one that has done nothing for longest is forgotten: it has most of its burst
    again anyway.
    """

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> float:
        """Return 0 and count it, or how many seconds `key` has to wait."""
        left, then = self._left.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._left[key] = (left if wait_s else left - 1, now)
        if len(self._left) > MAX_KEYS:
            self._left.popitem(last=False)
        return wait_s

    def give_back(self, key: str) -> None:
        """Let what was counted last not count."""
        if key in self._left:
            left, then = self._left[key]
            self._left[key] = (min(self._burst, left + 1), then)


def neighbourhood(address: str) -> str:
    """Return what counts as one address: of IPv6 its /64, which one customer has 2**64 addresses in."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 4:
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
