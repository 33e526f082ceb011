"""Locking: `treescale build unlock`, who builds now, and the lock of somebody who is gone."""

import json
from dataclasses import asdict

import click

from tsbus.cli.build.errand import Errand
from tsbus.cli.build.options import takes_errand
from tsbus.cli.edge import Code, Fault
from tsbus.cli.terminal import duration, safe


@click.command()
@takes_errand()
@click.option("--force", is_flag=True, help="Also take it from somebody who is there: two would build at once.")
def unlock(errand: Errand, force: bool) -> int:
    """Show who builds, and take away the lock of somebody who is gone.

    The lock is a folder on the root's server. Somebody of whom it has heard nothing for two minutes is gone.
    Exit code 6 when somebody is still there.

    \b
    Examples:
      treescale build unlock
      treescale build unlock --force
    """
    from tsbus.build.campaign import Campaign
    from tsbus.build.lock import STALE_S, look, remove
    from tsbus.build.ssh import ServerTrouble

    with errand.campaign(Campaign, "unlock") as campaign:
        try:
            holder = campaign.at_root(look)
            left = campaign.at_root(lambda session: remove(session, force=force)) if holder else None
        except ServerTrouble as error:
            raise Fault(str(error), Code.UNREACHABLE) from error
    if errand.as_json:
        click.echo(json.dumps({"holder": asdict(holder) if holder else None, "removed": bool(holder and not left)}))
    elif holder is None:
        click.echo("nobody is building", err=True)
    else:
        heard = f"{safe(str(holder))}; last heard of {duration(holder.silent_s)} ago"
        click.echo(f"is building: {heard}" if left else f"taken away: the lock of {heard}", err=True)
        if left:
            click.echo(f"it is free {duration(STALE_S)} after the last word, or with --force", err=True)
    return Code.BUSY if left else Code.OK
