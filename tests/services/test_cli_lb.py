"""What the command lines for balancers decide and show, without a bus."""

import json
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tsbus.cli.edge import Fault
from tsbus.cli.eventlines import told
from tsbus.cli.lb.asking import NOT_RUNNING, Answers, Part, Tree, counted, nobody, parted
from tsbus.cli.lb.check import lines_of as check_lines
from tsbus.cli.lb.groups import LB
from tsbus.cli.lb.ls import Look
from tsbus.cli.lb.naming import Finding, Place, choose
from tsbus.cli.lb.orders import draining
from tsbus.cli.lb.show import joined
from tsbus.cli.lb.show import lines_of as show_lines
from tsbus.cli.lb.stats import Board
from tsbus.cli.lb.why import fitting
from tsbus.cli.lb.why import lines_of as why_lines
from tsbus.cli.lb.words import wrapped
from tsbus.cli.main import cli
from tsbus.cli.report import Ending
from tsbus.core.accounting import Outcome
from tsbus.lb_records import (
    BalancerTraffic,
    Check,
    Details,
    LeftOut,
    ProblemRecord,
    ServerRecord,
    Summary,
    Traffic,
    WhyAnswer,
)

OK, LOST = Ending(Outcome.OK), Ending(Outcome.UNREACHABLE, "closed")
TREE = Tree({"root": "", "a": "root", "b": "root", "a1": "a", "a2": "a"}, frozenset({"root", "a", "b"}))


def server(name="web1", node="a1", number=1, **more):
    facts = {"id": f"{number:x}" * 64, "name": name, "node": node, "ip": "10.0.0.9", "port": 8000 + number,
             "state": "active", "weight": 1, "base": 1}  # fmt: skip
    return ServerRecord(**facts | more)


def balancer(name="web", **more):
    facts = {"addresses": ("10.0.0.1:443",), "protocol": "tcp", "alg": "wlc", "backend": "ipvs", "active": 2,
             "servers": 3, "state": "ok", "problems": 0}  # fmt: skip
    return Summary(name=name, **facts | more)


# Who counts.


def test_nodes_without_balancers_count_for_nothing_also_when_they_are_lost():
    """Who has some and does not answer is named; where the process is missing, it says so."""
    absent = Ending(Outcome.NO_SUCH_SERVICE)
    endings = {"root": OK, "a": absent, "b": LOST, "a1": absent, "a2": LOST}
    assert counted(endings, TREE.balancing) == {"root": OK, "a": Ending(Outcome.FAILED, NOT_RUNNING), "b": LOST}


def test_where_the_router_does_not_tell_who_has_balancers_the_lost_are_named():
    """Nothing is hidden that may matter."""
    assert counted({"a": Ending(Outcome.NO_SUCH_SERVICE), "b": LOST}, None) == {"b": LOST}


def test_nodes_are_asked_for_the_balancers_that_they_have():
    """A name that one of them does not have would be an error there."""
    there = {"a1": {"web"}, "a2": {"web", "api"}, "b": {"web"}, "c": {"db"}}
    assert parted(there, ["web", "api"]) == [Part("a1,b", ("web",)), Part("a2", ("web", "api"))]


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("wbe", ["web", "api"], r"no server 'wbe' on @x \(no answer from b\); did you mean 'web'\?"),
        ("zzz", ["web", "api"], "there are api, web$"),
        ("zzz", [], r"no server 'zzz' on @x \(no answer from b\)$"),
    ],
)
def test_a_name_that_nobody_has_is_an_error_with_the_nearest(name, known, text):
    """Or with what there is, and with those that could not be asked."""
    fault = nobody("server", name, "@x", known, {"b": LOST})
    assert fault.code == 2
    with pytest.raises(Fault, match=text):
        raise fault


def test_when_nobody_answers_that_is_the_error():
    """And not that something was not found."""
    with pytest.raises(Fault, match=r"b: no answer: unreachable \(closed\)") as fault:
        _ = Answers({}, {"b": LOST}).silent
    assert fault.value.code == 4


# Which servers are meant.

WEB_ROOT, WEB_A = Place("root", "web", server()), Place("a", "web", server(ip="172.17.0.2"))
DB = Place("root", "db", server("db", "b", 2))
CHILD = Place("root", "web", server("a", "a", id="a", port=443))
ODD = Place("root", "web", server("a1", "b", 3))


def finding(*places, silent=None):
    return Finding(places or (WEB_ROOT, WEB_A, DB, CHILD), frozenset({"root", "a"}), TREE, silent or {})


