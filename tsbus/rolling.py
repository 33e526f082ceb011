"""Rolling: containers that are restarted or replaced one after the other, without an error for balancers' clients.

docs/balancer.md says under "Rolling" what this is held to. Each step leaves either the old container in place or the
new one, whatever fails and whenever its caller gives up; draining.py takes them out of the balancers.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from tsbus.calls import Call
from tsbus.client import Client
from tsbus.core.accounting import Outcome
from tsbus.draining import Balancers, Box, NotActive, NotDrained, Seat
from tsbus.errors import BusError, CallFailed
from tsbus.records import Done, PullProgress

WAIT_S: Final = 60.0
"""So long a container may take to be active in its balancers again."""
ACT_S: Final = 600.0
"""Patience with what an engine does; a container may take its time to stop."""
ASK_S: Final = 10.0
ASIDE: Final = "-replaced"
"""Behind the name of a container that is being replaced."""
_ALIVE: Final = ("running", "paused", "restarting")
_EVERYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104  (words, nothing is bound)

T = TypeVar("T")
Told = Callable[[str], object]
"""Is called with what a step does at the moment, in words."""


class NotReplaced(BusError):
    """A container could not be replaced; the text says why, and what there is now."""


async def one_after_the_other(
    items: Iterable[T], step: Callable[[T], Awaitable[bool]], *, parallel: int = 1
) -> Sequence[T]:
    """Do `step` for each item, `parallel` at the same time, and return those that were not begun.

    None is begun after a step that returned False. Cancelled, those under way are cancelled and waited for.
    """
    waiting = deque(items)
    stopped = False

    async def work() -> None:
        nonlocal stopped
        while waiting and not stopped:
            if not await step(waiting.popleft()):
                stopped = True

    async with asyncio.TaskGroup() as group:
        for _ in range(min(parallel, len(waiting))):
            group.create_task(work())
    return waiting


async def restart(
    balancers: Balancers, box: Box, options: Mapping[str, Any], told: Told, *, wait_s: float = WAIT_S
) -> Done:
    """Drain a container, restart it, and wait until it is active in every balancer in which it was before.

    `options` are those of `containers.restart`. Raises NotDrained, NotActive, CallFailed, and as `Client.call` does.
    """
    told("draining")
    before = active(await balancers.seats([box]))
    async with balancers.drain([box], told=lambda seats: told(draining_words(seats))):
        told("restarting")
        done = await _act(balancers.client, box, "restart", options)
    told("waiting until it is active")
    await balancers.wait_active(box, before, wait_s)
    return done


def active(seats: Iterable[Seat]) -> list[Seat]:
    """Return the seats that get connections."""
    return [seat for seat in seats if seat.state == "active"]


def draining_words(seats: Sequence[Seat]) -> str:
    """Tell of seats that drain: `draining, connections left: 3 in web on node1`."""
    left = ", ".join(f"{seat.connections} in {seat.balancer} on {seat.node}" for seat in seats if seat.connections)
    return f"draining, connections left: {left}" if left else "draining"


# Replacing ------------------------------------------------------------------------------------------------------------


class Replacement:
    """A new container in the place of the one with its name on a node, or just a new one where there is none."""

    def __init__(
        self,
        balancers: Balancers,
        node: str,
        name: str,
        order: Mapping[str, Any],
        patience_s: float = ACT_S,
    ) -> None:
        """`order` is that of `containers.create`, without names; `patience_s` is for fetching its image."""
        self._balancers, self._client = balancers, balancers.client
        self._node, self._name, self._aside = node, name, name + ASIDE
        self._order, self._patience_s = {**order, "names": {node: [name]}}, patience_s
        self._told: Told = lambda _: None
        self._old: Box | None = None
        self._new: Box | None = None
        self._runs = self._making = self._stopped = False

    async def look(self) -> None:
        """Find the old container, and see that it could be drained. Nothing is changed.

        Raises NotDrained, and NotReplaced where one was left by a replacement that was cut short.
        """
        found = await self._client.call_one(
            self._node, "containers.find", {"containers": [self._name, self._aside]}, timeout_s=ASK_S
        )
        by_name = {row["name"]: row for row in found["found"] if row["name"] == row["given"]}
        if self._aside in by_name:
            raise NotReplaced(self._left_over(both=self._name in by_name))
        if row := by_name.get(self._name):
            self._old, self._runs = Box(self._node, row["id"], self._name), row["state"] in _ALIVE
            await self._balancers.check([self._old])

    async def run(self, told: Told, *, wait_s: float = WAIT_S) -> Done:
        """Replace it, after `look`. Whatever fails, or is cancelled, before the new one serves is undone.

        Raises NotReplaced.
        """
        self._told = told
        try:
            done = await self._put_in_place(wait_s)
        except (BusError, asyncio.CancelledError) as error:
            left = await self._put_back()
            restored = "the old one serves as before" if self._old else "nothing is left of it"
            if isinstance(error, asyncio.CancelledError) and not left:
                told(restored)
                raise
            raise NotReplaced(f"{reason(error)}; {left or restored}") from error
        if self._old is not None:
            await self._take_away(self._old)
        return done

    async def _put_in_place(self, wait_s: float) -> Done:
        """Let the new one serve beside the old one, or where they cannot both run, after it."""
        old, before = self._old, list[Seat]()
        if old is not None:
            before = active(await self._balancers.seats([old]))
            self._told("making the new one")
            await self._rename(old, self._aside)
        new = await self._create()
        if old is not None and self._runs and await self._in_the_way(old, new):
            await self._stop(old)
        self._told("starting")
        done = await _act(self._client, new, "start", {})
        if done.state not in _ALIVE:
            raise NotActive(f"the new one ended at once ({done.state})")
        if before:
            self._told("waiting until it is active")
            await self._wait_active(new, before, wait_s)
        return done

    async def _create(self) -> Box:
        self._making = True
        try:
            create = self._client.request(self._node, "containers.create", self._order, timeout_s=self._patience_s)
            async with create as call:
                done = await _done(call, self._told)
        except CallFailed:
            self._making = False
            raise
        self._new = Box(self._node, done.id, self._name)
        return self._new

    async def _in_the_way(self, old: Box, new: Box) -> bool:
        """Tell whether the old one must be stopped first. Raises NotReplaced where it could not be started again."""
        there, wanted = await self._inspect(old.id, new.id)
        needed = in_the_way(there, wanted)
        if needed and there["HostConfig"].get("AutoRemove"):
            raise NotReplaced("the old one has its port and was made with --rm, so it could not be started again")
        return needed

    async def _wait_active(self, new: Box, before: Sequence[Seat], wait_s: float) -> None:
        """Wait until the new one is active where the old one was. Raises NotActive, at once when it has ended."""
        died = asyncio.create_task(self._died(new, wait_s))
        ready = asyncio.create_task(self._balancers.wait_active(new, before, wait_s))
        try:
            await asyncio.wait({died, ready}, return_when=asyncio.FIRST_COMPLETED)
            if died.done() and not ready.done():
                raise NotActive(died.result())
            await ready
        finally:
            for task in (died, ready):
                task.cancel()
            await asyncio.gather(died, ready, return_exceptions=True)

    async def _died(self, new: Box, wait_s: float) -> str:
        """Wait for the end of the new one, and tell of it."""
        with suppress(CallFailed):
            body = {"containers": [new.id], "for": "died"}
            done = await self._client.call_one(self._node, "containers.wait", body, timeout_s=wait_s)
            return f"the new one ended with exit code {done.get('exit_code', '?')}"
        never: asyncio.Future[str] = asyncio.Future()
        return await never  # whoever waits for the balancers has better words

    async def _stop(self, old: Box) -> None:
        async with self._balancers.drain([old], told=lambda seats: self._told(draining_words(seats))):
            self._told("stopping the old one")
            self._stopped = True
            await _act(self._client, old, "stop", {})

    async def _take_away(self, old: Box) -> None:
        """End the old one, now that the new one serves. Raises NotReplaced when it could not be."""
        try:
            if not self._stopped and self._runs:
                self._told("draining the old one")
                await self._stop(old)
            await _act(self._client, old, "rm", {"if_here": True})
        except (BusError, asyncio.CancelledError) as error:
            raise NotReplaced(
                f"the new one serves, but the old one is still there as {self._aside}: {reason(error)}; remove it: "
                f"treescale container rm {self._node} {self._aside} --force --drain"
            ) from error

    # Undoing.

    async def _put_back(self) -> str:
        """Let everything be as it was before; return what is to be done by hand where that failed.

        What was under way when it was interrupted may have been done or not, so this looks what there is.
        """
        old = self._old
        try:
            if self._making:
                await self._remove_new()
            if old is not None:
                if (await self._inspect(old.id))[0]["Name"] != f"/{self._name}":
                    await self._rename(old, self._name)
                if self._stopped:
                    await _act(self._client, old, "stop", {})  # perhaps it was just stopping
                    await _act(self._client, old, "start", {})
        except BusError as error:
            by_hand = f"treescale container rename {self._node} {self._aside} {self._name}" if old else "remove it"
            return f"nor could it be put back ({reason(error)}): see what is there as {self._name}, then {by_hand}"
        return ""

    async def _remove_new(self) -> None:
        if (new := self._new or await self._find_new()) is None:
            return
        with suppress(NotDrained):
            async with self._balancers.drain([new]):
                pass
        await _act(self._client, new, "rm", {"force": True, "volumes": True, "if_here": True})

    async def _find_new(self) -> Box | None:
        """Return what was made when we were interrupted, before its id was told."""
        body = {"containers": [self._name]}
        rows = (await self._client.call_one(self._node, "containers.find", body, timeout_s=ASK_S))["found"]
        old = self._old.id if self._old else ""
        found = (row["id"] for row in rows if row["name"] == self._name and row["id"] != old)
        return next((Box(self._node, id_, self._name) for id_ in found), None)

    async def _rename(self, box: Box, name: str) -> None:
        body = {"container": box.id, "name": name}
        await self._client.call_one(self._node, "containers.rename", body, timeout_s=ASK_S)

    async def _inspect(self, *ids: str) -> list[Any]:
        """Return what the engine knows of containers. Raises CallFailed when one is not there."""
        body = {"containers": ids}
        async with self._client.request(self._node, "containers.inspect", body, timeout_s=ASK_S) as call:
            told = [reply.json() async for reply in call if reply.status is Outcome.OK and reply.body]
            (await call.result()).raise_for_status()
        return told

    def _left_over(self, *, both: bool) -> str:
        node, name, aside = self._node, self._name, self._aside
        back = f"treescale container rename {node} {aside} {name}"
        if both:
            back = f"treescale container rm {node} {name} --force --drain, then {back}"
        remove = f"to keep {name}: treescale container rm {node} {aside} --force --drain; " if both else ""
        return f"{aside} is there, since a replacement of {name} was cut short; {remove}to go back: {back}"


def in_the_way(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether a container that runs has what another one needs, by the engine's words about both. Pure.

    That is a fixed port of the host, or the network of the host or of another container, where ports cannot be known.
    """
    modes = [each["HostConfig"].get("NetworkMode", "") for each in (old, new)]
    if modes[0] == modes[1] and (modes[0] == "host" or modes[0].startswith("container:")):
        return True
    taken = [
        (port.partition("/")[2], place["HostPort"], place.get("HostIp", ""))
        for port, places in (old.get("NetworkSettings", {}).get("Ports") or {}).items()
        for place in places or ()
    ]
    wanted = [
        (port.partition("/")[2], place.get("HostPort", ""), place.get("HostIp", ""))
        for port, places in (new["HostConfig"].get("PortBindings") or {}).items()
        for place in places or ()
    ]
    return any(
        one[:2] == two[:2] and (one[2] == two[2] or one[2] in _EVERYWHERE or two[2] in _EVERYWHERE)
        for one in taken
        for two in wanted
    )


def reason(error: BaseException) -> str:
    """Return the words of what went wrong: of a call, those of the one node that did not do it."""
    if isinstance(error, CallFailed):
        return "; ".join(text for text in error.result.errors.values() if text) or error.result.explain()
    return str(error) or "interrupted"


async def _act(client: Client, box: Box, verb: str, options: Mapping[str, Any]) -> Done:
    """Have the monitor of a container do something to it. Raises CallFailed, and as `Client.call` does."""
    body = {"containers": [box.id], **options}
    async with client.request(box.node, f"containers.{verb}", body, timeout_s=ACT_S) as call:
        return await _done(call)


async def _done(call: Call, told: Told | None = None) -> Done:
    """Follow a call for one container to its end; `told` is called while its image is fetched. Raises CallFailed."""
    done = Done()
    async for reply in call:
        if reply.body and reply.status is Outcome.OK:
            said = reply.value()
            if "layers" not in said:
                done = msgspec.convert(said, Done)
            elif told:
                told(f"fetching the image, {msgspec.convert(said, PullProgress).share * 100:.0f} %")
    result = await call.result()
    result.raise_for_status()
    return done
