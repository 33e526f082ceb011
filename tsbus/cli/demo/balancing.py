"""Balancing: the part of the demo about the balancer: an address of web1 with three containers behind it."""

import contextlib
import http.client
import os
import subprocess
import threading
from collections import Counter
from typing import Any, Final, Self

from tsbus.blocking import BlockingClient
from tsbus.cli.demo.borrowed import Borrowed
from tsbus.cli.demo.stage import Stage, chapter, expect, say, until
from tsbus.cli.edge import Fault
from tsbus.config import Balancer, Balancing
from tsbus.errors import BusError, CallFailed
from tsbus.supervision.local import start_command

NODE: Final = "web1"
ADDRESS: Final = ("198.51.100.80", 80)
"""Of a network that is for documentation (RFC 5737), so it is nobody's."""
SHOP: Final = Balancer("shop", "{}:{}".format(*ADDRESS), manage_vip=True)
KEYS: Final = {"balancers": {SHOP.name: SHOP}, "balancing": Balancing(backend="auto")}
"""Of web1 in the configuration."""
COUNT: Final = 3
PROGRAM: Final = "hostname > index.html; httpd -p 80; trap exit TERM; sleep 9999 & wait"
"""A web server that tells its container's name and closes its port at once when it is asked to stop."""
HEALTH: Final = ("--health-cmd", "wget -q -O /dev/null 127.0.0.1", "--health-interval", "1s")
_THREADS: Final = 4
_PAUSE_S: Final = 0.02
"""Between two requests of a thread: nearly 200 a second in all."""
_PATIENCE_S: Final = 20.0
_KINDS: Final = {"ipvs": "by IPVS", "nftables": "by nftables, since this kernel has no IPVS"}


class Load:
    """Clients that make one request after the other, each with a connection of its own, while this is entered."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        """Answers from each container, by host name."""
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(_THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def made(self) -> int:
        """Requests until now."""
        return self.answers.total() + len(self.failures)

    def wait_more(self, count: int) -> None:
        """Wait until so many more requests have been made."""
        target = self.made + count
        for _ in until(f"{count} requests to {SHOP.address}"):
            if self.made >= target:
                return

    def _run(self) -> None:
        while not self._over.wait(_PAUSE_S):
            try:
                self.answers[ask()] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")


def ask() -> str:
    """Return who answers one request. Raises OSError, HTTPException."""
    with contextlib.closing(http.client.HTTPConnection(*ADDRESS, timeout=_PATIENCE_S)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read().decode().strip()


def possible(docker: Borrowed) -> str:
    """Return why this part cannot be shown, empty when it can."""
    if docker.trouble or not docker.is_local:
        return docker.trouble or "the engine is on another machine, so this one cannot reach its containers"
    if os.geteuid() != 0:
        return "the kernel's tables take root"
    return ""


def show(stage: Stage, bus: BlockingClient, docker: Borrowed) -> None:
    """Requests are spread over three containers; one is killed, and one is drained and stopped without an error."""
    chapter("5. One address, three containers behind it")
    if trouble := possible(docker):
        say(f"Left out: {trouble}")
        return
    try:
        backend = _backend(bus)
        say(f"web1 has a balancer at {SHOP.address} in its kernel, {_KINDS[backend]}.")
        say("Three web servers join it by a label, each as soon as its health check passes:")
        names = _start(stage, bus, docker)
    except (BusError, Fault, OSError, http.client.HTTPException) as error:
        # Neither the kernel nor the engine is ours: one may lack nftables, the other run where nobody reaches it.
        say(f"The rest of this part is left out: {error}")
        return
    stage.run(["treescale", "lb", "show", NODE])
    say("\nClients ask it about 200 times a second, each time with a new connection:")
    with Load() as load:
        load.wait_more(300)
    _tell(load, names)
    _kill(stage, bus, names)
    _drain(stage, names)
    stage.run(["treescale", "lb", "why", SHOP.address, NODE, "--from", "local"])


def remove(stage: Stage) -> None:
    """Take the balancer out of the kernel, which would go on balancing. Its process has ended before."""
    files = stage.folder(NODE).files
    if files.balancer_state.exists():
        options = ["--config", str(files.config), "--run-dir", str(files.run_dir), "--clear"]
        subprocess.run([*start_command("balancer"), *options], stdout=subprocess.DEVNULL, check=False)


def _backend(bus: BlockingClient) -> str:
    """Return what web1 balances with. Raises Fault with the reason when it cannot."""
    for _ in until("the balancer of web1 does not start"):
        with contextlib.suppress(CallFailed):
            if backend := bus.call_one(NODE, "lb.ls")["balancers"][0].get("backend"):
                return str(backend)
            if problems := bus.call_one(NODE, "lb.check")["problems"]:
                break
    raise Fault(problems[0]["text"])


def _start(stage: Stage, bus: BlockingClient, docker: Borrowed) -> dict[str, str]:
    """Start the web servers; return their names by host name, when they are reached."""
    labels = [f"--label=treescale.{key}" for key in (f"balancer={SHOP.name}", f"port={ADDRESS[1]}")]
    options = ("--name", f"{docker.name}-shop", "--count", str(COUNT), *labels, *HEALTH)
    stage.run(["treescale", "container", "run", NODE, docker.image, *options, "--", "sh", "-c", PROGRAM])
    for _ in until("they do not get into the table"):
        servers = _servers(bus)
        if [each["state"] for each in servers] == ["active"] * COUNT:
            break
    ask()
    return {each["id"][:12]: each["name"] for each in servers}


def _kill(stage: Stage, bus: BlockingClient, names: dict[str, str]) -> None:
    """Kill a container under load."""
    victim = min(names.values())
    say("\nOne is killed meanwhile. Docker tells of it when it is dead, so a few requests may meet a closed port:")
    with bus.subscribe("lb.removed") as removed, Load() as load:
        load.wait_more(100)
        with stage.running(["treescale", "container", "kill", NODE, victim]):
            event = expect(removed, NODE).json()
        load.wait_more(100)
    _tell(load, names)
    say(f"{event['server']['name']} was removed from the table: {event['cause']}.")


def _drain(stage: Stage, names: dict[str, str]) -> None:
    """Stop a container under load, without a failed request. Raises Fault if there is one."""
    victim = max(names.values())
    say("\nAnother one is stopped with --drain: it gets no new connections, and ends with its last one.")
    with Load() as load:
        load.wait_more(100)
        stage.run(["treescale", "container", "stop", NODE, victim, "--drain"])
        load.wait_more(100)
    _tell(load, names)
    if load.failures:
        raise Fault(f"{len(load.failures)} requests failed while {victim} was drained and stopped: {load.failures[0]}")


def _servers(bus: BlockingClient) -> list[dict[str, Any]]:
    return list(bus.call_one(NODE, "lb.show")["servers"])


def _tell(load: Load, names: dict[str, str]) -> None:
    by_name = sorted((names.get(host, host), count) for host, count in load.answers.items())
    answers = ", ".join(f"{count} by {name}" for name, count in by_name)
    say(f"{load.made} requests: {answers}; failed: {len(load.failures)}.")
