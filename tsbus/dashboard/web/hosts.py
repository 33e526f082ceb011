"""Hosts: by which names the dashboard is reached. Pure.

A site that an attacker owns can let its name mean 127.0.0.1, and the visitor's browser then takes both for one site
(DNS rebinding). So names that nobody gave this machine are refused; an address cannot be played with like that.
"""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit


class Hosts:
    """The names that count as this dashboard."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: besides localhost and all addresses."""
        self._names = {"localhost", *(name.lower().removesuffix(".") for name in names if name)}

    def has(self, header: str) -> bool:
        """Tell whether the Host header of a request names this dashboard."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
            ipaddress.ip_address(name)
        except ValueError:
            return bool(header) and _plain_name(header) in self._names
        return True


def _plain_name(header: str) -> str:
    name, _, port = header.partition(":")
    return name.lower().removesuffix(".") if port.isdigit() or ":" not in header else ""
