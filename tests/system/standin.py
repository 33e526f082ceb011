"""A stand-in for the container monitor: answers as docs/containers.md says, from records in memory, without an engine.

It lets the command lines be tried on many nodes at once, and with what an engine seldom does. Run as a program it
serves every node of a folder of sockets: `python standin.py BUS...`.
"""

import asyncio
import contextlib
import hashlib
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from tsbus import CommandError, RefusedError, Request, Worker, connect
from tsbus.core.accounting import Outcome
from tsbus.core.body import to_body
from tsbus.records import (
    Container,
    ContainerEvent,
    EngineFacts,
    Image,
    Pressure,
    Sample,
    SnapshotHead,
    StatsEvent,
)

START_NS = 1_700_000_000 * 10**9


def container(name: str, node: str, **more: Any) -> Container:
    """Return a container that runs, with an id made of its names."""
    given = more.pop("image", "nginx:1.27")
    facts: dict[str, Any] = {
        "id": hashlib.sha256(f"{node}/{name}".encode()).hexdigest(),
        "name": name,
        "image": Image(given=given, repo=given.partition(":")[0], tag=given.partition(":")[2] or "latest"),
        "state": "running",
        "created_ns": START_NS,
        "started_ns": time.time_ns() - 180 * 10**9,
    }
    return Container(**facts | more)


