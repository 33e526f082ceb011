"""Balancing: what must hold of the balancers of a tree, as far as it can be seen without their kernels."""

from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from tsbus.config.address import Address, parse_address
from tsbus.config.document import Document
from tsbus.config.forms import NFTABLES_SCHEDULERS, UNWEIGHTED, quote
from tsbus.config.model import Balancer, Server, Tree
from tsbus.config.problem import Path, Severity


def check_balancers(tree: Tree, document: Document) -> None:
    """Note all problems of the tree's balancers in its document."""
    tags = {tag for server in tree.servers.values() for tag in server.tags}
    taken: dict[str, list[_Taken]] = defaultdict(list)
    for server in tree.servers.values():
        taken[_ip(server)].append(_Taken(server, "tcp", _bus_address(server)))
    _note_shared_kernels(tree, document)
    for server in tree.servers.values():
        below = _below(tree, server.name) if server.balancers else set()
        for balancer in server.balancers.values():
            check = _Check(tree, document, server, below, balancer)
            check.addresses(taken)
            check.members(tags)
            check.scheduler()
            check.weights()
            check.forwarding()
            check.sorry_server()
            check.backend()


def _note_shared_kernels(tree: Tree, document: Document) -> None:
    """Note servers with balancers that are on one machine: the rules and addresses of a kernel are of one of them."""
    owners: dict[str, Server] = {}
    for server in tree.servers.values():
        if server.balancers and (owner := owners.setdefault(server.ip, server)) is not server:
            message = f"{quote(owner.name)} is on this machine and has balancers too; a kernel has those of one server"
            hint = "fine if each has a network namespace of its own; else put them together on one"
            document.note("warning", ("servers", server.name, "balancers"), message, hint)


class _Taken(NamedTuple):
    """An address that is in use on a server."""

    server: Server
    protocol: str
    address: Address
    balancer: Balancer | None = None
    """None: it is that of the bus."""

    def owner(self, seen_from: Server) -> str:
        """Who uses it, in words."""
        name = f"balancer {quote(self.balancer.name)}" if self.balancer else "the bus"
        return name if self.server is seen_from else f"{name} of {quote(self.server.name)}"


def _below(tree: Tree, name: str) -> set[str]:
    """Return `name` and all servers below it; the childs may still be no tree."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each not in found and each in tree.servers:
            found.add(each)
            waiting += tree.servers[each].childs
    return found


def _ip(server: Server) -> str:
    """Return the server's address in its canonical form, or '' where it is a host name."""
    try:
        return str(ip_address(server.ip))
    except ValueError:
        return ""


def _bus_address(server: Server) -> Address:
    return Address(_ip(server), server.service_port, server.service_port)


