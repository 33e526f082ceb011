"""Building: `treescale build`, bare, `plan` and `apply`: look at all servers, show what would be done, ask, do it.

`look` and `carry_out` are what the other commands that change servers are made of as well.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from tsbus.build.course import Outcome
from tsbus.build.reports import Report
from tsbus.cli.build.errand import Errand
from tsbus.cli.build.follow import Interrupted, follow
from tsbus.cli.build.options import takes_errand
from tsbus.cli.build.planlines import plan_lines, plan_object
from tsbus.cli.build.summary import named, summary_lines, summary_object
from tsbus.cli.containers.options import confirm, yes_option
from tsbus.cli.containers.words import count
from tsbus.cli.edge import Code, Fault

if TYPE_CHECKING:
    from tsbus.build.campaign import Campaign
    from tsbus.build.store import Transcripts


class Run(Protocol):
    """What a command carries out: a campaign, or what is made of one."""

    @property
    def outcome(self) -> Outcome:
        """How it has ended."""

    @property
    def transcripts(self) -> "Transcripts":
        """Where all that the servers say is written down."""


def build_servers(errand: Errand, *, yes: bool, shown: bool = True, dry_run: bool = False) -> int:
    """Look, show the plan, ask, and build; the exit code."""
    if not errand.names:
        click.echo("nothing to do: no server has failed last time", err=True)
        return Code.OK
    campaign = errand.campaign("build")
    if code := look(campaign, errand):
        return code
    plans = campaign.plans.values()
    busy = [plan for plan in plans if plan.can_go and plan.steps]
    if shown or dry_run:
        _show(campaign, errand)
    if dry_run:
        return campaign.outcome.exit_code
    if busy:
        ask(f"Apply to {count(len(busy), 'server')}?", yes=yes)
    title = f"Building {count(len(busy), 'server')}" if busy else "Asking the tree"
    return carry_out(campaign, campaign.apply(), title, errand)


def ask(question: str, *, yes: bool) -> None:
    """Ask, unless `yes`. Raises Fault for a no, and where nobody can be asked."""
    try:
        confirm(question, yes=yes, needed=True)
    except click.Abort:
        raise Fault("nothing was changed", Code.INTERRUPTED) from None


def look(campaign: "Campaign", errand: Errand) -> int:
    """Look at the servers of a run, which changes nothing; returns an exit code when that is the end of it."""
    try:
        follow(campaign.look(), f"Looking at {count(len(campaign.names), 'server')}", as_json=errand.as_json)
    except Interrupted:
        click.echo("interrupted; nothing was changed", err=True)
        return Code.INTERRUPTED
    return Code.OK


def carry_out(run: Run, reports: Iterator[Report], title: str, errand: Errand) -> int:
    """Follow a run to its end and tell how it ended; the exit code."""
    try:
        progress = follow(reports, title, as_json=errand.as_json)
    except Interrupted as stop:
        done = stop.progress.finished()
        click.echo(
            f"interrupted; finished: {named(done) if done else 'no server'}. Run it again, and it goes on from what it "
            f"finds on the servers. Transcripts: {_shown(run.transcripts.folder)}",
            err=True,
        )
        return Code.INTERRUPTED
    end = run.outcome, progress.seconds, _shown(run.transcripts.folder)
    if errand.as_json:
        click.echo(json.dumps(summary_object(*end)))
    else:
        for line in summary_lines(*end, width_of(sys.stderr)):
            click.echo(line, err=True)
    return run.outcome.exit_code


def width_of(stream: object) -> int | None:
    """Return the width of the terminal that is behind `stream`, None where there is none."""
    is_terminal = getattr(stream, "isatty", lambda: False)()
    return shutil.get_terminal_size().columns if is_terminal else None


def _show(campaign: "Campaign", errand: Errand) -> None:
    plans = campaign.plans.values()
    if errand.as_json:
        for plan in plans:
            click.echo(json.dumps(plan_object(plan)))
        return
    for line in plan_lines(plans, width_of(sys.stdout)):
        click.echo(line)


def _shown(path: Path) -> str:
    """Return a path as short as it may be written from here."""
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}/"


@click.command()
@takes_errand(choice=True, making=True)
def plan(errand: Errand) -> int:
    """Look at all servers and show what a build would do, and what keeps it from that. Nothing is changed.

    Exit code 0 when all can be built, or are already; 3 when some cannot, 4 when none can be reached.

    \b
    Examples:
      treescale build plan
      treescale build plan --limit 'web[1-20]'
      treescale build plan --json
    """
    return build_servers(errand, yes=False, dry_run=True)


@click.command()
@takes_errand(choice=True, making=True)
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@yes_option
def apply(errand: Errand, dry_run: bool, yes: bool) -> int:
    """Make servers what the two files say, and see that the tree answers. Doing it again changes nothing.

    It shows the plan and asks first, unless --yes.

    \b
    Examples:
      treescale build apply --yes
      treescale build apply --failed
      treescale build apply --tag web --max-fail 10% --yes
    """
    return build_servers(errand, yes=yes, shown=not yes, dry_run=dry_run)
