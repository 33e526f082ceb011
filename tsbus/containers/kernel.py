"""Kernel: what the kernel's files say of a container and of the machine, as values. Pure.

cgroup.py reads the files. One table, FIGURES, names for each figure the file of cgroup v1 and that of v2: a machine
may have some controllers in each (hybrid), so the first file that is there is taken, figure by figure.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

NO_LIMIT = 1 << 60
"""What the kernel says for "none" is above: v1 gives the largest multiple of a page, v2 the word `max`."""
NANOSECONDS = 1_000_000_000


class NotHere(Exception):
    """The container cannot be found in the cgroups that are seen from here; the text says why and what to do."""


class Mount(NamedTuple):
    """One cgroup file system in /proc/self/mountinfo."""

    controllers: frozenset[str]
    """Of v1: `cpu`, `cpuacct` ...; empty for v2."""
    root: str
    """Which cgroup is seen at `point`: `/` for all of them."""
    point: str


@dataclass(frozen=True, slots=True)
class Home:
    """The directories of one container."""

    v1: Mapping[str, str]
    """Controller -> directory, for those that are mounted as v1."""
    v2: str | None
    """The directory in the unified hierarchy. With v1 beside it, that has no controllers, but may have pressure."""
    v2_top: str
    """Where the unified hierarchy is mounted: limits hold from there down."""


def parse_mounts(mountinfo: str) -> tuple[Mount, ...]:
    """Return the cgroup file systems among the lines of /proc/self/mountinfo."""
    mounts = []
    for line in mountinfo.splitlines():
        seen, _, kind = line.partition(" - ")
        words, kinds = seen.split(" "), kind.split(" ")
        if kinds[0] in ("cgroup", "cgroup2"):
            # In v1 the options of the file system are the names of its controllers.
            controllers = frozenset(kinds[2].split(",")) if kinds[0] == "cgroup" else frozenset[str]()
            mounts.append(Mount(controllers, _unescaped(words[3]), _unescaped(words[4])))
    return tuple(mounts)


def find_home(membership: str, mounts: Sequence[Mount], container: str) -> Home:
    """Return where the container's counters are, from /proc/PID/cgroup of its first process.

    The id must be in the path, as all engines and drivers have it (`docker/ID`, `system.slice/docker-ID.scope`,
    `libpod-ID.scope/container`): it proves that the process is the container's and no later one with the same number,
    and what comes behind it was made inside, by an init of its own. Raises NotHere.
    """
    v1: dict[str, str] = {}
    v2, v2_top = None, ""
    is_its, is_hidden = False, False
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own = _up_to(container, path.removesuffix(" (deleted)"))
        if own is None:
            continue
        is_its = True
        for controller in controllers.split(","):
            mount = _seen(mounts, controller, own)
            if mount is None:
                is_hidden = is_hidden or own.startswith("/..")
            elif controller:
                v1[controller] = _below(mount, own)
            else:
                v2, v2_top = _below(mount, own), mount.point
    if v1 or v2:
        return Home(v1, v2, v2_top)
    if not is_its:
        raise NotHere(
            f"its first process is in no cgroup with {container[:12]} in its name: the engine must run on this "
            "machine, and this process must see the engine's process numbers (in a container: --pid=host)"
        )
    if is_hidden:
        raise NotHere(
            "this process is in a cgroup namespace of its own and does not see the container's: start it in that of "
            "the engine (in a container: --cgroupns=host)"
        )
    raise NotHere("the cgroups of this machine are not mounted here: mount its /sys/fs/cgroup, read-only will do")


def _up_to(container: str, path: str) -> str | None:
    """Return `path` up to the part with the container's id in it."""
    parts = path.split("/")
    for at, part in enumerate(parts, 1):
        if container in part:
            return "/".join(parts[:at])
    return None


def _seen(mounts: Sequence[Mount], controller: str, path: str) -> Mount | None:
    for mount in mounts:
        if controller in mount.controllers if controller else not mount.controllers:
            below = f"{path}/".startswith(f"{mount.root}/") if mount.root != "/" else not path.startswith("/..")
            if below:
                return mount
    return None


def _below(mount: Mount, path: str) -> str:
    return mount.point + path[0 if mount.root == "/" else len(mount.root) :]


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def keyed(name: str, unit: int = 1) -> Callable[[bytes], int]:
    """Return a parser for the line `NAME NUMBER` among others: the number times `unit`, 0 without such a line."""
    first, later = f"{name} ".encode(), f"\n{name} ".encode()

    def parse(text: bytes) -> int:
        if text.startswith(first):
            start = len(first)
        elif (start := text.find(later)) < 0:
            return 0
        else:
            start += len(later)
        end = text.find(b"\n", start)
        return int(text[start : end if end >= 0 else None]) * unit

    return parse


def limit(text: bytes) -> int:
    """Parse a file with a limit: 0 for none."""
    return 0 if text.startswith(b"max") or (number := int(text)) >= NO_LIMIT else number


def hierarchical_limit(text: bytes) -> int:
    """Parse `memory.stat` of v1: the smallest limit of the container and of what it is in, 0 for none."""
    number = keyed("hierarchical_memory_limit")(text)
    return 0 if number >= NO_LIMIT else number


def blocks_v1(text: bytes) -> tuple[int, int]:
    """Parse `io_service_bytes` of v1: bytes read and written, of all devices."""
    read = written = 0
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3:  # DEVICE OPERATION BYTES
            if words[1] == b"Read":
                read += int(words[2])
            elif words[1] == b"Write":
                written += int(words[2])
    return read, written


