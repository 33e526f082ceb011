"""Asking: the same question to the balancers of a target, and who of them did not answer.

Only nodes that have balancers count. Which these are, the local router's configuration says.
"""

import asyncio
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from tsbus.cli.containers.finding import without_monitors
from tsbus.cli.containers.ls import problems
from tsbus.cli.edge import Code, Fault
from tsbus.cli.report import Ending, ending_of, exit_code
from tsbus.cli.terminal import safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.lb_records import Summary

if TYPE_CHECKING:
    from tsbus.client import Client

ASK_S = 5.0
"""Patience with what a balancer knows by heart."""
NOT_RUNNING = "its balancer does not run: supervisorctl start balancer"

T = TypeVar("T")


class _Listed(msgspec.Struct, frozen=True):
    balancers: tuple[Summary, ...] = ()


@dataclass(slots=True)
class Answers(Generic[T]):
    """What the nodes with balancers answered."""

    said: dict[str, list[T]] = field(default_factory=dict)
    """The pieces of each node that answered."""
    endings: dict[str, Ending] = field(default_factory=dict)
    """How it ended on each node that has balancers."""

    @property
    def silent(self) -> dict[str, Ending]:
        """Nodes that have balancers and said nothing. Raises Fault when these are all."""
        silent = {node: ending for node, ending in self.endings.items() if node not in self.said}
        if silent and not self.said:
            raise Fault("\n".join(problems(silent)), exit_code([ending.outcome for ending in silent.values()]))
        return silent


class Tree(NamedTuple):
    """What the local router's configuration says of the nodes."""

    parents: Mapping[str, str]
    balancing: frozenset[str] | None
    """Nodes with balancers; None: the router does not tell."""

    def above(self, node: str) -> set[str]:
        """Return a node and all above it, whose balancers may have servers on it."""
        found: set[str] = set()
        while node and node not in found:
            found.add(node)
            node = self.parents.get(node, "")
        return found


async def tree_of(client: "Client") -> Tree:
    """Ask the local router."""
    status = await client.call_one(".", "router.status", timeout_s=ASK_S)
    nodes = status["nodes"]
    told = any("balancers" in node for node in nodes)
    balancing = frozenset(node["name"] for node in nodes if node.get("balancers"))
    return Tree({node["name"]: node["home"] for node in nodes}, balancing if told else None)


async def ask(
    client: "Client", target: str, command: str, kind: type[T], body: object = b"", timeout_s: float = ASK_S
) -> Answers[T]:
    """Ask the balancers of `target`; each piece of an answer is a `kind`. Raises Fault when there is no balancer."""
    answers, decode = Answers[T](), msgspec.json.Decoder(kind).decode
    async with client.request(target, f"lb.{command}", body, timeout_s=timeout_s) as call:
        async for reply in call:
            if reply.last:
                answers.endings.setdefault(reply.node, ending_of(reply))
            if reply.body and reply.status is Outcome.OK:
                try:
                    answers.said.setdefault(reply.node, []).append(decode(reply.body))
                except msgspec.DecodeError as error:
                    answers.endings[reply.node] = Ending(Outcome.FAILED, f"its answer is not understood: {error}")
    answers.endings = await balancing(client, answers.endings, target)
    return answers


async def balancing(client: "Client", endings: Mapping[str, Ending], target: str) -> dict[str, Ending]:
    """Return how it ended on the nodes that have balancers. Raises Fault when none of `target` has."""
    found = dict(endings)
    if any(ending.outcome is not Outcome.OK for ending in endings.values()):
        found = counted(endings, (await tree_of(client)).balancing)
    if not found:
        where = "in the whole tree" if target == "*" else f"on {safe(target)}"
        raise Fault(
            f"there is no balancer {where}: give a node one with [servers.NODE.balancers.web] in treescale.toml\n"
            'and there an address = "10.0.0.1:443" and containers = {nginx = 443}; see docs/balancer.md'
        )
    return found


def counted(endings: Mapping[str, Ending], having: Collection[str] | None) -> dict[str, Ending]:
    """Return the endings of nodes that have balancers or answered, `having` them by their configuration."""
    if having is None:
        return without_monitors(endings)
    found = {}
    for node, ending in endings.items():
        if ending.outcome is Outcome.NO_SUCH_SERVICE and node in having:
            found[node] = Ending(Outcome.FAILED, NOT_RUNNING)
        elif node in having or ending.outcome in (Outcome.OK, Outcome.FAILED):
            found[node] = ending
    return found


async def summaries(client: "Client", target: str, timeout_s: float = ASK_S) -> Answers[Summary]:
    """Ask for the list of balancers."""
    answers = await ask(client, target, "ls", _Listed, timeout_s=timeout_s)
    said = {node: [one for piece in pieces for one in piece.balancers] for node, pieces in answers.said.items()}
    return Answers(said, answers.endings)


class Part(NamedTuple):
    """Nodes that can be asked for the same balancers."""

    target: str
    balancers: tuple[str, ...] = ()

    @property
    def body(self) -> dict[str, Any]:
        """What an order says of them."""
        return {"balancers": list(self.balancers)} if self.balancers else {}


async def parts(client: "Client", target: str, names: Sequence[str]) -> tuple[list[Part], dict[str, Ending]]:
    """Find which nodes of `target` have which of the balancers `names`; without names it is all in one part.

    Also returns how it ended on nodes that could not be asked. Raises Fault for a name that nobody has.
    """
    if not names:
        return [Part(target)], {}
    found = await summaries(client, target)
    there = {node: {one.name for one in rows} for node, rows in found.said.items()}
    silent = found.silent
    known = set().union(*there.values())
    for name in names:
        if name not in known:
            raise nobody("balancer", name, target, known, silent)
    return parted(there, names), silent


def parted(there: Mapping[str, Collection[str]], names: Sequence[str]) -> list[Part]:
    """Return the nodes in parts that have the same of the balancers `names`; who has none of them is left out."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for node, own in there.items():
        if have := tuple(name for name in dict.fromkeys(names) if name in own):
            groups.setdefault(have, []).append(node)
    return [Part(fold(nodes), have) for have, nodes in groups.items()]


async def ask_parts(client: "Client", target: str, names: Sequence[str], command: str, kind: type[T]) -> Answers[T]:
    """Ask for the balancers `names`, or all, wherever they are in `target`. Raises Fault as `parts` and `ask` do."""
    groups, silent = await parts(client, target, names)
    whole: Answers[T] = Answers(endings=silent)
    for answers in await asyncio.gather(*(ask(client, part.target, command, kind, part.body) for part in groups)):
        whole.said |= answers.said
        whole.endings |= answers.endings
    return whole


def nobody(thing: str, name: str, target: str, known: Iterable[str], silent: Mapping[str, Ending]) -> Fault:
    """Return the fault of a name that nobody on `target` has, with the nearest of those that are known."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, 3) or [one for one in known if name in one][:3]
    hint = f"; did you mean {' or '.join(repr(safe(one)) for one in near)}?" if near else ""
    if not near and known:
        hint = f"; there are {', '.join(map(safe, known[:10]))}" + (", ..." if len(known) > 10 else "")
    without = f" (no answer from {fold(silent)})" if silent else ""
    return Fault(f"no {thing} {safe(repr(name))} on {safe(target)}{without}{hint}", Code.USAGE)
