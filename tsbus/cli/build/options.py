"""Options: what the build's commands are told; together they make an errand."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from tsbus.build import NotAConsole
from tsbus.build.bundle import BundleError
from tsbus.build.store import StoreError
from tsbus.cli.build.errand import Errand
from tsbus.cli.edge import Fault, json_option
from tsbus.config import Server, load, load_console
from tsbus.config.forms import share

_F = TypeVar("_F", bound=Callable[..., Any])


def complete_server(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the servers and tags of the tree's file that go on like `incomplete`, for its last word."""
    start = max(incomplete.rfind(mark) for mark in ",&!") + 1
    words = [*_servers(ctx), *(f"@{tag}" for tag in _tags(ctx))]
    return [incomplete[:start] + word for word in words if word.startswith(incomplete[start:])]


def complete_tag(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the tags of the tree's file that begin with `incomplete`."""
    return [tag for tag in _tags(ctx) if tag.startswith(incomplete)]


def _tags(ctx: click.Context) -> list[str]:
    return sorted({tag for server in _servers(ctx).values() for tag in server.tags})


def _servers(ctx: click.Context) -> dict[str, Server]:
    """Return the servers of the tree's file: the tree itself may not stand yet, or not have them."""
    # Whatever is wrong with the files, a shell that completes a word is no place to tell it.
    with contextlib.suppress(Exception):
        return load(load_console(ctx.params.get("console_file") or "console.toml").tree_path).servers
    return {}


def nodes_argument(command: _F) -> _F:
    """Give a command the NODEs, at least one."""
    return click.argument("nodes", metavar="NODE...", nargs=-1, required=True, shell_complete=complete_server)(command)


def any_nodes_argument(command: _F) -> _F:
    """Give a command NODEs that may be left out: then it is all of them."""
    return click.argument("nodes", metavar="[NODE...]", nargs=-1, shell_complete=complete_server)(command)


def _share(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if complaint := share(value):
        raise click.BadParameter(f"{complaint[0]}; {complaint[1]}", ctx, param)
    return value


_REACH: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--console", "console_file", metavar="FILE", default="console.toml", show_default=True,
        type=click.Path(path_type=Path), help="How to log in, and where the tree's file is.",
    ),
    click.option(
        "--parallel", type=click.IntRange(1, 1000), metavar="N", help="Servers at the same time [default: 32]."
    ),
    click.option(
        "--accept-new", is_flag=True, help="Take and record unknown host keys, and the keys of nodes made anew."
    ),
    json_option,
)  # fmt: skip
_CHOICE: tuple[Callable[[Any], Any], ...] = (
    click.option("--limit", metavar="TARGET", default="", shell_complete=complete_server, help="Only these servers."),
    click.option(
        "--tag", "tags", metavar="TAG", multiple=True, shell_complete=complete_tag,
        help="Only servers with this tag; may be given again.",
    ),
    click.option("--failed", "only_failed", is_flag=True, help="Only those that did not go well last time."),
)  # fmt: skip
_MAKING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--max-fail", metavar="N|N%", default="", callback=_share,
        help="Begin no further server after so many failures [default: all are tried].",
    ),
    click.option("--no-docker", is_flag=True, help="Install no Docker engine."),
    click.option("--offline", is_flag=True, help="Download nothing to the console: take what its cache has."),
    click.option(
        "--wheelhouse", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Take the wheels of the bundle from this folder.",
    ),
)  # fmt: skip


def takes_errand(*, choice: bool = False, making: bool = False) -> Callable[[_F], Callable[..., Any]]:
    """Give a command its Errand, as its first argument, made of the options that every command of the build has.

    `choice` adds those that choose servers, `making` those of commands that install something.
    """
    options = (*(_CHOICE if choice else ()), *(_MAKING if making else ()), *_REACH)
    fields = {field.name for field in dataclasses.fields(Errand)}

    def decorate(command: _F) -> Callable[..., Any]:
        @wraps(command)
        def wrapped(*before: Any, **given: Any) -> Any:
            taken = {name: given.pop(name) for name in fields & given.keys()}
            try:
                return command(*before, Errand(**taken), **given)
            except (BundleError, NotAConsole, StoreError) as error:
                raise Fault(str(error)) from error

        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate
