"""Monitor: decides what the followers of a node's containers are told. Pure.

The service feeds it the engine's events, inspections and lists with the time, and carries out the effects that it
returns: it asks the engine for inspections and publishes. transitions.py compares what is known with what was seen,
inspections.py keeps those that are under way and to come, telling.py makes what is published.

How it comes that everything is told once:

- Events are applied in their order. `create` and `start` are told when an inspection has said what they are about; the
  container's further events wait for that, those of others do not. All others are told at once.
- The stream may be replayed after it broke; the last events are remembered, so none is applied twice.
- After a gap, and every now and then, a list shows where what is known may be wrong. An inspection then tells what is
  missing. Events that it overtook find that their news is known, and are left out.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from msgspec.structs import replace

from tsbus.containers.facts import EngineEvent, Summary
from tsbus.containers.inspections import Inspect, Inspections
from tsbus.containers.telling import IMAGE_TOPICS, NETWORK_TOPICS, Publish, Telling
from tsbus.containers.transitions import (
    Step,
    begun,
    differs,
    ended,
    first_steps,
    is_alive,
    is_stop,
    made_of,
    refreshed,
    step_of,
    steps_between,
    unstarted,
)
from tsbus.records import Container, EngineFacts

MAX_WAITING: Final = 256
"""Events of one container that may wait; of more than that only the outcome is told."""
MEMORY: Final = 1024
"""Events remembered against a replay. The engine itself keeps 256."""
MAX_GONE: Final = 4096
"""Removed containers that are remembered, so that late news of them is known as such."""
DRAIN_GRACE_S: Final = 5.0
"""So long after its stop time-out a container that still runs is not draining any more."""
SUSPICION_S: Final = 2.0
"""A list that contradicts what is known is looked into when no event has explained it for so long."""
SETTLED_S: Final = 30.0
"""So long after its last event the engine's state of a container is not behind its events any more."""
OVERTAKEN_S: Final = 10.0
"""So long after an inspection told of something, older events of it may still come in."""
MAX_TRIES: Final = 3
"""An inspection that the engine did not answer is asked for again so many times."""

_ACTIONS: Final = frozenset({
    "create", "destroy", "die", "health_status", "kill", "oom", "pause", "rename", "start", "unpause", "update",
})  # fmt: skip
"""The engine's actions that mean something to followers. The others (exec_start, attach, top ...) are passed over."""
_OF_NO_RUN: Final = frozenset({"create", "destroy", "rename", "update"})
"""Actions that do not belong to a run of the container."""

Effect = Inspect | Publish


@dataclass(slots=True)
class _Tracked:
    """What is under way with one container. Its record is in `Monitor.records` once followers know of it."""

    trigger: tuple[EngineEvent, float] | None = None
    """The event that is told when the inspection is answered, and when it came."""
    waiting: deque[tuple[EngineEvent, float]] = field(default_factory=deque)
    """Events behind it."""
    check: str = ""
    """Why what is known is to be compared with an inspection: `first`, `gap` or `list`."""
    again: bool = False
    """The inspection under way was asked for too early: ask again."""
    tries: int = 0
    touched: float = 0.0
    """When its last event came."""
    newest_ns: int = 0
    """Engine time of its newest event."""
    suspect_at: float | None = None
    """When a list contradicted what is known; no event has come since."""
    overtaken_until: float = 0.0
    stopped: bool = False
    """Somebody wanted the present run to end."""
    guessed: bool = False
    """The record's start is the time of its event: no inspection has seen this run."""


