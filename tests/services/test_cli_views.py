"""What the command lines show: the tree's drawing, folded output, accounts. All of it pure."""

import json

import msgspec
import pytest

from tsbus.cli.check import away, cut_off, lines_of, troubled
from tsbus.cli.eventlines import told
from tsbus.cli.output import MAX_LINE, Kept, Lines
from tsbus.cli.report import Ending, account, exit_code, summary
from tsbus.cli.status import Facts, nodes_of
from tsbus.cli.terminal import body_line, duration, safe
from tsbus.cli.treeview import Line, Node, TreeView
from tsbus.core.accounting import Outcome
from tsbus.core.body import body_json
from tsbus.core.events import Event
from tsbus.core.message import EventMeta, Route, Type
from tsbus.dashboard.problems import Problem
from tsbus.dashboard.views import NodeView, PeerView, RouterView


def thousand(**changed):
    """A tree of 10, 100 and 1,000 below the root; `changed` replaces the state of nodes."""
    nodes = [Node("root", "up", "")]
    for level, count in (("a", 10), ("b", 100), ("c", 1000)):
        above = {"a": "root", "b": "a", "c": "b"}[level]
        for number in range(count):
            name, parent = f"{level}{number}", above if above == "root" else f"{above}{number // 10}"
            state = changed.get(name, "up")
            nodes.append(Node(name, state, parent, home=parent, link=state, cause="closed" if state == "lost" else ""))
    return nodes


def drawn(nodes, *, fold):
    return [(line.stem, sorted(line.names)) for line in TreeView(nodes, fold=fold).lines()]


def test_a_healthy_large_tree_takes_one_line_for_each_level():
    """Siblings that look alike share a line, and so do their children."""
    lines = list(TreeView(thousand(), fold=True).lines())
    assert [len(line.nodes) for line in lines] == [1, 10, 100, 1000]
    assert [line.stem for line in lines] == ["", "└─ ", "   └─ ", "      └─ "]


def test_a_lost_node_stands_out_with_the_path_that_leads_to_it():
    """One lost leaf of a thousand is a line of its own, below its own ancestors."""
    lines = list(TreeView(thousand(c123="lost"), fold=True).lines())
    single = [line.names for line in lines if len(line.nodes) == 1]
    assert single == [("root",), ("a1",), ("b12",), ("c123",)]
    assert sum(len(line.nodes) for line in lines) == 1111


@pytest.mark.parametrize(
    ("topic", "facts", "words"),
    [
        ("process.started", {"name": "router", "pid": 12, "expected": True}, "router (pid 12)"),
        ("process.exited", {"name": "greeter", "pid": 12, "expected": False}, "greeter (pid 12, unexpected)"),
        ("process.exited", {"name": "greeter", "pid": None, "expected": False}, "greeter (within its first second)"),
        ("process.fatal", {"name": "greeter", "pid": None, "expected": False}, "greeter (given up, and tried again"),
        ("handler.failed", {"name": "tidy", "topic": "disk.full", "exit": 2, "signal": None, "reason": ""}, "exit 2"),
        ("handler.dropped", {"name": "tidy", "dropped": 7}, "tidy: 7 events"),
        ("bus.slow", {"kind": "worker", "peer": "logger", "dropped": 0}, "worker logger does not keep up\n"),
        ("bus.recovered", {"kind": "child", "peer": "b", "dropped": 1200}, "b keeps up again: 1,200 events were drop"),
        ("alert.firing", {"rule": "web-down", "text": "front does not run"}, "web-down: front does not run"),
        ("process.exited", {"name": "of another"}, '{"name": "of another"}'),
    ],
)
def test_what_happens_to_processes_handlers_and_alerts_is_told_in_words(topic, facts, words):
    """An operator reads the tree's own events without knowing their bodies; another shape is shown as it is."""
    route = Route(Type.EVENT, "web1", target="*", topic=topic)
    event = Event(route, msgspec.msgpack.encode(EventMeta(1, 0)), json.dumps(facts).encode())
    line = told(event).decode()
    assert "web1" in line
    assert words in line


def test_what_is_wrong_is_told_with_its_age_and_what_to_do():
    """Problems are told with what mends them; doubtful things are warnings."""
    found = [
        Problem(kind="node-lost", node="a", text="a is lost (closed)", mend="see its router", since_ms=86_000),
        Problem(kind="clock-skew", node="b", text="the clock of b is 9 s behind the one here", mend="check it"),
    ]
    assert list(lines_of(found, 3, 100_000, None)) == [
        "3 nodes: 1 problem, 1 warning",
        "  problem: a is lost (closed) (14 s)",
        "    mend: see its router",
        "  warning: the clock of b is 9 s behind the one here",
        "    mend: check it",
    ]
    assert list(lines_of([], 1, 0, None)) == ["1 node: nothing is wrong"]


