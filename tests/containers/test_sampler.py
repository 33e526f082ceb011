"""What is read when, the figures, and the events, without a kernel."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.containers.sampler import (
    CPU_STEP,
    FULL_READ_S,
    KEYFRAME_S,
    MAX_SAMPLES,
    MEMORY_STEP,
    Cost,
    Counters,
    Depth,
    Machine,
    Reading,
    Sampler,
    Schedule,
    has_changed,
    reading_of,
    sample,
)
from tsbus.records import Pressure, Sample, StatsEvent

SECOND = 1_000_000_000
HUGE = 2**63
sizes = st.integers(0, HUGE)


def machine(seconds: float, cpus: int = 4) -> Machine:
    """A machine with 4 CPUs, so long after it started."""
    return Machine(round(seconds * cpus * SECOND), cpus, 8 << 30)


def reading(now_s: float, cpu_s: float = 0.0, **others) -> Reading:
    return Reading(Counters(cpu_ns=round(cpu_s * SECOND), **others), machine(now_s))


def name(number: int) -> str:
    return f"{number:064x}"[::-1]


def told(events: list[StatsEvent]) -> dict[str, Sample]:
    return {key: one for event in events for key, one in event.samples.items()}


def test_cpu_is_as_the_command_line_shows_it():
    """One core in full is 100 percent, however many there are, and half a core for a second is 50."""
    assert sample(reading(10, 3.0), reading(11, 3.5)).cpu == 50
    assert sample(reading(10, 3.0), reading(12, 11.0)).cpu == 400


def test_the_machine_is_told_as_its_containers_are():
    """What all CPUs of the machine do is in every event, 100 for one core, as soon as there are two readings."""
    sampler = Sampler("n")
    for now_s, busy_s in ((0.0, 7.0), (0.1, 7.1), (1.0, 8.5), (3.0, 8.5)):
        sampler.look(msgspec.structs.replace(machine(now_s), busy_ns=round(busy_s * SECOND)), now_s)
        (event,) = sampler.events(now_s, 0, 0.0)
        assert sampler.knows_cpu == bool(event.cpus)
        assert (event.cpu, event.cpus) == {0.0: (0, 0), 0.1: (0, 0), 1.0: (150, 4), 3.0: (0, 4)}[now_s]


def test_memory_is_without_the_cache_that_can_go():
    """Memory is usage without inactive file cache, unless that is as large, and a limit is the machine's at most."""
    one = sample(None, reading(1, memory=100 << 20, inactive_file=30 << 20, memory_limit=64 << 20))
    assert (one.memory, one.memory_limit, one.cpu) == (70 << 20, 64 << 20, 0)
    other = sample(None, reading(1, memory=10, inactive_file=10, memory_limit=9 << 40))
    assert (other.memory, other.memory_limit) == (10, 8 << 30)
    assert sample(None, reading(1)).memory_limit == 8 << 30


counters = st.builds(
    Counters,
    **dict.fromkeys(set(Counters.__struct_fields__) - {"pressure"}, sizes),
    pressure=st.none() | st.builds(Pressure, **dict.fromkeys(("cpu", "memory", "io"), st.floats(0, 100))),
)
readings = st.builds(Reading, counters, st.builds(Machine, sizes, st.integers(1, 512), sizes))


@given(st.none() | readings, readings)
def test_figures_are_never_absurd(before, after):
    """Whatever two readings say, no figure is negative and no time without CPU gives a percentage."""
    one = sample(before, after)
    assert one.cpu >= 0
    assert 0 <= one.memory <= after.counters.memory
    if before is None or before.counters.cpu_ns >= after.counters.cpu_ns:
        assert one.cpu == 0


@given(readings, st.integers(1, 10**12), st.integers(0, 10**12))
def test_intervals_add_up(first, cpu_ns, passed_ns):
    """The percentage over two intervals lies between those of the two."""
    passed_ns = max(passed_ns, 1000)

    def later(one, cpu, passed):
        return Reading(
            msgspec.structs.replace(one.counters, cpu_ns=one.counters.cpu_ns + cpu),
            Machine(one.machine.cpu_ns + passed, one.machine.cpus, one.machine.memory),
        )

    second = later(first, cpu_ns, passed_ns)
    third = later(second, 2 * cpu_ns, passed_ns)
    parts = sorted((sample(first, second).cpu, sample(second, third).cpu))
    whole = sample(first, third).cpu
    slack = whole * 1e-9 + 0.01
    assert parts[0] - slack <= whole <= parts[1] + slack


