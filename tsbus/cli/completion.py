"""Completion: `treescale completion`, and the completed words that only the bus knows: nodes, tags, commands,
containers, images, balancers and their servers."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tsbus import Reply

Complete = Callable[[click.Context, click.Parameter, str], list[str]]
"""Returns the words that go on like the last argument."""
PROGRAMS = ("treescale", "ts-build", "ts-pub", "ts-sub")
BUILT_IN = ("router.ping", "router.resolve", "router.stats", "router.status")
PATIENCE_S = 0.2
"""A shell that waits for a word must not feel it."""
_ZSH_END = """
if (( $+compstate )); then
    _${service//-/_}_completion "$@"
else
"""
"""From fpath, the script is the body of one function for all programs; read by a shell, it registers one for each."""


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
    names = {program: program.replace("-", "_") for program in PROGRAMS}
    scripts = [
        kind(click.Command(program), {}, program, f"_{name.upper()}_COMPLETE").source()
        for program, name in names.items()
    ]
    if shell == "zsh":
        functions = (re.search(r"^_\w+\(\) \{.*?^\}", script, re.DOTALL | re.MULTILINE) for script in scripts)
        register = (f"    compdef _{name}_completion {program}" for program, name in names.items())
        scripts = [
            f"#compdef {' '.join(PROGRAMS)}\n",
            *(found.group() for found in functions if found),
            "\n".join([_ZSH_END.rstrip(), *register, "fi"]),
        ]
    click.echo("\n".join(scripts))


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the targets that go on like `incomplete`: nodes and tags for its last word."""
    nodes = _ask_here(ctx, "router.status").get("nodes", ())
    names = [node["name"] for node in nodes]
    tags = sorted({f"@{tag}" for node in nodes for tag in node["tags"]})
    start = max(incomplete.rfind(mark) for mark in ",&!") + 1
    return [incomplete[:start] + word for word in [*names, *tags] if word.startswith(incomplete[start:])]


def _known(command: str, words: Callable[[Any], Iterable[str]]) -> Complete:
    """Return what completes the `words` of all that the nodes of the target answer to `command`."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        replies = _ask(ctx, command, ctx.params.get("target") or "*")
        return sorted({word for reply in replies for word in words(reply.json()) if word.startswith(incomplete)})

    return complete


def _names_and_addresses(told: Any) -> Iterable[str]:
    return (word for each in told["balancers"] for word in (each["name"], *each["addresses"]))


# A snapshot begins with what is no list: the engine.
complete_container = _known(
    "containers.snapshot", lambda told: [each["name"] for each in told] if isinstance(told, list) else []
)
complete_image = _known("images.ls", lambda told: [name for image in told["images"] for name in image["names"]])
complete_balancer = _known("lb.ls", lambda told: [balancer["name"] for balancer in told["balancers"]])
complete_server = _known("lb.show", lambda told: [server["name"] for server in told.get("servers", ())])
complete_address = _known("lb.ls", _names_and_addresses)


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
