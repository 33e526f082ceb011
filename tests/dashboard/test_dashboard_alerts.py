"""Alerts: what fires, when, once, and when it is over; with the time passed in."""

import msgspec
import pytest
import told
from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.config import Alert
from tsbus.dashboard.alerts import Alerts, RuleError
from tsbus.dashboard.answers import Stats
from tsbus.dashboard.state import Model
from tsbus.records import Sample

NOW = told.NOW


def rules(**rule) -> Alerts:
    return Alerts({"r": Alert(name="r", **rule)})


def told_of(alerts: Alerts, model: Model, second: float = 0) -> list[tuple[str, str, str]]:
    now = NOW + round(second * 1000)
    return [(one.state, one.alarm.case.node, one.alarm.case.subject) for one in alerts.check(model, now)]


def of_events(alerts: Alerts, model: Model, second: float = 0) -> list[str]:
    """What is told of the newest event."""
    return [one.state for one in alerts.event(list(model.events)[-1], model, NOW + round(second * 1000))]


def test_a_lost_node_fires_once_and_is_resolved():
    """The top of what is lost is one alert, whatever is below it."""
    alerts = rules(when="node-lost")
    model = told.model(lost=("a",))
    assert told_of(alerts, model) == [("firing", "a", "")]
    assert told_of(alerts, model, 1) == []
    model.status(told.status(), NOW)
    assert told_of(alerts, model, 2) == [("resolved", "a", "")]
    assert alerts.alarms == []


def test_a_target_and_filters_say_what_counts():
    """Only what is so on these nodes, and containers that fit."""
    alerts = rules(when="container-down", target="a/", filters=("image=nginx", "name=c*"))
    model = told.model()
    down = {"state": "exited", "exit_code": 1}
    told.Node(model, "a1", told.container(1, **down), told.container(2, name="other", **down), told.container(3))
    told.Node(model, "b", told.container(4, **down))
    assert told_of(alerts, model) == [("firing", "a1", told.short(1))]
    assert alerts.alarms[0].case.path == f"/container/a1/{told.short(1)}"


def test_every_kind_of_rule_finds_its_case():
    """A loop of restarts, memory, an empty balancer, and a reader that is slow."""
    model = told.model()
    node = told.Node(model, "a", told.container())
    for number in range(4):
        node.event("started", told.container(), NOW - 100 + number)
    model.figures(told.figures("a", {1: Sample(memory=95, memory_limit=100)}), NOW)
    model.balancing("a", [told.balancer("web", "empty")], NOW)
    model.router(
        "a", msgspec.convert({"links": [{"name": "a1", "kind": "child", "role": "child", "slow": True}]}, Stats), NOW
    )
    subjects = {
        when: told_of(rules(when=when), model)
        for when in ("restart-loop", "memory-over", "balancer-empty", "slow-consumer")
    }
    container = ("firing", "a", told.short())
    assert subjects == {
        "restart-loop": [container], "memory-over": [container],
        "balancer-empty": [("firing", "a", "web")], "slow-consumer": [("firing", "a", "a1")],
    }  # fmt: skip
    assert told_of(rules(when="memory-over", over=96.0), model) == []
    assert told_of(rules(when="restart-loop", starts=5), model) == []


def test_it_must_last_before_it_fires_and_be_over_for_a_while():
    """Shorter than `for_s` is nothing; shorter than `hold_s` is no end."""
    alerts = rules(when="node-lost", for_s=10.0, hold_s=20.0)
    lost, whole = told.model(lost=("a",)), told.model()
    assert told_of(alerts, lost, 0) == told_of(alerts, lost, 9) == []
    assert alerts.alarms[0].state == "pending"
    assert told_of(alerts, whole, 9.5) == told_of(alerts, lost, 9.6) == told_of(alerts, lost, 19) == []
    assert told_of(alerts, lost, 19.6) == [("firing", "a", "")]
    assert told_of(alerts, whole, 30) == told_of(alerts, whole, 49) == told_of(alerts, lost, 49.5) == []
    assert told_of(alerts, whole, 50) == told_of(alerts, whole, 69.9) == []
    assert told_of(alerts, whole, 70) == [("resolved", "a", "")]


