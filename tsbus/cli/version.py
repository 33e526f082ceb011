"""Version: `treescale version`."""

import json
import platform

import click

from tsbus import __version__
from tsbus.cli.edge import json_option
from tsbus.core.message import PROTOCOL


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version.

    \b
    Example:
      treescale version --json
    """
    facts = {"release": __version__, "protocol": PROTOCOL, "python": platform.python_version()}
    click.echo(
        json.dumps(facts) if as_json else f"treescale {__version__}, protocol {PROTOCOL}, Python {facts['python']}"
    )
