"""The walk of packets through rules, and the judgements of `lb.why` that need no kernel."""

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lan import Box
from model_kernel import box, tree

from tsbus.balancer import iptables_text, nft_listing
from tsbus.balancer.firewall import (
    UNKNOWN,
    Chain,
    Condition,
    Fate,
    Packet,
    Rule,
    Table,
    Verdict,
    filtered,
    network,
    number,
    translated,
    where,
    without,
)
from tsbus.balancer.life import State
from tsbus.balancer.question import Question, nobody
from tsbus.balancer.report import Problem, Report, ServerReport
from tsbus.balancer.rules import Host, Listen, Network, Route, front
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Destination, Entry, Forward, Protocol, Service, Virtual
from tsbus.balancer.ways import TRACKING, Evidence
from tsbus.balancer.why import judge
from tsbus.lb_records import Check, Origin, WhyAnswer

# ---- The walk: any rules, any packet ----

NAMES = ("base", "one", "two")
WORDS = ("eth0", "eth1", "wg0")
TERMINAL = {"filter": ("accept", "drop"), "nat": ("accept", "translate")}


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    """Of a source from 0 to 7, a port from 0 to 3, a device, or something that nobody understands."""
    kind = draw(st.integers(0, 4))
    negated = draw(st.booleans())
    if kind == 0:
        return UNKNOWN
    if kind == 1:
        return where("in", *draw(st.sets(st.sampled_from([*WORDS, "eth*"]), min_size=1)), negated=negated)
    first, last = sorted(draw(st.tuples(st.integers(0, 7), st.integers(0, 7))))
    if kind == 4:
        return Condition(("source", "dport"), (((first, last), number(draw(st.integers(0, 3)))),), negated)
    return where("source" if kind == 2 else "dport", (first, last), negated=negated)


@st.composite
def rulebooks(draw: st.DrawFn) -> Table:
    """Chains that lead from one to the next only, as a kernel has them."""
    chains, hooked = {}, draw(st.sampled_from(["filter", "nat"]))
    for at, name in enumerate(NAMES):
        later = NAMES[at + 1 :]
        rules = []
        for position in range(draw(st.integers(0, 5))):
            kinds = [*TERMINAL[hooked], "return", "pass", *(("jump", "goto") if later else ())]
            kind = draw(st.sampled_from(kinds))
            target = draw(st.sampled_from(later)) if kind in ("jump", "goto") else ""
            some = tuple(draw(st.lists(conditions(), max_size=2)))
            rules.append(Rule(f"{name} {position}", some, Verdict(kind, target)))  # type: ignore[arg-type]
        drops = hooked == "filter" and draw(st.booleans())
        chains[name] = Chain(tuple(rules), "input" if name == "base" else None, hooked, 0, drops)
    return Table("nft", "inet mine", (4, 6), chains)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """Of which not everything is known."""
    first, last = sorted(draw(st.tuples(st.integers(0, 7), st.integers(0, 7))))
    ports = draw(st.sets(st.integers(0, 3), min_size=1))
    devices = draw(st.sets(st.sampled_from(WORDS), min_size=1))
    return Packet("input", 4, {"source": ((first, last),), "dport": tuple(map(number, ports)), "in": tuple(devices)})


def ends(table: Table, packet: Packet) -> set[str]:
    """All that may become of a packet, found by trying each packet that it may be, and every answer to the unknown."""
    spans = packet.values["source"][0]
    found = set()
    for source, (port, _), device in product(
        range(spans[0], spans[1] + 1), packet.values["dport"], packet.values["in"]
    ):  # type: ignore[misc, arg-type]
        found |= _run(table, "base", {"source": source, "dport": port, "in": device})
    policy = "drop" if table.chains["base"].drops else "accept"
    return {policy if end == "leave" else end for end in found}