def test_small_moves_are_no_change():
    """Less than a step of CPU, memory or pressure is not told, but every byte of the other counters is."""
    old = Sample(cpu=50, memory=100 << 20, net_rx=7, pressure=Pressure(cpu=3))
    assert not has_changed(old, msgspec.structs.replace(old, cpu=50 + CPU_STEP / 2, memory=old.memory + MEMORY_STEP))
    assert has_changed(old, msgspec.structs.replace(old, cpu=50 + CPU_STEP * 2))
    assert has_changed(old, msgspec.structs.replace(old, memory=old.memory + old.memory // 500))
    assert has_changed(old, msgspec.structs.replace(old, net_rx=8))
    assert has_changed(old, msgspec.structs.replace(old, pressure=Pressure(cpu=4)))
    assert has_changed(old, msgspec.structs.replace(old, pressure=None))


class Box:
    """A container of the tests: how much CPU it has used, and its other counters."""

    def __init__(self) -> None:
        self.cpu_s = 1.0
        self.others: dict[str, int] = {}


def one_round(sampler: Sampler, boxes: dict[str, Box], now_s: float) -> dict[str, Depth | None]:
    """Do for `boxes` what stats.py does; return what was wished."""
    wishes = {}
    for key, box in boxes.items():
        depth = wishes[key] = sampler.wish(key, now_s)
        if depth is None:
            continue
        if depth == Depth.PROBE and not sampler.has_moved(key, round(box.cpu_s * SECOND), machine(now_s), now_s):
            continue
        sampler.take(key, reading(now_s, box.cpu_s, **box.others), now_s, depth)
    return wishes


def test_an_idle_container_is_only_probed():
    """A container that does nothing is probed each second and read in full each 30 s, not all in the same round."""
    sampler, boxes = Sampler("n"), {name(number): Box() for number in range(100)}
    rounds = [one_round(sampler, boxes, float(second)) for second in range(120)]
    for wishes in rounds[2:]:
        assert list(wishes.values()).count(Depth.PROBE) >= 90
    for key in boxes:
        full = [second for second, wishes in enumerate(rounds) if wishes[key] > Depth.PROBE]
        assert max(b - a for a, b in itertools.pairwise(full)) <= FULL_READ_S


def test_a_busy_container_is_read_each_second():
    """One that does something is read each second, its pressure each 2 s, its limits each minute."""
    sampler, boxes = Sampler("n"), {name(1): Box()}
    seen = []
    for second in range(120):
        boxes[name(1)].cpu_s += 0.25
        seen.append(one_round(sampler, boxes, float(second))[name(1)])
        if second:
            assert told(sampler.snapshot(0, 0.0))[name(1)[:12]].cpu == 25
    assert Depth.PROBE not in seen
    assert seen.count(Depth.ALL) in (2, 3)
    assert 55 <= seen.count(Depth.PRESSURE) <= 60


def test_waking_up_is_measured_over_the_last_second():
    """The CPU of a container that was only probed for a while is that since the last probe, and 0 when it stops."""
    sampler, box = Sampler("n"), Box()
    for second in range(8):
        one_round(sampler, {name(1): box}, float(second))
    box.cpu_s += 0.5
    box.others["net_rx"] = 77
    assert one_round(sampler, {name(1): box}, 8.0)[name(1)] == Depth.PROBE
    (event,) = sampler.events(8.0, 0, 0.0)
    assert told([event])[name(1)[:12]] == Sample(cpu=50, memory_limit=8 << 30, net_rx=77)
    for second in (9, 10):
        one_round(sampler, {name(1): box}, float(second))
    assert told(sampler.events(10.0, 0, 0.0))[name(1)[:12]].cpu == 0


def test_nothing_is_read_twice_within_a_fifth_of_a_second():
    """A container that was read just now is not read again, though somebody asks for everything."""
    sampler = Sampler("n")
    sampler.take(name(1), reading(5.0), 5.0)
    assert sampler.wish(name(1), 5.1, deep=True) is None
    assert sampler.wish(name(1), 5.3, deep=True) == Depth.ALL
    assert not sampler.knows_cpu


def test_a_container_is_told_when_its_cpu_is_known():
    """The first reading alone is not told: it has no CPU figure."""
    sampler, boxes = Sampler("n"), {name(1): Box()}
    one_round(sampler, boxes, 0.0)
    assert told(sampler.events(0.0, 0, 0.0)) == {}
    one_round(sampler, boxes, 1.0)
    assert set(told(sampler.events(1.0, 0, 0.0))) == {name(1)[:12]}


def test_an_old_reading_is_no_news():
    """The engine answers slower than rounds come: until it does, its last figures stand."""
    sampler = Sampler("n")
    last = reading(3.0, 1.0)
    for moment, one in ((1.0, reading(1.0, 0.0)), (3.0, last), (4.0, last), (5.0, last)):
        sampler.take(name(1), one, moment, source="engine")
    assert told(sampler.snapshot(0, 0.0))[name(1)[:12]].cpu == 50


def test_a_second_run_starts_from_nothing():
    """A container that was started again counts anew: its CPU is not the difference to the run before."""
    sampler = Sampler("n")
    sampler.take(name(1), reading(1.0, 100.0), 1.0)
    sampler.take(name(1), reading(2.0, 0.5), 2.0)
    assert told(sampler.snapshot(0, 0.0))[name(1)[:12]].cpu == 0


steps = st.lists(
    st.dictionaries(
        st.integers(0, 5),
        st.tuples(st.sampled_from([0.0, 0.0, 0.3, 1.0]), st.integers(0, 3)),
        max_size=6,
    ),
    min_size=1,
    max_size=60,
)


@given(steps)
def test_who_follows_the_events_knows_what_was_read(rounds):
    """Folding the events gives the containers that run and their figures, up to the steps, after every round."""
    sampler, boxes, view = Sampler("n"), {}, {}
    for second, running in enumerate(rounds):
        for key in boxes.keys() - running.keys():
            del boxes[key]
            sampler.drop(name(key))
        for key, (cpu_s, moved) in running.items():
            box = boxes.setdefault(key, Box())
            box.cpu_s += cpu_s
            box.others = {"net_rx": box.others.get("net_rx", 0) + (moved if cpu_s else 0)}
        one_round(sampler, {name(key): box for key, box in boxes.items()}, float(second))
        for event in sampler.events(float(second), second, 0.0):
            view = {} if event.full else view
            for gone in event.gone:
                view.pop(gone, None)
            view |= event.samples
        now = told(sampler.snapshot(0, 0.0))
        assert view.keys() <= now.keys()
        for key, known in view.items():
            assert not has_changed(known, now[key])


def test_keyframes_come_in_time_and_when_asked():
    """All containers are told at first, each 30 s and when somebody new listens; else an event may be empty."""
    sampler, boxes = Sampler("n"), {name(number): Box() for number in range(3)}
    one_round(sampler, boxes, 0.0)
    full = []
    for second in range(1, 100):
        one_round(sampler, boxes, float(second))
        if second == 50:
            sampler.ask_full()
        (event,) = sampler.events(float(second), second, 1.5)
        assert event.cost == 1.5
        assert len(event.samples) == (3 if event.full else 0)
        if event.full:
            full.append(second)
    assert full == [1, 1 + KEYFRAME_S, 50, 50 + KEYFRAME_S]


largest = Sample(
    cpu=99999.99,
    pressure=Pressure(cpu=33.33, memory=44.44, io=55.55),
    **dict.fromkeys(set(Sample.__struct_fields__) - {"cpu", "pressure"}, 2**64 - 1),
)


@pytest.mark.parametrize("count", [0, 1, MAX_SAMPLES, 2000, 2001])
def test_events_are_of_bounded_size(count):
    """However many containers there are, and however many went, each event stays under 512 KiB and none is lost."""
    sampler = Sampler("n")
    old, new = [name(number) for number in range(10_000, 10_000 + count)], [name(number) for number in range(count)]
    for keys, now_s in ((old, 0.0), (new, 2.0)):
        for moment in (now_s, now_s + 1):
            for key in keys:
                sampler.take(key, reading(moment, moment), moment)
        for track in sampler._tracks.values():
            track.sample = largest
        sampler.ask_full()
        events = sampler.events(now_s + 1, 0, 99.999)
        for key in keys:
            sampler.drop(key)
    assert all(len(msgspec.json.encode(event)) < 512 << 10 for event in events)
    assert [event.full for event in events] == [True] + [False] * (len(events) - 1)
    assert told(events).keys() == {key[:12] for key in new}
    assert {key for event in events for key in event.gone} == {key[:12] for key in old}


def test_sources_have_events_of_their_own():
    """What the kernel does not tell of one container comes from the engine, in an event that says so."""
    sampler = Sampler("n")
    for moment in (1.0, 2.0):
        sampler.take(name(1), reading(moment, moment), moment)
        sampler.take(name(2), reading(moment, moment), moment, source="engine")
    first, second = sampler.events(2.0, 0, 0.0)
    assert (first.source, set(first.samples), first.full) == ("kernel", {name(1)[:12]}, True)
    assert (second.source, set(second.samples), second.full) == ("engine", {name(2)[:12]}, False)
    sampler.drop(name(1))
    (only,) = sampler.events(3.0, 0, 0.0)
    assert (only.source, only.gone) == ("engine", (name(1)[:12],))


V1_STATS = {
    "pids_stats": {"current": 1, "limit": 50},
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 100},
            {"major": 8, "minor": 0, "op": "Write", "value": 20},
            {"major": 8, "minor": 0, "op": "Total", "value": 120},
            {"major": 8, "minor": 16, "op": "Read", "value": 1},
        ]
    },
    "cpu_stats": {
        "cpu_usage": {"total_usage": 180253268, "percpu_usage": [8306348, 171946920]},
        "system_cpu_usage": 23753250000000,
        "throttling_data": {"periods": 5, "throttled_periods": 2, "throttled_time": 81555422},
    },
    "memory_stats": {"usage": 802816, "stats": {"total_inactive_file": 4096, "inactive_file": 1}, "limit": 67108864},
    "networks": {"eth0": {"rx_bytes": 290, "tx_bytes": 3}, "eth1": {"rx_bytes": 10, "tx_bytes": 4}},
}
V2_STATS = {
    "pids_stats": {"current": 1, "limit": 18446744073709551615},
    "blkio_stats": {"io_service_bytes_recursive": None},
    "cpu_stats": {
        "cpu_usage": {"total_usage": 570000000},
        "system_cpu_usage": 60660000000,
        "online_cpus": 1,
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    },
    "memory_stats": {"usage": 491520, "stats": {"inactive_file": 24576}, "limit": 2081345536},
}
STOPPED_STATS = {
    "read": "0001-01-01T00:00:00Z",
    "pids_stats": {},
    "blkio_stats": {"io_service_bytes_recursive": None},
    "cpu_stats": {"cpu_usage": {"total_usage": 0}, "throttling_data": {"periods": 0}},
    "memory_stats": {},
    "name": "/web1",
}


