"""Hypothesis strategies that the tests of the core share: names, trees, who is alive, topics and patterns."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tsbus.core.tree import Topology

Draw = Callable[[st.SearchStrategy[Any]], Any]

regular_names = st.builds(
    "{}{}".format, st.sampled_from(["node", "web", "node-", "r1-node", "1.", ""]), st.integers(0, 30)
)
"""Names as people number their servers; they fold well."""

padded_names = st.builds(
    "{}{:0{}d}{}".format,
    st.sampled_from(["n", "rack1-n", "rack02-n", "a-", ""]),
    st.integers(0, 120),
    st.integers(1, 4),
    st.sampled_from(["", ".dc1", "b", "-2"]),
)
"""Names with leading zeros and several groups of digits."""

odd_names = st.from_regex(r"[ab019_][ab019_.-]{0,7}", fullmatch=True)
"""Any mixture of the characters that a name may have."""

names = st.one_of(regular_names, padded_names, odd_names)
TAGS = ("web", "db", "eu", "rack-1")


@st.composite
def topologies(draw: Draw, max_size: int = 12) -> Topology:
    """Any tree: each node but the first hangs below some earlier one; the order of the configuration is shuffled."""
    nodes = draw(st.lists(names, min_size=1, max_size=max_size, unique=True))
    children: dict[str, list[str]] = {name: [] for name in draw(st.permutations(nodes))}
    for place, name in enumerate(nodes[1:], 1):
        children[nodes[draw(st.integers(0, place - 1))]].append(name)
    tags = {name: draw(st.lists(st.sampled_from(TAGS), max_size=2)) for name in nodes}
    return Topology(children, tags)


@st.composite
def trees_and_living(draw: Draw) -> tuple[Topology, frozenset[str]]:
    """A tree and any set of its nodes: those that are alive."""
    topology = draw(topologies())
    return topology, draw(st.frozensets(st.sampled_from(topology.names)))


# Two letters and few tokens, so that patterns and topics often meet.
topics = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(st.sampled_from("ab*"), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
) | st.just(">")
