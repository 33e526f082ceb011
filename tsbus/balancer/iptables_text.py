"""Iptables text: what iptables-save writes, as the tables of firewall.py. Pure.

What is not understood becomes a condition of which nobody knows whether it is met, or a target that may do anything.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from typing import Final

from tsbus.balancer.firewall import (
    UNKNOWN,
    Chain,
    Condition,
    Hook,
    Kind,
    Rule,
    Table,
    Value,
    Verdict,
    network,
    number,
    where,
)
from tsbus.balancer.rules import Version

PROTOCOLS: Final[Mapping[str, int]] = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58,
    "icmpv6": 58, "comp": 108, "ipcomp": 108, "vrrp": 112, "sctp": 132, "udplite": 136,
}  # fmt: skip
"""By the names that iptables and nft write."""
FLAGS: Final[Mapping[str, int]] = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128}
"""Of TCP."""
_ALL_FLAGS: Final = 63
_WORD: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
"""What is in quotes, such as a comment, is one."""
_HOOKS: Final[Mapping[str, Hook]] = {
    "PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}  # fmt: skip
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_SOURCE_NAT: Final = 100
_PLAIN: Final = frozenset({"tcp", "udp", "sctp", "multiport", "conntrack", "state", "addrtype", "comment"})
"""Modules whose conditions are in their options alone."""
_GOES_ON: Final = frozenset({
    "LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "SECMARK", "CONNSECMARK", "CLASSIFY", "TOS", "DSCP", "TTL", "HL", "ECN",
    "TCPMSS", "TCPOPTSTRIP", "CT", "NOTRACK", "SET", "TRACE", "AUDIT", "CHECKSUM", "RATEEST", "TEE", "HMARK",
})  # fmt: skip
"""Targets after which the next rule comes."""
_VERDICTS: Final[Mapping[str, Verdict]] = {
    "ACCEPT": Verdict("accept"), "DROP": Verdict("drop"), "REJECT": Verdict("drop"), "RETURN": Verdict("return"),
}  # fmt: skip
_TRANSLATIONS: Final = frozenset({"DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"})
_ADDRESS_OPTIONS: Final = ("--to-source", "--to-destination")


def parse(saved: str, version: Version) -> tuple[Table, ...]:
    """Return the tables of one version of IP."""
    tables = []
    for block in saved.split("\n*")[0 if saved.startswith("*") else 1 :]:
        name, *lines = block.removeprefix("*").splitlines()
        policies = dict(line[1:].split()[:2] for line in lines if line.startswith(":"))
        rules: dict[str, list[Rule]] = {chain: [] for chain in policies}
        for line in lines:
            if line.startswith("-A "):
                chain = line.split(" ", 2)[1]
                rules.setdefault(chain, []).append(_rule(line, name, policies))
        chains = {chain: _chain(name, chain, policies.get(chain, "-"), tuple(some)) for chain, some in rules.items()}
        tables.append(Table("iptables" if version == 4 else "ip6tables", name, (version,), chains))
    return tuple(tables)


def _chain(table: str, name: str, policy: str, rules: tuple[Rule, ...]) -> Chain:
    hook = _HOOKS.get(name) if policy != "-" else None
    kind: Kind = "nat" if table == "nat" else "filter"
    priority = _SOURCE_NAT if kind == "nat" and hook in ("input", "postrouting") else _PRIORITIES.get(table, 0)
    return Chain(rules, hook, kind, priority, policy == "DROP")


def _rule(line: str, table: str, chains: Mapping[str, str]) -> Rule:
    words = _WORD.findall(line) if '"' in line else line.split()
    text = line if table == "filter" else f"-t {table} {line}"
    at = next((position for position, word in enumerate(words) if word in ("-j", "-g")), len(words))
    return Rule(text, tuple(_tests(words[2:at])), _verdict(words[at:], chains))


def _verdict(words: list[str], chains: Mapping[str, str]) -> Verdict:
    if not words:
        return Verdict("pass")
    target = words[1]
    if target in chains:
        return Verdict("goto" if words[0] == "-g" else "jump", target)
    if target in _GOES_ON:
        return Verdict("pass")
    if target in _TRANSLATIONS:
        told = [words[words.index(option) + 1] for option in _ADDRESS_OPTIONS if option in words]
        return Verdict("translate", told[0] if told else "")
    return _VERDICTS.get(target, Verdict("unknown"))


def _tests(words: list[str]) -> Iterator[Condition]:
    """Yield the conditions; an option has one word after it, or several up to the next option."""
    negated, position = False, 0
    while position < len(words):
        option = words[position]
        position += 1
        if option == "!":
            negated = True
            continue
        values = []
        while position < len(words) and not words[position].startswith("-") and words[position] != "!":
            values.append(words[position])
            position += 1
        yield from _condition(option, values, negated=negated)
        negated = False


def _condition(option: str, values: list[str], *, negated: bool) -> Iterator[Condition]:
    if option == "--comment" or (option == "-m" and values[0] in _PLAIN):
        return
    try:
        found = _READERS[option](values)
    except (KeyError, ValueError, IndexError):
        yield UNKNOWN
        return
    yield found._replace(negated=negated)


def _protocol(values: list[str]) -> Condition:
    name = values[0]
    return where("protocol", (0, 255) if name == "all" else number(int(name) if name.isdecimal() else PROTOCOLS[name]))


def _ports(text: str) -> Value:
    first, _, last = text.partition(":")
    return int(first or 0), int(last or 65535) if ":" in text else int(first)


def _list(text: str, read: Callable[[str], Value]) -> list[Value]:
    return [read(part) for part in text.split(",")]


def _subnet(text: str) -> Value:
    return network(ip_network(text, strict=False))


def _flags(values: list[str]) -> Condition:
    mask, wanted = map(_flag_bits, values)
    return where("flags", *(number(bits) for bits in range(_ALL_FLAGS + 1) if bits & mask == wanted))


def _flag_bits(text: str) -> int:
    if text in ("ALL", "NONE"):
        return _ALL_FLAGS if text == "ALL" else 0
    return sum(FLAGS[name.lower()] for name in text.split(","))


def _status(values: list[str]) -> Condition:
    if values != ["DNAT"]:
        raise ValueError(values)
    return where("translated", "yes")


def _device(text: str) -> str:
    return f"{text[:-1]}*" if text.endswith("+") else text


_READERS: Final[Mapping[str, Callable[[list[str]], Condition]]] = {
    "-p": _protocol,
    "-s": lambda values: where("source", _subnet(values[0])),
    "-d": lambda values: where("target", _subnet(values[0])),
    "-i": lambda values: where("in", _device(values[0])),
    "-o": lambda values: where("out", _device(values[0])),
    "--sport": lambda values: where("sport", _ports(values[0])),
    "--dport": lambda values: where("dport", _ports(values[0])),
    "--sports": lambda values: where("sport", *_list(values[0], _ports)),
    "--dports": lambda values: where("dport", *_list(values[0], _ports)),
    "--tcp-flags": _flags,
    "--state": lambda values: where("state", *values[0].lower().split(",")),
    "--ctstate": lambda values: where("state", *values[0].lower().split(",")),
    "--ctstatus": _status,
    "--ctdir": lambda values: where("direction", values[0].lower()),
    "--ctproto": lambda values: where("origin_protocol", *_protocol(values).options[0]),
    "--ctorigdst": lambda values: where("origin", _subnet(values[0])),
    "--ctorigdstport": lambda values: where("origin_port", _ports(values[0])),
    "--src-type": lambda values: where("source_type", *values[0].lower().split(",")),
    "--dst-type": lambda values: where("target_type", *values[0].lower().split(",")),
}
"""Of options, by what they look at."""