@pytest.mark.parametrize(
    ("name", "places", "names"),
    [
        ("web1", [WEB_ROOT, WEB_A], ["1" * 64]),
        ("111", [WEB_ROOT, WEB_A], ["1" * 64]),
        ("172.17.0.2:8001", [WEB_A], ["1" * 64]),
        ("a1", [WEB_ROOT, WEB_A], ["a1"]),
        ("a", [CHILD], ["a"]),
        ("10.0.0.9:443", [CHILD], ["10.0.0.9:443"]),
    ],
)
def test_a_server_is_named_by_its_container_its_node_or_its_address(name, places, names):
    """Containers are ordered by their id, which cannot mean another one meanwhile; they are wherever they are."""
    chosen = choose(finding(), [name], "*", each=False)
    assert (chosen.places, chosen.names) == (places, names)


def test_a_container_that_is_called_like_a_node_is_the_container():
    """As the balancers see it."""
    assert choose(finding(ODD, WEB_A), ["a1"], "*", each=False).names == ["3" * 64]


def test_a_container_is_ordered_where_it_is_and_a_node_wherever_it_can_get_servers():
    """The drain of a node holds for what comes, in its own balancers and in those above it."""
    assert choose(finding(DB, WEB_A), ["db"], "*", each=False).nodes == {"root"}
    assert choose(finding(DB), ["a1"], "*", each=False).nodes == {"root", "a"}
    assert choose(finding(DB), ["a1"], "*", each=False).bare == ["a1"]
    assert choose(finding(), ["b"], "*", each=False).nodes == {"root"}


def test_a_balancer_that_could_not_be_asked_is_missed_only_if_it_may_have_the_server():
    """It may go on sending connections there, so the order is partly done; others do not matter."""
    silent = {"a": LOST, "b": LOST}
    assert choose(finding(WEB_ROOT, silent=silent), ["web1"], "*", each=False).missed == {"a": LOST}


def test_a_name_that_different_containers_have_is_an_error_until_each_is_said():
    """Nothing is done, they are listed, and the way out is told."""
    two = finding(WEB_ROOT, Place("root", "web", server(node="a2", number=4)))
    with pytest.raises(Fault, match=r"means 2 servers, nothing was done: web1 on a1 .*web1 on a2 .*\n.*--each"):
        choose(two, ["web1"], "*", each=False)
    assert choose(two, ["web1"], "*", each=True).names == ["1" * 64, "4" * 64]


def test_the_beginning_of_several_ids_is_always_an_error():
    """It is a typing error, not a group."""
    two = finding(WEB_ROOT, Place("root", "web", server("db", "a2", id="1" * 63 + "2")))
    with pytest.raises(Fault, match=r"begins the ids of different containers: web1 on a1 .*, db on a2 "):
        choose(two, ["11"], "*", each=True)


def test_a_server_that_nobody_knows_yet_cannot_be_ordered():
    """It was found in the kernel, and no container belongs to it so far."""
    kept = Place("root", "web", server("10.0.0.9:8001", "a1", id="", state="kept"))
    with pytest.raises(Fault, match="found in the kernel of root"):
        choose(finding(kept), ["10.0.0.9:8001"], "*", each=False)


@pytest.mark.parametrize("name", ["nope", "172.17.0.2:1"])
def test_what_nobody_has_is_an_error_before_anything_is_done(name):
    """Also when other names of the same order are there."""
    with pytest.raises(Fault, match="no server") as fault:
        choose(finding(), ["web1", name], "*", each=False)
    assert fault.value.code == 2


def test_a_node_that_no_balancer_of_the_target_can_use_is_an_error():
    """A balancer has servers on its own node and below it."""
    only_a = Finding((WEB_A,), frozenset({"a"}), TREE)
    with pytest.raises(Fault, match="no balancer on a can have servers on b"):
        choose(only_a, ["b"], "a", each=False)


# The list.


def listed(look=Look(), width=None, **endings):  # noqa: B008  (frozen)
    rows = {"web10": [balancer()], "web2": [balancer("dns", protocol="udp", state="empty", active=0, servers=0),
                                            balancer("api", problems=2, active=1)]}  # fmt: skip
    return [click.unstyle(line) for line in look.lines(Answers(rows, {"web10": OK, "web2": OK} | endings), width)]


def test_the_title_counts_states_and_problems():
    """And says where the problems are told."""
    assert listed()[0] == "2 nodes, 3 balancers: 2 ok, 1 empty; 2 problems: treescale lb check"


