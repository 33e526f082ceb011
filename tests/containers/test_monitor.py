"""The monitor against a model of the engine: what it tells is what happened, in whatever order it learns of it."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_engine import START_NS, ModelEngine
from msgspec.structs import replace

from tsbus.containers.facts import EngineEvent
from tsbus.containers.inspections import MAX_INSPECTS, MAX_UNHURRIED, Inspect
from tsbus.containers.monitor import DRAIN_GRACE_S, MAX_TRIES, MAX_WAITING, SETTLED_S, SUSPICION_S, Monitor
from tsbus.containers.telling import Publish
from tsbus.containers.transitions import differs, state_after
from tsbus.records import Container, ContainerEvent, EngineFacts, Image

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
    usual = st.sampled_from(LIFE) | st.sampled_from(WAYS)
    rare = st.sampled_from(more or WAYS)
    words = st.integers(0, 20).flatmap(lambda chance: usual if chance else rare)
    step = st.tuples(words, st.integers(0, 15), st.integers(0, 3))
    # Short programs are readable when they fail, long ones find more.
    return st.sampled_from((0, 10, 25)).flatmap(lambda size: st.lists(step, min_size=size, max_size=60))


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
        case "lose" if world.stream:
            world.stream.popleft()
        case "lose":
            pass
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


@settings(max_examples=400)
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


@settings(max_examples=400)
@given(st.sampled_from([0, 3, 10, 256]), steps("cut", "cut", "lose engine"))
def test_after_gaps_followers_know_the_truth(keep, program):
    """Whatever is lost with the stream or with the engine, a legal chain of transitions leads to what is so."""
    world = World(keep)
    for step in program:
        happen(world, *step)
    world.come_to_rest()
    world.check_truth(gaps=True)
    assert world.follower.repaired == 0


@settings(max_examples=300)
@given(steps("lose", "lose"))
def test_lists_repair_what_the_stream_lost_silently(program):
    """Events that an engine never delivered show within two lists, as far as a list shows them, by a legal chain."""
    world = World()
    for step in program:
        happen(world, *step)
    world.come_to_rest()
    for _ in range(2):
        world.ask_list()
        world.come_to_rest()
    listed = {line.id: line for line in world.engine.list()}
    assert listed.keys() == world.follower.known.keys()
    assert not [id_ for id_, line in listed.items() if differs(world.monitor.records[id_], line)]


# One thing at a time --------------------------------------------------------------------------------------------------


def topics(effects) -> list[str]:
    return [effect.topic for effect in effects if isinstance(effect, Publish)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def running(world: World) -> str:
    """A container that runs, with a health check, and everybody knows."""
    world.do("create", "", True)
    (id_,) = world.engine.lives
    world.do("start", id_)
    world.come_to_rest()
    assert world.follower.known[id_].state == "running"
    return id_


def test_only_a_creation_and_a_start_are_inspected(world: World, running: str) -> None:
    """All else is told from the event itself, and networks that come with a start or go with an end cost nothing."""
    for what, *args in [("judge",), ("pause",), ("pause",), ("rename",), ("kill", 15), ("finish", 0), ("remove",)]:
        world.do(what, running, *args)
        told = world.monitor.seq
        world.deliver()
        assert world.monitor.seq == told + 1
    assert world.monitor.counters["inspections"] == 2


def test_what_a_started_container_looks_like(world: World, running: str) -> None:
    """started carries the endpoints and the address; died has neither, but how it ended."""
    known = world.follower.known[running]
    assert known.endpoints[0].ip == known.networks["bridge"] != ""
    assert known.pid
    world.do("finish", running, 3)
    world.deliver()
    known = world.follower.known[running]
    assert (known.exit_code, known.pid, known.endpoints[0].ip, known.networks) == (3, 0, "", {"bridge": ""})


def test_a_drain_that_does_not_end_is_taken_back(world: World, running: str) -> None:
    """Five seconds after its stop time-out a container that still runs is told as changed, not draining."""
    world.do("kill", running, 15)
    world.deliver()
    assert world.follower.known[running].draining
    at = world.now + 10 + DRAIN_GRACE_S
    assert world.monitor.next_tick == at
    assert topics(world.monitor.tick(at - 0.01)) == []
    (publish,) = world.monitor.tick(at)
    assert (publish.topic, publish.body.container.draining) == ("container.changed", False)
    assert world.monitor.next_tick is None


def test_signals_that_stop_nothing(world: World, running: str) -> None:
    """Only the container's own stop signal drains; SIGHUP and SIGKILL say nothing about what comes."""
    world.do("kill", running, 1)
    world.do("kill", running, 9)
    told = world.monitor.seq
    world.deliver()
    assert world.monitor.seq == told


def test_noise_is_passed_over(world: World, running: str) -> None:
    """Execs and health-check runs are counted and change nothing."""
    for _ in range(5):
        world.do("probe", running)
    told = world.monitor.seq
    world.deliver()
    assert world.monitor.counters["ignored"] == 5
    assert (world.monitor.seq, world.inspections) == (told, [])


