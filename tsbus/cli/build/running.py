"""Running: what the build's commands that change servers have in common: look, show the plan, ask, do it, tell."""

import json
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from tsbus.build.reports import Report
from tsbus.cli.build.errand import Errand
from tsbus.cli.build.follow import Interrupted, follow
from tsbus.cli.build.planlines import plan_lines, plan_object
from tsbus.cli.build.summary import named, summary_lines, summary_object
from tsbus.cli.containers.options import confirm
from tsbus.cli.containers.words import count
from tsbus.cli.edge import Code, Fault

if TYPE_CHECKING:
    from tsbus.build.campaign import Campaign


def go_through(
    campaign: "Campaign",
    doing: str,
    errand: Errand,
    *,
    yes: bool,
    shown: bool = True,
    dry_run: bool = False,
    question: str = "",
) -> int:
    """Look, show the plan, ask, and do it; the exit code.

    `doing` is a word as Building. `question` is asked whatever the plans are; otherwise they make one.
    """
    with campaign:
        if not look(campaign, errand):
            return Code.INTERRUPTED
        plans = campaign.plans.values()
        busy = sum(plan.can_go and bool(plan.steps) for plan in plans)
        shown = (shown or dry_run) and bool(plans)
        if shown:
            tell(errand, map(plan_object, plans), plan_lines(plans, width_of(sys.stdout), campaign.done))
        if dry_run:
            return campaign.outcome.exit_code
        if question or busy:
            ask(question or f"Apply to {count(busy, 'server')}?", yes=yes)
        none = "Nothing to change on servers" if campaign.course.standing else "Nothing can be done on servers"
        meant = len(campaign.names) if question else busy
        title = f"{doing} {count(meant, 'server')}" if meant else none
        told = [plan.name for plan in plans if shown and not plan.can_go]
        return carry_out(campaign, campaign.apply(), title, errand, told)


def look(campaign: "Campaign", errand: Errand) -> bool:
    """Look at the servers of a run, which changes nothing; False when somebody stopped that."""
    try:
        follow(campaign.look(), f"Looking at {count(len(campaign.names), 'server')}", as_json=errand.as_json)
    except Interrupted:
        click.echo("interrupted; nothing was changed", err=True)
        return False
    return True


def ask(question: str, *, yes: bool) -> None:
    """Ask, unless `yes`. Raises Fault for a no, and where nobody can be asked."""
    try:
        confirm(question, yes=yes, needed=True)
    except click.Abort:
        raise Fault("nothing was changed", Code.INTERRUPTED) from None


def carry_out(
    campaign: "Campaign", reports: Iterator[Report], title: str, errand: Errand, told: Collection[str]
) -> int:
    """Follow a run to its end and tell how it ended; the exit code. `told`: whose trouble has been told already."""
    transcripts = _near(campaign.transcripts.folder)
    begun = time.monotonic()
    try:
        follow(reports, title, as_json=errand.as_json)
    except Interrupted as stop:
        done = stop.progress.finished()
        click.echo(
            f"interrupted; finished: {named(done) if done else 'no server'}. Run it again, and it goes on from what it "
            f"finds on the servers. Transcripts: {transcripts}",
            err=True,
        )
        return Code.INTERRUPTED
    outcome, seconds = campaign.outcome, time.monotonic() - begun
    if errand.as_json:
        click.echo(json.dumps(summary_object(outcome, seconds, transcripts)))
    else:
        for line in summary_lines(outcome, seconds, transcripts, width_of(sys.stderr), told):
            click.echo(line, err=True)
    return outcome.exit_code


def tell(errand: Errand, objects: Iterable[Mapping[str, Any]], lines: Iterable[str]) -> None:
    """Print what was asked for: objects for scripts, lines for people."""
    for line in map(json.dumps, objects) if errand.as_json else lines:
        click.echo(line)


def width_of(stream: TextIO) -> int | None:
    """Return the width of the terminal that is behind a stream, None where there is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def _near(folder: Path) -> str:
    """Return a folder as short as it may be written from here."""
    here = Path.cwd()
    return f"{folder.relative_to(here) if folder.is_relative_to(here) else folder}/"
