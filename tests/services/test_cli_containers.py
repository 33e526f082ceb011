"""What the command lines for containers decide and show, without a bus."""

import json
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tsbus.cli.containers.drained import Draining, Phases, draining_of, ending_of_error
from tsbus.cli.containers.engines import accepting
from tsbus.cli.containers.finding import Finding, Match, choose, order_for
from tsbus.cli.containers.groups import container, docker, image
from tsbus.cli.containers.images import Row, grouped
from tsbus.cli.containers.logs import Writer
from tsbus.cli.containers.ls import Look, Tally
from tsbus.cli.containers.program import ProgramCommand
from tsbus.cli.containers.pulling import Pulling
from tsbus.cli.containers.run import names_for, order_of, read_env, run_, spread
from tsbus.cli.containers.stats import Board
from tsbus.cli.containers.times import length, moment
from tsbus.cli.containers.words import image_words, port_words, state_words
from tsbus.cli.edge import Fault
from tsbus.cli.main import cli
from tsbus.cli.report import Ending, exit_code
from tsbus.cli.table import Column, table
from tsbus.core.accounting import Outcome
from tsbus.draining import NotDone, NotDrained
from tsbus.records import Container, Endpoint, EngineFacts, Image, Pressure, PullProgress, Sample, StatsEvent

ID = "ab" * 32
NOW_NS = 1_700_000_000_000_000_000
OK = Ending(Outcome.OK)


def one(name="web", **more):
    facts = {"id": ID, "name": name, "image": Image(given="nginx"), "state": "running"}
    return Container(**facts | more)


def match(node, name, number=0, given=""):
    return Match(node, given or name, f"{number:x}" * 64, name, "running")


# Which containers are meant.


def test_a_name_that_one_node_has_is_that_container():
    """The other nodes of the target do not matter."""
    finding = Finding([match("a", "web", 1)], {"web": set()})
    assert choose(finding, ["web"], "*", single=True) == [match("a", "web", 1)]


def test_a_name_on_several_nodes_is_an_error_until_each_is_said():
    """Nothing is done, the nodes are listed, and the way out is told."""
    finding = Finding([match("a", "web", 1), match("b", "web", 2)])
    with pytest.raises(Fault, match=r"2 nodes, nothing was done: a/web .*b/web .*\n.*a,b.*--each") as fault:
        choose(finding, ["web"], "*", single=True)
    assert fault.value.code == 2
    assert len(choose(finding, ["web"], "*", single=False)) == 2


def test_a_name_wins_over_the_beginning_of_an_id_on_another_node():
    """`a1` is the container with that name, whatever ids begin so."""
    named = match("b", "11", 2, given="11")
    assert choose(Finding([match("a", "db", 1, given="11"), named]), ["11"], "*", single=True) == [named]


@pytest.mark.parametrize("single", [True, False])
def test_the_beginning_of_several_ids_is_always_an_error_that_lists_them(single):
    """Also for commands that only read, and also with --each: it is a typing error, not a group."""
    finding = Finding([match("a", "db", 1, given="1"), match("b", "web", 2, given="1")])
    with pytest.raises(Fault, match=r"a/db .*, b/web .*more of it"):
        choose(finding, ["1"], "*", single=single)


def test_a_name_that_nobody_has_is_an_error_with_the_nearest_names():
    """And it says which nodes could not be asked."""
    lost = {"c": Ending(Outcome.UNREACHABLE, "closed")}
    with pytest.raises(Fault, match=r"no container 'wbe' on @web \(no answer from c\); did you mean 'web'\?") as fault:
        choose(Finding([], {"wbe": {"web"}}, lost), ["wbe"], "@web", single=False)
    assert fault.value.code == 2


@pytest.mark.parametrize(
    ("outcome", "code", "text"),
    [(Outcome.UNREACHABLE, 4, "unreachable 1: a"), (Outcome.NO_SUCH_SERVICE, 1, "ts-docker")],
)
def test_when_no_node_answers_that_is_told_and_not_that_nothing_was_found(outcome, code, text):
    """Unreachable nodes end with 4, nodes without a monitor with what to do."""
    with pytest.raises(Fault, match=text) as fault:
        choose(Finding([], {}, {"a": Ending(outcome, "closed")}), ["web"], "*", single=False)
    assert fault.value.code == code


