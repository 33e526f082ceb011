"""Firewall: what a host's packet rules do to one packet, as far as that can be told. Pure.

iptables_text.py and nft_listing.py bring the rules of both tools into this form. Of a packet mostly not everything is
known (who the client is, by which card it comes), and of some rules not what they match. So a condition has three
answers, and a walk takes both ways of a doubtful rule: when they end alike the doubt does not matter, and when they do
not, the answer is `unknown`, with the rule. It is never guessed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from tsbus.balancer.rules import Subnet, Version
from tsbus.balancer.table import IP

Range = tuple[int, int]
"""First and last."""
Value = Range | str
"""Of addresses, ports and other numbers a range; of devices, states and the like a word, with a `*` at its end in
conditions that look at its beginning only."""
Field = Literal[
    "version", "protocol", "source", "target", "sport", "dport", "flags", "in", "out", "state", "direction", "origin",
    "origin_port", "origin_protocol", "source_type", "target_type", "translated", "unknown",
]  # fmt: skip
"""What conditions look at. `origin`: what the connection was made to; `translated`: its destination was changed."""
Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]
Kind = Literal["filter", "nat"]
MAX_IP: Final[dict[Version, int]] = {4: 2**32 - 1, 6: 2**128 - 1}


def network(subnet: Subnet) -> Range:
    """Return the addresses of a subnet."""
    return int(subnet.network_address), int(subnet.broadcast_address)


def address(ip: IP) -> Range:
    """Return one address."""
    return int(ip), int(ip)


def number(value: int) -> Range:
    """Return one number."""
    return value, value


def without(whole: Range, holes: Iterable[Range]) -> tuple[Range, ...]:
    """Return what is left of a range."""
    left, (first, last) = [], whole
    for start, end in sorted(holes):
        if start > first:
            left.append((first, min(start - 1, last)))
        first = max(first, end + 1)
    return tuple((start, end) for start, end in (*left, (first, last)) if start <= end)


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of a packet at one hook: for each field what it may be; a field that is missing may be anything."""

    hook: Hook
    version: Version
    values: Mapping[Field, tuple[Value, ...]]

    def fits(self, condition: "Condition") -> bool | None:
        """Tell whether a condition is met; None when it depends on what is not known."""
        found = self._one(condition) if len(condition.fields) == 1 else self._several(condition)
        return found if found is None or not condition.negated else not found

    def _one(self, condition: "Condition") -> bool | None:
        values = self.values.get(condition.fields[0])
        if values is None:
            return None
        sides = {_among(value, condition.options) for value in values}
        return sides.pop() if len(sides) == 1 else None

    def _several(self, condition: "Condition") -> bool | None:
        """Several fields together, as nft's concatenations: one option must fit in all of them."""
        some = False
        for option in condition.options:
            each = [
                self._one(Condition((name,), ((one,),))) for name, one in zip(condition.fields, option, strict=True)
            ]
            if all(each):
                return True
            some = some or False not in each
        return None if some else False


def _among(value: Value, options: Iterable[tuple[Value, ...]]) -> bool | None:
    """Tell whether a value is inside one of the options, each of one field; None when a part of it is."""
    found: bool | None = False
    for (option,) in options:
        if isinstance(value, str) or isinstance(option, str):
            if value == option or (isinstance(value, str) and isinstance(option, str) and _begins(value, option)):
                return True
        elif option[0] <= value[0] and value[1] <= option[1]:
            return True
        elif option[0] <= value[1] and value[0] <= option[1]:
            found = None
    return found


def _begins(word: str, option: str) -> bool:
    return option.endswith("*") and word.startswith(option[:-1])


class Condition(NamedTuple):
    """A condition of a rule: that these fields together are one of the options."""

    fields: tuple[Field, ...]
    options: tuple[tuple[Value, ...], ...]
    negated: bool = False


UNKNOWN: Final = Condition(("unknown",), ())
"""A condition that is not understood."""


def where(name: Field, *options: Value, negated: bool = False) -> Condition:
    """Return a condition of one field."""
    return Condition((name,), tuple((option,) for option in options), negated)


class Verdict(NamedTuple):
    """What a rule does with packets that it fits."""

    kind: Literal["accept", "drop", "translate", "jump", "goto", "return", "pass", "unknown"]
    target: str = ""
    """The chain of a jump; the address of a translation, '' when it is that of the device on the way out."""