def _run(table: Table, name: str, packet: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for rule in table.chains[name].rules:
        fits = [_fits(each, packet) for each in rule.conditions]
        if False in fits or rule.verdict.kind == "pass":
            continue
        kind, target = rule.verdict
        does = (
            {kind}
            if kind in ("accept", "drop", "translate")
            else {"leave"}
            if kind == "return"
            else _run(table, target, packet)
        )
        goes_on = kind == "jump" and "leave" in does
        found |= does - {"leave"} if kind == "jump" else does
        if None not in fits and not goes_on:
            return found
    return found | {"leave"}


def _fits(each: Condition, packet: dict[str, Any]) -> bool | None:
    if each == UNKNOWN:
        return None
    inside = any(
        all(_inside(packet[name], one) for name, one in zip(each.fields, option, strict=True))
        for option in each.options
    )
    return inside != each.negated


def _inside(value: Any, option: Any) -> bool:
    if isinstance(option, str):
        return bool(value == option or (option == "eth*" and value.startswith("eth")))
    return bool(option[0] <= value <= option[1])


@given(rulebooks(), packets())
def test_a_walk_never_guesses(table: Table, packet: Packet) -> None:
    """What is said for sure becomes of every packet that it may be; a sure one is known, when all conditions are."""
    look = filtered if table.chains["base"].kind == "filter" else translated
    fate = look([table], packet)
    possible = ends(table, packet)
    if fate.result == "accept" and fate.but:
        assert "accept" in possible
    elif fate.result != "unknown":
        assert possible == {fate.result}
    one = {**packet.values, "source": (number(packet.values["source"][0][0]),), "dport": packet.values["dport"][:1]}  # type: ignore[arg-type]
    exact = Packet("input", 4, {**one, "in": packet.values["in"][:1]})  # type: ignore[dict-item]
    known = all(UNKNOWN not in rule.conditions for chain in table.chains.values() for rule in chain.rules)
    if known:
        assert {look([table], exact).result} == ends(table, exact)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: (min(pair), max(pair)))))
def test_without(holes: list[tuple[int, int]]) -> None:
    """What is left of a range has exactly the numbers that are in no hole."""
    left = {each for first, last in without((3, 17), holes) for each in range(first, last + 1)}
    assert left == set(range(3, 18)) - {each for first, last in holes for each in range(first, last + 1)}


# ---- Rules as tools write them ----


def arriving(port: int = 80, source: str = "10.0.0.2", **more: Any) -> Packet:
    """The first packet of a TCP connection to 10.0.0.1 that comes in by eth0."""
    values = {
        "version": (number(4),), "protocol": (number(6),), "source": (network(ip_network(source)),),
        "target": (network(ip_network("10.0.0.1")),), "sport": ((1024, 65535),), "dport": (number(port),),
        "flags": (number(2),), "in": ("eth0",), "out": ("",), "state": ("new",), "direction": ("original",),
        "origin": (network(ip_network("10.0.0.1")),), "origin_port": (number(port),), "origin_protocol": (number(6),),
        "source_type": ("unicast",), "target_type": ("local",), "translated": ("no",),
    }  # fmt: skip
    return Packet("input", 4, values | more)


