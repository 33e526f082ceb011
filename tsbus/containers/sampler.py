"""Sampler: decides which counters are read when, and makes figures and events of them. Pure.

stats.py gives it what cgroup.py has read of the kernel's counters, or the engine's own statistics where those cannot
be read, and publishes what it composes. A container that does nothing costs one number a second.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, Final, Literal

import msgspec

from tsbus.containers.kernel import NO_LIMIT
from tsbus.records import Pressure, Sample, StatsEvent

PERIOD_S: Final = 1.0
"""Between two rounds."""
LATE_S: Final = 0.1
"""A round that begins so much after its time is counted as late."""
FULL_READ_S: Final = 30.0
"""How often an idle container is read, for what is done to it: packets that come, memory that is taken.

With 200 containers 10 s made the rounds a fifth dearer (measured).
"""
LIMITS_S: Final = 60.0
"""How often limits are read, whose files are not held open."""
PRESSURE_S: Final = 2.0
"""How often the kernel works out its averages of pressure: sooner there is nothing new."""
KEYFRAME_S: Final = 30.0
"""How often all containers are in the event, changed or not."""
MIN_INTERVAL_S: Final = 0.2
"""The shortest time over which CPU is worked out: the machine's time comes in steps of 10 ms."""
MAX_SAMPLES: Final = 1000
"""In one event, and as many ids that are gone: its body stays under 512 KiB whatever the numbers are."""
SHORT_ID: Final = 12
"""How much of a container's id the events tell."""

CPU_STEP: Final = 0.1
"""Percent of a core, and of pressure: less is no change."""
MEMORY_STEP: Final = 64 << 10
"""Bytes, or a thousandth of what it was, if that is more. The other counters count when they move at all."""


Source = Literal["kernel", "engine"]
"""Whose numbers they are: `engine` where the kernel's counters of a container cannot be read."""


class Machine(msgspec.Struct, frozen=True, gc=False):
    """The machine at the moment of a reading."""

    cpu_ns: int
    """CPU time of all its CPUs together since it started, by Docker's sum."""
    cpus: int
    """How many are online."""
    memory: int = 0
    """Bytes that it has: the limit of containers without one. 0 if unknown."""
    busy_ns: int = 0
    """Part of `cpu_ns`: when a CPU had something to do."""


