"""Orders: `treescale lb drain`, `undrain` and `weight`, which take servers out, back in, or in between."""

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from tsbus.cli.containers.options import target_argument
from tsbus.cli.containers.times import length
from tsbus.cli.containers.words import natural
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, run
from tsbus.cli.job import NO_LIMIT_S, follow
from tsbus.cli.lb.asking import ask
from tsbus.cli.lb.naming import Chosen, choose, find
from tsbus.cli.lb.options import balancer_option, servers_argument
from tsbus.cli.lb.words import left
from tsbus.cli.report import Ending, account, ending_of, exit_code, summary
from tsbus.cli.screen import Block
from tsbus.cli.terminal import Progress, duration, safe
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.errors import BusError
from tsbus.lb_records import Details, Touched

if TYPE_CHECKING:
    from tsbus import Reply
    from tsbus.client import Client

ORDER_S = 30.0
"""Patience with a kernel that is to be changed."""
LOOK_S = 1.0
"""Between two looks at what still drains."""
MAX_FOR_S: Final = 31 * 86400.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done to which servers."""

    command: str
    target: str
    servers: Sequence[str]
    balancers: Sequence[str]
    options: Mapping[str, Any]
    words: Callable[[Touched], str]
    """Tells of a server with which it went well."""
    each: bool = False
    wait: bool = False

    @property
    def again(self) -> str:
        """The command that takes a drain back."""
        options = [word for name in self.balancers for word in ("-b", name)] + ["--each"] * self.each
        return shlex.join(["treescale", "lb", "undrain", self.target, *self.servers, *options])


class Taken:
    """What the nodes have done."""

    def __init__(self, order: Order, *, as_json: bool) -> None:
        self._order, self._as_json = order, as_json
        self.endings: dict[str, Ending] = {}
        self.touched = 0
        self.block = Block()

    def take(self, reply: "Reply") -> None:
        """Take a reply: a server, or a node's last words."""
        if reply.body and reply.status is Outcome.OK:
            self._touch(reply.node, msgspec.json.decode(reply.body, type=Touched))
        if reply.last:
            ending = ending_of(reply)
            if ending.outcome is not Outcome.OK:
                self.endings[reply.node] = ending
            self.endings.setdefault(reply.node, ending)

    def _touch(self, node: str, one: Touched) -> None:
        self.touched += 1
        name = f"{safe(one.name)} in {node}/{safe(one.balancer)}"
        self.block.show(())
        if self._as_json:
            click.echo(json.dumps({"node": node} | msgspec.to_builtins(one)))
        elif self._order.wait and one.state != "removed":
            click.echo(f"{name}: {safe(one.state)}, its drain was taken back")
        else:
            click.echo(f"{name}: {self._order.words(one)}")
        if self._order.wait and one.state != "removed":
            self.endings[node] = Ending(Outcome.FAILED, f"the drain of {safe(one.name)} was taken back")
        sys.stdout.flush()


def _do(bus: str | None, order: Order, as_json: bool) -> int:
    return run(_give(bus, order, as_json))


async def _give(bus: str | None, order: Order, as_json: bool) -> int:
    progress, taken = Progress(), Taken(order, as_json=as_json)
    async with connect(bus, f"treescale-lb-{order.command}") as client:
        finding = await find(client, order.target, order.balancers)
        chosen = choose(finding, order.servers, order.target, each=order.each)
        body = {"servers": chosen.names, "balancers": list(order.balancers), "if_here": True} | dict(order.options)
        timeout_s = NO_LIMIT_S if order.wait else ORDER_S
        call = client.request(fold(chosen.nodes), f"lb.{order.command}", body, timeout_s=timeout_s)
        async with call, _progress(client, order, chosen, taken):
            whole = await follow(call, taken.take)
    if not whole:
        if order.command == "drain":
            click.echo(f"The drain stays in force. Take it back with: {order.again}", err=True)
        return Code.INTERRUPTED
    endings = taken.endings | {node: ending for node, ending in chosen.missed.items() if node not in taken.endings}
    if as_json:
        click.echo(json.dumps(summary(endings, progress.elapsed_s)))
    else:
        _tell(order, chosen, taken)
        for line in account(endings, progress.elapsed_s):
            click.echo(line, err=True)
    return exit_code([ending.outcome for ending in endings.values()])


def _tell(order: Order, chosen: Chosen, taken: Taken) -> None:
    for node in chosen.bare:
        holds = "; it holds for those that come" if order.command != "undrain" else ""
        click.echo(f"{node} has no servers now{holds}", err=True)
    if not taken.touched and not chosen.bare and any(how.outcome is Outcome.OK for how in taken.endings.values()):
        click.echo("these servers are not there any more", err=True)


