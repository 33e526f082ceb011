"""Finding: which containers the names on a command line mean, on which nodes. `find` asks, `choose` decides."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from tsbus.cli.containers.options import ASK_S
from tsbus.cli.edge import Code, Fault
from tsbus.cli.job import waiting
from tsbus.cli.report import Ending, account, ending_of, exit_code
from tsbus.cli.terminal import Progress, safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold

if TYPE_CHECKING:
    from tsbus import Reply
    from tsbus.client import Client

MAX_NAMED = 1000
"""Containers that a node takes in one order."""
MAX_LISTED = 10
"""Containers that an error lists."""


class _Row(msgspec.Struct, frozen=True):
    given: str
    id: str
    name: str
    state: str = ""
    image: str = ""


class _Missing(msgspec.Struct, frozen=True):
    given: str
    hint: str = ""


class _Answer(msgspec.Struct, frozen=True):
    found: list[_Row] = []
    missing: list[_Missing] = []


@dataclass(frozen=True, slots=True)
class Match:
    """A container that a name may mean."""

    node: str
    given: str
    """What was asked for: a name, an id or the beginning of one."""
    id: str
    name: str
    state: str = ""

    @property
    def label(self) -> str:
        """Node and name, as the account calls it."""
        return f"{self.node}/{safe(self.name)}"

    @property
    def exact(self) -> bool:
        """Whether it was asked for by its whole name or id."""
        return self.given in (self.name, self.id)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the nodes of a target answered."""

    matches: Sequence[Match]
    hints: Mapping[str, Collection[str]] = field(default_factory=dict)
    """For names that a node does not have: what comes near to it there."""
    silent: Mapping[str, Ending] = field(default_factory=dict)
    """Nodes that did not say what they have."""

    @property
    def lost(self) -> dict[str, Ending]:
        """Silent nodes that may have containers: a node without a monitor has none that we could see."""
        return without_monitors(self.silent)


def without_monitors(endings: Mapping[str, Ending]) -> dict[str, Ending]:
    """Return the endings without those of nodes where no monitor runs."""
    return {node: how for node, how in endings.items() if how.outcome is not Outcome.NO_SUCH_SERVICE}


def monitored(endings: Mapping[str, Ending]) -> dict[str, Ending]:
    """Return the endings on nodes where a monitor runs. Raises Fault where that is none."""
    if not (found := without_monitors(endings)):
        raise no_monitor(endings)
    return found


def no_monitor(nodes: Iterable[str]) -> Fault:
    """Return the fault of a target without any monitor."""
    return Fault(
        f"no container monitor runs on {fold(nodes)}: start ts-docker there, or take enabled = false out of [docker]"
    )


async def ask(
    client: "Client", target: str, command: str, body: object, take: "Callable[[Reply], None]", timeout_s: float
) -> dict[str, Ending]:
    """Hand what the nodes of `target` answer to `take`; returns how it ended on each."""
    endings: dict[str, Ending] = {}
    progress = Progress()
    async with client.request(target, command, body, timeout_s=timeout_s) as call:
        nodes = await call.nodes()
        async with waiting(progress, lambda: nodes - endings.keys(), len(nodes)):
            async for reply in call:
                progress.clear()
                if reply.status is Outcome.OK and reply.body:
                    take(reply)
                if reply.last:
                    endings[reply.node] = ending_of(reply)
    return endings


async def find(client: "Client", target: str, names: Sequence[str]) -> Finding:
    """Ask the nodes of `target` for containers. Raises Fault for too many names."""
    if len(names) > MAX_NAMED:
        raise Fault(f"{len(names)} names are too many: at most {MAX_NAMED} at once", Code.USAGE)
    matches: list[Match] = []
    hints: dict[str, set[str]] = {}

    def take(reply: "Reply") -> None:
        answer = msgspec.json.decode(reply.body, type=_Answer)
        matches.extend(Match(reply.node, row.given, row.id, row.name, row.state) for row in answer.found)
        for missing in answer.missing:
            hints.setdefault(missing.given, set()).update([missing.hint] if missing.hint else [])

    endings = await ask(client, target, "containers.find", {"containers": list(names)}, take, ASK_S)
    silent = {node: ending for node, ending in endings.items() if ending.outcome is not Outcome.OK}
    return Finding(matches, hints, silent)


def choose(finding: Finding, names: Sequence[str], target: str, *, single: bool) -> list[Match]:
    """Return the containers that `names` mean, each once.

    `single`: each name must mean one container. Raises Fault when it does not, when a name means nothing, and when the
    beginning of an id fits different containers.
    """
    chosen: dict[tuple[str, str], Match] = {}
    for name in dict.fromkeys(names):
        fits = [match for match in finding.matches if match.given == name]
        # Whole names win over beginnings of ids, also when another node has those.
        best = [match for match in fits if match.name == name] or [match for match in fits if match.exact] or fits
        best.sort(key=lambda match: (match.node, match.name))
        if not best:
            raise _not_found(finding, name, target)
        if not best[0].exact and len({match.id for match in best}) > 1:
            raise Fault(
                f"{name!r} begins the ids of different containers: {_listed(best)}; give more of it", Code.USAGE
            )
        if single and len(best) > 1:
            nodes = fold(match.node for match in best)
            raise Fault(
                f"{name!r} is on {len(best)} nodes, nothing was done: {_listed(best)}\n"
                f"Name one of {nodes} as TARGET, or say --each to act on all of them.",
                Code.USAGE,
            )
        chosen.update(((match.node, match.id), match) for match in best)
    return list(chosen.values())


def order_for(matches: Sequence[Match]) -> dict[str, object]:
    """Return the part of an order that names containers, the same for all nodes: each passes over those of others.

    By their ids, which cannot mean another container meanwhile; as far as a node takes so many.
    """
    ids = [match.id for match in matches]
    given = list(dict.fromkeys(match.given for match in matches))
    return {"containers": ids if len(ids) <= MAX_NAMED else given, "if_here": True}


def _listed(matches: Sequence[Match]) -> str:
    words = [f"{match.label} ({match.id[:12]}, {safe(match.state)})" for match in matches[:MAX_LISTED]]
    if len(matches) > MAX_LISTED:
        words.append(f"and {len(matches) - MAX_LISTED} more")
    return ", ".join(words)


def _not_found(finding: Finding, name: str, target: str) -> Fault:
    asked = [ending.outcome for ending in finding.silent.values()]
    lost = list(account(finding.lost, 0.0))[1 if len(finding.lost) > 1 else 0 :]
    if not finding.hints and not finding.matches and finding.silent:  # nobody answered at all
        if not lost:
            return no_monitor(finding.silent)
        return Fault("\n".join(lost), exit_code(asked))
    hints = sorted(finding.hints.get(name, ()))
    near = f"; did you mean {' or '.join(repr(safe(hint)) for hint in hints[:3])}?" if hints else ""
    without = f" (no answer from {fold(finding.lost)})" if lost else ""
    return Fault(f"no container {name!r} on {target}{without}{near}", Code.USAGE)