def test_a_container_that_is_named_twice_is_acted_on_once():
    """By its name and by its id."""
    finding = Finding([match("a", "web", 1), match("a", "web", 1, given="11")])
    assert len(choose(finding, ["web", "11", "web"], "*", single=True)) == 1


def test_containers_are_ordered_by_id_or_of_very_many_nodes_by_name():
    """An id cannot mean another container by then; a node takes a thousand of them."""
    few, many = [[match(f"n{number}", "web", number % 10) for number in range(count)] for count in (3, 1111)]
    assert order_for(few) == {"containers": [one.id for one in few], "if_here": True}
    assert order_for(many) == {"containers": ["web"], "if_here": True}


# Draining.


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["stop", "a", "web", "--skip-lost"], "--skip-lost goes with --drain"),
        (["restart", "a", "web", "--parallel", "2"], "--parallel goes with --drain"),
        (["restart", "a", "web", "--wait", "2"], "--wait goes with --drain"),
        (["rm", "a", "web", "--drain"], "--drain goes with --force"),
        (["run", "--name", "web", "--wait", "2", "a", "nginx"], "--wait goes with --replace"),
        (["run", "--replace", "a", "nginx"], "--replace needs --name"),
        (["run", "--replace", "--name", "web", "--count", "2", "a", "nginx"], "neither with --count"),
        (["run", "--replace", "--name", "web", "--attach", "a", "nginx"], "nor with --attach"),
    ],
)
def test_options_that_need_another_one(argv, words):
    """They are told before anybody is asked."""
    result = CliRunner().invoke(container, argv)
    assert result.exit_code == 2
    assert words in result.stderr


def test_what_is_said_about_draining():
    """One at a time and a minute for each, unless it is said otherwise."""
    assert draining_of(False, "--drain", skip_lost=False) is None
    assert draining_of(True, "--drain", skip_lost=True) == Draining(True, 1, 60)
    assert draining_of(True, "--drain", skip_lost=False, parallel=3, wait_s=5) == Draining(False, 3, 5)


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.REFUSED, 5), (Outcome.UNREACHABLE, 4), (Outcome.TIMEOUT, 4), (Outcome.FAILED, 1)]
)
def test_what_a_balancer_did_not_do_decides_the_exit_code(outcome, code):
    """As it does of any call: refused, out of reach, failed."""
    ending = ending_of_error(NotDrained({"n1": NotDone(outcome, "no")}))
    assert ending.reason.startswith("the balancer of n1 did not do it: no; ")
    assert exit_code([ending.outcome]) == code


def test_phases_are_told_on_one_line():
    """How many are done, and what some of those under way are at; nothing while none is."""
    assert Phases(3, 1).words() == ""
    assert Phases(1, now={"a/web": "draining"}).words() == "a/web draining"
    many = Phases(9, 2, {f"a/web{number}": "starting" for number in range(5)})
    assert many.words() == "2 of 9 done; a/web0 starting; a/web1 starting; a/web2 starting; and 2 more"


# The list.


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"state": "created"}, "Created"),
        ({"health": "healthy"}, "Up 3 min (healthy)"),
        ({"health": "starting"}, "Up 3 min (health: starting)"),
        ({"draining": True}, "Draining, up 3 min"),
        ({"state": "paused"}, "Up 3 min (paused)"),
        ({"state": "exited", "exit_code": 1}, "Exited (1) 2 h ago"),
        ({"state": "exited", "exit_code": 137, "oom": True}, "Exited (137, out of memory) 2 h ago"),
        ({"state": "restarting", "exit_code": 2}, "Restarting (2) 2 h ago"),
        ({"started_ns": NOW_NS + 10**9}, "Up 0 s"),
    ],
)
def test_states_are_told_as_dockers_users_know_them(facts, words):
    """And a node whose clock is ahead has nothing that begins in the future."""
    times = {"started_ns": NOW_NS - 180 * 10**9, "finished_ns": NOW_NS - 7200 * 10**9}
    assert state_words(one(**times | facts), NOW_NS) == words


