"""Keys: `treescale keys`, the CURVE keys of nodes and operators. A secret key is never printed."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import click

from tsbus.cli.edge import Fault, json_option
from tsbus.transport import new_keypair, public_of, read_secret

_file = click.argument("path", type=click.Path(dir_okay=False, path_type=Path))


@click.group(no_args_is_help=True)
def keys() -> None:
    """Make and show CURVE keys.

    A key file holds the secret key alone, one line of 40 characters, readable by its owner only. The public key is
    derived from it; it goes into `public_key` of the node or operator in treescale.toml.

    \b
    Examples:
      treescale keys new alice.key
      treescale keys fingerprint alice.key
    """


@keys.command()
@_file
@json_option
def new(path: Path, as_json: bool) -> None:
    """Make a key pair: the secret into PATH, the public key on stdout.

    An existing file is never overwritten.

    \b
    Example:
      treescale keys new /etc/treescale/node.key
    """
    public, secret = new_keypair()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Fault(f"{path} exists; remove it first if its key is to be given up") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
    _show(path, public, as_json)


@keys.command()
@_file
@json_option
def public(path: Path, as_json: bool) -> None:
    """Print the public key of the secret key in PATH.

    \b
    Example:
      treescale keys public /etc/treescale/node.key
    """
    _show(path, public_of(read_secret(path)), as_json)


@keys.command()
@_file
@json_option
def fingerprint(path: Path, as_json: bool) -> None:
    """Print a short fingerprint of the public key, to compare by eye or over the phone.

    \b
    Example:
      treescale keys fingerprint /etc/treescale/node.key
    """
    _show(path, public_of(read_secret(path)), as_json, fingerprint_of)


def fingerprint_of(public_key: str) -> str:
    """Return the first 80 bits of the key's SHA-256, in groups of four hex digits."""
    digest = hashlib.sha256(public_key.encode()).hexdigest()[:20]
    return "-".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def _show(path: Path, key: str, as_json: bool, line: Callable[[str], str] = str) -> None:
    facts = {"path": str(path), "public_key": key, "fingerprint": fingerprint_of(key)}
    click.echo(json.dumps(facts) if as_json else line(key))
