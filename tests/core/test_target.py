"""The target grammar, and folding: sets of nodes as short text."""

import re
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import TAGS, names, topologies

from tsbus.core.target import MAX_TEXT, TargetError, fold, resolve, unfold
from tsbus.core.tree import Topology

#          top
#    rack1     rack2
#  node1..3   node4..5, web-a
TREE = Topology(
    {
        "top": ["rack1", "rack2"],
        "rack1": ["node1", "node2", "node3"],
        "rack2": ["node4", "node5", "web-a"],
        **{name: [] for name in ("node1", "node2", "node3", "node4", "node5", "web-a")},
    },
    {"node1": ["web"], "node4": ["web", "db"], "web-a": ["web"], "rack2": ["switch"]},
)


@pytest.mark.parametrize(
    ("target", "nodes"),
    [
        ("node1", "node1"),
        ("node[1-2,4]", "node1 node2 node4"),
        ("node[1-5/2]", "node1 node3 node5"),
        ("node1,rack2", "node1 rack2"),
        (" node1 , node2 ", "node1 node2"),
        ("*", "top rack1 rack2 node1 node2 node3 node4 node5 web-a"),
        ("@web", "node1 node4 web-a"),
        ("node*", "node1 node2 node3 node4 node5"),
        ("*a*1", "rack1"),
        (".", "rack1"),
        ("./", "rack1 node1 node2 node3"),
        ("rack2/", "rack2 node4 node5 web-a"),
        ("rack[1-2]/,!node*", "rack1 rack2 web-a"),
        ("@switch/", "rack2 node4 node5 web-a"),
        ("@web&rack2/", "node4 web-a"),
        ("@web & rack2/ & node*", "node4"),
        ("@db,@web&rack1/", "node4 node1"),
        ("node[1-3],!node2", "node1 node3"),
        ("!node2,node[1-3]", "node1 node3"),
        ("./,!.", "node1 node2 node3"),
        ("!rack1/,!rack2/", "top"),
        ("rack2/,!@web&@db", "rack2 node5 web-a"),
    ],
)
def test_grammar(target, nodes):
    """A target written at rack1 selects the nodes that the grammar says."""
    assert resolve(target, TREE, "rack1") == set(nodes.split())


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "the target is empty"),
        (" ", "the target is empty"),
        ("nod1", "no node named 'nod1'; did you mean 'node1'?"),
        ("node1,!nod2", "no node named 'nod2'; did you mean 'node"),
        ("node[4-7]", "no node named 'node6'; did you mean 'node"),
        ("xyz", "no node named 'xyz'"),
        ("nod1/", "no node named 'nod1'"),
        ("@wbe", "no node has the tag 'wbe'; did you mean 'web'?"),
        ("@", "no node has the tag ''"),
        ("db*", "no node's name matches 'db*'"),
        ("@web&rack1", "target '@web&rack1' selects no node"),
        ("node1,!*", "selects no node"),
        ("node1,", "a term of the target is empty"),
        ("node1&", "a term of the target is empty"),
        ("!", "a term of the target is empty"),
        ("/", "a term of the target is empty"),
        ("node1//", "no node named 'node1/'"),
        ("@web&!node1", "cannot read '!node1'; '!' opens a term: write 'a,!b' for a without b"),
        ("node[1-", "cannot read 'node[1-'; a range is written as in node[1-4,7]"),
        ("node[]", "cannot read 'node[]'; a range is written"),
        ("node[a]", "cannot read 'node[a]'; a range is written"),
        ("node[1-2]]", "cannot read 'node1]'; a range is written"),
        ("node[1-2][*]", "cannot read 'node1[*]'; a range is written"),
        ("node[5-1]", "cannot read 'node[5-1]': "),
        ("node[1-5/0]", "cannot read 'node[1-5/0]': "),
        ("node[01-5]", "cannot read 'node[01-5]': "),
        ("node[1-99999999]", "span 99999998 numbers, more than 65536"),
        ("node[1-40000],rack[1-40000]", "span 79998 numbers"),
        ("node[0-9999]-[0-9999]-[0-9999]-[0-9999]", "no node named 'node0-0-0-0'"),
        (f"node[1-{'9' * 60_000}]", "numbers, more than 65536"),
        (f"node[{'9' * 60_000}]", "cannot read 'node[999"),
        ("node1," * MAX_TEXT, "the target is 393216 characters long, more than 65536; use ranges or tags"),
        ("n*," * 1001, "has 1001 globs, tags and subtrees, more than 1000"),
        ("\x1b[2J", r"cannot read '\x1b[2J'"),
    ],
)
def test_what_is_no_target(target, says):
    """A target that is malformed, too large, unknown in part or empty is an error that says how to mend it, briefly."""
    with pytest.raises(TargetError) as caught:
        resolve(target, TREE, "rack1")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


