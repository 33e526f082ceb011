"""Nft listing: what `nft -j list ruleset` says, as the tables of firewall.py. Pure.

What is not understood becomes a condition of which nobody knows whether it is met, or a rule that may do anything.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final, get_args

from tsbus.balancer.firewall import (
    UNKNOWN,
    Chain,
    Condition,
    Field,
    Hook,
    Rule,
    Table,
    Value,
    Verdict,
    address,
    network,
    number,
    where,
)
from tsbus.balancer.iptables_text import FLAGS, PROTOCOLS
from tsbus.balancer.rules import Version

_VERSIONS: Final[Mapping[str, tuple[Version, ...]]] = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
"""Families whose packets come to a host's own addresses, or are forwarded by it."""
_IP: Final[Mapping[str, Version]] = {"ip": 4, "ip6": 6}
_PAYLOAD: Final[Mapping[str, Field]] = {
    "saddr": "source", "daddr": "target", "protocol": "protocol", "nexthdr": "protocol", "sport": "sport",
    "dport": "dport",
}  # fmt: skip
_META: Final[Mapping[str, Field]] = {
    "iif": "in", "iifname": "in", "oif": "out", "oifname": "out", "l4proto": "protocol", "nfproto": "version",
    "protocol": "version",
}  # fmt: skip
_CT: Final[Mapping[str, Field]] = {
    "state": "state", "direction": "direction", "daddr": "origin", "ip daddr": "origin", "ip6 daddr": "origin",
    "proto-dst": "origin_port", "protocol": "origin_protocol",
}  # fmt: skip
_OF_ORIGIN: Final = ("origin", "origin_port", "origin_protocol")
_WORDS: Final = ("in", "out", "state", "direction", "source_type", "target_type")
_ADDRESSES: Final = ("source", "target", "origin")
_TYPES: Final[Mapping[str, Field]] = {"saddr": "source_type", "daddr": "target_type"}
_NFPROTO: Final = {"ipv4": 4, "ipv6": 6, "ip": 4, "ip6": 6}
_FLAG_BITS: Final = 255
_PASSES: Final = frozenset({
    "counter", "log", "mangle", "set", "map", "notrack", "flow", "dup", "last", "ct helper", "ct timeout",
    "ct expectation",
})  # fmt: skip
"""Statements after which the next one comes."""
_ENDS: Final[Mapping[str, Verdict]] = {
    "accept": Verdict("accept"), "drop": Verdict("drop"), "reject": Verdict("drop"), "return": Verdict("return"),
    "continue": Verdict("pass"), "masquerade": Verdict("translate"), "redirect": Verdict("translate"),
}  # fmt: skip
_HANDLE: Final = re.compile(r"\s*(.*?) # handle (\d+)")


class _Unread(Exception):
    """Something that is not understood."""


def parse(
    listed: Iterable[Mapping[str, Any]], texts: Mapping[tuple[str, str], str], skip: Collection[tuple[str, str]] = ()
) -> tuple[Table, ...]:
    """Return the tables but those in `skip` (family and name); `texts` are the rules by table and handle."""
    heads: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    rules: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    sets: dict[tuple[str, str, str], list[Any]] = {}
    for item in listed:
        for kind, each in item.items():
            if kind == "table" and each["family"] in _VERSIONS and (each["family"], each["name"]) not in skip:
                heads[each["family"], each["name"]] = {}
            place = each.get("family", ""), each.get("table", "")
            if place not in heads:
                continue
            match kind:
                case "chain":
                    heads[place][each["name"]] = each
                case "rule":
                    rules[*place, each["chain"]].append(each)
                case "set" | "map":
                    sets[*place, each["name"]] = each.get("elem", [])
    tables = []
    for (family, name), chains in heads.items():
        reader = _Reader({key[2]: elements for key, elements in sets.items() if key[:2] == (family, name)})
        found = {
            chain: _chain(head, tuple(
                one
                for each in rules[family, name, chain]
                for one in reader.rules(each, texts.get((f"{family} {name}", str(each["handle"])), ""))
            ))
            for chain, head in chains.items()
        }  # fmt: skip
        tables.append(Table("nft", f"{family} {name}", _VERSIONS[family], found))
    return tuple(tables)