def test_balancers_are_sorted_as_people_count():
    """web2 stands before web10."""
    assert [line.split()[:2] for line in listed()[3:]] == [["web2", "api"], ["web2", "dns"], ["web10", "web"]]


@pytest.mark.parametrize(
    ("sort", "first"), [("state", "dns"), ("problems", "api"), ("active", "dns"), ("name", "api"), ("node", "api")]
)
def test_the_worst_is_on_top_when_it_is_sorted_so(sort, first):
    """Empty before ok, many problems before few, few servers before many."""
    assert listed(Look(sort=sort))[3].split()[1] == first


def test_filters_take_patterns_and_all_keys_must_fit():
    """Of one key any value."""
    names = Look(filters={"node": ["web2"], "name": ["a*", "d*"], "state": ["ok"]}, quiet=True)
    assert listed(names) == ["api"]
    assert listed(Look(filters={"address": ["10.0.0.1:*"]}))[0].startswith("2 nodes, 3 balancers that match:")


def test_nodes_that_did_not_answer_are_named_below():
    """With the reason."""
    assert listed(gone=LOST)[-1] == "gone: no answer: unreachable (closed)"


def test_a_narrow_terminal_has_the_state_of_everything():
    """Columns that say less are left out."""
    lines = listed(width=60)
    assert all(len(line) <= 60 for line in lines[2:])
    assert lines[2].split()[-2:] == ["STATE", "PROBLEMS"]


def test_the_list_for_machines_has_a_record_of_each():
    """With its node."""
    rows = [json.loads(line) for line in listed(Look(as_json=True))]
    assert [(row["node"], row["name"], row["problems"]) for row in rows] == [
        ("web2", "api", 2), ("web2", "dns", 0), ("web10", "web", 0)
    ]  # fmt: skip


# The servers.


def shown(width=80, **more):
    facts = {"addresses": ("10.0.0.1:443",), "protocol": "tcp", "alg": "wlc", "backend": "ipvs", "state": "ok"}
    return [click.unstyle(line) for line in show_lines("root", Details(name="web", **facts | more), width)]


def test_a_balancer_begins_with_what_it_is_and_how_many_serve():
    """Servers that are not in the table do not count."""
    servers = (server(), server("web2", number=2, state="out", weight=0), server("web3", number=3, state="joining"))
    head = "root/web  10.0.0.1:443 tcp, wlc, ipvs: ok, 1 of 2 servers active"
    assert shown(servers=servers)[0] == head
    assert shown()[0].endswith("ok, no servers")


def test_the_reason_of_a_server_stands_below_it_whole():
    """Whatever the width, and who is removed comes last."""
    reason = "drained by uid:0 at root, who had a long reason; " + "and more of it " * 4 + "to the end"
    servers = (server("web1", state="removed", weight=0, reason=reason), server("web2", number=2, rule="image nginx"))
    lines = shown(servers=servers)
    assert [line.split()[2] for line in lines if "10.0.0.9" in line] == ["web2", "web1"]
    below = lines[next(place for place, line in enumerate(lines) if "web1" in line) + 1 :]
    assert " ".join(" ".join(below).split()) == reason
    assert all(len(line) <= 80 for line in lines)


def test_connections_are_a_column_only_while_something_drains():
    """Otherwise there is nothing to tell."""
    assert "OPEN" not in shown(servers=(server(),))[1]
    lines = shown(servers=(server(state="draining", weight=0, connections=3),))
    assert lines[1].split()[-2:] == ["OPEN", "RULE"]
    assert lines[2].split()[-1] == "3"


def test_who_is_left_out_is_told_once_for_each_reason():
    """Names are folded."""
    left = tuple(LeftOut(name="web", node=f"a{number}", reason="its port is not published") for number in (1, 2, 3))
    assert shown(left_out=left)[1:] == ["  left out: a[1-3]/web: its port is not published"]


def test_problems_have_what_mends_them_on_a_line_of_its_own():
    """Ready to be copied; a note is told apart."""
    problems = (ProblemRecord(text="no route", mend="ip route add x"), ProblemRecord(text="nobody there", note=True))
    assert shown(problems=problems)[1:] == ["  problem: no route", "    mend: ip route add x", "  note: nobody there"]


def test_a_balancer_of_many_servers_comes_in_pieces_and_is_shown_once():
    """The first piece says what it is."""
    pieces = [Details(name="web", state="ok", servers=(server(),)), Details(name="web", servers=(server("web2"),)),
              Details(name="api")]  # fmt: skip
    web, api = joined(pieces)
    assert (web.state, [one.name for one in web.servers], api.name) == ("ok", ["web1", "web2"], "api")


