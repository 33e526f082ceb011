"""Rolling with real containers: clients in another network meet no error, whatever is restarted or replaced.

Engine, balancer (nftables) and client each live in a network namespace of their own; the machine's is not touched.
"""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dockerd import Dockerd
from lan import Box, enter, inside
from lone_router import LoneRouter
from waiting import LIMIT_S, wait

from tsbus import connect_blocking, draining
from tsbus.cli.main import cli
from tsbus.containers.engine import Engine

ROOT = Path(__file__).parents[2]
VIP = ("10.77.0.1", 80)
WEBS = ("web1", "web2", "web3")
CONFIG = """
[servers.solo.balancers.shop]
address = "10.77.0.1:80"
alg = "rr"
drain_timeout_s = 600
[servers.solo.balancers.shop.containers]
shop = 8080
[balancing]
backend = "nftables"
"""
SERVER = "cat /etc/hostname > /www/index.html; httpd -f -p 8080 -h /www & trap 'kill $!; exit' TERM; wait"
"""It closes its port and ends at once when it is told to stop, as most programs do."""


def read_until(terminal: int, text: bytes) -> None:
    """Read what a program writes on a terminal until it has written `text`."""
    seen = b""
    while text not in seen:
        assert select.select([terminal], [], [], LIMIT_S)[0], f"{text!r} did not come: {seen!r}"
        seen += os.read(terminal, 4096)


class Clients:
    """Four clients that ask with new connections all the time, while this is entered."""

    def __init__(self, box: Box) -> None:
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self._box, self._over = box, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def forget(self) -> None:
        """Count anew, only requests that begin from now on: one that is answered may not have been counted yet."""
        self.answers = Counter()

    def _ask(self) -> None:
        enter(self._box.fd)
        while not self._over.wait(0.005):
            answers = self.answers
            try:
                answers[ask()] += 1
            except OSError as error:
                self.errors.append(repr(error))


def ask() -> str:
    """Who answers a request; for a thread in the client's namespace."""
    with socket.create_connection(VIP, LIMIT_S) as end:
        end.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while more := end.recv(1000):
            answer += more
    if b" 200 " not in answer:
        raise ConnectionResetError(f"no whole answer: {answer!r}")
    return answer.split()[-1].decode()


class Shop:
    """The node with its services, the engine and the client."""

    def __init__(self, folder: str, stack: contextlib.ExitStack) -> None:
        self.folder = Path(folder)
        self.host, self.client = Box("host"), Box("client")
        stack.callback(self.host.close)
        stack.callback(self.client.close)
        self.host.ip("link set lo up")
        place = f"/proc/{os.getpid()}/fd/{self.client.fd}"
        self.host.ip(f"link add out type veth peer name eth0 netns {place}", "address add 10.77.0.1/24 dev out",
                     "link set out up")  # fmt: skip
        self.client.ip("link set lo up", "address add 10.77.0.2/24 dev eth0", "link set eth0 up")
        with inside(self.host):
            self.dockerd = Dockerd()
            stack.callback(self._stop_engine)
            self.dockerd.start()
        check = "HEALTHCHECK --interval=0.3s --timeout=5s --retries=3 CMD wget -q -O /dev/null http://127.0.0.1:8080/"
        for tag in ("1", "2"):
            self.dockerd.image(f"shop:{tag}", f"CMD {json.dumps(['sh', '-c', SERVER])}", check, f"LABEL v={tag}")
        self.dockerd.image("shop:bad", 'CMD ["sleep", "1000"]', check)
        self.engine = Engine(self.dockerd.host)
        stack.callback(self.engine.close)
        router = LoneRouter(folder, CONFIG)
        stack.callback(router.kill)
        self.bus = router.bus
        self.watcher = stack.enter_context(connect_blocking(self.bus, timeout_s=LIMIT_S))
        self.start("docker", "--audit-dir", folder)
        stack.callback(self.end, "docker")
        self.balancer_options = ("--run-dir", folder)
        self.start("balancer", *self.balancer_options)
        stack.callback(self.end, "balancer")

    def _stop_engine(self) -> None:
        with inside(self.host):
            self.dockerd.stop()

    def start(self, name: str, *options: str) -> None:
        """Run a service of the node, the balancer where the engine's network is."""
        argv = [sys.executable, ROOT / f"services/ts_{name}.py", "--config", self.folder / "treescale.toml"]
        argv += ["--bus", self.bus, *options]
        env = os.environ | {"DOCKER_HOST": self.dockerd.host}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = self.host.call(subprocess.Popen, argv, env=env, stderr=log)
        setattr(self, name, process)

    def end(self, name: str) -> None:
        """Kill a service."""
        process: subprocess.Popen[bytes] = getattr(self, name)
        process.kill()
        process.wait()

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(cli, ["--bus", self.bus, *words])

    def told(self, *words: str) -> str:
        """What a command line that ends well says."""
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    def containers(self) -> dict[str, tuple[str, str]]:
        """Name -> image and id, of those that run."""
        lines = self.told("container", "ls", "--json").splitlines()[:-1]
        rows = [json.loads(line) for line in lines]
        return {row["name"]: (row["image"]["given"], row["id"]) for row in rows if row["state"] == "running"}

    def states(self) -> dict[str, str]:
        """Name -> state in the balancer."""
        told = self.watcher.call("solo", "lb.show").values().get("solo") or {}
        return {each["name"]: each["state"] for each in told.get("servers", ())}

    def wait_active(self, *names: str) -> None:
        try:
            wait(f"{names} are active", lambda: self.states() == dict.fromkeys(names, "active"))
        except AssertionError as error:
            log = (self.folder / "balancer.log").read_text()[-3000:]
            raise AssertionError(f"{error}; there are {self.states()}\n{log}") from None


