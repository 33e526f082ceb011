"""The real thing for the pages: routers, executors, monitors, Docker engines, a balancer in a kernel, a dashboard.

Engine and balancer of the web nodes live in a network namespace, so that the machine's own tables are left alone; db1
has the engine that other tests use as well. Clients ask the balanced address all the time.
"""

import json
import socket
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, Self

from dockerd import Dockerd
from lan import Box, enter, inside
from live import EVIL, START_S, Site
from tree import Tree, until

from tsbus.balancer.nftables import Table
from tsbus.config import Balancer, Balancing, DockerPolicy
from tsbus.containers.engine import Engine
from tsbus.records import Container

LABEL = "treescale.node"
VIP = ("198.51.100.80", 80)
"""Of a network that is for documentation (RFC 5737), so it is nobody's."""
SHOP = "hostname > /www/index.html; httpd -f -p 8080 -h /www & trap 'kill $!; exit' TERM; wait"
TICKER = f"i=0; while sleep 0.2; do i=$((i+1)); echo tick $i; [ $((i % 20)) = 0 ] && echo '{EVIL}' >&2; done"
CONTAINERS: dict[str, dict[str, dict[str, Any]]] = {
    "web1": {name: {"Image": "shop/front:1", "Cmd": ["sh", "-c", SHOP]} for name in ("shop-1", "shop-2", "shop-3")},
    "web2": {"ticker": {"Image": "tools:1", "Cmd": ["sh", "-c", TICKER], "Labels": {"note": EVIL},
                        "HostConfig": {"Memory": 64 << 20}}},
    "web3": {"cache": {"Image": "checked:1"},
             "busy": {"Image": "tools:1", "Cmd": ["sh", "-c", "yes > /dev/null"],
                      "HostConfig": {"NanoCpus": 10**8}}},
    "db1": {"ledger": {"Image": "box:1"}},
}  # fmt: skip
CHECK = "HEALTHCHECK --interval=0.5s --timeout=5s --retries=1 CMD test -e /tmp/ok"
NAMES = {"executor": "exec", "docker": "containers", "balancer": "lb"}
"""Of services -> of their workers."""
LIMIT_S = 30.0


