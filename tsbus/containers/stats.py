"""Stats: the statistics of a node's running containers, from the kernel's files to the events. An edge.

cgroup.py reads, sampler.py decides what and composes; here the two meet, with the clock. service.py runs the rounds
while somebody listens and publishes what they return. A round blocks, for a time that is told in the counters.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tsbus.containers.cgroup import Cgroups, Gone, MachineMeter, Meter, Unreadable
from tsbus.containers.sampler import MIN_INTERVAL_S, Cost, Depth, Machine, Reading, Sampler, Schedule
from tsbus.records import StatsEvent

UNSEEN_S: Final = 3.0
"""How long a container may be called running without its process being seen, until it is taken for unreadable."""
NOTHING: Final[Mapping[str, Reading]] = MappingProxyType({})

Ask = Callable[[Sequence[str]], Awaitable[Mapping[str, Reading]]]
"""Asks the engine for its statistics of containers whose counters cannot be read."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the statistics do and have done; the sums are since the process began."""

    metered: int
    """Containers whose counters are read at present."""
    held: int
    """Descriptors that are held for them."""
    unreadable: int
    """Containers whose counters cannot be read."""
    rounds: int
    late: int
    """Rounds that began late."""
    missed: int
    """Rounds that fell out."""
    probes: int
    """How often only the CPU time of a container was read."""
    readings: int
    """How often more was."""
    round_ms: float
    """How long the last round took."""
    worst_ms: float
    """How long the longest took."""
    cost: float
    """CPU of this process, percent of one core, over the last ten seconds."""