class _Check:
    """The checks of one balancer. An address that cannot be read was noted before, and is passed over here."""

    def __init__(self, tree: Tree, document: Document, server: Server, below: set[str], balancer: Balancer) -> None:
        self._tree, self._document, self._server, self._below = tree, document, server, below
        self._balancer = balancer
        self._path: Path = ("servers", server.name, "balancers", balancer.name)
        self._listens = [*self._places()]

    def addresses(self, taken: dict[str, list[_Taken]]) -> None:
        """No address is another's too, and all are of one family. `taken`, by IP address, is added to."""
        protocol = self._balancer.protocol
        for path, address in self._listens:
            others = [
                each for each in taken[address.ip] if each.protocol == protocol and each.address.overlaps(address)
            ]
            # Servers with one address are processes of one machine, and it has one kernel.
            if clash := next((each for each in others if each.server.ip == self._server.ip), None):
                hint = "give it another address or port"
                self._note("error", path, f"{address} is already used by {clash.owner(self._server)}", hint)
            elif twice := next((each for each in others if self._both_manage(each.balancer)), None):
                message = f"{address.ip} is managed by {twice.owner(self._server)} as well: two hosts answer for it"
                self._note("warning", ("manage_vip",), message, "have keepalived or the like give it to one at a time")
            taken[address.ip].append(_Taken(self._server, protocol, address, self._balancer))
            if address.family != self._listens[0][1].family:
                message = f"{address} and {self._listens[0][1]} are of two families, IPv4 and IPv6"
                self._note("error", path, message, "make a balancer for each of them")
            if self._balancer.manage_vip and address.ip == _ip(self._server):
                message = f"{address.ip} is the server's own address already"
                self._note("warning", ("manage_vip",), message, "leave manage_vip out, or use an address of its own")

    def _both_manage(self, other: Balancer | None) -> bool:
        return other is not None and self._balancer.manage_vip and other.manage_vip

    def members(self, tags: set[str]) -> None:
        """The servers exist, are below this one, and are not the balancer itself."""
        for member, port in self._balancer.servers.items():
            path = ("servers", member)
            tag = member.removeprefix("@")
            if tag == member and member not in self._tree.servers:
                message = f"no server named {quote(member)}"
                self._document.note_unknown("error", (*self._path, *path), message, member, self._tree.servers)
            elif tag != member and tag not in tags:
                message = f"no server has the tag {quote(tag)}"
                self._document.note_unknown("warning", (*self._path, *path), message, tag, tags)
            elif tag == member and member not in self._below:
                hint = "a balancer serves the servers below its own; put it on a server that is above this one"
                self._note("error", path, f"{quote(member)} is not below {quote(self._server.name)}", hint)
            for name in self._named(member):
                self._member(path, self._tree.servers[name], port)
        if not (self._balancer.servers or self._balancer.containers):
            message = "has neither containers nor servers"
            hint = f'only containers with the label treescale.balancer = "{self._balancer.name}" will take part'
            self._note("info", (), message, hint)

    def _named(self, member: str) -> list[str]:
        names = sorted(self._below) if member.startswith("@") else [member]
        servers = [self._tree.servers[name] for name in names if name in self._below]
        return [each.name for each in servers if member == each.name or member.removeprefix("@") in each.tags]

    def _member(self, path: Path, server: Server, port: int) -> None:
        ip = _ip(server)
        if not ip or not self._listens:
            return
        first = self._listens[0][1]
        if ip_address(ip).version != first.family:
            message = f"{quote(server.name)} has the address {ip}, which is of another family than {first}"
            self._note("error", path, message, "the kernel does not translate between IPv4 and IPv6; take it out")
            return
        for address in [address for _, address in self._listens]:
            if address.covers(ip, port or address.first):
                message = f"{quote(server.name)} at this port is the balancer's own address {address}"
                self._note("error", path, message, "give the port that the program behind it listens on")
                return
        if server is self._server and (other := self._own_balancer(ip, port)):
            message = f"this is the address of balancer {quote(other)} of the same server"
            self._note("error", path, message, "one kernel balances a connection once; name its servers here too")

    def _own_balancer(self, ip: str, port: int) -> str:
        for other in self._server.balancers.values():
            if other.protocol == self._balancer.protocol and any(each.covers(ip, port) for each in _readable(other)):
                return other.name
        return ""

    def scheduler(self) -> None:
        """One that refuses clients is a warning."""
        if self._balancer.alg == "dh":
            message = "dh gives an address to one server, and its clients are refused while that one is drained"
            self._note("warning", ("alg",), message, "use sh")
        if self._balancer.alg == "ovf" and not self._balancer.server_weights:
            message = "ovf gives a server one connection more than its weight, and refuses clients when all have theirs"
            self._note("warning", ("alg",), message, "set server_weights to what the servers can bear, or use wlc")

    def weights(self) -> None:
        """Weights are for servers that are named, and for a scheduler that knows them."""
        keys = [*self._balancer.containers, *self._balancer.servers]
        for key in self._balancer.server_weights:
            if key not in keys:
                path = (*self._path, "server_weights", key)
                self._document.note_unknown("error", path, "neither of containers nor of servers", key, keys)
        if self._balancer.alg not in UNWEIGHTED:
            return
        unused = [("server_weights",)] if self._balancer.server_weights else []
        unused += [("weights",)] if self._balancer.weights == "cpu" else []
        for path in unused:
            message = f"the scheduler {self._balancer.alg} knows no weights"
            self._note("warning", path, message, f"use {_weighted(self._balancer.alg)}")

    def forwarding(self) -> None:
        """With dr and tunnel packets reach the server unchanged, and with persistence some keep their port."""
        balancer = self._balancer
        if balancer.forward != "nat" and balancer.containers:
            message = f"containers cannot be reached with {balancer.forward}: they do not have the balancer's address"
            self._note("error", ("containers",), message, 'use forward = "nat"')
        if len(self._listens) != len(balancer.addresses) + 1 or not balancer.keeps_port:
            return
        what, hint = f"with {balancer.forward}", "write 0"
        if balancer.forward == "nat":
            what = "with persistence_s and several addresses or ports"
            hint += ", or make a balancer of each address and port"
        ports = {port for _, each in self._listens for port in (each.first, each.last)}
        places: list[tuple[Path, int]] = [(("servers", name), port) for name, port in balancer.servers.items()]
        if balancer.forward == "nat":
            places += [(("containers", name), port) for name, port in balancer.containers.items()]
        if balancer.sorry_server:
            places.append((("sorry_server",), parse_address(balancer.sorry_server).first))
        for path, port in places:
            if port and ports != {port}:
                message = f"{what} a packet keeps the port that the client came to, which is not always {port}"
                self._note("error", path, message, hint)

    def sorry_server(self) -> None:
        """The sorry server is of the same family and somewhere else."""
        text = self._balancer.sorry_server
        if not (text and self._listens):
            return
        sorry = parse_address(text)
        if sorry.family != self._listens[0][1].family:
            message = f"{sorry} is of another family than {self._listens[0][1]}"
            self._note("error", ("sorry_server",), message, "the kernel does not translate between IPv4 and IPv6")
        elif any(address.overlaps(sorry) for _, address in self._listens):
            self._note("error", ("sorry_server",), f"{sorry} is the balancer's own address", "give another one")

    def backend(self) -> None:
        """What nftables cannot do is not asked of it."""
        backend = (self._server.balancing or self._tree.balancing).backend
        if backend == "ipvs":
            return
        severity: Severity = "error" if backend == "nftables" else "warning"
        where = "nftables" if backend == "nftables" else "nftables, which is used where the kernel has no IPVS,"
        balancer, needs = self._balancer, 'set backend = "ipvs" in [balancing]'
        if balancer.alg not in NFTABLES_SCHEDULERS:
            hint = f"use one of {', '.join(NFTABLES_SCHEDULERS)}, or {needs}"
            self._note(severity, ("alg",), f"{where} does not have the scheduler {balancer.alg}", hint)
        if balancer.persistence_s:
            self._note(
                severity, ("persistence_s",), f"{where} does not keep clients with a server", f"use sh, or {needs}"
            )
        if balancer.forward != "nat":
            self._note(severity, ("forward",), f"{where} forwards with nat only", needs)

    def _places(self) -> Iterator[tuple[Path, Address]]:
        places: list[tuple[Path, str]] = [(("address",), self._balancer.address)]
        places += [(("addresses", index), text) for index, text in enumerate(self._balancer.addresses)]
        for path, text in places:
            try:
                yield path, parse_address(text)
            except ValueError:
                continue

    def _note(self, severity: Severity, path: Path, message: str, hint: str) -> None:
        self._document.note(severity, (*self._path, *path), message, hint)


def _readable(balancer: Balancer) -> tuple[Address, ...]:
    try:
        return balancer.listens
    except ValueError:
        return ()


def _weighted(scheduler: str) -> str:
    return {"rr": "wrr", "lc": "wlc"}.get(scheduler, "sh")
