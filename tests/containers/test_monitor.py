"""The monitor against a model of the engine: what it tells is what happened, in whatever order it learns of it."""

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_engine import START_NS, ModelEngine
from msgspec.structs import replace

from tsbus.containers.facts import EngineEvent, Summary
from tsbus.containers.monitor import MAX_INSPECTS, MAX_WAITING, Inspect, Monitor, Publish
from tsbus.records import Container, ContainerEvent, EngineFacts

FACTS = EngineFacts(node="", up=True, name="Docker", version="27.0")
LATENCY_S = 1.0
"""An event is delivered sooner than this."""


class Follower:
    """Checks that what is published makes sense to those who know nothing else."""

    def __init__(self) -> None:
        self.seq = 0
        self.known: dict[str, Container] = {}
        self.told: dict[str, list[tuple[str, object]]] = {}
        self.repaired = 0

    def take(self, publish: Publish) -> None:
        event = publish.body
        if not isinstance(event, ContainerEvent):
            self.repaired += publish.topic == "docker.repaired"
            return
        assert publish.topic == f"container.{event.action}"
        self.seq += 1
        assert event.seq == self.seq
        assert event.time_ns >= START_NS
        now, before = event.container, self.known.get(event.container.id)
        alive = before is not None and before.state in ("running", "paused")
        self._check(event, before, now, alive)
        self.known[now.id] = now
        if event.action == "destroyed":
            del self.known[now.id]
        if event.action != "changed":
            what = {
                "created": now.name, "died": now.exit_code, "renamed": now.name,
                "draining": event.signal,
            }.get(event.action)  # fmt: skip
            self.told.setdefault(now.id, []).append((event.action, what))

    def _check(self, event: ContainerEvent, before: Container | None, now: Container, alive: bool) -> None:
        match event.action:
            case "created":
                assert before is None
                assert now.state not in ("running", "paused")
                return
            case "started":
                assert not alive
                assert now.state == "running"
                assert now.exit_code is None
                assert not now.draining
            case "died":
                assert alive
                assert now.state in ("exited", "restarting", "dead")
                assert not now.draining
            case "paused":
                assert alive
                assert (before.state, now.state) == ("running", "paused")
            case "unpaused":
                assert alive
                assert (before.state, now.state) == ("paused", "running")
            case "healthy" | "unhealthy":
                assert alive
                assert before.health != now.health == event.action
            case "draining":
                assert alive
                assert now.draining
                assert not before.draining
            case "oom":
                assert now.oom
                assert not before.oom
            case "renamed":
                assert event.was == before.name != now.name
            case "changed":
                assert replace(before, finished_ns=now.finished_ns) != now
            case "destroyed":
                assert not alive
        assert before is not None


class World:
    """An engine, a monitor and what is under way between them, until somebody lets it arrive."""

    def __init__(self, keep: int = 256) -> None:
        self.engine = ModelEngine(keep)
        self.monitor = Monitor("n", 1)
        self.follower = Follower()
        self.now = 100.0
        self.stream: deque[EngineEvent] = deque()
        self.inspections: list[list[object]] = []
        """[id, whether the engine has answered, answer]"""
        self.lists: list[list[object]] = []
        """[asked at, after a gap, answer or None]"""
        self.busiest = 0
        self.carry_out(self.monitor.up(FACTS, self.now, self.engine.now_ns))
        self.carry_out(self.monitor.listed([], self.now, self.now, after_gap=True))

    def carry_out(self, effects) -> None:
        for effect in effects:
            if isinstance(effect, Inspect):
                self.inspections.append([effect.id, False, None])
            else:
                self.follower.take(effect)
        self.busiest = max(self.busiest, len(self.inspections))

    def do(self, what: str, *args) -> None:
        getattr(self.engine, what)(*args)
        self.stream.extend(self.engine.log)
        self.engine.log.clear()

    def deliver(self, count: int = 10_000) -> None:
        for _ in range(min(count, len(self.stream))):
            self.carry_out(self.monitor.event(self.stream.popleft(), self.now))

    def read(self, place: int) -> None:
        """Let the engine answer an inspection; the answer is under way."""
        if self.inspections:
            one = self.inspections[place % len(self.inspections)]
            if not one[1]:
                one[1:] = [True, self.engine.inspect(one[0])]

    def answer(self, place: int) -> None:
        """Let the answer of an inspection arrive."""
        if self.inspections:
            self.read(place)
            id_, _, seen = self.inspections.pop(place % len(self.inspections))
            self.carry_out(self.monitor.inspected(id_, seen, self.now))

    def ask_list(self, after_gap: bool = False) -> None:
        self.lists.append([self.now, after_gap, None])

    def read_list(self) -> None:
        for one in self.lists:
            one[2] = one[2] or self.engine.list()

    def arrive_list(self) -> None:
        if self.lists:
            self.read_list()
            asked_at, after_gap, lines = self.lists.pop(0)
            self.carry_out(self.monitor.listed(lines, asked_at, self.now, after_gap))

    def cut(self, lost: int) -> None:
        """End the stream and open it again: what was under way is lost, and what the engine has kept is replayed."""
        self.monitor.cut()
        self.stream.clear()
        self.do("settle")
        since = self.monitor.last_event_ns - 2_000_000_000
        self.stream.extend(event for event in self.engine.kept[lost:] if event.time_ns >= since)
        self.lists.clear()
        self.ask_list(after_gap=True)

    def lose_engine(self) -> None:
        """Let the engine be killed and started again."""
        self.stream.clear()
        self.inspections.clear()
        self.lists.clear()
        self.engine.die()
        self.carry_out(self.monitor.down("gone", self.now, self.engine.now_ns))
        self.wait(0.5)
        self.carry_out(self.monitor.up(FACTS, self.now, self.engine.now_ns))
        self.ask_list(after_gap=True)

    def wait(self, seconds: float) -> None:
        if seconds >= LATENCY_S:
            self.do("settle")
            self.deliver()
        self.now += seconds
        self.engine.now_ns += round(seconds * 1e9)
        if (due := self.monitor.next_tick) is not None and due <= self.now:
            self.carry_out(self.monitor.tick(self.now))

    def come_to_rest(self) -> None:
        """Let all arrive that is under way, in order."""
        self.do("settle")
        while self.stream or self.inspections or self.lists:
            self.deliver()
            self.arrive_list()
            while self.inspections:
                self.answer(0)
        self.wait(60)
        while self.inspections:
            self.answer(0)

    def check_truth(self, gaps: bool = False) -> None:
        """What followers know is what is so; after gaps all that a list shows, and all of what runs."""
        truth = {id_: life.seen for id_, life in self.engine.lives.items()}
        told = self.follower.known
        assert told == self.monitor.records
        assert self.monitor.seq == self.follower.seq
        assert told.keys() == truth.keys()
        for id_, seen in truth.items():
            same = replace(seen, finished_ns=told[id_].finished_ns)
            if seen.state not in ("running", "paused"):
                same = replace(same, health=told[id_].health, restarts=told[id_].restarts)
                if gaps:
                    same = replace(same, memory_limit=told[id_].memory_limit, networks=told[id_].networks)
            assert told[id_] == replace(same, oom=told[id_].oom)


