"""Problems in words: what is wrong is said once, of the thing that explains the rest, and where to look."""

import msgspec
import told

from tsbus.dashboard.answers import Stats
from tsbus.dashboard.problems import LATELY_MS, Problem, problems
from tsbus.dashboard.state import Model
from tsbus.lb_records import ProblemRecord

NOW = told.NOW
NS = 1_000_000


def found(model: Model, now_ms: int = NOW) -> list[tuple[str, str, str]]:
    return [(one.kind, one.node, one.text) for one in problems(model, now_ms)]


def test_nothing_is_wrong_with_a_healthy_tree():
    """Nodes that are up, containers that run or were stopped, and a balancer with servers are no problem."""
    model = told.model()
    stopped = told.container(2, "exited", exit_code=143, finished_ns=NOW * NS)
    told.Node(model, "a", told.container(health="healthy"), stopped, told.container(3, "exited", exit_code=0))
    model.balancing("a", [told.balancer("web", "ok", told.server())], NOW)
    assert problems(model, NOW) == []


def test_a_lost_node_speaks_for_all_below_it():
    """One problem names the top, and how many are lost with it; of what is on them nothing more is said."""
    model = told.model(lost=("a", "a1"))
    told.Node(model, "a1", told.container(health="unhealthy"))
    assert found(model) == [("node-lost", "a", "a is lost (heartbeat), and with it 2 below: a[1-2]")]
    (problem,) = problems(model, NOW)
    assert problem.path == "/node/a"
    assert "see that the machine runs" in problem.mend


def test_what_was_stopped_is_started_and_what_never_came_is_looked_at():
    """What to do about a lost node depends on how it was lost."""
    stopped = told.model(lost=("b",), b={"cause": "bye"})
    assert problems(stopped, NOW)[0].mend.startswith("its router was stopped: start it there")
    never = told.model(lost=("b",), b={"cause": "never"})
    assert problems(never, NOW)[0].mend.startswith("start it; if it runs, its address or its key")


def test_a_router_that_is_away_is_one_problem():
    """While the dashboard has no bus, that is said once, and not of each node that nothing is heard of."""
    model = told.model()
    nodes = [told.Node(model, name, told.container(health="unhealthy")) for name in ("a", "b", "a1")]
    for node in nodes:
        node.mirror.stale(node.name, "not connected to the router here", NOW * NS)
        model.mirrored(node.view)
    assert {kind for kind, *_ in found(model)} == {"stale", "container-unhealthy"}
    model.connection(False, NOW)
    kinds = [kind for kind, *_ in found(model)]
    assert kinds.count("disconnected") == 1
    assert set(kinds) == {"disconnected", "container-unhealthy"}


def test_nodes_that_hang_on_each_other_are_not_followed_for_ever():
    """While news still travel, lost nodes may seem to stand on each other."""
    model = told.model(lost=("a", "b"), a={"parent": "b"}, b={"parent": "a"})
    assert {kind for kind, *_ in found(model)} <= {"node-lost"}


def test_what_a_node_has():
    """Torpid, a slow reader, a clock that is off, a program that does not start, an engine that is down."""
    model = told.model(a={"state": "torpid"})
    node = told.Node(model, "b")
    node.snapshot(up=False, reason="no socket")
    told.Node(model, "a1")
    model.event(told.event("bus.slow", "root", {"peer": "sub", "kind": "worker", "dropped": 5}), NOW)
    model.event(told.event("process.fatal", "a2", {"name": "executor"}, who="uid:0"), NOW)
    for _ in range(8):
        model.event(told.event("x.y", "a1", time_ms=NOW - 7_200_000), NOW)
    assert set(found(model)) == {
        ("node-torpid", "a", "a is connected, but its router does not answer"),
        ("slow-reader", "root", "sub reads more slowly than events come from root and has lost 5 events"),
        ("process-fatal", "a2", "executor on a2 does not start; it is tried again"),
        ("clock-skew", "a1", "the clock of a1 is 7200 s behind the one here"),
        ("engine-down", "b", "the Docker engine of b is down: no socket"),
    }


