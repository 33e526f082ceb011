"""The container service: three workers of one process, `containers`, `images` and `docker`, on one client of the bus.

It only joins what others do: watch.py follows the engine, asking.py, acting.py and output.py serve the commands,
measuring.py the statistics. Made of the public API only. services/ts_docker.py starts it; docs/containers.md is for
users.
"""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tsbus import Client, Request, Worker
from tsbus.audit import AuditLog
from tsbus.config import DockerPolicy, Tree
from tsbus.containers.acting import Acting
from tsbus.containers.asking import Asking
from tsbus.containers.desk import Desk
from tsbus.containers.engine import Engine, TlsFiles
from tsbus.containers.measuring import Measuring
from tsbus.containers.output import Writings
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
        measuring = Measuring(client, watch)
        self.workers = make_workers(desk, measuring)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(watch.run())
                group.create_task(measuring.run())
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


def make_workers(desk: Desk, measuring: Measuring) -> tuple[Worker, ...]:
    """Return the three workers, with every command and the role that it takes."""
    writings = Writings(desk)
    asking, acting = Asking(desk), Acting(desk, writings)
    containers, images, docker = Worker("containers"), Worker("images"), Worker("docker")

    def stats(_: Request) -> dict[str, Any]:
        calls = {**containers.stats(), **desk.counters, "streams": desk.streams}
        return {**desk.watch.stats(), "calls": calls, "statistics": asdict(measuring.counts())}

    for worker, role, commands in (
        (containers, "observe", {"snapshot": asking.snapshot, "find": asking.find, "wait": asking.wait,
                                 "sample": measuring.sample, "stats": stats}),
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
    containers.stop(writings.stop)
    return containers, images, docker
