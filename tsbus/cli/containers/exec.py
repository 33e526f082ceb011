"""Exec: `treescale container exec`: a program in containers, or a real terminal in one."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.completion import complete_container
from tsbus.cli.containers.acts import tell_silent
from tsbus.cli.containers.finding import Match, choose, find
from tsbus.cli.containers.options import awaited, each_option, target_argument
from tsbus.cli.containers.program import ProgramCommand
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option
from tsbus.cli.exec import Look, execute, read_ending, variables
from tsbus.cli.job import NO_LIMIT_S
from tsbus.cli.report import Ending, account, exit_code
from tsbus.core.accounting import Outcome
from tsbus.core.message import Content
from tsbus.core.target import fold
from tsbus.errors import BusError

if TYPE_CHECKING:
    from tsbus import Call, Reply
    from tsbus.client import Client

READ_BYTES = 32 << 10


@click.command(name="exec", cls=ProgramCommand)
@target_argument
@click.argument("name", shell_complete=complete_container)
@click.argument("argv", metavar="PROGRAM [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", "stdin", is_flag=True, help="Send our standard input to the program.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal; with -i it is ours.")
@click.option("-e", "--env", metavar="NAME=VALUE", multiple=True, callback=variables, help="Variable for the program.")
@click.option("-u", "--user", help="The user in the container that runs it.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory in the container.")
@click.option("--privileged", is_flag=True, help="Everything that root may, if the node allows it.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), metavar="S", default=NO_LIMIT_S,
              help="Seconds for the program; then it is left [default: no limit].")  # fmt: skip
@each_option
@json_option
@bus_option
@awaited
async def exec_(
    target: str,
    name: str,
    argv: tuple[str, ...],
    stdin: bool,
    tty: bool,
    env: dict[str, str],
    user: str | None,
    workdir: str | None,
    privileged: bool,
    timeout_s: float,
    each: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """Run a program in a container that runs, and end with its exit code; with --each in one on every node.

    \b
    Examples:
      treescale container exec node1 web nginx -t
      treescale container exec -it node1 web sh
      treescale container exec @web web --each -- nginx -s reload
      treescale container exec node1 db -i -- psql < dump.sql
    """
    body: dict[str, Any] = {"argv": list(argv)}
    options = {"env": env, "user": user, "cwd": workdir, "stdin": stdin, "tty": tty, "privileged": privileged}
    body |= {key: value for key, value in options.items() if value}
    if tty and as_json:
        raise click.UsageError("--tty and --json contradict each other.")
    if tty and stdin and not sys.stdin.isatty():
        raise Fault("standard input is no terminal: leave out --tty, or --interactive", Code.USAGE)
    async with connect(bus, "treescale-container-exec") as client:
        finding = await find(client, target, [name])
        matches = choose(finding, [name], target, single=not each)
        tell_silent(finding)
        body["container"] = matches[0].id if len(matches) == 1 else name
        if not tty:
            return await _plain(client, matches, body, timeout_s, as_json)
        if len(matches) > 1:
            raise Fault("a terminal can be in one container only: leave out --tty", Code.USAGE)
        return await _Terminal(client, matches[0].node).run(body, timeout_s)


async def _plain(
    client: "Client", matches: Sequence[Match], body: dict[str, Any], timeout_s: float, as_json: bool
) -> int:
    alone = len(matches) == 1
    look = Look(as_json, fold=None, live=alone, prefix=not alone, quiet=False, own_exit=alone)
    nodes = fold(match.node for match in matches)
    return await execute(client, nodes, "containers.exec", body, look, timeout_s=timeout_s)


class _Terminal:
    """Our terminal, in a container."""

    def __init__(self, client: "Client", node: str) -> None:
        self._client = client
        self._node = node
        self._exec = ""
        self._ending = Ending(Outcome.CANCELLED, "not confirmed")
        self._exit: int | None = None
        self._resizing: asyncio.Task[None] | None = None

    async def run(self, body: dict[str, Any], timeout_s: float) -> int:
        """Run the program to its end; returns its exit code."""
        interactive = bool(body.get("stdin"))
        body["size"] = _size()
        async with (
            self._client.request(self._node, "containers.exec", body, timeout_s=timeout_s, input=interactive) as call,
            self._signals(),
        ):
            with raw_terminal() if interactive else contextlib.nullcontext():
                typing = asyncio.create_task(_type(call)) if interactive else None
                try:
                    async for reply in call:
                        self._take(reply)
                except asyncio.CancelledError:
                    return Code.INTERRUPTED
                finally:
                    for helper in (typing, self._resizing):
                        if helper is not None:
                            helper.cancel()
        for line in account({self._node: self._ending}, 0.0) if self._exit is None else ():
            click.echo(line, err=True)
        return exit_code([self._ending.outcome]) if self._exit is None else self._exit

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        """Let what ends us from outside cancel the call, so that the terminal is given back, and a new size be told."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101  (we run in one)
        actions: dict[signal.Signals, Callable[[], object]] = {
            signal.SIGTERM: task.cancel,
            signal.SIGHUP: task.cancel,
            signal.SIGWINCH: self._resize,
        }
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
        try:
            yield
        finally:
            for number in actions:
                loop.remove_signal_handler(number)

    def _take(self, reply: "Reply") -> None:
        if reply.last:
            self._ending, facts = read_ending(reply)
            self._exit = facts.get("exit")
        elif reply.second and reply.content == Content.JSON:
            self._exec = reply.json()["exec"]
            self._resize()  # it may have changed before there was anything to tell
        else:
            sys.stdout.buffer.write(reply.body)
            sys.stdout.buffer.flush()

    def _resize(self) -> None:
        if self._exec and (self._resizing is None or self._resizing.done()):
            self._resizing = asyncio.create_task(self._tell_size())

    async def _tell_size(self) -> None:
        told = None
        while told != (size := _size()):  # also what changes while we tell
            told = size
            with contextlib.suppress(BusError):
                await self._client.call(self._node, "containers.resize", {"exec": self._exec, "size": size})


def _size() -> list[int]:
    columns, rows = shutil.get_terminal_size()
    return [rows, columns]


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Pass every key on as it is; on the way out the terminal is as it was."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def _type(call: "Call") -> None:
    """Send what is typed. Not by a thread: its read would outlive us and take a key that is the shell's."""
    loop = asyncio.get_running_loop()
    fd = sys.stdin.fileno()
    with contextlib.suppress(BusError):
        while True:
            typed: asyncio.Future[None] = loop.create_future()
            loop.add_reader(fd, typed.set_result, None)
            try:
                await typed
            finally:
                loop.remove_reader(fd)
            data = os.read(fd, READ_BYTES)
            if not data:
                await call.end_input()
                return
            await call.send_input(data)
