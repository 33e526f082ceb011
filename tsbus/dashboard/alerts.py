"""Alerts: which rules of the configuration are fulfilled, since when, and what is to be told of it. Pure.

A rule is fulfilled by cases: a node, a container, a balancer, a peer, an event. Each goes its own way:

    | state    | it is so                 | it is not so             |
    |----------|--------------------------|--------------------------|
    | (none)   | pending, or firing       |                          |
    | pending  | firing after `for_s`     | (none)                   |
    | firing   |                          | ending, or resolved      |
    | ending   | firing                   | resolved after `hold_s`  |

What nobody can see, because its node is lost or the dashboard is cut off, neither begins nor ends.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from tsbus.config import Alert
from tsbus.core.condition import Condition
from tsbus.core.target import TargetError
from tsbus.core.topic import matches
from tsbus.dashboard.history import FRESH_MS
from tsbus.dashboard.problems import lost_tops, starts_since
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import ContainerView, EventRecord
from tsbus.filters import Filter, FilterError

MAX_ALARMS: Final = 10_000
"""Pending and firing, of all rules together; more are only counted."""
OF_CONTAINERS: Final = ("container-down", "restart-loop", "memory-over")
EMPTY: Final = ("empty", "sorry")
"""States of a balancer without a server."""

Key = tuple[str, str, str]
"""Rule, node, and what it is about on that node."""


class RuleError(ValueError):
    """A rule cannot be watched over; the text says where it is and what to do."""


@dataclass(frozen=True, slots=True)
class Case:
    """Something that fulfils a rule."""

    node: str
    subject: str
    """Short id of a container, name of a balancer or peer; empty where the node itself is meant."""
    text: str
    path: str
    """The page that shows it."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A rule and what fulfils it."""

    rule: str
    case: Case
    state: Literal["pending", "firing", "ending"]
    since_ms: int
    """Since when it is so."""
    at_ms: int
    """Since when it is in this state."""

    @property
    def key(self) -> Key:
        """What makes it one and the same."""
        return self.rule, self.case.node, self.case.subject


@dataclass(frozen=True, slots=True)
class News:
    """Something to tell: the body of `alert.firing` and `alert.resolved`, of webhooks and calls."""

    state: Literal["firing", "resolved"]
    alarm: Alarm
    when: str
    at_ms: int
    test: bool = False

    def body(self) -> dict[str, Any]:
        """Return it as JSON tells it."""
        case = self.alarm.case
        told = {
            "state": self.state, "rule": self.alarm.rule, "when": self.when, "node": case.node, "subject": case.subject,
            "text": case.text, "path": case.path, "since_ms": self.alarm.since_ms, "at_ms": self.at_ms,
        }  # fmt: skip
        return told | ({"test": True} if self.test else {})


class _Rule:
    """A rule, read."""

    def __init__(self, alert: Alert) -> None:
        self.alert = alert
        self.condition = Condition.parse(alert.condition) if alert.condition else None
        try:
            self.filter = Filter.parse(*alert.filters)
        except FilterError as error:
            raise RuleError(f"alerts.{alert.name}.filters: {error}") from None

    def containers(self, model: Model, nodes: frozenset[str]) -> Iterator[ContainerView]:
        for node in nodes:
            for view in model.containers.get(node, {}).values():
                if self.filter.matches(node, view.record):
                    yield view


_Cases = Callable[[_Rule, Model, frozenset[str], int], Iterator[Case]]