@asynccontextmanager
async def _progress(client: "Client", order: Order, chosen: Chosen, taken: Taken) -> AsyncIterator[None]:
    """Show on a terminal who still drains, and what it waits for."""
    if not (order.wait and taken.block.is_terminal):
        yield
        return
    helper = asyncio.create_task(_look(client, chosen, order.balancers, taken))
    try:
        yield
    finally:
        helper.cancel()
        with suppress(asyncio.CancelledError, BusError, Fault):
            await helper
        taken.block.show(())


async def _look(client: "Client", chosen: Chosen, balancers: Sequence[str], taken: Taken) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        if nodes := chosen.nodes - taken.endings.keys():
            answers = await ask(client, fold(nodes), "show", Details, {"servers": chosen.names})
            taken.block.show(draining(answers.said, balancers))


def draining(said: Mapping[str, Sequence[Details]], balancers: Sequence[str]) -> list[str]:
    """Return a line for each server that still drains, in these balancers or in all."""
    return [
        f"{safe(server.name)} in {node}/{safe(one.name)}: draining for {duration(server.since_s)}"
        + (f", {words}" if (words := left(server.connections)) else "")
        for node in sorted(said, key=natural)
        for one in said[node]
        if not balancers or one.name in balancers
        for server in one.servers
        if server.state == "draining"
    ]


def _state(one: Touched) -> str:
    """Return the state of a server, and what is left of it."""
    if one.state == "removed" and one.connections:
        return f"removed, {one.connections} connections were cut"
    return ", ".join(word for word in (safe(one.state), left(one.connections)) if word)


_each_option = click.option("--each", is_flag=True, help="All servers that have the name, when several do.")


def _length(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = length(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no length of time: write 90s, 30m or 2h") from None
    if not 0 < seconds <= MAX_FOR_S:
        raise click.BadParameter(f"{text!r}: more than nothing, and at most 31d")
    return seconds


@click.command()
@target_argument
@servers_argument
@balancer_option
@click.option("--wait", "wait", is_flag=True, help="End when the servers are out of the table.")
@click.option("--for", "for_s", metavar="DURATION", callback=_length,
              help="The drain ends after this time (90s, 30m, 2h) [default: with lb undrain].")  # fmt: skip
@click.option("--once", is_flag=True, help="The drain ends with the container's run: started again, it takes part.")
@_each_option
@json_option
@bus_option
def drain(
    target: str,
    servers: tuple[str, ...],
    balancers: tuple[str, ...],
    wait: bool,
    for_s: float | None,
    once: bool,
    each: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """Give servers no new connections. Those that are open go on until they end, or drain_timeout_s has passed.

    TARGET are the nodes whose balancers are told. A drain holds until lb undrain, also over restarts of the balancer
    and of the container; that of a node holds for all that is on it. Ctrl-C while it waits leaves it in force.

    \b
    Examples:
      treescale lb drain '*' web3
      treescale lb drain '*' node7 --wait            before node7 is switched off
      treescale lb drain node1 10.0.0.9:443 -b web --for 30m
    """
    options: dict[str, Any] = {"wait": wait, "once": once} | ({"for_s": for_s} if for_s else {})
    return _do(bus, Order("drain", target, servers, balancers, options, _state, each, wait), as_json)


@click.command()
@target_argument
@servers_argument
@balancer_option
@_each_option
@json_option
@bus_option
def undrain(
    target: str, servers: tuple[str, ...], balancers: tuple[str, ...], each: bool, as_json: bool, bus: str | None
) -> int:
    """Take drains back: the servers get connections again, as soon as they are ready.

    \b
    Examples:
      treescale lb undrain '*' web3
      treescale lb undrain '*' node7
    """
    return _do(bus, Order("undrain", target, servers, balancers, {}, _state, each), as_json)


def _weight(ctx: click.Context, param: click.Parameter, text: str) -> int | None:
    if text == "default":
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise click.BadParameter(f"{text!r}: the weight comes last, a number from 0 to 65535, or default")
    return int(text)


@click.command()
@target_argument
@servers_argument
@click.argument("weight", callback=_weight)
@balancer_option
@_each_option
@json_option
@bus_option
def weight(
    target: str,
    servers: tuple[str, ...],
    weight: int | None,
    balancers: tuple[str, ...],
    each: bool,
    as_json: bool,
    bus: str | None,
) -> int:
    """Set the weight of servers: 0 (no new connections) to 65535, or "default" for what is configured.

    The schedulers rr, lc and dh know no weights but 0. It holds until it is set to default.

    \b
    Examples:
      treescale lb weight '*' web3 10
      treescale lb weight node1 web1 web2 default
    """
    given = "as configured" if weight is None else str(weight)

    def words(one: Touched) -> str:
        return f"weight {given} ({_state(one)})"

    return _do(bus, Order("weight", target, servers, balancers, {"weight": weight}, words, each), as_json)
