"""Rules: what a host needs for its balancers, and the way there from any rules that are there."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.balancer.chains import Jump, Lines, Part, difference, forward_chain, nft_table, parse, wanted_parts
from tsbus.balancer.pool import virtual
from tsbus.balancer.rules import (
    Front,
    Host,
    Link,
    Listen,
    Needs,
    Network,
    Proxy,
    front,
    listens_of,
    needs,
    published,
    real_server_needs,
)
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Destination, Forward, Key, Mark, Protocol, Service, Virtual
from tsbus.config import Balancer
from tsbus.records import Container, Endpoint, Image

DOCKER0 = Network("docker0", (ip_network("172.17.0.0/16"), ip_network("fd17::/64")), ("veth1", "veth2"))
HOST = Host(addresses=frozenset({ip_address("10.0.0.1"), ip_address("172.17.0.1")}), networks=(DOCKER0,))


def balanced(*servers: str, vip: str = "10.0.0.1", forward: Forward = Forward.NAT, **service: int) -> Front:
    key: Key = Virtual(Protocol.TCP, ip_address(vip), 80)
    places = [Address(ip_address(each), 8080) for each in servers]
    pool = Pool(Service(key, **service), {each: Destination(each, forward=forward) for each in places})
    return Front("web", (Listen(Protocol.TCP, ip_address(vip), 80, 80),), pool)


def kinds(found: Needs) -> list[str]:
    return [rule.kind for rule in found.rules]


def settings(found: Needs) -> set[str]:
    return {setting.name.removeprefix("net.") for setting in found.settings}


def test_nothing() -> None:
    """Without balancers nothing is needed."""
    assert needs([], HOST) == Needs()
    assert wanted_parts(Needs(), 4, "FORWARD") == {}
    assert nft_table(Needs()) == ""


def test_containers_of_this_host() -> None:
    """Containers need masquerading for their neighbours on the bridge alone, and no accept rule on the only bridge."""
    found = needs([balanced("172.17.0.2")], HOST)
    assert kinds(found) == ["masquerade"]
    assert next((each.device, str(each.subnet)) for each in found.inside) == ("docker0", "172.17.0.0/16")
    assert {"ipv4.ip_forward", "ipv4.vs.conntrack", "ipv4.vs.expire_nodest_conn"} <= settings(found)
    assert not found.hairpins


def test_another_bridge() -> None:
    """With a second bridge answers between the two must be accepted."""
    other = Network("br-two", (ip_network("172.18.0.0/16"),))
    assert kinds(needs([balanced("172.17.0.2")], replace(HOST, networks=(DOCKER0, other)))) == ["masquerade", "accept"]


def test_bridge_filter() -> None:
    """Where bridged packets are filtered, the members of used bridges must be able to reach themselves."""
    host = replace(HOST, bridge_filter=True)
    assert needs([balanced("172.17.0.2")], host).hairpins == {"veth1", "veth2"}
    assert needs([balanced("10.0.0.7")], host).hairpins == frozenset()


def test_other_nodes() -> None:
    """Servers elsewhere need it all; the host itself and other ways of forwarding need no rules and no tracking."""
    assert kinds(needs([balanced("10.0.0.7")], HOST)) == ["masquerade", "accept"]
    for quiet in (balanced("10.0.0.1"), balanced("10.0.0.7", forward=Forward.DIRECT), balanced()):
        found = needs([quiet], HOST)
        assert found.rules == ()
        assert settings(found) == {"ipv4.vs.expire_nodest_conn", "ipv4.vs.run_estimation"}


def test_without_ipvs() -> None:
    """With nftables first packets are forwarded, too, and must be accepted; IPVS's settings are not."""
    found = needs([balanced("172.17.0.2")], replace(HOST, backend="nftables"))
    assert kinds(found) == ["masquerade", "accept"]
    assert found.accept_new
    assert settings(found) == {"ipv4.ip_forward"}