def test_a_restart_that_nobody_saw(world: World, running: str) -> None:
    """If a container was restarted in a gap its followers get died and started, counted as caught up."""
    world.do("finish", running, 0)
    world.do("start", running)
    world.stream.clear()
    world.engine.kept.clear()
    told = len(world.follower.told[running])
    world.cut(0)
    world.come_to_rest()
    assert [action for action, _ in world.follower.told[running][told:]] == ["died", "started"]
    assert world.monitor.counters["caught_up"] == 2


def test_a_lost_event_is_repaired_and_told(world: World, running: str) -> None:
    """An event that never came is made good by the next list, and docker.repaired names it."""
    world.do("finish", running, 0)
    world.do("settle")
    world.stream.clear()
    lines = world.engine.list()
    assert world.monitor.listed(lines, world.now, world.now, after_gap=False) == []
    assert world.monitor.next_tick == world.now + SUSPICION_S
    effects = world.monitor.tick(world.now + SUSPICION_S)
    assert effects == [Inspect(running)]
    told = world.monitor.inspected(running, world.engine.inspect(running), world.now + SUSPICION_S)
    assert topics(told) == ["container.died", "docker.repaired"]
    assert told[0].body.cause == "reconcile"
    assert told[1].body == {"node": "n", "repairs": ["c1: died"]}
    assert world.monitor.counters["repairs"] == 1


def test_a_lost_end_shows_with_the_next_start(world: World, running: str) -> None:
    """A start of what is thought to run means that an end was lost: it is looked into at once."""
    world.do("finish", running, 0)
    world.stream.clear()
    world.do("start", running)
    told = len(world.follower.told[running])
    world.come_to_rest()
    assert [action for action, _ in world.follower.told[running][told:]] == ["died", "started"]
    assert world.monitor.records[running].started_ns == world.engine.inspect(running).started_ns


def test_an_end_that_was_none_is_taken_back(world: World, running: str) -> None:
    """If the engine told of an end and the container goes on, the next list after a while says so."""
    world.do("finish", running, 0)
    world.engine.lives[running].end = None
    world.deliver()
    world.now += SETTLED_S
    world.ask_list()
    world.come_to_rest()
    world.come_to_rest()
    world.check_truth()


def test_an_inspection_that_an_event_overtook(world: World, running: str) -> None:
    """What an inspection saw before an event that is already told is not told as news; it is asked for again."""
    world.cut(0)
    world.deliver()
    world.arrive_list()
    world.read(0)
    world.do("pause", running)
    world.deliver()
    told = world.monitor.seq
    world.answer(0)
    assert world.monitor.seq == told
    assert len(world.inspections) == 1
    world.come_to_rest()
    world.check_truth()
    assert world.monitor.seq == told


def test_an_end_that_the_engine_has_not_noted_yet(world: World, running: str) -> None:
    """The engine tells of an end before its inspections show it: such a one does not bring a container back."""
    world.do("finish", running, 0)
    world.deliver()
    told = world.monitor.seq
    world.cut(0)
    world.carry_out(world.monitor.listed(world.engine.list(), world.now, world.now, after_gap=True))
    world.carry_out(
        world.monitor.inspected(running, replace(world.follower.known[running], state="running"), world.now)
    )
    assert world.monitor.seq == told


def test_a_list_from_before_a_removal(world: World, running: str) -> None:
    """A list that comes late does not bring back what was removed."""
    lines = world.engine.list()
    world.do("finish", running, 0)
    world.do("remove", running)
    world.deliver()
    assert world.monitor.listed(lines, world.now - 1, world.now, after_gap=True) == []
    assert world.monitor.next_tick is None


def test_a_replay_of_what_was_lost_before_newer_things(world: World, running: str) -> None:
    """An event from before those that are known is not applied: an inspection tells what came of it."""
    world.do("pause", running)
    world.do("pause", running)
    lost = [world.stream.popleft(), world.stream.popleft()]
    world.do("rename", running)
    world.deliver()
    world.monitor.cut()
    world.stream.extend(lost[:1])
    told = world.monitor.seq
    world.come_to_rest()
    world.check_truth()
    assert world.monitor.seq == told
    assert world.monitor.counters["late"] == 1


def test_a_container_that_is_gone_before_anybody_asks(world: World) -> None:
    """What an inspection cannot tell any more is told from the events: name, image and labels."""
    attributes = {"name": "short", "image": "nginx:1", "tier": "web"}
    for step, action in enumerate(("create", "start", "die", "destroy")):
        more = {"exitCode": "2"} if action == "die" else {}
        world.stream.append(EngineEvent("container", action, "", "e" * 64, attributes | more, START_NS + step))
    world.come_to_rest()
    assert world.follower.told["e" * 64] == [
        ("created", "short"), ("started", None), ("died", 2), ("destroyed", None),
    ]  # fmt: skip
    assert not world.monitor.records


