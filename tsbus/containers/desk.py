"""Desk: what all commands on containers share: names, policy, audit lines, threads. Between orders and the engine."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, TypeVar

from tsbus import CommandError, RefusedError, Request, Role
from tsbus.audit import AuditError, AuditLog, time_now
from tsbus.config import DockerPolicy
from tsbus.containers.engine import Engine, EngineError, ErrorKind
from tsbus.containers.naming import Named, NotOne, Target, matching, resolve
from tsbus.containers.orders import Exec as ExecOrder
from tsbus.containers.orders import Order, OrderError, parse, shown
from tsbus.containers.policy import decide, decide_exec, named_volumes, powers_of, volume_path
from tsbus.containers.threads import Pool
from tsbus.containers.watch import Watch
from tsbus.core.body import BodyError
from tsbus.log import Log

MAX_CALLS: Final = 32
"""Calls of the engine at the same time, for all callers together."""
MAX_STREAMS: Final = 64
"""Logs, programs and pulls that callers follow at the same time."""
MAX_SHOWN_NAMES: Final = 100
"""Containers that an audit line names."""

PATIENT_S: Final = 2.0
"""Whoever waits for the engine for longer asks it so often whether it is still there."""

_log = Log("docker")
O = TypeVar("O", bound=Order)  # noqa: E741
T = TypeVar("T")


class Desk:
    """Serves the callers of one node."""

    def __init__(self, policy: DockerPolicy, audit: AuditLog, watch: Watch) -> None:
        self.watch = watch
        self.calls = Pool("call", MAX_CALLS)
        self.inputs = Pool("stream", MAX_STREAMS)
        self.streams = 0
        self.counters: Counter[str] = Counter()
        self._policy = policy
        self._audit = audit
        self._numbers = count(1)

    @property
    def engine(self) -> Engine:
        """The engine; call it through `do`."""
        return self.watch.engine

    def close(self) -> None:
        """Take no more calls."""
        self.calls.close()
        self.inputs.close()

    def order(self, kind: type[O], call: Request) -> O:
        """Return what the caller asks for. Raises CommandError."""
        try:
            return parse(kind, call.json())
        except (OrderError, BodyError) as error:
            raise CommandError(str(error)) from None

    async def do(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Let the engine do something. Raises CommandError with what it says."""
        try:
            return await self.run(call, *args, **options)
        except EngineError as error:
            raise CommandError(str(error)) from None

    async def run(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Let the engine do something that may take its time, as long as it answers otherwise. Raises EngineError."""
        return await self.answered(asyncio.ensure_future(self.calls.run(call, *args, **options)))

    async def answered(self, doing: "asyncio.Future[T]") -> T:
        """Wait for what the engine does. Raises EngineError also when the engine does not even answer a ping."""
        try:
            while not (await asyncio.wait({doing}, timeout=PATIENT_S))[0]:
                try:
                    await self.watch.check()
                except EngineError as error:
                    if not doing.done():
                        raise EngineError(error.kind, f"{error} It may still do what it was told.") from None
            return await doing
        finally:
            doing.cancel()

    async def find(self, names: Sequence[str], *, if_here: bool = False) -> list[Target]:
        """Return the containers that names mean. Raises CommandError."""
        known: Sequence[Named] = list(self.watch.records.values())
        if any(not matching(name, known) for name in names):
            # Its event may be on its way: the engine knows at once.
            await self.engine_is_up()
            known = await self.do(self.engine.list)
        try:
            return resolve(names, known, if_here=if_here)
        except NotOne as error:
            raise CommandError(str(error)) from None

    async def engine_is_up(self) -> None:
        """Raise CommandError while the engine is away."""
        try:
            await self.watch.wait_engine()
        except EngineError as error:
            raise CommandError(str(error)) from None

    # What is allowed, and what is written down.

    async def allow(
        self,
        call: Request,
        targets: Sequence[Target],
        order: Order,
        told: Mapping[str, Any],
    ) -> None:
        """Raise RefusedError if the policy forbids a container that is described by `told`, in the engine's JSON.

        With an order to run a program in it, it is there already.
        """
        volumes = {}
        for name in named_volumes(told):
            try:
                found = await self.run(self.engine.volume, name)
            except EngineError as error:
                if error.kind is not ErrorKind.NOT_FOUND:  # a new one is always plain
                    raise CommandError(str(error)) from None
                continue
            if path := volume_path(found):
                volumes[name] = path
        powers = powers_of(told, volumes, os.path.realpath if self.engine.is_local else os.path.normpath)
        if isinstance(order, ExecOrder):
            denied = decide_exec(powers, self._policy, Role(call.role), privileged=order.privileged)
        else:
            denied = decide(powers, self._policy)
        if denied:
            self.counters["refused"] += 1
            self._try_to_write(self._line("refused", next(self._numbers), call, targets, order, reason=denied.reason))
            raise RefusedError(denied.reason)

    @contextmanager
    def recorded(self, call: Request, targets: Sequence[Target], order: Order) -> "Iterator[dict[str, Any]]":
        """Write down what is about to be done, and at the end how it went: what is put into the dict that is given.

        Raises RefusedError where the audit log cannot be written.
        """
        number = next(self._numbers)
        try:
            self._audit.write(self._line("start", number, call, targets, order))
        except AuditError as error:
            self.counters["audit_errors"] += 1
            _log.error("audit.failed", error=str(error))
            raise RefusedError(str(error)) from error
        told: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield told
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            told.setdefault("error", "nobody waited for the end" if cancelled else str(error))
            raise
        finally:
            took_ms = round((time.monotonic() - began) * 1000)
            end = {"time": time_now(), "record": "end", "number": number, "command": call.command, "took_ms": took_ms}
            self._try_to_write({**end, "ok": "error" not in told, **told})

    def _line(
        self, record: str, number: int, call: Request, targets: Sequence[Target], order: Order, **more: Any
    ) -> dict[str, Any]:
        return {
            "time": time_now(),
            "record": record,
            "number": number,
            "node": call.node,
            "who": call.who,
            **({"person": call.person} if call.person else {}),
            "origin": call.origin,
            "role": Role(call.role).name.lower(),
            "handle": call.handle,
            "call": call.call,
            "command": call.command,
            "containers": [[target.id[:12], target.name] for target in targets[:MAX_SHOWN_NAMES]],
            "count": len(targets),
            "order": shown(order),
            **more,
        }

    def _try_to_write(self, line: dict[str, Any]) -> None:
        """Write about what cannot be undone any more, so that a failure is only logged and counted."""
        try:
            self._audit.write(line)
        except AuditError as error:
            self.counters["audit_errors"] += 1
            _log.error("audit.failed", error=str(error), record=line)

    @contextmanager
    def stream(self) -> "Iterator[None]":
        """Hold a place for a stream. Raises CommandError when all are taken."""
        if self.streams >= MAX_STREAMS:
            self.counters["streams_refused"] += 1
            raise CommandError(f"{MAX_STREAMS} logs, programs and pulls are followed here already; try again later")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1