def test_ipv6_keeps_its_routes() -> None:
    """A host whose IPv6 routes are advertised keeps them when forwarding is switched on: that comes first."""
    found = needs([balanced("fd17::2", vip="fd00::1")], replace(HOST, advertised=("eth0", "eth0.7")))
    names = [setting.name for setting in found.settings]
    assert names[:3] == [
        "net.ipv6.conf.eth0.accept_ra",
        "net.ipv6.conf.eth0/7.accept_ra",
        "net.ipv6.conf.all.forwarding",
    ]
    assert "net.ipv4.ip_forward" not in names


def test_persistence_and_old_kernels() -> None:
    """Some settings are for persistence and for kernels before 5.9."""
    found = needs([balanced("172.17.0.2", persistent_s=60)], replace(HOST, kernel=(5, 4)))
    assert {"ipv4.vs.expire_quiescent_template", "ipv4.vs.conn_reuse_mode"} <= settings(found)


def test_addresses() -> None:
    """A managed address is held; one that nobody has is a problem, with what mends it."""
    assert needs([replace(balanced(vip="10.0.0.9"), manage_vip=True)], HOST).held == {ip_address("10.0.0.9")}
    (problem,) = needs([balanced(vip="10.0.0.9")], HOST).problems
    assert problem.text.startswith("10.0.0.9 is not an address of this host")
    assert "manage_vip = true in balancer web" in problem.mend


def test_neighbours_that_ask_for_an_address() -> None:
    """With IPv6 the host answers for its managed addresses at the devices in whose subnets they are."""
    links = (Link("eth0", ip_network("fd00::/64")), Link("eth1", ip_network("fd01::/64")))
    host = replace(HOST, links=links, advertised=("eth0",))
    front = balanced("10.0.0.7", vip="fd00::9", forward=Forward.DIRECT)
    assert needs([front], host).proxies == frozenset()
    found = needs([replace(front, manage_vip=True)], host)
    assert found.proxies == {Proxy("eth0", ip_address("fd00::9"))}
    assert {"ipv6.conf.all.forwarding", "ipv6.conf.eth0.accept_ra", "ipv6.conf.eth0.proxy_ndp"} <= settings(found)


def test_a_balancer_of_the_configuration() -> None:
    """Ranges of ports and several addresses of a balancer are what its mark stands for."""
    balancer = Balancer("web", address="10.0.0.1:8000-8010", addresses=("10.0.0.2:80",), protocol="udp")
    assert virtual(balancer) is None
    mark = Mark(0x54530001)
    one = front(balancer, Pool(Service(mark)))
    assert listens_of([one, balanced()]) == {mark: one.listens}
    assert [str(each) for each in one.listens] == ["udp 10.0.0.1:8000-8010", "udp 10.0.0.2:80"]
    assert kinds(needs([one], HOST)) == ["mark", "mark"]


@pytest.mark.parametrize(
    ("host_ip", "host_port", "clash"),
    [("0.0.0.0", 80, True), ("10.0.0.1", 80, True), ("10.0.0.2", 80, False), ("0.0.0.0", 81, False), ("::", 80, False)],  # noqa: S104
)
def test_published_ports(host_ip: str, host_port: int, clash: bool) -> None:
    """A container that publishes a balancer's port on its address, or on all, is told, with what mends it."""
    port = Endpoint(port=8080, host_ip=host_ip, host_port=host_port)
    one = Container(id="1" * 64, name="front", image=Image(given="nginx"), state="running", endpoints=(port,))
    found = list(published([balanced("172.17.0.2")], [one]))
    assert bool(found) == clash
    if clash:
        assert found[0].text == "container front publishes this port, so Docker takes the packets to tcp 10.0.0.1:80"
        assert "give web another address" in found[0].mend


def test_real_servers() -> None:
    """A node behind dr or tunnel has the address and keeps silent about it."""
    found = real_server_needs([ip_address("10.0.0.9")], Forward.TUNNEL)
    assert found.held == {ip_address("10.0.0.9")}
    assert {"ipv4.conf.all.arp_ignore", "ipv4.conf.tunl0.rp_filter"} <= settings(found)


# ---- iptables ----

