"""Targets: which nodes an event or a command is for, as people write it and as routers pass it on (protocol section 5).

    target  = term {"," term}               the union; what terms with "!" select is taken away from it
    term    = ["!"] operand {"&" operand}   the intersection; only "!" terms: taken away from all nodes
    operand = nodes ["/"]                   with "/": these nodes and all below them
    nodes   = name | node[1-4,7] | web* | "@" tag | "*" all | "." this node

`resolve` reads all of it. `fold` writes a set of nodes with names and ranges only; `unfold` reads that back.
"""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import islice, product

# Not ClusterShell.NodeSet: importing that takes 18 ms and reads settings that change how it folds; this takes 1 ms.
from ClusterShell.RangeSet import RangeSet, RangeSetException

from tsbus.core.tree import Topology

# What these three bound is the time that one target from a stranger can take in a router's loop.
MAX_TEXT = 65_536
"""Characters of a target."""
MAX_RANGE = 65_536
"""Numbers that the ranges of one target may span in all; names that a set may have."""
MAX_WIDE = 1_000
"""Globs, tags and subtrees in one target: each of them may look at every node."""

_RANGE = r"\d+(?:-\d+(?:/\d+)?)?"
_BRACKETS = re.compile(rf"\[({_RANGE}(?:,{_RANGE})*)\]", re.ASCII)
_SPAN = re.compile(r"(\d{1,100})-(\d{1,100})", re.ASCII)
_DIGITS = re.compile(r"(\d+)", re.ASCII)


class TargetError(ValueError):
    """The caller's target is malformed, names what does not exist or selects nothing; the text says how to mend it."""


def resolve(text: str, topology: Topology, here: str) -> frozenset[str]:
    """Return the nodes that the target `text`, written at the node `here`, selects: never none.

    Raises TargetError for an unknown node or tag, an empty result, a malformed or an oversized target.
    """
    if not text.strip():
        raise TargetError("the target is empty; write a node's name, '@tag' or '*'")
    if len(text) > MAX_TEXT:
        raise TargetError(f"the target is {len(text)} characters long, more than {MAX_TEXT}; use ranges or tags")
    if (wide := sum(map(text.count, "*@/"))) > MAX_WIDE:
        raise TargetError(f"the target has {wide} globs, tags and subtrees, more than {MAX_WIDE}; use a common tag")
    _check_ranges(text)
    terms = [term.strip() for term in _split(text)]
    kept = [term for term in terms if not term.startswith("!")]
    found = _union(_term(term, topology, here) for term in kept or ["*"])
    found -= _union(_term(term[1:], topology, here) for term in terms if term.startswith("!"))
    if not found:
        raise TargetError(f"target {_quote(text)} selects no node: what its terms have in common is empty")
    return found


def fold(names: Iterable[str]) -> str:
    """Return the canonical short form of a set of nodes: equal sets give equal text. Empty for no names.

    Numbers in names become ranges (`node[1-40],web3`); names that differ otherwise are a list.
    """
    shapes: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for name in sorted(set(names)):
        pieces = tuple(_DIGITS.split(name))  # text, digits, text, digits ... text
        shapes.setdefault(pieces[::2], []).append(pieces)
    return ",".join(sorted("".join(pieces) for alike in shapes.values() for pieces in _fold_alike(alike)))


