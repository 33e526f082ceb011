"""Measures a balancer on the host it runs on: `python -m bench.balanced KIND BACKEND`; `balancer.py` starts it.

KIND is events, large, floors, or stop:WAY. The host is thrown away afterwards, so nothing here cleans up after itself
but processes and engines.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import msgspec

import tsbus
from bench.harness import ROOT, TICKS_PER_S, BenchError, Fleet
from bench.ours import Ours, connect
from bench.shop import PORT
from bench.visitors import Failure, Visitors
from tests.dockerd import Dockerd
from tsbus.config import Balancer, Balancing, DockerPolicy
from tsbus.config import Tree as Config
from tsbus.containers.facts import EngineEvent
from tsbus.records import Container, Endpoint, EngineFacts, Image

PATIENCE_S = 120.0
LIVES = {"nftables": 50, "ipvs": 12}  # a life takes ten times as long in a guest
SERVICES, SERVERS = 100, 50
CHANGES = 50
COMPARES = 10
IDLE_S = 120.0
VIP = "10.77.0.1"
RATE = {"nftables": 200.0, "ipvs": 25.0, "swarm": 25.0}  # a guest's processor is busy with 25
GRACE_S = {"nftables": 4.0, "ipvs": 20.0}  # a server listens a little later than Docker says, busy as the host is
STOPS = 5
BEFORE_S, AFTER_S = 1.0, 2.0  # around each stop
IN_SPACE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
Figures = dict[str, float]


async def until(what: str, is_so: Callable[[], Awaitable[bool]], limit_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + limit_s
    while not await is_so():
        if time.monotonic() > end:
            raise BenchError(f"{what}: not within {limit_s:g} s")
        await asyncio.sleep(0.05)


def percentiles(name: str, values: list[float]) -> Figures:
    values = sorted(values)
    return {f"{name} p50 ms": values[len(values) // 2], f"{name} p99 ms": values[len(values) * 99 // 100]}


@contextmanager
def engine() -> Iterator[tuple[str, str]]:
    """An engine's address, and an image of it: the guest's, or one of our own."""
    if "DOCKER_HOST" in os.environ and "UML" in os.environ:
        yield os.environ["DOCKER_HOST"], "busybox:lab"
        return
    own = Dockerd()
    try:
        own.start()
        own.image("box:1")
        yield own.host, "box:1"
    finally:
        own.stop()


class Nodes(Ours):
    """Routers with their monitors and balancers."""

    def __init__(self, fleet: Fleet, balancers: dict[str, dict[str, Balancer]], backend: str) -> None:
        self.fleet, self.balancers, self.backend = fleet, balancers, backend
        self.start(fleet, (None, *range(len(balancers) - 1)))

    def more(self, config: Config) -> Config:
        """The balancers. All but the last node are without an engine."""
        *above, last = config.servers.values()
        servers = [*(replace(each, docker=DockerPolicy(enabled=False)) for each in above), last]
        servers = [replace(each, balancers=self.balancers[each.name]) for each in servers]
        return replace(config, servers={each.name: each for each in servers}, balancing=Balancing(self.backend))

    def run(self, name: str, node: int, *options: str, before: list[str] | None = None, **env: str) -> None:
        """Start a service of a node, numbered from 0."""
        config = str(self.fleet.folder / "treescale.toml")
        argv = [sys.executable, str(ROOT / f"services/ts_{name}.py"), "--config", config, "--node", f"n{node + 1}"]
        argv += ["--bus", self.endpoint(node, ""), *options]
        self.fleet.start(f"{name} {node + 1}", [*(before or []), *argv], **env)

    def monitor(self, node: int, host: str) -> None:
        self.run("docker", node, "--audit-dir", str(self.fleet.folder), DOCKER_HOST=host)

    def balance(self, node: int, *, alone: bool) -> None:
        """`alone`: in a network namespace of its own, since a kernel's table is for one balancer."""
        folder = Path(self.endpoint(node, "")).parent
        self.run("balancer", node, "--run-dir", str(folder), before=IN_SPACE if alone else None)


# ---- Events ----


async def events(backend: str) -> Figures:
    """From the engine's stamp of an event until a client of the node's router has heard that the table is changed.

    `here` is the engine's node, `above` its parent; each has its balancer, in a network namespace of its own. `monitor`
    is until a client has heard of the container itself.
    """
    images = {"box": 80, "busybox": 80}
    balancers = {
        "n1": {"above": Balancer("above", "10.9.9.1:80", containers=images, start_grace_s=0, manage_vip=True)},
        "n2": {"here": Balancer("here", "10.9.9.2:80", containers=images, start_grace_s=0, manage_vip=True)},
    }
    with engine() as (host, image), Fleet() as fleet:
        nodes = Nodes(fleet, balancers, backend)
        nodes.monitor(1, host)
        for node in (0, 1):
            nodes.balance(node, alone=True)
        return await _lives(nodes, host, image, LIVES[backend])


PLACES = {"n1": "above", "n2": "here"}


async def _lives(nodes: Nodes, host: str, image: str, lives: int) -> Figures:
    stamps: dict[tuple[str, str], int] = {}
    news: asyncio.Queue[tuple[str, str, str, int]] = asyncio.Queue()
    lags: dict[str, list[float]] = defaultdict(list)
    clients = {"n1": await connect(nodes.endpoint(0, "")), "n2": await connect(nodes.endpoint(1, ""))}

    def on_container(event: tsbus.Event) -> None:
        now_ns, body = time.time_ns(), event.json()
        stamps[body["container"]["id"], body["action"]] = body["time_ns"]
        lags[f"{body['action']}, monitor"].append((now_ns - body["time_ns"]) / 1e6)

    def on_change(event: tsbus.Event) -> None:
        now_ns, body = time.time_ns(), event.json()
        news.put_nowait((event.origin, event.topic, body["server"]["id"], now_ns))

    await clients["n2"].subscribe("container.*", callback=on_container)
    for node, client in clients.items():
        await client.subscribe("lb.active", callback=on_change, scope="node")
        await client.subscribe("lb.removed", callback=on_change, scope="node")
        await until(f"the balancer of {node}", lambda client=client, node=node: _balances(client, node))
    api = docker.APIClient(host, version="auto", timeout=120)
    for number in range(1 + lives):
        config = api.create_host_config(port_bindings={80: None})
        options = {"command": ["sleep", "6000"], "ports": [80], "host_config": config}
        made = str((await asyncio.to_thread(api.create_container, image, **options))["Id"])
        for act, action, topic in ((api.start, "started", "lb.active"), (api.kill, "died", "lb.removed")):
            await asyncio.to_thread(act, made)
            told: dict[str, int] = {}
            async with asyncio.timeout(PATIENCE_S):
                while len(told) < len(clients):
                    node, what, id_, now_ns = await news.get()
                    if (what, id_) == (topic, made):
                        told.setdefault(node, now_ns)
            if number == 0:
                break  # it stays: the first server of all waits for the rules of the host
            for node, now_ns in told.items():
                lags[f"{action}, {PLACES[node]}"].append((now_ns - stamps[made, action]) / 1e6)
        else:
            await asyncio.to_thread(api.remove_container, made)
    figures: Figures = {"containers": lives}
    for name in sorted(lags):
        if name.startswith(("started", "died")):
            figures |= percentiles(name, lags[name])
    return figures


async def _balances(client: tsbus.Client, node: str) -> bool:
    result = await client.call(node, "lb.ls", timeout_s=PATIENCE_S)
    return node in result.ok and all(each["state"] != "waiting" for each in result.values()[node]["balancers"])


# ---- Large ----


async def large(backend: str) -> Figures:
    """100 services with 50 servers each: the first table, a change, a comparison of everything, and rest."""
    balancers = {
        f"b{number}": Balancer(
            f"b{number}", f"10.9.{number // 250}.{number % 250 + 1}:80", "wrr", containers={f"shop/app{number}": 80},
            start_grace_s=0, manage_vip=True,
        )
        for number in range(SERVICES)
    }  # fmt: skip
    with Fleet() as fleet:
        nodes = Nodes(fleet, {"n1": balancers}, backend)
        bus = nodes.endpoint(0, "")
        monitor = fleet.start("engine", [sys.executable, "-m", "bench.balanced", "engine", bus])
        monitor.must_hear(PATIENCE_S)
        begun = time.monotonic()
        nodes.balance(0, alone=True)
        client = await connect(bus)
        balancer = fleet.named("balancer 1")

        async def is_whole() -> bool:
            balancer.check()
            result = await client.call("n1", "lb.ls", timeout_s=PATIENCE_S)
            told = result.values().get("n1", {"balancers": []})["balancers"]
            return len(told) == SERVICES and all(each.get("active") == SERVERS for each in told)

        await until("the first table", is_whole, 300)
        await _compare_ms(client)  # it is planned: now the kernel has it
        figures = {"first table s": time.monotonic() - begun}
        lags = await _changes(client, monitor)
        figures |= percentiles("a change", lags)
        compared = [await _compare_ms(client) for _ in range(COMPARES)]
        figures |= {"compare p50 ms": statistics.median(compared), "compare max ms": max(compared)}
        before = fleet.cpu_by_role()["balancer"] + _children_s(balancer.pid)
        await asyncio.sleep(IDLE_S)
        spent = fleet.cpu_by_role()["balancer"] + _children_s(balancer.pid) - before
        figures["idle core %"] = spent / IDLE_S * 100
        own = (await client.call_one("n1", "lb.cost"))["rss_bytes"] / 2**20
        return figures | {"balancer MiB": own, "with helper MiB": fleet.memory_by_role("Rss")["balancer"]}


def _children_s(pid: int) -> float:
    """The CPU of tools that a process has run, which have ended."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[13]) + int(after_name[14])) / TICKS_PER_S


async def _compare_ms(client: tsbus.Client) -> float:
    """What the balancer says that a comparison of the whole host took: rules and settings as well as the table."""
    (await client.call("n1", "lb.sync", timeout_s=PATIENCE_S)).raise_for_status()
    told: dict[str, Any] = await client.call_one("n1", "lb.cost")
    return float(told["compare_ms"])


async def _changes(client: tsbus.Client, monitor: Any) -> list[float]:
    """A container is paused, then not any more: from the event's stamp until it is told that the table has it."""
    news: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    def on_change(event: tsbus.Event) -> None:
        now_ns = time.time_ns()
        news.put_nowait((event.topic, event.json()["server"]["id"], now_ns))

    for topic in ("lb.out", "lb.active"):
        await client.subscribe(topic, callback=on_change)
    lags = []
    for number in range(CHANGES):
        one = f"{number * 97 % (SERVICES * SERVERS):064x}"
        for action, topic in (("pause", "lb.out"), ("unpause", "lb.active")):
            monitor.tell({"container": one, "action": action})
            stamp = (await asyncio.to_thread(monitor.must_hear))["time_ns"]
            async with asyncio.timeout(PATIENCE_S):
                while (found := await news.get())[:2] != (topic, one):
                    pass
            lags.append((found[2] - stamp) / 1e6)
    return lags


class ManyContainers:
    """An engine in memory with a container for each server; what is put into `happens` happens to one of them."""

    def __init__(self) -> None:
        numbers = range(SERVICES * SERVERS)
        self.containers = {each.id: each for each in (_container(number) for number in numbers)}
        self.happens: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()

    def connect(self) -> EngineFacts:
        return EngineFacts(node="", up=True, name="Docker", version="28.0.0")

    def events(self, _since_ns: int | None) -> ManyContainers:
        return self

    def __iter__(self) -> Iterator[EngineEvent]:
        return self

    def __next__(self) -> EngineEvent:
        return self.happens.get()

    def list(self) -> list[Any]:
        from tsbus.containers.facts import Summary

        return [
            Summary(each.id, each.name, each.state, each.health, each.networks) for each in self.containers.values()
        ]

    def inspect(self, container: str) -> Container:
        return self.containers[container]

    def close(self) -> None:
        pass


def _container(number: int) -> Container:
    app, now_ns = number // SERVERS, time.time_ns()
    ip = f"172.17.{number // 250}.{number % 250 + 1}"
    return Container(
        id=f"{number:064x}",
        name=f"app{app}-{number % SERVERS}",
        image=Image(given=f"shop/app{app}:1", repo=f"shop/app{app}", tag="1"),
        state="running",
        created_ns=now_ns,
        started_ns=now_ns,
        networks={"bridge": ip},
        endpoints=(Endpoint(port=80, ip=ip, network="bridge"),),
    )


async def simulate(bus: str) -> None:
    """Be the monitor of a node with these containers; orders come as JSON lines."""
    from tsbus.audit import AuditLog
    from tsbus.containers.asking import Asking
    from tsbus.containers.desk import Desk
    from tsbus.containers.watch import Watch

    made = ManyContainers()
    client = await tsbus.connect(bus, timeout_s=60)
    watch = Watch(made, client)  # type: ignore[arg-type]
    asking = Asking(Desk(DockerPolicy(), AuditLog(Path(os.devnull)), watch))
    worker = tsbus.Worker("containers")
    worker.command("snapshot", role="observe")(asking.snapshot)
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.run())
        group.create_task(worker.serve(client))
        await worker.wait_ready()
        await watch.wait_complete()
        print("{}", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            one = made.containers[order["container"]]
            state = {"pause": "paused", "unpause": "running"}[order["action"]]
            made.containers[one.id] = msgspec.structs.replace(one, state=state)
            now_ns = time.time_ns()
            made.happens.put(EngineEvent("container", order["action"], "", one.id, {"name": one.name}, now_ns))
            print(json.dumps({"time_ns": now_ns}), flush=True)


# ---- Floors ----


async def floors(backend: str) -> Figures:
    """What the host itself takes for the smallest things, to tell what a guest adds."""

    def measured(act: Callable[[], object], times: int) -> float:
        found = []
        for _ in range(times):
            begun = time.perf_counter()
            act()
            found.append(time.perf_counter() - begun)
        return statistics.median(found) * 1e6

    from tsbus.balancer.netlink import GENERIC, Netlink, attribute

    one, other = socket.socketpair()

    def talk() -> None:
        one.send(b"x")
        other.recv(1)

    with Netlink(GENERIC) as netlink:
        asked = b"\3\1\0\0" + attribute(2, b"nlctrl\0")
        return {
            "system call us": measured(os.getppid, 1000),
            "socket pair us": measured(talk, 500),
            "netlink us": measured(lambda: list(netlink.ask(16, asked)), 300),
            "fork and exec us": measured(lambda: subprocess.run(["true"], check=True), 20),
            "Python us": measured(lambda: sum(range(10_000)), 50),
        }


# ---- Stop ----


async def stop(way: str, backend: str) -> Figures:
    """One of three containers is stopped under load and started again, several times."""
    with engine() as (host, image), Fleet() as fleet:
        os.environ["DOCKER_HOST"] = host
        if backend == "swarm":
            site: Any = Swarm(image)
        else:
            shop = replace(SHOP, start_grace_s=GRACE_S[backend])
            site = Shop(Nodes(fleet, {"n1": {"shop": shop}}, backend), host, image)
        visitors = Visitors(VIP, 80, RATE[backend])
        await site.open()
        await until("an answer", visitors.answered, 300)
        spans = []
        async with visitors:
            for number in range(STOPS):
                await asyncio.sleep(BEFORE_S)
                begun = time.monotonic()
                await site.stop(way, number)
                spans.append((begun, time.monotonic()))
                await asyncio.sleep(AFTER_S)
                await site.start(number)
        seconds = [1e3 * each for each in visitors.seconds]
        failed = sum(begun - 0.2 < each.begun < end + AFTER_S for begun, end in spans for each in visitors.failures)
        for each in visitors.failures:
            print(f"a request failed: {_words(each, spans)}", flush=True)
        return {
            "requests": len(seconds) + len(visitors.failures),
            "failed": failed,
            "failed, other times": len(visitors.failures) - failed,
            **percentiles("answer", seconds),
            "stop s": statistics.median(end - begun for begun, end in spans),
        }


def _words(failure: Failure, spans: list[tuple[float, float]]) -> str:
    """What failed, and where in the order of stops."""
    number, (begun, end) = next(
        (pair for pair in reversed([*enumerate(spans, 1)]) if pair[1][0] - 0.2 < failure.begun), (0, (0.0, 0.0))
    )
    when = f"{failure.begun - begun:.3f} s after stop {number} began, which took {end - begun:.3f} s"
    return f"{failure.error} while {failure.step} from port {failure.port} for {failure.took_s:.3f} s; {when}"


SHOP = Balancer("shop", f"{VIP}:80", manage_vip=True)


def docker_(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"docker {' '.join(words)}: {done.stderr}")
    return done.stdout.strip()


def mounts(flag: str) -> list[str]:
    """The host's Python in a container that has nothing; `flag` is for `docker run` or `docker service create`."""
    places = [each for each in (sys.base_prefix, "/usr", "/lib", "/lib64") if Path(each).exists()]
    pairs = [*zip(places, places, strict=True), (str(ROOT / "bench/shop.py"), "/shop.py")]
    if flag == "--volume":
        return [f"--volume={source}:{target}:ro" for source, target in pairs]
    return [f"--mount=type=bind,source={source},target={target},readonly" for source, target in pairs]


COMMAND = [f"{sys.base_prefix}/bin/python3", "-IS", "/shop.py"]


class Shop:
    """Three containers behind our balancer."""

    names = ("web1", "web2", "web3")

    def __init__(self, nodes: Nodes, host: str, image: str) -> None:
        self._nodes, self._image = nodes, image
        nodes.monitor(0, host)
        nodes.balance(0, alone=False)

    async def open(self) -> None:
        self._client = await connect(self._nodes.endpoint(0, ""))
        await until("the balancer", lambda: _balances(self._client, "n1"))
        label = "--label=treescale.balancer=shop", f"--label=treescale.port={PORT}"
        for name in self.names:
            words = ("run", "--detach", "--name", name, *label, *mounts("--volume"), self._image, *COMMAND)
            await asyncio.to_thread(docker_, *words)
        await self._active(*self.names)

    async def stop(self, way: str, number: int) -> None:
        name = self.names[number % 3]
        if way == "drain":
            argv = [str(Path(sys.executable).with_name("treescale")), "container", "stop", "--drain", "n1", name]
            env = {**os.environ, "TREESCALE_BUS": self._nodes.endpoint(0, "")}
            process = await asyncio.create_subprocess_exec(*argv, env=env)
            if await process.wait():
                raise BenchError("treescale container stop --drain failed")
        else:
            await asyncio.to_thread(docker_, way, name)

    async def start(self, number: int) -> None:
        name = self.names[number % 3]
        await asyncio.to_thread(docker_, "start", name)
        await self._active(name)

    async def _active(self, *names: str) -> None:
        result = await self._client.call("n1", "lb.wait", {"servers": [*names]}, timeout_s=PATIENCE_S)
        result.raise_for_status()


class Swarm:
    """Three tasks behind Swarm's ingress, on its own."""

    def __init__(self, image: str) -> None:
        self._image = image

    async def open(self) -> None:
        subprocess.run(
            ["modprobe", "-a", "vxlan", "xt_ipvs", "xt_mark", "xt_nat", "xt_REDIRECT", "ip_vs_rr"], check=True
        )
        for words in ("link add lan type dummy", f"address add {VIP}/24 dev lan", "link set lan up"):
            subprocess.run(["ip", *words.split()], check=True)
        docker_("swarm", "init", "--advertise-addr", VIP)
        docker_(
            "service", "create", "--no-resolve-image", "--detach", "--name", "web", "--replicas", "3",
            "--publish", f"80:{PORT}", *mounts("--mount"), self._image, *COMMAND,
        )  # fmt: skip
        await self._running(3)

    async def stop(self, way: str, number: int) -> None:
        if way == "scale":
            await asyncio.to_thread(docker_, "service", "scale", "web=2")
        else:
            tasks = docker_("ps", "--quiet", "--filter", "name=web").split()
            await asyncio.to_thread(docker_, "stop", tasks[0])

    async def start(self, number: int) -> None:
        await asyncio.to_thread(docker_, "service", "scale", "web=3")
        await self._running(3)

    async def _running(self, count: int) -> None:
        async def is_so() -> bool:
            words = ("service", "ps", "web", "--filter", "desired-state=running", "--format", "{{.CurrentState}}")
            states = (await asyncio.to_thread(docker_, *words)).splitlines()
            return sum(each.startswith("Running") for each in states) == count

        await until(f"{count} tasks", is_so, 300)


def main() -> None:
    kind, backend = sys.argv[1:3]
    if kind == "engine":
        asyncio.run(simulate(backend))
        return
    kind, _, way = kind.partition(":")
    kinds: dict[str, Callable[[str], Any]] = {"events": events, "large": large, "floors": floors}
    figures = asyncio.run(stop(way, backend) if way else kinds[kind](backend))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
