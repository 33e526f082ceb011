"""Interest: what each link is asked for is what section 7.2 of the protocol says, whatever happened before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neighbours import Neighbours
from strategies import patterns, topics, topologies

from tsbus.core.directory import UPWARD
from tsbus.core.interest import PART, InterestTable, Local
from tsbus.core.topic import SCOPES, check_scope, matches, overlaps

locals_ = st.builds(Local, st.integers(1, 3), st.sampled_from(SCOPES))
wishes = st.tuples(locals_, patterns)


def changes(table, *ways):
    """What the links must be told, the parts of each put together: (begin, cease)."""
    found = {way: (set(), set()) for way in ways}
    for way, change in table.changes(ways):
        found[way][0].update(change.add)
        found[way][1].update(change.remove)
    return found


@given(topologies(max_size=7), st.data())
def test_each_link_is_asked_for_what_others_want(topology, data):
    """After any subscriptions, links and losses, every router knows exactly what lies behind each link."""
    net = Neighbours(topology)
    for _ in range(data.draw(st.integers(1, 25))):
        name = data.draw(st.sampled_from(topology.names))
        wish = data.draw(wishes)
        if name in net.parent and data.draw(st.booleans()):
            net.lose(name)
        elif name not in net.parent and topology.parent(name) and data.draw(st.booleans()):
            net.attach(name, data.draw(st.sampled_from(topology.ancestors(name))))
        elif wish in net.wishes[name]:
            net.wishes[name].discard(wish)
            assert net.tables[name].remove(*wish)
        else:
            net.wishes[name].add(wish)
            assert net.tables[name].add(*wish)
        net.settle()
    for name, table in net.tables.items():
        for way, other in net.ways(name).items():
            assert table.of(way) == net.wanted(other, UPWARD if way == other else name)


@given(st.lists(wishes, max_size=20), st.lists(wishes, max_size=20))
def test_changes_applied_to_the_last_state_give_the_new_one(before, after):
    """The patterns told in the handshake and the changes since are what a handshake would tell now."""
    table = InterestTable()
    for wish in before:
        table.add(*wish)
    state = {way: set(table.open_link(way)) for way in (UPWARD, "child")}
    for wish in after:
        if not table.add(*wish):
            table.remove(*wish)
    told = changes(table, UPWARD, "child")
    for way, known in state.items():
        begin, cease = told[way]
        assert cease <= known
        assert not begin & known
        assert (known - cease) | begin == set(table.open_link(way))


def test_only_the_first_and_the_last_subscriber_are_told():
    """A pattern that a second subscriber wants, or that one of two no longer wants, is no change."""
    table = InterestTable()
    table.open_link(UPWARD)
    one, two = Local(1, "all"), Local(2, "all")
    table.add(one, "a")
    assert changes(table, UPWARD) == {UPWARD: ({"a"}, set())}
    assert not table.add(one, "a")
    table.add(two, "a")
    table.remove(one, "a")
    assert changes(table, UPWARD) == {UPWARD: (set(), set())}
    table.remove(two, "a")
    assert not table.remove(two, "a")
    assert changes(table, UPWARD) == {UPWARD: (set(), {"a"})}


def test_a_wish_of_a_moment_is_not_told():
    """A subscription that came and went between two rounds crosses no link."""
    table = InterestTable()
    table.open_link(UPWARD)
    table.add(Local(1, "all"), "a")
    table.remove(Local(1, "all"), "a")
    assert list(table.changes([UPWARD])) == []


def test_scopes_end_where_they_say():
    """A subtree subscription is asked of children only, a node's own of nobody."""
    table = InterestTable()
    for scope in SCOPES:
        table.add(Local(1, scope), scope)
    assert set(table.open_link(UPWARD)) == {"all"}
    assert set(table.open_link("child")) == {"all", "subtree"}


def test_changes_wait_for_a_link_that_cannot_be_told_yet():
    """What changes for a link that is not asked for stays until it is."""
    table = InterestTable()
    table.open_link("one")
    table.open_link("two")
    table.add(Local(1, "all"), "a")
    assert changes(table, "one") == {"one": ({"a"}, set())}
    assert changes(table, "one", "two") == {"one": (set(), set()), "two": ({"a"}, set())}


def test_more_than_a_handshake_holds_is_told_in_parts():
    """Patterns beyond the bound of one message follow in the next ones, none is lost."""
    table = InterestTable()
    wanted = {f"topic.{number}" for number in range(2 * PART + 10)}
    for pattern in wanted:
        table.add(Local(1, "all"), pattern)
    first = table.open_link(UPWARD)
    parts = [change.add for _, change in table.changes([UPWARD])]
    assert [len(part) for part in (first, *parts)] == [PART, PART, 10]
    assert set(first).union(*parts) == wanted


@given(st.lists(st.tuples(st.one_of(locals_, st.sampled_from([UPWARD, "child"])), patterns)), topics)
def test_match_finds_everybody_who_wants_a_topic(wanted, topic):
    """An event goes to each source that has a matching pattern, once."""
    table = InterestTable()
    for source, pattern in wanted:
        table.add(source, pattern)
    assert table.match(topic) == {source for source, pattern in wanted if matches(pattern, topic)}


@given(st.lists(wishes), patterns)
def test_a_watch_sees_others_only(wanted, pattern):
    """Interest counts if somebody else has a pattern that overlaps (protocol 7.4)."""
    table = InterestTable()
    for wish in wanted:
        table.add(*wish)
    others = [other for local, other in wanted if local.handle != 1]
    assert table.anybody_wants(pattern, but=1) == any(overlaps(pattern, other) for other in others)


@given(st.lists(wishes))
def test_forgetting_everybody_leaves_nothing(wanted):
    """When all sources are forgotten, nothing is wanted and nothing is counted."""
    table = InterestTable()
    table.open_link(UPWARD)
    for wish in wanted:
        table.add(*wish)
    assert table.size == len(set(wanted))
    for source in {source for source, _ in wanted}:
        assert set(table.forget(source)) == {pattern for each, pattern in wanted if each == source}
    assert table.size == 0
    assert table.open_link(UPWARD) == []


def test_a_scope_is_one_of_three():
    """Any other word for a scope is refused with the words there are."""
    assert check_scope("subtree") == "subtree"
    with pytest.raises(ValueError, match="all, subtree, node"):
        check_scope("world")
