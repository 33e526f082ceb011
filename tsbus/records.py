"""Records: what the container monitor of a node says on the bus, as typed, frozen structs. Pure.

`docs/containers.md` is the reference for other languages. Events carry a `ContainerEvent`, `containers.snapshot`
answers with a `SnapshotHead` and pieces of `Container`s, `containers.stats.NODE` events carry a `StatsEvent`.
`mirror.py` folds the events and snapshots of many nodes into one view. Fields with their default are left out in JSON.
"""

from typing import Annotated, Final, Literal

import msgspec

MAX_LABEL_BYTES: Final = 64 << 10
"""Of one container's labels together; the rest is cut, and `labels_cut` says how many."""

Number = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""What kernels and engines count. JSON has numbers that no float can hold, and readers reckon with these."""
State = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]
Health = Literal["", "starting", "healthy", "unhealthy"]
"""Empty: the container has no health check."""


class _Record(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A frozen struct whose JSON leaves out what has its default.

    Without circles, so the collector need not look at thousands of them: a pass of it took 25 ms.
    """


class Endpoint(_Record, frozen=True, kw_only=True):
    """A port of a container: where it listens, and where the node publishes it."""

    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    ip: str = ""
    """The container's own address on `network`; empty on the host's network and while it does not run."""
    port: int
    network: str = ""
    host_ip: str = ""
    """The node's address that the port is published on; "0.0.0.0" or "::" for all, empty if it is not published."""
    host_port: int = 0


class Image(_Record, frozen=True, kw_only=True):
    """The image of a container under all its names."""

    given: str
    """As it was given when the container was made: `nginx`, `nginx:1.27`, `repo/app@sha256:...` or an id."""
    repo: str = ""
    """`nginx`, `registry:5000/team/app`; empty for an image without a name."""
    tag: str = ""
    digest: str = ""
    """`sha256:...` of the registry, if the image came from one."""
    id: str = ""


class Container(_Record, frozen=True, kw_only=True):
    """One container as its node's monitor knows it. Times are Unix nanoseconds of the engine's clock, 0 for never."""

    id: str
    """64 hex digits."""
    name: str
    """Without the slash."""
    image: Image
    state: State
    health: Health = ""
    draining: bool = False
    """Its stop signal was sent and it has not ended yet."""
    command: str = ""
    """Program and arguments in one line, for people; at most 256 characters."""
    labels: dict[str, str] = {}
    labels_cut: int = 0
    """How many labels are left out here, because all together are longer than MAX_LABEL_BYTES."""
    endpoints: tuple[Endpoint, ...] = ()
    networks: dict[str, str] = {}
    """Network name -> the container's address in it."""
    created_ns: Number = 0
    started_ns: Number = 0
    finished_ns: Number = 0
    exit_code: int | None = None
    """Of the last run; None while it runs and before the first."""
    oom: bool = False
    """The last run, or the present one, met the out-of-memory killer."""
    restarts: Number = 0
    """How often the engine has restarted it by its policy."""
    restart_policy: str = ""
    """`no`, `always`, `unless-stopped`, `on-failure:3`."""
    pid: int = 0
    """Of its first process on the node, 0 while it does not run."""
    stop_signal: int = 15
    stop_timeout_s: int = 10
    memory_limit: Number = 0
    """Bytes, 0 without."""
    cpus: float = 0.0
    """0 without a limit."""


Action = Literal[
    "created", "started", "healthy", "unhealthy", "draining", "died", "oom", "paused", "unpaused", "renamed", "changed",
    "destroyed",
]  # fmt: skip


class ContainerEvent(_Record, frozen=True, kw_only=True):
    """Body of `container.ACTION`."""

    node: str
    epoch: Number
    """Number of this start of the monitor; a later start has a higher one."""
    seq: Number
    """Counts this node's `container.*` events of the epoch from 1: whoever misses one asks for a snapshot."""
    action: Action
    time_ns: Number
    """When it happened by the engine's clock, Unix nanoseconds."""
    cause: Literal["event", "reconcile"] = "event"
    """`reconcile`: the engine did not tell, comparing with its list did."""
    signal: int = 0
    """With `draining`: the signal."""
    was: str = ""
    """With `renamed`: the old name."""
    container: Container
    """After the event. With `destroyed`: the last that was known."""


