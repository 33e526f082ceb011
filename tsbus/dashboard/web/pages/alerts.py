"""Alerts: what fires, the rules of the configuration, whom they tell, and whether that works."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from tsbus.config import Alert
from tsbus.dashboard.alerts import Alarm
from tsbus.dashboard.notify import Delivery, Notifier
from tsbus.dashboard.state import Model
from tsbus.dashboard.web.pages import tones
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Column, Table, text
from tsbus.dashboard.web.pages.sheets import Row, cut

_ALARMS: Final[tuple[Column, ...]] = (
    {"id": "text", "title": "What", "width": "minmax(180px, 3fr)"},
    {"id": "state", "title": "State", "kind": "state", "width": "100px"},
    {"id": "rule", "title": "Rule", "width": "minmax(90px, 1fr)", "line": 2, "label": ""},
    {"id": "since", "title": "Since", "kind": "age", "width": "90px", "end": True, "line": 2, "label": "for"},
)
_RULES: Final[tuple[Column, ...]] = (
    {"id": "rule", "title": "Rule", "width": "minmax(110px, 1fr)"},
    {"id": "state", "title": "State", "kind": "state", "width": "110px"},
    {"id": "when", "title": "When", "width": "minmax(140px, 2fr)", "line": 2, "label": "", "dim": True},
    {"id": "to", "title": "Tells", "width": "minmax(100px, 1.4fr)", "line": 0, "dim": True},
    {"id": "acts", "title": "Do", "kind": "actions", "width": "70px", "sort": False},
)
_TOLD: Final[tuple[Column, ...]] = (
    {"id": "to", "title": "To", "width": "minmax(140px, 1fr)"},
    {"id": "how", "title": "How it went", "kind": "state", "width": "minmax(120px, 2fr)"},
    {"id": "rule", "title": "Rule", "width": "minmax(90px, 1fr)", "line": 2, "label": ""},
    {"id": "what", "title": "What", "width": "90px", "line": 2, "label": "", "dim": True},
    {"id": "when", "title": "When", "kind": "time", "width": "80px", "end": True, "line": 2, "label": ""},
)
_STATES: Final[dict[str, tones.Tone]] = {"firing": "bad", "pending": "busy", "ending": "warn"}


def alarms(model: Model, now_ms: int, notifier: Notifier) -> Iterator[Row]:
    """Return what fires or is about to."""
    yield from map(_alarm, notifier.alerts.alarms)


def _alarm(alarm: Alarm) -> Row:
    cells = (cut(alarm.case.text), (_STATES[alarm.state], alarm.state), alarm.rule, alarm.since_ms)
    return Row(" ".join(alarm.key), cells, href=alarm.case.path)


def rules(model: Model, now_ms: int, notifier: Notifier, refused: str) -> Iterator[Row]:
    """Return the rules."""
    firing = [alarm.rule for alarm in notifier.alerts.alarms if alarm.state == "firing"]
    for name, rule in notifier.alerts.rules.items():
        count = firing.count(name)
        state = ("bad", f"{count} firing") if count else ("ok", "quiet")
        cells = (name, state, words(rule), ", ".join(tells(rule)), (("test", "Test", refused),))
        yield Row(name, cells, note=cut(notifier.alerts.broken.get(name, "")))


def words(rule: Alert) -> str:
    """Return in words when a rule fires."""
    more = {
        "memory-over": f" {rule.over:g} % of the limit",
        "restart-loop": f", {rule.starts} starts in {rule.within_s:g} s",
        "event": f" {rule.on} {rule.condition}".rstrip(),
    }
    parts = [rule.when.replace("-", " ") + more.get(rule.when, "")]
    if rule.target != "*":
        parts.append(f"on {rule.target}")
    if rule.filters:
        parts.append(", ".join(rule.filters))
    if rule.for_s:
        parts.append(f"for {rule.for_s:g} s")
    return cut(" · ".join(parts))


def tells(rule: Alert) -> list[str]:
    """Return whom a rule tells: of a webhook the host, because the rest of its address may be a secret."""
    return ["the bus", *(urlsplit(url).hostname or "a webhook" for url in rule.to), *filter(None, (rule.call,))]


def told(model: Model, now_ms: int, notifier: Notifier) -> Iterator[Row]:
    """Return what became of telling, the newest first."""
    deliveries = list(notifier.deliveries)
    for number, one in reversed(list(enumerate(deliveries))):
        yield _told(number, one)


def _told(number: int, one: Delivery) -> Row:
    how = ("bad", cut(one.error)) if one.error else ("ok", "told")
    return Row(f"{number} {one.at_ms}", (one.to, how, one.rule, one.state, one.at_ms))


def build(page: Page) -> None:
    """Show the alerts."""
    notifier = page.site.notifier
    if not notifier.alerts.rules:
        with text("section", classes="start"):
            text("h1", "No alerts are configured.")
            text("p", "A rule watches over the tree and tells the bus, a webhook or a command. In treescale.toml:")
            text("pre", '[alerts.lost]\nwhen = "node-lost"\nfor_s = 30\nto = ["https://chat.example.org/hook"]')
        return
    table = Table("Now", _ALARMS, title="Now", empty="Nothing fires.")
    page.painter.show(table, alarms, notifier)
    table = Table("Rules", _RULES, title="Rules", on_act=partial(_test, page, notifier))
    page.painter.show(table, rules, notifier, page.refused)
    table = Table("Told", _TOLD, title="Told", empty="Nobody had to be told so far.")
    page.painter.show(table, told, notifier)


def _test(page: Page, notifier: Notifier, rule: str, action: str) -> None:
    if action != "test" or rule not in notifier.alerts.rules:
        return

    async def act(*_: Any) -> str:
        deliveries = await notifier.test(rule)
        lines = [f"{one.to}: {one.error or 'told'}" for one in deliveries]
        return "; ".join(lines) or "It tells the bus only, where a test would look like an alert."

    to = ", ".join(tells(notifier.alerts.rules[rule])[1:]) or "nobody but the bus"
    page.confirm(f"Test {rule}?", f"It tells {to}, with words that say it is a test.", "Test", act)
