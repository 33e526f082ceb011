"""Summary: how a run of the build has ended, as people and scripts get it. Pure."""

from collections.abc import Collection, Iterator
from statistics import median
from typing import Any

import click

from tsbus.build.course import Outcome
from tsbus.build.trouble import Trouble
from tsbus.cli.build.reportlines import trouble_object
from tsbus.cli.containers.words import count
from tsbus.cli.lb.words import wrapped
from tsbus.cli.terminal import duration, millis, safe
from tsbus.core.target import fold


def summary_lines(
    outcome: Outcome, seconds: float, transcripts: str, width: int | None, told: Collection[str] = ()
) -> Iterator[str]:
    """Return what has become of every server, each trouble with its next step; `transcripts` is where to read on.

    `told`: servers whose trouble the plan has told already, a screen above: they are named, no more.
    """
    if outcome.locked:
        yield f"somebody else is building: {safe(outcome.locked)}"
        yield "wait for the end of that, or see `treescale build unlock`"
        return
    yield from _failed(outcome, width, told)
    reasons: dict[str, list[str]] = {}
    for name, why in outcome.skipped.items():
        reasons.setdefault(f"left out: {why}", []).append(name)
    for name, above in outcome.waiting.items():
        reasons.setdefault(f"built, and without a link until {above} is", []).append(name)
    for why, names in reasons.items():
        yield from wrapped(f"{named(names)}: {safe(why)}", 0, width)
    yield f"{count(len(outcome.names), 'server')} in {duration(seconds)}: {_parts(outcome)}"
    if outcome.answered:
        yield _answers(outcome)
    if outcome.exit_code:
        yield f"transcripts: {transcripts}"


def summary_object(outcome: Outcome, seconds: float, transcripts: str) -> dict[str, Any]:
    """Return the summary for --json: every server is in exactly one of ok, waiting, failed and skipped."""
    return {
        "summary": {
            "ok": list(outcome.ok),
            "waiting": dict(outcome.waiting),
            "failed": {name: trouble_object(trouble) for name, trouble in outcome.failed.items()},
            "skipped": dict(outcome.skipped),
        },
        "changed": dict(outcome.changed),
        "answered_ms": {name: round(rtt_s * 1000, 3) for name, rtt_s in outcome.answered.items()},
        "locked": outcome.locked,
        "exit": outcome.exit_code,
        "seconds": round(seconds, 3),
        "transcripts": transcripts,
    }


def named(names: list[str]) -> str:
    """Return a few servers by name, as `web[1-3] (3)`."""
    return names[0] if len(names) == 1 else f"{fold(names)} ({len(names)})"


def _failed(outcome: Outcome, width: int | None, told: Collection[str]) -> Iterator[str]:
    """Yield the failed servers by kind: who, what is wrong with whom if it is not the same, what mends it."""
    kinds: dict[str, dict[str, Trouble]] = {}
    for name, trouble in outcome.failed.items():
        if name not in told:
            kinds.setdefault(trouble.kind, {})[name] = trouble
    if before := [name for name in outcome.failed if name in told]:
        yield click.style(f"failed, as the plan tells: {named(before)}", fg="red")
    for kind, troubles in kinds.items():
        yield click.style(f"failed, {kind}: {named(list(troubles))}", fg="red")
        texts: dict[str, list[str]] = {}
        for name, trouble in troubles.items():
            texts.setdefault(trouble.text, []).append(name)
        for text, names in texts.items():
            who = f"{fold(names)}: " if len(texts) > 1 else ""
            yield from wrapped(f"{who}{safe(text)}", 2, width)
            details = {troubles[name].details for name in names if troubles[name].details}
            lines = details.pop().splitlines() if len(details) == 1 else []
            if any(line not in text for line in lines):
                yield from (f"    | {safe(line)}" for line in lines)
        for mend in dict.fromkeys(trouble.mend for trouble in troubles.values()):
            yield from wrapped(f"next: {safe(mend)}", 2, width)


def _parts(outcome: Outcome) -> str:
    """Return `90 changed, 5 as they were, 2 failed`."""
    changed = sum(name in outcome.changed for name in outcome.ok)
    parts = (
        (changed, "changed"),
        (len(outcome.ok) - changed, "as before"),
        (len(outcome.waiting), "without a link"),
        (len(outcome.failed), "failed"),
        (len(outcome.skipped), "left out"),
    )
    return ", ".join(f"{number} {word}" for number, word in parts if number)


def _answers(outcome: Outcome) -> str:
    """Return `the tree answers: 94 of 97; round trip 2.1 ms, slowest 14 ms (web7)`."""
    slowest = max(outcome.answered, key=lambda name: outcome.answered[name])
    middle, most = median(outcome.answered.values()) * 1000, outcome.answered[slowest] * 1000
    trip = f"round trip {millis(middle)}"
    if len(outcome.answered) > 1:
        trip = f"median {trip}, slowest {millis(most)} ({slowest})"
    return f"the tree answers: {len(outcome.answered)} of {len(outcome.names)}; {trip}"
