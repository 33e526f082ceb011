"""Monitor: decides what the followers of a node's containers are told. Pure.

The service feeds it the engine's events, inspections and lists with the time, and carries out the effects that it
returns: it asks the engine for inspections and publishes. transitions.py compares what is known with what was seen.

How it comes that everything is told once:

- Events are applied in their order. `create` and `start` are told when an inspection has said what they are about; the
  container's further events wait for that, those of others do not. All others are told at once.
- The stream may be replayed after it broke; the last events are remembered, so none is applied twice.
- After a gap, and every now and then, a list shows where what is known may be wrong. An inspection then tells what is
  missing. Events that it overtook find that their news is known, and are left out.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from msgspec.structs import replace

from tsbus.containers.facts import EngineEvent, Summary
from tsbus.containers.transitions import (
    Step,
    begun,
    differs,
    ended,
    first_steps,
    health_action,
    is_alive,
    refreshed,
    state_after,
    steps_between,
    unstarted,
)
from tsbus.records import Container, ContainerEvent, EngineFacts, Health, Image

MAX_INSPECTS: Final = 16
"""Inspections under way at once; more wait."""
MAX_UNHURRIED: Final = 8
"""Of these for what nobody waits for. The engine answers about a container that it starts when it has started it."""
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
RETRY_S: Final = 1.0
MAX_TRIES: Final = 3
"""An inspection that the engine did not answer is asked for again so many times, after so long."""

IMAGE_TOPICS: Final = {
    "delete": "deleted", "import": "imported", "load": "loaded", "prune": "pruned", "pull": "pulled", "push": "pushed",
    "save": "saved", "tag": "tagged", "untag": "untagged",
}  # fmt: skip
NETWORK_TOPICS: Final = {
    "connect": "connected", "create": "created", "destroy": "destroyed", "disconnect": "disconnected",
    "prune": "pruned", "remove": "removed", "update": "updated",
}  # fmt: skip
CONTAINER_ACTIONS: Final = frozenset({
    "create", "destroy", "die", "health_status", "kill", "oom", "pause", "rename", "start", "unpause", "update",
})  # fmt: skip
"""The engine's actions that mean something to followers. The others (exec_start, attach, top ...) are passed over."""

