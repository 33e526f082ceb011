"""What the build's command lines show of a run, a plan and an end: all of it pure."""

import json
from collections import Counter
from dataclasses import replace

import click
from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.course import Outcome
from tsbus.build.plan import HostPlan
from tsbus.build.reports import (
    STAGES,
    Answered,
    Entered,
    Failed,
    Left,
    Noted,
    Opened,
    Sent,
    Skipped,
    Stepped,
)
from tsbus.build.steps import Step
from tsbus.build.survey import Standing
from tsbus.build.trouble import Trouble
from tsbus.cli.build.picture import picture, plain
from tsbus.cli.build.planlines import plan_lines, plan_object, verdict
from tsbus.cli.build.progress import Progress
from tsbus.cli.build.reportlines import line_of, object_of
from tsbus.cli.build.standing import standing_code, standing_lines, standing_objects
from tsbus.cli.build.summary import summary_lines, summary_object
from tsbus.cli.edge import Code

REFUSED = Trouble("refused", "root@web9:22 refuses the connection", "is sshd running there?")
DOCKER = Step("docker", "install Docker from its own packages", "there is none", reversible=False)
RELEASE = Step("release", "upload and install release 0.1.0-ab12", "it has none")
MIB = 1 << 20

names = st.sampled_from([f"web{number}" for number in range(8)])
stages = st.sampled_from(STAGES)
seconds = st.floats(0, 1e5)
texts = st.text(max_size=30)
reports = st.one_of(
    st.builds(Opened, stages, st.lists(names, unique=True).map(tuple)),
    st.builds(Entered, names, stages, texts),
    st.builds(Stepped, names, st.sampled_from([DOCKER, RELEASE]), st.booleans(), seconds),
    st.builds(Sent, names, st.integers(0, 3 * MIB), st.just(3 * MIB)),
    st.builds(Noted, st.one_of(names, st.just("")), texts),
    st.builds(Left, names, stages, seconds),
    st.builds(Failed, names, stages, st.builds(Trouble, st.just("step"), texts, texts), seconds),
    st.builds(Skipped, names, stages, texts),
    st.builds(Answered, names, seconds),
)


def after(*told, at=0.0):
    """The progress after these reports, each a second after the one before."""
    progress = Progress(at)
    for number, report in enumerate(told, 1):
        progress.take(report, at + number)
    return progress


def drawn(progress, now_s, width=80, height=24, title="Building 97 servers"):
    return [plain(line).rstrip() for line in picture(progress, title, now_s, width, height)]


# Progress.


@given(st.lists(reports, max_size=60))
def test_each_server_of_a_stage_is_counted_once(told):
    """Whatever is reported in whatever order, a server is in one state of a stage, and at work in one stage at most."""
    progress = after(*told)
    heard = {name for report in told for name in getattr(report, "names", [getattr(report, "name", "")])}
    for count in progress.counts().values():
        assert min(count.values()) >= 0
        assert count.total() <= len(heard)
    working = [work.name for work in progress.longest(1000)]
    assert len(working) == len(set(working))


@given(st.lists(names, unique=True, min_size=1), st.data())
def test_counts_of_a_well_told_run_add_up(servers, data):
    """Of servers that go through their stages in order, all are waiting, working, done, failed or left out."""
    progress, ended = after(*(Opened(stage, tuple(servers)) for stage in STAGES)), set()
    for stage in STAGES:
        todo = [name for name in servers if name not in ended]
        for name in todo:
            match data.draw(st.sampled_from(["well", "fails", "skipped", "works"])):
                case "well":
                    told = [Entered(name, stage), Left(name, stage, 1)]
                case "fails":
                    told = [Entered(name, stage), Failed(name, stage, REFUSED, 1)]
                case "skipped":
                    told = [Skipped(name, stage, "the root has failed")]
                case _:
                    told = [Entered(name, stage)]
            for report in told:
                progress.take(report, 1)
            ended |= {name} if isinstance(told[-1], Failed | Skipped) else set()
        assert progress.counts().get(stage, Counter()).total() == len(todo)
    assert set(progress.failed) <= ended
    assert set(progress.finished()).isdisjoint(ended)