class EngineFacts(_Record, frozen=True, kw_only=True):
    """What is known of a node's Docker engine. Body of `docker.up` and `docker.down`, and part of a snapshot."""

    node: str
    up: bool
    since_ns: Number = 0
    """Since when it is up or down."""
    reason: str = ""
    """Why it is down, and what to do about it."""
    name: str = ""
    """`Docker` or `Podman`."""
    version: str = ""
    api: str = ""
    cgroup: str = ""
    """`v1/cgroupfs`, `v2/systemd` ..."""
    os: str = ""
    kernel: str = ""
    cpus: Number = 0
    memory: Number = 0


class SnapshotHead(_Record, frozen=True, kw_only=True):
    """First piece of the answer of `containers.snapshot`; then come pieces that are JSON lists of Container."""

    node: str
    epoch: Number
    seq: Number
    """The last event that the snapshot includes."""
    engine: EngineFacts
    count: int
    """How many containers follow."""


class Done(_Record, frozen=True, kw_only=True):
    """What is answered about one container that something was done to, or could not be."""

    id: str = ""
    name: str = ""
    ok: bool = True
    error: str = ""
    state: str = ""
    """After it: as `Container.state`, or `removed`."""
    exit_code: int | None = None
    """Of `containers.wait`, if it ended."""


class PullProgress(_Record, frozen=True, kw_only=True):
    """A piece of the answer while an image is fetched: how far it is."""

    layers: int
    done: int
    current: int
    """Bytes that are here, of the layers that tell."""
    total: int
    status: str

    @property
    def share(self) -> float:
        """From 0 to 1: by bytes, and where these are not told by layers."""
        if self.layers and self.done >= self.layers:
            return 1.0
        return min(self.current / self.total, 1.0) if self.total else self.done / self.layers if self.layers else 0.0


class Pressure(_Record, frozen=True, kw_only=True):
    """Pressure stall information: the share of the last 10 s in which some process waited, in percent."""

    cpu: float = 0.0
    memory: float = 0.0
    io: float = 0.0


class Sample(_Record, frozen=True, kw_only=True):
    """The counters of one running container. Rates are for the reader to work out; totals are since its start."""

    cpu: float = 0.0
    """Percent as `docker stats` shows it: 100 is one core."""
    memory: Number = 0
    """Bytes, as `docker stats`: without the inactive file cache."""
    memory_limit: Number = 0
    """Bytes; that of the machine without a limit."""
    net_rx: Number = 0
    net_tx: Number = 0
    block_read: Number = 0
    block_write: Number = 0
    pids: Number = 0
    pids_limit: Number = 0
    throttled_ms: Number = 0
    """How long it was kept from the CPU by its limit, in all."""
    oom_kills: Number = 0
    pressure: Pressure | None = None
    """None where the kernel does not tell (cgroup v1)."""


class StatsEvent(_Record, frozen=True, kw_only=True):
    """Body of `containers.stats.NODE`: the containers of which something changed, or with `full` all that run."""

    node: str
    time_ms: Number
    """Of the readings; Unix milliseconds of the node's clock."""
    full: bool = False
    source: Literal["kernel", "engine"] = "kernel"
    """`engine`: the node's kernel counters cannot be read, the numbers come from the engine's slower statistics."""
    samples: dict[str, Sample]
    """By container id, the first 12 digits."""
    gone: tuple[str, ...] = ()
    """Ids that do not run any more since the event before."""
    cost: float = 0.0
    """CPU of the monitor itself, percent of one core, over the last ten seconds."""
    cpu: float = 0.0
    """CPU that the whole machine of the monitor uses, percent of one core."""
    cpus: Number = 0
    """How many it has; 0 while its CPU is not known."""
