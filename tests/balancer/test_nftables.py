"""The balancer of a kernel without IPVS, in namespaces of this one: who answers, and what connections meet."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lan import KINDS, LIMIT_S, PORT, Answer, Flow, Lan, address

from tsbus.balancer import conntrack
from tsbus.balancer.netfilter import HostEdge
from tsbus.balancer.nft import News, Nft
from tsbus.balancer.nftables import Impossible, Table, remove, why_unavailable
from tsbus.balancer.programs import Failed, HostError
from tsbus.balancer.rules import Front, Listen, Needs, needs
from tsbus.balancer.steps import (
    AddDestination,
    AddService,
    DeleteDestination,
    DeleteService,
    Pool,
    SetDestination,
    SetService,
    Step,
    change,
)
from tsbus.balancer.table import Address, Destination, Entry, Forward, Key, Mark, Protocol, Service, Virtual

EACH_KIND = pytest.mark.parametrize("kind", list(KINDS))
VERSIONS = pytest.mark.parametrize("version", [4, 6])
MARK = Mark(0x54530007)
RANGE = (Listen(Protocol.TCP, ip_address("10.0.0.1"), 8000, 8015), Listen(Protocol.TCP, ip_address("10.0.0.1"), 90, 90))


class Stage:
    """A Docker host without IPVS, and the ways to it."""

    def __init__(self, lan: Lan) -> None:
        self.lan, self.host, self.table = lan, lan.host, Table()
        self.fronts: list[Front] = []
        lan.docker()
        self.edge = lan.host.call(HostEdge, "nftables")

    def apply(self, *steps: Step, **more: Any) -> None:
        self.host.call(self.table.apply, steps, **more)
        self.host.call(self.table.finish)

    def balance(self, key: Key, *places: Destination, scheduler: str = "rr", listens: tuple[Listen, ...] = ()) -> None:
        """A service with these servers, and what its host needs."""
        service = Service(key, scheduler, hash_fallback=scheduler == "sh", owned=True)
        steps = [AddService(service), *(AddDestination(key, each) for each in places)]
        self.apply(*steps, listens={key: listens} if listens else {})
        if isinstance(key, Virtual):
            listens = (Listen(key.protocol, key.ip, key.port, key.port),)
        self.fronts.append(Front("web", listens, Pool(service, {each.address: each for each in places})))
        done = self.host.call(self.edge.apply, needs(self.fronts, self.host.call(self.edge.read)))
        assert done.problems == ()

    def services(self) -> dict[Key, Any]:
        return self.host.call(self.table.services)

    def connections(self, key: Key, name: str) -> int:
        """How many of a server are not over."""
        server = key, place(name).address
        return self.host.call(self.table.connections, [server])[server]

    def servers(self, client: str, kind: str = "tcp", version: int = 4, times: int = 4) -> Counter[str]:
        answers = [self.lan.ask(client, kind, (address("host", version), 80)) for _ in range(times)]
        return Counter(answer.server for answer in answers)

    def count(self, key: Key, name: str) -> Any:
        return self.services()[key].counts[place(name).address]


def web(kind: str = "tcp", version: int = 4) -> Virtual:
    return Virtual(Protocol[kind.upper()], ip_address(address("host", version)), 80)


def place(name: str, weight: int = 1, version: int = 4, port: int = PORT) -> Destination:
    return Destination(Address(ip_address(address(name, version)), port), weight)


@pytest.fixture(scope="module")
def bare() -> Iterator[Stage]:
    with Lan() as lan:
        yield Stage(lan)


@pytest.fixture
def stage(bare: Stage) -> Iterator[Stage]:
    bare.apply(*(DeleteService(key) for key in bare.services()))
    yield bare
    bare.apply(*(DeleteService(key) for key in bare.services()))
    bare.fronts.clear()
    bare.host.call(bare.edge.apply, Needs())
    assert "treescale" not in bare.host.run("nft", "list", "ruleset").lower()


# ---- The ways of packets ----


@EACH_KIND
@VERSIONS
def test_local_containers_see_the_client(stage: Stage, kind: str, version: int) -> None:
    """Clients elsewhere and on the host reach containers in turn, which see their addresses, published or not."""
    stage.balance(web(kind, version), place("c1", version=version), place("c2", version=version))
    for client in ("client", "host"):
        answers = {stage.lan.ask(client, kind, (address("host", version), 80)) for _ in range(2)}
        assert answers == {Answer("c1", address(client, version)), Answer("c2", address(client, version))}


@EACH_KIND
@VERSIONS
def test_another_node(stage: Stage, kind: str, version: int) -> None:
    """Clients elsewhere, on the host and in containers reach another node, which sees the host."""
    stage.balance(web(kind, version), place("node", version=version))
    for client in ("client", "host", "c1"):
        answer = stage.lan.ask(client, kind, (address("host", version), 80))
        assert answer == Answer("node", address("host", version))


def test_another_node_needs_rules(stage: Stage) -> None:
    """Without the rules another node would answer the client directly, and nothing arrives."""
    stage.balance(web("udp"), place("node"))
    stage.host.call(stage.edge.apply, Needs())
    assert stage.lan.silent("client", (address("host"), 80))


@VERSIONS
def test_containers_of_one_bridge(stage: Stage, version: int) -> None:
    """A container reaches the others of its bridge and itself through the balancer, with the bridge filter on."""
    stage.balance(web("tcp", version), place("c1", version=version), place("c2", version=version))
    assert stage.host.sysctl("net.bridge.bridge-nf-call-iptables") == 1
    answers = {stage.lan.ask("c1", "tcp", (address("host", version), 80)) for _ in range(2)}
    assert answers == {Answer(name, address("docker0", version)) for name in ("c1", "c2")}


def test_containers_of_two_bridges(stage: Stage) -> None:
    """A container reaches one of another bridge through the balancer, which Docker's isolation would forbid."""
    stage.balance(web(), place("c1"))
    assert stage.lan.ask("c3", "tcp", (address("host"), 80)) == Answer("c1", address("docker0"))