@given(
    st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12), min_size=1),
    st.integers(0, 10),
    st.integers(40, 120),
)
def test_wrapped_text_fits_and_loses_nothing(words, indent, width):
    """Every line begins with the indent."""
    lines = list(wrapped(" ".join(words), indent, width))
    assert " ".join(" ".join(lines).split()) == " ".join(words)
    assert all(len(line) <= width and line.startswith(" " * indent) for line in lines)


def test_a_command_in_a_text_is_never_broken():
    """It is there to be copied."""
    command = "`ip address add 192.168.0.2/32 dev eth0`"
    assert any(command in line for line in wrapped(f"{command}, or manage_vip = true in balancer web", 4, 50))
    assert any(command in line for line in wrapped(f"either this or something else: {command}", 4, 30))


# Figures.


def traffic(name, **more):
    servers = (Traffic(id="1", name="web10", ip="10.0.0.9", port=80), Traffic(ip="10.0.0.8", port=80, cps=9))
    return BalancerTraffic(name=name, servers=servers, **more)


def test_the_board_shows_each_balancer_with_its_servers():
    """A server that nobody knows is its address."""
    board = Board()
    board.take("a", traffic("web", cps=1200, active=3, in_bps=2048))
    lines = board.lines("node", None)
    assert lines[0] == "1 node, 1 balancer: 1,200 connections/s, 3 active, in 2 KiB/s, out 0 B/s"
    assert [line.split()[0] for line in lines[3:]] == ["a/web", "10.0.0.8:80", "web10"]
    assert lines[3].split()[2] == "1,200"


def test_the_busiest_come_first_when_it_is_sorted_so():
    """Balancers, and the servers of each."""
    board = Board()
    board.take("a", traffic("web", cps=1))
    board.take("b", traffic("web", cps=2))
    lines = board.lines("connections", None)
    assert [line.split()[0] for line in lines[3:]] == ["b/web", "10.0.0.8:80", "web10", "a/web", "10.0.0.8:80", "web10"]


def test_figures_of_a_node_that_is_lost_are_taken_away_and_it_is_named():
    """What it said last is not true now; when it is back, it is not named any more."""
    board = Board()
    board.take("a", traffic("web"))
    board.down("a", LOST)
    assert board.lines("node", None)[1:] == ["", "a: no answer: unreachable (closed)"]
    board.take("a", traffic("web"))
    assert not any("unreachable" in line for line in board.lines("node", None))


# Drains.


def test_the_progress_of_a_drain_tells_who_is_left_and_with_how_many_connections():
    """Those that are out, and other balancers, are not there."""
    servers = (
        server("web1", state="draining", since_s=12, connections=1),
        server("web2", number=2, state="removed"),
        server("web4", "b", 4, state="draining", since_s=3),
    )
    said = {"root": [Details(name="web", servers=servers), Details(name="api", servers=servers)]}
    assert draining(said, ["web"]) == [
        "web1 in root/web: draining for 12 s, 1 connection left",
        "web4 in root/web: draining for 3 s",
    ]


# What is wrong.


def test_problems_come_before_notes():
    """Those of the host are of the node."""
    found = [
        ("root", ProblemRecord(balancer="dns", text="no server", mend="start one", note=True)),
        ("root", ProblemRecord(text="no forwarding", mend="sysctl -w x=1")),
    ]
    assert list(check_lines(found, None)) == [
        "1 problem:",
        "  root: no forwarding",
        "    mend: sysctl -w x=1",
        "1 note:",
        "  root/dns: no server",
        "    mend: start one",
    ]


CHECKS = (
    Check(name="balancer", result="ok", text="web has it"),
    Check(name="published", result="fail", text="Docker takes it first", mend="docker rm -f x", servers=("web1",)),
    Check(name="input", result="warn", text="only for some"),
    Check(name="answers", result="unknown", text="a rule that is not understood"),
)


def answer(**more):
    facts = {"balancer": "web", "address": "10.0.0.1:443", "protocol": "tcp", "client": "remote", "works": False,
             "verdict": "It ends at published.", "checks": CHECKS}  # fmt: skip
    return WhyAnswer(**facts | more)


