"""Output: what containers and programs in them write, on its way to callers, and what callers write to programs."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, TypeVar

from tsbus import CommandError, Outcome, Request
from tsbus.containers.desk import Desk
from tsbus.containers.ending import end_program
from tsbus.containers.engine import EngineError, Exec, Output
from tsbus.containers.naming import Target
from tsbus.containers.orders import Exec as ExecOrder
from tsbus.containers.orders import Logs, Resize
from tsbus.containers.threads import Pump
from tsbus.core.body import to_body

AHEAD_BYTES: Final = 256 << 10
"""What is read of one stream before the caller has taken it."""
PIECE_BYTES: Final = 64 << 10
MAX_LINE: Final = 32 << 10
"""Of several containers together: longer lines are told in parts."""

S = TypeVar("S", bound=Output)

Piece = tuple[bool, bytes]
"""Whether it is of the second output, and what was written."""


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Put pieces of one output that follow each other together, up to PIECE_BYTES."""
    gathered, of = bytearray(), False
    for second, data in pieces:
        if gathered and (second is not of or len(gathered) + len(data) > PIECE_BYTES):
            yield of, bytes(gathered)
            gathered.clear()
        gathered += data
        of = second
    if gathered:
        yield of, bytes(gathered)


class Lines:
    """The lines of one container among those of others, each behind its name."""

    def __init__(self, name: str, width: int) -> None:
        self._head = f"{name:<{width}} | ".encode()
        self._begun = {False: b"", True: b""}

    def take(self, second: bool, data: bytes) -> bytes:
        """Return the lines that are whole now."""
        *whole, rest = (self._begun[second] + data).split(b"\n")
        while len(rest) >= MAX_LINE:
            whole.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._begun[second] = rest
        return b"".join(self._head + line + b"\n" for line in whole)

    def rest(self, second: bool) -> bytes:
        """Return the last line, which had no end."""
        line, self._begun[second] = self._begun[second], b""
        return self._head + line + b"\n" if line else b""


class Writings:
    """`containers.logs`, `exec`, `resize`, and the output of `run`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._endings: set[asyncio.Task[None]] = set()

    async def logs(self, call: Request) -> None:
        """`containers.logs`: of one container as it is, of several as lines."""
        order = self._desk.order(Logs, call)
        targets = await self._desk.find(order.containers, if_here=order.if_here)
        width = max((len(target.name) for target in targets), default=0)
        # Whole messages of different containers follow each other, also when they go in pieces.
        turn = asyncio.Lock()

        async def follow(target: Target) -> None:
            lines = Lines(target.name, width) if len(targets) > 1 else None
            with self._desk.stream():
                output = await self._open(self._desk.engine.logs, target.id, **_options(order))
                await self._pass_on(output, call, turn, lines)

        await _together(follow(target) for target in targets)

    async def exec(self, call: Request) -> Any:
        """`containers.exec`: run a program in a container."""
        desk, order = self._desk, self._desk.order(ExecOrder, call)
        targets = await desk.find([order.container], if_here=order.if_here)
        if not targets:
            return None
        await desk.engine_is_up()
        told = await desk.do(desk.engine.inspect_raw, targets[0].id)
        await desk.allow(call, targets, order, told)
        with desk.stream(), desk.recorded(call, targets, order) as record:
            program = await self._open(
                desk.engine.exec, targets[0].id, order.argv, env=order.env, user=order.user, cwd=order.cwd,
                stdin=order.stdin, tty=order.tty, privileged=order.privileged, size=order.size,
            )  # fmt: skip
            if order.tty:
                await call.send({"exec": program.id}, second=True)
            feeding = asyncio.create_task(self._feed(program, call)) if order.stdin else None
            try:
                await self._pass_on(program, call, asyncio.Lock(), None)
                code = record["exit"] = await self._exit_code(program)
            except BaseException:
                # The caller does not wait for that; it is over when the service ends.
                self.later(self._end(program, targets[0].id))
                raise
            finally:
                program.close()
                if feeding:
                    feeding.cancel()
        return ended(call, code)

    async def stop(self) -> None:
        """Wait until all that is being ended has ended. The workers have cancelled every call before."""
        await asyncio.gather(*self._endings, return_exceptions=True)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what is left to do when a caller has gone; the service waits for it before it ends."""
        task = asyncio.create_task(work)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end(self, program: Exec, container: str) -> None:
        """End a program that nobody waits for."""
        with suppress(EngineError, RuntimeError):
            if self._desk.engine.is_local and (
                pid := await self._desk.inputs.run(self._desk.engine.exec_pid, program.id)
            ):
                self._desk.counters["programs_ended"] += await self._desk.inputs.run(end_program, pid, container)

    async def resize(self, call: Request) -> None:
        """`containers.resize`: the caller's terminal has another size."""
        order = self._desk.order(Resize, call)
        await self._desk.do(self._desk.engine.resize, order.exec, *order.size)

    async def attached(self, container: str) -> Output:
        """Return what a container will write, before it is started. Raises CommandError."""
        return await self._open(self._desk.engine.attach, container)

    async def pass_on(self, output: Output, call: Request) -> None:
        """Send all that is written to the caller, to the end. Raises CommandError."""
        await self._pass_on(output, call, asyncio.Lock(), None)

    async def _open(self, opening: Callable[..., S], *args: Any, **options: Any) -> S:
        try:
            return await self._desk.calls.open(opening, *args, **options)
        except EngineError as error:
            raise CommandError(str(error)) from None

    async def _pass_on(self, output: Output, call: Request, turn: asyncio.Lock, lines: Lines | None) -> None:
        pump: Pump[Piece] = Pump(output, AHEAD_BYTES, lambda piece: len(piece[1]))
        try:
            while pieces := await pump.take():
                for second, data in joined(pieces):
                    async with turn:
                        await call.send(lines.take(second, data) if lines else data, second=second)
            for second in (False, True) if lines else ():
                async with turn:
                    await call.send(lines.rest(second) if lines else b"", second=second)
        except EngineError as error:
            raise CommandError(str(error)) from None
        finally:
            pump.close()

    async def _feed(self, program: Exec, call: Request) -> None:
        """Pass the caller's input on until it ends or the program reads no more."""
        with suppress(RuntimeError):  # the service stops
            async for data in call.input:
                if not await self._desk.inputs.run(program.write, data):
                    # What is left stays with the caller: it costs nothing there, and ends with the call.
                    return
            await self._desk.inputs.run(program.close_input)

    async def _exit_code(self, program: Exec) -> int:
        try:
            return await self._desk.inputs.run(program.exit_code)
        except EngineError as error:
            raise CommandError(str(error)) from None


def ended(call: Request, code: int | None) -> Any:
    """Return the last words of a call that ran a program to its end, or end it as failed with them."""
    if code == 0:
        return {"exit": 0}
    call.end(Outcome.FAILED, *to_body({"exit": code}))
    return None


async def _together(all_of: Iterable[Any]) -> None:
    """Do all at the same time; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in all_of]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _options(order: Logs) -> dict[str, Any]:
    return {
        "follow": order.follow, "tail": order.tail, "since": order.since, "until": order.until,
        "timestamps": order.timestamps,
    }  # fmt: skip
