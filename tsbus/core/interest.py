"""Interest: who wants which topics, and what each link must therefore be asked for (protocol section 7). Pure."""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from tsbus.core.directory import UPWARD
from tsbus.core.message import Interest
from tsbus.core.topic import PatternMap, Scope, overlaps

PART = 1000
"""Patterns that one HELLO, WELCOME or INTEREST tells at most, so that it stays far below the bounds of a frame."""


class Local(NamedTuple):
    """A local subscriber: the worker's handle and how far it looks."""

    handle: int
    scope: Scope


Source = str | Local
"""Who wants: the way of a link (UPWARD or the child's name) or a local subscriber."""


class InterestTable:
    """All subscriptions a router knows. Links are named by their way: UPWARD, or the child's name."""

    def __init__(self) -> None:
        self._sources: PatternMap[Source] = PatternMap()
        self._patterns: dict[Source, set[str]] = {}
        self._wanted: dict[str, Counter[str]] = {}
        self._pending: dict[str, dict[str, bool]] = {}
        """For each link, the patterns that it must still be told of: True begins to be wanted, False ceases."""
        self.size = 0

    def add(self, source: Source, pattern: str) -> bool:
        """Note that `source` wants `pattern`; False if it did already."""
        patterns = self._patterns.setdefault(source, set())
        if pattern in patterns:
            return False
        patterns.add(pattern)
        self.size += 1
        self._sources.add(pattern, source)
        for way, wanted in self._wanted.items():
            if _counts(source, way):
                wanted[pattern] += 1
                if wanted[pattern] == 1:
                    self._note(way, pattern, wanted=True)
        return True

    def remove(self, source: Source, pattern: str) -> bool:
        """Note that `source` no longer wants `pattern`; False if it did not."""
        patterns = self._patterns.get(source, set())
        if pattern not in patterns:
            return False
        patterns.discard(pattern)
        if not patterns:
            del self._patterns[source]
        self.size -= 1
        self._sources.discard(pattern, source)
        for way, wanted in self._wanted.items():
            if _counts(source, way):
                wanted[pattern] -= 1
                if not wanted[pattern]:
                    del wanted[pattern]
                    self._note(way, pattern, wanted=False)
        return True

    def forget(self, source: Source) -> list[str]:
        """Remove all that `source` wants; returns the patterns."""
        patterns = list(self._patterns.get(source, ()))
        for pattern in patterns:
            self.remove(source, pattern)
        return patterns

    def of(self, source: Source) -> frozenset[str]:
        """Return the patterns that `source` wants."""
        return frozenset(self._patterns.get(source, ()))

    def count(self, source: Source) -> int:
        """Return how many patterns `source` wants."""
        return len(self._patterns.get(source, ()))

    def open_link(self, way: str) -> list[str]:
        """A link begins: return patterns to ask for in the handshake; `changes` tells the others, and what changes."""
        wanted: Counter[str] = Counter()
        for source, patterns in self._patterns.items():
            if _counts(source, way):
                wanted.update(patterns)
        self._wanted[way] = wanted
        ordered = list(wanted)
        self._pending[way] = dict.fromkeys(ordered[PART:], True)
        return ordered[:PART]

    def close_link(self, way: str) -> None:
        """A link ended: what it wanted is forgotten."""
        self._wanted.pop(way, None)
        self._pending.pop(way, None)
        self.forget(way)

    def changes(self, ways: Collection[str]) -> Iterator[tuple[str, Interest]]:
        """Yield, and forget, what the links `ways` must be told (INTEREST); the others' changes wait for them."""
        for way in self._pending.keys() & set(ways):
            changes = list(self._pending.pop(way, {}).items())
            for start in range(0, len(changes), PART):
                interest = Interest([], [])
                for pattern, is_wanted in changes[start : start + PART]:
                    (interest.add if is_wanted else interest.remove).append(pattern)
                yield way, interest

    def match(self, topic: str) -> set[Source]:
        """Return everybody who wants `topic`."""
        return self._sources.match(topic)

    def anybody_wants(self, pattern: str, *, but: int) -> bool:
        """Whether any subscription of others than the worker `but` overlaps `pattern` (protocol 7.4)."""
        return any(
            overlaps(pattern, other)
            for source, patterns in self._patterns.items()
            if not (isinstance(source, Local) and source.handle == but)
            for other in patterns
        )

    def _note(self, way: str, pattern: str, *, wanted: bool) -> None:
        """Collect a change for a link; a change and its opposite cancel out."""
        pending = self._pending.setdefault(way, {})
        if pending.pop(pattern, None) is None:
            pending[pattern] = wanted


def _counts(source: Source, way: str) -> bool:
    """Whether what `source` wants must be asked for over the link `way` (protocol 7.2)."""
    if isinstance(source, Local):
        return source.scope == "all" or (source.scope == "subtree" and way != UPWARD)
    return source != way