class Rule(NamedTuple):
    """A rule."""

    text: str
    """As its own tool writes it, with its chain."""
    conditions: tuple[Condition, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; with a hook packets come to it by themselves."""

    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None
    kind: Kind = "filter"
    priority: int = 0
    drops: bool = False
    """Its policy: what becomes of a packet that comes to its end."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of iptables or nft; jumps do not leave it."""

    tool: Literal["iptables", "ip6tables", "nft"]
    name: str
    """Of nft with its family."""
    versions: tuple[Version, ...]
    chains: Mapping[str, Chain] = field(default_factory=dict)


class Base(NamedTuple):
    """A chain to which packets come by themselves, for those who want to add a rule there."""

    table: Table
    chain: str


class Fate(NamedTuple):
    """What becomes of a packet."""

    result: Literal["accept", "drop", "translate", "unknown"]
    rule: str = ""
    """That decides, or because of which it cannot be told."""
    base: Base | None = None
    """Where this is."""
    to: str = ""
    """The address of a translation."""
    but: tuple[str, ...] = ()
    """Rules that drop it when it comes from certain addresses."""


def filtered(tables: Iterable[Table], packet: Packet) -> Fate:
    """Return whether all filters at the packet's hook let it through: one that drops is enough to end it."""
    doubtful: Fate | None = None
    but: list[str] = []
    for base in _bases(tables, packet, "filter"):
        fate = _fate(base, packet)
        if fate.result == "drop":
            return fate
        if fate.result == "unknown":
            doubtful = doubtful or fate
        but += fate.but
    return doubtful or Fate("accept", but=tuple(dict.fromkeys(but)))


def translated(tables: Iterable[Table], packet: Packet) -> Fate:
    """Return whether a rule at the packet's hook translates it: the first that does is the only one."""
    for base in _bases(tables, packet, "nat"):
        fate = _fate(base, packet)
        if fate.result != "accept":
            return fate
    return Fate("accept")


def _bases(tables: Iterable[Table], packet: Packet, kind: Kind) -> Iterator[Base]:
    found = [
        (chain.priority, Base(table, name))
        for table in tables
        if packet.version in table.versions
        for name, chain in table.chains.items()
        if chain.hook == packet.hook and chain.kind == kind
    ]
    yield from (base for _, base in sorted(found, key=lambda each: each[0]))


class _End(NamedTuple):
    """A way out of a chain."""

    kind: Literal["accept", "drop", "translate", "leave"]
    rule: str = ""
    to: str = ""
    doubt: str = ""
    """The rule of which it is not known whether it fits."""
    by_source: bool = False
    """The doubt is about nothing but who the client is."""


class _Course(NamedTuple):
    """What a chain does: the doubtful ways out, and where the packet goes when it takes none of them."""

    maybe: tuple[_End, ...]
    end: _End


_LEAVE: Final = _End("leave")


def _fate(base: Base, packet: Packet) -> Fate:
    chain = base.table.chains[base.chain]
    policy = _End("drop" if chain.drops else "accept", f"the policy of {base.chain} ({base.table.name})")
    course = _Walk(base.table, packet).course(base.chain)
    end = policy if course.end.kind == "leave" else course.end
    ends = (
        each._replace(kind=policy.kind, rule=policy.rule) if each.kind == "leave" else each for each in course.maybe
    )
    others = [each for each in ends if each.kind != end.kind or each.to != end.to]
    for each in others:
        if (end.kind, each.kind, each.by_source) != ("accept", "drop", True):
            return Fate("unknown", each.doubt, base)
    return Fate(_result(end), end.rule, base, end.to, tuple(each.doubt for each in others))


def _result(end: _End) -> Literal["accept", "drop", "translate"]:
    assert end.kind != "leave"  # noqa: S101  (a base chain has a policy)
    return end.kind


class _Walk:
    """One packet in one table."""

    def __init__(self, table: Table, packet: Packet) -> None:
        self._table, self._packet = table, packet
        self._known: dict[str, _Course | None] = {}
        """None: being looked at, so a jump to it would be a circle, which no kernel takes."""

    def course(self, name: str) -> _Course:
        """Return what a chain does."""
        if name not in self._known:
            self._known[name] = None
            self._known[name] = self._look(self._table.chains.get(name))
        known = self._known[name]
        return known if known is not None else _either(f"a circle at {name}")

    def _look(self, chain: Chain | None) -> _Course:
        if chain is None:
            return _either("a chain that is not there")
        maybe: list[_End] = []
        for rule in chain.rules:
            fits, by_source = self._fits(rule)
            if fits is False or rule.verdict.kind == "pass":
                continue
            course = self._does(rule)
            goes_on = course.end.kind == "leave" and rule.verdict.kind in ("jump", "unknown")
            early = [each for each in course.maybe if each.kind == "leave"] if rule.verdict.kind == "jump" else []
            ends = [each for each in course.maybe if each not in early]
            if fits is None:
                ends = [each._replace(by_source=each.by_source and by_source) for each in ends]
                ends += [] if goes_on else [course.end._replace(by_source=by_source)]
                maybe += [each._replace(doubt=rule.text) for each in ends]
                continue
            maybe += ends
            if goes_on:
                continue
            if early:  # it may leave the other chain before that one ends it
                maybe.append(course.end._replace(doubt=early[0].doubt))
                continue
            return _Course(tuple(maybe), course.end)
        return _Course(tuple(maybe), _LEAVE)

    def _fits(self, rule: Rule) -> tuple[bool | None, bool]:
        """Tell whether a rule fits, and, when that is doubtful, whether it is so because of the source alone."""
        doubts = set()
        for each in rule.conditions:
            fits = self._packet.fits(each)
            if fits is False:
                return False, False
            if fits is None:
                doubts.add((each.fields, each.negated))
        return (None if doubts else True), doubts == {(("source",), False)}

    def _does(self, rule: Rule) -> _Course:
        kind, target = rule.verdict
        match kind:
            case "jump" | "goto":
                return self.course(target)
            case "accept" | "drop" | "translate":
                return _Course((), _End(kind, rule.text, target))
            case "unknown":
                return _either(rule.text)
        return _Course((), _LEAVE)


def _either(doubt: str) -> _Course:
    """Anything may become of the packet."""
    return _Course((_End("accept", doubt, doubt=doubt), _End("drop", doubt, doubt=doubt)), _LEAVE)
