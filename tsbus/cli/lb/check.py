"""Check: `treescale lb check` and `lb sync`, what is wrong with balancers, and how it is mended."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from tsbus.cli.containers.ls import problems
from tsbus.cli.containers.options import any_target_argument
from tsbus.cli.containers.words import count, natural
from tsbus.cli.edge import Code, bus_option, connect, json_option, run
from tsbus.cli.lb.asking import NOT_RUNNING, Answers, ask
from tsbus.cli.lb.options import terminal_width
from tsbus.cli.lb.words import trouble
from tsbus.cli.report import account, exit_code, summary
from tsbus.cli.terminal import Progress, safe
from tsbus.lb_records import ProblemRecord

if TYPE_CHECKING:
    from tsbus.client import Client

SYNC_S = 60.0


class _Problems(msgspec.Struct, frozen=True):
    problems: tuple[ProblemRecord, ...] = ()


class _Steps(msgspec.Struct, frozen=True):
    steps: tuple[str, ...] = ()


Found = tuple[str, ProblemRecord]


async def problems_of(client: "Client", target: str) -> Answers[ProblemRecord]:
    """Ask for the problems of balancers and hosts; that a balancer does not run is one of them."""
    told = await ask(client, target, "check", _Problems)
    answers = Answers(
        {node: [one for piece in pieces for one in piece.problems] for node, pieces in told.said.items()}, told.endings
    )
    for node, ending in told.endings.items():
        if ending.reason == NOT_RUNNING:
            text, _, mend = NOT_RUNNING.partition(": ")
            answers.said[node] = [ProblemRecord(text=text, mend=f"on {node}: {mend}")]
    return answers


def lines_of(found: Sequence[Found], width: int | None) -> Iterator[str]:
    """Return problems, then notes, as lines, each with what mends it."""
    for wanted, word in ((False, "problem"), (True, "note")):
        some = [each for each in found if each[1].note is wanted]
        if some:
            yield f"{count(len(some), word)}:"
        for node, one in some:
            where = f"{node}/{safe(one.balancer)}" if one.balancer else node
            yield from trouble(where, one.text, one.mend, 2, width)


@click.command()
@any_target_argument
@json_option
@bus_option
def check(target: str, as_json: bool, bus: str | None) -> int:
    """Tell what is wrong with balancers and their hosts, each with what mends it. Nothing is changed.

    Exit code 0 when nothing is wrong, 1 when something is. A balancer without any server is a note: perhaps nobody
    runs its image now.

    \b
    Examples:
      treescale lb check
      treescale lb check node1 --json
    """
    return run(_check(bus, target, as_json))


async def _check(bus: str | None, target: str, as_json: bool) -> int:
    progress = Progress()
    async with connect(bus, "treescale-lb") as client:
        answers = await problems_of(client, target)
    found = [(node, one) for node in sorted(answers.said, key=natural) for one in answers.said[node]]
    if as_json:
        for node, one in found:
            click.echo(json.dumps({"node": node} | msgspec.to_builtins(one)))
        click.echo(json.dumps(summary(answers.endings, progress.elapsed_s)))
    else:
        _print(found, answers)
    if any(not one.note for _, one in found):
        return Code.FAILED
    return exit_code([ending.outcome for ending in answers.endings.values()])


def _print(found: Sequence[Found], answers: Answers[ProblemRecord]) -> None:
    for line in lines_of(found, terminal_width()):
        click.echo(line)
    asked = count(len(answers.said), "node")
    if not any(not one.note for _, one in found) and answers.said:
        click.echo(f"{asked}: nothing is wrong")
    for line in problems({node: ending for node, ending in answers.endings.items() if node not in answers.said}):
        click.echo(line, err=True)


@click.command()
@any_target_argument
@json_option
@bus_option
def sync(target: str, as_json: bool, bus: str | None) -> int:
    """Compare the kernel's table and the host with what should be, now, and mend it. Prints what was done.

    Balancers do this by themselves on every change and every reconcile_s (30); this is for after a repair by hand.

    \b
    Examples:
      treescale lb sync
      treescale lb sync node1
    """
    return run(_sync(bus, target, as_json))


async def _sync(bus: str | None, target: str, as_json: bool) -> int:
    progress = Progress()
    async with connect(bus, "treescale-lb") as client:
        answers = await ask(client, target, "sync", _Steps, timeout_s=SYNC_S)
    if as_json:
        for node, pieces in answers.said.items():
            click.echo(json.dumps({"node": node, "steps": [step for piece in pieces for step in piece.steps]}))
        click.echo(json.dumps(summary(answers.endings, progress.elapsed_s)))
    else:
        for line in _steps(answers.said):
            click.echo(line)
        for line in account(answers.endings, progress.elapsed_s):
            click.echo(line, err=True)
    return exit_code([ending.outcome for ending in answers.endings.values()])


def _steps(said: Mapping[str, Sequence[_Steps]]) -> Iterator[str]:
    for node in sorted(said, key=natural):
        steps = [step for piece in said[node] for step in piece.steps]
        yield from (f"{node}: {safe(step)}" for step in steps or ["nothing to do"])