def test_why_tells_the_verdict_first_and_marks_each_check_with_a_word():
    """Colour is not needed to see what failed; the command that mends it stands alone."""
    assert [click.unstyle(line) for line in why_lines("root", answer(), 80)] == [
        "root/web  10.0.0.1:443 tcp from a remote client: does not work",
        "  It ends at published.",
        "",
        "  ok    balancer   web has it",
        "  FAIL  published  Docker takes it first",
        "                   servers: web1",
        "                   mend: docker rm -f x",
        "  warn  input      only for some",
        "  ?     answers    a rule that is not understood",
    ]


@pytest.mark.parametrize(("works", "words"), [(True, ": works"), (None, ": cannot be told")])
def test_why_says_whether_it_works_or_that_it_cannot_be_told(works, words):
    """In the first line."""
    assert click.unstyle(next(why_lines("root", answer(works=works), 80))).endswith(words)


RANGE = balancer("range", addresses=("10.0.0.2:8000-8010", "[fd00::1]:53"), protocol="udp")


@pytest.mark.parametrize(
    ("given", "protocol", "found"),
    [
        ("web", None, ["web"]),
        ("10.0.0.1:443", "tcp", ["web"]),
        ("10.0.0.1:443", "udp", []),
        ("10.0.0.2:8005", None, ["range"]),
        ("10.0.0.2:8000-8010", "udp", ["range"]),
        ("[fd00:0::1]:53", None, ["range"]),
        ("10.0.0.2:8011", None, []),
        ("127.0.0.1:443", "tcp", ["web"]),
        ("[::1]:443", "tcp", []),
        ("10.0.0.1", None, []),
    ],
)
def test_a_balancer_is_found_by_its_name_or_by_what_it_listens_at(given, protocol, found):
    """One port of a range is enough, an address may be written in another form, and 127.0.0.1 is any host's."""
    rows = [("root", balancer()), ("root", RANGE)]
    assert [one.name for _, one in fitting(rows, given, protocol)] == found


# Events.


@pytest.mark.parametrize(
    ("topic", "body", "words"),
    [
        ("lb.out", {"balancer": "web", "cause": "unhealthy", "was": "active", "server": {
            "name": "web1", "node": "a", "ip": "10.0.0.9", "port": 80, "state": "out", "weight": 0}},
         "web: web1 (10.0.0.9:80 on a): unhealthy"),
        ("lb.weight", {"balancer": "web", "cause": "free", "server": {
            "name": "web1", "ip": "fd00::9", "port": 80, "weight": 37}}, "web: web1 ([fd00::9]:80), weight 37: free"),
        ("lb.empty", {"balancer": "web", "cause": "no server can take connections"},
         "web: no server can take connections"),
        ("lb.problem", {"text": "no forwarding", "mend": "sysctl"}, "no forwarding; mend: sysctl"),
        ("lb.solved", {"balancer": "web", "text": "clash", "mend": "rm"}, "web: clash"),
        ("lb.repaired", {"steps": ["add a", "delete b"]}, "add a; delete b"),
        ("lb.capacity", {"balancers": {"web": {"capacity": 2.0}, "api": {"capacity": 0.5}}}, "alive: web 2, api 0.5"),
        ("lb.capacity", {"balancers": {}}, "alive: nothing"),
    ],
)  # fmt: skip
def test_events_of_balancers_are_told_in_words(topic, body, words):
    """Whom it concerns, and why."""
    body = json.dumps({"node": "root", "time_ns": 1} | body).encode()
    event = SimpleNamespace(topic=topic, origin="root", time_ms=0, body=body)
    assert told(event).decode().endswith(f"{topic:<19}  {words}\n")


# Usage.


@pytest.mark.parametrize("name", LB)
def test_every_balancer_command_has_help_with_an_example(name):
    """Nobody has to look elsewhere to use a command once."""
    result = CliRunner().invoke(cli, ["lb", name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("lb sbow", "show"),
        ("lb drain a", "SERVER"),
        ("lb drain a b --for soon", "'soon' is no length of time"),
        ("lb drain a b --for 99d", "at most 31d"),
        ("lb weight a web1 web2", "the weight comes last"),
        ("lb weight a web1 65536", "0 to 65535"),
        ("lb weight a 5", "SERVER"),
        ("lb ls --filter color=red", "KEY is one of"),
        ("lb ls --filter state=red", "the state is one of"),
        ("lb watch --every 0", "0.2"),
        ("lb why", "ADDRESS"),
    ],
)
def test_wrong_usage_of_lb_ends_with_2_before_anything_is_asked(args, text):
    """And says what is right."""
    result = CliRunner().invoke(cli, args.split())
    assert result.exit_code == 2
    assert text in result.stderr
