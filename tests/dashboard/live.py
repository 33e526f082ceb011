"""Live sites for the pages: a tree of real routers with a real dashboard on its root, and what furnishes its nodes.

`Hostile` has stand-ins that say what no engine would: names that are markup, and more containers than a test could
start. real.py has the real services. Run as a program it stays up, to be looked at.
"""

import asyncio
import math
import random
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from background import Background
from standin import StandIn, container
from tree import HOST, Tree, until

from tsbus import Client, Request, Worker
from tsbus.config import Alert, Balancer, Dashboard
from tsbus.dashboard.users import Role, UsersFile
from tsbus.errors import BusError
from tsbus.records import Sample, StatsEvent

SPEC = "root:web1 db1 edge;web1:web2 web3;edge:far"
TAGS = {"web1": ("web",), "web2": ("web",), "web3": ("web", "canary"), "db1": ("db",), "far": ("edge",)}
EVIL = '<img src=x onerror="window.pwned=1">'
"""Text that would run if any of it were read as markup."""
PASSWORDS = {"alice": ("correct horse", Role.OPERATE), "victor": ("battery staple", Role.VIEW)}
PORT = 8801
START_S = 120.0
"""How long a process with many imports may take to be there, on a busy machine where others start at the same time."""
SERVICES = Path(__file__).parents[2] / "services"
SHIFTED = Path(__file__).with_name("shifted.py")
ALERTS = {
    "far-away": Alert("far-away", "node-lost", target="@edge", for_s=600, to=("https://chat.example/secret",)),
    "unwell": Alert("unwell", "container-down", filters=("health=unhealthy",)),
}
IMAGES = {
    "shop": "registry.example/shop/storefront:4.12.0", "api": "registry.example/shop/api:4.12.0", "redis": "redis:7.2",
    "queue": "rabbitmq:3.13", "search": "opensearch:2.11", "cron": "busybox:1.36",
}  # fmt: skip


