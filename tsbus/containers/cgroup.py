"""Cgroup: reads the counters that the kernel keeps of a container, and of the machine. The edge to its files.

kernel.py knows which files those are and what they say, sampler.py what to read when. Descriptors are held and read
again with pread: opening the files each time takes six times as long (1.3 and 7.5 us a file, measured). A held one also
stays with its container: after the end it says ENODEV, and never shows somebody who got the same number or path.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Iterable
from errno import ENODEV, ENOENT, ESRCH
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from tsbus.containers import kernel
from tsbus.containers.sampler import Counters, Depth, Machine
from tsbus.records import Pressure

MAX_HELD: Final = 4096
"""Descriptors held for all containers together. The kernel keeps a page for each: that is 18 MiB of its memory."""
MAX_FILES: Final = 11
"""Descriptors of one container at most."""
RESERVED: Final = 256
"""Descriptors that are left to the rest of the process."""

FILE_BYTES: Final = 64 << 10
"""More than any file of a container has: most fit a page, `io.stat` takes a line for each disk."""
STAT_BYTES: Final = 1 << 20
"""More than /proc/stat has, which grows with processors and interrupts."""
COMPLETE_BYTES: Final = 3072
"""/proc/PID/net/dev is given out in whole lines, up to a page at a time: after less than this there are no more."""
READ: Final = os.O_RDONLY | os.O_CLOEXEC
ENDED: Final = (ENODEV, ESRCH, ENOENT)
"""What reading says after the end of a container."""

P = TypeVar("P")


class Unreadable(Exception):
    """The kernel's counters of a container cannot be read; the text says why and what to do."""


class Gone(Exception):
    """The container's first process does not exist, or does not any more."""


class Cgroups:
    """The cgroups as this process sees them, and how many of their files may still be held open."""

    def __init__(self) -> None:
        self.mounts = kernel.parse_mounts(_text("/proc/self/mountinfo"))
        self.may_hold = _allow_descriptors(MAX_HELD + RESERVED) - RESERVED
        self.host_network = 0
        with contextlib.suppress(OSError):
            # The number of this file is that of the network, and to see it takes no rights over the process.
            self.host_network = Path("/proc/1/net/dev").stat().st_ino


class Meter:
    """The counters of one running container. `close` it."""

    def __init__(self, container: str, pid: int, cgroups: Cgroups) -> None:
        """Find the counters of the container with that id, whose first process is `pid`. Raises Gone and Unreadable."""
        self._container = container
        self._cgroups = cgroups
        self._holds = cgroups.may_hold >= MAX_FILES
        self._files: dict[str, _File] = {}
        self._slow: dict[str, Any] = {}
        """Limits and pressure as they were when they were read last."""
        try:
            home = _home(container, pid, cgroups)
            self._find(home)
            self._network = self._find_network(pid)
        except OSError as error:
            self.close()
            self._check_ended(error)
            raise Gone(f"no process {pid} of container {container[:12]} is seen here") from error
        except Unreadable:
            self.close()
            raise

    @property
    def held(self) -> int:
        """How many descriptors it holds."""
        return len(self._files) if self._holds else 0

    def probe(self) -> int | None:
        """Return the CPU time in ns and read nothing else; None if the container has ended. Raises Unreadable."""
        file, figures = self._numbers[0]
        try:
            return figures[0][1](file.read())
        except OSError as error:
            self._check_ended(error)
            return None

    def read(self, depth: Depth = Depth.ALL) -> Counters | None:
        """Return the counters, None if the container has ended; what `depth` leaves out stands as it was read last.

        Raises Unreadable.
        """
        try:
            if depth >= Depth.PRESSURE and self._pressures:
                self._slow["pressure"] = Pressure(**{name: parse(file.read()) for name, file, parse in self._pressures})
            if depth == Depth.ALL:
                self._slow |= self._read_limits()
            values = dict(self._slow)
            for file, figures in self._numbers:
                text = file.read()
                for name, parse in figures:
                    values[name] = parse(text)
            if self._blocks:
                blocks, parse_blocks = self._blocks
                values["block_read"], values["block_write"] = parse_blocks(blocks.read())
            if self._network:
                values["net_rx"], values["net_tx"] = kernel.network(self._network.read_lines())
        except OSError as error:
            self._check_ended(error)
            return None
        except (ValueError, IndexError) as error:
            raise Unreadable(f"the kernel says something unknown of {self._container[:12]}: {error}") from error
        return Counters(**values)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()
        self._cgroups.may_hold += self.held
        self._files.clear()

    def _keep(self, path: str, file: "_File") -> None:
        self._files[path] = file
        self._cgroups.may_hold -= self._holds

    def _check_ended(self, error: OSError) -> None:
        """Raise Unreadable unless `error` means that the container has ended."""
        if error.errno not in ENDED:
            raise Unreadable(f"cannot read the counters of {self._container[:12]}: {error.strerror}") from error

    def _find(self, home: kernel.Home) -> None:
        """Open what `home` has of all that kernel.py knows; only CPU time must be there."""
        numbers: dict[_File, list[tuple[str, kernel.Parser]]] = {}
        for name, sources in kernel.FIGURES.items():
            if found := self._first(kernel.paths(home, sources)):
                numbers.setdefault(found[0], []).append((name, found[1]))
            elif name == "cpu_ns":
                raise Unreadable(f"there is no cpuacct.usage or cpu.stat in {home.v1.get('cpuacct') or home.v2}")
        self._numbers = tuple(numbers.items())
        self._blocks = self._first(kernel.paths(home, kernel.BLOCKS))
        pressures = ((name, self._first(kernel.paths(home, [source]))) for name, source in kernel.PRESSURES.items())
        self._pressures = tuple((name, *found) for name, found in pressures if found)
        self._limits = tuple(one for one in kernel.limit_paths(home) if Path(one[1]).exists())

    def _first(self, paths: Iterable[tuple[str, P]]) -> "tuple[_File, P] | None":
        """Return the first of `paths` that can be read, opened, and what belongs to it."""
        for path, parse in paths:
            file = self._files.get(path)
            if file is None:
                try:
                    file = _File(partial(os.open, path, READ), holds=self._holds)
                except OSError:
                    continue
                self._keep(path, file)
            return file, parse
        return None

    def _find_network(self, pid: int) -> "_File | None":
        """Return the counters of the network; None for the machine's own, which the engine does not count."""
        file = _File(partial(_open_network, self._container, pid), holds=self._holds)
        if file.number == self._cgroups.host_network:
            file.close()
            return None
        self._keep("net/dev", file)
        return file

    def _read_limits(self) -> dict[str, int]:
        """Return the limits that there are. They change so rarely that no descriptors are held for them."""
        limits: dict[str, int] = {}
        for name, path, parse in self._limits:
            if found := parse(_read_once(partial(os.open, path, READ))):
                limits[name] = min(found, limits.get(name, found))
        return {"memory_limit": 0, "pids_limit": 0} | limits


