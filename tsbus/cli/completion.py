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
    nodes = _ask(ctx, "router.status").get("nodes", ())
    names = [node["name"] for node in nodes]
    tags = sorted({f"@{tag}" for node in nodes for tag in node["tags"]})
    start = max(incomplete.rfind(mark) for mark in ",&!") + 1
    return [incomplete[:start] + word for word in [*names, *tags] if word.startswith(incomplete[start:])]


def complete_command(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the commands of the local node's services that go on like `incomplete`."""
    workers = _ask(ctx, "router.stats").get("workers", ())
    words = sorted({*BUILT_IN, *(command for worker in workers for command in worker["services"])})
    return [word for word in words if word.startswith(incomplete)]


def _ask(ctx: click.Context, command: str) -> dict[str, Any]:
    """Return what the local router answers, nothing when it does not answer at once."""
    from tsbus.cli.edge import connect

    async def ask() -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S), connect(ctx.params.get("bus"), "completion") as client:
            answer: dict[str, Any] = await client.call_one(client.node, command)
            return answer

    try:
        return asyncio.run(ask())
    except Exception:  # whatever it is, a shell that completes a word is no place to tell it
        return {}
