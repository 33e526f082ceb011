"""What one console pays for each server: log in, probe, bring a bundle, run a script, on four real little servers.

Each server is logged in to many times over, as if it were so many.
"""

from __future__ import annotations

import resource
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.harness import ROOT, BenchError
from bench.servers import Servers, servers
from tsbus.build.access import KeyFile, Login
from tsbus.build.runner import Failed, Runner
from tsbus.build.ssh import Session, Shared

SERVERS, TIMES = 4, 10
SLOW, SLOWEST_S = 200, 20.0
PROBE = (ROOT / "tsbus/build/probe.sh").read_text()
PARALLEL = 8
"""What two cores shared with the servers can bear."""


class Console(ABC):
    """One way to do it."""

    def version(self) -> str:
        return "-"

    def measure(self) -> dict[str, float]:
        with servers(SERVERS) as there:
            return _cost(lambda: self.build(there), SERVERS * TIMES)

    @abstractmethod
    def build(self, there: Servers) -> None:
        """Do all of it, TIMES times for each server."""


def _cost(do: Callable[[], None], count: int) -> dict[str, float]:
    """CPU and memory of this process and of those that it has started, for each server, and seconds for all."""
    Path("/proc/self/clear_refs").write_text("5")  # the most memory counts from here
    before, resident, begun = _cpu_s(), _memory_mib("VmRSS"), time.monotonic()
    do()
    return {
        "s in all": time.monotonic() - begun,
        "CPU s / server": (_cpu_s() - before) / count,
        "MiB / server": max(0, _memory_mib("VmHWM") - resident) / count,
    }


def _cpu_s() -> float:
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


def _memory_mib(field: str) -> float:
    """The memory of this process by the kernel's name: VmRSS is now, VmHWM the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


class OursSsh(Console):
    """The sessions of the build, all open until the last is done."""

    def build(self, there: Servers) -> None:
        def job(session: Session, _: object) -> None:
            path = f"/run/bench-{session.login.name}"
            session.run(PROBE, stage="probe")
            take = f"echo ready; cat > {path} && sha256sum {path}"
            session.run(take, stage="bundle", stdin=lambda _: there.bundle.open("rb"))
            session.run("true", stage="activate")

        _run_all(_logins(there, SERVERS * TIMES), job, PARALLEL)


class OursSlow(OursSsh):
    """200 servers at the same time, each of which takes its time for a script: at most SLOWEST_S."""

    def measure(self) -> dict[str, float]:
        with servers(SERVERS) as there:
            figures = _cost(lambda: self.build(there), SLOW)
            return {"s in all": figures["s in all"], "of the slowest": figures["s in all"] / SLOWEST_S} | figures

    def build(self, there: Servers) -> None:
        def job(session: Session, _: object) -> None:
            seconds = SLOWEST_S * (int(session.login.name) + 1) / SLOW
            session.run(f"sleep {seconds:g}", stage="prepare", timeout_s=SLOWEST_S * 3)

        _run_all(_logins(there, SLOW), job, SLOW)


def _logins(there: Servers, count: int) -> dict[str, Login]:
    way, known = (KeyFile(there.key),), (there.known_hosts,)
    places = (there.targets[number % SERVERS].ip for number in range(count))
    return {str(n): Login(str(n), ip, 22, "root", way, known_hosts=known) for n, ip in enumerate(places)}


def _run_all(logins: dict[str, Login], job: Callable[[Session, Any], None], parallel: int) -> None:
    with Runner(logins, Shared(), parallel=parallel) as runner:
        for news in runner.each(logins, job):
            if isinstance(news, Failed):
                raise BenchError(str(news.trouble))


class OpenSsh(Console):
    """The system's own client, one connection for three commands of a server."""

    def version(self) -> str:
        return subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip()

    def build(self, there: Servers) -> None:
        def one(number: int) -> None:
            options = [f"UserKnownHostsFile={there.known_hosts}", "ControlMaster=auto", "ControlPersist=60"]
            options += [f"ControlPath={there.folder}/{number}"]
            words = ["ssh", "-i", str(there.key), *(word for option in options for word in ("-o", option))]
            place, path = f"root@{there.targets[number % SERVERS].ip}", f"/run/bench-{number}"
            with there.bundle.open("rb") as file:
                _run([*words, place, "sh -s"], input=PROBE.encode())
                _run([*words, place, f"cat > {path} && sha256sum {path}"], stdin=file)
                _run([*words, place, "true"])
                _run([*words, "-O", "exit", place])

        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(one, range(SERVERS * TIMES)))


def _run(argv: list[str], **options: Any) -> None:
    subprocess.run(argv, capture_output=True, check=True, **options)
