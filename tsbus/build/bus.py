"""Bus: what a run has the tree do for it: commands that the root's own `treescale` sends to other nodes."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from tsbus.build import jobs
from tsbus.build.campaign import Campaign
from tsbus.build.jobs import Log
from tsbus.build.reports import Noted
from tsbus.build.ssh import ServerTrouble, Session
from tsbus.copies import Copies, digest
from tsbus.core.target import fold

ANSWER_S: Final = 30.0
_USAGE: Final = 2
"""What `treescale` ends with at a target that it cannot use."""


@dataclass(slots=True)
class Answers:
    """What nodes have answered to one command."""

    given: dict[str, Any] = field(default_factory=dict)
    """Node -> its answer."""
    refused: dict[str, str] = field(default_factory=dict)
    """Node -> why there is none."""

    def take(self, line: str) -> None:
        """Take a line that `treescale call --json` prints."""
        try:
            said = json.loads(line)
            node, body = said["node"], said.get("body")
        except (ValueError, KeyError, TypeError):
            return
        if said.get("outcome") == "ok":
            self.given[node] = body
        elif "outcome" in said:
            self.refused[node] = f"{said['outcome']}: {body}" if body else str(said["outcome"])


def call(session: Session, names: Collection[str], command: str, log: Log, body: str = "") -> Answers:
    """Send a command to nodes, from the node of this session, as root. Raises ServerTrouble, Cancelled."""
    answers = Answers()

    def send(known: Collection[str]) -> int:
        words = ["call", fold(known), command, *(["-"] if body else []), "--timeout", f"{ANSWER_S:g}", "--json"]
        return jobs.treescale(session, words, log, stdin=body.encode() or None, hear=answers.take,
                              limit_s=ANSWER_S + jobs.REPLY_S, check=False).status  # fmt: skip

    # A router refuses a target with a name that is not in its copy of the tree, which may be older than ours.
    if send(names) == _USAGE:
        known = _known(session, log) & set(names)
        answers.refused |= dict.fromkeys(set(names) - known, "the tree that runs does not have it")
        if known:
            send(known)
    for name in set(names) - answers.given.keys() - answers.refused.keys():
        answers.refused[name] = "nothing was heard"
    return answers


def _known(session: Session, log: Log) -> set[str]:
    """Return the nodes of the tree that runs; none where it cannot be asked. Raises ServerTrouble, Cancelled."""
    try:
        told = json.loads(jobs.treescale(session, ["status", "--json"], log, check=False).out)
        return {str(node["name"]) for node in told["nodes"]}
    except (ValueError, KeyError, TypeError):
        return set()


def ask_root(campaign: Campaign, names: Collection[str], command: str, body: str = "") -> Answers:
    """Let the root of a run send a command to nodes. Raises ServerTrouble."""
    log = partial(campaign.transcripts.add, campaign.topology.root)
    return campaign.at_root(lambda session: call(session, names, command, log, body))


def tell_tree(campaign: Campaign, names: Collection[str], copies: Copies) -> Iterator[Noted]:
    """Let nodes have the tree over the bus, one text for all of them (`node.config`).

    Who does not take it is told of and no more: it is what it was, and the next build sees to it.
    """
    if not names:
        return
    try:
        answers = ask_root(campaign, names, "node.config", json.dumps(copies.sealed))
    except ServerTrouble as error:
        text = (
            f"{fold(names)} did not get the tree: the root cannot be asked ({error.trouble.text}); build there as well"
        )
        yield Noted("", text)
        return
    for name in answers.given:
        campaign.configs[name] = digest(copies.text(name))
    if took := [name for name, answer in answers.given.items() if answer.get("changed")]:
        yield Noted("", f"{fold(took)} took the tree over the bus")
    for name, why in answers.refused.items():
        yield Noted(name, f"it did not take the tree over the bus ({why}): build there as well")