class Statistics:
    """The statistics of `node`: in rounds between `begin` and `end`, and when somebody asks. Idle, it holds nothing."""

    def __init__(self, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._clock = clock
        self._schedule = Schedule()
        self._cost = Cost()
        self._tally = _Tally()
        self._session: _Session | None = None
        self._users = 0
        self._is_on = False
        self._is_first = False

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The running containers whose counters cannot be read, by id, and why: the engine is to be asked for them."""
        return self._session.unreadable() if self._session else {}

    def begin(self) -> None:
        """Somebody listens, or somebody more: the next round that tells anything tells everything.

        The first round is due at once. It returns nothing, because there is no CPU figure yet, and the next comes soon.
        """
        session = self._session
        if not self._is_on:
            session = self._enter()
            self._is_on = self._is_first = True
            self._schedule.start(self._clock())
        if session:
            session.sampler.ask_full()

    def end(self) -> None:
        """Nobody listens any more: no rounds, and every file is closed."""
        if self._is_on:
            self._is_on = False
            self._leave()

    def wait_s(self) -> float:
        """Return how long it is until the next round."""
        return self._schedule.wait_s(self._clock())

    def round(self, running: Mapping[str, int], engine: Mapping[str, Reading] = NOTHING) -> list[StatsEvent]:
        """Read what is due of the containers that run (id -> first process) and return the events to publish.

        `engine`: the newest readings of those that are `unreadable`. Without `begin` there is nothing to publish.
        """
        session = self._session
        if not self._is_on or not session:
            return []
        begun_s, now_s = time.perf_counter(), self._clock()
        self._schedule.begin_round(now_s)
        session.look(running, engine, now_s)
        if self._is_first:
            self._is_first = False
            self._schedule.start(now_s + MIN_INTERVAL_S)
            return []
        events = session.sampler.events(now_s, _time_ms(), self.cost())
        self._tally.took((time.perf_counter() - begun_s) * 1000)
        return events

    async def sample_now(self, running: Mapping[str, int], ask: Ask | None = None) -> list[StatsEvent]:
        """Return the figures of all that run, read now: one event, or several if there are very many containers.

        CPU is over the time since the last reading, or over MIN_INTERVAL_S, for which this then waits. Nothing is read
        more often than that, however many ask.
        """
        session = self._enter()
        try:
            for _ in range(2):
                engine = await ask(tuple(session.unreadable())) if ask and session.unreadable() else NOTHING
                session.look(running, engine, self._clock(), deep=True)
                if session.sampler.knows_cpu:
                    break
                await asyncio.sleep(MIN_INTERVAL_S)
            return session.sampler.snapshot(_time_ms(), self.cost())
        finally:
            self._leave()

    def cost(self) -> float:
        """Return the CPU that this process takes, percent of one core, over the last ten seconds."""
        return self._cost.percent(self._clock(), time.process_time())

    def counts(self) -> Counts:
        """Return what is and was done."""
        meters = self._session.meters() if self._session else ()
        return Counts(
            metered=len(meters),
            held=sum(meter.held for meter in meters),
            unreadable=len(self.unreadable),
            rounds=self._schedule.rounds,
            late=self._schedule.late,
            missed=self._schedule.missed,
            probes=self._tally.probes,
            readings=self._tally.readings,
            round_ms=round(self._tally.last_ms, 3),
            worst_ms=round(self._tally.worst_ms, 3),
            cost=self.cost(),
        )

    def _enter(self) -> "_Session":
        self._users += 1
        if self._session is None:
            self._session = _Session(self._node, self._tally)
        return self._session

    def _leave(self) -> None:
        self._users -= 1
        if self._users == 0 and self._session:
            self._session.close()
            self._session = None


@dataclass(slots=True)
class _Tally:
    """Counts over all sessions."""

    probes: int = 0
    readings: int = 0
    last_ms: float = 0.0
    worst_ms: float = 0.0

    def took(self, ms: float) -> None:
        """A round has taken so long."""
        self.last_ms, self.worst_ms = ms, max(self.worst_ms, ms)


@dataclass(slots=True)
class _Entry:
    """A container that is said to run, with this process."""

    pid: int
    since_s: float
    meter: Meter | None = None
    ended: bool = False
    """Its counters are gone; the news of its end is on its way."""
    reason: str = ""
    """Why its counters cannot be read."""


class _Session:
    """What is held while somebody wants statistics."""

    def __init__(self, node: str, tally: _Tally) -> None:
        self.sampler = Sampler(node)
        self._tally = tally
        self._cgroups = Cgroups()
        self._machine = MachineMeter()
        self._entries: dict[str, _Entry] = {}

    def look(
        self, running: Mapping[str, int], engine: Mapping[str, Reading], now_s: float, *, deep: bool = False
    ) -> None:
        """Read what is due, with `deep` everything, of `running`, and forget the others."""
        for container in self._entries.keys() - running.keys():
            self._forget(container)
        machine = self._machine.read()
        self.sampler.look(machine, now_s)
        for container, pid in running.items():
            entry = self._entries.get(container)
            if entry is None or entry.pid != pid:
                # Started anew, it counts from the beginning.
                self._forget(container)
                entry = self._entries[container] = _Entry(pid, now_s)
            if (depth := self.sampler.wish(container, now_s, deep=deep)) is None:
                continue
            try:
                self._read(container, entry, machine, depth, now_s)
            except Unreadable as error:
                entry.reason = str(error)
                self._drop_meter(container, entry)
            if entry.reason and (reading := engine.get(container)):
                self.sampler.take(container, reading, now_s, source="engine")

    def unreadable(self) -> dict[str, str]:
        """Why which containers cannot be read."""
        return {container: entry.reason for container, entry in self._entries.items() if entry.reason}

    def meters(self) -> list[Meter]:
        """The meters in use."""
        return [entry.meter for entry in self._entries.values() if entry.meter]

    def close(self) -> None:
        """Close every file."""
        for meter in self.meters():
            meter.close()
        self._machine.close()

    def _read(self, container: str, entry: _Entry, machine: Machine, depth: Depth, now_s: float) -> None:
        if entry.ended or entry.reason:
            return
        if entry.meter is None:
            try:
                entry.meter = Meter(container, entry.pid, self._cgroups)
            except Gone as error:
                if now_s - entry.since_s >= UNSEEN_S:
                    advice = "the engine says that it runs: is that on another machine, or is --pid=host missing?"
                    raise Unreadable(f"{error}; {advice}") from None
                return
        if depth == Depth.PROBE:
            self._tally.probes += 1
            cpu_ns = entry.meter.probe()
            if cpu_ns is not None and not self.sampler.has_moved(container, cpu_ns, machine, now_s):
                return
            depth = Depth.PRESSURE
        self._tally.readings += 1
        counters = entry.meter.read(depth)
        if counters:
            self.sampler.take(container, Reading(counters, machine), now_s, depth)
        else:
            entry.ended = True
            self._drop_meter(container, entry)

    def _drop_meter(self, container: str, entry: _Entry) -> None:
        if entry.meter:
            entry.meter.close()
            entry.meter = None
        self.sampler.drop(container)

    def _forget(self, container: str) -> None:
        if entry := self._entries.pop(container, None):
            self._drop_meter(container, entry)


def _time_ms() -> int:
    return time.time_ns() // 1_000_000