def test_the_engines_statistics_of_v1_are_understood():
    """What the engine says on a machine with cgroup v1 becomes the same counters."""
    assert reading_of(V1_STATS) == Reading(
        Counters(
            cpu_ns=180253268,
            throttled_ns=81555422,
            memory=802816,
            inactive_file=4096,
            memory_limit=67108864,
            pids=1,
            pids_limit=50,
            net_rx=300,
            net_tx=7,
            block_read=101,
            block_write=20,
        ),
        Machine(23753250000000, 2),
    )


def test_the_engines_statistics_of_v2_are_understood():
    """On one with cgroup v2 too, where operations are written small, and no limit is a large number."""
    got = reading_of(V2_STATS | {"blkio_stats": {"io_service_bytes_recursive": [{"op": "write", "value": 5}]}})
    assert got == Reading(
        Counters(cpu_ns=570000000, memory=491520, inactive_file=24576, memory_limit=2081345536, pids=1, block_write=5),
        Machine(60660000000, 1),
    )
    assert reading_of(V2_STATS).counters.block_write == 0


@pytest.mark.parametrize("stats", [STOPPED_STATS, {"id": "6d9b", "name": "/web1"}, {}])
def test_a_stopped_container_has_no_reading(stats):
    """The engine answers for a container that does not run too, and that is no reading."""
    assert reading_of(stats) is None


@given(st.lists(st.floats(0.0, 5.0), max_size=50))
def test_rounds_keep_to_the_grid(durations):
    """Rounds begin on whole seconds after the first, however long each takes, and those that fall out are counted."""
    schedule, now_s = Schedule(), 100.0
    schedule.start(now_s)
    for took_s in durations:
        now_s += schedule.wait_s(now_s)
        schedule.begin_round(now_s)
        now_s += took_s
        if wait_s := schedule.wait_s(now_s):
            assert now_s + wait_s == pytest.approx(round(now_s + wait_s), abs=1e-6)
    assert schedule.rounds == len(durations)
    assert schedule.late <= schedule.rounds
    assert schedule.missed <= sum(durations)


def test_cost_is_that_of_the_last_ten_seconds():
    """A burst of work shows in the percentage for ten seconds and then no more."""
    cost = Cost()
    figures = [cost.percent(float(second), min(second, 5) * 0.5) for second in range(30)]
    assert figures[5] == 50
    assert figures[10] == 25
    assert figures[20:] == [0.0] * 10
    assert cost.percent(29.0, 2.5) == 0
