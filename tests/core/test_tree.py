"""The configured tree, and the rule by which the living close the gaps of the dead."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import topologies, trees_and_living

from tsbus.core.tree import Topology, acting_root, adopter, may_hang, wanted_dials

#            top
#     a       b      c
#   a1 a2     b1
#   a11
SMALL = Topology(
    {"top": ["a", "b", "c"], "a": ["a1", "a2"], "a1": ["a11"], "b": ["b1"], "c": [], "a2": [], "a11": [], "b1": []},
    {"a": ["web"], "b1": ["web", "eu"]},
)


def alive_but(*dead):
    return lambda name: name not in dead


def test_reading_the_tree():
    """Each question about the small tree has the answer that its drawing shows."""
    assert SMALL.root == "top"
    assert SMALL.names == ("top", "a", "a1", "b", "c", "a2", "a11", "b1")
    assert SMALL.parent("a11") == "a1"
    assert SMALL.parent("top") is None
    assert SMALL.children("a") == ("a1", "a2")
    assert SMALL.ancestors("a11") == ("a1", "a", "top")
    assert SMALL.subtree("a") == {"a", "a1", "a2", "a11"}
    assert SMALL.is_ancestor("a", "a11")
    assert not SMALL.is_ancestor("a", "a")
    assert not SMALL.is_ancestor("a11", "a")
    assert (SMALL.depth("top"), SMALL.depth("a11")) == (0, 3)
    assert SMALL.tagged("web") == {"a", "b1"}
    assert SMALL.tagged("nobody") == frozenset()
    assert SMALL.tags == {"web", "eu"}
    assert len(SMALL) == 8
    assert "a11" in SMALL
    assert "a12" not in SMALL


def test_undefined_children_are_left_out():
    """A child that the configuration does not define is no node of the tree."""
    assert Topology({"a": ["b", "ghost"], "b": []}).children("a") == ("b",)


@pytest.mark.parametrize("question", ["parent", "children", "ancestors", "subtree", "depth"])
def test_unknown_names(question):
    """A question about a name that the tree does not have raises KeyError."""
    with pytest.raises(KeyError, match="ghost"):
        getattr(SMALL, question)("ghost")


@pytest.mark.parametrize(
    ("children", "tags", "says"),
    [
        ({}, {}, "found none"),
        ({"a": [], "b": []}, {}, "found a, b"),
        ({"a": ["b"], "b": ["a"]}, {}, "found none"),
        ({"a": ["a"]}, {}, "found none"),
        ({"a": [], "b": ["c"], "c": ["b"]}, {}, "a cycle: b, c cannot be reached from the root a"),
        ({"a": ["b", "c"], "b": ["c"], "c": []}, {}, "c is a child of a and again of b"),
        ({"a": ["b", "b"], "b": []}, {}, "b is a child of a and again of a"),
        ({"a": []}, {"ghost": ["web"]}, "tags of nodes that are not in the tree: ghost"),
    ],
)
def test_what_is_no_tree(children, tags, says):
    """What is not one tree is refused and the culprit named."""
    with pytest.raises(ValueError, match=says):
        Topology(children, tags)


@given(topologies(), st.data())
def test_relations_agree(topology, data):
    """Parents, ancestors, subtrees and depths of any tree tell the same story."""
    start = data.draw(st.sampled_from(topology.names))
    assert topology.subtree(start) == {n for n in topology.names if n == start or topology.is_ancestor(start, n)}
    line = (start, *topology.ancestors(start))
    assert line[-1] == topology.root
    assert topology.depth(start) == len(line) - 1
    assert all(one in topology.children(two) for one, two in pairwise(line))


@pytest.mark.parametrize(
    ("node", "dead", "dialler"),
    [
        ("a1", "", "a"),  # nobody is dead: the configured parent
        ("a1", "a", "top"),
        ("a11", "a1 a", "top"),
        ("a11", "a1", "a"),
        ("top", "", None),
        ("top", "top", None),  # a dead root dials when it is back
        ("b", "top", "a"),  # the first living child of the root dials its siblings
        ("a", "top", None),  # and is dialled by nobody
        ("c", "top a", "b"),
        ("a1", "top a", "b"),  # no living ancestor up to the root
        ("a1", "top b", "a"),
        ("a", "top a", "b"),  # dead itself: dialled so that it is found when it comes back
        ("a2", "top a b c", None),  # no child of the root lives: those below stay apart
        ("a11", "top a b c", "a1"),  # with what lives below them
    ],
)
def test_adopter(node, dead, dialler):
    """The nearest living ancestor dials a node, or else the acting root."""
    assert adopter(SMALL, node, alive_but(*dead.split())) == dialler


def test_parents_that_a_node_may_have():
    """An ancestor, or a child of the root, which for another child of the root comes before it (4.4)."""
    parents = {node: {name for name in (*SMALL.names, "ghost") if may_hang(SMALL, node, name)} for node in SMALL.names}
    assert parents["top"] == set()
    assert parents["a"] == {"top"}
    assert parents["c"] == {"top", "a", "b"}
    assert parents["b1"] == {"top", "a", "b", "c"}
    assert parents["a11"] == {"top", "a", "a1", "b", "c"}


@given(trees_and_living())
def test_who_dials_may_do_so(case):
    """Whoever the rule lets dial a living node is one that the node accepts as its parent."""
    topology, living = case
    for node in living:
        dialler = adopter(topology, node, living.__contains__)
        assert dialler is None or may_hang(topology, node, dialler)


def test_wanted_dials_of_the_small_tree():
    """A node dials its children, dead or alive, and the orphans whose adopter it is."""
    assert wanted_dials(SMALL, "top", alive_but()) == {"a", "b", "c"}
    assert wanted_dials(SMALL, "top", alive_but("a")) == {"a", "b", "c", "a1", "a2"}
    assert wanted_dials(SMALL, "a", alive_but("a1", "top")) == {"a1", "a2", "a11", "b", "c"}
    assert wanted_dials(SMALL, "b", alive_but("a", "top")) == {"b1", "a", "c", "a1", "a2"}
    assert wanted_dials(SMALL, "c", alive_but()) == frozenset()


@given(trees_and_living())
def test_the_living_form_one_tree(case):
    """While the root or a child of it lives, all the living but one have exactly one living dialler, in one tree."""
    topology, living = case
    diallers = {name: [n for n in living if name in wanted_dials(topology, n, living.__contains__)] for name in living}
    assert all(len(found) <= 1 for found in diallers.values())
    tops = {name for name, found in diallers.items() if not found}
    if (top := acting_root(topology, living.__contains__)) is not None:
        assert tops == {top}
    else:  # otherwise each node without a living ancestor stands on its own
        assert tops == {name for name in living if not living.intersection(topology.ancestors(name))}
    for name in living:  # following the diallers up ends at a top: there is no cycle
        above = [name]
        while diallers[above[-1]]:
            above += diallers[above[-1]]
            assert len(above) <= len(living)


@given(trees_and_living())
def test_dials_agree_with_adopters(case):
    """A living node always dials its configured children, and beyond them exactly the nodes whose adopter it is."""
    topology, living = case
    for me in living:
        dials = wanted_dials(topology, me, living.__contains__)
        assert dials.issuperset(topology.children(me))
        assert dials == {n for n in topology.names if adopter(topology, n, living.__contains__) == me}
        assert me not in dials
        assert not dials.intersection(topology.ancestors(me)), "nobody dials upward"


@given(trees_and_living())
def test_dead_nodes_are_looked_for(case):
    """While the root or a child of it lives, every dead node but the root is dialled by one of the living."""
    topology, living = case
    dialled = frozenset[str]().union(*(wanted_dials(topology, n, living.__contains__) for n in living))
    if (top := acting_root(topology, living.__contains__)) is not None:
        assert set(topology.names) - dialled == {top, topology.root}


@given(trees_and_living(), st.data())
def test_a_node_takes_itself_as_alive(case, data):
    """What a node dials does not depend on whether it counts itself among the living."""
    topology, living = case
    me = data.draw(st.sampled_from(topology.names))
    assert wanted_dials(topology, me, living.__contains__) == wanted_dials(topology, me, {*living, me}.__contains__)