def seen(name, *workers, **facts):
    peers = tuple(PeerView(name=each, kind="worker") for each in workers)
    return NodeView(revision=0, name=name, state="up", router=RouterView(heard_ms=1, workers=peers), **facts)


def test_a_program_that_is_away_is_told_once_with_all_its_nodes():
    """Every node has these programs; who has not told of his workers is not judged."""
    nodes = [seen("a", "exec", "process"), seen("b", "exec", "process"), seen("c", "exec", "process", "containers")]
    nodes.append(NodeView(revision=0, name="d", state="up"))
    (problem,) = away(nodes)
    assert (problem.node, problem.subject, problem.severe) == ("a,b", "docker", True)
    assert "docker.log" in problem.mend


def test_what_programs_tell_of_themselves_is_told_once_with_its_nodes():
    """The same trouble on several nodes is one problem with its mend; who does not answer is one as well."""
    told = {("exec", "cannot write {it}"): ["b", "a"], ("process", "does not answer"): ["c"], ("exec", ""): ["d"]}
    found = list(troubled(told))
    assert [(one.subject, one.node, one.severe) for one in found] == [
        ("executor", "a,b", True), ("supervisord", "c", True), ("executor", "d", True)
    ]  # fmt: skip
    assert [one.text.partition(": ")[0] for one in found] == [
        "every program is refused on a,b",
        "supervisord of c does not answer",
        "the program executor does not answer on d",
    ]
    assert found[0].text.endswith("cannot write {it}")
    assert all(one.mend for one in found)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"link": "lost", "cause": "closed", "home": "top", "parent": "top"}, ["top, the node above it: closed"]),
        ({"link": "up", "home": "east", "parent": "top"}, ["east, the node above it: top has adopted it"]),
        ({"link": "up", "home": "top", "parent": "top"}, []),
        ({"link": "up"}, []),
    ],
)
def test_a_node_that_is_cut_off_from_above_says_so(facts, words):
    """All below it may be well: whoever asks there must learn that the rest of the tree is out of reach."""
    found = list(cut_off(seen("a", **facts)))
    assert [problem.text.removeprefix("a is not linked to ") for problem in found] == words
    assert all("treescale check on" in problem.mend for problem in found)


def test_a_lost_node_speaks_for_all_below_it():
    """A lost subtree is one line, which knows whom it stands for."""
    nodes = [
        Node("root", "up", ""),
        Node("a", "lost", "root", home="root", link="lost", cause="closed"),
        Node("b", "lost", "a", home="a"),
        Node("c", "lost", "b", home="b"),
    ]
    lines = list(TreeView(nodes, fold=False).lines())
    assert [(line.names, line.below) for line in lines] == [(("root",), frozenset()), (("a",), frozenset("bc"))]


def test_who_is_cut_off_sees_itself_as_an_island():
    """From below a broken link, what is above is one lost line, and one's own subtree is drawn apart from it."""
    nodes = [
        Node("root", "lost", ""),
        Node("me", "up", "root", home="root", link="lost", cause="closed"),
        Node("kid", "up", "me", home="me"),
        Node("other", "lost", "root", home="root"),
    ]
    assert drawn(nodes, fold=False) == [("", ["root"]), ("", ["me"]), ("└─ ", ["kid"])]


def test_an_adopted_node_is_drawn_where_it_hangs():
    """While its parent is dead, a node is below its adopter."""
    nodes = [
        Node("root", "up", ""),
        Node("a", "lost", "root", home="root", link="lost", cause="closed"),
        Node("b", "up", "root", home="a"),
    ]
    assert drawn(nodes, fold=False) == [("", ["root"]), ("├─ ", ["a"]), ("└─ ", ["b"])]
    assert [node.adopted for node in nodes] == [False, False, True]


def test_nodes_that_seem_to_stand_on_each_other_are_all_drawn():
    """A cycle in news that still travel hides nobody."""
    nodes = [Node("a", "up", "b"), Node("b", "up", "a"), Node("c", "up", "a")]
    assert sorted(name for line in TreeView(nodes, fold=False).lines() for name in line.names) == ["a", "b", "c"]


def test_lines_that_arrive_in_pieces_are_prefixed_once():
    """A line is printed when it is complete, whatever chunks it came in, and apart for each stream."""
    lines = Lines()
    assert lines.feed("a", False, b"one\ntw") == b"a: one\n"
    assert lines.feed("a", True, b"bad\n") == b"a: bad\n"
    assert lines.feed("b", False, b"x\ny\n") == b"b: x\nb: y\n"
    assert lines.feed("a", False, b"o\n") == b"a: two\n"
    assert lines.feed("a", False, b"end") == b""
    assert lines.end("a", False) == b"a: end\n"
    assert lines.end("a", False) == b""


def test_output_without_newlines_does_not_pile_up():
    """A line longer than the bound is shown in pieces."""
    assert Lines().feed("a", False, b"x" * (MAX_LINE + 1)) == b"a: " + b"x" * (MAX_LINE + 1) + b"\n"