def test_a_published_port(stage: Stage) -> None:
    """Where Docker publishes the same port, the balancer comes first."""
    stage.balance(web(), place("c1"))
    rule = f"PREROUTING -p tcp --dport 80 -j DNAT --to-destination {address('c2')}:{PORT}".split()
    stage.host.run("iptables", "-t", "nat", "-A", *rule)
    assert stage.servers("client") == {"c1": 4}
    stage.host.run("iptables", "-t", "nat", "-D", *rule)


def test_ranges(stage: Stage) -> None:
    """A mark stands for addresses and ranges of ports; port 0 is the port that the client came to."""
    stage.lan.serve("c1", "tcp", 8015)
    stage.balance(MARK, place("c1", port=0), place("c2", weight=0), listens=RANGE)
    assert stage.lan.ask("client", "tcp", (address("host"), 8015)).server == "c1"
    stage.apply(SetDestination(MARK, place("c1", port=0, weight=0)), SetDestination(MARK, place("c2", weight=1)))
    assert stage.lan.ask("client", "tcp", (address("host"), 90)).server == "c2"
    assert [each.connections for each in stage.services()[MARK].counts.values()] == [1, 1]
    wider = (RANGE[0]._replace(last=8020),)
    stage.apply(listens={MARK: wider})
    assert stage.lan.ask("host", "tcp", (address("host"), 8020)).server == "c2"
    with pytest.raises(ConnectionRefusedError):
        stage.lan.ask("client", "tcp", (address("host"), 90))
    with pytest.raises(Impossible, match="nothing says which addresses"):
        stage.apply(AddService(Service(Mark(1))))


def test_one_address_becomes_several(stage: Stage) -> None:
    """A service takes the address of another one that goes in the same change, and gives it back."""
    stage.balance(web(), place("c1"))
    several = (Listen(Protocol.TCP, ip_address("10.0.0.1"), 80, 80), *RANGE)
    stage.apply(
        AddService(Service(MARK)), AddDestination(MARK, place("c2")), DeleteService(web()), listens={MARK: several}
    )
    assert stage.servers("client") == {"c2": 4}
    stage.apply(AddService(Service(web())), AddDestination(web(), place("c1")), DeleteService(MARK))
    assert stage.servers("client") == {"c1": 4}


# ---- Schedulers and weights ----


