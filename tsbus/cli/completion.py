"""Completion: `treescale completion`, and the completed words that only the bus knows: nodes, tags, commands,
containers, images, balancers and their servers."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tsbus import Reply

PROGRAMS = ("treescale", "ts-build", "ts-pub", "ts-sub")
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
    nodes = _ask_here(ctx, "router.status").get("nodes", ())
    names = [node["name"] for node in nodes]
    tags = sorted({f"@{tag}" for node in nodes for tag in node["tags"]})
    start = max(incomplete.rfind(mark) for mark in ",&!") + 1
    return [incomplete[:start] + word for word in [*names, *tags] if word.startswith(incomplete[start:])]


def complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of containers on the target that go on like `incomplete`."""
    words: set[str] = set()
    for reply in _ask(ctx, "containers.snapshot", ctx.params.get("target") or "*"):
        containers = reply.json()
        if isinstance(containers, list):
            words.update(container["name"] for container in containers)
    return sorted(word for word in words if word.startswith(incomplete))


def complete_image(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of images on the target that go on like `incomplete`."""
    replies = _ask(ctx, "images.ls", ctx.params.get("target") or "*")
    words = {name for reply in replies for image in reply.json()["images"] for name in image["names"]}
    return sorted(word for word in words if word.startswith(incomplete))


def complete_balancer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of balancers on the target that go on like `incomplete`."""
    replies = _ask(ctx, "lb.ls", ctx.params.get("target") or "*")
    words = {balancer["name"] for reply in replies for balancer in reply.json()["balancers"]}
    return sorted(word for word in words if word.startswith(incomplete))


def complete_server(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the balancers' servers on the target that go on like `incomplete`."""
    replies = _ask(ctx, "lb.show", ctx.params.get("target") or "*")
    words = {server["name"] for reply in replies for server in reply.json().get("servers", ())}
    return sorted(word for word in words if word.startswith(incomplete))


def complete_address(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names and addresses of balancers that go on like `incomplete`."""
    replies = _ask(ctx, "lb.ls", ctx.params.get("target") or "*")
    found = [balancer for reply in replies for balancer in reply.json()["balancers"]]
    words = {word for balancer in found for word in (balancer["name"], *balancer["addresses"])}
    return sorted(word for word in words if word.startswith(incomplete))


def complete_command(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the commands of the local node's services that go on like `incomplete`."""
    workers = _ask_here(ctx, "router.stats").get("workers", ())
    words = sorted({*BUILT_IN, *(command for worker in workers for command in worker["services"])})
    return [word for word in words if word.startswith(incomplete)]


def _ask_here(ctx: click.Context, command: str) -> dict[str, Any]:
    """Return what the local router answers, nothing when it does not answer at once."""
    return next((reply.json() for reply in _ask(ctx, command, ".")), {})


def _ask(ctx: click.Context, command: str, target: str) -> "list[Reply]":
    """Return the good replies that come at once."""
    from tsbus.cli.edge import connect
    from tsbus.core.accounting import Outcome

    replies = []

    async def ask() -> None:
        async with (
            asyncio.timeout(PATIENCE_S),
            connect(ctx.params.get("bus"), "completion") as client,
            client.request(target, command, timeout_s=PATIENCE_S) as call,
        ):
            async for reply in call:
                if reply.status is Outcome.OK and reply.body:
                    replies.append(reply)  # noqa: PERF401  (what came before it was too late counts)

    # Whatever goes wrong, a shell that completes a word is no place to tell it.
    with contextlib.suppress(Exception):
        asyncio.run(ask())
    return replies