class Real(Site):
    """Seven nodes with all that TreeScale runs on them; `engine` has the containers of the web nodes."""

    def __init__(self, db: Dockerd) -> None:
        super().__init__()
        self.db = db
        self.services: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self.answers: Counter[str] = Counter()
        """Who answered how many clients; "" stands for those that nobody answered."""
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.host = Box("host")
            stack.callback(self.host.close)
            self.host.ip("link set lo up")
            with inside(self.host):
                self.dockerd = Dockerd()
                stack.callback(self._stop_engine)
                self.dockerd.start()
            self.dockerd.image("shop/front:1")
            self.dockerd.image("tools:1")
            self.dockerd.image("checked:1", 'CMD ["sh", "-c", "touch /tmp/ok; sleep 1000"]', CHECK)
            self.engines = {node: Engine(self._engine_of(node).host) for node in CONTAINERS}
            for engine in self.engines.values():
                stack.callback(engine.close)
            self.ids = {
                name: self._start(node, name, spec)
                for node, specs in CONTAINERS.items() for name, spec in specs.items()
            }  # fmt: skip
            stack.callback(lambda: self.engines["db1"].rm(self.ids["ledger"], force=True))
            super().__enter__()
            stack.callback(super().__exit__, None, None, None)
            client = threading.Thread(target=self._ask)
            client.start()
            stack.callback(client.join)
            stack.callback(self._closed.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _engine_of(self, node: str) -> Dockerd:
        return self.db if node == "db1" else self.dockerd

    def _stop_engine(self) -> None:
        with inside(self.host):
            self.dockerd.stop()

    def _start(self, node: str, name: str, spec: dict[str, Any]) -> str:
        labels = {LABEL: node, **spec.get("Labels", {})}
        made = self.engines[node].create(name, {"StopTimeout": 1, "Hostname": name, **spec, "Labels": labels})
        self.engines[node].start(made)
        return made

    def configure(self, tree: Tree) -> None:
        shop = Balancer("shop", "{}:{}".format(*VIP), containers={"shop/front": 8080}, manage_vip=True, start_grace_s=0)
        servers = dict(tree.config.servers)
        for node in CONTAINERS:
            policy = DockerPolicy(host=self._engine_of(node).host, only=f"{LABEL}={node}")
            servers[node] = replace(servers[node], docker=policy)
        servers["web1"] = replace(servers["web1"], balancers={"shop": shop}, balancing=Balancing("nftables"))
        tree.config = replace(tree.config, servers=servers, docker=DockerPolicy(enabled=False))

    async def furnish(self) -> None:
        for node in self.tree.names:
            self.serve(node)
        for node in self.tree.names:
            await until(f"{node} has its services", lambda node=node: self.is_served(node), START_S)
        await until("the shop is balanced", lambda: len(self.weights()) == len(CONTAINERS["web1"]), START_S)

    async def is_served(self, node: str) -> bool:
        """Whether all services of a node have joined."""
        workers = (await self.tree.ask(node, "router.stats"))["workers"]
        names = {each["name"] for each in workers if each["services"]}
        return {NAMES[service] for service in self.services_of(node)} <= names

    @staticmethod
    def services_of(node: str) -> tuple[str, ...]:
        """The services of a node besides its router."""
        return ("executor", *(("docker",) if node in CONTAINERS else ()), *(("balancer",) if node == "web1" else ()))

    def serve(self, node: str, ahead_s: int = 0) -> None:
        """Run the services of a node, whose clock may be wrong."""
        folder = self.tree.folder / node
        for service in self.services_of(node):
            if service == "balancer":
                process = self.host.call(self.run, service, node, "--run-dir", folder)
            else:
                process = self.run(service, node, "--audit-dir", folder, ahead_s=ahead_s)
            self.services[node, service] = process

    def kill(self, node: str) -> None:
        """End all processes of a node at once, as a power cut does."""
        self.tree.kill(node)
        self.end(node)

    def end(self, node: str) -> None:
        """End the services of a node."""
        for service in self.services_of(node):
            process = self.services.pop((node, service))
            process.kill()
            process.wait()

    def path(self, name: str) -> str:
        """The address of a container's page."""
        node = next(node for node, names in CONTAINERS.items() if name in names)
        return f"/container/{node}/{self.ids[name][:12]}"

    def seen(self, name: str) -> Container:
        """What the engine itself says of a container."""
        node = next(node for node, names in CONTAINERS.items() if name in names)
        return self.engines[node].inspect(self.ids[name])

    def weights(self) -> dict[str, int]:
        """What the kernel has behind the balanced address: server -> weight."""
        table = self.host.call(lambda: Table().services(counted=False))
        return {str(place): one.weight for entry in table.values() for place, one in entry.destinations.items()}

    def audit(self, node: str) -> set[tuple[str, str]]:
        """What was done for whom, as the node's audit logs have it: verb and person."""
        files = (self.tree.folder / node).glob("*-audit.log")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return {(line.get("command", "run").rpartition(".")[2], line.get("person", "")) for line in lines}

    def streams(self, node: str) -> int:
        """How many logs, programs and pulls the monitor of a node follows."""
        return int(self.do(self.tree.ask(node, "containers.stats"))["calls"]["streams"])

    def measured(self, node: str) -> int:
        """How many containers of a node are measured at the moment."""
        return int(self.do(self.tree.ask(node, "containers.stats"))["statistics"]["metered"])

    def _ask(self) -> None:
        """Be clients of the shop, ten a second."""
        enter(self.host.fd)
        while not self._closed.wait(0.1):
            answer = b""
            with suppress(OSError), socket.create_connection(VIP, LIMIT_S) as end:
                end.settimeout(LIMIT_S)
                end.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while more := end.recv(1000):
                    answer += more
            self.answers[answer.split()[-1].decode() if b" 200 " in answer else ""] += 1
