"""The directory: entries that merge in any order, and what is derived from them (protocol section 6)."""

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st
from strategies import topologies

from tsbus.core.directory import HERE, UPWARD, Directory, NodeState
from tsbus.core.message import Entry
from tsbus.core.tree import Topology

#      a
#    b   c
#   d
SMALL = Topology({"a": ["b", "c"], "b": ["d"], "c": [], "d": []})

entries = st.builds(
    Entry,
    node=st.sampled_from(["b", "c", "d", "stranger"]),
    epoch=st.integers(1, 3),
    rev=st.integers(0, 2),
    state=st.sampled_from([1, 2, 3]),
    parent=st.sampled_from(["", "a", "b"]),
    incarnation=st.integers(0, 1),
    cause=st.sampled_from(["joined", "moved", "closed"]),
    time_ms=st.integers(0, 1),
)


def directory_of(me="a", start_ms=1000, incarnation=1):
    return Directory(SMALL, me, incarnation, start_ms)


def merged(*batches):
    directory = directory_of()
    for batch in batches:
        directory.merge(batch)
    return directory.entries


@given(st.lists(entries, max_size=4))
def test_merging_is_commutative(batch):
    """The order in which a router hears of entries does not matter."""
    assert all(merged(order) == merged(batch) for order in permutations(batch))


@given(st.lists(entries), st.lists(entries))
def test_merging_is_associative(one, two):
    """Entries may be passed on one by one or together, and by a router that had merged them before."""
    between = directory_of()
    between.merge(one)
    between.merge(two)
    assert merged(between.all_entries()) == merged(one, two) == merged(one + two)


@given(st.lists(entries))
def test_merging_is_idempotent(batch):
    """Entries that were heard before are no news."""
    directory = directory_of()
    directory.merge(batch)
    before = dict(directory.entries)
    assert directory.merge(batch) == []
    assert directory.entries == before


@given(st.lists(entries))
def test_news_is_all_that_others_need(batch):
    """A router that gets only the news knows the same."""
    directory = directory_of()
    assert merged(directory.merge(batch)) == merged(batch)


def test_strangers_are_no_news():
    """An entry of a node that the configuration does not have is left out."""
    assert directory_of().merge([Entry("stranger", 1, 0, 1, "a", 1, "joined", 0)]) == []


def test_a_restart_with_the_clock_set_back_outbids_the_past():
    """A node of which others know a later epoch than its clock gives takes the one after (protocol 6.2)."""
    others, reborn = directory_of("a"), directory_of("b", start_ms=500, incarnation=2)
    others.merge([Entry("b", 9000, 3, NodeState.UP, "a", 1, "joined", 0)])
    news = reborn.merge(others.all_entries())
    mine = next(entry for entry in news if entry.node == "b")
    assert (mine.epoch, mine.incarnation, mine.parent) == (9001, 2, "")
    assert others.merge([mine]) == [mine]


def test_a_restart_into_the_same_epoch_outbids_it():
    """Another process of this node that had the very same epoch is outbid as well."""
    reborn = directory_of("b", start_ms=500, incarnation=2)
    reborn.merge([Entry("b", 500, 3, NodeState.LOST, "a", 1, "closed", 0)])
    assert (reborn.entries["b"].epoch, reborn.entries["b"].incarnation) == (501, 2)


def test_the_word_of_the_parent_end_is_taken_over():
    """Within its own epoch a node takes what its parent noted, so that its next change is newer than that."""
    directory = directory_of("b")
    epoch = directory.attach("a", "joined", 0).epoch
    directory.merge([Entry("b", epoch, 2, NodeState.UP, "a", 1, "joined", 5)])
    change = directory.change("b", NodeState.LOST, "closed", 6)
    assert change is not None
    assert (change.epoch, change.rev) == (epoch, 3)


def test_a_lost_node_is_not_torpid():
    """No change is noted where there is none, and who is lost does not become torpid."""
    directory = directory_of()
    directory.merge([Entry("b", 1, 0, NodeState.UP, "a", 1, "joined", 0)])
    assert directory.change("b", NodeState.UP, "joined", 0) is None
    assert directory.change("b", NodeState.LOST, "closed", 0) is not None
    assert directory.change("b", NodeState.TORPID, "silent", 0) is None


def test_a_new_configuration_keeps_what_is_known():
    """Nodes that stay keep their entry, new ones have not been seen, removed ones are forgotten."""
    directory = directory_of()
    directory.merge([Entry("b", 1, 0, NodeState.UP, "a", 1, "joined", 0)])
    directory.replace_topology(Topology({"a": ["b"], "b": ["e"], "e": []}))
    assert set(directory.entries) == {"a", "b", "e"}
    assert directory.entries["b"].epoch == 1
    assert directory.entries["e"].cause == "never"
    assert directory.reachable == {"a", "b"}


