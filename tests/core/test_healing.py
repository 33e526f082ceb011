"""Self-healing: who dials whom, and when (protocol section 8.5)."""

from hypothesis import given
from hypothesis import strategies as st
from strategies import topologies, trees_and_living

from tsbus.core.healing import NEVER_SEEN_FACTOR, Healing
from tsbus.core.tree import Topology, adopter

PATIENCE = 1000
FOREVER = 1_000_000

#       top
#    a   b   c
#   a1   b1
#  a11
SMALL = Topology({"top": ["a", "b", "c"], "a": ["a1"], "a1": ["a11"], "b": ["b1"], "c": [], "a11": [], "b1": []})


def healing(me, *dead, topology=SMALL, since=0):
    """The healing of a node that has seen everybody, and then these nodes die."""
    found = Healing(topology, me, PATIENCE, since)
    found.note(frozenset(topology.names), since)
    found.note(frozenset(topology.names) - set(dead), since)
    return found


@given(trees_and_living(), st.integers(0, FOREVER))
def test_children_are_always_dialled(tree_and_living, now):
    """Whoever is dead and whatever the time, a node dials its own children."""
    topology, living = tree_and_living
    for me in living:
        assert healing(me, *(set(topology.names) - living), topology=topology).dials(now) >= set(topology.children(me))


@given(trees_and_living())
def test_in_the_end_each_living_node_has_one_dialler(tree_and_living):
    """When all patience is over, every living node is dialled by exactly the one the rule names, or nobody should."""
    topology, living = tree_and_living
    dials = {me: healing(me, *(set(topology.names) - living), topology=topology).dials(FOREVER) for me in living}
    for node in living:
        diallers = [me for me, nodes in dials.items() if node in nodes]
        wanted = adopter(topology, node, living.__contains__)
        assert diallers == ([wanted] if wanted is not None else [])


@given(topologies(), st.data())
def test_nothing_is_dialled_before_its_patience(topology, data):
    """Whatever happened, a node that is no child is dialled only after its parent was away for the patience."""
    me = data.draw(st.sampled_from(topology.names))
    heal, now, away = Healing(topology, me, PATIENCE, 0), 0, dict.fromkeys(topology.names, 0)
    seen = {me}
    for step, present in data.draw(
        st.lists(st.tuples(st.integers(0, 5000), st.frozensets(st.sampled_from(topology.names))), max_size=8)
    ):
        now += step
        present |= {me}
        seen |= present
        away = {name: away.get(name, now) for name in topology.names if name not in present}
        heal.note(present, now)
        for node in heal.dials(now) - set(topology.children(me)):
            parent = topology.parent(node)
            assert parent in away, "only orphans are adopted"
            assert now - away[parent] >= PATIENCE * (1 if parent in seen else NEVER_SEEN_FACTOR)


@given(trees_and_living(), st.integers(0, 20 * PATIENCE))
def test_two_ancestors_never_adopt_the_same_node(tree_and_living, now):
    """At no time do two ancestors that see the same adopt one node."""
    topology, living = tree_and_living
    dials = {me: healing(me, *(set(topology.names) - living), topology=topology).dials(now) for me in living}
    for node in topology.names:
        adopters = [me for me in topology.ancestors(node)[1:] if me in living and node in dials[me]]
        assert len(adopters) <= 1


def test_a_restart_is_waited_for():
    """A parent that is away for a moment loses no child."""
    heal = healing("top", "a")
    assert heal.dials(PATIENCE - 1) == {"a", "b", "c"}
    assert heal.dials(PATIENCE) == {"a", "b", "c", "a1"}
    heal.note(frozenset(SMALL.names), PATIENCE + 1)
    assert heal.dials(PATIENCE + 1) == {"a", "b", "c"}


def test_each_generation_gets_its_own_patience():
    """Two dead generations: the grandchild is dialled only when its parent had its time to be adopted."""
    heal = healing("top", "a", "a1")
    assert "a1" in heal.dials(PATIENCE)
    assert "a11" not in heal.dials(2 * PATIENCE - 1)
    assert "a11" in heal.dials(2 * PATIENCE)


def test_the_first_child_stands_in_for_the_root():
    """When the root is dead, its first child dials the others; they wait longer and find themselves dialled."""
    assert healing("a", "top").dials(PATIENCE) == {"a1", "b", "c"}
    assert healing("b", "top").dials(FOREVER) == {"b1"}


def test_the_second_child_stands_in_when_the_first_is_dead_too():
    """Root and first child dead: the second child takes over after one round more, and adopts the first's children."""
    heal = healing("b", "top", "a")
    assert heal.dials(2 * PATIENCE - 1) == {"b1"}
    assert heal.dials(2 * PATIENCE) == {"b1", "a", "a1", "c"}


def test_who_was_never_seen_is_waited_for_longer():
    """A whole tree is slow to come up: a node never seen gets ten times the patience, from the process' start."""
    heal = Healing(SMALL, "top", PATIENCE, 0)
    heal.note(frozenset(["top", "b", "c", "b1"]), 50)
    assert heal.dials(NEVER_SEEN_FACTOR * PATIENCE - 1) == {"a", "b", "c"}
    assert "a1" in heal.dials(NEVER_SEEN_FACTOR * PATIENCE)


def test_a_node_that_saw_nobody_adopts_too():
    """Absence counts without any news, because a node whose neighbours are all dead hears none."""
    assert Healing(SMALL, "top", PATIENCE, 0).dials(3 * NEVER_SEEN_FACTOR * PATIENCE) >= {"a1", "a11", "b1"}