def _fold_alike(names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Fold names of one shape, given as pieces, into fewer whose numbers are ranges: place by place, the last first."""
    for place in reversed(range(1, len(names[0]), 2)):
        lines: dict[tuple[str, ...], list[str]] = {}
        for pieces in names:
            lines.setdefault(pieces[:place] + pieces[place + 1 :], []).append(pieces[place])
        names = [(*rest[:place], _fold_numbers(numbers), *rest[place:]) for rest, numbers in lines.items()]
    return names


def _fold_numbers(numbers: list[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    ranges = RangeSet()
    ranges.update(numbers)  # 100 times faster than to have it parse them
    return f"[{ranges}]"


def unfold(text: str, topology: Topology) -> frozenset[str]:
    """Return the names of a set that `fold` wrote; raises TargetError for any other text and for unknown names."""
    if text in topology:
        return frozenset((text,))
    _check_ranges(text)
    return frozenset(name for names in _split(text) for name in _spell(names, topology))


def spell(text: str) -> frozenset[str]:
    """Return the names of a set that `fold` wrote, for who does not know the tree. Raises TargetError."""
    if "[" not in text:
        return frozenset(text.split(",")) if text else frozenset()
    _check_ranges(text)
    names = (name for names in _split(text) for name in _expand(names))
    found = frozenset(islice(names, MAX_RANGE))
    if next(names, None) is not None:
        raise TargetError(f"the set {_quote(text)} has more than {MAX_RANGE} names")
    return found


def _term(text: str, topology: Topology, here: str) -> frozenset[str]:
    first, *others = (_operand(part.strip(), topology, here) for part in text.split("&"))
    return first.intersection(*others)


def _operand(text: str, topology: Topology, here: str) -> frozenset[str]:
    if text.endswith("/"):
        return _union(map(topology.subtree, _nodes(text[:-1], topology, here)))
    return _nodes(text, topology, here)


def _nodes(text: str, topology: Topology, here: str) -> frozenset[str]:
    if text == "*":
        return topology.subtree(topology.root)
    if text.startswith("@"):
        return _tagged(text[1:], topology)
    if "*" in text and "[" not in text:
        return _glob(text, topology)
    return frozenset(_spell(here if text == "." else text, topology))


def _tagged(tag: str, topology: Topology) -> frozenset[str]:
    if tag not in topology.tags:
        raise TargetError(f"no node has the tag {_quote(tag)}{_hint(tag, topology.tags)}")
    return topology.tagged(tag)


def _glob(pattern: str, topology: Topology) -> frozenset[str]:
    found = frozenset(name for name in topology.names if fnmatchcase(name, pattern))
    if not found:
        raise TargetError(f"no node's name matches {_quote(pattern)}")
    return found


def _spell(text: str, topology: Topology) -> Iterator[str]:
    """Yield the names that a name or a folded name stands for, up to the first that is no node."""
    for name in _expand(text):
        if name not in topology:
            raise _stranger(name, topology)
        yield name


def _expand(text: str) -> Iterator[str]:
    """Return the names that a name or a folded name stands for, known or not."""
    pieces = _BRACKETS.split(text)  # text, range, text, range ... text
    try:
        choices = [RangeSet(piece) if place % 2 else (piece,) for place, piece in enumerate(pieces)]
    except RangeSetException as error:
        raise TargetError(f"cannot read {_quote(text)}: {str(error)[:80]}") from error
    return map("".join, product(*choices))


def _stranger(name: str, topology: Topology) -> TargetError:
    """Return the error for what should be a name and is none: malformed, or just unknown."""
    if not name:
        return TargetError("a term of the target is empty; remove the stray comma or operator")
    if "[" in name or "]" in name:
        return TargetError(f"cannot read {_quote(name)}; a range is written as in node[1-4,7]")
    if "!" in name:
        return TargetError(f"cannot read {_quote(name)}; '!' opens a term: write 'a,!b' for a without b")
    return TargetError(f"no node named {_quote(name)}{_hint(name, topology.names)}")


def _split(text: str) -> Iterator[str]:
    """Yield what is between the commas outside of brackets."""
    start, inside = 0, False
    for mark in re.finditer(r"[\[\],]", text):
        if mark[0] != ",":
            inside = mark[0] == "["
        elif not inside:
            yield text[start : mark.start()]
            start = mark.end()
    yield text[start:]


def _check_ranges(text: str) -> None:
    """Refuse ranges that would fill the memory before the first unknown name is met."""
    spans = (span for brackets in _BRACKETS.findall(text) for span in _SPAN.findall(brackets))
    if (size := sum(int(last) - int(first) for first, last in spans)) > MAX_RANGE:
        raise TargetError(f"the ranges of target {_quote(text)} span {size} numbers, more than {MAX_RANGE}")


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*sets)


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _hint(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # only for people who mistyped: it takes longer to load than this module

    return "".join(f"; did you mean {near!r}?" for near in get_close_matches(word[:80], known, 1))
