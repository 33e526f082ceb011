"""Processes: runs one program in a session of its own and passes its bytes on. The edge to the kernel; no policy here.

service.py and handlers.py use it. One asyncio loop watches all programs through their pipes and pidfds: no thread and
no signal handler for children. `subprocess.Popen` starts them with vfork where the user stays the same.
"""

import asyncio
import contextlib
import os
import pwd
import resource
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO

from tsbus.executor.jobs import Ending

CHUNK_BYTES = 32 << 10
"""Half of a pipe: what is read at once, and the most that waits here for the caller."""
LINGER_S = 1.0
"""How long those that a program left behind may hold its pipes."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StartError(Exception):
    """The program could not be started; the text says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    home: str

    @property
    def names(self) -> frozenset[str]:
        """What a rule may call the user."""
        return frozenset({self.name, str(self.uid)})


def own_account() -> Account:
    """Return the account that this process runs as, which need not be in the user database."""
    uid = os.geteuid()
    try:
        return find_account(str(uid))
    except StartError:
        return Account(str(uid), uid, os.getegid(), "/")


def find_account(user: str) -> Account:
    """Return the account with that name or uid. Raises StartError when there is none."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise StartError(f"no user {user!r} on this node") from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and how."""

    argv: Sequence[str]
    account: Account
    cwd: str = ""
    """Empty: the root directory."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the clean environment."""
    stdin: bool = False
    """Whether something will be written to it; otherwise it reads /dev/null."""

    def environment(self) -> dict[str, str]:
        """Return all that the program gets: nothing of the executor's own environment is in it."""
        name, home = self.account.name, self.account.home
        return {"PATH": PATH, "HOME": home, "LANG": "C.UTF-8", "USER": name, "LOGNAME": name, **self.env}


