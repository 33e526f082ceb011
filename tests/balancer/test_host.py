"""The host's edge in namespaces: rules of both kinds, settings and addresses, and what becomes of what others made."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from lan import PORT, Answer, Lan, address

from tsbus.balancer.devices import Devices
from tsbus.balancer.inventory import DEVICE
from tsbus.balancer.netfilter import HostEdge, read_sysctl
from tsbus.balancer.nftables import Table
from tsbus.balancer.programs import Failed, NoFeature, NoProgram, NotAllowed, run
from tsbus.balancer.rules import Front, Listen, Needs, needs
from tsbus.balancer.steps import AddDestination, AddService, Pool
from tsbus.balancer.table import Address, Destination, Protocol, Service, Virtual

WEB = Virtual(Protocol.TCP, ip_address(address("host")), 80)


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        yield lan


@pytest.fixture
def edge(lan: Lan) -> Iterator[HostEdge]:
    edge = lan.host.call(HostEdge, "nftables")
    yield edge
    lan.host.call(edge.close)


def balanced(*names: str) -> Front:
    places = [Address(ip_address(address(name)), PORT) for name in names]
    pool = Pool(Service(WEB), {each: Destination(each) for each in places})
    return Front("web", (Listen(*WEB, WEB.port),), pool)


def wanted(lan: Lan, edge: HostEdge, *names: str) -> Needs:
    return needs([balanced(*names)], lan.host.call(edge.read))


def rules(lan: Lan) -> str:
    return lan.host.run("nft", "-s", "list", "ruleset")


def test_what_is_known_of_a_host(lan: Lan, edge: HostEdge) -> None:
    """Bridges of containers are known with subnets and members; one with a card or a tunnel to elsewhere is none."""
    lan.host.ip("link add br-lan type bridge", "address add 192.168.7.1/24 dev br-lan", "link set br-lan up",
                "link add far type vxlan id 7 dstport 4789", "link set far master br-lan up")  # fmt: skip
    host = lan.host.call(edge.read)
    assert {network.device: network.ports for network in host.networks} == {
        "docker0": ("to-c1", "to-c2"),
        "br-two": ("to-c3",),
    }
    assert [str(subnet) for subnet in host.networks[0].subnets] == ["172.17.0.0/16", "fd17::/64"]
    assert ip_address("10.0.0.1") in host.addresses
    assert ip_address("192.168.7.1") in host.addresses
    assert host.advertised == ()


def test_docker_comes_later(lan: Lan, edge: HostEdge) -> None:
    """Without Docker the rules are in a table of nft; when it comes they move to its chain, and always work."""
    table = Table()
    steps = [AddService(Service(WEB)), AddDestination(WEB, Destination(Address(ip_address(address("node")), PORT)))]
    lan.host.call(table.apply, steps)
    need = wanted(lan, edge, "node")
    assert lan.host.call(edge.apply, need).problems == ()
    assert "table inet treescale {" in rules(lan)
    assert lan.ask("client", "tcp", (address("host"), 80)) == Answer("node", address("host"))
    lan.docker()
    assert lan.host.call(edge.apply, need).problems == ()
    assert "table inet treescale {" not in rules(lan)
    assert lan.host.run("iptables", "-S", "DOCKER-USER").splitlines()[1] == "-A DOCKER-USER -j TREESCALE-ACCEPT"
    assert lan.ask("client", "tcp", (address("host"), 80)) == Answer("node", address("host"))


@pytest.mark.parametrize("docker", [False, True])
def test_drift(lan: Lan, edge: HostEdge, docker: bool) -> None:
    """What is as it should be is left alone; what somebody changed or removed is put back, and told."""
    if docker:
        lan.docker()
    need = wanted(lan, edge, "c1", "node")
    lan.host.call(edge.apply, need)
    before = rules(lan)
    assert lan.host.call(edge.apply, need).changes == ()
    breaks: list[Callable[[], object]] = [
        lambda: lan.host.run("nft", "delete", "table", "inet", "treescale"),
        lambda: lan.host.run("nft", "flush", "chain", "inet", "treescale", "masq"),
    ]
    if docker:
        breaks = [
            lan.docker,
            lambda: lan.host.run("iptables", "-t", "nat", "-D", "TREESCALE-MASQ", "1"),
            lambda: lan.host.run("iptables", "-t", "nat", "-I", "POSTROUTING", "-j", "TREESCALE-POST"),
        ]
    for each in breaks:
        each()
        assert rules(lan) != before
        assert lan.host.call(edge.apply, need).changes
        assert rules(lan) == before
    lan.host.call(edge.apply, need)
    again = lan.host.call(HostEdge, "nftables")
    lan.host.call(again.apply, need)
    assert rules(lan) == before
    lan.host.call(again.close)


def test_rules_that_nobody_has_changed(lan: Lan, edge: HostEdge) -> None:
    """No tool is run for rules that were found right and are as they were; one change by anybody, and all are read."""
    lan.docker()
    need = wanted(lan, edge, "c1", "node")
    for _ in range(2):
        lan.host.call(edge.apply, need)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert lan.host.call(edge.apply, need).changes == ()
    assert resource.getrusage(resource.RUSAGE_CHILDREN) == before
    lan.host.run("iptables", "-t", "nat", "-F", "TREESCALE-MASQ")
    assert lan.host.call(edge.apply, need).changes


@pytest.mark.parametrize("docker", [False, True])
def test_rules_of_others(lan: Lan, edge: HostEdge, docker: bool) -> None:
    """Rules of others are the same while ours are there and when they are gone, which leave nothing behind."""
    lan.host.run(
        "nft", "-f", "-", text="table inet mine { chain in { type filter hook input priority 0; accept; }; }\n"
    )
    if docker:
        lan.docker()
        lan.host.run("iptables", "-I", "DOCKER-USER", "-s", "192.0.2.1", "-j", "DROP")
        lan.host.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "ACCEPT")
    before = rules(lan)
    lan.host.call(edge.apply, wanted(lan, edge, "c1", "node"))
    ours = [line for line in rules(lan).splitlines() if "TREESCALE" in line or "treescale" in line]
    assert ours
    lan.host.call(edge.apply, Needs())
    assert rules(lan) == before


def test_settings(lan: Lan, edge: HostEdge) -> None:
    """A policy says whether settings are set, only reported with the command that mends them, or not looked at."""
    lan.host.sysctl("net.ipv4.ip_forward", 0)
    need = replace(wanted(lan, edge, "c1"), rules=(), hairpins=frozenset({"to-c1", "gone"}))
    done = lan.host.call(edge.apply, need, "leave")
    assert (done.changes, done.problems) == ((), ())
    done = lan.host.call(edge.apply, need, "check")
    assert done.changes == ()
    assert [problem.mend for problem in done.problems] == [
        "`sysctl -w net.ipv4.ip_forward=1`",
        "`bridge link set dev to-c1 hairpin on`",
    ]
    assert lan.host.sysctl("net.ipv4.ip_forward") == 0
    done = lan.host.call(edge.apply, need, "set")
    assert [change.split()[0] for change in done.changes] == ["net.ipv4.ip_forward", "to-c1"]
    assert lan.host.sysctl("net.ipv4.ip_forward") == 1
    assert lan.host.call(edge.apply, need, "check") == lan.host.call(edge.apply, need, "set")


def test_settings_of_a_module_that_is_missing(lan: Lan) -> None:
    """Without IPVS its settings are problems that say so, and the rest is done nevertheless."""
    if lan.host.call(read_sysctl, "net.ipv4.vs.conntrack") is None:
        edge = lan.host.call(HostEdge, "ipvs")
        done = lan.host.call(edge.apply, wanted(lan, edge, "node"))
        assert "load ip_vs" in {problem.mend for problem in done.problems}
        assert any("treescale" in change for change in done.changes)
        lan.host.call(edge.close)


def test_addresses(lan: Lan, edge: HostEdge) -> None:
    """Our device has the addresses that are wanted, of both versions, and goes with the last."""
    held = frozenset({ip_address("10.0.0.100"), ip_address("fd00::100")})
    lan.host.call(edge.apply, Needs(held=held))
    devices = lan.host.call(Devices)
    assert lan.host.call(devices.look).held == held
    assert DEVICE not in {network.device for network in lan.host.call(devices.look).networks}
    lan.host.ip(f"address add 10.0.0.101/32 dev {DEVICE}", f"address del 10.0.0.100/32 dev {DEVICE}")
    assert lan.host.call(edge.apply, Needs(held=held)).changes
    assert lan.host.call(devices.look).held == held
    assert lan.host.call(edge.apply, Needs(held=held)).changes == ()
    lan.host.call(edge.apply, Needs())
    assert DEVICE not in lan.host.run("ip", "link")
    lan.host.call(devices.close)


def test_devices_that_change_meanwhile(lan: Lan) -> None:
    """A look at devices whose addresses come and go has all those that stay, each time."""
    stay = {ip_address(f"10.8.{number // 200}.{number % 200 + 1}") for number in range(400)}
    lan.host.ip(*(f"address add {ip}/32 dev lo" for ip in sorted(stay)))
    devices = lan.host.call(Devices)
    with lan.host.call(subprocess.Popen, ["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True) as changes:
        assert changes.stdin
        for verb in ("add", "del") * 8:
            changes.stdin.write(f"address {verb} 10.9.0.1/32 dev lo\n")
            changes.stdin.flush()
            assert stay <= lan.host.call(devices.look).addresses
    lan.host.call(devices.close)


def test_a_port_that_goes_meanwhile(lan: Lan) -> None:
    """A port that has left its bridge, or is no more, since it was seen needs no hairpin and is no error."""
    lan.host.ip("link add name other type bridge", "link add name to-c9 type veth peer name c9")
    lan.host.ip("link set to-c9 master other")
    devices = lan.host.call(Devices)
    (seen,) = lan.host.call(devices.look).without_hairpin(["to-c9"])
    lan.host.ip("link set to-c9 nomaster")
    assert not lan.host.call(devices.set_hairpin, seen)
    lan.host.ip("link del to-c9")
    assert not lan.host.call(devices.set_hairpin, seen)
    lan.host.call(devices.close)


def test_answers_for_neighbours(lan: Lan, edge: HostEdge) -> None:
    """For a managed address of IPv6 the host answers at the device of its subnet, until it is not managed any more."""
    lan.host.ip("neighbour add proxy fd00::7 dev eth0")  # somebody else's
    ours = replace(balanced("c1"), listens=(Listen(Protocol.TCP, ip_address("fd00::100"), 80, 80),), manage_vip=True)
    need = needs([ours], lan.host.call(edge.read))
    assert lan.host.call(edge.apply, need).problems == ()
    assert proxies(lan) == {"fd00::7", "fd00::100"}
    assert lan.host.call(edge.apply, need).changes == ()
    lan.host.call(edge.apply, replace(need, held=frozenset(), proxies=frozenset()))
    assert proxies(lan) == {"fd00::7"}


def proxies(lan: Lan) -> set[str]:
    """For which addresses the host answers."""
    shown = lan.host.run("ip", "-6", "neighbour", "show", "proxy")
    return {line.split()[0] for line in shown.splitlines()}


def test_a_device_of_that_name(lan: Lan, edge: HostEdge) -> None:
    """A device of somebody else with our name is not touched, which is a problem."""
    lan.host.ip(f"link add {DEVICE} type veth peer name other")
    (problem,) = lan.host.call(edge.apply, Needs(held=frozenset({ip_address("10.0.0.100")}))).problems
    assert (problem.text, problem.mend) == (f"{DEVICE} is a veth and not ours", "give it another name")
    assert "10.0.0.100" not in lan.host.run("ip", "address")


def test_programs() -> None:
    """A tool that is missing, one that lacks a right, a feature or a sense fails with a type and with what to do."""
    with pytest.raises(NoProgram, match="not installed: `apt-get install iptables`"):
        run("iptables-that-is-not-there")
    with pytest.raises(NoFeature):
        run("nft", "list", "table", "inet", "not-there")
    with pytest.raises(Failed, match="syntax error"):
        run("nft", "-f", "-", text="nonsense")
    with pytest.raises(NotAllowed, match="as root with CAP_NET_ADMIN"):
        run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "nft", "add", "table", "inet", "not-there")
    assert run("cat", text="text") == "text"


def test_no_permission(lan: Lan) -> None:
    """A process without CAP_NET_ADMIN is told so for each thing that it may not do."""
    program = (
        "from ipaddress import ip_address\n"
        "from tsbus.balancer.netfilter import HostEdge\n"
        "from tsbus.balancer.rules import Needs\n"
        "edge = HostEdge('nftables')\n"
        "for needs in (Needs(hairpins=frozenset({'to-c1'})), Needs(held=frozenset({ip_address('10.0.0.100')}))):\n"
        "    print(edge.apply(needs).problems[0])\n"
    )
    words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", program]
    done = lan.host.call(subprocess.run, words, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert len(told) == 2
    assert all("run the balancer as root with CAP_NET_ADMIN" in line for line in told)