UFW = """\
# Generated by iptables-save v1.8.9 (nf_tables) on Mon Nov 23 04:30:24 2026
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-not-local - [0:0]
:ufw-logging-deny - [0:0]
:ufw-user-input - [0:0]
:ufw-user-limit - [0:0]
-A INPUT -j ufw-before-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -j ufw-user-input
-A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --update --seconds 30 -j ufw-user-limit
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-user-input -p tcp -m multiport --dports 80,443,8000:8100 -m comment --comment "the \\"web\\" -j DROP" -j ACCEPT
-A ufw-user-input -s 192.168.7.0/24 -p tcp -m tcp --dport 5432 -j ACCEPT
-A ufw-user-limit -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


@pytest.mark.parametrize(
    ("packet", "result", "rule"),
    [
        (arriving(80), "accept", ""),
        (arriving(8050), "accept", ""),
        (arriving(81), "drop", "the policy of INPUT (filter)"),
        (arriving(81, **{"in": ("lo",)}), "accept", ""),
        (arriving(81, state=("established",)), "accept", ""),
        (arriving(80, state=("invalid",)), "drop", "-A ufw-before-input -m conntrack --ctstate INVALID -j DROP"),
        (arriving(22), "unknown", "-A ufw-user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent"),
        (arriving(5432, "192.168.7.7"), "accept", ""),
        (arriving(5432, "0.0.0.0/0"), "unknown", "-A ufw-user-input -s 192.168.7.0/24"),
        (arriving(80, target_type=("broadcast",)), "drop", "-A ufw-not-local -j DROP"),
    ],
)
def test_a_firewall_of_iptables(packet: Packet, result: str, rule: str) -> None:
    """The rules of a usual firewall let in what they should, name what drops, and what cannot be known."""
    fate = filtered(iptables_text.parse(UFW, 4), packet)
    assert (fate.result, fate.rule[: len(rule)] if result != "accept" else "") == (result, rule)


def test_who_is_banned() -> None:
    """Rules that drop certain clients do not matter to clients elsewhere, and are named; an inverted one is a doubt."""
    banned = UFW.replace(":ufw-user-limit", ":f2b-sshd").replace(
        "-A INPUT -j ufw-before-input", "-A INPUT -s 203.0.113.9/32 -j DROP\n-A INPUT -j ufw-before-input"
    )
    fate = filtered(iptables_text.parse(banned, 4), arriving(80, "0.0.0.0/0"))
    assert (fate.result, fate.but) == ("accept", ("-A INPUT -s 203.0.113.9/32 -j DROP",))
    only = banned.replace("-A INPUT -s 203.0.113.9/32", "-A INPUT ! -s 192.168.0.0/16")
    assert filtered(iptables_text.parse(only, 4), arriving(80, "0.0.0.0/0")).result == "unknown"


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ("! -p udp", True), ("-p 6", True), ("-p all", True), ("-p unheard-of", None), ("! -i eth+", False),
        ("-i lo", False), ("-d 10.0.0.0/255.255.255.0", True), ("! -d 10.0.0.1/32", False),
        ("-p tcp -m tcp ! --dport 1:79", True), ("-p tcp -m tcp --sport 1000:", True),
        ("-p tcp -m tcp --sport 53", False),
        ("-p tcp -m tcp --sport 2000:3000", None), ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", True),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", False), ("-p tcp -m tcp --tcp-flags ALL NONE", False),
        ("-m state --state NEW,ESTABLISHED", True), ("-m conntrack --ctstate INVALID", False),
        ("-m conntrack --ctdir REPLY", False), ("-m conntrack --ctstatus DNAT", False),
        ("-m conntrack --ctstatus ASSURED", None), ("-m conntrack --ctorigdst 10.0.0.1 --ctorigdstport 80", True),
        ("-m conntrack --ctproto 17", False), ("-m addrtype --src-type LOCAL", False), ("-m mark --mark 0x1", None),
        ("-m set --match-set bad src", None), ("-p udp -m set --match-set bad src", False),
        ("-m limit --limit 5/min", None),
        ('-m comment --comment "! -p udp"', True), ("-m physdev --physdev-in eth1", None),
    ],
)  # fmt: skip
def test_conditions_of_iptables(words: str, fits: bool | None) -> None:
    """Each usual condition is met, not met, or cannot be told, as the kernel would see it."""
    results = {True: "drop", False: "accept", None: "unknown"}
    saved = f"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT {words} -j DROP\nCOMMIT\n"
    assert filtered(iptables_text.parse(saved, 4), arriving()).result == results[fits]


@pytest.mark.parametrize(
    ("target", "result"),
    [("LOG --log-prefix x", "accept"), ("MARK --set-xmark 0x1/0x1", "accept"),
     ("REJECT --reject-with tcp-reset", "drop"),
     ("NFQUEUE --queue-num 0", "unknown"), ("MINE", "drop"), ("RETURN", "accept")],
)  # fmt: skip
def test_targets_of_iptables(target: str, result: str) -> None:
    """Targets end a packet, let it go on, or may do anything; `-g` does not come back."""
    saved = f"*filter\n:INPUT ACCEPT [0:0]\n:MINE - [0:0]\n-A INPUT -j {target}\n-A MINE -j DROP\nCOMMIT\n"
    assert filtered(iptables_text.parse(saved, 4), arriving()).result == result
    gone = saved.replace(f"-j {target}", "-g MINE\n-A INPUT -j ACCEPT").replace("-A MINE -j DROP", "-A MINE -j RETURN")
    assert filtered(iptables_text.parse(gone.replace(":INPUT ACCEPT", ":INPUT DROP"), 4), arriving()).result == "drop"


def test_translations() -> None:
    """The first translation of a hook counts, with its address; accepting one leaves it to the next table."""
    saved = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"
        "-A DOCKER -i docker0 -j RETURN\n-A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.9:80\n"
        "COMMIT\n"
    )
    tables = iptables_text.parse(saved, 4)
    before = replace(arriving(), hook="prerouting")
    assert translated(tables, before)[:2] == ("translate", saved.splitlines()[5].replace("-A", "-t nat -A"))
    assert translated(tables, before).to == "172.17.0.9:80"
    inside = Packet("prerouting", 4, {**before.values, "in": ("docker0",)})
    assert translated(tables, inside) == Fate("accept")
    assert filtered(tables, before) == Fate("accept")


NFT = """
table inet filter {
  set lan { type ipv4_addr; flags interval; elements = { 10.0.0.0/24, 192.168.1.1-192.168.1.9 } }
  set seen { type ipv4_addr; flags dynamic; timeout 5s; }
  set pairs { type ipv4_addr . inet_service; elements = { 10.0.0.1 . 81 } }
  map ports { type inet_service : verdict; elements = { 22 : accept, 82 : jump web } }
  chain web { ip saddr @lan accept; return; }
  chain input {
    type filter hook input priority filter; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iifname { "lo", "wg*" } accept
    icmp type echo-request accept
    ip6 daddr fe80::/10 accept
    fib daddr type != local drop
    tcp dport vmap @ports
    ip daddr . tcp dport @pairs accept
    tcp dport { 80, 1000-2000 } tcp flags syn / fin,syn,rst,ack update @seen { ip saddr } counter accept comment "a"
    meta l4proto . ip daddr . th dport vmap { tcp . 10.0.0.1 . 90 : drop, udp . 10.0.0.1 . 91 : accept }
    tcp dport 92 limit rate 5/second accept
    tcp dport 93 ip saddr != @lan log prefix "x " reject with tcp reset
    tcp dport 93 ct status dnat accept
    tcp dport > 40000 goto web
    tcp dport 94 meta mark 1 accept
    tcp dport 93 ct original proto-dst 80-99 ct direction original accept
  }
}
table ip6 other { chain input { type filter hook input priority 0; policy drop; }; }
table netdev early { }
"""


@pytest.fixture(scope="module")
def nft() -> Iterator[tuple[Table, ...]]:
    """The rules as this machine's nft lists them."""
    host = Box("nft")
    host.run("nft", "-f", "-", text=NFT)
    listed, written = host.run("nft", "-j", "list", "ruleset"), host.run("nft", "-a", "list", "ruleset")
    yield nft_listing.parse(json.loads(listed)["nftables"], nft_listing.texts(written))
    host.close()