def test_ports_are_told_once_and_published_ones_first():
    """IPv4 and IPv6 of the same port are one word, other addresses are told."""
    ends = [
        Endpoint(port=9000),
        Endpoint(port=80, host_ip="0.0.0.0", host_port=8080),  # noqa: S104
        Endpoint(port=80, host_ip="::", host_port=8080),
        Endpoint(port=53, protocol="udp", host_ip="127.0.0.1", host_port=53),
        Endpoint(port=80, host_ip="fe80::1", host_port=9999),
    ]
    assert port_words(ends) == "127.0.0.1:53->53/udp, 8080->80/tcp, [fe80::1]:9999->80/tcp, 9000/tcp"


def test_an_image_that_is_only_an_id_is_shortened():
    """A name stays as it was given."""
    assert image_words(Image(given="sha256:" + ID)) == ID[:12]
    assert image_words(Image(given="repo/app@sha256:" + ID)) == f"repo/app@{ID[:12]}"
    assert image_words(Image(given="nginx")) == "nginx"


def listed(look=Look(), width=None, **changes):  # noqa: B008  (frozen)
    tally = Tally(
        rows=[("web10", one("b")), ("web2", one("a", state="exited", exit_code=0)),
              ("web2", one("c10")), ("web2", one("c9"))],
        engines={node: EngineFacts(node=node, up=True) for node in ("web10", "web2")},
        endings={"web10": OK, "web2": OK},
    )  # fmt: skip
    for key, value in changes.items():
        getattr(tally, key).update(value)
    tally.close(NOW_NS)
    return list(look.lines(tally, NOW_NS, width))


def test_the_title_counts_and_tells_what_is_hidden():
    """Containers that do not run are shown with -a."""
    assert listed()[0] == "2 nodes, 4 containers, 3 running (1 not shown: -a shows all)"
    assert listed(Look(show_all=True))[0] == "2 nodes, 4 containers, 3 running"


def test_rows_are_sorted_as_people_count():
    """web2 stands before web10, c9 before c10."""
    assert [line.split()[:2] for line in listed(Look(show_all=True))[3:]] == [
        ["web2", "a"], ["web2", "c9"], ["web2", "c10"], ["web10", "b"]
    ]  # fmt: skip


def test_nodes_that_do_not_answer_are_named_below_with_the_reason():
    """Whoever has no monitor is told apart from whoever is lost, and an engine that is down from both."""
    down = EngineFacts(node="web2", up=False, since_ns=NOW_NS - 60 * 10**9, reason="no permission for the socket")
    endings = {"x1": Ending(Outcome.UNREACHABLE, "closed"), "x2": Ending(Outcome.UNREACHABLE, "closed"),
               "r": Ending(Outcome.NO_SUCH_SERVICE)}  # fmt: skip
    lines = listed(engines={"web2": down}, endings=endings)
    assert lines[-3:] == [
        "web2: engine down for 60 s: no permission for the socket",
        "x[1-2]: no answer: unreachable (closed)",
        "r: no container monitor",
    ]
    assert any("? was up" in line for line in lines)


@pytest.mark.parametrize(
    ("width", "shown"),
    [(80, "IMAGE STATE PORTS ID"), (40, "IMAGE STATE PORTS"), (28, "IMAGE STATE"), (24, "STATE")],
)
def test_on_a_narrow_terminal_names_and_states_stay(width, shown):
    """Ids go first, then ports, then images."""
    assert listed(width=width)[2].split() == ["NODE", "NAME", *shown.split()]


def test_quiet_prints_ids_and_json_prints_records():
    """Both are for scripts: one line for each container and nothing else."""
    assert listed(Look(quiet=True)) == [ID[:12]] * 3
    assert json.loads(listed(Look(as_json=True))[0])["node"] == "web2"