LIFE = (
    "create", "start", "start", "quick", "finish", "finish", "stop", "stop", "kill", "hang up", "pause", "judge",
    "judge", "oom", "rename", "limit", "join", "remove", "probe",
)  # fmt: skip
WAYS = (
    "deliver", "deliver", "deliver", "read", "answer", "answer", "ask list", "read list", "arrive list", "settle",
    "wait",
)  # fmt: skip


def steps(*more: str) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """What happens: a word, which container or inspection it is about, and a detail."""
    words = st.sampled_from(LIFE) | st.sampled_from(WAYS)
    if more:
        words = st.integers(0, 20).flatmap(lambda n: st.sampled_from(more) if n == 0 else words_of_life)
        words_of_life = st.sampled_from(LIFE) | st.sampled_from(WAYS)
    return st.lists(st.tuples(words, st.integers(0, 15), st.integers(0, 3)), max_size=60)


def happen(world: World, word: str, place: int, detail: int) -> None:
    """Let one step happen."""
    ids = sorted(world.engine.lives)
    if word == "create" or (word in LIFE and not ids):
        world.do("create", ("", "no", "always", "on-failure")[detail], place % 2 == 1)
        return
    id_ = ids[place % len(ids)] if ids else ""
    match word:
        case "quick":
            world.do("start", id_, detail % 2)
        case "finish":
            world.do("finish", id_, detail)
        case "stop":
            world.do("kill", id_, 15)
        case "kill":
            world.do("kill", id_, 9)
            world.do("finish", id_, 137)
        case "hang up":
            world.do("kill", id_, 1)
        case "oom":
            world.do("run_out_of_memory", id_)
        case "deliver":
            world.deliver(detail + 1)
        case "read":
            world.read(place)
        case "answer":
            world.answer(place)
        case "ask list":
            world.ask_list()
        case "read list":
            world.read_list()
        case "arrive list":
            world.arrive_list()
        case "settle":
            world.do("settle")
        case "wait":
            world.wait((0.01, 0.5, 3.0, 20.0)[detail])
        case "cut":
            world.cut(place)
        case "lose engine":
            world.lose_engine()
        case _:
            world.do(word, id_)


def one_drain_a_run(told):
    """Leave out what time does: a drain that is taken back, and told again at the next stop."""
    kept = {}
    for id_, steps_ in told.items():
        kept[id_], drains = [], False
        for step in steps_:
            if step[0] != "draining" or not drains:
                kept[id_].append(step)
            drains = step[0] == "draining" or (drains and step[0] not in ("started", "died"))
    return kept


@settings(max_examples=1000)
@given(steps())
def test_without_a_gap_exactly_what_happened_is_told(program):
    """While the stream holds, every transition is told once, in order, with its facts, whatever arrives when."""
    world = World()
    for step in program:
        happen(world, *step)
    world.come_to_rest()
    world.check_truth()
    assert one_drain_a_run(world.follower.told) == one_drain_a_run(world.engine.told)
    assert world.follower.repaired == world.monitor.counters["repairs"] == 0
    assert world.busiest <= MAX_INSPECTS


@settings(max_examples=1000)
@given(st.sampled_from([0, 3, 10, 256]), steps("cut", "cut", "lose engine"))
def test_after_gaps_followers_know_the_truth(keep, program):
    """Whatever is lost with the stream or with the engine, a legal chain of transitions leads to what is so."""
    world = World(keep)
    for step in program:
        happen(world, *step)
    world.come_to_rest()
    world.check_truth(gaps=True)
    assert world.follower.repaired == 0
