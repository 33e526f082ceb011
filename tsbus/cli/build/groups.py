"""Groups: which commands `treescale build` has and where they are, and what it does without one."""

from collections.abc import Sequence

import click
from click.core import ParameterSource

from tsbus.cli.build.building import build_servers
from tsbus.cli.build.errand import Errand
from tsbus.cli.build.options import takes_errand
from tsbus.cli.containers.options import yes_option
from tsbus.cli.edge import EXIT_CODES, HELP, Code
from tsbus.cli.lazy import LazyGroup

_HERE = "tsbus.cli.build"
BUILD = {
    "plan": (f"{_HERE}.building:plan", "Show what would be done, and what keeps servers from being built."),
    "apply": (f"{_HERE}.building:apply", "Do it, and see that the tree answers."),
    "check": (f"{_HERE}.building:check", "Log in everywhere, and tell what would keep a build from going well."),
    "status": (f"{_HERE}.later:status", "Tell what is on each server, and what is not as the files say."),
    "add": (f"{_HERE}.later:add", "Make nodes of servers that are new in the tree's file."),
    "remove": (f"{_HERE}.later:remove", "Take servers out that the tree's file does not have any more."),
    "upgrade": (f"{_HERE}.later:upgrade", "Bring this console's release to nodes, in waves."),
    "rollback": (f"{_HERE}.later:rollback", "Let nodes go on with the release that they had before."),
    "rotate-keys": (f"{_HERE}.later:rotate_keys", "Give nodes new keys while the tree runs, or cut them off."),
    "uninstall": (f"{_HERE}.later:uninstall", "Leave servers as they were before they were nodes."),
    "unlock": (f"{_HERE}.locking:unlock", "Show who builds, and take away the lock of somebody who is gone."),
}


@click.group(cls=LazyGroup, table=BUILD, context_settings=HELP, epilog=EXIT_CODES, invoke_without_command=True)
@takes_errand(choice=True, making=True)
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@yes_option
@click.pass_context
def build(ctx: click.Context, errand: Errand, dry_run: bool, yes: bool) -> int:
    """Make servers into nodes, over SSH: from console.toml (how to log in) and treescale.toml (what the tree is).

    Without a command: look at all servers, show what is to be done, ask, do it, and see that the tree answers. What is
    as it should be is left alone, so doing it again changes nothing.

    \b
    Examples:
      treescale build                       plan, question, and all the rest
      treescale build --limit web1/ --yes   web1 and what is below, without a question
      treescale build plan
      treescale build --failed              go on with those that did not go well
    """
    if ctx.invoked_subcommand is None:
        return build_servers(errand, yes=yes, dry_run=dry_run)
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"options belong behind the command: {ctx.command_path} {ctx.invoked_subcommand} ...")
    return Code.OK


def main(args: Sequence[str] | None = None) -> None:
    """Run `ts-build` and exit."""
    build.main(args, prog_name="ts-build")
