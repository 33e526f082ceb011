"""Event handlers: programs that run whenever an event arrives. `Turns` decides, `EventHandler` acts.

service.py makes one for each `[handlers.NAME]` of the configuration and gives it the events of its subscription.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tsbus import Event
from tsbus.config.model import Handler
from tsbus.core.target import resolve
from tsbus.core.tree import Topology
from tsbus.executor.jobs import Ending
from tsbus.executor.process import Account, Process, Program, StartError
from tsbus.log import Log

KEPT_OUTPUT_BYTES = 4096
"""What the log gets of a handler's output; the rest is thrown away."""
OWN_TOPICS = "handler."
"""Events about handlers start no handler: two that fail would wake each other for ever."""

E = TypeVar("E")
Publish = Callable[[str, dict[str, Any]], Awaitable[None]]


class Turns(Generic[E]):
    """Which of one handler's events run now, which wait, and which are dropped: the oldest of those that wait."""

    def __init__(self, max_parallel: int, max_queue: int) -> None:
        self._max_parallel = max_parallel
        self._max_queue = max_queue
        self._waiting: deque[E] = deque()
        self._untold = 0
        self.running = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return len(self._waiting)

    def arrived(self, event: E) -> E | None:
        """Return the event if it is to be started now; otherwise it waits."""
        if self.running < self._max_parallel:
            self.running += 1
            return event
        self._waiting.append(event)
        if len(self._waiting) > self._max_queue:
            self._waiting.popleft()
            self.dropped += 1
            self._untold += 1
        return None

    def ended(self) -> E | None:
        """One run has ended. Returns the event that is to be started in its place, if one waits."""
        if self._waiting:
            return self._waiting.popleft()
        self.running -= 1
        return None

    def take_dropped(self) -> int:
        """Return how many events were dropped since this was last asked."""
        untold, self._untold = self._untold, 0
        return untold


def source_of(handler: Handler, topology: Topology, node: str) -> tuple[frozenset[str], str]:
    """Return the nodes whose events the handler wants, and the narrowest scope that has them all.

    Raises TargetError where its `from` names what the tree does not have.
    """
    nodes = resolve(handler.origin, topology, node)
    if nodes <= {node}:
        return nodes, "node"
    return nodes, "subtree" if nodes <= topology.subtree(node) else "all"


class EventHandler:
    """Runs one handler's program for each event, as its limits allow; failures are logged and published."""

    def __init__(
        self,
        handler: Handler,
        nodes: frozenset[str],
        account: Callable[[str], Account],
        publish: Publish,
        grace_s: float,
    ) -> None:
        """`account` finds a user, "" being the default user; `grace_s`: from SIGTERM to SIGKILL."""
        self.handler = handler
        self._nodes = nodes
        self._account = account
        self._publish = publish
        self._grace_s = grace_s
        self._turns: Turns[Event] = Turns(handler.max_parallel, handler.max_queue)
        self._runs: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._log = Log("exec")

    def arrived(self, event: Event) -> None:
        """Take an event of the subscription; it is left out if it comes from other nodes or is about handlers."""
        if event.origin in self._nodes and not event.topic.startswith(OWN_TOPICS):
            self._start(self._turns.arrived(event))

    def stats(self) -> dict[str, int]:
        """Return the counters of this handler."""
        turns = self._turns
        return {
            "running": turns.running,
            "waiting": turns.waiting,
            "dropped": turns.dropped,
            "failed": self._failed,
        }

    async def stop(self) -> None:
        """End all that runs, and wait for it."""
        runs = list(self._runs)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    def _start(self, event: Event | None) -> None:
        if event is not None:
            run = asyncio.get_running_loop().create_task(self._run(event))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)

    async def _run(self, event: Event) -> None:
        try:
            await self._run_and_tell(event)
        except Exception as error:
            self._log.error("handler.error", name=self.handler.name, error=repr(error))
        self._start(self._turns.ended())

    async def _run_and_tell(self, event: Event) -> None:
        handler = self.handler
        try:
            program = Program(handler.run, self._account(handler.user), env=_environment(event), stdin=True)
            ending, output = await _run_to_end(program, event.body, handler.timeout_s, self._grace_s)
            told: dict[str, Any] = {"exit": ending.exit, "signal": ending.signal, "reason": ending.reason}
        except StartError as error:
            ending, output, told = Ending(reason="not started"), b"", {"exit": None, "reason": str(error)}
        log = self._log.info if ending.ok else self._log.warning
        log("handler.ended", name=handler.name, topic=event.topic, **told, output=output.decode(errors="replace"))
        if not ending.ok:
            self._failed += 1
            await self._publish("handler.failed", {"name": handler.name, "topic": event.topic, **told})
        if dropped := self._turns.take_dropped():
            # Once for each run, not for each event: too many events must not make more of them.
            await self._publish("handler.dropped", {"name": handler.name, "dropped": dropped})


def _environment(event: Event) -> dict[str, str]:
    return {
        "TREESCALE_TOPIC": event.topic,
        "TREESCALE_ORIGIN": event.origin,
        "TREESCALE_WHO": event.who,
        "TREESCALE_TIME_MS": str(event.time_ms),
    }


async def _run_to_end(program: Program, data: bytes, timeout_s: float, grace_s: float) -> tuple[Ending, bytes]:
    """Run `program` with `data` on its stdin. Returns how it ended and the begin of its output. Raises StartError."""
    process = Process(program)
    output = bytearray()
    feeding = asyncio.create_task(_feed(process, data))
    try:
        async with asyncio.timeout(timeout_s):
            while (chunk := await process.read()) is not None:
                output += chunk[0][: KEPT_OUTPUT_BYTES - len(output)]
            return await process.wait(), bytes(output)
    except TimeoutError:
        return replace(await process.stop(grace_s), reason="timeout"), bytes(output)
    except asyncio.CancelledError:
        await process.stop(grace_s)
        raise
    finally:
        feeding.cancel()


async def _feed(process: Process, data: bytes) -> None:
    await process.write(data)
    process.close_input()