_SIGKILL: Final = 9


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask the engine about this container, then call `inspected`, or `unanswered` if the engine did not say."""

    id: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish this, in the order of the effects."""

    topic: str
    body: ContainerEvent | EngineFacts | Mapping[str, object]


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
        self.node = node
        self.epoch = epoch
        self.seq = 0
        """Of the last event that was told."""
        self.engine = EngineFacts(node=node, up=False, reason="not asked yet")
        self.records: dict[str, Container] = {}
        """By id: exactly what followers were told."""
        self.counters: Counter[str] = Counter()
        self.last_event_ns = 0
        """Engine time of the newest event, from which a new stream should go on."""
        self._engine_told = False
        self._first_list = self._in_gap = True
        self._replayed_until = 0.0
        self._tracked: dict[str, _Tracked] = {}
        self._queue: dict[str, None] = {}
        """Containers that are to be inspected because an event waits for it."""
        self._checks: dict[str, None] = {}
        """Containers that are to be inspected when there is room."""
        self._asked: set[str] = set()
        self._unhurried: set[str] = set()
        """Those of `_asked` that come from `_checks`."""
        self._retries: dict[str, float] = {}
        self._drains: dict[str, float] = {}
        self._suspects: set[str] = set()
        self._seen: dict[tuple[int, str, str, str], None] = {}
        self._gone: dict[str, None] = {}
        self._clock = (0, 0.0)
        self._effects: list[Effect] = []

    # What the service calls -------------------------------------------------------------------------------------------

    def up(self, facts: EngineFacts, now: float, time_ns: int) -> list[Effect]:
        """The engine answers. Told if it did not before, or is another one; `time_ns` is Unix time."""
        same = replace(facts, node=self.node, up=True, reason="", since_ns=self.engine.since_ns)
        if same != self.engine:
            self._clock = self._clock if self._clock[0] else (time_ns, now)
            self._tell_engine(replace(same, since_ns=time_ns))
        return self._take(now)

    def down(self, reason: str, now: float, time_ns: int) -> list[Effect]:
        """The engine cannot be reached, and inspections under way will not be answered. Told once."""
        if self.engine.up or not self._engine_told:
            self._tell_engine(replace(self.engine, up=False, reason=reason, since_ns=time_ns))
        else:
            self.engine = replace(self.engine, reason=reason)
        self._in_gap = True
        asked, self._asked, self._unhurried = self._asked, set(), set()
        for id_ in asked & self._tracked.keys():
            self._tracked[id_].again = False
            self._ask(id_)
        return self._take(now)

    def cut(self) -> None:
        """The stream of events ended; until the next list some may be missing."""
        self._in_gap = True

    def event(self, event: EngineEvent, now: float) -> list[Effect]:
        """Take an event of the engine's stream."""
        if event.kind == "container":
            known = event.action in CONTAINER_ACTIONS
        else:
            known = event.action in {"image": IMAGE_TOPICS, "network": NETWORK_TOPICS}.get(event.kind, ())
        if not known:
            self.counters["ignored"] += 1
            return []
        if not self._is_new(event):
            self.counters["duplicates"] += 1
            return []
        self.counters["events"] += 1
        self.last_event_ns = max(self.last_event_ns, event.time_ns)
        self._clock = (event.time_ns, now)
        if event.kind == "container":
            self._arrived(event.id, event, now)
        elif event.kind == "image":
            self._tell_image(event)
        else:
            self._tell_network(event, now)
        return self._take(now)

    def inspected(self, id_: str, seen: Container | None, now: float) -> list[Effect]:
        """The engine answered; None: it has no such container. An answer that is not waited for is left out."""
        if id_ in self._asked:
            self._asked.discard(id_)
            self._unhurried.discard(id_)
            if id_ in self._tracked:
                self._answer(id_, self._tracked[id_], seen, now)
        return self._take(now)

    def unanswered(self, id_: str, now: float) -> list[Effect]:
        """The engine failed to answer about this container: it is asked again, or told of without."""
        if id_ in self._asked:
            self._asked.discard(id_)
            self._unhurried.discard(id_)
            one = self._tracked.get(id_)
            if one is not None:
                one.tries += 1
                if one.tries < MAX_TRIES:
                    self._retries[id_] = now + RETRY_S
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
        for id_ in [id_ for id_, at in self._retries.items() if at <= now]:
            del self._retries[id_]
            self._ask(id_)
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
        times = [*self._retries.values(), *self._drains.values()]
        times += [at + SUSPICION_S for at in suspects if at is not None]
        return min(times, default=None)

    def stats(self) -> dict[str, int]:
        """Return the counters, and what is under way."""
        waiting = sum(len(one.waiting) for one in self._tracked.values())
        return {
            **self.counters,
            "containers": len(self.records),
            "inspecting": len(self._asked),
            "to_inspect": len(self._queue) + len(self._checks),
            "waiting": waiting,
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
            one.again = id_ in self._asked
            self._ask_later(id_)
        elif not self._is_held(id_, one):
            self._apply(id_, one, event, now)
        elif len(one.waiting) < MAX_WAITING:
            one.waiting.append((event, now))
            self._ask(id_)
        else:
            self.counters["overflows"] += 1
            one.waiting.clear()
            one.check = "gap"
            one.again = id_ in self._asked

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
        if id_ in self._asked:
            one.again = True
        if event.action in ("start", "update", "connect", "disconnect"):
            self._needs_inspection(id_, one, event, record, now)
            return
        step = None if self._is_overtaken(one, event, record, now) else self._step_of(one, event, record)
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
        self._ask(id_)

    def _step_of(self, one: _Tracked, event: EngineEvent, record: Container) -> Step | None:
        """Return what an event changes, None if that is known."""
        time_ns, alive = event.time_ns, is_alive(record)
        match event.action:
            case "die" if alive:
                exit_code = _number(event.attributes.get("exitCode"))
                after = ended(record, exit_code, time_ns, state_after(record, exit_code, one.stopped))
                return Step("died", after, time_ns)
            case "oom" if not record.oom:
                return Step("oom", replace(record, oom=True), time_ns)
            case "pause" if record.state == "running":
                return Step("paused", replace(record, state="paused"), time_ns)
            case "unpause" if record.state == "paused":
                return Step("unpaused", replace(record, state="running"), time_ns)
            case "health_status" if alive and event.detail != record.health:
                health = cast(Health, event.detail if event.detail in ("starting", "healthy", "unhealthy") else "")
                return Step(health_action(health) or "changed", replace(record, health=health), time_ns)
            case "kill" if alive:
                return self._kill_step(one, event, record)
            case "rename" if event.attributes.get("oldName", "").lstrip("/") == record.name:
                name = event.attributes.get("name", record.name)
                return Step("renamed", replace(record, name=name), time_ns, was=record.name)
            case "destroy":
                return Step("destroyed", record, time_ns)
        return None

    def _kill_step(self, one: _Tracked, event: EngineEvent, record: Container) -> Step | None:
        signal = _number(event.attributes.get("signal")) or _SIGKILL
        one.stopped = one.stopped or signal in (record.stop_signal, _SIGKILL)
        if signal != record.stop_signal or signal == _SIGKILL:
            return None
        return Step("draining", replace(record, draining=True), event.time_ns, signal=signal)

    # Inspections ------------------------------------------------------------------------------------------------------

    def _ask(self, id_: str) -> None:
        """Have the container inspected, before those that are only checked."""
        self._checks.pop(id_, None)
        self._retries.pop(id_, None)
        if id_ not in self._asked:
            self._queue[id_] = None

    def _ask_later(self, id_: str) -> None:
        """Have the container inspected when there is room."""
        if id_ not in self._asked and id_ not in self._queue:
            self._checks[id_] = None

    def _check(self, id_: str, one: _Tracked, reason: str) -> None:
        """Have what is known compared with an inspection, when nothing of the container is under way."""
        if one.check != "gap":
            one.check = reason
        if one.trigger is None and id_ not in self._retries:
            one.again = id_ in self._asked
            self._ask_later(id_)

    def _answer(self, id_: str, one: _Tracked, seen: Container | None, now: float) -> None:
        if one.again:
            one.again = False
            self._ask(id_)
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
            about = unstarted(seen) if seen else _made_of(event)
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
                steps.append(Step("died", ended(record, None, self._engine_time(now)), 0))
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
            repairs = [f"{step.container.name}: {step.action}" for step in steps]
            self._effects.append(Publish("docker.repaired", {"node": self.node, "repairs": repairs}))

    # Telling ----------------------------------------------------------------------------------------------------------

    def _tell(self, id_: str, step: Step, cause: Literal["event", "reconcile"], now: float) -> None:
        """Publish a transition and note that followers know it."""
        one = self._tracked[id_]
        if step.action in ("started", "died", "destroyed"):
            one.stopped = False
            self._drains.pop(id_, None)
        self.records[id_] = step.container
        if step.action == "destroyed":
            self._forget(id_)
        self.seq += 1
        self.counters["published"] += 1
        body = ContainerEvent(
            node=self.node,
            epoch=self.epoch,
            seq=self.seq,
            action=step.action,
            time_ns=step.time_ns or self._engine_time(now),
            cause=cause,
            signal=step.signal,
            was=step.was,
            container=step.container,
        )
        self._effects.append(Publish(f"container.{step.action}", body))

    def _forget(self, id_: str) -> None:
        del self.records[id_], self._tracked[id_]
        self._queue.pop(id_, None)
        self._checks.pop(id_, None)
        self._retries.pop(id_, None)
        self._gone[id_] = None
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def _engine_time(self, now: float) -> int:
        """Return the engine's time, reckoned from the last that it told."""
        time_ns, at = self._clock
        return time_ns + round((now - at) * 1e9)

    def _tell_engine(self, facts: EngineFacts) -> None:
        self.engine = facts
        self._engine_told = True
        self._effects.append(Publish("docker.up" if facts.up else "docker.down", facts))

    def _tell_image(self, event: EngineEvent) -> None:
        action = IMAGE_TOPICS[event.action]
        body = {
            "node": self.node, "action": action, "id": event.id, "name": event.attributes.get("name", ""),
            "time_ns": event.time_ns,
        }  # fmt: skip
        self._effects.append(Publish(f"image.{action}", body))

    def _tell_network(self, event: EngineEvent, now: float) -> None:
        action, container = NETWORK_TOPICS[event.action], event.attributes.get("container", "")
        body = {
            "node": self.node, "action": action, "id": event.id, "name": event.attributes.get("name", ""),
            "driver": event.attributes.get("type", ""), "container": container, "time_ns": event.time_ns,
        }  # fmt: skip
        self._effects.append(Publish(f"network.{action}", body))
        if event.action in ("connect", "disconnect") and container in self._tracked:
            self._arrived(container, event, now)

    def _take(self, now: float) -> list[Effect]:
        """Return the effects so far, with as many inspections as there is room for."""
        while self.engine.up and len(self._asked) < MAX_INSPECTS and (self._queue or self._checks):
            if self._queue:
                id_ = next(iter(self._queue))
                del self._queue[id_]
            elif len(self._unhurried) < MAX_UNHURRIED:
                id_ = next(iter(self._checks))
                del self._checks[id_]
                self._unhurried.add(id_)
            else:
                break
            self._asked.add(id_)
            self.counters["inspections"] += 1
            self._effects.append(Inspect(id_))
        effects, self._effects = self._effects, []
        return effects


_OF_NO_RUN: Final = frozenset({"create", "destroy", "rename", "update"})
"""Actions that do not belong to a run of the container."""


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _made_of(event: EngineEvent) -> Container:
    """Return what the event itself tells of a container that was gone before anybody could ask."""
    labels = {key: text for key, text in event.attributes.items() if key not in ("image", "name")}
    return Container(
        id=event.id,
        name=event.attributes.get("name", event.id[:12]),
        image=Image(given=event.attributes.get("image", "")),
        state="created",
        labels=labels,
        created_ns=event.time_ns,
    )