def test_weights(stage: Stage) -> None:
    """wrr follows weights exactly; changed weights hold from the next connection on."""
    stage.balance(web(), place("c1", 2), place("c2", 1), scheduler="wrr")
    assert stage.servers("client", times=6) == {"c1": 4, "c2": 2}
    stage.apply(SetDestination(web(), place("c2", 4)))
    assert stage.servers("client", times=6) == {"c1": 2, "c2": 4}


@VERSIONS
def test_homes(stage: Stage, version: int) -> None:
    """With sh a client stays with its server, and goes to another when that gets no more."""
    stage.balance(web("tcp", version), place("c1", version=version), place("c2", version=version), scheduler="sh")
    (home,) = stage.servers("client", version=version)
    stage.apply(SetDestination(web("tcp", version), place(home, 0, version)))
    assert set(stage.servers("client", version=version)) == {"c1", "c2"} - {home}
    stage.apply(SetDestination(web("tcp", version), place(home, 1, version)))
    assert set(stage.servers("client", version=version)) == {home}


@pytest.mark.parametrize(
    ("service", "one", "says"),
    [
        (Service(web(), "wlc"), place("c1"), "counts open connections for the scheduler wlc: use one of rr, sh, wrr"),
        (Service(web(), "rr", persistent_s=5), place("c1"), "use the scheduler sh"),
        (Service(web(), "sh", hash_port=True), place("c1"), "hashing of ports"),
        (Service(web()), replace(place("c1"), forward=Forward.DIRECT), 'only forward = "nat"'),
    ],
)
def test_what_needs_ipvs(stage: Stage, service: Service, one: Destination, says: str) -> None:
    """What only IPVS can is refused, with what to do, before anything is changed."""
    with pytest.raises(Impossible, match=says):
        stage.apply(AddService(service), AddDestination(service.key, one))
    assert stage.services() == {}


# ---- Connections ----


@EACH_KIND
def test_weight_zero_drains(stage: Stage, kind: str) -> None:
    """With weight 0 a server keeps the connections that it has and gets no new one; they can be counted."""
    stage.balance(web(kind), place("c1"), place("c2"))
    flows = {flow.ask().server: flow for flow in (stage.lan.flow("client", kind, (address("host"), 80)) for _ in "12")}
    stage.apply(SetDestination(web(kind), place("c1", 0)))
    assert {name: flow.ask().server for name, flow in flows.items()} == {"c1": "c1", "c2": "c2"}
    assert stage.servers("client", kind) == {"c2": 4}
    counts = stage.count(web(kind), "c1")
    assert (counts.active, counts.inactive) == ((1, 0) if kind == "tcp" else (0, 1))
    assert stage.connections(web(kind), "c1") == 1
    assert (counts.connections, counts.in_bytes > 0, counts.out_packets > 1) == (1, True, True)
    if kind == "tcp":
        flows["c1"].end.close()
        end = time.monotonic() + LIMIT_S
        while stage.connections(web(kind), "c1"):
            assert time.monotonic() < end


def test_nobody_takes_connections(stage: Stage) -> None:
    """When all weights are 0, or there is no server, clients are refused at once."""
    stage.balance(web(), place("c1", 0))
    for client in ("client", "host"):
        with pytest.raises(ConnectionRefusedError):
            stage.lan.ask(client, "tcp", (address("host"), 80))


@VERSIONS
def test_deleted_under_a_tcp_connection(stage: Stage, version: int) -> None:
    """A connection whose server is deleted is reset at its next packet; the others go on."""
    stage.balance(web("tcp", version), place("c1", version=version), place("c2", version=version))
    to = (address("host", version), 80)
    flows = {flow.ask().server: flow for flow in (stage.lan.flow("client", "tcp", to) for _ in "12")}
    stage.apply(DeleteDestination(web("tcp", version), place("c1", version=version).address))
    with pytest.raises(ConnectionResetError):
        flows["c1"].ask()
    assert flows["c2"].ask().server == "c2"


def test_deleted_under_a_udp_flow(stage: Stage) -> None:
    """A UDP flow whose server is deleted goes on with another at its next packet."""
    stage.balance(web("udp"), place("c1"), place("c2"))
    flow = stage.lan.flow("client", "udp", (address("host"), 80))
    server = flow.ask().server
    stage.apply(DeleteDestination(web("udp"), place(server).address))
    assert flow.ask().server == ({"c1", "c2"} - {server}).pop()


