"""The container service: three workers of one process, `containers`, `images` and `docker`, on one client of the bus.

It only joins what others do: watch.py follows the engine, verbs.py and output.py serve the commands, stats.py measures
while somebody listens. Made of the public API only. services/ts_docker.py starts it; docs/containers.md is for users.
"""

import asyncio
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tsbus import BufferFull, Client, Request, Worker
from tsbus.audit import AuditLog
from tsbus.config import DockerPolicy, Tree
from tsbus.containers.desk import Desk
from tsbus.containers.engine import Engine, TlsFiles
from tsbus.containers.output import Writings
from tsbus.containers.stats import Statistics
from tsbus.containers.verbs import Acting, Asking
from tsbus.containers.watch import Watch

AUDIT_NAME: Final = "docker-audit.log"


class Service:
    """The container service of `tree.current_node`."""

    def __init__(self, tree: Tree, audit_dir: Path) -> None:
        """`audit_dir` is where the audit log goes unless the configuration names a file. Raises EngineError."""
        self._policy = tree.docker_for(tree.current_node)
        self._audit = AuditLog(Path(self._policy.audit_file or audit_dir / AUDIT_NAME))
        self._engine = engine_of(self._policy)
        self._ready = asyncio.Event()
        self.watch: Watch | None = None
        self.workers: tuple[Worker, ...] = ()

    async def serve(self, client: Client) -> None:
        """Work with `client` until cancelled. Switched off, it serves nothing: this node is one without a monitor."""
        if not self._policy.enabled:
            self._ready.set()
            await asyncio.Event().wait()
        watch = self.watch = Watch(self._engine, client)
        desk = Desk(self._policy, self._audit, watch)
        statistics = Statistics(client.node)
        self.workers = make_workers(desk, statistics)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(watch.run())
                group.create_task(measure(client, watch, statistics))
                for worker in self.workers:
                    group.create_task(worker.serve(client))
                for worker in self.workers:
                    await worker.wait_ready()
                self._ready.set()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            desk.close()

    async def wait_ready(self) -> None:
        """Wait until the router knows all commands."""
        await self._ready.wait()


def engine_of(policy: DockerPolicy) -> Engine:
    """Return the engine that the configuration names. Raises EngineError."""
    tls = TlsFiles(policy.tls_ca, policy.tls_cert, policy.tls_key) if policy.tls_ca or policy.tls_cert else None
    return Engine(policy.host, tls, only=policy.only)


def make_workers(desk: Desk, statistics: Statistics) -> tuple[Worker, ...]:
    """Return the three workers, with every command and the role that it takes."""
    writings = Writings(desk)
    asking, acting = Asking(desk), Acting(desk, writings)
    containers, images, docker = Worker("containers"), Worker("images"), Worker("docker")

    async def sample(_: Request) -> Any:
        events = await statistics.sample_now(running(desk.watch))
        return events[0]

    def stats(_: Request) -> dict[str, Any]:
        calls = {**containers.stats(), **desk.counters, "streams": desk.streams}
        return {**desk.watch.stats(), "calls": calls, "statistics": asdict(statistics.counts())}

    for worker, role, commands in (
        (containers, "observe", {"snapshot": asking.snapshot, "find": asking.find, "wait": asking.wait,
                                 "sample": sample, "stats": stats}),
        (containers, "operate", {"create": acting.create, "run": acting.run, "start": acting.start,
                                 "stop": acting.stop, "restart": acting.restart, "pause": acting.pause,
                                 "unpause": acting.unpause, "kill": acting.kill, "rm": acting.rm,
                                 "rename": acting.rename, "inspect": asking.inspect, "top": asking.top,
                                 "logs": writings.logs, "exec": writings.exec, "resize": writings.resize}),
        (images, "observe", {"ls": asking.images}),
        (images, "operate", {"pull": acting.pull, "tag": acting.tag}),
        (images, "admin", {"rm": acting.rm_images, "prune": acting.prune}),
        (docker, "observe", {"info": asking.info, "df": asking.df}),
    ):  # fmt: skip
        for name, handler in commands.items():
            worker.command(name, role=role)(handler)
    return containers, images, docker


def running(watch: Watch) -> dict[str, int]:
    """Return the containers that have processes, with the first of these."""
    return {id_: one.pid for id_, one in watch.records.items() if one.pid and one.state in ("running", "paused")}


async def measure(client: Client, watch: Watch, statistics: Statistics) -> None:
    """Publish the counters of the running containers once a second, while somebody wants them."""
    topic = f"containers.stats.{client.node}"
    async with client.interest(topic) as interest:
        wanted: bool | None = interest.wanted
        while wanted is not None:
            if wanted:
                rounds = asyncio.create_task(_rounds(client, topic, watch, statistics))
                try:
                    wanted = await anext(interest, None)
                finally:
                    rounds.cancel()
            else:
                wanted = await anext(interest, None)


async def _rounds(client: Client, topic: str, watch: Watch, statistics: Statistics) -> None:
    statistics.begin()
    try:
        while True:
            await asyncio.sleep(statistics.wait_s())
            for event in statistics.round(running(watch)):
                # Readers of old figures want the new ones, not those that waited.
                with suppress(BufferFull):
                    client.publish_nowait(topic, event)
    finally:
        statistics.end()
