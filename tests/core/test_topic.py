"""Topics, patterns and the map from patterns to values, each against its definition spelled out naively."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import patterns, topics

from tsbus.core.topic import PatternMap, TopicError, check_pattern, check_topic, matches, overlaps

ALL_TOPICS = [".".join(tokens) for size in range(1, 6) for tokens in itertools.product("abc", repeat=size)]
"""Every topic of up to five tokens from an alphabet with a letter (c) that no generated pattern spells out."""


def defined_match(pattern: str, topic: str) -> bool:
    """The definition: `*` is one token, a last `>` one or more."""
    spelled = re.escape(pattern).replace(r"\*", r"[^.]+").replace(">", r"[^.]+(\.[^.]+)*")
    return re.fullmatch(spelled, topic) is not None


@pytest.mark.parametrize("topic", ["a", "container.web.died", "a.b-c_d.9", "größe.ok", "x" * 256, ".".join("a" * 16)])
def test_valid_topics(topic):
    """A topic of at most 16 printable tokens and 256 bytes is accepted, and is also a pattern."""
    check_topic(topic)
    check_pattern(topic)


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("", "token 1: it is empty"),
        ("a..b", "token 2: it is empty"),
        ("a.", "token 2: it is empty"),
        ("a.b c", "token 2: leave out ' '"),
        ("a.b\n", r"token 2: leave out '\n'"),
        ("a\x00", r"token 1: leave out '\x00'"),
        ("a.\udc80", r"token 2: leave out '\udc80'"),
        ("a\u00a0b", r"token 1: leave out '\xa0'"),
        ("ä" * 129, "258 bytes long; use at most 256"),
        (".".join("a" * 17), "17 tokens; use at most 16"),
    ],
)
def test_malformed_topics(topic, says):
    """A malformed topic or pattern is refused with the place and the mend."""
    for check in (check_topic, check_pattern):
        with pytest.raises(TopicError, match=re.escape(says)):
            check(topic)


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "*.b.>", "*.*"])
def test_valid_patterns(pattern):
    """A pattern with wildcards may be subscribed to but not published to."""
    check_pattern(pattern)
    with pytest.raises(TopicError, match="has a wildcard"):
        check_topic(pattern)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("a.>.b", "token 2: '>' stands for all"), ("a.b*", "token 2: 'b*' mixes"), ("a>", "mixes"), ("**", "mixes")],
)
def test_malformed_patterns(pattern, says):
    """A wildcard inside a token, or a `>` that is not last, is refused with its place."""
    with pytest.raises(TopicError, match=re.escape(says)):
        check_pattern(pattern)


@given(patterns, topics)
def test_match_is_as_defined(pattern, topic):
    """A pattern selects a topic exactly when the definition says so."""
    assert matches(pattern, topic) == defined_match(pattern, topic)


@given(patterns, patterns | topics)
def test_overlap_is_as_defined(pattern, other):
    """Two patterns overlap exactly when some topic is selected by both, whichever is named first."""
    common = any(defined_match(pattern, topic) and defined_match(other, topic) for topic in ALL_TOPICS)
    assert overlaps(pattern, other) == overlaps(other, pattern) == common


@given(st.lists(st.tuples(st.booleans(), patterns | topics, st.integers(0, 3))), topics)
def test_map_is_as_defined(changes, topic):
    """After any adds and discards the map finds, counts and lists what a plain set of pairs does."""
    pairs: set[tuple[str, int]] = set()
    found: PatternMap[int] = PatternMap()
    for adds, pattern, value in changes:
        (found.add if adds else found.discard)(pattern, value)
        (pairs.add if adds else pairs.discard)((pattern, value))
    assert found.match(topic) == {value for pattern, value in pairs if defined_match(pattern, topic)}
    assert found.patterns() == {pattern for pattern, _ in pairs}
    assert len(found) == len(found.patterns())
    for pattern, value in pairs:
        assert value in found.values(pattern)
    for pattern, value in pairs:
        found.discard(pattern, value)
    assert not found._first.following, "an empty map keeps no step of its past"


def test_map_does_not_slow_with_patterns():
    """A match among 10,000 patterns looks only at steps along the topic, not at the patterns."""
    found: PatternMap[int] = PatternMap()
    for number in range(10_000):
        found.add(f"container.c{number}.*", number)
    looked_up = []

    class Spy(dict):
        def __contains__(self, key):
            looked_up.append(key)
            return super().__contains__(key)

    found._first.following["container"].following = Spy(found._first.following["container"].following)
    assert found.match("container.c77.died") == {77}
    assert len(looked_up) == 2


def test_found_values_are_the_callers():
    """Changing the result of a match leaves the map as it was."""
    found: PatternMap[int] = PatternMap()
    found.add("a", 1)
    found.match("a").clear()
    assert found.match("a") == {1}