def test_sorting_by_use_shows_it():
    """The greediest comes first."""
    samples = {("web10", ID[:12]): Sample(cpu=3.0, memory=1 << 20)}
    lines = listed(Look(sort="cpu"), samples=samples)
    assert "CPU %" in lines[2]
    assert lines[3].startswith("web10")


WIDE = (Column("NAME", least=6), Column("STATE"), Column("PORTS", least=8, spare=1), Column("ID", spare=2))
ROW = ("a-very-long-name-of-a-container", "Up 3 min", "8080->80/tcp, 8081->81/tcp", "abcdef012345")


def test_a_wide_table_is_left_as_it_is():
    """Without a terminal nothing is cut."""
    assert table(WIDE, [ROW])[1] == "  ".join(ROW)


@pytest.mark.parametrize(("width", "shown"), [(80, "ID"), (36, "PORTS"), (20, "STATE")])
def test_a_narrow_table_spares_columns_and_cuts_others(width, shown):
    """What says least goes first; no line is longer than the terminal while it can be helped."""
    lines = table(WIDE, [ROW], width)
    assert lines[0].split()[-1] == shown
    assert max(map(len, lines)) <= width
    assert "Up 3 min" in lines[1]


# Running.


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 20), min_size=1), st.integers(1, 50))
def test_new_containers_go_where_the_fewest_run(running, number):
    """All are given, and no node that got one has two more than any other node."""
    shares = spread(running, number)
    assert sum(shares.values()) == number
    after = {node: load + shares.get(node, 0) for node, load in running.items()}
    assert all(after[node] - 1 <= min(after.values()) for node in shares)


def test_names_of_several_are_numbered_through():
    """NAME-1 to NAME-N, node by node."""
    assert names_for({"web10": 1, "web2": 2}, "app") == {"web2": ["app-1", "app-2"], "web10": ["app-3"]}


def orders(*args):
    with click.Context(run_) as ctx:
        run_.parse_args(ctx, list(args))
        return order_of({**ctx.params})


def test_the_order_has_what_was_said_and_nothing_else():
    """The nodes know the defaults; whatever stands behind the image belongs to the program."""
    assert orders("a", "nginx") == {"image": "nginx"}
    words = "-e A=1 -l b=2 -p 8080:80 -m 256m --restart always --health-cmd true --health-interval 1m30s -t"
    assert orders(*words.split(), "a", "nginx", "sh", "-t") == {
        "image": "nginx", "argv": ("sh", "-t"), "env": {"A": "1"}, "labels": {"b": "2"}, "publish": ("8080:80",),
        "memory": "256m", "restart": "always", "health": {"command": "true", "interval_s": 90.0}, "tty": True,
    }  # fmt: skip


def test_variables_come_from_files_and_options(tmp_path):
    """An option wins over a file; a line that is none is told with its number."""
    path = tmp_path / "env"
    path.write_text("# of the app\nA=1\n\nB=x=y\n")
    assert orders("--env-file", str(path), "-e", "A=2", "a", "nginx")["env"] == {"A": "2", "B": "x=y"}
    path.write_text("A=1\nB\n")
    with pytest.raises(Fault, match=":2: not NAME=VALUE"):
        read_env(path)


@pytest.mark.parametrize(
    ("args", "program"),
    [
        (["t", "n", "ls", "-l"], ["ls", "-l"]),
        (["-it", "t", "n", "sh", "-c", "x"], ["sh", "-c", "x"]),
        (["t", "n", "-it", "--", "sh", "-c", "x"], ["sh", "-c", "x"]),
        (["-u", "me", "t", "--env", "A=1", "n", "id", "-u"], ["id", "-u"]),
        (["-iu", "me", "t", "n", "id", "--", "-u"], ["id", "--", "-u"]),
        (["-ume", "t", "n", "id"], ["id"]),
        (["--env=A=1", "t", "n", "env"], ["env"]),
    ],
)
def test_options_behind_the_program_are_its_own(args, program):
    """As in Docker; a `--` is never needed, and allowed."""

    @click.command(cls=ProgramCommand)
    @click.argument("target")
    @click.argument("name")
    @click.argument("argv", nargs=-1, type=click.UNPROCESSED)
    @click.option("-i", is_flag=True)
    @click.option("-t", is_flag=True)
    @click.option("-u")
    @click.option("--env")
    def command(**_):
        raise AssertionError

    with click.Context(command) as ctx:
        command.parse_args(ctx, args)
    assert list(ctx.params["argv"]) == program
    assert (ctx.params["target"], ctx.params["name"]) == ("t", "n")


