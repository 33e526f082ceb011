"""Metrics: the model in the text format of Prometheus. Pure, but for the library that writes the format.

    feed.watch_for(LEASE_S)
    text = await asyncio.to_thread(exposition, take(feed.model, now_ms))

`take` is done in the loop, and copies nothing but references; to write thousands of containers takes a while, and
may be done in a thread since views never change. Labels are names of the configuration, names of containers and their
images, never ids; containers above `MAX_CONTAINERS` are left out, and how many is a metric itself. Figures that are not
of now have no sample at all: a gap is a gap.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tsbus.dashboard.history import FRESH_MS
from tsbus.dashboard.problems import Problem, problems
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import BalancerView, ContainerView, NodeView

MAX_CONTAINERS: Final = 5000
MAX_REASONS: Final = 64
"""Counters of one router."""
MAX_LABEL: Final = 200
"""Characters of a label."""
LEASE_S: Final = 150.0
"""A scrape watches the tree for so long: whoever scrapes once a minute has figures from the second time on."""
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_STATES: Final = ("up", "torpid", "lost")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model at one moment."""

    connected: bool
    nodes: Sequence[NodeView]
    containers: Sequence[ContainerView]
    """Of each node one of a name, MAX_CONTAINERS at most."""
    left_out: int
    """Containers that were too many, or whose names are taken."""
    balancers: Sequence[BalancerView]
    problems: Sequence[Problem]
    events: int
    """That have arrived since the dashboard began."""
    now_ms: int


def take(model: Model, now_ms: int) -> Snapshot:
    """Take what there is to tell now."""
    every = [view for each in model.containers.values() for view in each.values()]
    named = list({(view.node, view.name[:MAX_LABEL]): view for view in every}.values())
    kept = named[:MAX_CONTAINERS]
    return Snapshot(
        model.connected,
        list(model.nodes.values()),
        kept,
        len(every) - len(kept),
        [view for each in model.balancers.values() for view in each.values()],
        problems(model, now_ms),
        model.events.last,
        now_ms,
    )


def exposition(snapshot: Snapshot) -> bytes:
    """Return the page that Prometheus reads, of CONTENT_TYPE."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._now = snapshot

    def describe(self) -> Iterable[Metric]:
        """Tell nothing: the registry would collect everything twice to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        now = self._now
        yield from _dashboard(now)
        yield from _nodes(now)
        yield from _routers(now.nodes)
        yield from _containers(now)
        yield from _balancers(now.balancers)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"treescale_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"treescale_{name}", text, labels=labels)


def _dashboard(now: Snapshot) -> Iterator[Metric]:
    connected = _gauge("connected", "1 while the dashboard is connected to its router.")
    connected.add_metric([], now.connected)
    left_out = _gauge("containers_left_out", "Containers without metrics, because there are too many.")
    left_out.add_metric([], now.left_out)
    events = _counter("events", "Events of the tree that have arrived at the dashboard.")
    events.add_metric([], now.events)
    wrong = _gauge("problems", "What is wrong now, as the dashboard lists it.", "kind")
    for kind, count in Counter(one.kind for one in now.problems).items():
        wrong.add_metric([kind], count)
    yield from (connected, left_out, events, wrong)


def _is_fresh(node: NodeView, now_ms: int) -> bool:
    return bool(node.stats_ms) and now_ms - node.stats_ms <= FRESH_MS


def _nodes(now: Snapshot) -> Iterator[Metric]:
    state = _gauge("node_state", "1 for the state that the node is in.", "node", "state")
    adopted = _gauge("node_adopted", "1 while the node hangs on another one than its own parent.", "node")
    rtt = _gauge("node_rtt_seconds", "Round trip of the link from the node above.", "node")
    skew = _gauge("node_clock_skew_seconds", "How far the node's clock is ahead of the dashboard's.", "node")
    engine = _gauge("node_engine_up", "1 while the node's Docker engine can be reached.", "node")
    cpu = _gauge("node_cpu_cores", "CPU that the whole machine uses, in cores.", "node")
    cpus = _gauge("node_cpus", "CPUs of the machine.", "node")
    memory = _gauge("node_memory_bytes", "Memory of the machine.", "node")
    containers = _gauge("node_containers", "Containers of the node.", "node", "state")
    unhealthy = _gauge("node_unhealthy_containers", "Running containers whose health check fails.", "node")
    age = _gauge("node_figures_age_seconds", "How old the newest figures of the node are.", "node")
    for node in now.nodes:
        name = [node.name]
        for each in _STATES:
            state.add_metric([node.name, each], node.state == each)
        if node.stats_ms:
            age.add_metric(name, (now.now_ms - node.stats_ms) / 1000)
        if node.state == "lost":
            continue
        adopted.add_metric(name, node.adopted)
        skew.add_metric(name, node.skew_ms / 1000)
        if node.rtt_ms is not None:
            rtt.add_metric(name, node.rtt_ms / 1000)
        if node.engine is not None:
            engine.add_metric(name, node.engine.up)
            memory.add_metric(name, node.memory)
            containers.add_metric([node.name, "running"], node.running)
            containers.add_metric([node.name, "other"], node.containers - node.running)
            unhealthy.add_metric(name, node.unhealthy)
        if _is_fresh(node, now.now_ms):
            cpu.add_metric(name, node.cpu / 100)
            cpus.add_metric(name, node.cpus)
    yield from (state, adopted, rtt, skew, engine, cpu, cpus, memory, containers, unhealthy, age)