class Process:
    """A running program: `read` its outputs to their end and `wait` for it, or `stop` it; one of them lets it go."""

    def __init__(self, program: Program) -> None:
        """Start `program`. Raises StartError. Needs a running asyncio loop."""
        self._loop = asyncio.get_running_loop()
        self._started_s = time.monotonic()
        self._popen = _popen(program)
        self._exited = asyncio.Event()
        self._ending = Ending()
        self._reaped = False
        self._linger_s = LINGER_S
        self._linger: asyncio.TimerHandle | None = None
        self._cut = False
        self._pidfd = os.pidfd_open(self._popen.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._stdin = self._popen.stdin
        if self._stdin:
            os.set_blocking(self._stdin.fileno(), False)
        self._outputs: dict[IO[bytes], bool] = {}
        self._ready: deque[IO[bytes]] = deque()
        self._readable = asyncio.Event()
        for pipe, second in ((self._popen.stdout, False), (self._popen.stderr, True)):
            if pipe:
                os.set_blocking(pipe.fileno(), False)
                self._outputs[pipe] = second
                self._loop.add_reader(pipe, self._on_readable, pipe)

    async def read(self) -> tuple[bytes, bool] | None:
        """Return the next bytes, at most CHUNK_BYTES, and whether they are of the second output; None at the end.

        Nothing is read ahead: while nobody calls this, the program waits as soon as its pipe is full.
        The end is the end of both outputs, but at most LINGER_S after that of the program itself.
        """
        while True:
            if self._cut:
                # What is left is there at once, so nothing below would let others have their turn.
                await asyncio.sleep(0)
            if not self._outputs:
                return None
            if not self._ready:
                self._readable.clear()
                await self._readable.wait()
                continue
            pipe = self._ready.popleft()
            data = self._take(pipe)
            if data:
                self._watch(pipe)
                return data, self._outputs[pipe]
            self._loop.remove_reader(pipe)
            del self._outputs[pipe]

    async def write(self, data: bytes) -> bool:
        """Pass `data` on to the program, waiting while its pipe is full. False once it reads no more."""
        rest = memoryview(data)
        while rest and self._stdin:
            try:
                rest = rest[os.write(self._stdin.fileno(), rest) :]
            except BlockingIOError:
                await self._wait_writable(self._stdin)
            except BrokenPipeError:
                self.close_input()
        return self._stdin is not None

    def close_input(self) -> None:
        """The program's input ends here."""
        if self._stdin:
            self._loop.remove_writer(self._stdin)
            self._stdin.close()
            self._stdin = None

    def signal(self, number: int) -> None:
        """Send a signal to the program and its group; nothing happens when it has been let go."""
        # Until _reap the group's number is taken by the leader, if only as a zombie, so no stranger can be hit.
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, number)

    async def wait(self) -> Ending:
        """Wait for the end of the program itself, then kill what is left of its group. Returns how it ended."""
        await self._exited.wait()
        if not self._reaped:
            self.signal(signal.SIGKILL)
            self._reap()
        return self._ending

    async def stop(self, grace_s: float) -> Ending:
        """End the program's group: SIGTERM, after `grace_s` SIGKILL. What it still writes is thrown away."""
        self._linger_s = max(self._linger_s, grace_s)
        self.signal(signal.SIGTERM)
        self.close_input()
        timer = self._loop.call_later(grace_s, self.signal, signal.SIGKILL)
        try:
            while await self.read():
                pass
            return await self.wait()
        finally:
            timer.cancel()

    def _take(self, pipe: IO[bytes]) -> bytes:
        try:
            return os.read(pipe.fileno(), CHUNK_BYTES)
        except BlockingIOError:
            # Empty but held open by somebody who left the group: only after _cut_off.
            return b""

    def _watch(self, pipe: IO[bytes]) -> None:
        if self._cut:
            self._ready.append(pipe)
        else:
            self._loop.add_reader(pipe, self._on_readable, pipe)

    def _on_readable(self, pipe: IO[bytes]) -> None:
        self._loop.remove_reader(pipe)
        self._ready.append(pipe)
        self._readable.set()

    async def _wait_writable(self, pipe: IO[bytes]) -> None:
        writable = asyncio.Event()
        self._loop.add_writer(pipe, writable.set)
        try:
            await writable.wait()
        finally:
            if not pipe.closed:
                self._loop.remove_writer(pipe)

    def _on_exit(self) -> None:
        """The leader has ended. It stays a zombie until _reap, so that its number stays its own."""
        self._loop.remove_reader(self._pidfd)
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        duration_ms = round((time.monotonic() - self._started_s) * 1000)
        if status and status.si_code == os.CLD_EXITED:
            self._ending = Ending(exit=status.si_status, duration_ms=duration_ms)
        elif status:
            self._ending = Ending(signal=signal_name(status.si_status), duration_ms=duration_ms)
        self._linger = self._loop.call_later(self._linger_s, self._cut_off)
        self._exited.set()

    def _cut_off(self) -> None:
        """Whoever still holds the pipes has had its time: what is in them now is the last."""
        self.signal(signal.SIGKILL)
        self._cut = True
        for pipe in self._outputs:
            if pipe not in self._ready:
                self._on_readable(pipe)

    def _reap(self) -> None:
        self._reaped = True
        _, status, usage = os.wait4(self._popen.pid, 0)
        # Or Popen would wait for a process that is not there.
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        own_rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._ending = replace(
            self._ending,
            user_cpu_ms=round(usage.ru_utime * 1000),
            max_rss_kb=usage.ru_maxrss if usage.ru_maxrss > own_rss_kb else None,
        )
        if self._linger:
            self._linger.cancel()
        self.close_input()
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe:
                self._loop.remove_reader(pipe)
                pipe.close()
        self._outputs.clear()
        self._ready.clear()
        self._readable.set()
        os.close(self._pidfd)


def signal_name(number: int) -> str:
    """Return the name of a signal without SIG, or its number where it has no name."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def _popen(program: Program) -> subprocess.Popen[bytes]:
    account = program.account
    other = account.uid != os.geteuid()
    try:
        return subprocess.Popen(
            program.argv,
            bufsize=0,
            stdin=subprocess.PIPE if program.stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=program.cwd or "/",
            env=program.environment(),
            start_new_session=True,
            # The executor's own is narrow because of its socket and its audit log.
            umask=0o022,
            # Only where it changes something: with it, Popen copies this process (fork) instead of lending it (vfork).
            user=account.uid if other else None,
            group=account.gid if other else None,
            extra_groups=os.getgrouplist(account.name, account.gid) if other else None,
        )
    except OSError as error:
        raise StartError(_why_not(program, error, other)) from error


def _why_not(program: Program, error: OSError, other: bool) -> str:
    name = program.argv[0]
    if error.filename == program.cwd:
        return f"cannot enter the directory {program.cwd!r}: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        return f"no program {name!r} on this node (or its interpreter is missing)"
    if isinstance(error, PermissionError) and other and os.geteuid() != 0:
        return f"the executor is not root and cannot run a program as {program.account.name!r}"
    if isinstance(error, PermissionError):
        return f"{program.account.name!r} may not execute {name!r}"
    return f"cannot start {name!r}: {error.strerror}"