def test_a_failed_server_is_waited_for_in_no_stage():
    """Who has failed is failed where that was, and gone from the stages after it."""
    told = [Opened("docker", ("a", "b")), Opened("bundle", ("a", "b")), Failed("a", "docker", REFUSED, 1)]
    counts = after(*told).counts()
    assert counts == {"docker": Counter(waiting=1, failed=1), "bundle": Counter(waiting=1)}


def test_the_longest_at_work_come_first_and_say_what_they_do():
    """The time counts from the beginning of the stage, through its steps; the words are the latest."""
    told = [Entered("a", "docker", "install Docker"), Entered("b", "docker"), Entered("c", "bundle")]
    progress = after(*told, Entered("a", "docker", "install nft"), Noted("b", "apt (pid 7) has the package lock"))
    assert [(work.name, work.since_s, work.doing) for work in progress.longest(2)] == [
        ("a", 1, "install nft"),
        ("b", 2, "apt (pid 7) has the package lock"),
    ]


def test_who_has_gone_half_way_has_not_finished():
    """A server is finished when it runs what it should, and does not fail after that."""
    told = [Left("a", "bundle", 1), Left("b", "activate", 1), Left("c", "activate", 1), Left("d", "clean", 1)]
    assert after(*told, Failed("c", "verify", REFUSED, 1)).finished() == ["b", "d"]


# The picture.


@given(st.lists(reports, max_size=60), st.integers(0, 200), st.integers(0, 60), st.text("ab ", max_size=30))
def test_a_picture_fits_any_terminal(told, width, height, title):
    """It has no more lines and no longer ones than there is room for, and no control characters."""
    lines = drawn(after(*told), 100, width, height, title)
    assert len(lines) <= height
    assert all(len(line) <= width and (line.isprintable()) for line in lines)


def test_a_picture_of_a_thousand_servers_is_bounded():
    """A thousand servers of which each has failed in its own way fill a terminal, and the others are counted."""
    servers = tuple(f"web{number}" for number in range(1000))
    failed = [Failed(name, "probe", replace(REFUSED, text=f"{name} refuses"), 1) for name in servers]
    lines = drawn(after(Opened("probe", servers), *failed), 2000)
    assert len(lines) == 24
    assert lines[1].endswith("1000 failed")
    shown = sum("refuses" in line for line in lines)
    assert shown > 15 and lines[-1] == f"    ... and {1000 - shown} more"


def test_who_has_failed_alike_shares_a_line():
    """A thousand refused connections are one line."""
    servers = tuple(f"web{number}" for number in range(1000))
    lines = drawn(after(*(Failed(name, "probe", REFUSED, 1) for name in servers)), 2000)
    assert lines[-1] == "    web[0-999]  probe  root@web9:22 refuses the connection"


def test_a_picture_shows_stages_the_longest_and_the_failed():
    """At 80 columns there is room for all that is to be said."""
    servers = tuple(f"web{number}" for number in range(1, 98))
    told = [Opened(stage, servers) for stage in ("docker", "bundle")]
    told += [report for name in servers[:80] for report in (Entered(name, "docker"), Left(name, "docker", 3))]
    told += [Entered(name, "bundle") for name in servers[:2]]
    told += [Sent("web1", 2 * MIB, 4 * MIB), Sent("web2", 4 * MIB, 4 * MIB), Left("web2", "bundle", 9)]
    told += [Entered("web90", "docker", "install Docker"), Failed("web91", "docker", REFUSED, 1)]
    assert drawn(after(*told), 300) == [
        "Building 97 servers                                   6.0 of 8.0 MiB sent, 5 min",
        "  docker  ━━━━━━━━━━━━━━━━━━━━━━━╍────  80/97   1 working  15 waiting   1 failed",
        "  bundle  ────────────────────────────   1/96   1 working  94 waiting",
        "",
        "  at work for longest",
        "    web1   bundle  2 min  2.0 of 4.0 MiB of the bundle",
        "    web90  docker  2 min  install Docker",
        "",
        "  failed 1",
        "    web91  docker  root@web9:22 refuses the connection",
    ]


