"""The ways of packets through a kernel's balancer without any help: who answers, whom servers see, what ends flows."""

import time
from ipaddress import ip_address

import pytest
from lan import KINDS, LIMIT_S, PORT, address
from stage import Stage, place, seen, virtual

from tsbus.balancer.table import Key, Protocol, Service, Virtual

pytestmark = pytest.mark.guest

EACH_KIND = pytest.mark.parametrize("kind", KINDS)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
VIP = (address("host"), 80)


def balance(stage: Stage, kind: str, *names: str, port: int = 80, version: int = 4) -> Virtual:
    """A service with these as its servers, in turn."""
    key = virtual(kind, port, version)
    stage.add(Service(key), *(place(name, version=version) for name in names))
    return key


# ---- From client to server ----


@EACH_KIND
@VERSIONS
def test_from_another_machine_to_local_containers(stage: Stage, kind: str, version: int) -> None:
    """With forwarding on, and nothing else, a client elsewhere reaches the containers, and they see its own address."""
    balance(stage, kind, "c1", "c2", version=version)
    assert stage.answers("client", kind, version) == seen("c1", "c2", by="client", version=version)


@EACH_KIND
@pytest.mark.parametrize("server", ["c1", "node"])
def test_from_the_host_itself(stage: Stage, kind: str, server: str) -> None:
    """A process on the balancer's host reaches containers and other nodes; they see the address of the service."""
    balance(stage, kind, server)
    assert stage.ask("host", kind) == (server, address("host"))


@pytest.fixture(scope="module")
def sctp(bare: Stage) -> None:
    """Containers that speak SCTP, too."""
    for name in ("c1", "c2"):
        bare.lan.serve(name, "sctp")


@pytest.mark.usefixtures("sctp")
@VERSIONS
def test_sctp(stage: Stage, version: int) -> None:
    """SCTP is balanced as TCP is."""
    balance(stage, "sctp", "c1", "c2", version=version)
    assert stage.answers("client", "sctp", version) == seen("c1", "c2", by="client", version=version)


def test_without_forwarding(stage: Stage) -> None:
    """With forwarding off the client waits for nothing: the answers of the containers stay on the host."""
    balance(stage, "udp", "c1")
    stage.host.sysctl("net.ipv4.ip_forward", 0)
    flow = stage.lan.flow("client", "udp", VIP)
    assert flow.silent()
    stage.host.sysctl("net.ipv4.ip_forward", 1)
    assert flow.ask() == ("c1", address("client"))


def test_an_address_that_the_host_does_not_have(stage: Stage) -> None:
    """A service at an address that is not the host's gets nothing, though the packets come to the host."""
    key = Virtual(Protocol.UDP, ip_address("10.9.9.9"), 80)
    stage.add(Service(key), place("c1"))
    route = f"10.9.9.9/32 via {address('host')}"
    stage.lan["client"].ip(f"route add {route}")
    flow = stage.lan.flow("client", "udp", ("10.9.9.9", 80))
    assert flow.silent()
    stage.host.ip("address add 10.9.9.9/32 dev eth0")
    assert flow.ask() == ("c1", address("client"))
    stage.host.ip("address del 10.9.9.9/32 dev eth0")
    stage.lan["client"].ip(f"route del {route}")


def test_the_input_rules_judge_requests(stage: Stage) -> None:
    """A packet to the balancer is one to the host: a rule of INPUT that drops it ends it, one that accepts helps."""
    balance(stage, "udp", "c1")
    with stage.rule("INPUT -p udp -j DROP"):
        assert stage.silent("client")
        with stage.rule(f"INPUT -d {VIP[0]} -p udp --dport 80 -j ACCEPT"):
            assert stage.answers("client", "udp") == seen("c1", by="client")


def test_the_forward_rules_judge_answers_alone(stage: Stage) -> None:
    """Requests never pass the FORWARD rules, and answers do."""
    balance(stage, "udp", "c1")
    with stage.rule("FORWARD -o docker0 -j DROP"):
        assert stage.answers("client", "udp") == seen("c1", by="client")
    with stage.rule("FORWARD -i docker0 -j DROP"):
        assert stage.silent("client")


def test_another_node_answers_the_client_itself(stage: Stage) -> None:
    """A server on another machine sees the client's address and answers past the balancer, so nothing arrives."""
    balance(stage, "udp", "node")
    assert stage.silent("client")


def test_the_loopback_cannot_be_balanced(stage: Stage) -> None:
    """A service at 127.0.0.1 answers nobody, not even with route_localnet and masquerading."""
    stage.add(Service(Virtual(Protocol.UDP, ip_address("127.0.0.1"), 80)), place("c1"))
    for help_ in (False, True):
        if help_:
            stage.host.sysctl("net.ipv4.conf.all.route_localnet", 1)
            stage.host.sysctl("net.ipv4.vs.conntrack", 1)
            stage.host.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "127.0.0.0/8", "-j", "MASQUERADE")
        assert stage.lan.silent("host", ("127.0.0.1", 80))
    stage.host.sysctl("net.ipv4.conf.all.route_localnet", 0)
    stage.without_rules()


