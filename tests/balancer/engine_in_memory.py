"""A node's container service over containers in memory, which refuses to end one that may still get connections."""

import asyncio
import itertools
from typing import Any

from model_kernel import box
from site_of_balancer import Monitor, Site, replace_struct

from tsbus import CommandError, Request
from tsbus.records import Container

_starts = itertools.count(5 * 10**9)


class Engine(Monitor):
    """The monitor of a node, with an engine behind it. `ended` are the containers that were stopped, in order."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.site: Site | None = None
        """With it, each container that is stopped must be drained."""
        self.fails: dict[str, str] = {}
        """Verb -> what the engine says instead of doing it."""
        self.holds: dict[str, asyncio.Event] = {}
        """Verb -> it is done when this is set."""
        self.at_start: dict[str, Any] = {}
        """How the next container is after its start, where it is otherwise than running."""
        self.bindings: dict[str, dict[str, Any]] = {}
        """Name -> ports of the host that one of this name has, by the engine's words."""
        self.ended: list[str] = []
        self.asked: list[str] = []
        self._changed = asyncio.Condition()
        self._made = itertools.count(100)
        for verb in ("find", "inspect", "wait"):
            self.command(verb, role="observe")(getattr(self, verb))
        for verb in ("stop", "restart", "start", "rm", "kill", "rename", "create"):
            self.command(verb)(self._act(verb))

    def named(self, name: str) -> Container | None:
        return next((one for one in self.boxes.values() if one.name == name), None)

    def _meant(self, body: Any) -> list[Container]:
        names = body.get("containers") or [body["container"]]
        found = [one for name in names for one in self.boxes.values() if name in (one.id, one.name)]
        if not found and not body.get("if_here"):
            raise CommandError("no such container")
        return found

    def find(self, call: Request) -> Any:
        names = call.json()["containers"]
        rows = [(name, one) for name in names for one in self._meant({"containers": [name], "if_here": True})]
        return {"found": [{"given": given, "id": one.id, "name": one.name, "state": one.state} for given, one in rows]}

    async def inspect(self, call: Request) -> Any:
        for one in self._meant(call.json()):
            ports = (
                {"80/tcp": [{"HostIp": "", "HostPort": self.bindings[one.name]}]} if one.name in self.bindings else {}
            )
            host = {"NetworkMode": "default", "PortBindings": ports}
            running = ports if one.state == "running" else {}
            yield {"Id": one.id, "Name": f"/{one.name}", "HostConfig": host, "NetworkSettings": {"Ports": running}}

    async def wait(self, call: Request) -> Any:
        (one,) = self._meant(call.json())
        async with self._changed:
            await self._changed.wait_for(lambda: self.boxes[one.id].state == "exited")
        return {"id": one.id, "name": one.name, "state": "exited", "exit_code": self.boxes[one.id].exit_code}

    def _act(self, verb: str) -> Any:
        async def act(call: Request) -> Any:
            self.asked.append(verb)
            if verb in self.holds:
                await self.holds[verb].wait()
            if verb in self.fails:
                raise CommandError(self.fails[verb])
            for each in [await getattr(self, f"_{verb}")(one, call.json()) for one in self._meant(call.json())]:
                await call.send(each)

        return self.make if verb == "create" else act

    async def make(self, call: Request) -> Any:
        self.asked.append("create")
        if "create" in self.fails:
            raise CommandError(self.fails["create"])
        (name,) = call.json()["names"][call.node]
        one = box(f"new{next(self._made)}", f"172.17.0.{next(self._made)}", image=call.json()["image"])
        one = replace_struct(one, name=name, state="created", endpoints=(), networks={}, started_ns=0)
        await self._becomes(one, "created")
        return {"id": one.id, "name": name, "state": "created"}

    async def _becomes(self, one: Container, action: str) -> Any:
        await self.has(one, action)
        async with self._changed:
            self._changed.notify_all()
        return {"id": one.id, "name": one.name, "state": "removed" if action == "destroyed" else one.state}

    async def _end(self, one: Container) -> Container:
        if self.site is not None and one.state == "running":
            for address in one.networks.values():
                table = self.site.machine.kernel.servers()
                assert not table.get(f"{address}:80"), f"{one.name} gets connections still: {table}"
        self.ended.append(one.name)
        return replace_struct(one, state="exited", endpoints=(), networks={}, exit_code=0)

    async def _stop(self, one: Container, _: Any) -> Any:
        return await self._becomes(await self._end(one), "died")

    async def _start(self, one: Container, _: Any) -> Any:
        ip = f"172.17.0.{next(self._made)}"
        fresh = box(one.name, ip, image=one.image.given)
        facts: dict[str, Any] = {"state": "running", "endpoints": fresh.endpoints, "networks": fresh.networks}
        facts |= {"started_ns": next(_starts), "exit_code": None} | self.at_start
        return await self._becomes(replace_struct(one, **facts), "started")

    async def _restart(self, one: Container, _: Any) -> Any:
        await self._stop(one, _)
        return await self._start(self.boxes[one.id], _)

    async def _rename(self, one: Container, body: Any) -> Any:
        if self.named(body["name"]):
            raise CommandError(f"the name {body['name']} is in use")
        return await self._becomes(replace_struct(one, name=body["name"]), "renamed")

    async def _rm(self, one: Container, body: Any) -> Any:
        if one.state == "running":
            if not body.get("force"):
                raise CommandError("it runs")
            one = await self._end(one)
        return await self._becomes(one, "destroyed")
