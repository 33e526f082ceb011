"""A live tree for the pages: seven real routers, a real dashboard, and workers that say what is documented.

The containers, the balancer and the executor are stand-ins on the real bus, because what an engine or a kernel would do
takes seconds where a page shows it in an instant. They say hostile things, too. Run as a program it stays up.
"""

import asyncio
import math
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from background import Background
from standin import StandIn, container
from tree import HOST, Tree, until

from tsbus import CommandError, Request, Worker
from tsbus.config import Alert, Balancer, Dashboard
from tsbus.core.accounting import Outcome
from tsbus.core.body import to_body
from tsbus.dashboard.users import Role, UsersFile
from tsbus.errors import BusError
from tsbus.records import Sample, StatsEvent

SPEC = "root:web1 db1 edge;web1:web2 web3;edge:far"
EVIL = '<img src=x onerror="window.pwned=1">'
"""Text that would run if any of it were read as markup."""
PASSWORDS = {"alice": ("correct horse", Role.OPERATE), "victor": ("battery staple", Role.VIEW)}
PORT = 8801
SERVICE = Path(__file__).parents[2] / "services/ts_dashboard.py"
IMAGES = {
    "shop": "registry.example/shop/storefront:4.12.0", "api": "registry.example/shop/api:4.12.0", "redis": "redis:7.2",
    "queue": "rabbitmq:3.13", "search": "opensearch:2.11", "cron": "busybox:1.36",
}  # fmt: skip


class Place(StandIn):
    """A stand-in for a monitor whose logs can be written while they are followed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.followed: list[asyncio.Queue[bytes]] = []

    async def read_logs(self, call: Request) -> None:
        (one,) = self._named(self._note(call))
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.followed.append(lines)
        try:
            await self.logs_of(call, one, b"")
            while True:
                await call.send(await lines.get())
        finally:
            self.followed.remove(lines)

    async def write(self, line: bytes) -> None:
        """Write a line to all logs that are followed."""
        for lines in self.followed:
            lines.put_nowait(line)


class Site(Background):
    """The tree, its stand-ins, and the dashboard of its root at `url`."""

    def __init__(self, each: int = 6) -> None:
        """`each`: containers of each node."""
        super().__init__()
        self.each = each
        self.nodes: dict[str, Place] = {}
        self.url = f"http://{HOST}:{PORT}"
        self.balancer = Balancing()
        self.watched = False
        """Whether somebody wants figures at the moment."""

    @asynccontextmanager
    async def live(self, folder: Path) -> AsyncIterator[None]:
        self.users = UsersFile(folder / "users.json")
        for name in PASSWORDS:
            self.admit(name)
        tags = {"web1": ("web",), "web2": ("web",), "web3": ("web", "canary"), "db1": ("db",), "far": ("edge",)}
        tree = Tree(SPEC, folder, tags=tags)
        web = Balancer("web", address="10.20.0.1:443", alg="wlc", containers={"shop": 8080})
        servers = tree.config.servers | {"root": replace(tree.config.servers["root"], balancers={"web": web})}
        alerts = {
            "far-away": Alert("far-away", "node-lost", target="@edge", for_s=600, to=("https://chat.example/secret",)),
            "unwell": Alert("unwell", "container-down", filters=("health=unhealthy",)),
        }
        dashboard = Dashboard(host=HOST, port=PORT, users=str(self.users.path))
        tree.config = replace(tree.config, servers=servers, dashboard=dashboard, alerts=alerts)
        self.tree, self.bus = tree, tree.bus("root")
        async with tree:
            for name in tree.names:
                await self._furnish(name)
            await tree.run(self.balancer.worker(self.nodes), "root")
            self.start()
            try:
                await until("the dashboard listens", self._listens)
                yield
            finally:
                self.stop()
                self._figures.cancel()

    def start(self) -> None:
        """Start the dashboard."""
        config = self.tree.folder / "root.toml"
        argv = [sys.executable, str(SERVICE), "--config", str(config), "--bus", self.tree.bus("root")]
        self.process = subprocess.Popen(argv, stderr=(self.tree.folder / "dashboard.log").open("a"))

    def stop(self) -> None:
        """End the dashboard."""
        self.process.terminate()
        self.process.wait()

    def until(self, what: str, is_so: Callable[[], object]) -> None:
        """Wait from a test until something is so."""
        self.do(until(what, is_so))

    def dismiss(self, name: str) -> None:
        """Take a user away."""
        self.users.write(self.users.read().without_user(name))

    def admit(self, name: str) -> None:
        """Make a user, as at first."""
        password, role = PASSWORDS[name]
        self.users.write(self.users.read().with_user(name, role, password))

    def log(self) -> str:
        """Return what the dashboard has logged."""
        return (self.tree.folder / "dashboard.log").read_text()

    def cpu_s(self) -> float:
        """CPU seconds of the dashboard so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    async def _listens(self) -> bool:
        assert self.process.poll() is None, self.log()
        with suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, PORT)
            writer.close()
            return True
        return False

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
        place = self.nodes[node] = Place(node, made)
        for number, one in enumerate(made):
            place.logs[one.name] = [
                (line % 9 == 8, f'10.20.{number}.{line} - GET /cart/{line} 200 {line * 37 % 400} ms\n'.encode())
                for line in range(40)
            ] + [(True, f"{EVIL} in a log\n".encode())]  # fmt: skip
        await self.tree.run(place.worker, node)
        await self.tree.run(executor(), node)
        if node == "root":
            self._figures = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        """Tell figures once a second, while somebody wants them."""
        totals: dict[str, list[int]] = {}
        client = await self.tree.connect("root", name="figures")
        async with client.interest("containers.stats.>") as interest:
            while True:
                self.watched = interest.wanted
                for place in self.nodes.values() if interest.wanted else ():
                    with suppress(BusError):  # its router is dead, because a test wants it so
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