@EACH_KIND
def test_a_listener_at_the_same_port(stage: Stage, kind: str) -> None:
    """A program of the host at the balancer's port is hidden by it, from elsewhere and from the host."""
    stage.lan.serve("host", kind, 85)
    assert stage.ask("client", kind, 85).server == "host"
    balance(stage, kind, "c1", port=85)
    for client in ("client", "host"):
        assert stage.ask(client, kind, 85).server == "c1"


# ---- Connections that are there ----


@EACH_KIND
@VERSIONS
def test_weight_zero_drains(stage: Stage, kind: str, version: int) -> None:
    """With weight 0 a server keeps the connections that it has and gets no new one."""
    key = balance(stage, kind, "c1", "c2", version=version)
    flows = [stage.lan.flow("client", kind, (address("host", version), 80)) for _ in range(2)]
    before = [flow.ask() for flow in flows]
    assert {answer.server for answer in before} == {"c1", "c2"}
    stage.weigh(key, place("c1", 0, version))
    assert [flow.ask() for flow in flows] == before
    assert stage.servers("client", kind, version=version) == {"c2": 4}


def test_all_weights_zero(stage: Stage) -> None:
    """When nobody takes new connections, a client is refused at once."""
    key = balance(stage, "tcp", "c1")
    stage.weigh(key, place("c1", 0))
    with pytest.raises(ConnectionRefusedError):
        stage.ask("client")


@VERSIONS
def test_deleted_under_a_tcp_connection(stage: Stage, version: int) -> None:
    """With expire_nodest_conn a connection whose server was deleted is reset at its next packet."""
    stage.host.sysctl("net.ipv4.vs.expire_nodest_conn", 1)
    key = balance(stage, "tcp", "c1", "c2", version=version)
    flow = stage.lan.flow("client", "tcp", (address("host", version), 80))
    stage.delete(key, place(flow.ask().server, version=version))
    with pytest.raises(ConnectionResetError):
        flow.ask()


@VERSIONS
def test_deleted_under_a_udp_flow(stage: Stage, version: int) -> None:
    """With expire_nodest_conn a UDP flow whose server was deleted goes on with another at its next packet."""
    stage.host.sysctl("net.ipv4.vs.expire_nodest_conn", 1)
    key = balance(stage, "udp", "c1", "c2", version=version)
    flow = stage.lan.flow("client", "udp", (address("host", version), 80))
    server = flow.ask().server
    stage.delete(key, place(server, version=version))
    assert flow.ask().server == ({"c1", "c2"} - {server}).pop()


def test_deleted_without_the_setting(stage: Stage) -> None:
    """Without expire_nodest_conn packets for a deleted server vanish, and when it comes back the flow goes on."""
    key = balance(stage, "udp", "c1", "c2")
    flow = stage.lan.flow("client", "udp", VIP)
    before = flow.ask()
    stage.delete(key, place(before.server))
    assert flow.silent()
    stage.join(key, place(before.server))
    assert flow.ask() == before


def test_deleted_with_its_service(stage: Stage) -> None:
    """When the service itself is deleted its connections are reset, since the host answers for its address again."""
    key = balance(stage, "tcp", "c1")
    flow = stage.lan.flow("client", "tcp", VIP)
    flow.ask()
    stage.host.call(stage.kernel.delete_service, key)
    with pytest.raises(ConnectionResetError):
        flow.ask()


# ---- Counting ----


def test_counts(stage: Stage) -> None:
    """The kernel counts connections, packets and bytes of each server; ipvsadm shows the same."""
    key = balance(stage, "udp", "c1", "c2", port=81)  # where others were it would count on from what they left
    stage.servers("client", "udp", port=81)
    wanted = (2, 2, 2, 2 * (28 + len("who?")), 2 * (28 + len("c1 10.0.0.2")))
    until = time.monotonic() + LIMIT_S
    while counted(stage, key) != [wanted, wanted]:  # the kernel adds up every two seconds
        assert time.monotonic() < until, counted(stage, key)
    shown = stage.host.run("ipvsadm", "-Ln", "--stats", "--exact")
    lines = [line.split()[1:] for line in shown.splitlines()]
    for name in ("c1", "c2"):
        assert [f"{address(name)}:{PORT}", *map(str, wanted)] in lines


def counted(stage: Stage, key: Key) -> list[tuple[int, ...]]:
    """Connections, packets and bytes of each server of a service."""
    found = stage.table()[key].counts.values()
    return [(one.connections, one.in_packets, one.out_packets, one.in_bytes, one.out_bytes) for one in found]
