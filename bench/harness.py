"""Starts processes, waits for conditions and reads what each process cost.

Knows nothing of any contestant. The scenarios use it to run one contestant at a time; every process is killed
when its `Fleet` closes, and dies with the harness if the harness itself is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "bench" / ".cache"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class BenchError(Exception):
    """A process ended early, or a condition was not met in time."""


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 15.0, every_s: float = 0.01) -> None:
    """Return once `condition()` is true; raise BenchError naming `what` after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {limit_s:g} s")
        time.sleep(every_s)


def output(*argv: str) -> str:
    """What a program prints, stripped."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def cpu_s(pid: int) -> float:
    """User plus system time of a process, all its threads included."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS_PER_S


def group_members() -> dict[int, list[int]]:
    """The processes of every process group: each program we start leads a group with its forked helpers in it."""
    members: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):  # ended while we looked
            members.setdefault(os.getpgid(int(entry.name)), []).append(int(entry.name))
    return members


def memory_mib(pid: int, field: str) -> float:
    """Memory of a process by the kernel's name: Rss, or Pss which shares out pages that several processes map."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """One started program in a role (`router 1`, `publisher 2`), in a process group of its own."""

    def __init__(self, role: str, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.role = role
        self.log = log
        with log.open("wb") as err:
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, bufsize=0, cwd=ROOT,
                env={**os.environ, **env}, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        self._pending = b""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def check(self) -> None:
        if self.popen.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{self.role} ended with {self.popen.returncode}\n{tail}")

    def tell(self, message: Mapping[str, Any]) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(json.dumps(message).encode() + b"\n")

    def hear(self, limit_s: float) -> dict[str, Any] | None:
        """The next JSON line the process writes, or None after `limit_s`."""
        assert self.popen.stdout
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._pending:
            readable, _, _ = select.select([self.popen.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                return None
            chunk = os.read(self.popen.stdout.fileno(), 1 << 16)
            if not chunk:
                self.popen.wait()
                self.check()
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def must_hear(self, limit_s: float = 30.0) -> dict[str, Any]:
        """As `hear`, but silence is a BenchError."""
        answer = self.hear(limit_s)
        if answer is None:
            raise BenchError(f"{self.role}: no answer within {limit_s:g} s\n{self.log.read_text()[-2000:]}")
        return answer

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()


class Fleet:
    """All processes and files of one measurement; leaving the `with` block kills and removes them."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self._folder = tempfile.TemporaryDirectory(prefix="tsbench-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
        self._folder.cleanup()

    def start(self, role: str, argv: Sequence[str], ports: Sequence[int] = (), **env: str) -> Process:
        """Start a program; if `ports` are given, return once it listens on all of them."""
        process = Process(role, argv, self.folder / f"{role.replace(' ', '-')}.log", env)
        self.processes.append(process)

        def is_up() -> bool:
            process.check()
            return all(listening(port) for port in ports)

        wait_until(is_up, f"{role} listening on {list(ports)}")
        return process

    def python(self, role: str, module: str, *args: str, ports: Sequence[int] = ()) -> Process:
        return self.start(role, [sys.executable, "-m", module, *args], ports)

    def python_file(self, role: str, script: Path, *args: str) -> Process:
        return self.start(role, [sys.executable, str(script), *args])

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def named(self, role: str) -> Process:
        return next(process for process in self.processes if process.role == role)

    def cpu_by_role(self) -> dict[str, float]:
        """CPU seconds since start, summed per kind of role: router, publisher, subscriber and so on."""
        return self._sum_by_role(cpu_s)

    def memory_by_role(self, field: str) -> dict[str, float]:
        """MiB in use, summed per kind of role; `field` is Rss or Pss."""
        return self._sum_by_role(lambda pid: memory_mib(pid, field))

    def _sum_by_role(self, figure: Callable[[int], float]) -> dict[str, float]:
        totals: dict[str, float] = {}
        members = group_members()
        for process in self.processes:
            kind = process.role.partition(" ")[0]
            totals[kind] = totals.get(kind, 0.0) + sum(figure(pid) for pid in members.get(process.pid, ()))
        return totals

    def wait_quiet(self, limit_s: float = 60.0) -> None:
        """Return once all processes together use under a tenth of a core: starting up is over."""
        used = sum(self.cpu_by_role().values())

        def is_quiet() -> bool:
            nonlocal used
            time.sleep(1.0)  # the window over which use is measured
            before, used = used, sum(self.cpu_by_role().values())
            return used - before < 0.1

        wait_until(is_quiet, "the processes have come to rest", limit_s)
