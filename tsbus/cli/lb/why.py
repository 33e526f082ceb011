"""Why: `treescale lb why`, what happens to a packet for a balancer's address, in words."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click
import msgspec

from tsbus.cli.completion import complete_address, complete_target
from tsbus.cli.containers.ls import problems
from tsbus.cli.containers.words import natural
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run
from tsbus.cli.lb.asking import NOT_RUNNING, Answers, ask, nobody, summaries
from tsbus.cli.lb.ls import Row, rows_of
from tsbus.cli.lb.options import terminal_width
from tsbus.cli.lb.words import address as address_of
from tsbus.cli.lb.words import wrapped
from tsbus.cli.report import Ending, exit_code, summary
from tsbus.cli.terminal import Progress, safe
from tsbus.config.address import parse_address
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.lb_records import Check, Details, Summary, WhyAnswer

if TYPE_CHECKING:
    from tsbus.client import Client

WHY_S = 30.0
"""Patience with a node that tries its servers."""
OLDER = "its balancer is older, and does not know lb.why"
MARKS = {"ok": ("ok", "green"), "fail": ("FAIL", "red"), "warn": ("warn", "yellow"), "unknown": ("?", "yellow")}
"""Result of a check -> its mark, and its colour."""
CLIENTS = {"remote": "a remote client", "local": "a client on this host", "container": "a container here"}
_NAME = max(len(mark) for mark, _ in MARKS.values())
_TEXT = 2 + _NAME + 2
"""Where the text of a check begins."""


def fitting(rows: Iterable[Row], given: str, protocol: str | None) -> list[Row]:
    """Return the balancers with the name `given`, or that listen at this address with `protocol` (None: any)."""
    rows = list(rows)
    if named := [row for row in rows if row[1].name == given]:
        return [row for row in named if protocol in (None, row[1].protocol)]
    return [row for row in rows if protocol in (None, row[1].protocol) and listens(row[1], given)]


def listens(one: Summary, given: str) -> bool:
    """Tell whether a balancer listens at the address `given`: `IP:PORT`, or a range that is in part its own.

    Of a loopback address the port counts: that nothing can be balanced there is for its node to explain.
    """
    try:
        wanted = parse_address(given)
    except ValueError:
        return False
    loopback = ip_address(wanted.ip).is_loopback
    for own in map(parse_address, one.addresses):
        if own.overlaps(wanted._replace(ip=own.ip) if loopback and own.family == wanted.family else wanted):
            return True
    return False


def lines_of(node: str, answer: WhyAnswer, width: int | None) -> Iterator[str]:
    """Return the answer of a node as lines: the verdict, then each check."""
    word, color = {True: ("works", "green"), False: ("does not work", "red"), None: ("cannot be told", "yellow")}[
        answer.works
    ]
    where = f"{node}/{safe(answer.balancer)}" if answer.balancer else node
    head = f"{safe(answer.address)} {answer.protocol} from {CLIENTS[answer.client]}"
    yield f"{click.style(where, bold=True)}  {head}: {click.style(word, fg=color, bold=True)}"
    yield from wrapped(safe(answer.verdict), 2, width)
    yield ""
    names = max((len(check.name) for check in answer.checks), default=0)
    for check in answer.checks:
        yield from _check(check, names, width)


def _check(check: Check, names: int, width: int | None) -> Iterator[str]:
    mark, color = MARKS[check.result]
    indent = _TEXT + names + 2
    first, *rest = wrapped(safe(check.text), indent, width)
    yield f"  {click.style(f'{mark:<{_NAME}}', fg=color)}  {safe(check.name):<{names}}  {first[indent:]}"
    yield from rest
    if check.servers:
        yield from wrapped(f"servers: {', '.join(map(safe, check.servers))}", indent, width)
    if check.mend:
        yield from wrapped(f"mend: {safe(check.mend)}", indent, width)


@click.command()
@click.argument("address", shell_complete=complete_address)
@click.argument("target", default="*", shell_complete=complete_target)
@click.option("--from", "client", type=click.Choice(["remote", "local", "container"]), default="remote",
              show_default=True, help="Where the client is: elsewhere, on the balancer's host, in a container there.",
              )  # fmt: skip
@click.option("--udp", "protocol", flag_value="udp", help="A packet of UDP.")
@click.option("--sctp", "protocol", flag_value="sctp", help="A packet of SCTP.")
@json_option
@bus_option
def why(address: str, target: str, client: str, protocol: str | None, as_json: bool, bus: str | None) -> int:
    """Follow the first packet of a connection to ADDRESS, and tell where it goes, or at which check it ends.

    ADDRESS is the IP:PORT that clients connect to, or a balancer's name. It is looked for on all nodes of TARGET.
    Nothing is changed. Exit code 0 when it works, 1 when it does not or cannot be told.

    \b
    Examples:
      treescale lb why 10.0.0.1:443
      treescale lb why web node1 --from container
      treescale lb why 10.0.0.1:53 --udp
    """
    return run(_why(bus, address, target, client, protocol, as_json))


async def _why(bus: str | None, address: str, target: str, origin: str, protocol: str | None, as_json: bool) -> int:
    progress = Progress()
    async with connect(bus, "treescale-lb") as client:
        listed = await summaries(client, target)
        rows = rows_of(listed)
        # An address without a protocol means TCP, unless only another one is there.
        found = fitting(rows, address, protocol or "tcp") or fitting(rows, address, protocol)
        if not found:
            raise _not_found(rows, address, protocol, target, listed.silent)
        answers = await _ask(client, found, address, origin)
        told = [(node, one) for node in sorted(answers.said, key=natural) for one in answers.said[node]]
        hints = [[] if as_json else await _below(client, node, one) for node, one in told]
    if as_json:
        for node, one in told:
            click.echo(json.dumps({"node": node} | msgspec.to_builtins(one)))
        click.echo(json.dumps(summary(answers.endings, progress.elapsed_s)))
    else:
        width = terminal_width()
        blocks = ["\n".join([*lines_of(*each, width), *more]) for each, more in zip(told, hints, strict=True)]
        if blocks:
            click.echo("\n\n".join(blocks))
        for line in problems(listed.silent | answers.endings):
            click.echo(line, err=True)
    # A node that answered did what was asked; what counts is what it said.
    silent = [ending.outcome for node, ending in answers.endings.items() if node not in answers.said]
    return exit_code([*silent, *(Outcome.OK if one.works else Outcome.FAILED for _, one in told)])


async def _ask(client: "Client", found: Sequence[Row], address: str, origin: str) -> Answers[WhyAnswer]:
    groups: dict[str, list[str]] = {}
    for node, one in found:
        groups.setdefault(one.protocol, []).append(node)
    whole: Answers[WhyAnswer] = Answers()
    for protocol, nodes in groups.items():
        body = {"address": address, "protocol": protocol, "from": origin}
        told = await ask(client, fold(nodes), "why", WhyAnswer, body, WHY_S)
        for node, some in told.said.items():
            whole.said.setdefault(node, []).extend(some)
        for node, ending in told.endings.items():
            whole.endings[node] = Ending(ending.outcome, OLDER) if ending.reason == NOT_RUNNING else ending
    return whole


async def _below(client: "Client", node: str, answer: WhyAnswer) -> list[str]:
    """Return hints for servers that are balancers of nodes below: there the packet goes on."""
    if not answer.balancer:
        return []
    shown = await ask(client, node, "show", Details, {"balancers": [answer.balancer]})
    servers = [server for piece in shown.said.get(node, ()) for server in piece.servers]
    nodes = {server.node for server in servers if server.id == server.node not in ("", node)}
    if not nodes:
        return []
    own = await _listening(client, nodes)
    hints = [
        f"  {safe(server.name)} balances {address_of(server)} itself; ask there: "
        f"treescale lb why {address_of(server)} {server.node}" + (f" --{answer.protocol}" * (answer.protocol != "tcp"))
        for server in servers
        if any(row[0] == server.node for row in fitting(own, address_of(server), answer.protocol))
    ]
    return ["", *hints] if hints else []


async def _listening(client: "Client", nodes: Iterable[str]) -> list[Row]:
    try:
        return rows_of(await summaries(client, fold(nodes)))
    except Fault:  # none of them has a balancer
        return []


def _not_found(
    rows: Sequence[Row], address: str, protocol: str | None, target: str, silent: Mapping[str, Ending]
) -> Fault:
    other = [row for row in rows if fitting([row], address, None)]
    if other:
        there = ", ".join(f"{node}/{one.name} has it for {one.protocol}" for node, one in other)
        return Fault(f"no balancer has {address} for {protocol}: {safe(there)}", Code.USAGE)
    known = [word for _, one in rows for word in (one.name, *one.addresses)]
    return nobody("balancer", address, target, known, silent)
