"""Routing: one decision for each hop, and what they come to in any tree (protocol sections 5, 7 and 10)."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neighbours import Neighbours
from strategies import Draw, patterns, topics, topologies

from tsbus.core.directory import HERE, UPWARD
from tsbus.core.interest import Local
from tsbus.core.message import Route, Type
from tsbus.core.roles import Role
from tsbus.core.routing import Drop, Paths, Routing
from tsbus.core.target import fold, resolve
from tsbus.core.topic import SCOPES, matches
from tsbus.core.tree import Topology


@st.composite
def networks(draw: Draw) -> Neighbours:
    """Any tree, any nodes of it attached to any of their ancestors or lost, any subscriptions."""
    net = Neighbours(draw(topologies(max_size=6)))
    for name in net.topology.names:
        for number in range(draw(st.integers(0, 2))):
            for scope, pattern in draw(st.lists(st.tuples(st.sampled_from(SCOPES), patterns), max_size=2)):
                net.wishes[name].add((Local(number + 1, scope), pattern))
                net.tables[name].add(Local(number + 1, scope), pattern)
    for name in net.topology.names:
        above = net.topology.ancestors(name)
        parent = draw(st.sampled_from((*above[:1], *above, None)))
        if parent is not None:
            net.attach(name, parent)
    return net


@st.composite
def targets(draw: Draw, topology: Topology) -> str:
    """Something that selects at least one node."""
    name = draw(st.sampled_from(topology.names))
    some = draw(st.frozensets(st.sampled_from(topology.names), min_size=1))
    return draw(st.sampled_from(["*", ".", name, f"{name}/", fold(some)]))


class Walk:
    """One envelope on its way through all routers that it comes to."""

    def __init__(self, net):
        self.net = net
        self.routing = {name: Routing(net.topology, net.directory(name), table) for name, table in net.tables.items()}
        self.crossed = []
        self.workers = Counter()
        self.nodes = Counter()

    def event(self, route):
        return self._go(route.origin, lambda routing, way: routing.event(route, way), route)

    def request(self, route):
        return self._go(route.origin, lambda routing, way: routing.explicit(route.target, way), route)

    def _go(self, start, decide, route):
        under_way = [(start, HERE)]
        for here, way in under_way:
            assert len(under_way) <= len(self.net.topology), "no envelope comes to a node twice"
            routing = self.routing[here]
            assert routing.origin_is_right(route, way)
            paths = decide(routing, way)
            if isinstance(paths, Drop):
                continue
            assert way not in paths.ways
            self.nodes[here] += paths.here
            self.workers.update((here, handle) for handle in paths.workers)
            for out in paths.ways:
                other = self.net.ways(here)[out]
                self.crossed.append((here, out, other))
                under_way.append((other, UPWARD if out == other else here))
        return self


def in_scope(net, origin, node, scope):
    return scope == "all" or origin in {"subtree": net.below(node), "node": {node}}[scope]


@given(networks(), st.data())
def test_an_event_comes_once_to_everybody_who_wants_it(net, data):
    """Each worker in the target with a matching pattern in scope gets one copy, nobody else gets any (7.3)."""
    origin = data.draw(st.sampled_from(net.topology.names))
    target = data.draw(targets(net.topology))
    topic = data.draw(topics)
    walk = Walk(net).event(Route(Type.EVENT, origin, "uid:0", 3, 1, target, topic))
    nodes = resolve(target, net.topology, origin)
    expected = {
        (node, local.handle)
        for node in nodes & net.component(origin)
        for local, pattern in net.wishes[node]
        if matches(pattern, topic) and in_scope(net, origin, node, local.scope)
    }
    assert walk.workers == Counter(expected)


@given(networks(), st.data())
def test_no_event_goes_where_nobody_wants_it(net, data):
    """Whatever crosses a link is wanted on its other side, and the target has a node that way (7.3)."""
    origin = data.draw(st.sampled_from(net.topology.names))
    target = data.draw(targets(net.topology))
    topic = data.draw(topics)
    walk = Walk(net).event(Route(Type.EVENT, origin, "uid:0", 3, 1, target, topic))
    nodes = resolve(target, net.topology, origin)
    for here, out, other in walk.crossed:
        asked = net.wanted(other, UPWARD if out == other else here)
        assert any(matches(pattern, topic) for pattern in asked)
        way = walk.routing[here].directory.way
        assert any(way(node) == out for node in nodes)


@given(networks(), st.data())
def test_a_request_comes_once_to_each_node_of_its_set(net, data):
    """Each node of an explicit set that can be reached gets the request once, no other node does."""
    origin = data.draw(st.sampled_from(net.topology.names))
    nodes = data.draw(st.frozensets(st.sampled_from(net.topology.names), min_size=1))
    walk = Walk(net).request(Route(Type.REQUEST, origin, "uid:0", 3, 1, fold(nodes), "svc.run"))
    assert +walk.nodes == Counter(nodes & net.component(origin))
    for here, out, _ in walk.crossed:
        way = walk.routing[here].directory.way
        assert any(way(node) == out for node in nodes & net.component(origin))


@given(networks(), st.data())
def test_an_origin_is_right_on_one_side_only(net, data):
    """An envelope is taken only from the side where its origin lies, whatever it claims."""
    here, origin = data.draw(st.sampled_from(net.topology.names)), data.draw(st.sampled_from(net.topology.names))
    routing = Routing(net.topology, net.directory(here), net.tables[here])
    route = Route(Type.EVENT, origin, "uid:0", 3, 1, "*", "a")
    right = [way for way in (HERE, *net.ways(here)) if routing.origin_is_right(route, way)]
    truth = [HERE] if origin == here else [
        way for way, other in net.ways(here).items()
        if origin in (net.below(other) if way == other else set(net.topology.names) - net.below(here))
    ]  # fmt: skip
    if origin in net.component(here):
        assert right == truth
    assert len(right) <= 1


# By example -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    """The routing at b of a tree a: b c, b: d, where d wants x.> and everything is up."""
    net = Neighbours(Topology({"a": ["b", "c"], "b": ["d"], "c": [], "d": []}))
    net.tables["d"].add(Local(1, "all"), "x.>")
    for child, parent in (("b", "a"), ("c", "a"), ("d", "b")):
        net.attach(child, parent)
    return Routing(net.topology, net.directory("b"), net.tables["b"])


def event(topic="x.y", target="*", origin="c"):
    return Route(Type.EVENT, origin, "uid:0", 3, 1, target, topic)


def test_an_event_goes_on_to_who_wants_it(small):
    """From above to the child that wants it."""
    assert small.event(event(), UPWARD) == Paths(frozenset({"d"}))


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (event(topic="y"), "no-interest"),
        (event(target="c"), "no-interest"),
        (event(target="nobody"), "target"),
        (event(target=""), "target"),
        (event(topic="x..y"), "target"),
        (event(topic="x.*"), "target"),
    ],
)
def test_an_event_that_goes_nowhere_says_why(small, route, reason):
    """Each way not to be delivered has its counter (protocol 12)."""
    drop = small.event(route, UPWARD)
    assert isinstance(drop, Drop)
    assert drop.reason == reason


def test_this_node_in_a_target_is_the_author_s(small):
    """A dot in a target is the node where the event was written, not the one that routes it."""
    assert small.event(event(origin="d", target="."), "d").reason == "no-interest"
    assert small.event(event(origin="a", target="./"), UPWARD).ways == {"d"}


def test_an_unknown_origin_is_never_right(small):
    """An envelope of a node that the configuration does not have is refused from every side."""
    stranger = event(origin="nobody")
    assert not any(small.origin_is_right(stranger, way) for way in (HERE, UPWARD, "d"))


def test_an_explicit_set_must_be_readable(small):
    """A set that names unknown nodes is dropped, one without anybody in reach has no route."""
    assert small.explicit("b,nobody", UPWARD).reason == "target"
    assert small.explicit("c", UPWARD).reason == "no-route"
    assert small.explicit("[b,d]", UPWARD).reason == "target"
    assert small.explicit("b,d", UPWARD) == Paths(frozenset({"d"}), here=True)


@pytest.mark.parametrize(
    ("origin", "claimed", "granted", "counts"),
    [
        ("a", Role.ADMIN, Role.NONE, Role.ADMIN),
        ("b", Role.OPERATE, Role.NONE, Role.OPERATE),
        ("d", Role.ADMIN, Role.NONE, Role.OBSERVE),
        ("c", Role.ADMIN, Role.OPERATE, Role.OPERATE),
        ("c", Role.OBSERVE, Role.ADMIN, Role.OBSERVE),
        ("a", 99, Role.NONE, Role.ADMIN),
        ("a", -1, Role.NONE, Role.NONE),
    ],
)
def test_authority_comes_from_above(small, origin, claimed, granted, counts):
    """Ancestors and the node itself act with their role, others observe unless policy gives more (protocol 10.4)."""
    route = Route(Type.REQUEST, origin, "uid:0", claimed, 1, "b", "svc.run")
    assert small.role(route, granted) == counts