def test_a_view_that_is_not_kept_up_is_a_problem():
    """A monitor that ended leaves the containers as they were."""
    model = told.model()
    node = told.Node(model, "a", told.container())
    node.mirror.stale("a", "its monitor ended", NOW * NS)
    model.mirrored(node.view)
    text = "the containers of a are as they were last known: its monitor ended"
    assert found(model) == [("stale", "a", text)]


def test_what_a_container_has():
    """Unhealthy, killed for its memory, ended with an error, or started again and again: each says one thing."""
    model = told.model()
    sick = told.container(1, name="sick", health="unhealthy")
    failed = told.container(2, "exited", name="failed", exit_code=3, finished_ns=(NOW - 5000) * NS)
    killed = told.container(3, "exited", name="killed", exit_code=137, oom=True, finished_ns=(NOW - 9000) * NS)
    node = told.Node(model, "a", sick, failed, killed)
    for number in range(3):
        node.event("died", told.container(4, "exited", name="loop", exit_code=1), NOW - 1000)
        node.event("started", told.container(4, name="loop"), NOW - 8000 + number)
    assert found(model) == [
        ("container-failed", "a", "failed on a ended with exit code 3"),
        ("restart-loop", "a", "loop on a was started 3 times in 5 minutes, last with exit code 1"),
        ("container-oom", "a", "killed on a met the out-of-memory killer"),
        ("container-unhealthy", "a", "sick on a is unhealthy"),
    ]
    assert problems(model, NOW)[0].path == f"/container/a/{told.short(2)}"
    assert [kind for kind, *_ in found(model, NOW + LATELY_MS)] == ["container-unhealthy"]


def test_a_loop_that_began_before_anybody_listened():
    """The engine has counted the starts."""
    model = told.model()
    told.Node(model, "a", told.container(1, "restarting", restarts=7, exit_code=1))
    assert found(model) == [("restart-loop", "a", "c1 on a was started again 7 times")]


def test_a_container_that_somebody_stopped_is_no_problem():
    """A program that ends by SIGKILL after its stop signal did what was wanted."""
    model = told.model()
    node = told.Node(model, "a", told.container())
    node.event("draining", told.container(draining=True), NOW - 10_000, signal=15)
    node.event("died", told.container(1, "exited", exit_code=137, finished_ns=NOW * NS))
    assert problems(model, NOW) == []


def test_what_a_balancer_has():
    """No server, too many lost ones, a clash, its own problems, and a process that does not run."""
    model = told.model()
    noted = msgspec.structs.replace(
        told.balancer("noted", "ok"), problems=(ProblemRecord(text="ip_forward is 0", mend="sysctl it"),
                                               ProblemRecord(text="meant so", note=True))
    )  # fmt: skip
    states = [told.balancer(state, state) for state in ("empty", "sorry", "panic", "clash")]
    model.balancing("a", [*states, noted], NOW)
    model.unbalanced("b", "its balancer does not run")
    assert {(one.kind, one.subject) for one in problems(model, NOW)} == {
        ("balancer-empty", "empty"), ("balancer-empty", "sorry"), ("balancer-panic", "panic"),
        ("balancer-clash", "clash"), ("balancer-problem", "noted"), ("balancer-off", ""),
    }  # fmt: skip
    (own,) = [one for one in problems(model, NOW) if one.kind == "balancer-problem"]
    assert (own.text, own.mend) == ("balancer noted on a: ip_forward is 0", "sysctl it")


def test_severe_problems_come_first_and_the_newest_of_them():
    """What is down is above what is doubtful."""
    model = told.model(lost=("b",), a={"state": "torpid", "since_ms": NOW})
    model.connection(False, NOW)
    link = {"name": "b", "kind": "child", "role": "child", "slow": True}
    model.router("root", msgspec.convert({"links": [link]}, Stats), NOW)
    kinds = [one.kind for one in problems(model, NOW)]
    assert kinds[:2] == ["disconnected", "node-lost"]
    assert set(kinds[2:]) == {"node-torpid", "slow-reader"}
    assert Problem(kind="disconnected", text="").path == "/bus"
