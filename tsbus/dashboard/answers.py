"""Answers: what routers and balancers say when they are asked, as typed structs and as views. Pure.

What a router of another release leaves out has its default, and what this one does not know is passed over.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tsbus.dashboard.views import MAX_TEXT, BalancerView, NodeState, PeerView, ServerView
from tsbus.lb_records import Details, ServerRecord
from tsbus.records import Number

MAX_WORKERS: Final = 256
"""Workers of one node, and services of one worker, that are kept."""

_SINCE_STEP_MS: Final = 2000
"""Times that are told as ages move by what an answer takes; less than this is no change."""


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


def balancers(
    node: str, told: Iterable[Details], known: Mapping[str, BalancerView], now_ms: int
) -> dict[str, BalancerView]:
    """Return the balancers of `lb.show`, which has more servers of one in further pieces.

    Traffic, and times that are told as ages, are those of the views that are `known`. The revisions are 0.
    """
    found: dict[str, BalancerView] = {}
    for details in told:
        before = known.get(details.name)
        seats = {(one.id, one.ip, one.port): one for one in before.servers} if before else {}
        servers = tuple(_server(one, seats.get((one.id, one.ip, one.port)), now_ms) for one in details.servers)
        if (first := found.get(details.name)) is not None:
            found[details.name] = msgspec.structs.replace(first, servers=first.servers + servers)
            continue
        found[details.name] = BalancerView(
            revision=0,
            node=node,
            name=details.name,
            addresses=details.addresses,
            protocol=details.protocol,
            alg=details.alg,
            backend=details.backend,
            state=details.state,
            servers=servers,
            left_out=details.left_out,
            problems=details.problems,
            traffic=before.traffic if before else None,
            traffic_ms=before.traffic_ms if before else 0,
        )
    return found


def _server(told: ServerRecord, before: ServerView | None, now_ms: int) -> ServerView:
    since_ms = now_ms - round(told.since_s * 1000)
    if before is not None and before.state == told.state and abs(before.since_ms - since_ms) < _SINCE_STEP_MS:
        since_ms = before.since_ms
    return ServerView(
        id=told.id,
        name=told.name,
        node=told.node,
        ip=told.ip,
        port=told.port,
        state=told.state,
        reason=told.reason,
        since_ms=since_ms,
        weight=told.weight,
        base=told.base,
        rule=told.rule,
        connections=told.connections,
        traffic=before.traffic if before else None,
    )
