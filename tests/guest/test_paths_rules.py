"""The helper rules on a Docker host with a real IPVS: each way of a packet works with them, and fails without.

The cases are those that docs/decisions/helper-rules.md lists; each test asks for what rules.py says and nothing else.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from lan import KINDS, PORT, Answer, address
from stage import Stage, seen

from tsbus.balancer.inventory import DEVICE
from tsbus.balancer.netfilter import HostEdge
from tsbus.balancer.rules import Listen, Needs, real_server_needs
from tsbus.balancer.table import Forward, Protocol

pytestmark = pytest.mark.guest

EACH_KIND = pytest.mark.parametrize("kind", KINDS)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
OWN = {4: "10.0.0.100", 6: "fd00::100"}
"""An address for balancers, of each version of IP."""


@pytest.fixture(scope="module")
def docker(bare: Stage) -> Iterator[None]:
    """Docker's rules on the host."""
    bare.lan.docker()
    yield
    bare.without_rules()


@pytest.fixture
def stage(bare: Stage, docker: None) -> Iterator[Stage]:
    """A Docker host as it is before a balancer comes."""
    bare.clear()
    yield bare
    bare.host.call(bare.edge.apply, Needs())


@EACH_KIND
@VERSIONS
def test_local_containers_see_the_client(stage: Stage, kind: str, version: int) -> None:
    """Clients elsewhere and on the host reach containers, which see their addresses, although rules masquerade."""
    stage.balance(stage.front(kind, "c1", "c2", version=version))
    assert stage.answers("client", kind, version) == seen("c1", "c2", by="client", version=version)
    assert stage.answers("host", kind, version) == seen("c1", "c2", by="host", version=version)


@EACH_KIND
@VERSIONS
def test_another_node(stage: Stage, kind: str, version: int) -> None:
    """Clients elsewhere, on the host and in containers reach another node, which sees the host."""
    stage.balance(stage.front(kind, "node", version=version))
    for client in ("client", "host", "c1"):
        assert stage.answers(client, kind, version, times=1) == seen("node", by="host", version=version)


def test_another_node_needs_all_of_it(stage: Stage) -> None:
    """Without tracking, without masquerading or without the accept rule nothing comes back from another node."""
    front = stage.front("udp", "node")
    stage.balance(front)
    whole = stage.needs(front)
    stage.host.sysctl("net.ipv4.vs.conntrack", 0)
    for client in ("client", "c1"):
        assert stage.silent(client)
    stage.host.sysctl("net.ipv4.vs.conntrack", 1)
    for kind in ("masquerade", "accept"):
        rules = tuple(rule for rule in whole.rules if rule.kind != kind)
        stage.host.call(stage.edge.apply, replace(whole, rules=rules))
        assert stage.silent("client")
    with stage.rule("DOCKER-USER -m ipvs --ipvs -j ACCEPT"):  # judged before IPVS has seen the answer
        assert stage.silent("client")
    stage.host.call(stage.edge.apply, whole)
    assert stage.answers("client", "udp") == seen("node", by="host")


@VERSIONS
@pytest.mark.parametrize("bridge_filter", [False, True])
def test_containers_of_one_bridge(stage: Stage, version: int, bridge_filter: bool) -> None:
    """A container reaches the others of its bridge through the balancer, and itself."""
    stage.bridge_filter(on=bridge_filter)
    stage.balance(stage.front("tcp", "c1", "c2", version=version))
    assert stage.answers("c1", "tcp", version) == seen("c1", "c2", by="docker0", version=version)
    assert stage.answers("client", "tcp", version) == seen("c1", "c2", by="client", version=version)


def test_containers_of_one_bridge_without_masquerading(stage: Stage) -> None:
    """Without it a container answers one of its own bridge directly, which does not know it, unless bridges filter."""
    stage.has(stage.front("udp", "c2"))
    stage.host.sysctl("net.ipv4.vs.conntrack", 1)
    assert stage.silent("c1")
    stage.bridge_filter(on=True)
    assert stage.answers("c1", "udp") == seen("c2", by="c1")


