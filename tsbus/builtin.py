"""What every router answers itself: `router.ping`, `status`, `stats` and `resolve` (protocol 10.7). Read only."""

import json
import os
from typing import TYPE_CHECKING

from tsbus.core.accounting import Outcome
from tsbus.core.directory import NodeState
from tsbus.peer import Peer

if TYPE_CHECKING:
    from tsbus.router import Router


def answer(router: "Router", command: str, body: bytes) -> tuple[Outcome, object]:
    """Return the outcome and the answer, which becomes JSON."""
    if command == "router.ping":
        return Outcome.OK, {"node": router.me, "time_ms": router.clock.wall_ms()}
    if command == "router.status":
        return Outcome.OK, status(router)
    if command == "router.stats":
        return Outcome.OK, stats(router)
    if command == "router.resolve":
        return _resolve(router, body)
    return Outcome.NO_SUCH_SERVICE, f"the router serves ping, status, stats and resolve, not {command}"


def _resolve(router: "Router", body: bytes) -> tuple[Outcome, object]:
    """Tell which nodes `{"target": ...}` means here, and why some of them cannot be reached."""
    try:
        nodes, reachable = router.routing.resolve(str(json.loads(body)["target"]), router.me)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Outcome.FAILED, f"router.resolve: {error}"
    away = {node: router.commands.why_away(node) for node in sorted(nodes - reachable)}
    return Outcome.OK, {"nodes": sorted(nodes), "away": away}


def status(router: "Router") -> dict[str, object]:
    """Return the whole tree as this router sees it, in configuration order."""
    return {
        "node": router.me,
        "release": router.release,
        "config": router.tree.version,
        "time_ms": router.clock.wall_ms(),
        "nodes": [_node(router, name) for name in router.topology.names],
    }


def _node(router: "Router", name: str) -> dict[str, object]:
    entry = router.directory.entries[name]
    link = NodeState(entry.state).name.lower()
    # The top of a torn-off part has a lost link and can be reached all the same.
    here = "torpid" if entry.state == NodeState.TORPID else "up"
    return {
        "name": name,
        "state": here if name in router.directory.reachable else "lost",
        "link": link,
        "cause": entry.cause,
        "since_ms": entry.time_ms,
        "parent": entry.parent,
        "home": router.topology.parent(name) or "",
        "incarnation": entry.incarnation,
        "epoch": entry.epoch,
        "depth": router.topology.depth(name),
        "tags": list(router.tree.servers[name].tags),
        "balancers": list(router.tree.servers[name].balancers),
    }


def stats(router: "Router") -> dict[str, object]:
    """Return the counters and the state of every connection."""
    return {
        "node": router.me,
        "release": router.release,
        "config": router.tree.version,
        "pid": os.getpid(),
        "uptime_ms": router.clock.wall_ms() - router.started_ms,
        "links": [_peer(peer) | router.links.link_stats(peer) for peer in router.links.by_way.values()],
        "workers": [_peer(peer) | _worker(peer) for peer in router.workers.values()],
        "calls": {"outgoing": len(router.commands.outgoing), "serving": len(router.services.serving)},
        "subscriptions": router.interest.size,
        "counters": dict(router.counters),
    }


def _peer(peer: Peer) -> dict[str, object]:
    control, stream, event = peer.outbox.lanes
    return {
        "name": peer.name,
        "kind": peer.kind.name.lower(),
        "since_ms": peer.since_ms,
        "queue": {"control": control.waiting, "stream": stream.waiting, "event": event.waiting},
        "dropped": event.dropped,
        "slow": peer.slow,
        "frames_in": peer.frames_in,
        "envelopes_in": peer.envelopes_in,
        "frames_out": peer.frames_out,
    }


def _worker(peer: Peer) -> dict[str, object]:
    return {
        "handle": peer.handle,
        "who": peer.who,
        "role": peer.role.name.lower(),
        "services": sorted(peer.services),
        "subscriptions": peer.subscriptions,
    }
