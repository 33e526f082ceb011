"""Control: one supervisord from outside. Starts it, asks it, ends it, and finds what a killed one left running."""

import contextlib
import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from base64 import b64encode
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsbus.supervision import SupervisionError
from tsbus.supervision.conf import USER, NodeFiles

STOP_S = 20.0
"""Within this, supervisord has ended its programs: it gives each 15 s (stopwaitsecs), then kills it."""
READERS = ("executor", "docker", "balancer", "dashboard")
"""Programs that read the tree when they start; the router follows it as it runs."""
_STARTS_S = 0.05
_IDLE = ("STOPPED", "EXITED", "FATAL")
_ALIVE = ("RUNNING", "STARTING")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=STOP_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(STOP_S)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path, password: str) -> None:
        credentials = b64encode(f"{USER}:{password}".encode()).decode()
        super().__init__(headers=[("Authorization", f"Basic {credentials}")])
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path)


def remote(control: Path, password: str) -> Any:
    """Return the `supervisor` interface of the supervisord at socket `control` (its XML-RPC API)."""
    return xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(control, password)).supervisor


@dataclass(frozen=True, slots=True)
class Program:
    """One program of a node, as supervisord sees it."""

    name: str
    state: str
    """RUNNING, STARTING, BACKOFF, STOPPED, EXITED, FATAL, ..."""
    pid: int
    """0 when it does not run."""
    note: str
    """How long it runs, or what is wrong."""


class Supervisord:
    """The supervisord of one node."""

    def __init__(self, files: NodeFiles, password: str) -> None:
        self._files = files
        self._remote = remote(files.control, password)

    def programs(self) -> list[Program] | None:
        """Return its programs, None when it does not run. Raises SupervisionError when it does not answer."""
        try:
            programs = self._ask("getAllProcessInfo")
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        return [Program(told["name"], told["statename"], told["pid"], told["description"]) for told in programs]

    def _ask(self, method: str, *args: object) -> Any:
        try:
            return getattr(self._remote, method)(*args)
        except (FileNotFoundError, ConnectionRefusedError):
            raise
        except xmlrpc.client.Fault as error:
            raise SupervisionError(f"supervisord at {self._files.control}: {method}: {error.faultString}") from error
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise SupervisionError(
                f"supervisord at {self._files.control} does not answer ({error}); end it with `treescale up FILE "
                f"--down --node {self._files.run_dir.name}`"
            ) from error

    def start(self) -> subprocess.Popen[str]:
        """Begin to start it; `started` waits for the end of that."""
        # -P: nothing in the current folder may stand in for a module.
        argv = [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(self._files.conf)]
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def started(self, starting: subprocess.Popen[str]) -> None:
        """Wait until it has gone to the background. Raises SupervisionError with its words when it could not."""
        _, said = starting.communicate()
        if starting.returncode:
            words = " ".join(said.split()) or f"exit {starting.returncode}"
            raise SupervisionError(f"supervisord did not start with {self._files.conf}: {words}")

    def follow_conf(self) -> set[str]:
        """Take over a changed supervisord.conf or conf.d: start, restart and remove programs, leave the others.

        Returns the programs that have started.
        """
        ((added, changed, removed),) = self._ask("reloadConfig")
        for group in [*removed, *changed]:
            self._ask("stopProcessGroup", group)
            self._ask("removeProcessGroup", group)
        for group in [*changed, *added]:
            self._ask("addProcessGroup", group)
        return {*changed, *added}

    def follow_tree(self, programs: Collection[str] = ("router", *READERS)) -> None:
        """Let `programs` take over a changed tree: the router keeps its links while it reads it, others start anew.

        One that does not run reads it when it starts, and is left alone.
        """
        there = self.alive().keys() & programs
        if "router" in there:
            self._reload_router()
        for program in sorted(there.intersection(READERS)):
            self._ask("stopProcess", program)
            self._ask("startProcess", program, False)

    def alive(self) -> dict[str, int]:
        """Return the pids of the programs that run or have just been started."""
        return {each.name: each.pid for each in self.programs() or () if each.state in _ALIVE}

    def _reload_router(self) -> None:
        """Let the router read its tree again. SIGHUP ends a process that has not come to its first line yet."""
        until = time.monotonic() + STOP_S
        while (pid := self.alive().get("router")) and not _takes_hangup(pid) and time.monotonic() < until:
            time.sleep(_STARTS_S)
        if pid:
            self._ask("signalProcess", "router", "HUP")

    def stop(self, programs: Collection[str]) -> None:
        """End programs; supervisord does not start them again by itself."""
        for program in sorted(programs):
            self._ask("stopProcessGroup", program)

    def start_idle(self) -> bool:
        """Start the programs that are stopped or given up. Returns whether there were any."""
        idle = any(program.state in _IDLE for program in self.programs() or ())
        if idle:
            self._ask("startAllProcesses", False)
        return idle


def _takes_hangup(pid: int) -> bool:
    """Tell whether a process catches SIGHUP, or holds it back until it does."""
    folder = Path(f"/proc/{pid}")
    try:
        argv = (folder / "cmdline").read_bytes()
        if not argv or any(word.endswith(b"supervisord") for word in argv.split(b"\0")):
            return False  # a copy of supervisord, with what that does at the signal, or just becoming the program
        masks = re.findall(r"^Sig(?:Cgt|Blk):\s*(\w+)$", (folder / "status").read_text(), re.MULTILINE)
    except OSError:
        return True  # it has ended, or is hidden
    return any(int(mask, 16) >> (signal.SIGHUP - 1) & 1 for mask in masks)


def pids_of(files: NodeFiles) -> tuple[list[int], list[int]]:
    """Return the pids of a node's supervisord, and of all that any supervisord of this node has started.

    Known by what they carry: the path of the configuration, and the address that supervisord gives to its programs.
    """
    conf, address = os.fsencode(files.conf), b"SUPERVISOR_SERVER_URL=unix://" + os.fsencode(files.control)
    supervisords, programs = [], []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended just now, or another user's
        if b"supervisor.supervisord" in argv and conf in argv:
            supervisords.append(int(folder.name))
        elif address in environment:
            programs.append(int(folder.name))
    return supervisords, programs


def end(pids: Iterable[int], *, patience_s: float) -> None:
    """Wait for processes to end, and kill those that do not. They need not be our children."""
    waiting = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            waiting.add(os.pidfd_open(pid))
    try:
        for descriptor in _still_there(waiting, patience_s):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        _still_there(waiting, STOP_S)
    finally:
        for descriptor in waiting:
            os.close(descriptor)


def terminate(pids: Iterable[int]) -> None:
    """Ask processes to end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _still_there(pidfds: set[int], patience_s: float) -> set[int]:
    """Wait for processes to end; return those that are still there after that."""
    descriptors = set(pidfds)
    until = time.monotonic() + patience_s
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    while descriptors and (left_s := until - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left_s * 1000):
            poller.unregister(descriptor)
            descriptors.discard(descriptor)
    return descriptors