class Counters(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What has been counted of a container since it started; memory, pids and limits as they are. 0 without a limit."""

    cpu_ns: int
    throttled_ns: int = 0
    memory: int = 0
    inactive_file: int = 0
    """Part of `memory`: cache of files that the kernel can drop at once."""
    memory_limit: int = 0
    pids: int = 0
    pids_limit: int = 0
    net_rx: int = 0
    net_tx: int = 0
    block_read: int = 0
    block_write: int = 0
    oom_kills: int = 0
    pressure: Pressure | None = None


class Reading(msgspec.Struct, frozen=True, gc=False):
    """Counters of a container and of the machine at one moment."""

    counters: Counters
    machine: Machine


class Depth(IntEnum):
    """How much of a container is read."""

    PROBE = 0
    """Its CPU time alone."""
    COUNTERS = 1
    PRESSURE = 2
    """Counters and pressure."""
    ALL = 3
    """Limits too."""


def cpu_percent(cpu_ns: int, before: Machine, after: Machine) -> float:
    """Return what `docker stats` shows for a container that took `cpu_ns` between two moments: 100 is one core."""
    passed_ns = after.cpu_ns - before.cpu_ns
    return round(cpu_ns / passed_ns * after.cpus * 100, 2) if cpu_ns > 0 and passed_ns > 0 else 0.0


def sample(before: Reading | None, after: Reading) -> Sample:
    """Return the figures of a container as `docker stats` works them out; without `before` there is no CPU yet."""
    new, limit = after.counters, after.machine.memory
    cpu = cpu_percent(new.cpu_ns - before.counters.cpu_ns, before.machine, after.machine) if before else 0.0
    return Sample(
        cpu=cpu,
        memory=new.memory - new.inactive_file if new.inactive_file < new.memory else new.memory,
        memory_limit=min(new.memory_limit, limit) if new.memory_limit and limit else new.memory_limit or limit,
        net_rx=new.net_rx,
        net_tx=new.net_tx,
        block_read=new.block_read,
        block_write=new.block_write,
        pids=new.pids,
        pids_limit=new.pids_limit,
        throttled_ms=new.throttled_ns // 1_000_000,
        oom_kills=new.oom_kills,
        pressure=new.pressure,
    )


def has_changed(old: Sample, new: Sample) -> bool:
    """Tell whether `new` is worth sending to those who know `old`."""
    if old == new:
        return False
    if abs(new.cpu - old.cpu) >= CPU_STEP or abs(new.memory - old.memory) >= max(MEMORY_STEP, old.memory // 1000):
        return True
    if _pressure_changed(old.pressure, new.pressure):
        return True
    return msgspec.structs.replace(new, cpu=old.cpu, memory=old.memory, pressure=old.pressure) != old


def _pressure_changed(old: Pressure | None, new: Pressure | None) -> bool:
    if old is None or new is None:
        return old is not new
    return max(abs(new.cpu - old.cpu), abs(new.memory - old.memory), abs(new.io - old.io)) >= CPU_STEP


def reading_of(stats: Mapping[str, Any]) -> Reading | None:
    """Return what the engine's own statistics of a container say (one answer of its API), None if it does not run.

    They have no pressure and no kills for want of memory.
    """
    cpu = stats.get("cpu_stats") or {}
    usage = cpu.get("cpu_usage") or {}
    if not cpu.get("system_cpu_usage"):
        # The engine answers for a stopped container too, with nothing in it.
        return None
    memory, pids = stats.get("memory_stats") or {}, stats.get("pids_stats") or {}
    kinds = memory.get("stats") or {}
    nets = (stats.get("networks") or {}).values()
    blocks = {"r": 0, "w": 0}
    for entry in (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ():
        # `Read` of v1, `read` of v2; v1 has a `Total` too.
        first = entry["op"][:1].lower()
        if first in blocks:
            blocks[first] += entry["value"]
    counters = Counters(
        cpu_ns=usage.get("total_usage", 0),
        throttled_ns=(cpu.get("throttling_data") or {}).get("throttled_time", 0),
        memory=memory.get("usage", 0),
        inactive_file=kinds.get("total_inactive_file", kinds.get("inactive_file", 0)),
        memory_limit=_limit(memory.get("limit")),
        pids=pids.get("current", 0),
        pids_limit=_limit(pids.get("limit")),
        net_rx=sum(net["rx_bytes"] for net in nets),
        net_tx=sum(net["tx_bytes"] for net in nets),
        block_read=blocks["r"],
        block_write=blocks["w"],
    )
    return Reading(counters, Machine(cpu["system_cpu_usage"], cpu.get("online_cpus") or len(usage["percpu_usage"])))


def _limit(number: int | None) -> int:
    return number if number and number < NO_LIMIT else 0


class Schedule:
    """When rounds are due: a grid from the first one on, so that the time they take does not add up."""

    def __init__(self) -> None:
        self._due_s = 0.0
        self.rounds = 0
        self.late = 0
        """Rounds that began more than LATE_S after their time."""
        self.missed = 0
        """Rounds that fell out because one before took so long."""

    def start(self, now_s: float) -> None:
        """The first round is due at once."""
        self._due_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Return how long it is until the next round."""
        return max(0.0, self._due_s - now_s)

    def begin_round(self, now_s: float) -> None:
        """A round begins; the next is due at the first point of the grid that lies ahead."""
        behind_s = max(0.0, now_s - self._due_s)
        missed = int(behind_s // PERIOD_S)
        self.rounds += 1
        self.late += behind_s > LATE_S
        self.missed += missed
        self._due_s += (missed + 1) * PERIOD_S


class Cost:
    """How much of a core a process takes, over the last `window_s` seconds."""

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._marks: deque[tuple[float, float]] = deque()

    def percent(self, now_s: float, cpu_s: float) -> float:
        """Note that the process has used `cpu_s` of CPU until now; return the percentage."""
        # Two marks a second at most: the oldest has to stay until a younger one is as old as the window.
        if len(self._marks) < 2 or now_s - self._marks[-2][0] >= 0.5:
            self._marks.append((now_s, cpu_s))
        else:
            self._marks[-1] = (now_s, cpu_s)
        while len(self._marks) > 2 and now_s - self._marks[1][0] >= self._window_s:
            self._marks.popleft()
        then_s, used_s = self._marks[0]
        return round((cpu_s - used_s) / (now_s - then_s) * 100, 3) if now_s > then_s else 0.0


class _Track:
    """What is known of one container."""

    __slots__ = (
        "active",
        "before",
        "has_cpu",
        "limits_s",
        "number",
        "pressure_s",
        "read_s",
        "sample",
        "sent",
        "source",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        """So that not all are due in the same round."""
        self.before: Reading | None = None
        self.sample = Sample()
        self.sent: Sample | None = None
        self.active = True
        """Its CPU time has moved between the last two looks."""
        self.has_cpu = False
        self.source: Source = "kernel"
        self.read_s = 0.0
        self.pressure_s = 0.0
        self.limits_s = 0.0
        """When these, and all that is above them in Depth, were read; or as if, for the sake of order."""


class Sampler:
    """The running containers of a node: what to read of each, and what to tell. Ids are whole, events shorten them."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._tracks: dict[str, _Track] = {}
        self._gone: list[str] = []
        self._keyframe_s: float | None = None
        self._machine: tuple[float, Machine] | None = None
        self._machine_cpu: float | None = None

    def ask_full(self) -> None:
        """Let the next event be a keyframe: somebody new listens."""
        self._keyframe_s = None

    def wish(self, container: str, now_s: float, *, deep: bool = False) -> Depth | None:
        """Return how much of `container` is to be read now, with `deep` at all events everything.

        None: it was read so lately that the machine's steps of 10 ms would show in its CPU figure.
        """
        track = self._tracks.get(container)
        if track is None:
            return Depth.ALL
        if now_s - track.read_s < MIN_INTERVAL_S:
            return None
        if deep or now_s - track.limits_s >= LIMITS_S:
            return Depth.ALL
        if now_s - track.pressure_s >= (PRESSURE_S if track.active else FULL_READ_S):
            return Depth.PRESSURE
        return Depth.COUNTERS if track.active else Depth.PROBE

    def look(self, machine: Machine, now_s: float) -> None:
        """Take a reading of the machine."""
        if self._machine is not None:
            then_s, before = self._machine
            if now_s - then_s < MIN_INTERVAL_S:
                return
            self._machine_cpu = cpu_percent(machine.busy_ns - before.busy_ns, before, machine)
        self._machine = now_s, machine

    @property
    def knows_cpu(self) -> bool:
        """Whether the machine and all containers have been read often enough for a CPU figure."""
        return self._machine_cpu is not None and all(track.has_cpu for track in self._tracks.values())

    def has_moved(self, container: str, cpu_ns: int, machine: Machine, now_s: float) -> bool:
        """Tell whether a probe has shown that `container` did something, so that it is to be read; else that is it."""
        track = self._tracks[container]
        if track.before is None or cpu_ns != track.before.counters.cpu_ns:
            return True
        track.before = Reading(track.before.counters, machine)
        track.has_cpu, track.read_s = True, now_s
        if track.sample.cpu:
            track.sample = msgspec.structs.replace(track.sample, cpu=0.0)
        return False

    def take(
        self, container: str, reading: Reading, now_s: float, depth: Depth = Depth.ALL, source: Source = "kernel"
    ) -> None:
        """Take a reading of `container` that was as deep as `depth`; the same one again is no news."""
        track = self._tracks.get(container)
        if track and track.before is reading:
            return
        if track is None:
            track = self._tracks[container] = _Track(len(self._tracks))
            track.limits_s = now_s - track.number % LIMITS_S
        elif depth == Depth.ALL:
            track.limits_s = now_s
        before = track.before
        # A container that was started anew counts from 0 again.
        if before and before.counters.cpu_ns > reading.counters.cpu_ns:
            before = None
        track.sample = sample(before, reading)
        track.has_cpu = before is not None
        active = before is None or before.counters.cpu_ns != reading.counters.cpu_ns
        if track.active and not active:
            track.pressure_s = now_s - track.number % FULL_READ_S
        elif depth >= Depth.PRESSURE:
            track.pressure_s = now_s
        track.active = active
        track.before, track.source, track.read_s = reading, source, now_s

    def drop(self, container: str) -> None:
        """`container` does not run any more."""
        track = self._tracks.pop(container, None)
        if track and track.sent:
            self._gone.append(container)

    def events(self, now_s: float, time_ms: int, cost: float) -> list[StatsEvent]:
        """Return what is to be told after a round: mostly one event, and one even if nothing has changed.

        A container is told once it has been read twice: before, its CPU figure would be wrong.
        """
        full = self._keyframe_s is None or now_s >= self._keyframe_s
        if full:
            self._keyframe_s = now_s + KEYFRAME_S
        told = {}
        for container, track in self._tracks.items():
            if not track.has_cpu or (track.sample is track.sent and not full):
                continue
            if full or track.sent is None or has_changed(track.sent, track.sample):
                told[container] = track.sample
                track.sent = track.sample
        gone, self._gone = self._gone, []
        return self._pack(told, gone, full, time_ms, cost)

    def snapshot(self, time_ms: int, cost: float) -> list[StatsEvent]:
        """Return all there is, for one who asked; those who listen are told nothing by that."""
        told = {container: track.sample for container, track in self._tracks.items()}
        return self._pack(told, [], True, time_ms, cost)

    def _pack(
        self, told: Mapping[str, Sample], gone: Iterable[str], full: bool, time_ms: int, cost: float
    ) -> list[StatsEvent]:
        """Of a keyframe in several events only the first is `full`: it makes forget what was, the others add to it."""
        sources: dict[Source, list[tuple[str, Sample]]] = {"kernel": [], "engine": []}
        for container, figures in told.items():
            sources[self._tracks[container].source].append((container[:SHORT_ID], figures))
        parts: list[tuple[Source, dict[str, Sample]]] = [
            (source, dict(pairs[start : start + MAX_SAMPLES]))
            for source, pairs in sources.items()
            for start in range(0, len(pairs), MAX_SAMPLES)
        ]
        ids = sorted({container[:SHORT_ID] for container in gone if container not in self._tracks})
        cpus = self._machine[1].cpus if self._machine and self._machine_cpu is not None else 0
        usual: Source = "kernel" if any(track.source == "kernel" for track in self._tracks.values()) else "engine"
        while len(parts) < max(1, -(-len(ids) // MAX_SAMPLES)):
            parts.append((usual if self._tracks else "kernel", {}))
        return [
            StatsEvent(
                node=self._node,
                time_ms=time_ms,
                full=full and number == 0,
                source=source,
                samples=samples,
                gone=tuple(ids[number * MAX_SAMPLES : (number + 1) * MAX_SAMPLES]),
                cost=cost,
                cpu=self._machine_cpu or 0.0,
                cpus=cpus,
            )
            for number, (source, samples) in enumerate(parts)
        ]
