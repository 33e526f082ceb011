"""Acts: what is done to containers on many nodes, followed to the account with one line for each container."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tsbus.cli.containers.finding import Finding, Match, order_for
from tsbus.cli.containers.words import SHORT_ID
from tsbus.cli.edge import Code
from tsbus.cli.job import conclude, follow, waiting
from tsbus.cli.report import Ending, ending_of
from tsbus.cli.terminal import Progress, safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.records import Done

if TYPE_CHECKING:
    from tsbus import Reply
    from tsbus.client import Client


class Acts:
    """The account of one command on some containers."""

    def __init__(self, matches: Sequence[Match], words: Callable[[Done], str], *, as_json: bool) -> None:
        """`words` tells of a container with which it went well."""
        self._matches = {(match.node, match.id): match for match in matches}
        self._words = words
        self._as_json = as_json
        self.endings: dict[str, Ending] = {}
        self.progress = Progress()

    def waiting(self) -> list[str]:
        """Return the containers that have not ended."""
        return [match.label for match in self._matches.values() if match.label not in self.endings]

    def take(self, reply: "Reply") -> None:
        """Take a reply: a Done, or a node's last words."""
        if reply.body and reply.status is Outcome.OK:
            self.done(reply.node, msgspec.json.decode(reply.body, type=Done))
        if reply.last:
            self._node_ended(reply)

    def done(self, node: str, done: Done) -> None:
        """Note and show how it ended for a container."""
        match = self._matches.get((node, done.id))
        name = done.name or done.id[:SHORT_ID]
        label = match.label if match else f"{node}/{safe(name)}" if name else node
        outcome = Outcome.OK if done.ok else Outcome.FAILED
        self.endings[label] = Ending(outcome, safe(done.error))
        self.progress.clear()
        if self._as_json:
            click.echo(json.dumps({"node": node} | msgspec.to_builtins(done)))
        elif done.ok:
            self.show(node, label, done)
        sys.stdout.flush()

    def show(self, node: str, label: str, done: Done) -> None:
        """Print the line of a container with which it went well."""
        click.echo(f"{label}: {self._words(done)}")

    def _node_ended(self, reply: "Reply") -> None:
        # Those of which the node said nothing ended as its call did.
        ending = ending_of(reply)
        if ending.outcome is Outcome.OK:
            ending = Ending(Outcome.FAILED, "it is not there any more")
        for match in self._matches.values():
            if match.node == reply.node:
                self.endings.setdefault(match.label, ending)

    def cut_short(self) -> None:
        """Note that the call was cancelled before all had ended."""
        for label in self.waiting():
            self.endings[label] = Ending(Outcome.CANCELLED, "not confirmed")

    def finish(self, *, quiet: bool = False) -> int:
        """Print the account; returns the exit code."""
        self.progress.clear()
        return conclude(self.endings, self.progress.elapsed_s, as_json=self._as_json, quiet=quiet)


async def act(
    client: "Client",
    command: str,
    matches: Sequence[Match],
    options: Mapping[str, Any],
    acts: Acts,
    timeout_s: float,
    *,
    one: bool = False,
) -> bool:
    """Run `containers.COMMAND` on exactly these containers. Returns False after Ctrl-C.

    `one`: the command takes one container, which is found by its name on every node.
    """
    body: dict[str, Any] = dict(options)
    if one:
        body["container"] = matches[0].id if len(matches) == 1 else matches[0].given
    else:
        body |= order_for(matches)
    nodes = fold(match.node for match in matches)
    async with (
        client.request(nodes, f"containers.{command}", body, timeout_s=timeout_s) as call,
        waiting(acts.progress, acts.waiting, len(matches)),
    ):
        whole = await follow(call, acts.take)
    if not whole:
        acts.cut_short()
    return whole


def tell_silent(finding: Finding) -> None:
    """Tell of nodes that could not be asked, though what was looked for was found on others."""
    for node, ending in finding.lost.items():
        click.echo(f"{node} was not asked: {ending.reason or ending.outcome.name.lower()}", err=True)


def code_of(whole: bool, code: int) -> int:
    """Return the exit code of what ended with `code`, unless it was interrupted."""
    return code if whole else Code.INTERRUPTED