@pytest.mark.parametrize(
    ("packet", "result", "rule"),
    [
        (arriving(80), "accept", 'inet filter input: tcp dport { 80, 1000-2000 } tcp flags syn'),
        (arriving(1500), "accept", "inet filter input: tcp dport { 80, 1000-2000 } tcp flags syn"),
        (arriving(80, flags=(number(18),)), "drop", "the policy of input (inet filter)"),
        (arriving(80, state=("invalid",)), "drop", "inet filter input: ct state vmap"),
        (arriving(99, state=("established",)), "accept", "inet filter input: ct state vmap"),
        (arriving(99, **{"in": ("wg3",)}), "accept", "inet filter input: iifname"),
        (arriving(80, target_type=("multicast",)), "drop", "inet filter input: fib daddr type != local drop"),
        (arriving(22), "accept", "inet filter input: tcp dport vmap @ports"),
        (arriving(82), "accept", "inet filter web: ip saddr @lan accept"),
        (arriving(82, "192.168.1.10"), "drop", "the policy of input (inet filter)"),
        (arriving(82, "0.0.0.0/0"), "unknown", "inet filter web: ip saddr @lan accept"),
        (arriving(81), "accept", "inet filter input: ip daddr . tcp dport @pairs accept"),
        (arriving(90), "drop", "inet filter input: meta l4proto . ip daddr . th dport vmap"),
        (arriving(91), "drop", "the policy of input (inet filter)"),
        (arriving(92), "unknown", "inet filter input: tcp dport 92 limit rate 5/second"),
        (arriving(93), "accept", "inet filter input: tcp dport 93 ct original proto-dst 80-99"),
        (arriving(93, "172.16.0.1"), "drop", "inet filter input: tcp dport 93 ip saddr != @lan log"),
        (arriving(50000, "172.16.0.1"), "drop", "the policy of input (inet filter)"),
        (arriving(94), "unknown", "inet filter input: tcp dport 94 meta mark 0x00000001 accept"),
    ],
)  # fmt: skip
def test_a_firewall_of_nft(nft: tuple[Table, ...], packet: Packet, result: str, rule: str) -> None:
    """Sets, maps of verdicts, concatenations and flags of a real listing are understood, and what is not is named."""
    fate = filtered(nft, packet)
    assert (fate.result, fate.rule[: len(rule)]) == (result, "" if result == "accept" else rule)


