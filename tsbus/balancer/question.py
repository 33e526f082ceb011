"""Question: what `lb.why` is asked, with all that the balancer knows of it, and the form of the answer. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from tsbus.balancer.report import Problem, Report
from tsbus.balancer.rules import Backend, Front, Listen
from tsbus.balancer.table import Destination, Entry
from tsbus.config import Balancer
from tsbus.lb_records import Check, Origin, WhyAnswer
from tsbus.records import Container

MAX_SERVERS: Final = 64
"""So many servers of a balancer are looked at."""
NAMED: Final = 10
"""Servers that a text names."""
_WHO: Final[Mapping[Origin, str]] = {
    "remote": "a client elsewhere", "local": "a program of this host", "container": "a container of this host",
}  # fmt: skip
Result = Literal["ok", "fail", "warn", "unknown"]


class Finding(NamedTuple):
    """What one check says of one way."""

    result: Result
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A client's packet to a balancer, and what the balancer's process knows."""

    node: str
    balancer: Balancer
    listen: Listen
    """The address and the one port."""
    asked: str
    """The address as the caller gave it."""
    origin: Origin
    front: Front
    """As it is wanted; without servers while that is not known."""
    backend: Backend
    """What balances, or should."""
    report: Report | None = None
    """None while it is not known what should be balanced."""
    loopback: bool = False
    """The caller gave an address of the loopback device."""
    unusable: Problem | None = None
    """Why there is no kernel to balance with."""
    unable: Problem | None = None
    """Why this kernel cannot hold the service."""
    problems: tuple[Problem, ...] = ()
    """Of carrying it out, a clash among them."""
    clash: bool = False
    containers: tuple[Container, ...] = ()
    """Of this node."""


def nobody(asked: str, protocol: str, origin: Origin, known: Iterable[Balancer]) -> WhyAnswer:
    """Return the answer for an address that no balancer has."""
    listed = [f"{each.name} ({each.protocol} {', '.join(map(str, each.listens))})" for each in known]
    text = f"no balancer of this node has {protocol} {asked}; there are {', '.join(listed[:NAMED])}"
    mend = f'ask for one of these, or add one with address = "{asked}" to the configuration'
    check = Check(name="balancer", result="fail", text=text, mend=mend)
    return answer_of("", asked, protocol, origin, [check], "")


def servers_of(question: Question, table: Mapping[Any, Entry] | None) -> tuple[Destination, ...]:
    """Return the real servers that are looked at: those that get connections, else all that there should be."""
    pool = question.front.pool
    entry = (table or {}).get(pool.service.key)
    found = list(pool.destinations.values())
    if entry is not None and not question.clash:
        found = list(entry.destinations.values())
    return tuple([each for each in found if each.weight] or found)[:MAX_SERVERS]


def answer_of(
    balancer: str, asked: str, protocol: str, origin: Origin, checks: list[Check], goes_to: str
) -> WhyAnswer:  # fmt: skip
    """Return the answer with these checks; `goes_to` says to whom a packet goes that passes them all."""
    failed = next((each for each in checks if each.result == "fail"), None)
    doubt = next((each for each in checks if each.result == "unknown"), None)
    who = f"A packet from {_WHO[origin]} to {protocol} {asked}"
    if failed:
        whom = f" for {some(failed.servers)}" if failed.servers else ""
        verdict = f"{who} ends at the check {failed.name!r}{whom}: {failed.text}."
    elif doubt:
        verdict = f"{who} goes {goes_to}, if it passes {doubt.name!r}, which cannot be told: {doubt.text}."
    else:
        verdict = f"{who} goes {goes_to}."
    works = False if failed else None if doubt else True
    return WhyAnswer(
        balancer=balancer, address=asked, protocol=protocol, client=origin, works=works, verdict=verdict,
        checks=tuple(checks),
    )  # fmt: skip


def some(names: Iterable[str]) -> str:
    """Return the first of these names, each once, and how many more there are."""
    found = list(dict.fromkeys(names))
    rest = len(found) - NAMED
    return ", ".join(found[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