# Lines and objects.


@given(reports)
def test_every_report_has_an_object_and_at_most_one_line(report):
    """A line begins with its server and cannot steer a terminal; the object is JSON and says which report it is."""
    line = line_of(report)
    assert line.isprintable()
    if name := getattr(report, "name", ""):
        assert not line or line.startswith(f"{name}: ")
    told = json.loads(json.dumps(object_of(report)))
    assert told["report"] == type(report).__name__.lower()
    assert told.get("node", name) == name


def test_lines_tell_what_has_changed():
    """Steps that changed nothing and mere beginnings are no lines; a failure has its kind, and why it is told later."""
    told = [Entered("a", "docker", "x"), Stepped("a", DOCKER, False, 1), Stepped("a", DOCKER, True, 65),
            Left("a", "docker", 66), Failed("b", "probe", REFUSED, 1), Answered("a", 0.0021)]  # fmt: skip
    assert [line for line in map(line_of, told) if line] == [
        "a: install Docker from its own packages (65 s)",
        "a: docker done (66 s)",
        "b: probe failed (refused)",
        "a: answers in 2.1 ms",
    ]


# Plans.


def test_a_plan_shows_servers_with_the_same_steps_together():
    """Each group has its steps with their reasons, what stays is marked, and troubles have what mends them."""
    warning = Trouble("clock", "its clock is 70 s ahead", "set it (NTP)", fatal=False)
    plans = [
        *(HostPlan(f"web{number}", 1, (DOCKER, RELEASE)) for number in range(1, 98)),
        HostPlan("db", 1, (RELEASE,), (warning,)),
        HostPlan("cache", 1, (), (REFUSED,)),
        HostPlan("old", 1),
    ]
    assert [click.unstyle(line) for line in plan_lines(plans, 80)] == [
        "97 hosts: the same 2 steps",
        "  web[1-97]",
        "  docker  install Docker from its own packages: there is none (not undone by an",
        "          uninstall)",
        "  bundle  upload and install release 0.1.0-ab12: it has none",
        "",
        "db: one step",
        "  bundle  upload and install release 0.1.0-ab12: it has none",
        "  warning: its clock is 70 s ahead",
        "    mend: set it (NTP)",
        "",
        "cache: cannot be built",
        "  trouble: root@web9:22 refuses the connection",
        "    mend: is sshd running there?",
        "",
        "100 servers: 98 to change, 1 as they should be, 1 cannot be built",
    ]


def test_a_plan_says_what_cannot_be_done():
    """Who is in trouble cannot be what this run makes of servers."""
    lines = [click.unstyle(line) for line in plan_lines([HostPlan("a", 0, (), (REFUSED,))], 80, "cleaned")]
    assert (lines[0], lines[-1]) == ("a: cannot be cleaned", "1 server: 1 cannot be cleaned")


def test_a_plan_without_steps_says_that_there_is_nothing_to_do():
    """A second run is one line."""
    assert list(plan_lines([HostPlan("a", 0), HostPlan("b", 1)], 80)) == [
        "nothing to do: 2 servers are as they should be"
    ]
    assert verdict([HostPlan("a", 0)]) == "nothing to do: 1 server is as it should be"


def test_a_plan_is_an_object_for_each_server():
    """A script gets all steps and troubles, and whether the server can be built."""
    told = json.loads(json.dumps(plan_object(HostPlan("a", 0, (DOCKER,), (REFUSED,)))))
    assert told["node"] == "a" and told["can_go"] is False
    assert told["steps"][0] | {"kind": "docker", "stage": "docker", "reversible": False} == told["steps"][0]
    assert told["troubles"][0]["kind"] == "refused"


# The end.


