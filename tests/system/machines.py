"""Machines: Docker hosts with all that TreeScale runs on them, and a client elsewhere; two in a guest, with IPVS.

    client 10.0.0.2 --+
                      switch -- eth0 10.0.0.1, top: the guest itself, with the guest's engine
    low    10.0.0.3 --+         low: below top in the tree, in a namespace, with an engine of its own

With nftables it is top alone, in a namespace of this machine's kernel.

On each are a router, a monitor and a balancer, as processes. Docker runs the containers.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import dockerd
import waiting
from answerer import PORT
from ipvsadm import run
from lan import Box, inside
from tree import Tree

from tsbus import BusError, Event, connect_blocking
from tsbus.balancer.nftables import Table
from tsbus.balancer.table import Protocol, Virtual
from tsbus.blocking import BlockingClient
from tsbus.config import Balancer, Balancing, BusSettings, DockerPolicy
from tsbus.containers.engine import Engine

T = TypeVar("T")

HERE: Final = Path(__file__).parent
LIMIT_S: Final = 120.0
"""How long something may take that must come: a container needs 4 s here when nothing else runs on the machine."""
PAUSE_S: Final = 0.1
"""Between two looks: a look takes time from those who are looked at."""
TABLE: Final = Path("/proc/thread-self/net/ip_vs")
"""The kernel's own words: ipvsadm would be a process for each look, which takes longer than what it looks for."""
ADDRESSES: Final = {"top": "10.0.0.1", "client": "10.0.0.2", "low": "10.0.0.3"}
HOLD_S: Final = 10.0
PATIENT: Final = BusSettings(heartbeat_ms=500, heartbeat_timeout_ms=5000, steady_s=0.5, adopt_after_s=0.5)
"""One slow processor does all the work here: nobody is lost because containers start."""
IMAGE, SHOP = "busybox:lab", "shop/web:1"
CALM: Final = ("calm1", "calm2")
"""Containers of top that live as long as it does, in the balancers quick, patient and storm."""
_PYTHON: Final = (f"{sys.base_prefix}/bin/python3", "-IS", "/answerer.py")
ANSWER: Final = " ".join(_PYTHON)
"""The command of a container that answers, for a shell."""


STORM: Final = Balancer("storm", "10.0.0.1:85", "wrr", drain_timeout_s=3600)


def balancers() -> dict[str, dict[str, Balancer]]:
    """Of each machine, one port for each way to use them."""
    own = Balancer("own", "10.0.0.3:80", "wrr", start_grace_s=0)
    below = {"servers": {"low": 80}, "hold_s": HOLD_S, "alg": "wrr"}
    top = (
        Balancer("web", "10.0.0.1:80", containers={"shop/web": PORT}, start_grace_s=0),
        Balancer("labelled", "10.0.0.1:81", "wrr"),
        Balancer("quick", "10.0.0.1:84", start_grace_s=0.5),
        Balancer("patient", "10.0.0.1:86", start_grace_s=15),
        STORM,
        Balancer("below", "10.0.0.1:82", panic=1, **below),
        Balancer("trusting", "10.0.0.1:83", **below),
    )
    return {"top": {each.name: each for each in top}, "low": {"own": own}}


