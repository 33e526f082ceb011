"""Actions: what people change through the dashboard. Each is for a person, and refused to who may only see.

On the bus the dashboard is the caller, with its own identity and role; the person's name goes along with each call, and
both are in the audit log of the node where it is done (docs/protocol.md 10.8). All raise NotAllowed, and BusError with
the node's words.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from tsbus.calls import Call
from tsbus.client import Client
from tsbus.dashboard.door import NotAllowed
from tsbus.dashboard.users import Person
from tsbus.draining import Balancers, Box
from tsbus.lb_records import Touched
from tsbus.records import Done
from tsbus.rolling import ACT_S, ASK_S, draining_words, restart

Told = Callable[[str], object]
"""Is called with what is done at the moment, in words."""
RUN_S: Final = 600.0


def _nobody(_: str) -> None:
    """Nobody wants to know."""


class Actions:
    """What can be done through one client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def client_for(self, person: Person) -> Client:
        """Return the client as it asks for `person`. Raises NotAllowed."""
        if not person.may_operate:
            raise NotAllowed(person)
        return self._client.for_person(person.name)

    async def start(self, person: Person, node: str, container: str) -> str:
        """Start a container; returns in words how it is."""
        return _words(await self._act(self.client_for(person), node, "start", container))

    async def stop(self, person: Person, node: str, container: str, told: Told = _nobody) -> str:
        """Let no balancer send it connections any more, wait until those that are there are over, and stop it."""
        client = self.client_for(person)
        balancers = await Balancers.ask(client)
        told("draining")
        async with balancers.drain([Box(node, container)], told=lambda seats: told(draining_words(seats))):
            told("stopping")
            return _words(await self._act(client, node, "stop", container))

    async def restart(self, person: Person, node: str, container: str, told: Told = _nobody) -> str:
        """Drain it, restart it, and wait until it is active again where it was."""
        balancers = await Balancers.ask(self.client_for(person))
        return _words(await restart(balancers, Box(node, container), {}, told))

    async def drain(self, person: Person, node: str, balancer: str, server: str) -> str:
        """Give a server of a balancer of `node` no new connections until it is undrained."""
        return await self._order(person, node, "lb.drain", balancer, server)

    async def undrain(self, person: Person, node: str, balancer: str, server: str) -> str:
        """Give a server connections again."""
        return await self._order(person, node, "lb.undrain", balancer, server)

    def run(self, person: Person, target: str, argv: Sequence[str], *, timeout_s: float = RUN_S) -> Call:
        """Run a program on nodes: a call whose replies are its output. Leaving it early ends the program."""
        return self.client_for(person).request(target, "exec.run", {"argv": list(argv)}, timeout_s=timeout_s)

    async def _order(self, person: Person, node: str, command: str, balancer: str, server: str) -> str:
        body = {"servers": [server], "balancers": [balancer]}
        told = await self.client_for(person).call_one(node, command, body, timeout_s=ASK_S)
        if told is None:
            return ""
        touched = msgspec.convert(told, Touched)
        left = f", {touched.connections} connections left" if touched.connections else ""
        return f"{touched.name or touched.id} is {touched.state}{left}"

    async def _act(self, client: Client, node: str, verb: str, container: str) -> Any:
        body = {"containers": [container]}
        return await client.call_one(node, f"containers.{verb}", body, timeout_s=ACT_S)


def _words(told: object) -> str:
    done = told if isinstance(told, Done) else msgspec.convert(told or {}, Done)
    return f"{done.name or 'it'} is {done.state}" if done.state else ""