class Monitor:
    """What followers know of one node's containers, and what is on its way to them. All times are monotonic seconds."""

    def __init__(self, node: str, epoch: int) -> None:
        """`epoch` is the number of this start, higher than that of any earlier one."""
        self._told = Telling(node, epoch)
        self.epoch = epoch
        self.records = self._told.records
        """By id: exactly what followers were told."""
        self.counters: Counter[str] = Counter()
        self.last_event_ns = 0
        """Engine time of the newest event, from which a new stream should go on."""
        self._first_list = self._in_gap = True
        self._replayed_until = 0.0
        self._tracked: dict[str, _Tracked] = {}
        self._inspections = Inspections()
        self._drains: dict[str, float] = {}
        self._suspects: set[str] = set()
        self._seen: dict[tuple[int, str, str, str], None] = {}
        self._gone: dict[str, None] = {}

    @property
    def engine(self) -> EngineFacts:
        """What followers were told of the engine."""
        return self._told.engine

    @property
    def seq(self) -> int:
        """The number of the last event that was told of a container."""
        return self._told.seq

    # What the service calls -------------------------------------------------------------------------------------------

    def up(self, facts: EngineFacts, now: float, time_ns: int) -> list[Effect]:
        """The engine answers. Told if it did not before, or is another one; `time_ns` is Unix time."""
        self._told.engine_is_up(facts, now, time_ns)
        return self._take(now)

    def down(self, reason: str, now: float, time_ns: int) -> list[Effect]:
        """The engine cannot be reached, and inspections under way will not be answered. Told once."""
        self._told.engine_is_down(reason, time_ns)
        self._in_gap = True
        for id_ in self._inspections.lost():
            if id_ in self._tracked:
                self._tracked[id_].again = False
                self._inspections.ask(id_)
        return self._take(now)

    def cut(self) -> None:
        """The stream of events ended; until the next list some may be missing."""
        self._in_gap = True

    def event(self, event: EngineEvent, now: float) -> list[Effect]:
        """Take an event of the engine's stream."""
        known = {"container": _ACTIONS, "image": IMAGE_TOPICS, "network": NETWORK_TOPICS}.get(event.kind, ())
        if event.action not in known:
            self.counters["ignored"] += 1
            return []
        if not self._is_new(event):
            self.counters["duplicates"] += 1
            return []
        self.counters["events"] += 1
        self.last_event_ns = max(self.last_event_ns, event.time_ns)
        self._told.set_clock(event.time_ns, now)
        if event.kind == "container":
            self._arrived(event.id, event, now)
        elif event.kind == "image":
            self._told.image(event)
        else:
            self._told.network(event)
            container = event.attributes.get("container", "")
            if event.action in ("connect", "disconnect") and container in self._tracked:
                self._arrived(container, event, now)
        return self._take(now)

    def inspected(self, id_: str, seen: Container | None, now: float) -> list[Effect]:
        """The engine answered; None: it has no such container. An answer that is not waited for is left out."""
        if self._inspections.ended(id_) and id_ in self._tracked:
            self._answer(id_, self._tracked[id_], seen, now)
        return self._take(now)

    def unanswered(self, id_: str, now: float) -> list[Effect]:
        """The engine failed to answer about this container: it is asked again, or told of without."""
        if self._inspections.ended(id_) and (one := self._tracked.get(id_)) is not None:
            one.tries += 1
            if one.tries < MAX_TRIES:
                self._inspections.retry(id_, now)
            else:
                self.counters["unanswered"] += 1
                self._go_on_without(id_, one)
        return self._take(now)

    def listed(self, summaries: Iterable[Summary], asked_at: float, now: float, after_gap: bool) -> list[Effect]:
        """Compare with the engine's list of all containers, which was asked for at `asked_at`.

        `after_gap`: events may have been lost before it, so each container is inspected, those that differ first.
        """
        reason = "first" if self._first_list else "gap" if after_gap else "list"
        listed = {one.id: one for one in summaries if one.id not in self._gone}
        same: list[str] = []
        for id_ in [*listed, *(self._tracked.keys() - listed.keys())]:
            line, record = listed.get(id_), self.records.get(id_)
            one = self._tracked.setdefault(id_, _Tracked(touched=-1.0))
            if record is not None and line is not None and not differs(record, line):
                one.suspect_at = None
                same.append(id_)
            elif reason != "list":
                self._check(id_, one, reason)
            elif (
                not self._in_gap
                and one.touched < asked_at
                and one.trigger is None
                and not one.waiting
                and one.suspect_at is None
            ):
                one.suspect_at = now
                self._suspects.add(id_)
        if reason != "list":
            for id_ in same:  # a restart, or a whole run, has left no trace in the list
                self._check(id_, self._tracked[id_], reason)
            self._first_list = self._in_gap = False
            self._replayed_until = now + OVERTAKEN_S
        return self._take(now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due; call it at `next_tick`."""
        self._inspections.tick(now)
        for id_ in [id_ for id_, at in self._drains.items() if at <= now]:
            del self._drains[id_]
            self._tell(id_, Step("changed", replace(self.records[id_], draining=False), 0), "event", now)
        for id_ in list(self._suspects):
            one = self._tracked.get(id_)
            if one is None or one.suspect_at is None:
                self._suspects.discard(id_)
            elif one.suspect_at + SUSPICION_S <= now:
                self._suspects.discard(id_)
                one.suspect_at = None
                self._check(id_, one, self._doubt)
        return self._take(now)

    @property
    def next_tick(self) -> float | None:
        """When `tick` has something to do, None if nothing is planned."""
        suspects = (self._tracked[id_].suspect_at for id_ in self._suspects if id_ in self._tracked)
        times = [*self._drains.values(), *(at + SUSPICION_S for at in suspects if at is not None)]
        if (retry := self._inspections.next_tick) is not None:
            times.append(retry)
        return min(times, default=None)

    def stats(self) -> dict[str, int]:
        """Return the counters, and what is under way."""
        return {
            **self.counters,
            **self._inspections.stats(),
            "containers": len(self.records),
            "waiting": sum(len(one.waiting) for one in self._tracked.values()),
        }

    # Events -----------------------------------------------------------------------------------------------------------

    def _is_new(self, event: EngineEvent) -> bool:
        key = (event.time_ns, event.id, event.action + event.detail, event.attributes.get("container", ""))
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > MEMORY:
            del self._seen[next(iter(self._seen))]
        return True

    def _arrived(self, id_: str, event: EngineEvent, now: float) -> None:
        """Apply an event of a container, or let it wait."""
        one = self._tracked.get(id_)
        if one is None:
            if id_ in self._gone or event.action == "destroy":
                self.counters["known"] += 1
                return
            one = self._tracked[id_] = _Tracked(check="" if event.action == "create" else self._doubt)
        one.touched, one.suspect_at = now, None
        newer_ns, one.newest_ns = one.newest_ns, max(one.newest_ns, event.time_ns)
        if event.time_ns < newer_ns and (self._in_gap or now < self._replayed_until):
            # Of what was lost in an earlier gap, newer things than this are known.
            self.counters["late"] += 1
            self._check(id_, one, "gap")
            return
        if id_ not in self.records and one.trigger is None and not one.waiting and event.action == "create":
            one.trigger = (event, now)
            one.again = id_ in self._inspections
            self._inspections.ask_later(id_)
        elif not self._is_held(id_, one):
            self._apply(id_, one, event, now)
        elif len(one.waiting) < MAX_WAITING:
            one.waiting.append((event, now))
            self._inspections.ask(id_)
        else:
            self.counters["overflows"] += 1
            one.waiting.clear()
            one.check = "gap"
            one.again = id_ in self._inspections

    @property
    def _doubt(self) -> str:
        """Why something that nobody told may have happened."""
        return "first" if self._first_list else "gap" if self._in_gap else "list"

    def _is_held(self, id_: str, one: _Tracked) -> bool:
        """Tell whether events of the container wait for an inspection."""
        return one.trigger is not None or id_ not in self.records

    def _apply(self, id_: str, one: _Tracked, event: EngineEvent, now: float) -> None:
        """Tell of an event that came at `now`, or ask for what that takes. The container is known, nothing holds it."""
        record = self.records[id_]
        if id_ in self._inspections:
            one.again = True
        if event.action in ("start", "update", "connect", "disconnect"):
            self._needs_inspection(id_, one, event, record, now)
            return
        step = None
        if not self._is_overtaken(one, event, record, now):
            one.stopped = one.stopped or is_stop(event, record)
            step = step_of(event, record, stopped=one.stopped)
        if step is None:
            self.counters["known"] += 1
            return
        if step.action == "destroyed" and is_alive(record):
            self._tell(id_, Step("died", ended(record, None, step.time_ns), step.time_ns), "reconcile", now)
            step = Step("destroyed", self.records[id_], step.time_ns)
        if step.action == "draining":
            already = id_ in self._drains
            self._drains[id_] = now + record.stop_timeout_s + DRAIN_GRACE_S
            if already:
                return
        self._tell(id_, step, "event", now)

    def _is_overtaken(self, one: _Tracked, event: EngineEvent, record: Container, now: float) -> bool:
        """Tell whether an inspection has already told of a later run than the event is about."""
        return now < one.overtaken_until and event.time_ns < record.started_ns and event.action not in _OF_NO_RUN

    def _needs_inspection(self, id_: str, one: _Tracked, event: EngineEvent, record: Container, now: float) -> None:
        if event.action == "start":
            if self._is_overtaken(one, event, record, now):
                self.counters["known"] += 1
                return
            if is_alive(record):
                self.counters["known"] += 1
                if now >= one.overtaken_until:
                    self._check(id_, one, self._doubt)  # the end of a run was lost
                one.overtaken_until = 0.0  # with this event all of the run before have come
                return
        elif event.action != "update" and not is_alive(record):
            return  # networks come before a start and go after an end: part of these
        one.trigger = (event, now)
        self._inspections.ask(id_)

    # Inspections ------------------------------------------------------------------------------------------------------

    def _check(self, id_: str, one: _Tracked, reason: str) -> None:
        """Have what is known compared with an inspection, when nothing of the container is under way."""
        if one.check != "gap":
            one.check = reason
        if one.trigger is None and not self._inspections.is_put_off(id_):
            one.again = id_ in self._inspections
            self._inspections.ask_later(id_)

    def _answer(self, id_: str, one: _Tracked, seen: Container | None, now: float) -> None:
        if one.again:
            one.again = False
            self._inspections.ask(id_)
            return
        one.tries = 0
        if one.trigger is not None:
            trigger, one.trigger = one.trigger, None
            self._tell_trigger(id_, one, *trigger, seen)
        elif id_ not in self.records:
            self._introduce(id_, one, seen, now)
        elif one.check:
            reason, one.check = one.check, ""
            self._compare(id_, one, seen, reason, now)
        self._go_on(id_)

    def _go_on(self, id_: str) -> None:
        """Apply what waited behind an inspection, until something has to wait again."""
        while (one := self._tracked.get(id_)) is not None and one.waiting and not self._is_held(id_, one):
            self._apply(id_, one, *one.waiting.popleft())
        if one is not None and one.check and id_ in self.records:
            self._check(id_, one, one.check)

    def _go_on_without(self, id_: str, one: _Tracked) -> None:
        """Tell what can be told though the engine does not answer about a container; the next list looks again."""
        one.tries, one.check, one.again = 0, "", False
        if one.trigger is not None:
            trigger, one.trigger = one.trigger, None
            self._tell_trigger(id_, one, *trigger, None)
            self._go_on(id_)
        elif id_ not in self.records:
            del self._tracked[id_]

    def _tell_trigger(self, id_: str, one: _Tracked, event: EngineEvent, now: float, seen: Container | None) -> None:
        """Tell of an event that waited for its inspection. The container may be gone, or already be in a later run."""
        if event.action == "create":
            about = unstarted(seen) if seen else made_of(event)
            about = replace(about, name=event.attributes.get("name", about.name))
            self._tell(id_, Step("created", about, event.time_ns), "event", now)
            return
        record = self.records[id_]
        if event.action != "start":
            if seen is not None and (after := refreshed(record, seen)) != record:
                self._tell(id_, Step("changed", after, event.time_ns), "event", now)
            return
        overtaken = now < one.overtaken_until
        one.overtaken_until = 0.0
        if (
            seen is not None
            and seen.started_ns
            and (seen.started_ns == record.started_ns or (overtaken and seen.started_ns > event.time_ns))
        ):
            self.counters["known"] += 1
            return
        one.guessed = seen is None or not 0 < seen.started_ns <= event.time_ns
        details = refreshed(record, seen) if seen is not None else record
        if seen is not None and not one.guessed:
            details = replace(
                details, endpoints=seen.endpoints, networks=seen.networks, health=seen.health,
                restarts=seen.restarts, pid=seen.pid,
            )  # fmt: skip
        started_ns = event.time_ns if one.guessed or seen is None else seen.started_ns
        self._tell(id_, Step("started", begun(details, started_ns), event.time_ns), "event", now)

    def _introduce(self, id_: str, one: _Tracked, seen: Container | None, now: float) -> None:
        """Tell of a container that followers have not heard of."""
        reason = one.check
        if seen is None:
            del self._tracked[id_]
            return
        if (
            not one.waiting
        ):  # else look again afterwards: the inspection may be newer than what follows them and was lost
            one.check = ""
        steps = first_steps(seen, whole_life=reason != "first")
        self._reconcile(id_, one, steps, reason, now)

    def _compare(self, id_: str, one: _Tracked, seen: Container | None, reason: str, now: float) -> None:
        """Tell what an inspection saw and followers do not know."""
        record = self.records[id_]
        if seen is not None:
            settled = now - one.touched > SETTLED_S
            steps = steps_between(record, seen, guessed=one.guessed, settled=settled)
        else:
            steps = []
            if is_alive(record):
                steps.append(Step("died", ended(record, None, self._told.engine_time(now)), 0))
                record = steps[0].container
            steps.append(Step("destroyed", record, 0))
        self._reconcile(id_, one, steps, reason, now)

    def _reconcile(self, id_: str, one: _Tracked, steps: list[Step], reason: str, now: float) -> None:
        if not steps:
            return
        one.overtaken_until = now + OVERTAKEN_S
        if any(step.action == "started" for step in steps):
            one.guessed = False
        for step in steps:
            self._tell(id_, step, "reconcile", now)
        self.counters[{"gap": "caught_up", "list": "repairs"}.get(reason, "found")] += len(steps)
        if reason == "list":
            self._told.repaired(steps)

    # Telling ----------------------------------------------------------------------------------------------------------

    def _tell(self, id_: str, step: Step, cause: Literal["event", "reconcile"], now: float) -> None:
        """Publish a transition and note that followers know it."""
        one = self._tracked[id_]
        if step.action in ("started", "died", "destroyed"):
            one.stopped = False
            self._drains.pop(id_, None)
        self.counters["published"] += 1
        self._told.container(step, cause, now)
        if step.action == "destroyed":
            self._forget(id_)

    def _forget(self, id_: str) -> None:
        del self._tracked[id_]
        self._inspections.forget(id_)
        self._gone[id_] = None
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def _take(self, now: float) -> list[Effect]:
        """Return the effects so far, with as many inspections as there is room for."""
        inspects = self._inspections.take() if self.engine.up else []
        self.counters["inspections"] += len(inspects)
        return [*self._told.take(), *inspects]