def test_a_summary_tells_what_became_of_all():
    """Failed servers by kind with the next step, who waits for whom, the rest in numbers, and where to read on."""
    apt = Trouble("package-lock", "apt-get (pid 7) has the package lock", "wait for it", details="E: Could not get it")
    outcome = Outcome(
        names=("root", *(f"web{number}" for number in range(1, 10))),
        ok=("root", "web1", "web2"),
        waiting={"web4": "web3", "web5": "web3"},
        failed={"web3": apt, "web6": apt, "web7": replace(REFUSED, text="web7 refuses")},
        skipped={"web8": "too many others have failed", "web9": "too many others have failed"},
        changed={"root": 2, "web1": 1},
        answered={"root": 0.001, "web1": 0.002, "web2": 0.014},
    )
    assert [click.unstyle(line) for line in summary_lines(outcome, 84, ".treescale/logs/RUN/", 80)] == [
        "failed, package-lock: web[3,6] (2)",
        "  apt-get (pid 7) has the package lock",
        "    | E: Could not get it",
        "  next: wait for it",
        "failed, refused: web7",
        "  web7 refuses",
        "  next: is sshd running there?",
        "web[8-9] (2): left out: too many others have failed",
        "web[4-5] (2): built, and without a link until web3 is",
        "10 servers in 84 s: 2 changed, 1 as before, 2 without a link, 3 failed, 2 left out",
        "the tree answers: 3 of 10; median round trip 2.0 ms, slowest 14.0 ms (web2)",
        "transcripts: .treescale/logs/RUN/",
    ]
    told = json.loads(json.dumps(summary_object(outcome, 84, "")))
    assert {state: sorted(names) for state, names in told["summary"].items()} == {
        "ok": ["root", "web1", "web2"],
        "waiting": ["web4", "web5"],
        "failed": ["web3", "web6", "web7"],
        "skipped": ["web8", "web9"],
    }
    assert told["exit"] == 3


def test_a_summary_names_those_of_whom_the_plan_has_told_why():
    """Their trouble is not told again; that of the others is."""
    outcome = Outcome(("a", "b"), failed={"a": REFUSED, "b": replace(REFUSED, text="b refuses")})
    assert [click.unstyle(line) for line in summary_lines(outcome, 9, "logs/", 80, ["a"])] == [
        "failed, as the plan tells: a",
        "failed, refused: b",
        "  b refuses",
        "  next: is sshd running there?",
        "2 servers in 9 s: 2 failed",
        "transcripts: logs/",
    ]


def test_a_summary_of_a_locked_tree_says_who_has_it():
    """Nothing was done, so there is nothing else to say."""
    lines = list(summary_lines(Outcome(("a",), locked="alice@desk (pid 7), build, since 9:00"), 1, "", 80))
    assert lines[0] == "somebody else is building: alice@desk (pid 7), build, since 9:00"
    assert "build unlock" in lines[1] and len(lines) == 2


def test_a_table_of_standings_folds_what_is_alike():
    """Servers as they should be share a line, what drifts says how, and the exit code follows."""
    fine = [Standing(f"web{number}", True, "0.1.0-ab") for number in range(90)]
    other = Standing("db", False, "0.0.9-cd", ("its node does not run", "its copy of the tree is another"))
    lines = [click.unstyle(line) for line in standing_lines([*fine, other], {"old": REFUSED}, 100)]
    assert lines == [
        "NODES      STATE    RELEASE",
        "web[0-89]  answers  0.1.0-ab",
        "db         silent   0.0.9-cd",
        "  its node does not run",
        "  its copy of the tree is another",
        "old        failed   ?",
        "  root@web9:22 refuses the connection",
        "  mend: is sshd running there?",
        "",
        "92 servers: 90 as they should be, 1 not, 1 could not be asked",
    ]
    failed = {"old": REFUSED}
    found = ((fine, {}), ([other], {}), (fine, failed), ([], failed))
    assert [standing_code(*each) for each in found] == [Code.OK, Code.PARTIAL, Code.PARTIAL, Code.UNREACHABLE]
    assert next(standing_objects([other], failed))["drift"] == list(other.drift)
