"""The ways of packets through a kernel's balancer: who answers, whom the server sees, what becomes of connections."""

import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from ipvsadm import run
from rig import ADDRESSES, HOST, LIMIT_S, PORT, Answer, Rig

from tsbus.balancer.ipvs import Kernel
from tsbus.balancer.table import Address, Destination, Protocol, Service, Virtual

pytestmark = pytest.mark.guest

VIP = ("10.0.0.1", 80)
KINDS = pytest.mark.parametrize("kind", ["tcp", "udp"])


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


@pytest.fixture
def rig(surroundings: Rig, kernel: Kernel) -> Rig:
    """The rig, with an empty table."""
    return surroundings


def balance(kernel: Kernel, kind: str, *names: str, at: tuple[str, int] = VIP) -> Virtual:
    """A service with these as its servers, in turn."""
    key = Virtual(Protocol[kind.upper()], ip_address(at[0]), at[1])
    kernel.add_service(Service(key, "rr"))
    for name in names:
        kernel.add_destination(key, Destination(place(name)))
    return key


def place(name: str) -> Address:
    return Address(ip_address(ADDRESSES[name]), PORT)


@KINDS
def test_from_another_machine_to_local_containers(rig: Rig, kernel: Kernel, kind: str) -> None:
    """With forwarding on, and nothing else, a client elsewhere reaches the containers, and they see its own address."""
    balance(kernel, kind, "c1", "c2")
    answers = Counter(rig.request("client", kind, VIP) for _ in range(4))
    assert answers == {Answer("c1", "10.0.0.2"): 2, Answer("c2", "10.0.0.2"): 2}


def test_without_forwarding(rig: Rig, kernel: Kernel) -> None:
    """With forwarding off the client waits for nothing: the answers of the containers stay on the host."""
    balance(kernel, "udp", "c1")
    rig.sysctl("net.ipv4.ip_forward", 0)
    flow = rig.flow("client", "udp", VIP)
    assert flow.hears_nothing()
    rig.sysctl("net.ipv4.ip_forward", 1)
    assert flow.ask() == ("c1", "10.0.0.2")


@KINDS
@pytest.mark.parametrize("server", ["c1", "node"])
def test_from_the_host_itself(rig: Rig, kernel: Kernel, kind: str, server: str) -> None:
    """A process on the balancer's host reaches containers and other nodes; they see the address of the service."""
    balance(kernel, kind, server)
    assert rig.request(HOST, kind, VIP) == (server, "10.0.0.1")


def test_another_node_answers_the_client_itself(rig: Rig, kernel: Kernel) -> None:
    """A server on another machine sees the client's address and answers past the balancer, so nothing arrives."""
    balance(kernel, "udp", "node")
    assert rig.flow("client", "udp", VIP).hears_nothing()


@KINDS
def test_weight_zero_drains(rig: Rig, kernel: Kernel, kind: str) -> None:
    """With weight 0 a server keeps the connections that it has and gets no new one."""
    key = balance(kernel, kind, "c1", "c2")
    flows = [rig.flow("client", kind, VIP) for _ in range(2)]
    before = [flow.ask() for flow in flows]
    assert {answer.server for answer in before} == {"c1", "c2"}
    kernel.set_destination(key, Destination(place("c1"), weight=0))
    assert [flow.ask() for flow in flows] == before
    assert {rig.request("client", kind, VIP).server for _ in range(4)} == {"c2"}


def test_counts(rig: Rig, kernel: Kernel) -> None:
    """The kernel counts connections, packets and bytes of each server; ipvsadm shows the same."""
    at = ("10.0.0.1", 81)  # at the VIP of the other tests the kernel would count on from where they left
    key = balance(kernel, "udp", "c1", "c2", at=at)
    for _ in range(4):
        rig.request("client", "udp", at)
    wanted = (2, 2, 2, 2 * (28 + len("who?")), 2 * (28 + len("c1 10.0.0.2")))

    def counted() -> list[tuple[int, ...]]:
        found = [counts for _, counts in kernel.services()[key].destinations.values()]
        return [(one.connections, one.in_packets, one.out_packets, one.in_bytes, one.out_bytes) for one in found]

    until = time.monotonic() + LIMIT_S
    while counted() != [wanted, wanted]:  # the kernel adds up every two seconds
        assert time.monotonic() < until, counted()
    lines = [line.split()[1:] for line in run("ipvsadm", "-Ln", "--stats", "--exact").splitlines()]
    for name in ("c1", "c2"):
        assert [f"{ADDRESSES[name]}:{PORT}", *map(str, wanted)] in lines


def test_all_weights_zero(rig: Rig, kernel: Kernel) -> None:
    """When nobody takes new connections, a client is refused at once."""
    key = balance(kernel, "tcp", "c1")
    kernel.set_destination(key, Destination(place("c1"), weight=0))
    with pytest.raises(ConnectionRefusedError):
        rig.flow("client", "tcp", VIP)


def test_deleted_under_a_tcp_connection(rig: Rig, kernel: Kernel) -> None:
    """With expire_nodest_conn a connection whose server was deleted is reset at its next packet."""
    rig.sysctl("net.ipv4.vs.expire_nodest_conn", 1)
    key = balance(kernel, "tcp", "c1", "c2")
    flow = rig.flow("client", "tcp", VIP)
    server = flow.ask().server
    kernel.delete_destination(key, place(server))
    with pytest.raises(ConnectionResetError):
        flow.ask()


def test_deleted_under_a_udp_flow(rig: Rig, kernel: Kernel) -> None:
    """With expire_nodest_conn a UDP flow whose server was deleted goes on with another at its next packet."""
    rig.sysctl("net.ipv4.vs.expire_nodest_conn", 1)
    key = balance(kernel, "udp", "c1", "c2")
    flow = rig.flow("client", "udp", VIP)
    server = flow.ask().server
    kernel.delete_destination(key, place(server))
    assert flow.ask().server == ({"c1", "c2"} - {server}).pop()


def test_deleted_without_the_setting(rig: Rig, kernel: Kernel) -> None:
    """Without expire_nodest_conn packets for a deleted server vanish, and when it comes back the flow goes on."""
    rig.sysctl("net.ipv4.vs.expire_nodest_conn", 0)
    key = balance(kernel, "udp", "c1", "c2")
    flow = rig.flow("client", "udp", VIP)
    before = flow.ask()
    kernel.delete_destination(key, place(before.server))
    assert flow.hears_nothing()
    kernel.add_destination(key, Destination(place(before.server)))
    assert flow.ask() == before
