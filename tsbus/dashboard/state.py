"""State: folds what the bus says into one model of the tree. Pure: `feed.py` brings it facts and the time.

The model is made of the frozen views of `views.py`. What was known of a lost node stays as it was; that it is old shows
in the times. Containers come from a mirror (`tsbus/mirror.py`), which puts snapshots and events in order; whatever else
can be missed is told whole by the next answer of the same kind.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from tsbus import mirror
from tsbus.core.events import Event
from tsbus.core.target import TargetError, resolve
from tsbus.core.tree import Topology
from tsbus.dashboard.answers import MAX_WORKERS, NodeStatus, Stats, Status, balancers, peer
from tsbus.dashboard.eventlog import EventLog
from tsbus.dashboard.figures import Figures, Held
from tsbus.dashboard.views import (
    MAX_TEXT,
    SHORT_ID,
    BalancerView,
    ContainerView,
    Mark,
    NodeView,
    ProcessView,
    RouterView,
    SlowView,
    Totals,
    Trouble,
)
from tsbus.lb_records import BalancerTraffic, Details
from tsbus.records import Container, ContainerEvent, StatsEvent

MAX_MARKS: Final = 24
"""Of one container."""
MAX_PEERS: Final = 256
"""Processes and slow peers of one node that are kept."""
MAX_DROPPED: Final = 1 << 62
_PROCESS_STATES: Final = ("started", "exited", "stopped", "fatal")
_SKEW_STEP_MS: Final = 500
_SKEW_EVENTS: Final = 8
"""The clock of a node is judged by so many events: one of them may have waited somewhere."""


class Model:
    """The tree as it is known now. Not thread-safe.

    `nodes`, `containers[node]` (by short id) and `balancers[node]` (by name) are to be read, in the tree's order;
    `revision` counts every change. All methods that take `now_ms` take Unix milliseconds of our own clock.
    """

    def __init__(self, events: EventLog | None = None) -> None:
        self.revision = 0
        self.here = ""
        """The node whose router told; it and what is below it in the configuration are in the model."""
        self.connected = False
        self.connected_ms = 0
        """Since when it is so."""
        self.nodes: dict[str, NodeView] = {}
        self.containers: dict[str, dict[str, ContainerView]] = {}
        self.balancers: dict[str, dict[str, BalancerView]] = {}
        self.events = EventLog() if events is None else events
        self.heard_ms: dict[str, int] = {}
        """When something from a node arrived last, or its link was there."""
        self.unkept: Trouble | None = None
        """Why its history is not kept in the file that is to have it."""
        self._tree: tuple[NodeStatus, ...] = ()
        self._topology: Topology | None = None
        self._figures: dict[str, Figures] = {}
        self._skews: dict[str, deque[int]] = {}

    # Reading.

    @property
    def scope(self) -> str:
        """Of subscriptions: with nobody above, `all` is as good as `subtree`, and takes no second connection."""
        top = self.nodes.get(self.here)
        return "subtree" if top is not None and top.home else "all"

    def container(self, node: str, name: str) -> ContainerView | None:
        """Return a container by its name, its id or the beginning of one, of at least the short length."""
        found = self.containers.get(node, {})
        by_id = found.get(name[:SHORT_ID])
        if by_id is not None and by_id.record.id.startswith(name):
            return by_id
        return next((one for one in found.values() if one.record.name == name), None)

    def select(self, target: str) -> frozenset[str]:
        """Return the nodes of the model that `target` means. Raises TargetError."""
        if self._topology is None:
            raise TargetError("the tree is not known yet")
        return resolve(target, self._topology, self.here) & self.nodes.keys()

    def totals(self) -> Totals:
        """Return the sums over all nodes."""
        nodes = self.nodes.values()
        states = [node.state for node in nodes]
        balancers = [one for each in self.balancers.values() for one in each.values()]
        ages = [node.stats_ms for node in nodes if node.stats_ms and node.state != "lost"]
        return Totals(
            revision=self.revision,
            nodes=len(states),
            up=states.count("up"),
            torpid=states.count("torpid"),
            lost=states.count("lost"),
            containers=sum(node.containers for node in nodes),
            running=sum(node.running for node in nodes),
            unhealthy=sum(node.unhealthy for node in nodes),
            balancers=len(balancers),
            balancers_ok=sum(one.state == "ok" for one in balancers),
            cpu=sum(node.cpu for node in nodes),
            cpus=sum(node.cpus for node in nodes),
            memory=sum(node.containers_memory for node in nodes),
            freshest_ms=max(ages, default=0),
            oldest_ms=min(ages, default=0),
        )

    # The connection and the tree.

    def connection(self, connected: bool, now_ms: int) -> None:
        """The router of this program came or went."""
        if connected != self.connected or not self.connected_ms:
            self.connected, self.connected_ms = connected, now_ms
            self._next()

    def keeping(self, trouble: Trouble | None) -> None:
        """The history was written into its file, or could not be."""
        if trouble != self.unkept:
            self.unkept = trouble
            self._next()

    def status(self, told: Status, now_ms: int) -> None:
        """Take the answer of `router.status`."""
        if told.nodes != self._tree:
            self._tree, self._topology = told.nodes, _topology(told.nodes)
        self.here = told.node
        shown = self._topology.subtree(told.node) if self._topology and told.node in self._topology else None
        nodes = [node for node in told.nodes if shown is None or node.name in shown]
        for name in self.nodes.keys() - {node.name for node in nodes}:
            self._forget_node(name)
        for node in nodes:
            before = self.nodes.get(node.name)
            if node.state != "lost" or (before is not None and before.state != "lost"):
                self.heard(node.name, now_ms)  # its link is there, or was until a moment ago
            self._put_node(
                node.name,
                # Who answers is alive, also when its own link is lost, and with it all above.
                state="up" if node.name == told.node else node.state,
                link=node.link,
                cause=node.cause[:MAX_TEXT],
                since_ms=node.since_ms,
                parent=node.parent,
                home=node.home,
                depth=node.depth,
                tags=node.tags,
                balancers=node.balancers,
            )
            for balancer in self.balancers.get(node.name, {}).keys() - set(node.balancers):
                self._forget_balancer(node.name, balancer)
        order = [node.name for node in nodes]
        if order != list(self.nodes):
            self.nodes = {name: self.nodes[name] for name in order}

    def router(self, node: str, stats: Stats, now_ms: int) -> None:
        """Take the answer of `router.stats`."""
        if node not in self.nodes:
            return
        links = tuple(peer(one) for one in stats.links)
        workers = tuple(peer(one) for one in stats.workers[:MAX_WORKERS])
        self.heard(node, now_ms)
        view = RouterView(
            heard_ms=now_ms,
            release=stats.release,
            config=stats.config,
            pid=stats.pid,
            uptime_ms=stats.uptime_ms,
            links=links,
            workers=workers,
            calls=sum(stats.calls.values()),
            subscriptions=stats.subscriptions,
            counters=stats.counters,
        )
        known = {one.name: one for one in self.nodes[node].slow}
        slow = tuple(
            known.get(one.name) or SlowView(name=one.name, kind=one.kind, since_ms=now_ms, dropped=one.dropped)
            for one in (*links, *workers)
            if one.slow
        )
        self._put_node(node, router=view, slow=slow[:MAX_PEERS])
        for link in links:
            # Both ends measure: whoever watches one node only is told by itself.
            below = node if link.kind == "parent" else link.name
            if below in self.nodes and link.rtt_ms is not None:
                self._put_node(below, rtt_ms=link.rtt_ms)

    # Events.

    def event(self, event: Event, now_ms: int) -> None:
        """Take any event into the log, and what some of them say of slow peers and programs into the node."""
        node = event.origin
        record = self.events.take(event, now_ms)
        self._next()
        self.clock(node, event.time_ms, now_ms)
        kind, _, happened = event.topic.partition(".")
        if node in self.nodes and ((kind in ("bus", "worker") and event.who == "router") or kind == "process"):
            told = record.json()
            if isinstance(told, dict):
                self._learn(kind, happened, node, told, event.time_ms)

    def _learn(self, kind: str, happened: str, node: str, told: Mapping[str, Any], time_ms: int) -> None:
        view = self.nodes[node]
        name = str(told.get("peer" if kind == "bus" else "name", ""))[:MAX_TEXT]
        if kind == "process" and happened in _PROCESS_STATES:
            expected = bool(told.get("expected", True))
            process = ProcessView(name=name, state=happened, at_ms=time_ms, expected=expected)
            others = {one.name: one for one in view.processes} | {name: process}
            self._put_node(node, processes=tuple(others[key] for key in sorted(others)[:MAX_PEERS]))
            return
        slow = {one.name: one for one in view.slow if one.name != name}
        if happened == "slow":
            dropped = told.get("dropped")
            count = min(dropped, MAX_DROPPED) if isinstance(dropped, int) else 0
            slow[name] = SlowView(name=name, kind=str(told.get("kind", ""))[:16], since_ms=time_ms, dropped=count)
        if happened in ("slow", "recovered", "left"):
            self._put_node(node, slow=tuple(slow.values())[-MAX_PEERS:])

    def heard(self, node: str, now_ms: int) -> None:
        """Something from the node arrived. No change: whoever draws ages looks at the time."""
        self.heard_ms[node] = now_ms

    def clock(self, node: str, time_ms: int, now_ms: int) -> None:
        """An event of the node arrived that it stamped `time_ms`."""
        if node not in self.nodes:
            return
        self.heard(node, now_ms)
        skews = self._skews.setdefault(node, deque(maxlen=_SKEW_EVENTS))
        skews.append(time_ms - now_ms)
        skew = round(min(skews, key=abs) / _SKEW_STEP_MS) * _SKEW_STEP_MS
        if skew != self.nodes[node].skew_ms:
            self._put_node(node, skew_ms=skew)

    # Containers.

    def mirrored(self, view: mirror.NodeView, event: ContainerEvent | None = None) -> None:
        """Take what a mirror knows of a node: with `event` only what it did, else everything."""
        node = view.node
        if node not in self.nodes:
            return
        known = self.containers.setdefault(node, {})
        if event is not None:
            short = event.container.id[:SHORT_ID]
            record = view.containers.get(event.container.id)
            if record is None:
                self._forget_container(node, short)
            else:
                self._put_container(node, record, _mark(event))
        else:
            for record in view.containers.values():
                before = known.get(record.id[:SHORT_ID])
                if before is None or (before.record is not record and before.record != record):
                    self._put_container(node, record)
            for short in known.keys() - {full[:SHORT_ID] for full in view.containers}:
                self._forget_container(node, short)
        self._put_node(
            node,
            standing=view.state,
            standing_why=view.why[:MAX_TEXT],
            standing_since_ms=view.since_ns // 1_000_000,
            monitored=not view.absent,
            engine=view.engine,
            containers=len(known),
            running=sum(one.record.state == "running" for one in known.values()),
            unhealthy=sum(one.record.health == "unhealthy" and one.record.state == "running" for one in known.values()),
        )

    def figures(self, event: StatsEvent, now_ms: int) -> None:
        """Take the figures of a node's containers."""
        node = event.node
        if node not in self.nodes:
            return
        figures = self._figures.setdefault(node, Figures())
        known = self.containers.get(node, {})
        for short in figures.take(event, now_ms):
            if short in known:
                self._put_figures(known[short])
        self._put_node(
            node,
            cpu=event.cpu,
            cpus=event.cpus,
            monitor_cpu=event.cost,
            containers_cpu=figures.cpu,
            containers_memory=figures.memory,
            stats_ms=now_ms,
        )
        self.clock(node, event.time_ms, now_ms)

    def _put_figures(self, view: ContainerView) -> None:
        held = self._held(view.node, view.record)
        if held is None and view.sample is None:
            return
        self.containers[view.node][view.id] = msgspec.structs.replace(
            view,
            revision=self._next(),
            sample=held.sample if held else None,
            rates=held.rates if held else None,
            sample_ms=held.heard_ms if held else 0,
        )

    def _held(self, node: str, record: Container) -> Held | None:
        """Return the figures of a container, as long as it runs."""
        figures = self._figures.get(node)
        return figures.held.get(record.id[:SHORT_ID]) if figures and record.state in ("running", "paused") else None

    def _put_container(self, node: str, record: Container, mark: Mark | None = None) -> None:
        short = record.id[:SHORT_ID]
        before = self.containers[node].get(short)
        marks = before.marks if before is not None else ()
        held = self._held(node, record)
        self.containers[node][short] = ContainerView(
            revision=self._next(),
            node=node,
            record=record,
            sample=held.sample if held else None,
            rates=held.rates if held else None,
            sample_ms=held.heard_ms if held else 0,
            marks=marks if mark is None else (*marks, mark)[-MAX_MARKS:],
        )

    def _forget_container(self, node: str, short: str) -> None:
        if self.containers.get(node, {}).pop(short, None) is not None:
            self._next()
        if node in self._figures:
            self._figures[node].drop(short)

    # Balancers.

    def balancing(self, node: str, told: Iterable[Details], now_ms: int) -> None:
        """Take the whole answer of `lb.show` of a node, further pieces of a balancer included."""
        if node not in self.nodes:
            return
        self.heard(node, now_ms)
        known = self.balancers.setdefault(node, {})
        found = balancers(node, told, known, now_ms)
        for name in known.keys() - found.keys():
            self._forget_balancer(node, name)
        for name, view in found.items():
            before = known.get(name)
            if before is None or msgspec.structs.replace(view, revision=before.revision) != before:
                known[name] = msgspec.structs.replace(view, revision=self._next())
        self._put_node(node, balancers_ms=now_ms, balancers_why="")

    def unbalanced(self, node: str, why: str) -> None:
        """The balancers of a node cannot be asked; what was known of them stays."""
        if node in self.nodes:
            self._put_node(node, balancers_why=why[:MAX_TEXT])

    def traffic(self, node: str, told: BalancerTraffic, now_ms: int) -> None:
        """Take what a balancer's kernel counts."""
        view = self.balancers.get(node, {}).get(told.name)
        if view is None:
            return
        self.heard(node, now_ms)
        seats = {(one.id, one.ip, one.port): one for one in told.servers}
        servers = tuple(
            msgspec.structs.replace(one, traffic=seats.get((one.id, one.ip, one.port))) for one in view.servers
        )
        self.balancers[node][told.name] = msgspec.structs.replace(
            view, revision=self._next(), servers=servers, traffic=told, traffic_ms=now_ms
        )

    def _forget_balancer(self, node: str, name: str) -> None:
        if self.balancers.get(node, {}).pop(name, None) is not None:
            self._next()

    # Nodes.

    def _put_node(self, name: str, **facts: Any) -> None:
        """Change what is known of a node, if that is news."""
        before = self.nodes.get(name)
        if before is None:
            self.nodes[name] = NodeView(revision=self._next(), name=name, **facts)
        elif any(getattr(before, key) != value for key, value in facts.items()):
            self.nodes[name] = msgspec.structs.replace(before, revision=self._next(), **facts)

    def _forget_node(self, name: str) -> None:
        """A node is not in the configuration any more."""
        for each in (self.nodes, self.containers, self.balancers, self._figures, self._skews, self.heard_ms):
            each.pop(name, None)
        self._next()

    def _next(self) -> int:
        self.revision += 1
        return self.revision


def _topology(nodes: Iterable[NodeStatus]) -> Topology | None:
    """Return the configured tree; None for what is none."""
    children: dict[str, list[str]] = {node.name: [] for node in nodes}
    for node in nodes:
        if node.home in children:
            children[node.home].append(node.name)
    try:
        return Topology(children, {node.name: node.tags for node in nodes})
    except ValueError:
        return None


def _mark(event: ContainerEvent) -> Mark | None:
    """Return what is remembered of an event; changes of limits and ports are not."""
    if event.action in ("changed", "renamed"):
        return None
    died = event.action == "died"
    return Mark(
        at_ms=event.time_ns // 1_000_000,
        action=event.action,
        exit_code=event.container.exit_code if died else None,
        oom=event.action == "oom" or (died and event.container.oom),
        signal=event.signal,
        late=event.cause == "reconcile",
    )