class Alerts:
    """All rules, and what fires."""

    def __init__(self, rules: Mapping[str, Alert]) -> None:
        """Raises RuleError for a rule that cannot be read."""
        self.rules = dict(rules)
        self.left_out = 0
        """Cases that were too many when the model was looked at last."""
        self.broken: dict[str, str] = {}
        """Rules whose target names what is not there, and in which words."""
        self._rules = {name: _Rule(alert) for name, alert in rules.items()}
        self._alarms: dict[Key, Alarm] = {}

    @property
    def alarms(self) -> list[Alarm]:
        """What is pending, firing or about to end, the newest first."""
        return sorted(self._alarms.values(), key=lambda alarm: (-alarm.at_ms, alarm.key))

    @property
    def topics(self) -> frozenset[str]:
        """Topics of the events that rules wait for."""
        return frozenset(rule.on for rule in self.rules.values() if rule.on)

    @property
    def needs_figures(self) -> bool:
        """Whether a rule looks at figures, so that they must flow."""
        return any(rule.when == "memory-over" for rule in self.rules.values())

    def check(self, model: Model, now_ms: int) -> list[News]:
        """Look at the model; returns what is to be told. To be called about once a second."""
        news: list[News] = []
        if not model.connected:
            return news
        self.left_out = 0
        found: dict[Key, Case] = {}
        for name, rule in self._rules.items():
            if rule.alert.when == "event":
                continue
            for case in _CASES[rule.alert.when](rule, model, self._nodes(name, rule, model), now_ms):
                found[name, case.node, case.subject] = case
        for key, case in found.items():
            news += self._is_so(key, case, now_ms)
        for key, alarm in list(self._alarms.items()):
            if key not in found and not self._is_hidden(alarm, model, now_ms):
                news += self._is_not_so(alarm, now_ms)
        return news

    def event(self, event: EventRecord, model: Model, now_ms: int) -> list[News]:
        """Look at an event; returns what is to be told. Alerts themselves are no reason for an alert."""
        news: list[News] = []
        if event.topic.startswith("alert."):
            return news
        for name, rule in self._rules.items():
            if rule.alert.on and matches(rule.alert.on, event.topic) and event.node in self._nodes(name, rule, model):
                if rule.condition is not None and not rule.condition.holds(event.json()):
                    continue
                case = Case(event.node, "", f"{event.topic} on {event.node}", f"/node/{event.node}")
                news += self._is_so((name, event.node, ""), case, now_ms)
                # An event is over at once: what is left of it is how long it is to be remembered.
                if (alarm := self._alarms.get((name, event.node, ""))) is not None:
                    self._is_not_so(alarm, now_ms, may_end=False)
        return news

    def test(self, name: str, now_ms: int) -> News:
        """Return what tells that the rule `name` is only tested. Raises KeyError for an unknown one."""
        alert = self.rules[name]
        case = Case("", "", f"this is a test of the alert {name}; nothing is wrong", "/alerts")
        return News("firing", Alarm(name, case, "firing", now_ms, now_ms), alert.when, now_ms, test=True)

    def _nodes(self, name: str, rule: _Rule, model: Model) -> frozenset[str]:
        try:
            nodes = model.select(rule.alert.target)
        except TargetError as error:
            self.broken[name] = str(error)
            return frozenset()
        self.broken.pop(name, None)
        return nodes

    def _is_hidden(self, alarm: Alarm, model: Model, now_ms: int) -> bool:
        """Whether nobody can see if it is still so."""
        node, when = model.nodes.get(alarm.case.node), self.rules[alarm.rule].when
        if node is None or when in ("node-lost", "event"):
            return False
        no_containers = when in OF_CONTAINERS and node.standing not in ("live", "engine down")
        return node.state == "lost" or no_containers or (when == "memory-over" and now_ms - node.stats_ms > FRESH_MS)

    def _is_so(self, key: Key, case: Case, now_ms: int) -> list[News]:
        alert = self.rules[key[0]]
        alarm = self._alarms.get(key)
        if alarm is None and len(self._alarms) >= MAX_ALARMS:
            self.left_out += 1
            return []
        if alarm is None:
            alarm = Alarm(key[0], case, "pending", now_ms, now_ms)
        fires = alarm.state == "pending" and now_ms - alarm.since_ms >= alert.for_s * 1000
        if fires or alarm.state == "ending":
            alarm = replace(alarm, state="firing", at_ms=now_ms)
        self._alarms[key] = alarm = replace(alarm, case=case)
        return [News("firing", alarm, alert.when, now_ms)] if fires else []

    def _is_not_so(self, alarm: Alarm, now_ms: int, *, may_end: bool = True) -> list[News]:
        alert = self.rules[alarm.rule]
        if alarm.state == "pending":
            del self._alarms[alarm.key]
            return []
        if alarm.state == "firing":
            alarm = self._alarms[alarm.key] = replace(alarm, state="ending", at_ms=now_ms)
        if not may_end or now_ms - alarm.at_ms < alert.hold_s * 1000:
            return []
        del self._alarms[alarm.key]
        return [News("resolved", alarm, alert.when, now_ms)]


# What fulfils the rules -----------------------------------------------------------------------------------------------


def _lost(rule: _Rule, model: Model, nodes: frozenset[str], _: int) -> Iterator[Case]:
    for top, below in lost_tops(model):
        if nodes & {top.name, *below}:
            more = f", and with it {len(below)} below" if below else ""
            yield Case(top.name, "", f"{top.name} is lost ({top.cause}){more}", f"/node/{top.name}")


def _down(rule: _Rule, model: Model, nodes: frozenset[str], _: int) -> Iterator[Case]:
    for view in rule.containers(model, nodes):
        if view.record.state in ("exited", "dead"):
            yield _of(view, f"{view.name} on {view.node} does not run: exit code {view.record.exit_code}")


def _looping(rule: _Rule, model: Model, nodes: frozenset[str], now_ms: int) -> Iterator[Case]:
    within_s = rule.alert.within_s
    for view in rule.containers(model, nodes):
        starts = len(starts_since(view, now_ms - round(within_s * 1000)))
        if starts >= rule.alert.starts:
            yield _of(view, f"{view.name} on {view.node} was started {starts} times in {within_s:.0f} s")


def _full(rule: _Rule, model: Model, nodes: frozenset[str], now_ms: int) -> Iterator[Case]:
    for view in rule.containers(model, nodes):
        sample = view.sample
        if sample is None or not sample.memory_limit or now_ms - model.nodes[view.node].stats_ms > FRESH_MS:
            continue
        share = sample.memory * 100 / sample.memory_limit
        if share > rule.alert.over:
            yield _of(view, f"{view.name} on {view.node} uses {share:.0f} % of its memory")


def _empty(rule: _Rule, model: Model, nodes: frozenset[str], _: int) -> Iterator[Case]:
    for node in nodes:
        for view in model.balancers.get(node, {}).values():
            if view.state in EMPTY:
                yield Case(node, view.name, f"balancer {view.name} on {node} has no server", "/balancers")


def _slow(rule: _Rule, model: Model, nodes: frozenset[str], _: int) -> Iterator[Case]:
    for node in nodes:
        for peer in model.nodes[node].slow:
            yield Case(node, peer.name, f"{peer.name} on {node} reads more slowly than events come", "/bus")


def _of(view: ContainerView, text: str) -> Case:
    return Case(view.node, view.id, text, f"/container/{view.node}/{view.id}")


_CASES: Final[dict[str, _Cases]] = {
    "node-lost": _lost,
    "container-down": _down,
    "restart-loop": _looping,
    "memory-over": _full,
    "balancer-empty": _empty,
    "slow-consumer": _slow,
}
