"""Stage: a host with an IPVS on a Lan, what a test puts into its table, and who answers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from lan import PORT, Answer, Lan, address

from tsbus.balancer.ipvs import Kernel
from tsbus.balancer.netfilter import HostEdge
from tsbus.balancer.rules import Front, Listen, Needs, needs
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Destination, Entry, Forward, Key, Mark, Protocol, Service, Virtual

_SETTINGS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv4.vs.conntrack": 0,
    "net.ipv4.vs.expire_nodest_conn": 0,
    "net.ipv4.vs.expire_quiescent_template": 0,
    "net.bridge.bridge-nf-call-iptables": 0,
    "net.bridge.bridge-nf-call-ip6tables": 0,
}
_NO_RULES = """\
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
"""


def virtual(kind: str = "tcp", port: int = 80, version: int = 4) -> Virtual:
    """A service at the host's address."""
    return Virtual(Protocol[kind.upper()], ip_address(address("host", version)), port)


def place(name: str, weight: int = 1, version: int = 4) -> Destination:
    """One of the Lan as a real server."""
    return Destination(Address(ip_address(address(name, version)), PORT), weight)


def seen(*servers: str, by: str, version: int = 4) -> set[Answer]:
    """The answers of servers that see this address."""
    return {Answer(server, address(by, version)) for server in servers}


class Stage:
    """A host that forwards, with a kernel's table; with Docker's rules when somebody asks for them."""

    def __init__(self, lan: Lan) -> None:
        self.lan, self.host = lan, lan.host
        self.kernel = self.host.call(Kernel)
        self.edge = self.host.call(HostEdge, "ipvs")

    def clear(self) -> None:
        """As it is before a balancer comes: an empty table and the settings of a fresh kernel that forwards."""
        for key in self.table():
            self.host.call(self.kernel.delete_service, key)
        for name, value in _SETTINGS.items():
            self.host.sysctl(name, value)

    def without_rules(self) -> None:
        """Take all rules of packets away, Docker's as well."""
        for tool in ("iptables-restore", "ip6tables-restore"):
            self.host.run(tool, text=_NO_RULES)

    @contextmanager
    def short_memory(self) -> Iterator[None]:
        """Let the kernel forget a client of UDP after a second, for a while."""
        self.host.run("ipvsadm", "--set", "0", "0", "1")
        try:
            yield
        finally:
            self.host.run("ipvsadm", "--set", "0", "0", "300")

    @contextmanager
    def rule(self, text: str) -> Iterator[None]:
        """Have a rule of iptables before all others of its chain, for a while."""
        self.host.run("iptables", "-I", *text.split())
        try:
            yield
        finally:
            self.host.run("iptables", "-D", *text.split())

    def bridge_filter(self, *, on: bool) -> None:
        """Let bridged packets pass the packet rules, or not."""
        for tool in ("iptables", "ip6tables"):
            self.host.sysctl(f"net.bridge.bridge-nf-call-{tool}", on)

    # The table.

    def table(self) -> dict[Key, Entry]:
        """What the kernel has."""
        return self.host.call(self.kernel.services)

    def add(self, service: Service, *places: Destination) -> None:
        """A service with these servers."""
        self.host.call(self.kernel.add_service, service)
        for one in places:
            self.join(service.key, one)

    def join(self, key: Key, one: Destination) -> None:
        """Add a server to a service."""
        self.host.call(self.kernel.add_destination, key, one)

    def weigh(self, key: Key, one: Destination) -> None:
        """Give a server another weight."""
        self.host.call(self.kernel.set_destination, key, one)

    def delete(self, key: Key, one: Destination) -> None:
        """Delete a server."""
        self.host.call(self.kernel.delete_destination, key, one.address)

    # The balancer's way to it.

    def front(self, kind: str, *servers: str, vip: str = "host", version: int = 4, ports: tuple[int, int] = (80, 80),
              forward: Forward = Forward.NAT) -> Front:  # fmt: skip
        """A balancer as its host sees it."""
        ip = ip_address(address(vip, version) if vip == "host" else vip)
        listen = Listen(Protocol[kind.upper()], ip, *ports)
        one = ports[0] == ports[1]
        key: Key = Virtual(listen.protocol, ip, ports[0]) if one else Mark(0x54530007, listen.version)
        port = 0 if forward is not Forward.NAT else PORT
        places = [Address(ip_address(address(each, version)), port or ports[0]) for each in servers]
        pool = Pool(Service(key), {each: Destination(each, forward=forward) for each in places})
        return Front("web", (listen,), pool, manage_vip=vip != "host")

    def balance(self, front: Front) -> None:
        """Make a balancer with all that its host needs."""
        self.has(front)
        done = self.host.call(self.edge.apply, self.needs(front))
        assert done.problems == ()

    def needs(self, front: Front) -> Needs:
        """What its host needs."""
        return needs([front], self.host.call(self.edge.read))

    def has(self, front: Front) -> None:
        """Make a balancer's service and nothing else."""
        self.add(front.pool.service, *front.pool.destinations.values())

    # Clients.

    def ask(self, client: str, kind: str = "tcp", port: int = 80, version: int = 4, source: str = "") -> Answer:
        """What one new connection to the host's address is answered."""
        return self.lan.ask(client, kind, (address("host", version), port), source=source)

    def answers(self, client: str, kind: str, version: int = 4, times: int = 2, port: int = 80) -> set[Answer]:
        """The different ones of so many connections."""
        return {self.ask(client, kind, port, version) for _ in range(times)}

    def servers(self, client: str, kind: str = "tcp", times: int = 4, port: int = 80, version: int = 4) -> Counter[str]:
        """Who answers so many connections."""
        return Counter(self.ask(client, kind, port, version).server for _ in range(times))

    def silent(self, client: str, kind: str = "udp", port: int = 80) -> bool:
        """Tell whether nothing answers there, not even a refusal."""
        return self.lan.silent(client, (address("host"), port), kind)
