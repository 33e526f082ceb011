"""Evidence: reads once everything about a host that `lb.why` judges, and changes nothing. The judgement is why.py's.

Blocks while tools run; for the kernel's thread, whose network namespace it is about.
"""

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Final

from tsbus.balancer.devices import Devices
from tsbus.balancer.netfilter import read_host, read_sysctl
from tsbus.balancer.programs import HostError, NoFeature, NoProgram, run
from tsbus.balancer.rules import FORWARDING, Backend
from tsbus.balancer.table import IP, Address, Entry, Key, Protocol
from tsbus.balancer.ways import COUNT, MAX, TRACKING, Evidence

CONNECT_S: Final = 1.0
"""How long a server may take to accept a connection."""
_NET: Final = Path("/proc/thread-self/net")
"""Of the network namespace of the thread that reads it."""
_NFT_MODULE: Final = Path("/sys/module/nf_tables")
_LISTENS: Final = {Protocol.TCP: "0A", Protocol.UDP: "07"}
"""The state of a socket that waits for anybody."""
_KINDS: Final = ("nft", "legacy")
"""Of iptables. A host may have both, with rules in each."""


def read(backend: Backend, ip: IP, servers: Iterable[IP], table: Mapping[Key, Entry] | None) -> Evidence:
    """Return what is found out about the host, on the ways to a balancer's address and to its servers.

    Raises HostError where not even its devices can be read.
    """
    with Devices() as devices:
        inventory = devices.look()
        host = read_host(backend, devices, inventory)
        routes = {each: route for each in (ip, *servers) if (route := devices.route(each)) is not None}
    ports = [port for network in host.networks for port in network.ports]
    ways = {route.device.replace(".", "/") for route in routes.values()}
    names = (*FORWARDING.values(), *(f"net.ipv4.conf.{each}.forwarding" for each in ways), TRACKING, COUNT, MAX)
    unread: list[str] = []
    saved = dict(_iptables(unread))
    listed, written = _nft(unread)
    return Evidence(
        host=host,
        routes=routes,
        outside=inventory.outside,
        settings={name: value for name in names if (value := read_sysctl(name)) is not None},
        saved=saved,
        listed=listed,
        written=written,
        unread=tuple(unread),
        listeners=frozenset(_listeners()),
        no_hairpin=frozenset(each.name for each in inventory.without_hairpin(ports)),
        table=table,
    )


def _iptables(unread: list[str]) -> Iterator[tuple[str, str]]:
    for tool in ("iptables", "ip6tables"):
        there = False
        for name in (*(f"{tool}-{kind}-save" for kind in _KINDS), f"{tool}-save"):
            if there and not name.startswith((f"{tool}-nft", f"{tool}-legacy")):
                continue  # one of the two under its common name
            try:
                yield name, run(name)
                there = True
            except NoProgram:
                pass
            except NoFeature:
                there = True
            except HostError as error:
                unread.append(error.text)


def _nft(unread: list[str]) -> tuple[str, str]:
    """Return the rules of nft in two forms, which belong together when nobody changed them in between."""
    try:
        return run("nft", "-j", "list", "ruleset"), run("nft", "-a", "list", "ruleset")
    except NoProgram as error:
        if _NFT_MODULE.exists():
            unread.append(error.text)
    except NoFeature:
        pass
    except HostError as error:
        unread.append(error.text)
    return "", ""


def _listeners() -> Iterator[tuple[Protocol, IP | None, int]]:
    for protocol, state in _LISTENS.items():
        for suffix in ("", "6"):
            try:
                lines = (_NET / f"{protocol.name.lower()}{suffix}").read_text().splitlines()[1:]
            except OSError:
                continue  # a kernel without IPv6
            for line in lines:
                _, local, _, found, *_ = line.split()
                if found == state:
                    ip, port = local.split(":")
                    yield protocol, _ip(ip), int(port, 16)


def _ip(digits: str) -> IP | None:
    """Read an address of /proc: words of four bytes in the order of this machine. None: every address."""
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    ip = ip_address(b"".join(words))
    mapped = ip.ipv4_mapped if ip.version == 6 else None
    return None if ip.is_unspecified else mapped or ip


class Knocks:
    """Connections that are being made to servers, from the network namespace of the thread in which this is made."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._end = time.monotonic() + CONNECT_S
        self._open: dict[int, tuple[socket.socket, Address]] = {}
        self._found: dict[Address, str] = {}
        for address in addresses:
            family = socket.AF_INET if isinstance(address.ip, IPv4Address) else socket.AF_INET6
            knock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            code = knock.connect_ex((str(address.ip), address.port))
            if code == errno.EINPROGRESS:
                self._open[knock.fileno()] = knock, address
            else:
                knock.close()
                self._found[address] = os.strerror(code) if code else ""

    def wait(self) -> dict[Address, str]:
        """Return of each server why it does not accept a connection, '' if it does. Blocks for CONNECT_S at most."""
        poll = select.poll()
        for number in self._open:
            poll.register(number, select.POLLOUT)
        while self._open and (left := self._end - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                poll.unregister(number)
                knock, address = self._open.pop(number)
                code = knock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                knock.close()
                self._found[address] = os.strerror(code) if code else ""
        for knock, address in self._open.values():
            knock.close()
            self._found[address] = f"no answer in {CONNECT_S:g} s"
        self._open.clear()
        return self._found