class StandIn:
    """The three workers of one node."""

    def __init__(self, node: str, containers: list[Container]) -> None:
        self.node = node
        self.containers = {one.id: one for one in containers}
        self.engine = EngineFacts(node=node, up=True, name="Docker", version="27.5.1", api="1.47", cpus=4,
                                  memory=8 << 30, cgroup="v2/systemd", os="Debian", since_ns=START_NS)  # fmt: skip
        self.seq = 0
        self.logs: dict[str, list[tuple[bool, bytes]]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.changed = asyncio.Event()
        self.worker = Worker("containers")
        self.workers = [self.worker, Worker("images"), Worker("docker")]
        for name in ("snapshot", "find", "sample"):
            self.worker.command(name, role="observe")(getattr(self, name))
        for name in ("run", "create", "rename", "inspect", "top", "exec", "resize", "wait"):
            self.worker.command(name)(getattr(self, name))
        self.worker.command("logs")(self.read_logs)
        for verb, change in {
            "start": {"state": "running"},
            "stop": {"state": "exited", "exit_code": 0},
            "restart": {"state": "running"},
            "pause": {"state": "paused"},
            "unpause": {"state": "running"},
            "kill": {"state": "exited", "exit_code": 137},
            "rm": {"state": None},
        }.items():
            self.worker.command(verb)(self._verb(verb, change))
        images, docker = self.workers[1:]
        for name in ("images_ls", "images_pull", "images_tag", "images_rm", "images_prune"):
            images.command(name.removeprefix("images_"))(getattr(self, name))
        docker.command("info", role="observe")(self.info)
        docker.command("df", role="observe")(self.df)

    def _note(self, call: Request) -> Any:
        body = call.json() or {}
        self.asked.append((call.command, body))
        return body

    def _match(self, given: str) -> list[Container]:
        every = self.containers.values()
        exact = [one for one in every if one.name == given] or [one for one in every if one.id == given]
        return exact or [one for one in every if one.id.startswith(given)]

    def _named(self, body: Any) -> list[Container]:
        found = []
        for given in body.get("containers") or [body["container"]]:
            matches = self._match(given)
            if not matches and not body.get("if_here"):
                raise CommandError(f"no container {given!r} here")
            if len(matches) > 1:
                raise CommandError(f"{given!r} fits {', '.join(one.name for one in matches)}")
            found += matches
        return found

    async def change(self, one: Container, action: str, **changes: Any) -> Container:
        """Change a container as the engine would, and tell everybody."""
        changed = msgspec.structs.replace(one, **changes)
        self.containers[one.id] = changed
        if action == "destroyed":
            del self.containers[one.id]
        self.seq += 1
        event = ContainerEvent(
            node=self.node, epoch=1, seq=self.seq, action=action, time_ns=time.time_ns(), container=changed
        )
        await self.worker.publish(f"container.{action}", msgspec.to_builtins(event))
        return changed

    # containers

    async def snapshot(self, call: Request) -> Any:
        self._note(call)
        head = SnapshotHead(node=self.node, epoch=1, seq=self.seq, engine=self.engine, count=len(self.containers))
        await call.send(msgspec.to_builtins(head))
        return msgspec.to_builtins(list(self.containers.values()))

    def find(self, call: Request) -> Any:
        found, missing = [], []
        for given in self._note(call)["containers"]:
            matches = self._match(given)
            found += [
                {"given": given, "id": one.id, "name": one.name, "state": one.state, "image": one.image.given}
                for one in matches
            ]
            if not matches:
                near = [one.name for one in self.containers.values() if one.name[:2] == given[:2]]
                missing.append({"given": given, "hint": near[0] if near else ""})
        return {"found": found, "missing": missing}

    def stats(self, full: bool) -> StatsEvent:
        """Return figures of all containers that run."""
        sample = Sample(cpu=12.5, memory=64 << 20, memory_limit=256 << 20, net_rx=1 << 20, net_tx=2 << 20, pids=3,
                        throttled_ms=1500, pressure=Pressure(cpu=1.0))  # fmt: skip
        running = (one for one in self.containers.values() if one.state == "running")
        samples = {one.id[:12]: sample for one in running}
        return StatsEvent(node=self.node, time_ms=1, full=full, samples=samples, cost=0.2)

    def sample(self, call: Request) -> Any:
        return msgspec.to_builtins(self.stats(full=True))

    def _verb(self, verb: str, change: dict[str, Any]) -> Any:
        async def act(call: Request) -> None:
            body = self._note(call)
            bad = []
            for one in self._named(body):
                if one.labels.get("fails") == verb:
                    bad.append(f"{one.name}: the engine says no")
                    await call.send({"id": one.id, "name": one.name, "ok": False, "error": "the engine says no"})
                    continue
                action = {"rm": "destroyed", "stop": "died", "kill": "died"}.get(verb, "started")
                state = change["state"]
                await self.change(one, action, **change if state else {})
                await call.send({"id": one.id, "name": one.name, "ok": True, "error": "", "state": state or ""})
            if bad:
                raise CommandError("; ".join(bad))

        return act

    async def rename(self, call: Request) -> Any:
        body = self._note(call)
        (one,) = self._named(body)
        await self.change(one, "renamed", name=body["name"])
        return {"id": one.id, "name": body["name"], "ok": True, "error": "", "state": one.state}

    async def wait(self, call: Request) -> None:
        for one in self._named(self._note(call)):
            while self.containers[one.id].state == "running":
                await asyncio.sleep(0.01)
            await call.send({"id": one.id, "name": one.name, "ok": True, "state": "exited", "exit_code": 3})

    async def create(self, call: Request) -> None:
        await self.run(call)

    async def run(self, call: Request) -> None:
        body = self._note(call)
        if body.get("privileged"):
            raise RefusedError("privileged containers are not allowed here: docker.privileged")
        await call.send({"layers": 2, "done": 1, "current": 5 << 20, "total": 10 << 20, "status": "Downloading"})
        if body.get("attach"):
            await call.send(b"hello\n")
            await call.send(b"oops\n", second=True)
            call.end(Outcome.FAILED, *to_body({"exit": 7}))
            return
        names = body["names"].get(self.node, []) if "names" in body else [f"fancy_{self.node}"]
        for name in names:
            one = await self.change(container(name, self.node, image=body["image"]), "started")
            await call.send({"id": one.id, "name": name, "ok": True, "state": "running"})

    async def inspect(self, call: Request) -> Any:
        for one in self._named(self._note(call)):
            yield {"Id": one.id, "Name": f"/{one.name}", "State": {"Status": one.state}}

    async def top(self, call: Request) -> Any:
        for one in self._named(self._note(call)):
            yield {"id": one.id, "name": one.name, "titles": ["PID", "CMD"], "processes": [["17", "nginx: \x1b[31mx"]]}

    async def logs_of(self, call: Request, one: Container, prefix: bytes) -> None:
        for second, line in self.logs.get(one.name, []):
            await call.send(prefix + line, second=second)

    async def read_logs(self, call: Request) -> None:
        body = self._note(call)
        found = self._named(body)
        for one in found:
            await self.logs_of(call, one, f"{one.name} | ".encode() if len(found) > 1 else b"")
        if body.get("follow"):
            await asyncio.Event().wait()

    async def exec(self, call: Request) -> None:
        body = self._note(call)
        (one,) = self._named(body)
        if body.get("tty"):
            await call.send({"exec": "ab" * 8}, second=True)
        if body.get("stdin"):
            async for chunk in call.input:
                await call.send(chunk.upper())
                if b"exit" in chunk:
                    break
        else:
            await call.send(f"{one.name}: {' '.join(body['argv'])}\n".encode())
        code = int(body["argv"][1]) if body["argv"][0] == "exit" else 0
        call.end(Outcome.FAILED if code else Outcome.OK, *to_body({"exit": code}))

    def resize(self, call: Request) -> None:
        self._note(call)

    # images and docker

    def images_ls(self, call: Request) -> Any:
        return {"images": [
            {"id": "sha256:" + "ab" * 32, "names": ["nginx:1.27", "nginx:latest"], "digests": [],
             "created_ns": START_NS, "size": 190 << 20, "containers": len(self.containers)},
            {"id": "sha256:" + hashlib.sha256(self.node.encode()).hexdigest(), "names": [], "digests": [],
             "created_ns": START_NS, "size": 1 << 20, "containers": 0},
        ]}  # fmt: skip

    async def images_pull(self, call: Request) -> Any:
        body = self._note(call)
        for done in range(5):
            await call.send(
                {"layers": 4, "done": done, "current": done * 10 << 20, "total": 40 << 20, "status": "Downloading"}
            )
            await asyncio.sleep(0.02)
        return {"id": "sha256:" + "ab" * 32, "name": body["image"], "status": "Downloaded newer image"}

    def images_tag(self, call: Request) -> None:
        self._note(call)

    async def images_rm(self, call: Request) -> Any:
        for name in self._note(call)["images"]:
            yield {"removed": ["sha256:" + "ab" * 32], "untagged": [name]}

    def images_prune(self, call: Request) -> Any:
        self._note(call)
        return {"removed": ["sha256:" + "ab" * 32], "freed_bytes": 3 << 20}

    def info(self, call: Request) -> Any:
        counts = {
            "containers": len(self.containers),
            "running": sum(c.state == "running" for c in self.containers.values()),
        }
        return {"engine": msgspec.to_builtins(self.engine), **counts, "images": 2, "driver": "overlay2", "warnings": []}

    def df(self, call: Request) -> Any:
        one = {"count": 2, "active": 1, "bytes": 100 << 20, "reclaimable": 25 << 20}
        return {"images": one, "containers": one, "volumes": one, "cache": one}


async def main(buses: list[str], each: int) -> None:
    """Serve the nodes of some routers with `each` containers, with figures once a second."""
    async with contextlib.AsyncExitStack() as stack:
        tasks, places = [], []
        for bus in buses:
            client = await stack.enter_async_context(connect(bus, name="containers"))
            names = ("web", "db", "cache", "job", "api")
            made = [container(f"{names[i % 5]}{i}", client.node) for i in range(each)]
            places.append(place := StandIn(client.node, made))
            for worker in place.workers:
                own = (
                    client
                    if worker is place.worker
                    else await stack.enter_async_context(connect(bus, name=worker.name))
                )
                tasks.append(asyncio.create_task(worker.serve(own)))
        for _ in itertools.count():
            await asyncio.sleep(1)
            for place in places:
                body = msgspec.to_builtins(place.stats(full=False))
                await place.worker.publish(f"containers.stats.{place.node}", body)


if __name__ == "__main__":
    asyncio.run(main([str(path) for path in Path(sys.argv[1]).glob("*/bus")], int(sys.argv[2])))
