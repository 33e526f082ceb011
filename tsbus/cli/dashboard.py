"""Dashboard: `treescale dashboard`, which serves it, and who may sign in there.

tsbus.dashboard.main does the serving, tsbus.dashboard.users knows the users; neither needs the extra to be imported.
"""

import json
import os
import sys
import webbrowser
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run
from tsbus.cli.table import Column, table
from tsbus.config import load
from tsbus.dashboard.users import Role, Token, User, Users, UsersError, UsersFile
from tsbus.log import setup

if TYPE_CHECKING:
    from tsbus.dashboard.main import Wanted

DEFAULT_CONFIG = "/etc/treescale/treescale.toml"
_F = TypeVar("_F", bound=Callable[..., Any])


def _wanted(config: Path, users: Path | None) -> "Wanted":
    """Return what the configuration says of this node's dashboard; the defaults where there is no such file."""
    from tsbus.dashboard.main import Wanted

    if config.exists():
        wanted = Wanted.of(load(config), config.parent)
    else:
        wanted = Wanted(folder=Path(click.get_app_dir("treescale")))
    return replace(wanted, settings=replace(wanted.settings, users=str(users.absolute()))) if users else wanted


def _config_option(command: _F) -> _F:
    return click.option(
        "--config",
        metavar="FILE",
        default=lambda: os.environ.get("TREESCALE_CONFIG", DEFAULT_CONFIG),
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"Its [dashboard] says where to listen [default: $TREESCALE_CONFIG, else {DEFAULT_CONFIG}].",
    )(command)


def _users_option(command: _F) -> _F:
    text = "The users file [default: dashboard-users.json beside the configuration]."
    return click.option("--users", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help=text)(command)


@click.group(invoke_without_command=True)
@_config_option
@_users_option
@click.option("--host", metavar="ADDRESS", help="Where to listen [default: 127.0.0.1, or as configured].")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes one that is free [default: 8800].")
@click.option("--open", "browse", is_flag=True, help="Open it in a browser of this machine.")
@bus_option
@click.pass_context
def dashboard(
    ctx: click.Context,
    config: Path,
    users: Path | None,
    host: str | None,
    port: int | None,
    browse: bool,
    bus: str | None,
) -> int:
    """Serve the dashboard, until Ctrl-C: the tree from this node down, in a browser and for programs.

    Without users it is open to see on this machine alone, and nothing can be changed with it.

    \b
    Examples:
      treescale dashboard --open
      treescale dashboard user add alice --role operate
      treescale dashboard token add prometheus
    """
    ctx.obj = config, users
    if ctx.invoked_subcommand is not None:
        return Code.OK
    wanted = _wanted(config, users)
    settings = wanted.settings
    settings = replace(settings, host=host or settings.host, port=settings.port if port is None else port)
    return run(_serve(replace(wanted, settings=settings), bus, browse))


async def _serve(wanted: "Wanted", bus: str | None, browse: bool) -> int:
    from tsbus.dashboard.main import NAME, Misconfigured, NotReady, prepare, serve

    setup("warning")
    try:
        ready = prepare(wanted)
    except NotReady as error:
        raise Fault(str(error), Code.USAGE if isinstance(error, Misconfigured) else Code.FAILED) from error

    def begun(url: str) -> None:
        click.echo(url)
        click.echo("serving until Ctrl-C" + (": anybody on this machine may see" if ready.door.open else ""), err=True)
        if browse:
            webbrowser.open(url)

    async with connect(bus, NAME) as client:
        await serve(ready, client, begun)
    return Code.OK


# Users and tokens -----------------------------------------------------------------------------------------------------


def _role_option(default: Role) -> Callable[[_F], _F]:
    text = "view sees, operate also acts."
    return click.option(
        "--role", type=click.Choice([role.value for role in Role]), default=default.value, show_default=True, help=text
    )


@dashboard.group(no_args_is_help=True)
def user() -> None:
    """People who sign in with a password. A dashboard that runs knows of each change at once."""


@dashboard.group(no_args_is_help=True)
def token() -> None:
    """Tokens for programs: they send `Authorization: Bearer TOKEN`."""


@user.command("add")
@click.argument("name")
@_role_option(Role.VIEW)
@click.pass_obj
def add_user(given: tuple[Path, Path | None], name: str, role: str) -> int:
    """Add a user. The password is asked for; without a terminal it is the first line of standard input."""
    file, users = _read(given)
    _write(file, _sound(lambda: users.with_user(name, Role(role), _password())))
    click.echo(f"{name} may sign in ({role}); in {file.path}", err=True)
    return Code.OK


@user.command("password")
@click.argument("name")
@click.pass_obj
def new_password(given: tuple[Path, Path | None], name: str) -> int:
    """Give a user another password, which ends his sessions."""
    file, users = _read(given)
    _write(file, _sound(lambda: users.with_password(name, _password())))
    click.echo(f"{name} has a new password", err=True)
    return Code.OK


@user.command("remove")
@click.argument("name")
@click.pass_obj
def remove_user(given: tuple[Path, Path | None], name: str) -> int:
    """Remove a user, which ends his sessions."""
    file, users = _read(given)
    _write(file, _sound(lambda: users.without_user(name)))
    click.echo(f"{name} is gone", err=True)
    return Code.OK


@user.command("ls")
@json_option
@click.pass_obj
def list_users(given: tuple[Path, Path | None], as_json: bool) -> int:
    """List the users."""
    return _list(_read(given)[1].users.items(), "nobody can sign in", as_json)


@token.command("add")
@click.argument("name")
@_role_option(Role.VIEW)
@click.pass_obj
def add_token(given: tuple[Path, Path | None], name: str, role: str) -> int:
    """Make a token and print it. It is shown this once: only its hash is kept."""
    file, users = _read(given)
    changed, text = _sound(lambda: users.with_token(name, Role(role)))
    _write(file, changed)
    click.echo(text)
    return Code.OK


@token.command("remove")
@click.argument("name")
@click.pass_obj
def remove_token(given: tuple[Path, Path | None], name: str) -> int:
    """Remove a token; who shows it is turned away from now on."""
    file, users = _read(given)
    _write(file, _sound(lambda: users.without_token(name)))
    click.echo(f"{name} is gone", err=True)
    return Code.OK


@token.command("ls")
@json_option
@click.pass_obj
def list_tokens(given: tuple[Path, Path | None], as_json: bool) -> int:
    """List the tokens by name; they themselves are kept nowhere."""
    return _list(_read(given)[1].tokens.items(), "there are no tokens", as_json)


_T = TypeVar("_T")


def _sound(work: Callable[[], _T]) -> _T:
    try:
        return work()
    except UsersError as error:
        raise Fault(str(error), Code.USAGE) from error


def _read(given: tuple[Path, Path | None]) -> tuple[UsersFile, Users]:
    file = _wanted(*given).users
    return file, _sound(file.read)


def _write(file: UsersFile, users: Users) -> None:
    _sound(lambda: file.write(users))


def _password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")


def _list(found: Iterable[tuple[str, User | Token]], none: str, as_json: bool) -> int:
    rows = [(name, str(each.role)) for name, each in found]
    if as_json:
        for name, role in rows:
            click.echo(json.dumps({"name": name, "role": role}))
    elif not rows:
        click.echo(none, err=True)
    else:
        for line in table((Column("NAME"), Column("ROLE")), rows):
            click.echo(line)
    return Code.OK
