"""Ping: `treescale ping`, the round trip to nodes through the bus, answered by their routers."""

import asyncio
import json
import time

import click

from tsbus.cli.completion import complete_target
from tsbus.cli.edge import bus_option, connect, json_option, run, timeout_option
from tsbus.cli.job import conclude
from tsbus.cli.report import Ending, ending_of, label
from tsbus.cli.terminal import millis, safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold

INTERVAL_S = 1.0
AGAIN_S = 0.3
"""After which those are asked again that are waited for."""


@click.command()
@click.argument("target", default="*", shell_complete=complete_target)
@click.option("-c", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="Rounds, one a second.")
@timeout_option(5.0)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="S",
    help="Ask those again that do not answer, until all have or S seconds are over.",
)
@json_option
@bus_option
def ping(target: str, count: int, timeout_s: float, wait_s: float, as_json: bool, bus: str | None) -> int:
    """Measure the round trip to nodes, and tell who does not answer and why.

    \b
    Examples:
      treescale ping
      treescale ping 'node[1-9]' -c 5
      treescale ping --wait 30          # until the whole tree answers
    """
    return run(_ping(bus, target, count, timeout_s, wait_s, as_json))


async def _ping(bus: str | None, target: str, count: int, timeout_s: float, wait_s: float, as_json: bool) -> int:
    endings: dict[str, Ending] = {}
    times_ms: list[float] = []
    async with connect(bus, "treescale-ping") as client:
        turn, started = 0, time.monotonic()
        while turn < count or (_silent(endings) and time.monotonic() < started + wait_s):
            if turn:
                await asyncio.sleep(INTERVAL_S if turn < count else AGAIN_S)
            if turn >= count:
                target = fold(_silent(endings))
            sent = time.monotonic()
            async with client.request(target, "router.ping", timeout_s=timeout_s) as call:
                async for reply in call:
                    rtt_ms = (time.monotonic() - sent) * 1000
                    ending = ending_of(reply)
                    _tell(reply.node, turn, ending, rtt_ms, as_json)
                    if ending.outcome is Outcome.OK:
                        times_ms.append(rtt_ms)
                    # A node that failed once has failed, however the other rounds end, unless it is waited for.
                    if wait_s or reply.node not in endings or endings[reply.node].outcome is Outcome.OK:
                        endings[reply.node] = ending
            turn += 1
    # Of one node all has been said.
    code = conclude(endings, time.monotonic() - started, as_json=as_json, quiet=len(endings) == 1)
    if times_ms and not as_json:
        mean = sum(times_ms) / len(times_ms)
        click.echo(f"round trip {millis(min(times_ms))} / {millis(mean)} / {millis(max(times_ms))} (min/mean/max)",
                   err=True)  # fmt: skip
    return code


def _silent(endings: dict[str, Ending]) -> list[str]:
    """Return those that did not answer when they were asked last."""
    return [node for node, ending in endings.items() if ending.outcome is not Outcome.OK]


def _tell(node: str, turn: int, ending: Ending, rtt_ms: float, as_json: bool) -> None:
    ok = ending.outcome is Outcome.OK
    if as_json:
        fact = {"rtt_ms": round(rtt_ms, 3)} if ok else {"reason": ending.reason}
        click.echo(json.dumps({"node": node, "round": turn, "outcome": ending.outcome.name.lower()} | fact))
    else:
        click.echo(f"{node}: {millis(rtt_ms) if ok else f'{label(ending.outcome)}: {safe(ending.reason)}'}")