@pytest.fixture(scope="module")
def one_shop() -> Iterator[Shop]:
    with tempfile.TemporaryDirectory(prefix="ts-") as folder, contextlib.ExitStack() as stack:
        shop = Shop(folder, stack)
        wait("the engine is known", lambda: shop.run("container", "ls", "--json").exit_code == 0)
        yield shop


@pytest.fixture
def shop(one_shop: Shop) -> Shop:
    """The shop with its three web servers, of image shop:1."""
    there = {name: image for name, (image, _) in one_shop.containers().items()}
    kept = {name for name in WEBS if there.get(name) == "shop:1"}
    if others := {*there} - kept:
        one_shop.told("container", "rm", "solo", *others, "--force")
    for name in {*WEBS} - kept:
        one_shop.told("container", "run", "solo", "shop:1", "--name", name, "--hostname", name)
    one_shop.wait_active(*WEBS)
    return one_shop


def test_restarted_without_an_error(shop: Shop) -> None:
    """All three one after the other, under load: every one is another run, and no request fails."""
    before = {name: shop.engine.inspect(id_).started_ns for name, (_, id_) in shop.containers().items()}
    with Clients(shop.client) as clients:
        wait("all answer", lambda: {*clients.answers} == {*WEBS})
        assert shop.told("container", "restart", "solo", *WEBS, "--drain").splitlines() == [
            f"solo/{name}: running" for name in WEBS
        ]
        clients.forget()
        wait("all answer again", lambda: {*clients.answers} == {*WEBS})
    assert clients.errors == []
    assert all(shop.engine.inspect(id_).started_ns > before[name] for name, (_, id_) in shop.containers().items())


def test_without_drain_there_are_errors(shop: Shop) -> None:
    """The same without --drain fails clients, so this load would show it."""
    with Clients(shop.client) as clients:
        wait("all answer", lambda: {*clients.answers} == {*WEBS})

        def failed() -> bool:
            shop.told("container", "restart", "solo", *WEBS)
            shop.wait_active(*WEBS)
            return bool(clients.errors)

        wait("a request that failed", failed)


def test_replaced_without_an_error(shop: Shop) -> None:
    """A new image in the place of each, under load: every container is a new one, and no request fails."""
    before = shop.containers()
    with Clients(shop.client) as clients:
        wait("all answer", lambda: {*clients.answers} == {*WEBS})
        for name in WEBS:
            shop.told("container", "run", "solo", "shop:2", "--name", name, "--hostname", f"new-{name}", "--replace")
        clients.forget()
        wait("the new ones answer", lambda: {*clients.answers} == {f"new-{name}" for name in WEBS})
    assert clients.errors == []
    after = shop.containers()
    assert {name: image for name, (image, _) in after.items()} == dict.fromkeys(WEBS, "shop:2")
    assert {id_ for _, id_ in before.values()}.isdisjoint(id_ for _, id_ in after.values())