LINES = st.lists(st.sampled_from(["-j ACCEPT", "-j RETURN", "-o lo -j MASQUERADE"]), max_size=3).map(tuple)
OURS = ["TREESCALE-A", "TREESCALE-B"]
OTHERS = ["FORWARD", "DOCKER-USER"]


@st.composite
def parts(draw: st.DrawFn, *, messy: bool) -> dict[str, Part]:
    found = {}
    for table in draw(st.sets(st.sampled_from(["nat", "filter"]))):
        chains = draw(st.dictionaries(st.sampled_from(OURS), LINES))
        jumps = [Jump(origin, name) for name in chains for origin in OTHERS]
        jumps = draw(st.lists(st.sampled_from(jumps), max_size=4, unique=not messy)) if jumps else []
        if chains:
            found[table] = Part(chains, tuple(jumps))
    return found


def saved(tables: dict[str, Part]) -> str:
    """As iptables-save would say it, among the rules of others."""
    text = "# Generated\n"
    for table, part in tables.items():
        text += f"*{table}\n:FORWARD DROP [1:2]\n:DOCKER-USER - [0:0]\n"
        text += "".join(f":{name} - [0:0]\n" for name in part.chains)
        text += "-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -i eth0 -j DROP\n"
        text += "".join(f"-A {jump}\n" for jump in part.jumps)
        text += "".join(f"-A {name} {line}\n" for name, lines in part.chains.items() for line in lines)
        text += "COMMIT\n"
    return text


def restored(tables: dict[str, Part], script: str) -> dict[str, Part]:
    """What iptables-restore --noflush would make of it. It fails where iptables would."""
    after = {name: (dict(part.chains), list(part.jumps)) for name, part in tables.items()}
    table = ""
    for line in script.splitlines():
        chains, jumps = after.setdefault(table, ({}, []))
        match line.split():
            case [word] if word[0] == "*":
                table = word[1:]
            case ["COMMIT"]:
                pass
            case [name, "-", "[0:0]"]:
                chains[name[1:]] = ()
            case ["-A", name, *rule]:
                chains[name] += (" ".join(rule),)
            case ["-I", origin, "1", "-j", name]:
                assert name in chains
                jumps.insert(0, Jump(origin, name))
            case ["-D", origin, "-j", name]:
                jumps.remove(Jump(origin, name))
            case ["-F", name]:
                chains[name] = ()
            case ["-X", name]:
                assert chains.pop(name) == ()
                assert name not in [jump.chain for jump in jumps]
            case _:
                raise AssertionError(line)
    return {name: Part(chains, tuple(jumps)) for name, (chains, jumps) in after.items() if chains}


@given(found=parts(messy=True), wanted=parts(messy=False))
def test_difference(found: dict[str, Part], wanted: dict[str, Part]) -> None:
    """Whatever of ours is there, the script makes it as wanted, touches nothing of others, and then is empty."""
    assert {name: part for name, part in parse(saved(found)).items() if part.chains} == found
    after = restored(found, difference(wanted, found, {}))
    assert {name: (part.chains, sorted(part.jumps)) for name, part in after.items()} == {
        name: (part.chains, sorted(part.jumps)) for name, part in wanted.items()
    }
    assert difference(wanted, after, {}) == ""


def test_another_spelling() -> None:
    """What this iptables is known to spell otherwise is no difference."""
    wanted = {"filter": Part({"TREESCALE-A": ("-m x --y 1 -j ACCEPT",)}, (Jump("FORWARD", "TREESCALE-A"),))}
    echo: Lines = ("-m x --y 0x1 -j ACCEPT",)
    found = {"filter": Part({"TREESCALE-A": echo}, (Jump("FORWARD", "TREESCALE-A"),))}
    assert difference(wanted, found, {})
    assert difference(wanted, found, {wanted["filter"].chains["TREESCALE-A"]: echo}) == ""


def test_where_forwarded_packets_are_judged() -> None:
    """On a Docker host rules of others have a chain of their own."""
    assert forward_chain(saved({"filter": Part()})) == "DOCKER-USER"
    assert forward_chain("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n") == "FORWARD"
