"""Job: one call on many nodes as a command line follows it, with Ctrl-C, the line that tells whom it waits for, and
the account at its end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import TYPE_CHECKING

import click

from tsbus.cli.edge import Code
from tsbus.cli.report import Ending, account, exit_code, summary
from tsbus.cli.stdin import stdin_chunks
from tsbus.cli.terminal import Progress, duration
from tsbus.core.target import fold
from tsbus.errors import BusError

if TYPE_CHECKING:
    from tsbus import Call, Reply
    from tsbus.client import Client

GRACE_S = 2.0
"""How long the nodes may take to confirm a cancel before the account is printed without them."""
NO_LIMIT_S = 86_400.0 * 365
"""Patience with what ends by itself or by Ctrl-C."""


async def follow(call: "Call", take: "Callable[[Reply], None]") -> bool:
    """Hand every reply to `take`. Ctrl-C cancels the call, and what still comes is taken. Returns False after that."""
    try:
        await _replies(call, take)
    except asyncio.CancelledError:
        call.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_replies(call, take), GRACE_S)
        return False
    return True


def conclude(endings: Mapping[str, Ending], seconds: float, *, as_json: bool, quiet: bool = False) -> Code:
    """Print how it ended on every node, as an object or in words; returns the exit code."""
    if as_json:
        click.echo(json.dumps(summary(endings, seconds)))
    elif not quiet:
        for line in account(endings, seconds):
            click.echo(line, err=True)
    return exit_code([ending.outcome for ending in endings.values()])


async def nodes_of(client: "Client", target: str) -> frozenset[str]:
    """Return the nodes of a target: what the router would call. Raises UnknownTarget."""
    async with client.request(target, "router.ping") as call:
        return await call.nodes()


async def _replies(call: "Call", take: "Callable[[Reply], None]") -> None:
    async for reply in call:
        take(reply)


async def send_stdin(call: "Call") -> None:
    """Send our standard input to every node of the call, until it ends."""
    with contextlib.suppress(BusError):  # the account tells what happened to the call
        async for chunk in stdin_chunks(32 << 10):
            await call.send_input(chunk)
        await call.end_input()


@contextlib.asynccontextmanager
async def waiting(
    progress: Progress, names: Callable[[], Collection[str]], total: int | None = None
) -> AsyncIterator[None]:
    """Tell on one line, once a second, for which `names` of `total` the code inside waits."""

    def words() -> str:
        left = names()
        of = f"{len(left)} of {total}" if total else f"{len(left)}"
        return f"waiting for {of}: {fold(left)}" if left else ""

    async with telling(progress, words):
        yield


@contextlib.asynccontextmanager
async def telling(progress: Progress, words: Callable[[], str]) -> AsyncIterator[None]:
    """Tell on one line, once a second, what the code inside is at, while there are `words` for it."""

    async def show() -> None:
        while True:
            if said := words():
                progress.show(f"{duration(progress.elapsed_s)}: {said}")
            await asyncio.sleep(1)

    helper = asyncio.create_task(show())
    try:
        yield
    finally:
        helper.cancel()
        progress.clear()
