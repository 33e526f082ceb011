"""Answers: what routers say of themselves and of the tree when they are asked, as typed structs. Pure.

What a router of another release leaves out has its default, and what this one does not know is passed over.
"""

from typing import Final

import msgspec

from tsbus.dashboard.views import MAX_TEXT, NodeState, PeerView
from tsbus.records import Number

MAX_WORKERS: Final = 256
"""Workers of one node, and services of one worker, that are kept."""


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node in the answer of `router.status`."""

    name: str
    state: NodeState
    link: str = "up"
    cause: str = ""
    since_ms: Number = 0
    parent: str = ""
    home: str = ""
    depth: Number = 0
    tags: tuple[str, ...] = ()
    balancers: tuple[str, ...] = ()


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `router.status`: the whole tree in the order of the configuration."""

    node: str
    nodes: tuple[NodeStatus, ...]


class _Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A link or a worker in the answer of `router.stats`."""

    name: str
    kind: str
    role: str = ""
    state: str = "up"
    since_ms: Number = 0
    rtt_ms: float | None = None
    queue: dict[str, Number] = {}
    dropped: Number = 0
    slow: bool = False
    frames_in: Number = 0
    frames_out: Number = 0
    envelopes_in: Number = 0
    who: str = ""
    services: tuple[str, ...] = ()
    subscriptions: Number = 0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `router.stats`."""

    release: str = ""
    config: str = ""
    pid: Number = 0
    uptime_ms: Number = 0
    links: list[_Peer] = []
    workers: list[_Peer] = []
    calls: dict[str, Number] = {}
    subscriptions: Number = 0
    counters: dict[str, Number] = {}


def peer(told: _Peer) -> PeerView:
    """Return the view of a link or a worker."""
    return PeerView(
        name=told.name[:MAX_TEXT],
        # The role of a worker is what it may do, and says nothing here.
        kind=told.kind if told.who else told.role,
        state=told.state,
        since_ms=told.since_ms,
        rtt_ms=told.rtt_ms,
        queued_control=told.queue.get("control", 0),
        queued_stream=told.queue.get("stream", 0),
        queued_event=told.queue.get("event", 0),
        dropped=told.dropped,
        slow=told.slow,
        frames_in=told.frames_in,
        frames_out=told.frames_out,
        envelopes_in=told.envelopes_in,
        who=told.who,
        services=told.services[:MAX_WORKERS],
        subscriptions=told.subscriptions,
    )