def test_tables_that_are_left_out(nft: tuple[Table, ...]) -> None:
    """Tables of another version of IP do not count, those of other layers are not there."""
    assert [each.name for each in nft] == ["inet filter", "ip6 other"]
    six = Packet("input", 6, {**arriving(80).values, "version": (number(6),)})
    assert filtered(nft, six).rule == "the policy of input (ip6 other)"


# ---- Judgements ----

VIP = Virtual(Protocol.TCP, ip_address("10.0.0.1"), 80)
C1 = Address(ip_address("172.17.0.2"), 80)
BRIDGE = Network("docker0", (ip_network("172.17.0.0/16"),), ("to-c1",))


def asked(origin: Origin = "remote", *, forward: Forward = Forward.NAT, facts: dict[str, Any] | None = None,
          host: dict[str, Any] | None = None, **more: Any) -> WhyAnswer:  # fmt: skip
    """What is said of a host on which everything is in order but what the arguments say."""
    balancer = tree().servers["n1"].balancers["web"]
    service = Service(VIP, "wrr", owned=True)
    one = Destination(C1, 1, forward)
    server = ServerReport("c1", "c1", "n1", C1, State.ACTIVE, "", 0.0, 1, 1, "its image", None)
    listen = Listen(Protocol.TCP, VIP.ip, 80, 80)
    question = Question(
        "n1", balancer, listen, "10.0.0.1:80", origin, front(balancer, Pool(service, {C1: one})), "ipvs",
        **{"report": Report("web", VIP, "ok", (server,)), **more},
    )  # fmt: skip
    routes = {VIP.ip: Route("lo", VIP.ip, local=True), C1.ip: Route("docker0", ip_address("172.17.0.1"), local=False)}
    known: dict[str, Any] = {
        "host": Host(addresses=frozenset({VIP.ip}), networks=(BRIDGE,), **(host or {})), "routes": routes,
        "outside": frozenset({"eth0"}), "settings": {"net.ipv4.ip_forward": 1, TRACKING: 1},
        "table": {VIP: Entry(service, {C1: one})},
    }  # fmt: skip
    return judge(question, Evidence(**known | (facts or {})), {C1: ""})


def check(answer: WhyAnswer, name: str) -> Check:
    """The one check of this name."""
    (found,) = [each for each in answer.checks if each.name == name]
    return found


def test_all_in_order() -> None:
    """Without a fault the verdict says who gets the packet and what it sees, and each check is ok."""
    answer = asked()
    assert answer.works is True
    assert {each.result for each in answer.checks} == {"ok"}
    assert answer.verdict == (
        "A packet from a client elsewhere to tcp 10.0.0.1:80 goes to c1 (172.17.0.2:80), "
        "which sees the client's own address."
    )