@st.composite
def targets(draw):
    """A tree, a node of it, a target and the set that its definition gives: from the operands up."""
    tree = draw(topologies())
    node = st.sampled_from(tree.names)
    here = draw(node)

    def operand():
        kind = draw(st.sampled_from(["name", "folded", "all", "here", "tag", "glob"]))
        if kind == "folded":
            nodes = draw(st.frozensets(node, min_size=1))
            text = fold(nodes)
            if "," in re.sub(r"\[.*?\]", "", text):  # a list of names is not one operand
                text, nodes = min(nodes), {min(nodes)}
        elif kind == "tag" and tree.tags:
            tag = draw(st.sampled_from(sorted(tree.tags)))
            text, nodes = f"@{tag}", {name for name in tree.names if name in tree.tagged(tag)}
        elif kind == "glob":
            start = draw(node)[:1]
            text, nodes = f"{start}*", {name for name in tree.names if name.startswith(start)}
        elif kind == "all":
            text, nodes = "*", set(tree.names)
        elif kind == "here":
            text, nodes = ".", {here}
        else:
            text = draw(node)
            nodes = {text}
        if draw(st.booleans()):
            text, nodes = f"{text}/", {name for name in tree.names for top in nodes if name in tree.subtree(top)}
        return text, set(nodes)

    terms, kept, dropped = [], [], set()
    for _ in range(draw(st.integers(1, 4))):
        operands = [operand() for _ in range(draw(st.integers(1, 3)))]
        text, nodes = "&".join(text for text, _ in operands), set.intersection(*(nodes for _, nodes in operands))
        if draw(st.booleans()):
            terms.append(text)
            kept.append(nodes)
        else:
            terms.append(f"!{text}")
            dropped |= nodes
    return tree, here, ",".join(terms), set().union(*kept or [tree.names]) - dropped


@given(targets())
def test_algebra_is_as_defined(case):
    """Any target selects what the grammar's definition gives, operand by operand, or is an error when that is empty."""
    tree, here, text, expected = case
    if expected:
        assert resolve(text, tree, here) == expected
    else:
        with pytest.raises(TargetError, match="selects no node"):
            resolve(text, tree, here)


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ("", ""),
        ("node7", "node7"),
        ("node1 node2 node3 web3", "node[1-3],web3"),
        ("node9 node10 node11 node1", "node[1,9-11]"),
        ("node-1 node-2 node-10", "node-[1-2,10]"),
        ("n01 n02 n1 n2 n001", "n[1-2,01-02,001]"),
        ("rack1-node1 rack1-node2 rack2-node1 rack2-node2", "rack[1-2]-node[1-2]"),
        ("rack1-node1 rack1-node2 rack2-node5", "rack1-node[1-2],rack2-node5"),
        ("rack1-node1 rack1-node2 rack2-node1", "rack1-node[1-2],rack2-node1"),
        ("node1.dc1.lan node2.dc1.lan", "node[1-2].dc1.lan"),
        ("1 2 3 5", "[1-3,5]"),
        ("alpha beta gamma", "alpha,beta,gamma"),
        ("a1b a2b a1c", "a1c,a[1-2]b"),
    ],
)
def test_fold(nodes, text):
    """Numbers fold into ranges in every place of a name, zeros are kept, and other names are a list."""
    assert fold(nodes.split()) == text


@given(st.lists(names, min_size=1, max_size=30), st.randoms())
@example(["n9", "n09", "n10", "n010", "n0", "n00"], None)
def test_folding_loses_nothing(nodes, random):
    """Any set of names folds to one text whatever the order, and unfold and resolve read the same set back."""
    text = fold(nodes)
    shuffled = nodes * 2
    if random:
        random.shuffle(shuffled)
    assert fold(shuffled) == text
    unique = list(dict.fromkeys(nodes))
    tree = Topology({unique[0]: unique[1:], **{name: [] for name in unique[1:]}})
    assert unfold(text, tree) == resolve(text, tree, unique[0]) == set(nodes)


def test_folded_text_is_short():
    """A thousand nodes in racks fold into one term."""
    assert fold(f"rack{rack}-node{node:03}" for rack in range(25) for node in range(40)) == "rack[0-24]-node[000-039]"


@pytest.mark.parametrize(
    "text", ["", "*", "@web", ".", "rack1/", "node[1-2],node9", "!node1", "node*", "node[1-99999999]"]
)
def test_unfold_reads_only_folded_names(text):
    """Unfolding refuses unknown names, huge ranges and everything of the grammar that `fold` does not write."""
    with pytest.raises(TargetError):
        unfold(text, TREE)


hostile = st.lists(
    st.sampled_from(
        ["node", "1", "[", "]", "[1-3]", "-", "/", "*", "@", "web", "rack2", ".", "!", "&", ",", " ", "0", "٣"]
    )
).map("".join)


@given(hostile | st.text(max_size=20))
def test_any_text_gives_nodes_or_an_error(text):
    """Whatever the text, the result is a set of some nodes of the tree or a TargetError."""
    for read in (resolve, lambda text, tree, _: unfold(text, tree)):
        try:
            found = read(text, TREE, "rack1")
        except TargetError as error:
            assert str(error)
        else:
            assert found
            assert found <= set(TREE.names)


def test_tags_of_the_strategies_are_readable():
    """Every tag that the shared trees use can be written in a target."""
    tree = Topology({"a": []}, {"a": TAGS})
    assert all(resolve(f"@{tag}", tree, "a") == {"a"} for tag in TAGS)


def test_loads_quickly():
    """Importing the module loads neither ClusterShell's slow part nor what only error messages need."""
    code = (
        "import sys, tsbus.core.target as _; print(*{'ClusterShell.NodeSet', 'difflib', 'logging'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
