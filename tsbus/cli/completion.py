"""Completion: `treescale completion`, and the completed words that only the bus knows: nodes, tags, commands."""

import asyncio
from typing import Any

import click

PROGRAMS = ("treescale", "ts-pub", "ts-sub")
BUILT_IN = ("router.ping", "router.resolve", "router.stats", "router.status")
PATIENCE_S = 0.2
"""A shell that waits for a word must not feel it."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell; it also completes the names of nodes and tags.

    \b
    Examples:
      treescale completion bash > /etc/bash_completion.d/treescale
      treescale completion zsh > ~/.zfunc/_treescale
      treescale completion fish > ~/.config/fish/completions/treescale.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  (click has all three)
    for program in PROGRAMS:
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        click.echo(kind(click.Command(program), {}, program, variable).source())


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the targets that go on like `incomplete`: nodes and tags for its last word."""
    status = _ask(ctx)
    names = [node["name"] for node in status.get("nodes", ())]
    tags = sorted({f"@{tag}" for node in status.get("nodes", ()) for tag in node["tags"]})
    start = max(incomplete.rfind(mark) for mark in ",&!") + 1
    return [incomplete[:start] + word for word in [*names, *tags] if word.startswith(incomplete[start:])]


def complete_command(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the commands of the local node's services that go on like `incomplete`."""
    words = [*BUILT_IN, *_ask(ctx).get("services", ())]
    return [word for word in words if word.startswith(incomplete)]


def _ask(ctx: click.Context) -> dict[str, Any]:
    """Return `router.status` of the local router, nothing when it has no answer at once."""
    from tsbus.cli.edge import connect

    async def ask() -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S), connect(ctx.params.get("bus"), "completion") as client:
            status: dict[str, Any] = await client.call_one(client.node, "router.status")
            return status

    try:
        return asyncio.run(ask())
    except Exception:  # whatever it is, a shell that completes a word is no place to tell it
        return {}
