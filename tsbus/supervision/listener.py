"""Listener: what supervisord starts to hear of its programs (`services/ts_events.py`). Puts their changes on the bus.

supervisord is never kept waiting: each of its events is acknowledged at once and published when there is a router.
states.py decides; the connection to the bus is a worker's, and node.py's as well: this process is supervisord's user.
"""

import asyncio
import contextlib
import os
import sys
from collections import deque
from pathlib import Path
from typing import Any, Final

from tsbus import log
from tsbus.client import Client, connect
from tsbus.errors import BusError
from tsbus.supervision.control import Supervisord, remote
from tsbus.supervision.node import NodeService, files_of
from tsbus.supervision.states import Retries, bus_event, is_joined, tokens
from tsbus.worker import CONNECT_S, Worker

MAX_WAITING: Final = 1024
"""Events that wait for the router; the oldest go when there are more."""

JOIN_S: Final = 3.0
"""Of a node that is cut off, the events go to whoever is on its own side."""
LOOK_S: Final = 0.05
ANSWER_S: Final = 3.0
"""A supervisord that takes longer to answer is frozen."""

_log = log.Log("events")


class _Ended(Exception):
    """supervisord has closed our standard input."""


class Listener:
    """Takes events from supervisord and gives them to the bus."""

    def __init__(self, supervisor: Any, control: Path) -> None:
        """`supervisor`: the interface of control.remote; `control`: the socket of supervisord."""
        self._supervisor, self._control = supervisor, control
        self._looking: asyncio.Task[str] | None = None
        self._retries = Retries()
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._arrived = asyncio.Event()
        self._restarts: set[asyncio.Task[None]] = set()
        self.counters = {"published": 0, "dropped": 0, "restarts": 0}

    async def read(self, reader: asyncio.StreamReader, output: int) -> None:
        """Take supervisord's events from `reader` and acknowledge them to the file descriptor `output`."""
        while True:
            os.write(output, b"READY\n")
            header = tokens((await reader.readline()).decode())
            if not header:
                raise _Ended
            payload = (await reader.readexactly(int(header["len"]))).decode()
            os.write(output, b"RESULT 2\nOK")
            self.take(header["eventname"], payload)

    def take(self, event_name: str, payload: str) -> None:
        """Take one event: keep it for the bus, and see to programs that supervisord has given up."""
        event = bus_event(event_name, payload)
        if event is None:
            return
        told = tokens(payload)
        program = f"{told['groupname']}:{told['processname']}"
        if event_name == "PROCESS_STATE_RUNNING":
            self._retries.runs(program)
        elif event_name == "PROCESS_STATE_FATAL":
            task = asyncio.create_task(self._start_later(program, self._retries.delay_s(program)))
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.counters["dropped"] += 1
        self._waiting.append(event)
        self._arrived.set()

    async def _start_later(self, program: str, delay_s: float) -> None:
        _log.warning("program.fatal", program=program, retry_s=delay_s)
        await asyncio.sleep(delay_s)
        self.counters["restarts"] += 1
        try:
            await asyncio.to_thread(self._supervisor.startProcess, program, False)
        except Exception as error:  # it was started or removed meanwhile, or supervisord ends
            _log.warning("program.not-started", program=program, error=str(error))

    async def stats(self) -> dict[str, Any]:
        """Return the counters, and what is wrong with supervisord; however many ask, it is asked once at a time."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(_trouble(self._control))
        return {**self.counters, "trouble": await asyncio.shield(self._looking)}

    async def publish(self, client: Client) -> None:
        """Publish what arrives, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await _wait_joined(client)
            while self._waiting:
                topic, facts = self._waiting.popleft()
                await client.publish(topic, {"node": client.node, **facts})
                self.counters["published"] += 1


async def _trouble(control: Path) -> str:
    """Return what is wrong with supervisord, "" when it answers: that the request is not allowed is good enough."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(control)
            with contextlib.closing(writer):
                writer.write(b"HEAD / HTTP/1.0\r\n\r\n")
                await reader.readexactly(1)
    except TimeoutError:
        return f"does not answer within {ANSWER_S:g} s"
    except (OSError, EOFError) as error:
        return f"does not answer: {error}"
    return ""


async def _wait_joined(client: Client) -> None:
    """Wait until the router lives, and then, but not for ever, until its parent has told it who wants what.

    Events given to a router that was just killed, or that has just started, would reach nobody.
    """
    await client.flush()
    with contextlib.suppress(TimeoutError, BusError):
        async with asyncio.timeout(JOIN_S):
            while not is_joined(await client.call_one(client.node, "router.status")):
                await asyncio.sleep(LOOK_S)
    await client.flush()


async def _run() -> None:
    files, password = files_of(os.environ), os.environ["SUPERVISOR_PASSWORD"]
    listener = Listener(remote(files.control, password), files.control)
    node = NodeService(files, Supervisord(files, password))
    worker = Worker("process")
    worker.command("stats", role="observe")(lambda _: listener.stats())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        group.create_task(listener.read(reader, sys.stdout.fileno()))
        async with connect(name="process", timeout_s=CONNECT_S) as client:
            group.create_task(listener.publish(client))
            group.create_task(node.worker.serve(client))
            await worker.serve(client)


def main() -> int:
    """Listen until supervisord ends. Exit status 2: it was not supervisord that started this."""
    log.setup()
    if "SUPERVISOR_PASSWORD" not in os.environ:
        print(
            "ts_events is started by supervisord, as an event listener: see supervisord.conf.example", file=sys.stderr
        )
        return 2
    try:
        asyncio.run(_run())
    except* _Ended:
        _log.info("events.stop")
    except* BusError as errors:
        raise SystemExit(f"ts_events: {errors.exceptions[0]}") from None
    return 0