# Times.


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1m30s", 90), ("2.5", 2.5), ("1d", 86400)])
def test_lengths_are_read_as_docker_writes_them(text, seconds):
    """Units may be added up; a plain number is seconds."""
    assert length(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "unix"), [("10m", 400), ("1700000000", 1.7e9), ("2023-11-14T22:13:20+00:00", 1.7e9)])
def test_moments_are_ages_or_dates(text, unix):
    """An age counts back from now."""
    assert moment(text, 1000) == unix


@pytest.mark.parametrize("text", ["", "m", "10x", "yesterday", "-5s"])
def test_what_is_no_time_is_an_error(text):
    """Nothing is guessed."""
    with pytest.raises(ValueError):
        moment(text, 1000)


# Logs.


def written(capfdbinary, matches, *chunks, **look):
    writer = Writer(matches, **{"prefix": None, "raw": False, "as_json": False} | look)
    for node, second, data in chunks:
        writer.feed(node, second, data)
    for node in {match.node for match in matches}:
        writer.end(node)
    return capfdbinary.readouterr()


def test_the_log_of_one_container_is_passed_on_as_it_is(capfdbinary):
    """Every byte, as both streams, when nobody sits at a terminal."""
    done = written(capfdbinary, [match("a", "web")], ("a", False, b"x\xff\x1b[0m"), ("a", True, b"y"))
    assert done == (b"x\xff\x1b[0m", b"y")


def test_logs_of_several_stand_behind_their_names_in_one_column(capfdbinary):
    """A node with several containers has put their names before the lines already."""
    matches = [match("node1", "web"), match("b", "db"), match("b", "cache")]
    done = written(
        capfdbinary,
        matches,
        ("node1", False, b"one\ntw"),
        ("b", False, b"db | x | y\ncache | z\n"),
        ("node1", False, b"o\n"),
    )
    assert done.out.decode().splitlines() == [
        "node1/web | one",
        "b/db      | x | y",
        "b/cache   | z",
        "node1/web | two",
    ]


def test_logs_for_machines_are_objects_with_their_stream(capfdbinary):
    """One object for each line."""
    done = written(capfdbinary, [match("a", "web")], ("a", True, b"oh\r\n"), as_json=True)
    assert json.loads(done.err) == {"node": "a", "name": "web", "stream": "stderr", "line": "oh"}


# Stats.


def stats_event(node="a", **more):
    return StatsEvent(**{"node": node, "time_ms": 1, "samples": {ID[:12]: Sample(cpu=1.0)}} | more)


def test_the_board_folds_what_monitors_say():
    """Changes are added, a full event replaces, and what is gone goes."""
    board = Board({"a", "b"})
    other = "cd" * 6
    assert board.take("a", stats_event()) == [("a", ID[:12])]
    board.take("a", stats_event(samples={other: Sample()}))
    assert set(board.samples) == {("a", ID[:12]), ("a", other)}
    board.take("a", stats_event(full=True))
    assert set(board.samples) == {("a", ID[:12])}
    board.take("a", stats_event(samples={}, gone=(ID[:12],)))
    assert not board.samples


def test_the_board_takes_only_what_is_wanted():
    """Neither other nodes nor other containers."""
    board = Board({"a"}, [("a", "cd" * 6)])
    assert not board.take("b", stats_event("b")) and not board.take("a", stats_event())
    assert not board.samples