def texts(listed: str) -> dict[tuple[str, str], str]:
    """Return the rules in what `nft -a list ruleset` says, as nft writes them, by table (with family) and handle."""
    found, table = {}, ""
    for line in listed.splitlines():
        if line.startswith("table "):
            table = " ".join(line.split()[1:3])
        elif match := _HANDLE.match(line):
            found[table, match[2]] = match[1]
    return found


def _chain(head: Mapping[str, Any], rules: tuple[Rule, ...]) -> Chain:
    hook = head.get("hook")
    if hook not in get_args(Hook):
        return Chain(rules)
    return Chain(
        rules, hook, "nat" if head["type"] == "nat" else "filter", head["prio"], head.get("policy") == "drop"
    )  # fmt: skip


class _Reader:
    """Reads the rules of one table."""

    def __init__(self, sets: Mapping[str, list[Any]]) -> None:
        self._sets = sets

    def rules(self, rule: Mapping[str, Any], text: str) -> Iterator[Rule]:
        """Yield a rule; one with a map of verdicts is a rule for each of its keys."""
        text = f"{rule['family']} {rule['table']} {rule['chain']}: {text or 'handle ' + str(rule['handle'])}"
        conditions: list[Condition] = []
        for statement in rule["expr"]:
            (kind, body), *_ = statement.items()
            match kind:
                case "match":
                    conditions += self._match(body)
                case "vmap":
                    yield from (Rule(text, (*conditions, *more), verdict) for more, verdict in self._choices(body))
                    return
                case "jump" | "goto":
                    yield Rule(text, tuple(conditions), Verdict(kind, body["target"]))
                    return
                case "snat" | "dnat":
                    to = (body or {}).get("addr", "")
                    yield Rule(text, tuple(conditions), Verdict("translate", to if isinstance(to, str) else ""))
                    return
                case _ if kind in _ENDS:
                    yield Rule(text, tuple(conditions), _ENDS[kind])
                    return
                case _ if kind in _PASSES:
                    pass
                case "limit" | "quota" | "ct count" | "xt" if not _is_target(body):
                    conditions.append(UNKNOWN)
                case _:
                    yield Rule(text, tuple(conditions), Verdict("unknown"))
                    return

    def _match(self, body: Mapping[str, Any]) -> list[Condition]:
        implied: list[Condition] = []
        try:
            masked = _masked(body)
            if masked is not None:
                return masked
            fields, implied = _operand(body["left"])
            options = self._options(fields, body["right"])
            if body["op"] not in ("==", "!=", "in") or (body["op"] == "!=" and isinstance(body["right"], list)):
                options = _compared(body["op"], options)
            return [*implied, Condition(fields, options, body["op"] == "!=")]
        except (_Unread, KeyError, ValueError, TypeError):
            return [*implied, UNKNOWN]

    def _choices(self, body: Mapping[str, Any]) -> Iterator[tuple[list[Condition], Verdict]]:
        data = body["data"]
        pairs = self._sets.get(data[1:], []) if isinstance(data, str) else data["set"]
        for key, verdict in sorted(pairs, key=lambda pair: pair[0] == "*"):
            (kind, told), *_ = verdict.items()
            does = Verdict(kind, told["target"]) if kind in ("jump", "goto") else _ENDS.get(kind, Verdict("unknown"))
            if key == "*":
                yield [], does
                continue
            implied: list[Condition] = []
            try:
                fields, implied = _operand(body["key"])
                yield [*implied, Condition(fields, (_element(fields, key),))], does
            except (_Unread, KeyError, ValueError, TypeError):
                yield [*implied, UNKNOWN], does

    def _options(self, fields: tuple[Field, ...], right: Any) -> tuple[tuple[Value, ...], ...]:
        match right:
            case str() if right.startswith("@"):
                elements = self._sets[right[1:]]
            case {"set": list(elements)}:
                pass
            case list():
                elements = right
            case _:
                elements = [right]
        return tuple(_element(fields, each) for each in elements)


def _is_target(body: Any) -> bool:
    return isinstance(body, dict) and body.get("type") == "target"


def _operand(left: Any) -> tuple[tuple[Field, ...], list[Condition]]:
    """What the left side of a comparison looks at, and what must be so that it can be looked at."""
    match left:
        case {"concat": parts}:
            both = [_operand(part) for part in parts]
            return tuple(name for names, _ in both for name in names), [each for _, some in both for each in some]
        case {"payload": {"protocol": protocol, "field": name}}:
            return _payload(protocol, name)
        case {"meta": {"key": key}} if key in _META:
            return (_META[key],), []
        case {"ct": {"key": "status"}}:
            return ("translated",), []
        case {"ct": {"key": key, **more}} if key in _CT:
            if _CT[key] in _OF_ORIGIN and more.get("dir") != "original":
                raise _Unread(left)
            return (_CT[key],), []
        case {"fib": {"result": "type", "flags": [str(flag)] | str(flag)}}:
            return (_TYPES[flag],), []
    raise _Unread(left)


def _payload(protocol: str, name: str) -> tuple[tuple[Field, ...], list[Condition]]:
    if protocol in _IP:
        implied = [where("version", number(_IP[protocol]))]
    elif protocol in PROTOCOLS:
        implied = [where("protocol", number(PROTOCOLS[protocol]))]
    elif protocol == "th":
        implied = []
    else:
        raise _Unread(protocol)
    if name not in _PAYLOAD:
        return ("unknown",), implied
    return (_PAYLOAD[name],), implied


def _masked(body: Mapping[str, Any]) -> list[Condition] | None:
    """Flags of TCP, where a rule looks at them; None when it looks at something else."""
    match body:
        case {"left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, mask]}, "right": right, "op": op}:
            looked, wanted = _bits(mask), _bits(right)
            fits = [bits for bits in range(_FLAG_BITS + 1) if bits & looked == wanted]
        case {"left": {"payload": {"protocol": "tcp", "field": "flags"}}, "right": right, "op": op}:
            wanted = _bits(right)
            fits = [bits for bits in range(_FLAG_BITS + 1) if (bits & wanted if op == "in" else bits == wanted)]
        case _:
            return None
    return [where("protocol", number(PROTOCOLS["tcp"])), where("flags", *map(number, fits), negated=op == "!=")]


def _bits(value: Any) -> int:
    match value:
        case int():
            return value
        case str():
            return FLAGS[value]
        case list():
            return sum(map(_bits, value))
        case {"|": parts}:
            return sum(map(_bits, parts))
    raise _Unread(value)


def _compared(op: str, options: tuple[tuple[Value, ...], ...]) -> tuple[tuple[Value, ...], ...]:
    """What is greater or less than one number, as a range."""
    ((option,),) = options
    if isinstance(option, str):
        raise _Unread(op)
    first, last = option
    top = 2**128
    ranges = {"<": (0, first - 1), "<=": (0, last), ">": (last + 1, top), ">=": (first, top)}
    return ((ranges[op],),)


def _element(fields: tuple[Field, ...], value: Any) -> tuple[Value, ...]:
    match value:
        case {"elem": {"val": inner}}:
            return _element(fields, inner)
        case {"concat": parts}:
            return tuple(_value(name, part) for name, part in zip(fields, parts, strict=True))
    (name,) = fields
    return (_value(name, value),)


def _value(name: Field, value: Any) -> Value:
    match value:
        case {"range": [first, last]}:
            return _range(_value(name, first), _value(name, last))
        case {"prefix": {"addr": ip, "len": length}}:
            return network(ip_network((ip, length), strict=False))
        case bool():
            raise _Unread(value)
        case int():
            return number(value)
        case str() if name in _ADDRESSES:
            return address(ip_address(value))
        case str() if name in _WORDS:
            return value
        case str() if name in ("protocol", "origin_protocol"):
            return number(PROTOCOLS[value])
        case str() if name == "version":
            return number(_NFPROTO[value])
        case "dnat" if name == "translated":
            return "yes"
    raise _Unread(value)


def _range(first: Value, last: Value) -> Value:
    if isinstance(first, str) or isinstance(last, str):
        raise _Unread(first)
    return first[0], last[1]
