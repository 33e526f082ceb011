"""Later: the commands for a tree that stands: status, upgrade, rollback, add, remove, rotate-keys, uninstall."""

import sys

import click

from tsbus.cli.build.errand import Errand, chosen_of
from tsbus.cli.build.options import any_nodes_argument, nodes_argument, takes_errand
from tsbus.cli.build.running import go_through, look, tell, width_of
from tsbus.cli.build.standing import standing_code, standing_lines, standing_objects
from tsbus.cli.containers.options import yes_option
from tsbus.cli.edge import Code, Fault
from tsbus.core.target import fold


@click.command()
@takes_errand(choice=True)
def status(errand: Errand) -> int:
    """Tell what is on each server, and what of it is not as the two files say. Nothing is changed.

    The tree is asked, and over SSH whoever does not answer there. Exit code 0 when all is as it should be, 3 when
    something is not, 4 when nobody could be asked.

    \b
    Examples:
      treescale build status
      treescale build status --tag web --json
    """
    from tsbus.build.survey import Survey

    with errand.campaign(Survey, "status") as survey:
        if not look(survey, errand):
            return Code.INTERRUPTED
        found = [survey.standings[name] for name in survey.names if name in survey.standings], survey.outcome.failed
    tell(errand, standing_objects(*found), standing_lines(*found, width_of(sys.stdout)))
    return standing_code(*found)


@click.command()
@takes_errand(choice=True, making=True)
@yes_option
def upgrade(errand: Errand, yes: bool) -> int:
    """Bring this console's release to nodes, in waves: one leaf, a tenth, then the others from below, the root last.

    It is installed everywhere before anything that runs is touched. A wave that does not answer goes back to the
    release that it had, and ends the upgrade.

    \b
    Examples:
      treescale build upgrade
      treescale build upgrade --tag web --yes
    """
    from tsbus.build.upgrade import Upgrade

    return go_through(errand.campaign(Upgrade, "upgrade"), "Upgrading", errand, yes=yes)


@click.command()
@takes_errand(choice=True)
@yes_option
def rollback(errand: Errand, yes: bool) -> int:
    """Let nodes go on with the release that they had before, in the waves of an upgrade.

    \b
    Examples:
      treescale build rollback
      treescale build rollback --limit web7 --yes
    """
    from tsbus.build.upgrade import Rollback

    return go_through(errand.campaign(Rollback, "rollback"), "Rolling back", errand, yes=yes)


@click.command()
@nodes_argument
@takes_errand(making=True)
@yes_option
def add(errand: Errand, nodes: tuple[str, ...], yes: bool) -> int:
    """Make nodes of servers that are new in the tree's file, and touch no other link.

    Over SSH it goes to them and their parents only; all others get the new tree over the bus.

    \b
    Examples:
      treescale build add web41
      treescale build add 'web[41-44]' --yes
    """
    from tsbus.build.membership import Add, with_parents

    names = with_parents(errand.tree, chosen_of(errand.tree, ",".join(nodes), ()))
    return go_through(errand.campaign(Add, "add", names), "Adding", errand, yes=yes)


@click.command()
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@takes_errand()
@yes_option
def remove(errand: Errand, nodes: tuple[str, ...], yes: bool) -> int:
    """Take servers out of the tree that its file does not have any more, but console.toml still has.

    Balancers send nobody there any more, the others get the tree without them, and then they are cleaned. One that
    cannot be reached is cut off all the same.

    \b
    Examples:
      treescale build remove web41
    """
    from tsbus.build.membership import Remove

    if still := [name for name in nodes if name in errand.tree.servers]:
        mend = f"take it out of {errand.console.tree_path} first"
        raise Fault(f"{fold(still)} is still in the tree: {mend}", Code.USAGE)
    if unknown := [name for name in nodes if name not in errand.console.ssh]:
        mend = f"leave its table in {errand.console_file} until it is removed"
        raise Fault(f"nobody knows how to log in to {fold(unknown)}: {mend}", Code.USAGE)
    question = f"Remove {fold(nodes)} from the tree?"
    return go_through(errand.campaign(Remove, "remove", nodes), "Removing", errand, yes=yes, question=question)


@click.command("rotate-keys")
@any_nodes_argument
@takes_errand()
@click.option("--revoke", is_flag=True, help="Cut the nodes off at once: nobody takes their keys any more.")
@yes_option
def rotate_keys(errand: Errand, nodes: tuple[str, ...], revoke: bool, yes: bool) -> int:
    """Give nodes new key pairs while the tree runs, all of them unless some are named. Each must answer over the bus.

    Links to a node are made anew when it goes on with its new key. Somebody stopped it? Run it again. A node that was
    revoked comes back with a new key: name it without --revoke.

    \b
    Examples:
      treescale build rotate-keys
      treescale build rotate-keys web7
      treescale build rotate-keys --revoke web7
    """
    from tsbus.build.rotation import Revoke, Rotate

    names = chosen_of(errand.tree, ",".join(nodes), ())
    if not revoke:
        return go_through(errand.campaign(Rotate, "rotate-keys", names), "Exchanging the keys of", errand, yes=yes)
    root = errand.tree.topology().root
    if not nodes:
        raise Fault("name the nodes that are to be cut off", Code.USAGE)
    if root in names:
        raise Fault(f"{root} is the root, and nobody is above it to cut it off: give it a new key", Code.USAGE)
    run = errand.campaign(Revoke, "rotate-keys --revoke", names)
    return go_through(run, "Cutting off", errand, yes=yes, question=f"Cut {fold(names)} off from the tree?")


@click.command()
@any_nodes_argument
@takes_errand()
@click.option("--with-docker", is_flag=True, help="Also remove Docker, where a build has installed it.")
@yes_option
def uninstall(errand: Errand, nodes: tuple[str, ...], with_docker: bool, yes: bool) -> int:
    """Leave servers as they were before they were nodes, the leaves first. Packages stay, and so does Docker.

    \b
    Examples:
      treescale build uninstall web41
      treescale build uninstall --with-docker
    """
    from tsbus.build.uninstall import Uninstall

    run = errand.campaign(Uninstall, "uninstall", chosen_of(errand.tree, ",".join(nodes), ()))
    run.with_docker = with_docker
    return go_through(run, "Cleaning", errand, yes=yes)