def test_circles_end():
    """Stale entries that claim a circle of parents do not hang a router."""
    directory = directory_of("a")
    directory.merge([Entry("b", 1, 0, 1, "d", 1, "joined", 0), Entry("d", 1, 0, 1, "b", 1, "joined", 0)])
    assert directory.reachable == {"a"}
    assert directory.way("d") == UPWARD
    assert directory.below("b") == {"b", "d"}


# Any history ----------------------------------------------------------------------------------------------------------


class World:
    """Bare directories of a tree, the links there really are, and entries under way in any order."""

    def __init__(self, topology, data):
        self.topology, self.data = topology, data
        self.now = 1_000_000
        self.starts = 0
        self.parent = {}
        self.under_way = []
        self.directories = {}
        for name in topology.names:
            self.restart(name)

    def restart(self, name):
        """A process ends and begins again, with a wall clock that may have been set back."""
        for child in [child for child, parent in self.parent.items() if parent == name]:
            self.lose(child)
        if name in self.parent:
            self.lose(name)
        self.starts += 1
        start_ms = self.now - self.data.draw(st.integers(0, 100_000))
        self.directories[name] = Directory(self.topology, name, self.starts, start_ms)

    def lose(self, child):
        """Both ends of a link notice its end."""
        parent = self.parent.pop(child)
        for here, cause in ((parent, "closed"), (child, "bye")):
            entry = self.directories[here].change(child, NodeState.LOST, cause, self.now)
            self.flood(here, [entry] if entry else [])

    def attach(self, child, parent):
        """A link begins: both sides exchange all they know, and pass on what is news."""
        if child in self.parent:
            self.lose(child)
        self.parent[child] = parent
        above, below = self.directories[parent], self.directories[child]
        known = above.all_entries()
        own = below.attach(parent, "joined", self.now)
        self.flood(child, [own])
        self.learn(parent, below.all_entries())
        self.learn(child, known)

    def learn(self, name, news):
        directory = self.directories[name]
        fresh = directory.merge(news)
        disowned = [
            directory.change(entry.node, NodeState.LOST, "closed", self.now)
            for entry in fresh
            if entry.parent == name and self.parent.get(entry.node) != name
        ]
        self.flood(name, fresh + [entry for entry in disowned if entry])

    def flood(self, name, news):
        """Put news on all links of a node; they arrive in any order."""
        if news:
            near = [child for child, parent in self.parent.items() if parent == name]
            near += [self.parent[name]] if name in self.parent else []
            self.under_way += [(name, other, news) for other in near]

    def deliver_one(self):
        place = self.data.draw(st.integers(0, len(self.under_way) - 1))
        sender, receiver, news = self.under_way.pop(place)
        if self.parent.get(sender) == receiver or self.parent.get(receiver) == sender:
            self.learn(receiver, news)

    def component(self, name):
        found, todo = {name}, [name]
        for here in todo:
            near = {child for child, parent in self.parent.items() if parent == here} | {self.parent.get(here, here)}
            todo += near - found
            found |= near
        return found


@given(topologies(max_size=6), st.data())
def test_any_history_ends_in_agreement(topology, data):
    """After any links, losses, moves and restarts, flooded in any order, each component agrees on who is in it."""
    world = World(topology, data)
    for _ in range(data.draw(st.integers(1, 12))):
        world.now += data.draw(st.integers(0, 10_000))
        name = data.draw(st.sampled_from(topology.names))
        act = data.draw(st.sampled_from(["attach", "attach", "attach", "lose", "restart"]))
        if act == "restart":
            world.restart(name)
        elif act == "lose" and name in world.parent:
            world.lose(name)
        elif act == "attach" and topology.ancestors(name):
            parent = data.draw(st.sampled_from(topology.ancestors(name)))
            if parent not in world.component(name) or world.parent.get(name):
                world.attach(name, parent)
        for _ in range(min(len(world.under_way), data.draw(st.integers(0, 6)))):
            world.deliver_one()
    while world.under_way:
        world.deliver_one()
    for name, directory in world.directories.items():
        component = world.component(name)
        assert directory.reachable == component
        for other in component:
            assert world.directories[other].entries[other] == directory.entries[other]
        check_ways(world, name)


def check_ways(world, name):
    """Each reachable node lies the way of the link that leads to it."""
    directory = world.directories[name]
    for other in directory.reachable:
        here = other
        while here != name and world.parent.get(here) not in (None, name):
            here = world.parent[here]
        leads_down = world.parent.get(here) == name and here != name
        assert directory.way(other) == (HERE if other == name else here if leads_down else UPWARD)