def test_what_nobody_can_see_neither_begins_nor_ends():
    """A container on a lost node, figures that stopped, and everything while the dashboard is cut off."""
    model = told.model()
    alerts = Alerts({"down": Alert(name="down", when="container-down"), "full": Alert(name="full", when="memory-over")})
    node = told.Node(model, "a", told.container(1, "exited", exit_code=1), told.container(2))
    model.figures(told.figures("a", {2: Sample(memory=95, memory_limit=100)}), NOW)
    assert len(told_of(alerts, model)) == 2
    assert told_of(alerts, model, 60) == []  # the figures are old
    model.status(told.status(lost=("a",)), NOW)
    node.snapshot()
    assert told_of(alerts, model, 61) == []
    model.connection(False, NOW)
    model.status(told.status(), NOW)
    assert told_of(alerts, model, 62) == []
    model.connection(True, NOW)
    assert told_of(alerts, model, 63) == [("resolved", "a", told.short(1))]


def test_events_fire_by_topic_node_and_what_they_say():
    """A rule of one's own: any topic, with a simple condition; it is over `hold_s` after the last event."""
    alerts = rules(when="event", on="backup.*", condition="exit_code != 0", target="a/", hold_s=60.0)
    model = told.model()

    def say(topic: str, node: str, body: object, second: float) -> list[str]:
        model.event(told.event(topic, node, body, who="uid:5"), NOW)
        return of_events(alerts, model, second)

    assert say("backup.done", "a1", {"exit_code": 0}, 0) == []
    assert say("backup.done", "b", {"exit_code": 1}, 0) == []
    assert say("other.done", "a1", {"exit_code": 1}, 0) == []
    assert say("backup.done", "a1", b"no json", 0) == []
    assert say("backup.done", "a1", {"exit_code": 1}, 0) == ["firing"]
    assert say("backup.done", "a1", {"exit_code": 2}, 30) == []
    assert told_of(alerts, model, 89) == []
    assert told_of(alerts, model, 90) == [("resolved", "a1", "")]


def test_alerts_are_no_reason_for_alerts():
    """A rule for all topics does not feed itself."""
    alerts = rules(when="event", on=">")
    model = told.model()
    model.event(told.event("alert.firing", "root", {"rule": "r"}), NOW)
    assert of_events(alerts, model) == []


def test_a_target_of_unknown_nodes_is_told():
    """Such a rule finds nothing, and says why."""
    alerts = rules(when="node-lost", target="nobody")
    assert told_of(alerts, told.model(lost=("a",))) == []
    assert "nobody" in alerts.broken["r"]


def test_a_rule_that_cannot_be_read_is_an_error_with_its_place():
    """A filter with a state that does not exist is found when the rules are read."""
    with pytest.raises(RuleError, match=r"alerts\.r\.filters: .*the state is one of"):
        rules(when="container-down", filters=("state=gone",))


def test_news_tell_all_that_a_reader_needs():
    """The body of the event and of webhooks, and that of a test."""
    alerts = rules(when="node-lost")
    (news,) = alerts.check(told.model(lost=("b",)), NOW)
    assert news.body() == {
        "state": "firing", "rule": "r", "when": "node-lost", "node": "b", "subject": "",
        "text": "b is lost (heartbeat)", "path": "/node/b", "since_ms": NOW, "at_ms": NOW,
    }  # fmt: skip
    assert alerts.test("r", NOW).body()["test"] is True


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=40), st.integers(0, 40), st.integers(0, 40))
def test_firing_and_resolved_take_turns(course, for_s, hold_s):
    """Whatever comes and goes, alerts fire and are resolved in turns, and all end when it is long over."""
    alerts = rules(when="node-lost", for_s=float(for_s), hold_s=float(hold_s))
    models = {True: told.model(lost=("a",)), False: told.model()}
    second, states = 0, []
    for pause, lost in [*course, (1, False), (41, False), (41, False)]:
        second += pause
        states += [state for state, *_ in told_of(alerts, models[lost], second)]
    assert states == ["firing", "resolved"] * (len(states) // 2)
    assert alerts.alarms == []