def wait(what: str, is_so: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """Wait as a guest needs it: long, and looking around rarely."""
    return waiting.wait(what, is_so, limit_s, PAUSE_S)


class Here(Box):
    """The network namespace that the tests are in."""

    @staticmethod
    def _enter() -> int:
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


class Service:
    """A program of services/ on a machine."""

    def __init__(self, machine: "Machine", name: str, *options: str | Path) -> None:
        self.log = machine.folder / f"{machine.name}-{name}.log"
        self._box = machine.box
        self._argv = [sys.executable, HERE.parents[1] / f"services/ts_{name}.py", *options]
        self.start()

    def start(self) -> None:
        """Run it."""
        with self.log.open("ab") as log:
            self._process = self._box.call(subprocess.Popen, self._argv, stderr=log, stdin=subprocess.DEVNULL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal."""
        self._process.send_signal(number)
        self._process.wait(LIMIT_S)


class Dockerd:
    """The engine of low; its containers outlive it."""

    host = "unix:///run/low/docker.sock"

    def __init__(self, box: Box) -> None:
        self._box = box
        data = Path("/var/lib/docker-low")
        for folder in (data, Path("/run/low")):
            folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "docker-low", data], check=True)
        self.start()

    def start(self) -> None:
        """Run it, and wait until it answers."""
        argv = ["dockerd", "--data-root", "/var/lib/docker-low", "--exec-root", "/run/low/run", "--pidfile",
                "/run/low/pid", "--host", self.host, "--storage-driver", "overlay2", "--live-restore"]  # fmt: skip
        with Path("/run/low/log").open("ab") as log:
            self._process = self._box.call(subprocess.Popen, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait("the engine of low", self._answers)

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.host.removeprefix("unix://"))
            probe.send(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in probe.recv(64)
        return False

    def end(self) -> None:
        """As `systemctl stop docker` ends it."""
        self._process.terminate()
        self._process.wait(LIMIT_S)


class Machine:
    """One of the two."""

    def __init__(self, name: str, box: Box, engine: str, tree: Tree) -> None:
        self.name, self.box, self.engine = name, box, engine
        self.ip = ADDRESSES[name]
        self.folder = tree.folder
        self.state_file = tree.folder / name / "lb-state.json"
        self._tree = tree
        self.api = Engine(engine, timeout_s=LIMIT_S)
        """For what needs no process of its own."""
        self._ips: dict[str, str] = {}

    def start(self) -> None:
        """Run monitor and balancer; the router runs already."""
        tree, name = self._tree, self.name
        self.bus: BlockingClient = connect_blocking(tree.bus(name), timeout_s=LIMIT_S)
        options = ("--config", tree.folder / f"{name}.toml", "--bus", tree.bus(name))
        self.monitor = Service(self, "docker", *options, "--audit-dir", tree.folder)
        self.balancer = Service(self, "balancer", *options, "--run-dir", tree.folder / name)

    def end(self) -> None:
        """End what was started."""
        self.bus.close()
        self.api.close()
        self.balancer.end()
        self.monitor.end()

    # Its containers.

    def docker(self, *words: str) -> str:
        """What the docker program says; AssertionError with its errors when it fails."""
        return run("docker", "--host", self.engine, *words).strip()

    def run(self, name: str, *options: str, image: str = IMAGE, script: str = ANSWER) -> None:
        """Start a container that answers, or runs another script."""
        folders = dict.fromkeys((sys.base_prefix, "/usr", "/lib", "/lib64"))
        mounts = [f"--volume={each}:{each}:ro" for each in folders if Path(each).exists()]
        mounts.append(f"--volume={HERE / 'answerer.py'}:/answerer.py:ro")
        self._ips[name] = ""
        argv = shlex.split(script) if script == ANSWER else ["sh", "-c", script]
        named = ("--name", name, "--hostname", name, "--expose", str(PORT), "--stop-timeout", "1")
        self.docker("run", "--detach", *named, *mounts, *options, image, *argv)
        self.find(name)

    def find(self, *names: str) -> None:
        """Ask the engine for the addresses of containers that it started again, once they run."""
        for name in names:
            self._ips[name] = wait(f"{name} runs", lambda name=name: self.api.inspect(name).networks.get("bridge"))

    def place(self, name: str) -> str:
        """Where a container answers, as the table has it."""
        return f"{self._ips[name]}:{PORT}"

    def remove(self, *names: str) -> None:
        """Remove containers, in whatever state they are; without names all that the test has started."""
        for name in names or [name for name in self._ips if name not in CALM]:
            self.api.rm(name, force=True)
            del self._ips[name]

    def listens(self, *names: str) -> None:
        """Wait until these containers accept connections: their program starts a little after them."""

        def listens(name: str) -> bool:
            with suppress(OSError), self.box.call(socket.create_connection, (self._ips[name], PORT), LIMIT_S):
                return True
            return False

        for name in names:
            wait(f"{name} listens", lambda name=name: listens(name))

    # Its balancers.

    def table(self, port: int) -> dict[str, int]:
        """What the kernel shows behind a port of this machine: address -> weight. {} without a service."""
        found: dict[str, int] = {}
        service = ""
        for first, place, *more in map(str.split, self.box.call(TABLE.read_text).splitlines()[3:]):
            if first != "->":
                service = place
            elif service == f"{int(ip_address(self.ip)):08X}:{port:04X}":
                ip, port_there = (int(part, 16) for part in place.split(":"))
                server = f"{ip_address(ip)}:{port_there}"
                assert server not in found
                found[server] = int(more[1])
        return found

    def wait_table(self, port: int, wanted: dict[str, int], limit_s: float = LIMIT_S) -> None:
        """Wait until the table is so behind a port."""
        seen: list[dict[str, int]] = [{}]

        def is_so() -> bool:
            seen[0] = self.table(port)
            return seen[0] == wanted

        try:
            wait(f"{wanted} behind port {port} of {self.name}", is_so, limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is {seen[0]}") from None

    def lb(self, command: str, body: Any = b"") -> Any:
        """The one answer of this machine's balancer."""
        return self.bus.call_one(self.name, f"lb.{command}", body, timeout_s=LIMIT_S)

    def show(self, balancer: str) -> dict[str, Any]:
        """What `lb.show` tells of the servers of a balancer, by name; each has one address, and no other has it."""
        (told,) = self.bus.call(self.name, "lb.show", {"balancers": [balancer]}, timeout_s=LIMIT_S).values().values()
        servers = told.get("servers", [])
        assert len({(each["ip"], each["port"]) for each in servers}) == len(servers)
        return {each["name"]: each for each in servers}

    def balances(self) -> bool:
        """Tell whether the balancer answers and knows what runs."""
        with suppress(BusError):
            return all(each["state"] != "waiting" for each in self.lb("ls")["balancers"])
        return False

    def engine_is_up(self) -> bool:
        """Tell what the monitor thinks of the engine."""
        return bool(self.bus.call_one(self.name, "containers.stats")["engine_up"])

    def rules(self) -> list[str]:
        """The helper rules, as iptables has them."""
        saved = self.box.run("iptables-save").splitlines()
        return [line for line in saved if line.startswith("-A") and "TREESCALE" in line]

    def saved(self) -> str:
        """The kernel's whole table, as ipvsadm saves it."""
        return self.box.run("ipvsadm", "--save", "--numeric")


class NftMachine(Machine):
    """One whose kernel balances with nftables."""

    def __init__(self, name: str, box: Box, engine: str, tree: Tree) -> None:
        super().__init__(name, box, engine, tree)
        self._table = Table()

    def table(self, port: int) -> dict[str, int]:
        """What the table of nft says, which is read again only when it has changed."""
        entries = self.box.call(self._table.services, counted=False)
        entry = entries.get(Virtual(Protocol.TCP, ip_address(self.ip), port))
        return {str(address): one.weight for address, one in entry.destinations.items()} if entry else {}

    def rules(self) -> list[str]:
        """The helper rules, as nft has them."""
        return self.box.run("nft", "--stateless", "list", "table", "inet", "treescale").splitlines()

    def end(self) -> None:
        """End what was started."""
        super().end()
        self.box.call(self._table.close)


class Site:
    """Machines with all that runs on them, and a client elsewhere, while this is entered."""

    calm_ports: tuple[int, ...] = (85,)
    """Of the balancers that the calm containers are in."""
    top: Machine
    client: Box

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.events: list[Event] = []
        """The `lb.*` events of all balancers."""
        self.calm: dict[str, int]
        """What the table has of the calm containers."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ts-")))
            stack.push(self._judge)
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self, stack: ExitStack) -> None:
        """Make all of it; what ends it goes to the stack."""
        raise NotImplementedError

    def _judge(self, kind: type[BaseException] | None, *_: object) -> None:
        """Look at what all have logged, when they have ended."""
        logs = self.logs()
        if kind is not None:
            sys.stderr.write(json.dumps(logs, indent=1))
        else:
            assert not [name for name, text in logs.items() if any("Traceback" in line for line in text)], logs

    def _start(self, stack: ExitStack, tree: Tree, *machines: Machine) -> None:
        """Run everything on these, the first of which is the top, and its calm containers."""
        self.top = top = machines[0]
        for each in machines:
            each.box.call(tree.start, each.name)
            stack.callback(tree.kill, each.name)
        for each in machines:
            each.start()
            stack.callback(each.end)
        top.bus.wait_for(self._listen())
        for each in machines:
            wait(f"the balancer of {each.name}", each.balances)
        stack.callback(top.remove, *CALM)
        for name in CALM:
            top.run(name, "--label=treescale.balancer=quick,patient,storm")
        top.listens(*CALM)
        self.calm = {top.place(name): 1 for name in CALM}
        for port in self.calm_ports:
            top.wait_table(port, self.calm)

    async def _listen(self) -> None:
        await self.top.bus.client.subscribe("lb.*", callback=self.events.append)

    def logs(self) -> dict[str, list[str]]:
        """The end of what each program has logged."""
        return {file.name: file.read_text().splitlines()[-100:] for file in self._folder.glob("*.log")}

    def _wire(self, boxes: dict[str, Box]) -> None:
        """Connect these by a switch."""
        switch = self.switch = Box("switch")
        switch.ip("link add lan type bridge", "link set lan up")
        for name, box in boxes.items():
            namespace = f"/proc/{os.getpid()}/fd/{box.fd}"
            switch.ip(
                f"link add to-{name} type veth peer name eth0 netns {namespace}",
                f"link set to-{name} master lan up",
            )
            box.ip("link set lo up", f"address add {ADDRESSES[name]}/24 dev eth0", "link set eth0 up")

    def told(self, balancer: str, name: str = "") -> list[str]:
        """The topics of the events about a balancer, or about one server of it, without `lb.`, in their order."""
        bodies = [(event.topic, event.json()) for event in list(self.events)]
        return [
            topic.removeprefix("lb.")
            for topic, body in bodies
            if body.get("balancer") == balancer and (not name or body.get("server", {}).get("name") == name)
        ]

    def wait_told(self, balancer: str, *topics: str, name: str = "") -> None:
        """Wait until these are the last events about it: the table shows a change before its event is here."""
        told = f"{topics} of {balancer} {name}"
        wait(told, lambda: self.told(balancer, name)[-len(topics) :] == list(topics))


class NftMachines(Site):
    """A Docker host that balances with nftables, in a namespace of this machine's kernel, and the client in another."""

    def _build(self, stack: ExitStack) -> None:
        top, self.client = Box("top"), Box("client")
        self._wire({"top": top, "client": self.client})
        for each in (top, self.client, self.switch):
            stack.callback(each.close)
        with inside(top):
            engine = dockerd.Dockerd()
            stack.callback(_stop, top, engine)
            engine.start()
        engine.image(IMAGE)
        tree = Tree("top", self._folder, bus=PATIENT)
        server = replace(
            tree.config.servers["top"],
            ip=ADDRESSES["top"],
            balancers={"storm": STORM},
            docker=DockerPolicy(host=engine.host),
        )
        tree.config = replace(tree.config, balancing=Balancing("nftables", reconcile_s=10), servers={"top": server})
        self._start(stack, tree, NftMachine("top", top, engine.host, tree))


def _stop(box: Box, engine: dockerd.Dockerd) -> None:
    with inside(box):
        engine.stop()


class Machines(Site):
    """The two machines. For a guest with Docker."""

    calm_ports = (84, 85)  # 86 comes 15 s later, and few need it

    def _build(self, stack: ExitStack) -> None:
        self.client, top, low = Box("client"), Here("top"), Box("low")
        self._wire({"top": top, "client": self.client, "low": low})
        self.dockerd = Dockerd(low)
        stack.callback(self.dockerd.end)
        tree = Tree("top:low", self._folder, bus=PATIENT)
        hosts = {"top": os.environ["DOCKER_HOST"], "low": Dockerd.host}
        balanced = balancers()
        servers = {
            name: replace(one, ip=ADDRESSES[name], balancers=balanced[name], docker=DockerPolicy(host=hosts[name]))
            for name, one in tree.config.servers.items()
        }
        tree.config = replace(tree.config, balancing=Balancing(reconcile_s=10), servers=servers)
        first, self.low = (Machine(name, box, hosts[name], tree) for name, box in (("top", top), ("low", low)))
        image = "tar -C /run/busybox -c . | docker --host {} import - {}"  # made by uml-docker
        run("sh", "-c", image.format(Dockerd.host, IMAGE))
        for each in (first, self.low):
            each.docker("tag", IMAGE, SHOP)
        self._start(stack, tree, first, self.low)

    def settle(self) -> None:
        """Remove what a test has started, and wait until no table has any of it: the next test counts on that."""
        for each in (self.top, self.low):
            each.remove()
        self.low.wait_table(80, {})
        for port in (80, 81):
            self.top.wait_table(port, {})
        for port in self.calm_ports:
            self.top.wait_table(port, self.calm)
        for port in (82, 83):  # low itself, which has nothing to give
            wait(f"nothing behind port {port}", lambda port=port: not any(self.top.table(port).values()))

    def cable(self, *, plugged: bool) -> None:
        """Pull the cable of low, or plug it in."""
        self.switch.ip(f"link set to-low {'up' if plugged else 'down'}")