class Balancing:
    """A stand-in for a balancer of the root."""

    def __init__(self) -> None:
        self.drained: set[str] = set()
        self.asked: list[tuple[str, Any]] = []
        self.persons: list[str] = []
        """For whom."""

    def worker(self, nodes: dict[str, Place]) -> Worker:
        """Return the worker, with a server for the first container of some nodes."""
        worker = Worker("lb")
        places = {f"10.20.{number}.2:8080": (node, next(iter(nodes[node].containers.values())))
                  for number, node in enumerate(("web1", "web2", "web3", "far"), 1)}  # fmt: skip

        def server(place: str) -> dict[str, Any]:
            node, one = places[place]
            ip, port = place.split(":")
            told = {"id": one.id, "name": one.name, "node": node, "ip": ip, "port": int(port), "base": 1,
                    "state": "active", "weight": 100, "since_s": 3600.0, "rule": "image shop"}  # fmt: skip
            if place in self.drained:
                told |= {"state": "draining", "weight": 0, "reason": "alice drained it", "since_s": 4.0}
                told["connections"] = 3
            elif node == "far":
                told |= {"state": "out", "weight": 0, "reason": "its health check fails: exit code 1", "since_s": 95.0}
            elif node == "web3":
                told |= {"weight": 60}
            return told

        @worker.command("show", role="observe")
        def show(call: Request) -> Any:
            left = {"name": EVIL, "node": "db1", "reason": f"it publishes no port {EVIL}"}
            problem = {"text": "vs.conntrack is 0", "mend": "sysctl -w net.ipv4.vs.conntrack=1"}
            return {"name": "web", "addresses": ["10.20.0.1:443"], "protocol": "tcp", "alg": "wlc", "backend": "ipvs",
                    "state": "ok", "servers": [server(place) for place in places], "left_out": [left],
                    "problems": [problem]}  # fmt: skip

        def traffic() -> dict[str, Any]:
            rows = [
                {"id": one.id, "name": one.name, "ip": place.split(":")[0], "port": 8080, "active": 12 + n,
                 "cps": 31 * n, "in_bps": 40_000 * n, "out_bps": 900_000 * n}
                for n, (place, (_, one)) in enumerate(places.items())
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

        async def order(call: Request, verb: str, take: Any) -> Any:
            body = call.json()
            self.asked.append((verb, body))
            self.persons.append(call.person)
            named = [place for place in places for name in body["servers"] if name in (place, places[place][1].id)]
            if not named and body.get("if_here"):
                return None
            if not named:
                raise CommandError(f"no server {body['servers']} here")
            for place in named:
                take(place)
                await worker.publish(f"lb.{'draining' if verb == 'drain' else 'active'}", {
                    "node": "root", "balancer": "web", "time_ns": time.time_ns(), "server": server(place)})  # fmt: skip
            told = server(named[0])
            return {"id": told["id"], "name": told["name"], "balancer": "web", "state": told["state"]}

        @worker.command("drain")
        async def drain(call: Request) -> Any:
            return await order(call, "drain", self.drained.add)

        @worker.command("undrain")
        async def undrain(call: Request) -> Any:
            return await order(call, "undrain", self.drained.discard)

        @worker.command("why", role="observe")
        def why(call: Request) -> Any:
            checks = [
                {"name": "balancer", "result": "ok", "text": "web of this node has 10.20.0.1:443/tcp"},
                {"name": "tracking", "result": "warn", "text": f"vs.conntrack is 0 {EVIL}",
                 "mend": "sysctl -w net.ipv4.vs.conntrack=1"},
                {"name": "server", "result": "fail", "text": "10.20.4.2:8080 refuses connections", "servers": ["far"]},
            ]  # fmt: skip
            verdict = "It goes to one of three servers, which sees the client's own address."
            return {"balancer": "web", "address": "10.20.0.1:443", "protocol": "tcp", "from": "remote", "works": True,
                    "verdict": verdict, "checks": checks}  # fmt: skip

        return worker


def executor() -> Worker:
    """Return a stand-in for the executor, which answers `echo` and lists one job."""
    worker = Worker("exec")

    @worker.command("run")
    async def run(call: Request) -> None:
        argv = call.json()["argv"]
        if argv[0] == "sleep":
            await asyncio.sleep(float(argv[1]))
        table = "Filesystem  Size  Used Avail Use%\n/dev/vda1    79G   31G   45G  41%"
        words = " ".join(argv[1:]) if argv[0] == "echo" else table
        await call.send(f"{words}\n".encode())
        if call.node == "db1":
            await call.send(b"db1 says something else\n", second=True)
        code = 1 if call.node == "db1" else 0
        facts = {"exit": code, "signal": None, "duration_ms": 12, "truncated": False, "reason": ""}
        call.end(Outcome.FAILED if code else Outcome.OK, *to_body(facts))

    @worker.command("jobs", role="observe")
    def jobs(call: Request) -> Any:
        started = time.time_ns() // 10**6 - 95_000
        job = {"job": 1, "who": "uid:1000", "origin": "root", "role": "operate", "argv": ["echo", EVIL], "exit": 0,
               "duration_ms": 14, "started_ms": started, "person": "alice"}  # fmt: skip
        return {"running": [], "finished": [job]}

    return worker


def main() -> None:
    with Site(int(sys.argv[1]) if len(sys.argv) > 1 else 6) as site:
        print(site.url, flush=True)
        try:
            time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 3600)
        finally:
            print(site.log()[-3000:])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
    main()
