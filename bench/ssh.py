"""What one console pays for each server: log in, probe, bring a bundle, run a script, on four real little servers.

Each server is logged in to TIMES over, as if it were so many. Needs root and mmdebstrap (tests/targets.py).
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.harness import ROOT, BenchError

sys.path.insert(0, str(ROOT / "tests"))  # where a lab's own process looks for its parts

from targets import Lab, Target

SERVERS, TIMES = 4, 10
SLOW, SLOWEST_S = 200, 20.0
BUNDLE_BYTES = 4 << 20
PROBE = (ROOT / "tsbus/build/probe.sh").read_text()
PARALLEL = 8
"""What two cores shared with the servers can bear."""


class Console(ABC):
    """One way to do it."""

    def version(self) -> str:
        return "-"

    def measure(self) -> dict[str, float]:
        lab = Lab()
        try:
            targets = [lab.target() for _ in range(SERVERS)]
            with tempfile.TemporaryDirectory() as folder:
                known = Path(folder, "known_hosts")
                known.write_text("".join(target.known_host() for target in targets))
                bundle = Path(folder, "bundle")
                bundle.write_bytes(os.urandom(BUNDLE_BYTES))
                return _cost(lambda: self.build(targets * TIMES, lab.key, known, bundle))
        finally:
            lab.stop()

    @abstractmethod
    def build(self, targets: list[Target], key: Path, known: Path, bundle: Path) -> None:
        """Do all of it."""


def _cost(do: Any) -> dict[str, float]:
    """CPU and memory of this process and of those that it has started, for each server, and seconds for all."""
    count = SERVERS * TIMES
    before, resident, begun = _cpu_s(), _resident_kib(), time.monotonic()
    do()
    return {
        "CPU s / server": (_cpu_s() - before) / count,
        "MiB / server": max(0, _resident_kib() - resident) / 1024 / count,
        "s in all": time.monotonic() - begun,
    }


def _cpu_s() -> float:
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


def _resident_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class OursSsh(Console):
    """The sessions of the build, all open until the last is done."""

    def build(self, targets: list[Target], key: Path, known: Path, bundle: Path) -> None:
        from tsbus.build.access import KeyFile, Login
        from tsbus.build.runner import Failed, Runner
        from tsbus.build.ssh import Session, Shared

        digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
        logins = {
            str(number): Login(str(number), target.ip, 22, "root", (KeyFile(key),), known_hosts=(known,))
            for number, target in enumerate(targets)
        }

        def job(session: Session, _: object) -> None:
            session.run(PROBE, stage="probe")
            session.upload(bundle, f"/run/bench/{session.login.name}", digest)
            session.run("true", stage="activate")

        with Runner(logins, Shared(), parallel=PARALLEL) as runner:
            failed = [news for news in runner.each(logins, job) if isinstance(news, Failed)]
        if failed:
            raise BenchError(str(failed[0].trouble))


class OursSlow(OursSsh):
    """200 servers at the same time, each of which takes its time for a script: at most SLOWEST_S."""

    def measure(self) -> dict[str, float]:
        lab = Lab()
        try:
            targets = [lab.target() for _ in range(SERVERS)]
            with tempfile.TemporaryDirectory() as folder:
                known = Path(folder, "known_hosts")
                known.write_text("".join(target.known_host() for target in targets))
                before, resident, begun = _cpu_s(), _resident_kib(), time.monotonic()
                peak = self.wait_for(targets * (SLOW // SERVERS), lab.key, known)
                taken = time.monotonic() - begun
                return {
                    "s in all": taken,
                    "of the slowest": taken / SLOWEST_S,
                    "CPU s / server": (_cpu_s() - before) / SLOW,
                    "MiB / server": max(0, peak - resident) / 1024 / SLOW,
                }
        finally:
            lab.stop()

    def wait_for(self, targets: list[Target], key: Path, known: Path) -> int:
        """Let each sleep; returns the most KiB of memory that was in use meanwhile."""
        from tsbus.build.access import KeyFile, Login
        from tsbus.build.runner import Failed, Runner
        from tsbus.build.ssh import Session, Shared

        logins = {
            str(number): Login(str(number), target.ip, 22, "root", (KeyFile(key),), known_hosts=(known,))
            for number, target in enumerate(targets)
        }

        def job(session: Session, _: object) -> None:
            seconds = SLOWEST_S * (int(session.login.name) + 1) / SLOW
            session.run(f"sleep {seconds:g}", stage="prepare", timeout_s=SLOWEST_S * 3)

        peak = 0
        with Runner(logins, Shared(), parallel=SLOW) as runner:
            for news in runner.each(logins, job):
                peak = max(peak, _resident_kib())
                if isinstance(news, Failed):
                    raise BenchError(str(news.trouble))
        return peak


class OpenSsh(Console):
    """The system's own client, one connection for three commands of a server."""

    def version(self) -> str:
        return subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip()

    def build(self, targets: list[Target], key: Path, known: Path, bundle: Path) -> None:
        def one(number: int) -> None:
            options = [f"UserKnownHostsFile={known}", "ControlMaster=auto", f"ControlPath={known.parent}/{number}"]
            words = ["ssh", "-i", str(key), "-o", "ControlPersist=60"]
            words += [word for option in options for word in ("-o", option)]
            place, there = f"root@{targets[number].ip}", f"/run/bench-{number}"
            with bundle.open("rb") as file:
                _run([*words, place, "sh -s"], input=PROBE.encode())
                _run([*words, place, f"cat > {there} && sha256sum {there}"], stdin=file)
                _run([*words, place, "true"])
                _run([*words, "-O", "exit", place])

        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(one, range(len(targets))))


def _run(argv: list[str], **options: Any) -> None:
    subprocess.run(argv, capture_output=True, check=True, **options)
