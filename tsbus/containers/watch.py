"""Watch: follows the engine, and lets the monitor's decisions happen. The edge around monitor.py and contact.py.

The life of a contact: connect; open the stream of events; only then list all containers, so that nothing falls between
the two; compare; follow the events. When the stream ends: the same again, from two seconds before its last event.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from tsbus import BufferFull, BusError, Client
from tsbus.containers.contact import Contact
from tsbus.containers.engine import Engine, EngineError, ErrorKind
from tsbus.containers.facts import EngineEvent
from tsbus.containers.inspections import MAX_INSPECTS
from tsbus.containers.monitor import Effect, Monitor
from tsbus.containers.telling import Publish
from tsbus.containers.threads import Pool, Pump
from tsbus.cost import own_cost
from tsbus.log import Log
from tsbus.records import Container, ContainerEvent

OVERLAP_NS: Final = 2_000_000_000
"""A new stream begins so long before the last event of the one before; the monitor knows what it has seen."""
MAX_AHEAD: Final = 4096
"""Events of the engine that wait for the loop. Beyond, its stream is not read; the engine drops what it cannot send."""
MAX_OUTBOX: Final = 4096
"""Events for the bus that wait while the router is away. Beyond, the oldest go: missing numbers show it."""
MAX_LAGS: Final = 4096
"""Of so many events the lag is remembered."""
MAX_ENDS: Final = 1024
"""Containers whose last exit code is remembered, though they may be gone."""
LOOK_S: Final = 0.5
"""How often the socket of an engine that is not there is looked at, between attempts to connect."""
RETRY_S: Final = 1.0
"""How long a command waits for one more attempt to reach an engine that is away."""
COMPLETE_S: Final = 2.0
"""How long those who ask for all wait until all that the engine listed has been looked at."""

_log = Log("docker")


class Watch:
    """Follows one engine for one node, from `run` to its cancellation."""

    def __init__(self, engine: Engine, client: Client) -> None:
        self.engine = engine
        self.monitor = Monitor(client.node, time.time_ns() // 1_000_000)
        self._client = client
        self._contact = Contact()
        self._pool = Pool("monitor", MAX_INSPECTS + 2)
        self._outbox: deque[Publish] = deque(maxlen=MAX_OUTBOX)
        self._posting: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._retry = asyncio.Event()
        self._tried = asyncio.Event()
        self._attempted = asyncio.Event()
        self._complete = asyncio.Event()
        self._pump: Pump[tuple[int, EngineEvent]] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._inspections: set[asyncio.Task[None]] = set()
        self._ends: dict[str, int | None] = {}
        self._lags: deque[int] = deque(maxlen=MAX_LAGS)
        self._outbox_dropped = 0
        self._connects = 0
        self._loop = asyncio.get_running_loop()

    # What the service uses.

    @property
    def records(self) -> dict[str, Container]:
        """What is known of the containers, by id."""
        return self.monitor.records

    async def wait_changed(self) -> None:
        """Wait until something may have changed in the records."""
        await self._changed.wait()

    async def wait_engine(self) -> None:
        """Return if the engine is there. Raises EngineError when it is away, after one more attempt to reach it."""
        await self._tried.wait()
        if not self.monitor.engine.up:
            # Who asks may have just started it.
            self._retry.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._attempted.wait()
        if not self.monitor.engine.up:
            raise EngineError(ErrorKind.DOWN, self.monitor.engine.reason)

    async def check(self) -> None:
        """Return when the engine has answered a ping. Raises EngineError if it does not; it is down from then on.

        However many ask, it is asked once at a time: pings that hang would take all the threads.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._ping())
            self._checking.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nobody waits
        await asyncio.shield(self._checking)

    async def _ping(self) -> None:
        followed = self._pump
        try:
            await self._pool.run(self.engine.ping)
        except EngineError as error:
            if followed is not None and followed is self._pump:
                followed.close()
                self._failed(error)
            raise

    async def wait_complete(self) -> None:
        """Wait until what is known is all that the engine has, or the engine is away; at most COMPLETE_S."""
        await self._tried.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(COMPLETE_S):
                await self._complete.wait()

    async def wait_inspected(self) -> None:
        """Wait until all that events have told of has been looked at; at most COMPLETE_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(COMPLETE_S):
                while (counted := self.monitor.stats())["inspecting"] or counted["to_inspect"]:
                    await self.wait_changed()

    async def wait_known(self, container: str) -> None:
        """Wait until there is a record of a container that the engine has; at most COMPLETE_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(COMPLETE_S):
                while container not in self.records:
                    await self.wait_changed()

    async def wait_ended(self, container: str) -> int | None:
        """Wait until a container that was made a moment ago has ended, and return its exit code, if that is known."""
        while container not in self._ends:
            await self.wait_changed()
        return self._ends[container]

    def stats(self) -> dict[str, Any]:
        """Return the counters of `containers.stats`."""
        lags = sorted(self._lags)
        return {
            **self.monitor.stats(),
            "epoch": self.monitor.epoch,
            "seq": self.monitor.seq,
            "engine_up": self.monitor.engine.up,
            "connects": self._connects,
            "outbox": len(self._outbox),
            "outbox_dropped": self._outbox_dropped,
            # Between the engine's stamp and our hands; negative where its clock is another one's.
            "lag_p50_ms": lags[len(lags) // 2] / 1e6 if lags else None,
            "lag_p99_ms": lags[len(lags) * 99 // 100] / 1e6 if lags else None,
            **own_cost(),
        }

    # The life of the contact.

    async def run(self) -> None:
        """Follow the engine, for ever."""
        try:
            while True:
                await self._pause(await self._follow_once())
        finally:
            if self._timer:
                self._timer.cancel()
            for task in (*self._inspections, *([self._posting] if self._posting else [])):
                task.cancel()
            self._pool.close()
            self.engine.close()

    async def _pause(self, delay_s: float) -> None:
        """Wait until it is time to try again, somebody asks for it, or an engine that was not there is there."""
        self._retry.clear()
        absent = not self.engine.is_listening
        until = self._now() + delay_s
        while (left_s := until - self._now()) > 0 and not (absent and self.engine.is_listening):
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_S)):
                    await self._retry.wait()
                    return

    async def _follow_once(self) -> float:
        """Connect and follow until it ends. Returns after how many seconds to try again."""
        monitor, since_ns = self.monitor, self.monitor.last_event_ns
        try:
            facts = await self._pool.run(self.engine.connect)
            stream = await self._pool.open(self.engine.events, since_ns - OVERLAP_NS if since_ns else None)
            pump = self._pump = Pump(_Stamped(stream), MAX_AHEAD)
        except EngineError as error:
            return self._failed(error)
        try:
            asked_at = self._now()
            summaries = await self._pool.run(self.engine.list)
            self._contact.opened(self._now())
            self._connects += 1
            _log.info("engine.connected", engine=str(self.engine), version=facts.version, containers=len(summaries))
            self._complete.clear()
            self._carry_out(monitor.up(facts, self._now(), time.time_ns()))
            self._carry_out(monitor.listed(summaries, asked_at, self._now(), after_gap=True))
            self._attempt_ended()
            keeper = asyncio.create_task(self._keep(pump))
            try:
                while batch := await pump.take():
                    self._take(batch)
            finally:
                keeper.cancel()
        except EngineError as error:
            return self._failed(error)
        finally:
            self._pump = None
            pump.close()
            monitor.cut()
        _log.info("engine.stream-ended", engine=str(self.engine))
        return self._contact.ended(self._now(), random.random())  # noqa: S311

    def _failed(self, error: EngineError) -> float:
        if not self._contact.is_down:
            # Once, not every five seconds: a machine without an engine is none that needs help.
            _log.warning("engine.down", engine=str(self.engine), error=str(error))
        self._carry_out(self.monitor.down(str(error), self._now(), time.time_ns()))
        self._attempt_ended()
        return self._contact.failed(random.random())  # noqa: S311

    def _attempt_ended(self) -> None:
        self._tried.set()
        self._attempted.set()
        self._attempted.clear()
        self._note_whether_complete()

    def _note_whether_complete(self) -> None:
        """Those who ask for all wait while a list is being looked into, not for what single events bring."""
        if not self._complete.is_set():
            counted = self.monitor.stats()
            if not self.monitor.engine.up or not (counted["inspecting"] or counted["to_inspect"]):
                self._complete.set()

    async def _keep(self, pump: "Pump[tuple[int, EngineEvent]]") -> None:
        """Ping an engine that is silent, and compare with its list now and then."""
        contact = self._contact
        while (at := contact.next_at) is not None:
            await asyncio.sleep(at - self._now())
            try:
                if contact.wants_ping(self._now()):
                    await self._pool.run(self.engine.ping)
                    contact.heard(self._now())
                elif contact.wants_list(self._now()):
                    contact.listed(asked_at := self._now())
                    summaries = await self._pool.run(self.engine.list)
                    self._carry_out(self.monitor.listed(summaries, asked_at, self._now(), after_gap=False))
            except EngineError as error:
                _log.warning("engine.silent", engine=str(self.engine), error=str(error))
                pump.close()
                return

    def _take(self, batch: "Iterable[tuple[int, EngineEvent]]") -> None:
        now = self._now()
        self._contact.heard(now)
        for received_ns, event in batch:
            if event.time_ns > self.monitor.last_event_ns:  # no replay
                self._lags.append(received_ns - event.time_ns)
            self._carry_out(self.monitor.event(event, now))

    def _now(self) -> float:
        return self._loop.time()

    # Effects.

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self._publish(effect)
            else:
                task = asyncio.create_task(self._inspect(effect.id))
                self._inspections.add(task)
                task.add_done_callback(self._inspections.discard)
        self._changed.set()
        self._changed.clear()
        self._note_whether_complete()
        self._set_timer()

    def _set_timer(self) -> None:
        at = self.monitor.next_tick
        if self._timer is not None:
            if at is not None and self._timer.when() == at:
                return
            self._timer.cancel()
        self._timer = None if at is None else self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self.monitor.tick(self._now()))

    async def _inspect(self, container: str) -> None:
        seen: Container | None = None
        try:
            seen = await self._pool.run(self.engine.inspect, container)
        except EngineError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                _log.warning("engine.inspect-failed", container=container[:12], error=str(error))
                self._carry_out(self.monitor.unanswered(container, self._now()))
                return
        self._carry_out(self.monitor.inspected(container, seen, self._now()))

    def _publish(self, effect: Publish) -> None:
        """Publish now, or behind what waits already: the order is a promise."""
        if isinstance(effect.body, ContainerEvent):
            _log.debug("event", topic=effect.topic, name=effect.body.container.name, seq=effect.body.seq)
            if effect.body.action == "died":
                self._ends[effect.body.container.id] = effect.body.container.exit_code
                if len(self._ends) > MAX_ENDS:
                    del self._ends[next(iter(self._ends))]
        if not self._outbox:
            try:
                self._client.publish_nowait(effect.topic, effect.body)
                return
            except BufferFull:
                pass
            except BusError as error:
                self._drop(effect, error)
                return
        self._outbox_dropped += len(self._outbox) == MAX_OUTBOX
        self._outbox.append(effect)
        if self._posting is None or self._posting.done():
            self._posting = asyncio.create_task(self._post())

    async def _post(self) -> None:
        while self._outbox:
            effect = self._outbox[0]
            try:
                await self._client.publish(effect.topic, effect.body)
            except BusError as error:
                self._drop(effect, error)
            # Unless the newest have pushed it out meanwhile.
            if self._outbox and self._outbox[0] is effect:
                self._outbox.popleft()

    def _drop(self, effect: Publish, error: BusError) -> None:
        """An event that the bus does not take, such as one with huge labels: its number will be missed."""
        self._outbox_dropped += 1
        _log.warning("event.dropped", topic=effect.topic, error=str(error))


class _Stamped:
    """The engine's events with the time when they came, Unix nanoseconds."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def __next__(self) -> tuple[int, EngineEvent]:
        event = next(self._events)
        return time.time_ns(), event

    def close(self) -> None:
        self._events.close()