def blocks_v2(text: bytes) -> tuple[int, int]:
    """Parse `io.stat` of v2: bytes read and written, of all devices."""
    read = written = 0
    for word in text.split():
        if word.startswith(b"rbytes="):
            read += int(word[7:])
        elif word.startswith(b"wbytes="):
            written += int(word[7:])
    return read, written


def network(text: bytes) -> tuple[int, int]:
    """Parse /proc/PID/net/dev: bytes received and sent.

    The engine counts the interfaces that it made, and calls them eth0, eth1 and so on. What else a container with such
    has (the bridges of an engine inside, a tunnel) carries the same bytes once more. Without such, all but `lo` count.
    """
    made, others = [0, 0], [0, 0]
    has_made = False
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        name = name.strip()
        if name == b"lo":
            continue
        words = rest.split()
        sums = others
        if name.startswith(b"eth"):
            sums, has_made = made, True
        sums[0] += int(words[0])
        sums[1] += int(words[8])
    received, sent = made if has_made else others
    return received, sent


def stalled(text: bytes) -> float:
    """Parse a `pressure` file: in how much of the last 10 s, in percent, some process had to wait."""
    start = text.index(b"avg10=") + 6
    return float(text[start : text.index(b" ", start)])


def machine_cpu(stat: bytes, ticks_per_s: int) -> tuple[int, int, int]:
    """Parse /proc/stat: CPU time of the machine in ns, the part of it in use, and how many CPUs are online.

    The time is the sum that Docker takes: user, nice, system, idle, iowait, irq and softirq. Steal is not in it.
    """
    ticks = [int(word) * NANOSECONDS // ticks_per_s for word in stat[: stat.index(b"\n")].split()[1:8]]
    return sum(ticks), sum(ticks) - sum(ticks[3:5]), stat.count(b"\ncpu")


def total_memory(meminfo: bytes) -> int:
    """Parse /proc/meminfo: the machine's memory in bytes."""
    return int(meminfo.split(None, 2)[1]) * 1024 if meminfo.startswith(b"MemTotal:") else 0


Parser = Callable[[bytes], int]
PairParser = Callable[[bytes], tuple[int, int]]
P = TypeVar("P")


class Source(NamedTuple, Generic[P]):
    """Where a figure is found: the file of a controller in one version of cgroups, and how it is read."""

    controller: str
    """Empty: the unified hierarchy, v2."""
    file: str
    parse: P


FIGURES: Mapping[str, tuple[Source[Parser], ...]] = {
    "cpu_ns": (Source("cpuacct", "cpuacct.usage", int), Source("", "cpu.stat", keyed("usage_usec", 1000))),
    "throttled_ns": (
        Source("cpu", "cpu.stat", keyed("throttled_time")),
        Source("", "cpu.stat", keyed("throttled_usec", 1000)),
    ),
    "memory": (Source("memory", "memory.usage_in_bytes", int), Source("", "memory.current", int)),
    "inactive_file": (
        Source("memory", "memory.stat", keyed("total_inactive_file")),
        Source("", "memory.stat", keyed("inactive_file")),
    ),
    "memory_limit": (Source("memory", "memory.stat", hierarchical_limit),),
    "oom_kills": (
        Source("memory", "memory.oom_control", keyed("oom_kill")),
        Source("", "memory.events", keyed("oom_kill")),
    ),
    "pids": (Source("pids", "pids.current", int), Source("", "pids.current", int)),
}
"""The counters of a container that are one number, and where to look for each, in this order."""

BLOCKS: Sequence[Source[PairParser]] = (
    # `throttle` counts whatever the device's scheduler is; the plain one, of old kernels, what passed through CFQ.
    # In v1 nobody counts what is written later from the cache, and recent kernels (6.18 measured) count nothing at all
    # until some container has a limit for the device; `docker stats` shows 0 then too.
    Source("blkio", "blkio.throttle.io_service_bytes_recursive", blocks_v1),
    Source("blkio", "blkio.io_service_bytes_recursive", blocks_v1),
    Source("blkio", "blkio.throttle.io_service_bytes", blocks_v1),
    Source("", "io.stat", blocks_v2),
)

PRESSURES: Mapping[str, Source[Callable[[bytes], float]]] = {
    "cpu": Source("", "cpu.pressure", stalled),
    "memory": Source("", "memory.pressure", stalled),
    "io": Source("", "io.pressure", stalled),
}


def paths(home: Home, sources: Iterable[Source[P]]) -> Iterator[tuple[str, P]]:
    """Yield the files to look for in `home`, with their parsers."""
    for controller, file, parse in sources:
        folder = home.v1.get(controller) if controller else home.v2
        if folder:
            yield f"{folder}/{file}", parse


def limit_paths(home: Home) -> Iterator[tuple[str, str, Parser]]:
    """Yield the files that may limit a container: figure, path, parser. The smallest limit that is not 0 holds.

    Of v1 the limit of the memory is in FIGURES: there the kernel gives the smallest by itself.
    """
    if "pids" in home.v1:
        yield "pids_limit", f"{home.v1['pids']}/pids.max", limit
    if home.v2:
        yield "pids_limit", f"{home.v2}/pids.max", limit
        folder = home.v2
        while len(folder) > len(home.v2_top):
            yield "memory_limit", f"{folder}/memory.max", limit
            folder = folder.rpartition("/")[0]