def test_deleted_with_its_service(stage: Stage) -> None:
    """Connections of a deleted service end too, and those of others to the same server do not."""
    stage.balance(web(), place("c1"))
    stage.balance(MARK, place("c1"), listens=RANGE)
    ending = stage.lan.flow("client", "tcp", (address("host"), 80))
    staying = stage.lan.flow("client", "tcp", (address("host"), 8000))
    assert (ending.ask().server, staying.ask().server) == ("c1", "c1")
    stage.apply(DeleteService(web()))
    with pytest.raises(OSError, match=r"reset|refused"):
        ending.ask()
    assert staying.ask().server == "c1"


def test_many_connections(stage: Stage) -> None:
    """More connections than one answer of the kernel holds are all counted, and ended."""
    stage.balance(web("udp"), place("c1"), place("c2"))
    flows = [stage.lan.flow("client", "udp", (address("host"), 80)) for _ in range(400)]
    assert Counter(flow.ask().server for flow in flows) == {"c1": 200, "c2": 200}
    assert stage.count(web("udp"), "c1").inactive == 200
    stage.apply(DeleteDestination(web("udp"), place("c1").address))
    assert not [
        flow for flow in stage.host.call(lambda: list(conntrack.flows(4))) if flow.server == place("c1").address
    ]
    assert {flow.ask().server for flow in flows} == {"c2"}


def test_ports_that_are_used_again(stage: Stage) -> None:
    """The end of old connections leaves alone those that clients have made since from the same ports."""
    ports = range(20_000, 20_010)  # none that the kernel gives to somebody else

    def connections() -> list[Flow]:
        found = []
        for port in ports:
            end = stage.lan["client"].call(socket.socket)
            end.bind(("", port))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() frees the port
            end.settimeout(LIMIT_S)
            end.connect((address("host"), 80))
            found.append(Flow(end, LIMIT_S))
        return found

    stage.balance(web(), place("c1"), place("c2", 0))
    for flow in connections():
        assert flow.ask().server == "c1"
        flow.end.close()
    old = stage.host.call(lambda: list(conntrack.flows(4)))
    stage.apply(SetDestination(web(), place("c2")), SetDestination(web(), place("c1", 0)))
    flows = connections()
    assert {flow.ask().server for flow in flows} == {"c2"}
    stage.apply(SetDestination(web(), place("c1")), SetDestination(web(), place("c2", 0)))
    stage.host.call(conntrack.end, old)
    assert {flow.ask().server for flow in flows} == {"c2"}
    for flow in flows:
        flow.end.close()


def test_counts_outlive_changes(stage: Stage) -> None:
    """Changes of weights and of other servers leave what was counted as it is."""
    key = web("udp")  # no packet comes later, as the last ones of TCP
    stage.balance(key, place("c1"))
    stage.servers("client", "udp", times=3)
    before = stage.count(key, "c1")
    stage.apply(SetService(Service(key, "wrr")), SetDestination(key, place("c1", 5)), AddDestination(key, place("c2")))
    assert stage.count(key, "c1") == before
    assert before.connections == 3


# ---- The table ----


def test_a_change_has_no_empty_moment(stage: Stage) -> None:
    """While servers take turns in having a weight, no connection of clients that come without pause fails."""
    stage.balance(web(), place("c1"), place("c2", 0), place("c3"))
    over = threading.Event()
    found: Counter[str] = Counter()

    def client() -> None:
        while not over.is_set():
            found[stage.lan.ask("client", "tcp", (address("host"), 80)).server] += 1

    with ThreadPoolExecutor(1) as elsewhere:
        asking = elsewhere.submit(client)
        end = time.monotonic() + LIMIT_S
        while min(found["c1"], found["c2"]) < 20 and not asking.done():
            assert time.monotonic() < end
            stage.apply(SetDestination(web(), place("c1", 1)), SetDestination(web(), place("c2", 0)))
            stage.apply(SetDestination(web(), place("c1", 0)), SetDestination(web(), place("c2", 1)))
        over.set()
        asking.result()


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "sh"])
def test_a_map_without_its_elements(stage: Stage, scheduler: str) -> None:
    """A packet for which there is no slot gets a server: kernels empty a map before the last packet has left it."""
    stage.balance(web(), place("c1", 1), place("c2", 2), scheduler=scheduler)
    chain = ("chain", "inet", "treescale-lb", "s/tcp/10.0.0.1/80")
    rules = stage.host.run("nft", "--handle", "list", *chain).splitlines()
    handle = next(rule.split()[-1] for rule in rules if " vmap " in rule)
    stage.host.run("nft", "delete", "rule", *chain[1:], "handle", handle)
    assert stage.servers("client").total() == 4


