"""Views: what the model of the tree consists of, as frozen records that pages, API, metrics and alerts read. Pure.

A view is never changed: `state.py` puts another one in its place, with a higher `revision`. Times that end in `_ms` are
Unix milliseconds: those called `since`, `time` or `at` of the clock of whoever told, `heard` and `arrived` of our own.
0 and None mean that nobody told.
"""

from typing import Final, Literal

import msgspec

from tsbus.lb_records import BalancerTraffic, LeftOut, ProblemRecord, Traffic
from tsbus.mirror import Standing
from tsbus.records import Action, Container, EngineFacts, Sample

SHORT_ID: Final = 12
"""Digits of a container's id by which the model and the statistics call it."""
MAX_TEXT: Final = 512
"""Characters of one text from outside that a view keeps, where no record bounds it already."""

NodeState = Literal["up", "torpid", "lost"]


class _View(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A frozen struct without circles, so the collector need not look at thousands of them."""


class PeerView(_View, frozen=True, kw_only=True):
    """A connection of a router, as that router told it: a link to another node, or a worker of its own."""

    name: str
    """The other node, or the worker."""
    kind: str
    """`parent`, `child` or `adopted` of a link, `worker` or `operator` of the others."""
    state: str = "up"
    """`up` or `torpid`."""
    since_ms: int = 0
    rtt_ms: float | None = None
    """Round trip of a link; None before the first, and of workers."""
    queued_control: int = 0
    """Bytes that wait for it in the lane."""
    queued_stream: int = 0
    queued_event: int = 0
    dropped: int = 0
    """Events that it lost because it did not read them, since it is connected."""
    slow: bool = False
    frames_in: int = 0
    frames_out: int = 0
    envelopes_in: int = 0
    who: str = ""
    """Of a worker: `uid:1000`."""
    services: tuple[str, ...] = ()
    subscriptions: int = 0

    @property
    def queued(self) -> int:
        """Bytes that wait for it, in all lanes."""
        return self.queued_control + self.queued_stream + self.queued_event


class RouterView(_View, frozen=True, kw_only=True):
    """What a node's router told of itself; asked for only while somebody watches."""

    heard_ms: int
    release: str = ""
    config: str = ""
    """Version of the configuration in force there."""
    pid: int = 0
    uptime_ms: int = 0
    links: tuple[PeerView, ...] = ()
    workers: tuple[PeerView, ...] = ()
    calls: int = 0
    """Commands under way, asked or served."""
    subscriptions: int = 0
    counters: dict[str, int] = {}
    """Drops and refusals by reason."""


class SlowView(_View, frozen=True, kw_only=True):
    """A peer of a node's router that reads more slowly than events come, and loses some."""

    name: str
    kind: str = ""
    since_ms: int = 0
    dropped: int = 0


class ProcessView(_View, frozen=True, kw_only=True):
    """A program of a node's supervisord, as far as its events told."""

    name: str
    state: str
    """started, exited, stopped or fatal."""
    at_ms: int
    expected: bool = True
    """It ended as it should."""


class NodeView(_View, frozen=True, kw_only=True):
    """One node: its place in the tree, what is known of it, and sums over its containers."""

    revision: int
    name: str
    home: str = ""
    """Its parent in the configuration; empty of the root."""
    parent: str = ""
    """The node it is attached to, or was when it was lost."""
    depth: int = 0
    """In the configured tree; the root has 0."""
    tags: tuple[str, ...] = ()
    state: NodeState = "lost"
    """As seen from where we stand: what is below a lost node is lost too."""
    link: str = "lost"
    """The state of its own link, whatever is above it."""
    cause: str = ""
    """Why its link is in this state."""
    since_ms: int = 0
    """Since when its link is in this state."""
    rtt_ms: float | None = None
    """Round trip of the link to the node above, as the last of the two ends told."""
    skew_ms: int = 0
    """How far its clock is ahead of ours, in steps of half a second, as its last few events tell."""
    slow: tuple["SlowView", ...] = ()
    """Its peers that do not keep up."""
    router: RouterView | None = None
    processes: tuple[ProcessView, ...] = ()
    """Those that an event told of, by name."""

    standing: Standing = "unknown"
    """Of what is known of its containers."""
    standing_why: str = ""
    standing_since_ms: int = 0
    monitored: bool = True
    """False: it was asked, and has no container monitor."""
    engine: EngineFacts | None = None
    containers: int = 0
    running: int = 0
    unhealthy: int = 0

    cpu: float = 0.0
    """What the whole machine uses, percent of one core. This and the next four mean nothing while `stats_ms` is 0."""
    cpus: int = 0
    monitor_cpu: float = 0.0
    """What measuring takes there, percent of one core."""
    containers_cpu: float = 0.0
    """Sum over its containers."""
    containers_memory: int = 0
    stats_ms: int = 0
    """When figures arrived last; they flow only while somebody watches."""

    balancers: tuple[str, ...] = ()
    """Names of those that its configuration gives it."""
    balancers_ms: int = 0
    """When it told of them last."""
    balancers_why: str = ""
    """Why it cannot be asked for them."""

    @property
    def adopted(self) -> bool:
        """Whether it hangs on another node than its own parent."""
        return self.state != "lost" and self.parent != self.home

    @property
    def memory(self) -> int:
        """Bytes that the machine has, 0 while its engine has not told."""
        return self.engine.memory if self.engine is not None else 0


class Rates(_View, frozen=True, kw_only=True):
    """Bytes per second between the last two samples."""

    net_rx: float = 0.0
    net_tx: float = 0.0
    block_read: float = 0.0
    block_write: float = 0.0


class Mark(_View, frozen=True, kw_only=True):
    """Something that happened to a container: of these are its health log, its exits, and the marks in its graphs."""

    at_ms: int
    action: Action
    exit_code: int | None = None
    oom: bool = False
    signal: int = 0
    late: bool = False
    """The engine did not tell; a comparison did."""


class ContainerView(_View, frozen=True, kw_only=True):
    """One container and its last figures."""

    revision: int
    node: str
    record: Container
    sample: Sample | None = None
    """Its last figures; None while it does not run, and before the first."""
    rates: Rates | None = None
    """None before its second sample."""
    sample_ms: int = 0
    """When the sample arrived. Nodes tell what has changed: while `NodeView.stats_ms` moves on, it is still so."""
    marks: tuple[Mark, ...] = ()
    """The last ones, oldest first, as far as events told while we listened."""

    @property
    def id(self) -> str:
        """The first digits of its id, as in the addresses of pages."""
        return self.record.id[:SHORT_ID]

    @property
    def name(self) -> str:
        """Its name; its short id where it has none."""
        return self.record.name or self.id


class ServerView(_View, frozen=True, kw_only=True):
    """A real server of a balancer."""

    id: str
    name: str
    node: str
    ip: str
    port: int
    state: str
    """joining, active, out, draining, removed or kept."""
    reason: str = ""
    since_ms: int = 0
    weight: int = 0
    base: int = 0
    rule: str = ""
    connections: int | None = None
    """That are left while it drains."""
    traffic: Traffic | None = None
    """The kernel's figures for it."""


class BalancerView(_View, frozen=True, kw_only=True):
    """A balancer of a node."""

    revision: int
    node: str
    name: str
    addresses: tuple[str, ...] = ()
    protocol: str = ""
    alg: str = ""
    backend: str = ""
    state: str = "waiting"
    """ok, empty, sorry, panic, waiting or clash."""
    servers: tuple[ServerView, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    problems: tuple[ProblemRecord, ...] = ()
    traffic: BalancerTraffic | None = None
    """Its sums; those of its servers are with them."""
    traffic_ms: int = 0

    @property
    def active(self) -> int:
        """How many servers have a weight."""
        return sum(server.state == "active" and server.weight > 0 for server in self.servers)


class EventRecord(_View, frozen=True, kw_only=True):
    """An event as it arrived."""

    number: int
    """Counts the events of this model from 1: by it a reader goes on where it was."""
    topic: str
    node: str
    """Where it was published."""
    who: str = ""
    time_ms: int
    """The publisher's clock."""
    arrived_ms: int
    body: bytes = b""
    content: int = 0
    """What the body is: a code of protocol 2.7."""

    def json(self) -> object:
        """Return what the body says; None where it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None


class Trouble(_View, frozen=True, kw_only=True):
    """Something that the dashboard itself cannot do."""

    text: str
    mend: str
    since_ms: int


class Totals(_View, frozen=True, kw_only=True):
    """The line above everything."""

    revision: int
    nodes: int = 0
    up: int = 0
    torpid: int = 0
    lost: int = 0
    containers: int = 0
    running: int = 0
    unhealthy: int = 0
    balancers: int = 0
    balancers_ok: int = 0
    cpu: float = 0.0
    """Percent of one core, over all machines that told."""
    cpus: int = 0
    memory: int = 0
    """Bytes, of all running containers."""
    freshest_ms: int = 0
    """When the last figures of the node with the newest, and of the one with the oldest arrived; lost ones aside."""
    oldest_ms: int = 0