def test_a_container_to_itself_needs_hairpins(stage: Stage) -> None:
    """With filtered bridges a container reaches itself only where its port sends packets back, and others anyway."""
    stage.bridge_filter(on=True)
    front = stage.front("udp", "c1", "c2")
    stage.balance(front)
    stage.host.run("bridge", "link", "set", "dev", "to-c1", "hairpin", "off")
    assert [stage.silent("c1") for _ in range(4)].count(True) == 2
    stage.host.call(stage.edge.apply, stage.needs(front))
    assert stage.answers("c1", "udp") == seen("c1", "c2", by="docker0")


@EACH_KIND
def test_containers_of_two_bridges(stage: Stage, kind: str) -> None:
    """A container reaches one of another bridge through the balancer, which Docker's isolation would forbid."""
    stage.balance(stage.front(kind, "c1"))
    assert stage.answers("c3", kind) == seen("c1", by="docker0")


@VERSIONS
def test_a_range_of_ports(stage: Stage, version: int) -> None:
    """Packets to any port of a range get the mark of their service, from elsewhere and from the host."""
    stage.balance(stage.front("tcp", "c1", version=version, ports=(8000, 8010)))
    for port in (8000, 8010):
        for client in ("client", "host"):
            found = stage.answers(client, "tcp", version, times=1, port=port)
            assert found == seen("c1", by=client, version=version)
    with pytest.raises(ConnectionRefusedError):
        stage.answers("client", "tcp", version, port=8011)


def test_a_range_to_another_node(stage: Stage) -> None:
    """A service by mark is masqueraded and accepted, too."""
    stage.balance(stage.front("tcp", "node", ports=(8000, 8010)))
    assert stage.answers("client", "tcp", port=8005) == seen("node", by="host")


@VERSIONS
def test_several_addresses(stage: Stage, version: int) -> None:
    """Several addresses and ranges are one service, and what belongs to none of them is not."""
    ips = [ip_address(OWN[version]) + number for number in range(2)]
    listens = (Listen(Protocol.TCP, ips[0], 80, 80), Listen(Protocol.TCP, ips[1], 8000, 8010))
    front = stage.front("tcp", "c1", "c2", version=version, ports=(80, 81))
    stage.balance(replace(front, listens=listens, manage_vip=True))
    places = [(str(ips[0]), 80), (str(ips[1]), 8000), (str(ips[0]), 80), (str(ips[1]), 8010)]
    assert [stage.lan.ask("client", "tcp", to).server for to in places] in (["c1", "c2"] * 2, ["c2", "c1"] * 2)
    with pytest.raises(ConnectionRefusedError):
        stage.lan.ask("client", "tcp", (str(ips[0]), 81))


def test_several_addresses_with_persistence(stage: Stage) -> None:
    """A client has the same server at all addresses of a service that keeps it, at the port that it came to."""
    listens = tuple(Listen(Protocol.TCP, ip_address(OWN[4]), port, port) for port in (PORT, 80))
    listens = (*listens, Listen(Protocol.TCP, ip_address(OWN[4]) + 1, PORT, PORT))
    front = stage.front("tcp", "c1", "c2", ports=(80, 81))
    pool = replace(front.pool, service=replace(front.pool.service, persistent_s=60))
    stage.balance(replace(front, listens=listens, manage_vip=True, pool=pool))
    assert len({stage.lan.ask("client", "tcp", (str(listens[-number].ip), PORT)).server for number in (1, 3)}) == 1
    assert stage.host.sysctl("net.ipv4.vs.expire_quiescent_template") == 1
    with pytest.raises(ConnectionRefusedError):  # the server has nobody at port 80
        stage.lan.ask("client", "tcp", (OWN[4], 80))


@VERSIONS
def test_an_address_of_its_own(stage: Stage, version: int) -> None:
    """A managed address is on our own device while a balancer has it, and clients of the net find it."""
    front = stage.front("tcp", "c1", vip=OWN[version], version=version)
    stage.balance(front)
    assert stage.lan.ask("client", "tcp", (OWN[version], 80)) == Answer("c1", address("client", version))
    assert f"{OWN[version]}/" in stage.host.run("ip", "address", "show", "dev", DEVICE)
    stage.host.call(stage.edge.apply, Needs())
    assert DEVICE not in stage.host.run("ip", "link")