def test_an_engine_that_does_not_answer(world: World, running: str) -> None:
    """Followers wait for a start that cannot be inspected, but not for ever."""
    world.do("finish", running, 0)
    world.do("start", running)
    world.deliver()
    for _ in range(MAX_TRIES - 1):
        (asked,) = world.inspections
        world.inspections.clear()
        assert topics(world.monitor.unanswered(asked[0], world.now)) == []
        world.now = world.monitor.next_tick
        world.carry_out(world.monitor.tick(world.now))
    assert topics(world.monitor.unanswered(running, world.now)) == ["container.started"]
    assert world.monitor.records[running].state == "running"


def test_inspections_are_bounded(world: World) -> None:
    """Of a hundred new containers eight are asked for at once, so that those that start meanwhile do not wait."""
    for _ in range(100):
        world.do("create")
    world.deliver()
    assert len(world.inspections) == MAX_UNHURRIED
    assert world.monitor.stats()["to_inspect"] == 100 - MAX_UNHURRIED
    for id_ in world.engine.lives:
        world.do("start", id_)
    world.deliver()
    assert len(world.inspections) == MAX_INSPECTS
    world.come_to_rest()
    assert world.busiest == MAX_INSPECTS
    world.check_truth()


def test_waiting_events_are_bounded(world: World) -> None:
    """A container with more events than may wait is told of in its outcome."""
    world.do("create")
    (id_,) = world.engine.lives
    world.deliver()
    for _ in range(MAX_WAITING + 5):
        world.do("rename", id_)
    world.deliver()
    assert world.monitor.stats()["waiting"] <= MAX_WAITING
    world.come_to_rest()
    world.check_truth()
    assert world.monitor.counters["overflows"] == 1


def test_a_replay_is_told_once(world: World, running: str) -> None:
    """Events that come again after the stream broke are known."""
    told = world.monitor.seq
    world.cut(0)
    replayed = len(world.stream)
    world.come_to_rest()
    assert replayed > 0
    assert world.monitor.seq == told
    assert world.monitor.counters["duplicates"] == replayed


def test_the_engine_is_told_of_once(world: World) -> None:
    """docker.up and docker.down say what changed: not each attempt, not a stream that only ended."""
    monitor = world.monitor
    assert topics(monitor.up(FACTS, 1, 2)) == []
    (down,) = monitor.down("refused", 2, 77)
    assert (down.topic, down.body.since_ns, down.body.reason, down.body.node) == ("docker.down", 77, "refused", "n")
    assert monitor.down("no socket", 3, 78) == []
    assert (monitor.engine.reason, monitor.engine.since_ns) == ("no socket", 77)
    (up,) = monitor.up(FACTS, 4, 80)
    assert (up.topic, up.body.version, up.body.reason) == ("docker.up", "27.0", "")
    assert topics(monitor.up(replace(FACTS, version="28.0"), 5, 81)) == ["docker.up"]
    assert topics(Monitor("n", 1).down("refused", 0, 1)) == ["docker.down"]


def test_images_and_networks(world: World) -> None:
    """Events of images and networks become topics with the words of docs/containers.md; others are passed over."""
    event = EngineEvent("image", "pull", "", "nginx:1", {"name": "nginx"}, 5)
    assert world.monitor.event(event, 1) == [
        Publish("image.pulled", {"node": "n", "action": "pulled", "id": "nginx:1", "name": "nginx", "time_ns": 5})
    ]
    event = EngineEvent("network", "create", "", "f" * 64, {"name": "lan", "type": "bridge"}, 6)
    (publish,) = world.monitor.event(event, 1)
    assert publish.topic == "network.created"
    assert publish.body == {
        "node": "n", "action": "created", "id": "f" * 64, "name": "lan", "driver": "bridge", "container": "",
        "time_ns": 6,
    }  # fmt: skip
    assert world.monitor.event(EngineEvent("volume", "create", "", "v", {}, 7), 1) == []
    assert world.monitor.event(EngineEvent("image", "bake", "", "v", {}, 8), 1) == []


POLICIES = [
    ("", 1, False, "exited"),
    ("no", 1, False, "exited"),
    ("always", 0, False, "restarting"),
    ("always", 137, True, "exited"),
    ("unless-stopped", 1, False, "restarting"),
    ("on-failure", 0, False, "exited"),
    ("on-failure", 1, False, "restarting"),
    ("on-failure:2", 1, False, "exited"),
    ("on-failure:3", 1, False, "restarting"),
    ("on-failure", None, False, "exited"),
]


@pytest.mark.parametrize(("policy", "exit_code", "stopped", "state"), POLICIES)
def test_the_state_after_an_end_follows_the_policy(policy, exit_code, stopped, state):
    """A container that its engine will start again is restarting, unless somebody stopped it."""
    one = Container(id="1" * 64, name="x", image=Image(given="i"), state="running", restart_policy=policy, restarts=2)
    assert state_after(one, exit_code, stopped) == state