def test_rules_that_cannot_be_read() -> None:
    """Where the rules cannot be read nothing is said of them, and nothing works for sure."""
    answer = asked(facts={"unread": ("nft: Operation not permitted",)})
    assert answer.works is None
    doubtful = [each.name for each in answer.checks if each.result == "unknown"]
    assert doubtful == ["published", "input", "output", "answers"]
    assert "if it passes 'published', which cannot be told" in answer.verdict


def test_a_published_port() -> None:
    """A translation that the records of containers explain is told with the container; others with the rule."""
    saved = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 1.2.3.4\nCOMMIT\n"
    answer = asked(facts={"saved": {"iptables-save": saved}})
    assert check(answer, "published").mend == (
        "`iptables -t nat -D PREROUTING -p tcp --dport 80 -j DNAT --to-destination 1.2.3.4`"
    )
    answer = asked(facts={"saved": {"iptables-save": saved}}, containers=(box("c9", "172.17.0.9", host_port=80),))
    assert check(answer, "published").text.startswith("container c9 publishes this port")
    assert check(answer, "published").mend.startswith("publish another port of c9")


@pytest.mark.parametrize(("forward", "kind"), [(Forward.DIRECT, "dr"), (Forward.TUNNEL, "tunnel")])
def test_servers_that_answer_themselves(forward: Forward, kind: str) -> None:
    """What such a server must have is told, and that nobody here can see whether it has."""
    answer = asked(forward=forward)
    found = check(answer, "server")
    assert (found.result, f"({kind})" in found.text) == ("unknown", True)
    assert "the address 10.0.0.1" in found.mend
    assert "net.ipv4.conf.all.arp_ignore=1" in found.mend
    assert answer.works is None
    assert not {"masquerade", "answers", "tracking", "forwarding"} & {each.name for each in answer.checks}


def test_a_filtering_bridge() -> None:
    """Without masquerading a filtering bridge brings answers back, but not to a server that is its own client."""
    assert check(asked("container"), "masquerade").result == "fail"
    answer = asked("container", host={"bridge_filter": True}, facts={"no_hairpin": frozenset({"to-c1"})})
    assert check(answer, "masquerade").result == "warn"
    assert check(answer, "hairpin").mend == "`bridge link set dev to-c1 hairpin on`"


def test_no_containers_to_ask_from() -> None:
    """On a host without a bridge there is no client in a container, which is told."""
    answer = asked("container", facts={"host": Host(addresses=frozenset({VIP.ip}))})
    assert answer.works is None
    assert "no bridge of this host" in answer.checks[1].text


def test_without_a_kernel() -> None:
    """The first that fails is the kernel, with its mend; what does not need one is looked at all the same."""
    answer = asked(unusable=Problem("this kernel has no IPVS", "`modprobe ip_vs`"), report=None, facts={"table": None})
    assert check(answer, "backend").mend == "`modprobe ip_vs`"
    assert "ends at the check 'backend'" in answer.verdict
    assert {"address", "listener", "input"} <= {each.name for each in answer.checks}


def test_a_service_that_the_kernel_cannot_hold() -> None:
    """The kernel is what fails; the servers that there should be are told, and followed."""
    answer = asked(unable=Problem("the kernel has no scheduler wrr", "load it"), facts={"table": {}})
    assert [each.name for each in answer.checks if each.result == "fail"] == ["backend"]
    assert check(answer, "servers").text == "c1 (172.17.0.2:80, weight 1)"


def test_tracking_has_room() -> None:
    """A nearly full table of connections is a warning, a full one the end of new connections."""
    count, most = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"
    for tracked, result in ((89, None), (90, "warn"), (100, "fail")):
        answer = asked(facts={"settings": {"net.ipv4.ip_forward": 1, count: tracked, most: 100}})
        found = [each for each in answer.checks if each.name == "tracking"]
        assert [each.result for each in found] == ([result] if result else [])
        assert all(each.mend == f"`sysctl -w {most}=200`" for each in found)


def test_an_address_that_nobody_has() -> None:
    """The answer names the balancers that there are."""
    answer = nobody("10.0.0.9:80", "tcp", "remote", [tree().servers["n1"].balancers["web"]])
    assert (answer.works, answer.balancer) == (False, "")
    assert "there are web (tcp 10.0.0.1:80)" in answer.verdict