class MachineMeter:
    """The counters of the machine. `close` it."""

    def __init__(self) -> None:
        self._stat = os.open("/proc/stat", READ)
        self._memory = kernel.total_memory(Path("/proc/meminfo").read_bytes())
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read(self) -> Machine:
        """Return the CPU time of the machine until now, its CPUs and its memory."""
        passed_ns, busy_ns, cpus = kernel.machine_cpu(os.pread(self._stat, STAT_BYTES, 0), self._ticks_per_s)
        return Machine(passed_ns, cpus, self._memory, busy_ns)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._stat)


class _File:
    """A file that is read again and again from its beginning, held open or opened anew each time."""

    def __init__(self, opened: Callable[[], int], *, holds: bool) -> None:
        """`opened` opens the file. Raises OSError."""
        self._opened = opened
        self._holds = holds
        self._descriptor = opened()
        try:
            self.number = os.fstat(self._descriptor).st_ino
            # The kernel may have the file and refuse to read it, as with pressure when that is off.
            os.pread(self._descriptor, 1, 0)
        except OSError:
            os.close(self._descriptor)
            raise
        if not holds:
            os.close(self._descriptor)

    def read(self) -> bytes:
        """Return a file that the kernel gives out at once, as all of cgroups. Raises OSError."""
        return os.pread(self._descriptor, FILE_BYTES, 0) if self._holds else _read_once(self._opened)

    def read_lines(self) -> bytes:
        """Return a file that the kernel gives out a page at a time, as those of /proc/PID/net. Raises OSError."""
        descriptor = self._descriptor if self._holds else self._opened()
        try:
            text = more = os.pread(descriptor, FILE_BYTES, 0)
            while len(more) > COMPLETE_BYTES:
                more = os.pread(descriptor, FILE_BYTES, len(text))
                text += more
            return text
        finally:
            if not self._holds:
                os.close(descriptor)

    def close(self) -> None:
        """Let go of it."""
        if self._holds:
            os.close(self._descriptor)


def _read_once(opened: Callable[[], int]) -> bytes:
    """Open a file that the kernel gives out at once, read it, close it. Raises OSError."""
    descriptor = opened()
    try:
        return os.read(descriptor, FILE_BYTES)
    finally:
        os.close(descriptor)


def _text(path: str) -> str:
    """Return a file with paths in it, which may have any bytes. Raises OSError."""
    return os.fsdecode(Path(path).read_bytes())


def _home(container: str, pid: int, cgroups: Cgroups) -> kernel.Home:
    """Return where the cgroups of a container are. Raises OSError if the process is not there, and Unreadable."""
    membership = _text(f"/proc/{pid}/cgroup")
    try:
        return kernel.find_home(membership, cgroups.mounts, container)
    except kernel.NotHere as error:
        raise Unreadable(str(error)) from None


def _open_network(container: str, pid: int) -> int:
    """Open the network's counters of process `pid`, which must be the container's. Raises OSError."""
    folder = os.open(f"/proc/{pid}", READ | os.O_DIRECTORY)
    try:
        # The number may be somebody else's by now. What is opened through `folder` is of the process looked at here.
        if container.encode() not in _read_once(partial(os.open, "cgroup", READ, dir_fd=folder)):
            raise ProcessLookupError(ESRCH, "the process is not the container's")
        return os.open("net/dev", READ, dir_fd=folder)
    finally:
        os.close(folder)


def _allow_descriptors(wanted: int) -> int:
    """Let this process open `wanted` files if it may; returns how many it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    if soft != infinite and soft < wanted:
        soft = wanted if hard == infinite else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == infinite else min(soft, wanted)
