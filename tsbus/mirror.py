"""Mirror: the containers of many nodes in one view, folded from their events and snapshots. Pure.

live_mirror.py feeds one from the bus. docs/containers.md tells of the events.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from tsbus.filters import ALL, Filter
from tsbus.records import Container, ContainerEvent, EngineFacts, SnapshotHead

MONITOR: Final = "containers"
"""The name by which a node's monitor joins its router."""
MAX_KEPT: Final = 4096
"""Events of a node that are kept while its snapshot is under way; after more it is asked again."""

Standing = Literal["live", "engine down", "stale", "lost", "unknown"]


@dataclass(slots=True, eq=False)
class NodeView:
    """What is known of one node's containers."""

    node: str
    containers: dict[str, Container] = field(default_factory=dict)
    """By id; the last that was known, whatever the state."""
    engine: EngineFacts | None = None
    epoch: int = 0
    seq: int = 0
    complete: bool = False
    """Every event of the node until now is in it."""
    lost: bool = False
    """The node cannot be reached."""
    absent: bool = False
    """It has no monitor; it was asked, and there was none."""
    since_ns: int = 0
    """Since when it is not complete, or lost; 0 where nobody knows."""
    why: str = ""
    """Why there is no newer view: the words of whoever should have answered."""
    asking: bool = False
    """A snapshot is under way."""
    _kept: list[ContainerEvent] = field(default_factory=list)

    @property
    def state(self) -> Standing:
        """`unknown`: there was never a view of it; `stale`: it may have changed since `since_ns`."""
        if self.lost:
            return "lost"
        if not self.complete:
            return "stale" if self.epoch else "unknown"
        return "live" if self.engine is not None and self.engine.up else "engine down"


class Mirror:
    """Folds events and snapshots into one view, whatever order they come in. Not thread-safe."""

    def __init__(self, wanted: Filter = ALL) -> None:
        """`wanted`: what `containers` and `find` look at unless they are told otherwise."""
        self.wanted = wanted
        self.nodes: dict[str, NodeView] = {}

    def view(self, node: str) -> NodeView:
        """Return the view of a node; a new one is unknown."""
        view = self.nodes.get(node)
        if view is None:
            view = self.nodes[node] = NodeView(node)
        return view

    def containers(self, wanted: Filter | None = None) -> Iterator[tuple[str, Container]]:
        """Return all containers that fit, each with its node, in no order; also the last known of lost nodes."""
        fits = (self.wanted if wanted is None else wanted).matches
        for view in self.nodes.values():
            for container in view.containers.values():
                if fits(view.node, container):
                    yield view.node, container

    def find(self, name: str) -> list[tuple[str, Container]]:
        """Return what `name` means, as (node, container): on each node the one called so, else all whose ids begin so.

        A whole id is a beginning too.
        """
        found: dict[str, list[Container]] = {}
        for node, one in self.containers():
            if one.name == name or (name and one.id.startswith(name)):
                found.setdefault(node, []).append(one)
        return [
            (node, one) for node, ones in found.items() for one in ([one for one in ones if one.name == name] or ones)
        ]

    # What happens.

    def event(self, event: ContainerEvent) -> bool:
        """Take an event. False: one before it is missing, so this node needs a snapshot."""
        view = self.view(event.node)
        if event.epoch < view.epoch:
            return True
        if view.complete and event.epoch == view.epoch and event.seq <= view.seq + 1:
            if event.seq > view.seq:
                _apply(view, event)
            return True
        if view.complete:
            self._break(view, "events of it were missed", event.time_ns)
        if len(view._kept) < MAX_KEPT:
            view._kept.append(event)
        else:
            view._kept[:] = [event]  # what is missing before it shows when the snapshot comes
        return view.asking

    def asked(self, node: str) -> None:
        """A snapshot of the node was asked for: until it comes, events are kept."""
        self.view(node).asking = True

    def snapshot(self, head: SnapshotHead, containers: Iterable[Container]) -> bool:
        """Take a node's answer, and the events that came meanwhile. False: it needs another one."""
        view = self.view(head.node)
        view.asking = False
        if view.complete and (head.epoch, head.seq) <= (view.epoch, view.seq):
            return True  # one that was overtaken
        view.containers = {one.id: one for one in containers}
        if view.engine is None or view.engine.since_ns <= head.engine.since_ns:
            view.engine = head.engine
        view.epoch, view.seq = head.epoch, head.seq
        view.complete, view.lost, view.absent, view.since_ns, view.why = True, False, False, 0, ""
        kept, view._kept = view._kept, []
        # All of them, also those behind a gap: they are kept again.
        return not sum(not self.event(event) for event in kept)

    def failed(self, node: str, why: str) -> None:
        """No snapshot came."""
        view = self.view(node)
        view.asking, view.why = False, why

    def absent(self, node: str, why: str) -> None:
        """The node can be reached, and has no monitor."""
        self.failed(node, why)
        view = self.view(node)
        view.lost, view.absent = False, True

    def engine(self, facts: EngineFacts) -> bool:
        """The node's engine came or went. False: the node needs a snapshot."""
        view = self.view(facts.node)
        view.engine = facts
        return view.complete or view.asking

    def stale(self, node: str, why: str, time_ns: int) -> None:
        """Events of the node may be missing, or its monitor is gone: its containers are the last that were known."""
        self._break(self.view(node), why, time_ns)

    def lost(self, node: str, why: str, time_ns: int) -> None:
        """The node cannot be reached any more, as of `time_ns` (Unix)."""
        view = self.view(node)
        if not view.lost:
            view.lost, view.since_ns, view.why = True, view.since_ns or time_ns, why
        view.complete = False

    def _break(self, view: NodeView, why: str, time_ns: int) -> None:
        if view.complete:
            view.complete, view.since_ns, view.why = False, time_ns, why


def _apply(view: NodeView, event: ContainerEvent) -> None:
    view.seq = event.seq
    if event.action == "destroyed":
        view.containers.pop(event.container.id, None)
    else:
        view.containers[event.container.id] = event.container