TUNNELS = {4: "tunl0", 6: "ip6tnl0"}


@VERSIONS
@pytest.mark.parametrize("forward", [Forward.DIRECT, Forward.TUNNEL])
def test_direct_routing_and_tunnel(stage: Stage, forward: Forward, version: int) -> None:
    """A node that has what real_server_needs() says answers the client itself; the balancer needs no rules."""
    vip = OWN[version]
    front = stage.front("tcp", "node", vip=vip, version=version, ports=(PORT, PORT), forward=forward)
    node = stage.lan["node"]
    if forward is Forward.TUNNEL:
        node.ip(f"link set {TUNNELS[version]} up")
    edge = node.call(HostEdge, "ipvs")
    assert node.call(edge.apply, real_server_needs([ip_address(vip)], forward)).problems == ()
    stage.balance(front)
    assert stage.needs(front).rules == ()
    assert stage.lan.ask("client", "tcp", (vip, PORT)) == Answer("node", address("client", version))
    neighbour = stage.lan["client"].run("ip", "neighbour", "show", vip)
    assert neighbour.split()[4] in stage.host.run("ip", "link", "show", "dev", "eth0")
    node.call(edge.apply, Needs())
    node.call(edge.close)
    stage.lan["client"].ip("neighbour flush all")


def test_a_restart_of_docker(stage: Stage) -> None:
    """When Docker makes its rules anew and ours are gone, they are put back by the next comparison, and then stay."""
    front = stage.front("tcp", "node")
    stage.balance(front)
    before = stage.host.run("iptables", "-S")
    stage.lan.docker()
    assert "TREESCALE" not in stage.host.run("iptables", "-S")
    assert stage.host.call(stage.edge.apply, stage.needs(front)).changes
    assert stage.answers("client", "tcp") == seen("node", by="host")
    assert stage.host.run("iptables", "-S") == before
    assert not stage.host.call(stage.edge.apply, stage.needs(front)).changes


def test_a_published_port(stage: Stage) -> None:
    """A port that Docker publishes at the same address takes the packets away from the balancer."""
    stage.balance(stage.front("tcp", "c1"))
    published = f"-p tcp --dport 80 -j DNAT --to-destination {address('c2')}:{PORT}"
    let_in = f"-d {address('c2')} ! -i docker0 -o docker0 -p tcp --dport {PORT} -j ACCEPT"
    for table, rule in (("nat", f"! -i docker0 {published}"), ("filter", let_in)):
        stage.host.run("iptables", "-t", table, "-A", "DOCKER", *rule.split())
    assert stage.answers("client", "tcp") == seen("c2", by="client")
    stage.lan.docker()


def test_foreign_services_are_left_alone(stage: Stage) -> None:
    """A service that is not ours is not masqueraded, also with ours on the same address."""
    stage.balance(stage.front("udp", "node"))
    stage.has(stage.front("udp", "node", ports=(81, 81)))
    assert stage.silent("client", port=81)
    assert stage.answers("client", "udp") == seen("node", by="host")


WITHOUT_RAW_SOCKETS = """
from ipaddress import ip_address
from tsbus.balancer.netfilter import HostEdge
from tsbus.balancer.rules import Listen, Needs, Rule
from tsbus.balancer.table import Protocol
rule = Rule("masquerade", Listen(Protocol.TCP, ip_address("10.0.0.1"), 80, 80), "why")
(problem,) = HostEdge("ipvs").apply(Needs(rules=(rule,))).problems
print(problem.mend)
"""


@pytest.mark.parametrize("name", ["host", "client"])
def test_without_raw_sockets(stage: Stage, name: str) -> None:
    """A balancer that lacks CAP_NET_RAW, for iptables of the legacy kind, is told so, with rules there and without."""
    words = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", sys.executable, "-c", WITHOUT_RAW_SOCKETS]
    assert "CAP_NET_RAW, which iptables of the legacy kind needs" in stage.lan[name].run(*words)