class Site(Background):
    """The tree, and the dashboard of its root at `url`."""

    spec = SPEC
    people = tuple(PASSWORDS)
    """Who may sign in; with nobody the dashboard is open, to see."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"http://{HOST}:{PORT}"
        self.processes: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def configure(self, tree: Tree) -> None:
        """Change the configuration before anything runs."""

    @abstractmethod
    async def furnish(self) -> None:
        """Put on the nodes what they have besides routers."""

    async def clear(self) -> None:
        """End what `furnish` has begun, where it does not end with the tree."""

    @asynccontextmanager
    async def live(self, folder: Path) -> AsyncIterator[None]:
        self.users = UsersFile(folder / "users.json")
        for name in self.people:
            self.admit(name)
        self.tree = tree = Tree(self.spec, folder, tags=TAGS)
        self.bus = tree.bus("root")
        dashboard = Dashboard(host=HOST, port=PORT, users=str(self.users.path))
        tree.config = replace(tree.config, dashboard=dashboard, alerts=ALERTS)
        self.configure(tree)
        async with tree:
            try:
                await self.furnish()
                self._dashboard = self.run("dashboard", "root")
                await until("the dashboard listens", self._listens, START_S)
                yield
            finally:
                await self.clear()
                for process in self.processes:
                    process.kill()
                    process.wait()

    def run(self, service: str, node: str, *options: str | Path, ahead_s: int = 0) -> subprocess.Popen[bytes]:
        """Start a service of a node, whose clock may be wrong; its log is SERVICE-NODE.log."""
        config, bus = self.tree.folder / f"{node}.toml", self.tree.bus(node)
        python = (sys.executable, *((SHIFTED, str(ahead_s)) if ahead_s else ()))
        argv = [*python, SERVICES / f"ts_{service}.py", "--config", config, "--bus", bus, *options]
        with (self.tree.folder / f"{service}-{node}.log").open("ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log)
        self.processes.append(process)
        return process

    def dismiss(self, name: str) -> None:
        """Take a user away."""
        self.users.write(self.users.read().without_user(name))

    def admit(self, name: str) -> None:
        """Make a user, as at first."""
        password, role = PASSWORDS[name]
        self.users.write(self.users.read().with_user(name, role, password))

    def log(self, service: str = "dashboard", node: str = "root") -> str:
        """Return what a service has logged."""
        return (self.tree.folder / f"{service}-{node}.log").read_text()

    @staticmethod
    async def is_wanted(topic: str, publisher: Client) -> None:
        """Wait until the router of the publisher knows that somebody wants a topic."""
        async with publisher.interest(topic) as interest:
            await until(f"{topic} is wanted", lambda: interest.wanted)

    async def _listens(self) -> bool:
        assert self._dashboard.poll() is None, self.log()
        with suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, PORT)
            writer.close()
            return True
        return False


class Alone(Site):
    """A tree of one node, with nothing on it, and a dashboard that is open."""

    spec = "root"
    people = ()

    def configure(self, tree: Tree) -> None:
        pass

    async def furnish(self) -> None:
        pass


class Hostile(Site):
    """Seven nodes with stand-ins for containers, a balancer and executors."""

    def __init__(self, each: int = 6) -> None:
        """`each`: containers of each node."""
        super().__init__()
        self.each = each
        self.nodes: dict[str, StandIn] = {}

    def configure(self, tree: Tree) -> None:
        web = Balancer("web", address="10.20.0.1:443", alg="wlc", containers={"shop": 8080})
        servers = tree.config.servers | {"root": replace(tree.config.servers["root"], balancers={"web": web})}
        tree.config = replace(tree.config, servers=servers)

    async def furnish(self) -> None:
        for name in self.tree.names:
            await self._furnish(name)
        await self.tree.run(balancing(self.nodes), "root")
        self._figures = asyncio.create_task(self._publish())

    async def clear(self) -> None:
        self._figures.cancel()

    async def _furnish(self, node: str) -> None:
        """Put containers and an executor on a node."""
        names = [f"{list(IMAGES)[number % 6]}-{number // 6 + 1}" for number in range(self.each)]
        made = [
            container(name, node, image=IMAGES[name.rpartition("-")[0]], memory_limit=512 << 20,
                      restart_policy="always", health="" if number else "healthy",
                      started_ns=time.time_ns() - (number + 1) * 5_400 * 10**9)
            for number, name in enumerate(names)
        ]  # fmt: skip
        if node == "web2":
            made[1] = msgspec.structs.replace(made[1], health="unhealthy")
            made.append(container(EVIL, node, image=EVIL, labels={"note": EVIL}, command=EVIL))
        if node == "db1":
            ended = {"state": "exited", "exit_code": 137, "finished_ns": time.time_ns() - 240 * 10**9}
            made[4] = msgspec.structs.replace(made[4], **ended)
        place = self.nodes[node] = StandIn(node, made)
        for number, one in enumerate(made):
            place.logs[one.name] = [
                (line % 9 == 8, f'10.20.{number}.{line} - GET /cart/{line} 200 {line * 37 % 400} ms\n'.encode())
                for line in range(40)
            ] + [(True, f"{EVIL} in a log\n".encode())]  # fmt: skip
        await self.tree.run(place.worker, node)
        await self.tree.run(executor(), node)

    async def _publish(self) -> None:
        """Tell figures once a second, while somebody wants them."""
        totals: dict[str, list[int]] = {}
        client = await self.tree.connect("root", name="figures")
        async with client.interest("containers.stats.>") as interest:
            while True:
                for place in self.nodes.values() if interest.wanted else ():
                    with suppress(BusError):  # its router is away
                        body = msgspec.to_builtins(figures(place, totals))
                        await place.worker.publish(f"containers.stats.{place.node}", body)
                await asyncio.sleep(1)


def figures(place: StandIn, totals: dict[str, list[int]]) -> StatsEvent:
    """Return figures that move as those of a shop do."""
    now = time.time()
    samples = {}
    for one in place.containers.values():
        if one.state != "running":
            continue
        chance = random.Random(one.id)
        base, wave = chance.random() * 40, math.sin(now / 9 + chance.random() * 6)
        total = totals.setdefault(one.id, [0, 0, 0, 0])
        for index, scale in enumerate((90_000, 400_000, 9_000, 30_000)):
            total[index] += round(scale * chance.random() * (1.2 + wave))
        memory = round((0.15 + 0.75 * chance.random() + 0.03 * wave) * (512 << 20))
        samples[one.id[:12]] = Sample(
            cpu=max(0.1, base * (1 + wave / 3)), memory=memory, memory_limit=512 << 20,
            net_rx=total[0], net_tx=total[1], block_read=total[2], block_write=total[3], pids=12, throttled_ms=1500,
        )  # fmt: skip
    return StatsEvent(node=place.node, time_ms=round(now * 1000), full=True, samples=samples, cost=0.3, cpus=4,
                      cpu=sum(sample.cpu for sample in samples.values()) * 1.2)  # fmt: skip


def balancing(nodes: dict[str, StandIn]) -> Worker:
    """Return a stand-in for the balancer of the root, with a server for the first container of some nodes."""
    worker = Worker("lb")
    states = {"web1": {}, "web2": {"state": "draining", "weight": 0, "reason": "alice drained it", "since_s": 4.0},
              "web3": {"weight": 60}, "far": {"state": "out", "weight": 0, "since_s": 95.0,
                                              "reason": f"its health check says {EVIL}"}}  # fmt: skip
    ones = {node: next(iter(nodes[node].containers.values())) for node in states}

    @worker.command("show", role="observe")
    def show(call: Request) -> Any:
        servers = [
            {"id": one.id, "name": one.name, "node": node, "ip": f"10.20.{number}.2", "port": 8080, "base": 1,
             "state": "active", "weight": 100, "since_s": 3600.0, "rule": "image shop"} | states[node]
            for number, (node, one) in enumerate(ones.items())
        ]  # fmt: skip
        left = {"name": EVIL, "node": "db1", "reason": f"it publishes no port {EVIL}"}
        problem = {"text": f"vs.conntrack is 0 {EVIL}", "mend": "sysctl -w net.ipv4.vs.conntrack=1"}
        return {"name": "web", "addresses": ["10.20.0.1:443"], "protocol": "tcp", "alg": "wlc", "backend": "ipvs",
                "state": "ok", "servers": servers, "left_out": [left], "problems": [problem]}  # fmt: skip

    def traffic() -> dict[str, Any]:
        rows = [
            {"id": one.id, "name": one.name, "ip": f"10.20.{n}.2", "port": 8080, "active": 12 + n,
             "cps": 31 * n, "in_bps": 40_000 * n, "out_bps": 900_000 * n}
            for n, one in enumerate(ones.values())
        ]  # fmt: skip
        sums = {key: sum(row[key] for row in rows) for key in ("active", "cps", "in_bps", "out_bps")}
        return {"name": "web", **sums, "servers": rows}

    @worker.command("stats", role="observe")
    def stats(call: Request) -> Any:
        return traffic()

    @worker.command("watch", role="observe")
    async def watch(call: Request) -> Any:
        while True:
            yield traffic()
            await asyncio.sleep(1)

    return worker


def executor() -> Worker:
    """Return a stand-in for the executor, which lists one job."""
    worker = Worker("exec")

    @worker.command("jobs", role="observe")
    def jobs(call: Request) -> Any:
        started = time.time_ns() // 10**6 - 95_000
        job = {"job": 1, "who": "uid:1000", "origin": "root", "role": "operate", "argv": ["echo", EVIL], "exit": 0,
               "duration_ms": 14, "started_ms": started, "person": "alice"}  # fmt: skip
        return {"running": [], "finished": [job]}

    return worker


def main() -> None:
    with Hostile(int(sys.argv[1]) if len(sys.argv) > 1 else 6) as site:
        print(site.url, flush=True)
        try:
            time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 3600)
        finally:
            print(site.log()[-3000:])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
    main()