@st.composite
def pools(draw: st.DrawFn) -> dict[Key, Pool]:
    """Any table that can be wanted, of some services."""
    found: dict[Key, Pool] = {}
    for key in draw(st.sets(st.sampled_from([web("tcp"), web("udp"), web("tcp", 6), MARK]))):
        scheduler = draw(st.sampled_from(["rr", "wrr", "sh"]))
        some = draw(st.lists(st.tuples(st.sampled_from(["c1", "c2", "node"]), st.integers(0, 65535)), max_size=3))
        places = [place(name, weight, key.version) for name, weight in some]
        service = Service(key, scheduler, hash_fallback=scheduler == "sh", owned=True)
        found[key] = Pool(service, {each.address: each for each in places})
    return found


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pools(), pools())
def test_what_is_written_is_what_is_read(stage: Stage, before: dict[Key, Pool], after: dict[Key, Pool]) -> None:
    """From any table to any other: what the steps lead to is what is read, by a process that knew nothing of it too."""
    for wanted in (before, after):
        found = stage.services()
        stage.apply(*change(wanted, found, found).steps, listens={MARK: RANGE})
        read = stage.host.call(Table().services)
        known = stage.host.call(stage.table.services, counted=False)
        assert {key: _set(entry) for key, entry in known.items()} == {key: _set(entry) for key, entry in read.items()}
        assert {key: entry.service for key, entry in read.items()} == {
            key: pool.service for key, pool in wanted.items()
        }
        for key, entry in read.items():
            assert entry.destinations == wanted[key].destinations
        assert change(wanted, read, read).steps == ()


def _set(entry: Entry) -> tuple[Service, Mapping[Address, Destination]]:
    """An entry without its counts."""
    return entry.service, entry.destinations


def test_others_changes_are_seen(stage: Stage) -> None:
    """What another program changes is in the next reading, though what nobody has changed is not read again."""
    stage.balance(web(), place("c1"), place("c2"))
    for text in ("flush chain inet treescale-lb s/tcp/10.0.0.1/80", "delete table inet treescale-lb"):
        stage.host.run("nft", text)
        assert stage.host.call(stage.table.services, counted=False).keys() == set()
        assert stage.host.call(Table().services).keys() == set()
    stage.balance(web(), place("c1"))
    stage.host.run("nft", "add table inet other; add chain inet other one")
    assert stage.host.call(stage.table.services, [web()], counted=False).keys() == {web()}
    assert stage.host.call(stage.table.services, [web("udp")], counted=False).keys() == set()
    stage.host.run("nft", "delete table inet other")


def test_news_of_others(stage: Stage) -> None:
    """Transactions are counted if they touch the table, and it is told when there were more than the kernel keeps."""
    news = stage.host.call(News, "one", room=1 << 16)
    stage.host.run("nft", "add table inet one; add chain inet one a")
    stage.host.run("nft", "add table inet two; add chain inet two a")
    stage.host.run("nft", "add chain inet one b; add chain inet two b")
    assert news.transactions() == 2
    assert news.transactions() == 0
    many = "".join(f"add chain inet two c{number}\n" for number in range(2_000))
    stage.host.run("nft", "-f", "-", text=many)
    assert news.transactions() is None
    assert news.transactions() == 0
    news.close()
    stage.host.run("nft", "delete table inet one; delete table inet two")