def test_a_new_one_that_is_never_healthy(shop: Shop) -> None:
    """It is removed again, the old one goes on, and the balancer's reason is told; exit code 1."""
    before = shop.containers()
    with Clients(shop.client) as clients:
        result = shop.run("container", "run", "solo", "shop:bad", "--name", "web1", "--replace", "--wait", "3")
    assert result.exit_code == 1
    assert "solo/web1" in result.stderr
    assert "shop on solo: joining, " in result.stderr
    assert "the old one serves as before" in result.stderr
    assert shop.containers() == before
    assert clients.errors == []


def test_a_fixed_port_of_the_host(shop: Shop) -> None:
    """Two cannot have it, so the old one is stopped first; the new one has it then."""
    options = ("--name", "fixed", "--publish", "8099:8080")
    shop.told("container", "run", "solo", "shop:1", *options)
    shop.wait_active(*WEBS, "fixed")
    shop.told("container", "run", "solo", "shop:2", *options, "--replace")
    assert shop.containers()["fixed"][0] == "shop:2"
    shop.wait_active(*WEBS, "fixed")
    assert shop.host.call(_connects, ("127.0.0.1", 8099))


def _connects(to: tuple[str, int]) -> bool:
    with socket.create_connection(to, LIMIT_S):
        return True


def test_ctrl_c_takes_the_drain_back(shop: Shop) -> None:
    """A connection that stays holds the drain up, which is told; who gives up finds the servers active."""
    before = shop.containers()
    ends = [shop.client.call(socket.create_connection, VIP, LIMIT_S) for _ in WEBS]
    argv = [ROOT / "bin/treescale", "--bus", shop.bus, "container", "stop", "solo", *WEBS[:2], "--drain"]
    terminal, its = pty.openpty()
    process = subprocess.Popen(argv, stderr=its)
    os.close(its)
    wait("they drain", lambda: Counter(shop.states().values()) == {"draining": 2, "active": 1})
    read_until(terminal, b"draining, connections left: 1 in shop on solo")
    process.send_signal(signal.SIGINT)
    read_until(terminal, b"cancelled 2: solo/web[1-2] (interrupted before anything was done)")
    assert process.wait(LIMIT_S) == 130
    os.close(terminal)
    shop.wait_active(*WEBS)
    assert shop.containers() == before
    for end in ends:
        end.close()


def test_a_balancer_that_is_not_there(shop: Shop) -> None:
    """Its table is in force without it, so nothing is stopped, and what to do is told."""
    before = shop.containers()
    shop.end("balancer")
    for verb in (("stop",), ("restart",), ("rm", "--force"), ("kill",)):
        result = shop.run("container", verb[0], "solo", "web1", "--drain", *verb[1:])
        assert result.exit_code == 1
        assert "the balancer of solo did not do it" in result.stderr
        assert "start ts-balancer there" in result.stderr
    told = shop.run("container", "restart", "solo", "web1", "web2", "--drain", "--json").stdout.splitlines()
    assert json.loads(told[-1])["summary"]["no_such_service"] == ["solo/web1", "solo/web2"]
    assert shop.containers() == before
    shop.start("balancer", *shop.balancer_options)
    shop.wait_active(*WEBS)


def test_a_signal_that_ends_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container is drained for its signal too, and if it goes on, it takes part again soon."""
    monkeypatch.setattr(draining, "ENDS_S", 0.5)
    assert shop.told("container", "kill", "solo", "web1", "--signal", "WINCH", "--drain") == "solo/web1: running\n"
    shop.wait_active(*WEBS)


def test_what_no_balancer_has_is_just_stopped(shop: Shop) -> None:
    """With a label that keeps it out, it is not waited for; and the signal of kill may be another."""
    shop.told("container", "run", "solo", "shop:1", "--name", "alone", "--label", "treescale.enable=false")
    assert shop.told("container", "stop", "solo", "alone", "--drain") == "solo/alone: exited\n"
    shop.told("container", "start", "solo", "alone")
    assert shop.told("container", "rm", "solo", "alone", "--force", "--drain") == "solo/alone: removed\n"
