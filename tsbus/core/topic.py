"""Topics: what an event is about, the patterns that select topics, and a map from patterns to values.

A topic is tokens joined by dots (`container.web.died`). In a pattern, the token `*` stands for exactly one token and a
last `>` for one or more. Clients check what the user typed; the router keeps who wants what in a `PatternMap`.
"""

from typing import Final, Generic, Literal, TypeVar

MAX_BYTES = 256
MAX_TOKENS = 16
ONE = "*"
REST = ">"
Scope = Literal["all", "subtree", "node"]
SCOPES: Final[tuple[Scope, ...]] = ("all", "subtree", "node")
"""Whose events a subscription wants: everybody's, those of this node and below, or this node's own."""

T = TypeVar("T")


class TopicError(ValueError):
    """The caller's topic or pattern is malformed; the text says where and how to mend it."""


def check_topic(topic: str) -> None:
    """Raise TopicError unless `topic` may be published to."""
    for place, token in enumerate(_tokens("topic", topic), 1):
        if ONE in token or REST in token:
            raise TopicError(
                f"topic {topic!r}, token {place}: {token!r} has a wildcard; only a subscription's pattern may have one"
            )


def check_pattern(pattern: str) -> None:
    """Raise TopicError unless `pattern` may be subscribed to. Every valid topic is also a valid pattern."""
    tokens = _tokens("pattern", pattern)
    for place, token in enumerate(tokens, 1):
        where = f"pattern {pattern!r}, token {place}"
        if token == REST:
            if place < len(tokens):
                raise TopicError(f"{where}: {REST!r} stands for all the rest; put it last, or write {ONE!r}")
        elif token != ONE and (ONE in token or REST in token):
            raise TopicError(f"{where}: {token!r} mixes a wildcard with text; a wildcard stands for a whole token")


def check_scope(text: str) -> Scope:
    """Return `text` as a scope. Raises ValueError."""
    if text not in SCOPES:
        raise ValueError(f"no scope {text!r}; the scopes are {', '.join(SCOPES)}")
    return text


def _tokens(kind: str, text: str) -> list[str]:
    """Return the tokens of a topic or pattern after the checks that both share."""
    # First, so that no error has to quote a long text; surrogates are told as unprintable below.
    if (size := len(text.encode(errors="surrogatepass"))) > MAX_BYTES:
        raise TopicError(f"{kind} {text[:40] + '...'!r}: {size} bytes long; use at most {MAX_BYTES}")
    tokens = text.split(".")
    for place, token in enumerate(tokens, 1):
        if not token:
            raise TopicError(f"{kind} {text!r}, token {place}: it is empty; write tokens joined by single dots")
        bad = next((char for char in token if char == " " or not char.isprintable()), None)
        if bad is not None:
            raise TopicError(f"{kind} {text!r}, token {place}: leave out {bad!r}; use printable characters, no spaces")
    if len(tokens) > MAX_TOKENS:
        raise TopicError(f"{kind} {text!r}: {len(tokens)} tokens; use at most {MAX_TOKENS}")
    return tokens


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a valid `pattern` selects a valid `topic`."""
    return overlaps(pattern, topic)


def overlaps(pattern: str, other: str) -> bool:
    """Tell whether some topic is selected by both `pattern` and `other`: two valid patterns or topics."""
    tokens, others = pattern.split("."), other.split(".")
    for one, two in zip(tokens, others, strict=False):
        if REST in (one, two):
            return True
        if one != two and ONE not in (one, two):
            return False
    return len(tokens) == len(others)


class _Step(Generic[T]):
    """One token deep into the patterns: the patterns that go on from here and the values of the one that ends here."""

    __slots__ = ("following", "values")

    def __init__(self) -> None:
        self.following: dict[str, _Step[T]] = {}
        self.values: set[T] = set()


class PatternMap(Generic[T]):
    """A map from patterns to sets of values; `match` walks it token by token, whatever the number of patterns.

    Patterns and topics must be valid: check them where they come in.
    """

    def __init__(self) -> None:
        self._first: _Step[T] = _Step()
        self._values: dict[str, set[T]] = {}

    def __len__(self) -> int:
        """Return how many patterns have a value."""
        return len(self._values)

    def patterns(self) -> frozenset[str]:
        """Return the patterns that have a value."""
        return frozenset(self._values)

    def values(self, pattern: str) -> frozenset[T]:
        """Return what `pattern` itself maps to, which is nothing for a pattern that was not added."""
        return frozenset(self._values.get(pattern, ()))

    def add(self, pattern: str, value: T) -> None:
        """Let `pattern` map to `value` also; adding the same pair again changes nothing."""
        step = self._first
        for token in pattern.split("."):
            step = step.following.setdefault(token, _Step())
        step.values.add(value)
        self._values[pattern] = step.values

    def discard(self, pattern: str, value: T) -> None:
        """Take back one `add`; a pair that is not there changes nothing."""
        values = self._values.get(pattern, set())
        values.discard(value)
        if not values and self._values.pop(pattern, None) is not None:
            self._prune(pattern)

    def _prune(self, pattern: str) -> None:
        """Forget the steps that only the now empty `pattern` needed."""
        trail = []
        step = self._first
        for token in pattern.split("."):
            trail.append((step, token))
            step = step.following[token]
        for before, token in reversed(trail):
            if step.following or step.values:
                return
            del before.following[token]
            step = before

    def match(self, topic: str) -> set[T]:
        """Return the values of all patterns that select `topic`."""
        found: set[T] = set()
        steps = [self._first]
        for token in topic.split("."):
            reached = []
            for step in steps:
                following = step.following
                if (rest := following.get(REST)) is not None:
                    found |= rest.values
                reached += [following[key] for key in (token, ONE) if key in following]
            steps = reached
        for step in steps:
            found |= step.values
        return found