def _routers(nodes: Iterable[NodeView]) -> Iterator[Metric]:
    queue = _gauge(
        "link_queue_bytes", "Bytes that wait for the node at the other end of a link.", "node", "peer", "lane"
    )
    dropped = _counter("link_dropped_events", "Events that a link lost because it did not keep up.", "node", "peer")
    frames = _counter("link_sent_frames", "Frames sent over a link.", "node", "peer")
    workers = _gauge("router_workers", "Programs that are connected to the node's router.", "node")
    waiting = _gauge("router_workers_queue_bytes", "Bytes that wait for these programs.", "node")
    slow = _gauge("router_slow_readers", "Readers of the node's router that do not keep up.", "node")
    reasons = _counter("router_counted", "What the node's router has refused or dropped.", "node", "reason")
    for node in nodes:
        name, router = [node.name], node.router
        slow.add_metric(name, len(node.slow))
        if router is None or node.state == "lost":
            continue
        for link in router.links:
            for lane in ("control", "stream", "event"):
                queue.add_metric([node.name, link.name, lane], getattr(link, f"queued_{lane}"))
            dropped.add_metric([node.name, link.name], link.dropped)
            frames.add_metric([node.name, link.name], link.frames_out)
        workers.add_metric(name, len(router.workers))
        waiting.add_metric(name, sum(worker.queued for worker in router.workers))
        for reason, count in sorted(router.counters.items())[:MAX_REASONS]:
            reasons.add_metric([node.name, reason[:MAX_LABEL]], count)
    yield from (queue, dropped, frames, workers, waiting, slow, reasons)


def _containers(now: Snapshot) -> Iterator[Metric]:
    labels = ("node", "name", "image")
    running = _gauge("container_running", "1 while the container runs.", *labels)
    healthy = _gauge("container_healthy", "1 while its health check is content; only where it has one.", *labels)
    restarts = _counter("container_restarts", "How often its engine has restarted it.", *labels)
    cpu = _gauge("container_cpu_cores", "CPU that it uses, in cores.", *labels)
    memory = _gauge("container_memory_bytes", "Memory without the cache that can be dropped.", *labels)
    limit = _gauge("container_memory_limit_bytes", "The most that it may have.", *labels)
    received = _counter("container_received_bytes", "Bytes received since its start.", *labels)
    sent = _counter("container_sent_bytes", "Bytes sent since its start.", *labels)
    read = _counter("container_read_bytes", "Bytes read from disks since its start.", *labels)
    written = _counter("container_written_bytes", "Bytes written to disks since its start.", *labels)
    pids = _gauge("container_pids", "Its processes and threads.", *labels)
    throttled = _counter("container_throttled_seconds", "How long its limit kept it from the CPU.", *labels)
    killed = _counter("container_oom_kills", "Processes that the out-of-memory killer ended in it.", *labels)
    nodes = {node.name: node for node in now.nodes}
    for view in now.containers:
        node, record = nodes.get(view.node), view.record
        if node is None or node.state == "lost":
            continue
        values = [view.node, view.name[:MAX_LABEL], record.image.given[:MAX_LABEL]]
        running.add_metric(values, record.state == "running")
        restarts.add_metric(values, record.restarts)
        if record.health and record.state == "running":
            healthy.add_metric(values, record.health == "healthy")
        sample = view.sample
        if sample is None or not _is_fresh(node, now.now_ms):
            continue
        cpu.add_metric(values, sample.cpu / 100)
        memory.add_metric(values, sample.memory)
        limit.add_metric(values, sample.memory_limit)
        received.add_metric(values, sample.net_rx)
        sent.add_metric(values, sample.net_tx)
        read.add_metric(values, sample.block_read)
        written.add_metric(values, sample.block_write)
        pids.add_metric(values, sample.pids)
        throttled.add_metric(values, sample.throttled_ms / 1000)
        killed.add_metric(values, sample.oom_kills)
    yield from (running, healthy, restarts, cpu, memory, limit, received, sent, read, written, pids, throttled, killed)


def _balancers(balancers: Iterable[BalancerView]) -> Iterator[Metric]:
    labels = ("node", "balancer")
    state = _gauge("balancer_state", "1 for the state that the balancer is in.", *labels, "state")
    servers = _gauge("balancer_servers", "Its servers by their states.", *labels, "state")
    connections = _counter("balancer_connections", "Connections since it is there.", *labels)
    received = _counter("balancer_received_bytes", "Bytes from clients.", *labels)
    sent = _counter("balancer_sent_bytes", "Bytes to clients.", *labels)
    active = _gauge("balancer_active_connections", "Connections that are open.", *labels)
    for view in balancers:
        name = [view.node, view.name]
        state.add_metric([*name, view.state], 1)
        for each, count in Counter(server.state for server in view.servers).items():
            servers.add_metric([*name, each], count)
        if view.traffic is not None:
            connections.add_metric(name, view.traffic.connections)
            received.add_metric(name, view.traffic.in_bytes)
            sent.add_metric(name, view.traffic.out_bytes)
            active.add_metric(name, view.traffic.active)
    yield from (state, servers, connections, received, sent, active)
