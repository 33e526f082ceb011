"""Building: `treescale build`, bare, `plan`, `apply` and `check`."""

import sys

import click

from tsbus.cli.build.errand import Errand
from tsbus.cli.build.options import takes_errand
from tsbus.cli.build.planlines import check_lines, plan_object
from tsbus.cli.build.running import go_through, look, tell, width_of
from tsbus.cli.containers.options import yes_option
from tsbus.cli.edge import Code


def build_servers(errand: Errand, *, yes: bool, shown: bool = True, dry_run: bool = False) -> int:
    """Make servers what the two files say; the exit code."""
    from tsbus.build.campaign import Campaign

    return go_through(errand.campaign(Campaign, "build"), "Building", errand, yes=yes, shown=shown, dry_run=dry_run)


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


@click.command()
@takes_errand(choice=True)
def check(errand: Errand) -> int:
    """Log in everywhere and tell what would keep a build from going well. Nothing is changed, and nothing planned.

    Exit code 0 when nothing would, 3 when something would on some servers, 4 when none can be reached.

    \b
    Examples:
      treescale build check
      treescale build check --limit node7
    """
    from tsbus.build.campaign import Campaign

    with errand.campaign(Campaign, "check") as campaign:
        if not look(campaign, errand):
            return Code.INTERRUPTED
        plans = campaign.plans.values()
        tell(errand, map(plan_object, plans), check_lines(plans, width_of(sys.stdout)))
        return campaign.outcome.exit_code
