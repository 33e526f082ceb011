"""Report: the account of a call as people and scripts get it, and its exit code. Pure; ping, call and exec use it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsbus.cli.edge import Code
from tsbus.cli.terminal import body_line, millis, safe
from tsbus.core.accounting import Outcome
from tsbus.core.body import body_json
from tsbus.core.target import fold

if TYPE_CHECKING:
    from tsbus import Reply


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended on one node."""

    outcome: Outcome
    reason: str = ""
    """Why, when it is not ok."""


def ending_of(reply: "Reply") -> Ending:
    """Return how a call ended by a node's last reply."""
    if reply.status is Outcome.OK:
        return Ending(Outcome.OK)
    text = body_json(reply.body).get("body")
    return Ending(reply.status, safe(text) if isinstance(text, str) else body_line(reply.body))


def exit_code(outcomes: Collection[Outcome]) -> Code:
    """Return the exit code for how a call ended on its nodes."""
    bad = {outcome for outcome in outcomes if outcome is not Outcome.OK}
    if not bad:
        return Code.OK
    if len(bad) < len(set(outcomes)):
        return Code.PARTIAL
    if bad <= {Outcome.UNREACHABLE, Outcome.TIMEOUT}:
        return Code.UNREACHABLE
    return Code.REFUSED if bad == {Outcome.REFUSED} else Code.FAILED


def account(endings: Mapping[str, Ending], seconds: float) -> Iterator[str]:
    """Return the lines that tell how it ended on every node; nothing for one node that did it."""
    if len(endings) > 1:
        ok = sum(ending.outcome is Outcome.OK for ending in endings.values())
        took = millis(seconds * 1000) if seconds < 1 else f"{seconds:.1f} s"
        yield f"ok {ok} of {len(endings)} in {took}"
    for outcome in list(Outcome)[1:]:
        reasons: dict[str, list[str]] = {}
        for node, ending in endings.items():
            if ending.outcome is outcome:
                reasons.setdefault(ending.reason, []).append(node)
        if reasons:
            parts = [fold(nodes) + (f" ({reason})" if reason else "") for reason, nodes in reasons.items()]
            yield f"{label(outcome)} {sum(map(len, reasons.values()))}: {', '.join(parts)}"


def label(outcome: Outcome) -> str:
    """Return the outcome in the words of the account."""
    return outcome.name.lower().replace("_", " ")


def summary(endings: Mapping[str, Ending], seconds: float) -> dict[str, Any]:
    """Return the account for --json: every outcome with its nodes, which together are the resolved set."""
    sets: dict[str, Any] = {outcome.name.lower(): [] for outcome in Outcome}
    for node, ending in endings.items():
        sets[ending.outcome.name.lower()].append(node)
    return {"summary": sets, "seconds": round(seconds, 3)}