def test_a_large_table_is_not_read_again(stage: Stage) -> None:
    """News of a table of 5,000 servers have room: it is known that nobody else changed it, so it is not read again."""
    steps: list[Step] = []
    for number in range(1, 101):
        key = Virtual(Protocol.TCP, ip_address(f"10.9.0.{number}"), 80)
        steps.append(AddService(Service(key, "wrr", owned=True)))
        places = (Address(ip_address(f"172.17.{number}.{last}"), PORT) for last in range(1, 51))
        steps += [AddDestination(key, Destination(each)) for each in places]
    stage.host.call(stage.table.untouched)  # hears from now on
    stage.apply(*steps)
    assert stage.host.call(stage.table.untouched)


def test_without_the_helper(stage: Stage) -> None:
    """When the helper dies, or cannot work, nft itself does the same from then on; what it refuses is told alike."""
    nft = Nft()
    stage.host.call(nft.change, "add table inet one\n")
    with pytest.raises(HostError, match=r"Error: .*No such file"):
        stage.host.call(nft.change, "add rule inet one nowhere drop\n")
    assert nft._helper is not None
    nft._helper.kill()
    stage.host.call(nft.change, "add table inet two\n")
    with pytest.raises(HostError, match=r"Error: .*No such file"):
        stage.host.call(nft.change, "add rule inet two nowhere drop\n")
    stage.host.run("nft", "delete table inet one; delete table inet two")


def test_a_chain_that_cannot_be_deleted(stage: Stage) -> None:
    """Where the kernel does not let go of a server's chain, the server is out nevertheless; it goes with the next."""
    stage.balance(web(), place("c1"), place("c2"))
    stage.host.run("nft", "-f", "-", text=(
        "add chain inet treescale-lb other\n"
        "add rule inet treescale-lb other jump s/tcp/10.0.0.1/80/172.17.0.3/8080\n"
    ))  # fmt: skip
    with pytest.raises(HostError, match="busy"):
        stage.apply(DeleteDestination(web(), place("c2").address))
    assert stage.servers("client") == {"c1": 4}
    stage.host.run("nft", "flush chain inet treescale-lb other; delete chain inet treescale-lb other")
    stage.apply(DeleteDestination(web(), place("c2").address))
    assert "172.17.0.3" not in stage.host.run("nft", "list", "table", "inet", "treescale-lb")


def test_a_share_of_less_than_a_slot(stage: Stage) -> None:
    """A server whose weight is too small for a slot of sh has its weight nevertheless, and gets one with the next."""
    stage.balance(web(), place("c1", 65535), place("c2", 1), scheduler="sh")
    assert {each.weight for each in stage.services()[web()].destinations.values()} == {65535, 1}
    stage.apply(SetDestination(web(), place("c1", 0)))
    assert stage.servers("client") == {"c2": 4}


def test_removal(stage: Stage) -> None:
    """Another backend removes the table, once, and nothing else; connections that are open go on."""
    stage.balance(web(), place("c1"))
    flow = stage.lan.flow("client", "tcp", (address("host"), 80))
    assert stage.host.call(remove)
    assert stage.services() == {}
    assert flow.ask().server == "c1"
    assert not stage.host.call(remove)


def test_half_a_change_heals(stage: Stage) -> None:
    """What a crash between the two transactions leaves behind has no effect, and goes with the next change."""
    stage.balance(web(), place("c1"), place("c2"))
    chain = "s/tcp/10.0.0.1/80"
    stage.host.run("nft", "-f", "-", text=(
        f"flush chain inet treescale-lb {chain}\n"
        f'add rule inet treescale-lb {chain} goto {chain}/172.17.0.2/8080 comment "rr"\n'
    ))  # fmt: skip
    weights = {each.weight for each in stage.services()[web()].destinations.values()}
    assert weights == {0, 1}
    stage.apply(DeleteDestination(web(), place("c2").address))
    assert "172.17.0.3" not in stage.host.run("nft", "list", "table", "inet", "treescale-lb")
    assert stage.servers("client") == {"c1": 4}


def test_refusals(stage: Stage) -> None:
    """A step for what is not there is refused, and nothing is changed."""
    with pytest.raises(Failed, match=r"tcp 10\.0\.0\.1:80 is not in the table"):
        stage.apply(AddService(Service(web("udp"))), AddDestination(web(), place("c1")))
    with pytest.raises(ValueError, match="the weight is 65536"):
        stage.apply(AddService(Service(web())), AddDestination(web(), place("c1", 65536)))
    assert stage.services() == {}
    assert stage.host.call(why_unavailable) is None