def test_equal_output_is_folded_behind_its_nodes():
    """Each different output is there once; one line goes behind the names, more lines below them."""
    kept = Kept(4)
    for node in ("node1", "node2", "node3"):
        kept.feed(node, False, b"same\n")
    kept.feed("node4", False, b"two\nlines")
    kept.feed("node4", True, b"oops\n")
    assert list(kept.folded(False)) == [("node[1-3] (3): ", b"same\n"), ("node4:\n", b"two\nlines\n")]
    assert list(kept.folded(True)) == [("node4: ", b"oops\n")]


def test_kept_output_is_bounded_and_says_what_is_missing(monkeypatch):
    """Nodes share the room; what does not fit is counted, not kept."""
    monkeypatch.setattr("tsbus.cli.output.KEPT_BYTES", 8)
    kept = Kept(2)
    kept.feed("a", False, b"12")
    kept.feed("a", False, b"3456")
    kept.feed("a", False, b"7")
    assert (kept.take("a", False), kept.cut) == (b"1234", {"a": 3})


def test_the_account_names_every_node_that_failed_and_why():
    """Nodes that ended alike for the same reason are folded; nobody is left out."""
    endings = {f"node{n}": Ending(Outcome.OK) for n in range(1, 39)}
    endings |= {f"node{n}": Ending(Outcome.FAILED, "exit 2") for n in (39, 40)}
    endings |= {"node41": Ending(Outcome.FAILED, "signal KILL"), "node42": Ending(Outcome.UNREACHABLE, "closed")}
    assert list(account(endings, 1.26)) == [
        "ok 38 of 42 in 1.3 s",
        "failed 3: node[39-40] (exit 2), node41 (signal KILL)",
        "unreachable 1: node42 (closed)",
    ]


def test_the_summary_for_machines_has_every_node_once():
    """All outcomes are there, if only as empty lists; together they are the resolved set."""
    told = summary({"a": Ending(Outcome.OK), "b": Ending(Outcome.TIMEOUT)}, 1)["summary"]
    assert sorted(told) == sorted(outcome.name.lower() for outcome in Outcome)
    assert (told["ok"], told["timeout"]) == (["a"], ["b"])


def test_exit_codes_of_calls():
    """0 all ok, 3 some; when nobody did it: 4 unreachable or late, 5 refused, 1 everything else."""
    ok, failed, timeout, away, refused = (
        Outcome.OK,
        Outcome.FAILED,
        Outcome.TIMEOUT,
        Outcome.UNREACHABLE,
        Outcome.REFUSED,
    )
    cases = {
        (ok, ok): 0,
        (ok, away): 3,
        (failed, failed): 1,
        (away, timeout): 4,
        (refused, refused): 5,
        (refused, failed): 1,
        (Outcome.NO_SUCH_SERVICE,): 1,
    }
    assert {outcomes: int(exit_code(outcomes)) for outcomes in cases} == cases


def test_nobody_can_steer_the_readers_terminal():
    """Control characters of a body are shown, not sent."""
    assert safe("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert body_line("grün".encode()) == "grün"
    assert body_line(b"\xff\x00") == "0xff00"


def test_a_body_in_json_is_never_lost():
    """JSON stays JSON, text is text, and bytes are base64."""
    assert body_json(b'{"a": 1}') == {"body": {"a": 1}}
    assert body_json(b"plain") == {"body": "plain"}
    assert body_json(b"\xff") == {"base64": "/w=="}


def test_durations_have_one_sensible_unit():
    """From seconds to days."""
    assert [duration(s) for s in (14, 300, 7200, 86400 * 5)] == ["14 s", "5 min", "2 h", "5 d"]


def test_round_trips_come_from_the_parents_of_links():
    """The parent's router knows the round trip; the queues and the slow are those of the node itself."""
    told = {"state": "up", "link": "up", "cause": "joined", "since_ms": 1000, "tags": []}
    status = {"node": "a", "nodes": [
        {"name": "a", "parent": "", "home": "", **told},
        {"name": "b", "parent": "a", "home": "a", **told},
    ]}  # fmt: skip
    queue = {"control": 1, "stream": 2, "event": 3}
    peer = {"kind": "child", "queue": queue, "slow": False}
    stats = {"a": {"links": [{**peer, "name": "b", "rtt_ms": 0.5}], "workers": [
        {**peer, "kind": "worker", "name": "w", "slow": True}], "release": "1", "config": "c"}}  # fmt: skip
    a, b = nodes_of(Facts(status, stats), now_ms=3000)
    assert (a.rtt_ms, a.queued, a.slow, a.since_s) == (None, 12, ("w",), 2.0)
    assert (b.rtt_ms, b.queued, b.slow) == (0.5, None, ())


def test_a_line_knows_its_names():
    """The names of a line are those of its nodes, in order."""
    assert Line("", (Node("b", "up", ""), Node("a", "up", ""))).names == ("b", "a")
