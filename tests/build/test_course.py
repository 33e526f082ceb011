"""The course of a run: whoever fails whenever, the others go on in the right order, and all come to one end."""

from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.course import EARLY, LATE, Course, Outcome, Stages
from tsbus.build.reports import Entered, Failed, Left
from tsbus.build.steps import STAGES, Step
from tsbus.build.trouble import Trouble
from tsbus.core.tree import Topology

BROKEN = Trouble("step", "it broke", "mend it")
PHASES = ("probe", "early", "late")
AT = ("probe", "docker", "key", "configure", "activate")


@st.composite
def trees(draw):
    """A tree of up to 14 nodes, whose first is the root."""
    count = draw(st.integers(1, 14))
    children = {f"n{number}": [] for number in range(count)}
    for number in range(1, count):
        children[f"n{draw(st.integers(0, number - 1))}"].append(f"n{number}")
    return Topology(children)


@st.composite
def stories(draw):
    """A run: its tree and servers, what each has to do, and who fails when."""
    topology = draw(trees())
    some = st.lists(st.sampled_from(topology.names), unique=True)
    names = draw(st.one_of(st.just(list(topology.names)), some))
    kinds = st.lists(st.sampled_from(list(STAGES)), unique=True, max_size=3)
    steps = {name: tuple(Step(kind, kind, "") for kind in draw(kinds)) for name in topology.names}
    fails = {name: draw(st.sampled_from(PHASES)) for name in draw(some)}
    return Course(topology, names, draw(st.one_of(st.none(), st.integers(0, 4)))), steps, fails


def run(course, steps, fails):
    """Go through a run as a campaign does; returns what was done, in its order."""
    done = []

    def do(phase, names):
        for name in names:
            if course.room == 0:
                course.skip(name, "too many others have failed")
                continue
            done.append((phase, name))
            if fails.get(name) == phase:
                course.fail(name, BROKEN)

    do("probe", course.standing)
    do("early", course.early(steps))
    for wave in course.waves(steps):
        do("late", wave)
    return done


@given(stories())
def test_a_run_goes_on_without_those_that_fail(story):
    """What has failed is never touched again, and everybody else does all that there is to do, unless the root failed
    or too many did."""
    course, steps, fails = story
    done = run(course, steps, fails)
    assert len(done) == len(set(done))
    for name, phase in fails.items():
        if (phase, name) in done:
            assert not {(later, name) for later in PHASES[PHASES.index(phase) + 1 :]} & set(done)
    for name in course.standing:
        due = [
            phase for phase, stages in (("early", EARLY), ("late", LATE)) if any(s.stage in stages for s in steps[name])
        ]
        if not course.root_failed:
            assert [phase for phase in ("early", "late") if (phase, name) in done] == due


@given(stories())
def test_the_order_of_a_run(story):
    """Nobody is configured before all have been through the early stages, nor before anybody above it."""
    course, steps, fails = story
    done = run(course, steps, fails)
    phases = [PHASES.index(phase) for phase, _ in done]
    assert phases == sorted(phases)
    late = [name for phase, name in done if phase == "late"]
    for name in late:
        assert not set(course.topology.ancestors(name)) & set(late[late.index(name) :])


@given(stories())
def test_nothing_is_activated_without_the_root(story):
    """After the root of the run has failed, no server goes through a late stage."""
    course, steps, fails = story
    done = run(course, steps, fails)
    root = course.topology.root
    if course.root_failed:
        assert {name for phase, name in done if phase == "late"} <= {root}


@given(stories())
def test_everybody_comes_to_one_end(story):
    """Each server has failed, was left out, or stands; those that wait stand, each for the nearest that does not."""
    course, steps, fails = story
    run(course, steps, fails)
    ends = [*course.failed, *course.skipped, *course.standing]
    assert sorted(ends) == sorted(course.names)
    for name, above in course.waiting.items():
        way = course.topology.ancestors(name)
        assert name in course.standing
        assert above in {*course.failed, *course.skipped}
        assert not set(way[: way.index(above)]) & {*course.failed, *course.skipped}


@given(stories())
def test_too_many_failures(story):
    """After so many failures no further server is begun."""
    course, steps, fails = story
    most = course.room
    run(course, steps, fails)
    if most is not None:
        assert len(course.failed) <= max(1, most)
        assert not course.skipped or len(course.failed) == most


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(("leave", "again", "fail", *AT))), max_size=30))
def test_stages(moves):
    """A server leaves each stage that it has entered once, before it enters the next one, unless it begins anew."""
    stages, there = Stages(), {}
    for now, (name, move) in enumerate(moves):
        before = there.get(name)
        if move == "again":
            stages.again(name)
            there.pop(name, None)
        elif move == "fail":
            told = stages.fail(name, "probe", BROKEN, now)
            assert told == Failed(name, before[0] if before else "probe", BROKEN, now - before[1] if before else 0)
            there.pop(name, None)
        elif move == "leave":
            assert list(stages.leave(name, now)) == ([Left(name, before[0], now - before[1])] if before else [])
            there.pop(name, None)
        else:
            left = [Left(name, before[0], now - before[1])] if before and before[0] != move else []
            assert list(stages.enter(name, move, now, "x")) == [*left, Entered(name, move, "x")]
            there[name] = before if before and not left else (move, now)
            assert stages.last[name] == move


def test_exit_codes():
    """As docs/build.md has them."""
    names = ("a", "b")
    assert Outcome(names, ok=names).exit_code == 0
    assert Outcome(names, ok=("a",), failed={"b": BROKEN}).exit_code == 3
    assert Outcome(names, ok=("a",), waiting={"b": "c"}).exit_code == 3
    assert Outcome(names, ok=("a",), skipped={"b": "why"}).exit_code == 3
    assert Outcome(names, failed=dict.fromkeys(names, BROKEN), reached=False).exit_code == 4
    assert Outcome(names, locked="somebody").exit_code == 6