def test_figures_of_a_lost_node_are_taken_away_and_it_is_named():
    """Numbers that nobody confirms any more would be lies."""
    board = Board({"a"})
    board.names["a", ID[:12]] = "web"
    board.take("a", stats_event(samples={ID[:12]: Sample(cpu=1.0, memory=1 << 20, pressure=Pressure(io=2.0))}))
    assert "web" in board.lines("cpu", None)[3]
    board.down("a", Ending(Outcome.UNREACHABLE, "closed"))
    assert board.lines("cpu", None)[-1] == "a: no answer: unreachable (closed)"
    assert not board.samples


# Images and engines.


def test_equal_images_of_many_nodes_are_one_line():
    """By name and id: the same name may be another image elsewhere."""
    rows = {"web2": [Row(id="x", names=["n:1"], containers=1)], "web10": [Row(id="x", names=["n:1"], containers=2)],
            "db": [Row(id="y", names=["n:1", "n:2"]), Row(id="z")]}  # fmt: skip
    told = [(group.name, group.row.id, group.nodes, group.containers) for group in grouped(rows)]
    assert told == [("n:1", "x", ["web2", "web10"], 3), ("n:1", "y", ["db"], 0), ("n:2", "y", ["db"], 0),
                    ("<none>", "z", ["db"], 0)]  # fmt: skip


def test_the_progress_of_many_nodes_shows_those_behind():
    """A few nodes have a line each; of many, the slowest are shown and all are counted."""
    pulling = Pulling(20)
    for number in range(20):
        pulling.take(f"n{number}", PullProgress(layers=2, done=0, current=number, total=20, status=""))
    lines = pulling.lines()
    assert [line.split()[0] for line in lines[:-1]] == [f"n{number}" for number in range(10)]
    assert lines[-1] == "20 nodes: 0 done, 20 under way: 190 B of 400 B"


def heard(topic, body):
    return SimpleNamespace(topic=topic, origin="node1", body=body)


def container_event(topic="container.died", **more):
    image = {"given": "nginx:1", "repo": "nginx", "tag": "1"}
    about = {"container": {"id": ID, "name": "web1", "image": image, "labels": {"team": "a"}}, **more}
    return heard(topic, json.dumps(about).encode())


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"type": ["container"]}, True),
        ({"type": ["image"]}, False),
        ({"event": ["oom", "died"]}, True),
        ({"event": ["died"], "container": ["db"]}, False),
        ({"container": ["web*"]}, True),
        ({"container": [ID[:4]]}, True),
        ({"image": ["nginx"], "node": ["node*"]}, True),
        ({"label": ["team"]}, True),
        ({"label": ["team=b"]}, False),
    ],
)
def test_events_are_filtered_as_docker_does(filters, wanted):
    """Any value of a key, and every key."""
    assert accepting(filters)(container_event()) is wanted


def test_a_foreign_event_that_is_no_json_is_not_wanted():
    """Whoever may publish may publish nonsense."""
    assert not accepting({"container": ["x"]})(heard("container.died", b"\xff"))


# Usage.


@pytest.mark.parametrize(
    "words", [(group.name, name) for group in (container, image, docker) for name in group.table if name != "ps"]
)
def test_every_command_has_help_with_an_example(words):
    """Nobody has to look elsewhere to use a command once."""
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("container stop a", "NAME"),
        ("container strat a b", "start"),
        ("container logs a b --since tomorrow", "'tomorrow' is neither"),
        ("container logs a b --tail few", "'few' is neither"),
        ("container run a nginx --health-interval soon", "'soon' is no length of time"),
        ("container run a nginx --no-healthcheck --health-cmd x", "contradict"),
        ("container exec a b -t --json -- sh", "contradict"),
        ("image pull a nginx --username bob", "--password-stdin"),
        ("image pull a nginx --password-stdin", "--username"),
        ("image prune", "--yes"),
        ("docker events --filter colour=red", "colour=red"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_asked(args, text):
    """And says what is wrong."""
    result = CliRunner().invoke(cli, args.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr
