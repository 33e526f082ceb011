"""Tones: each state of the tree as a tone, which is a shape and a colour, and a word. Pure.

`treescale.css` draws them: ok is a disc, busy an open ring, warn a triangle, bad a diamond, off and lost are rings.
"""

from typing import Final, Literal

from tsbus.dashboard.views import BalancerView, ContainerView, NodeView, ServerView

Tone = Literal["ok", "busy", "warn", "bad", "off", "lost"]
Mark = tuple[Tone, str]
"""A tone and the word beside it."""

_NODE: Final[dict[str, Tone]] = {"up": "ok", "torpid": "warn", "lost": "lost"}
_CONTAINER: Final[dict[str, Tone]] = {
    "created": "off", "paused": "off", "restarting": "warn", "removing": "busy", "dead": "bad",
}  # fmt: skip
_SERVER: Final[dict[str, Tone]] = {
    "active": "ok", "joining": "busy", "draining": "busy", "kept": "warn", "out": "bad", "removed": "off",
}  # fmt: skip
_BALANCER: Final[dict[str, Tone]] = {
    "ok": "ok", "empty": "warn", "sorry": "warn", "panic": "bad", "waiting": "busy", "clash": "bad",
}  # fmt: skip


def of_node(node: NodeView) -> Mark:
    """Return how a node is."""
    return _NODE[node.state], node.state


def of_container(container: ContainerView) -> Mark:
    """Return how a container is: its health if it has any, else its state."""
    record = container.record
    if record.state == "running":
        if record.draining:
            return "busy", "draining"
        if record.health == "unhealthy":
            return "bad", "unhealthy"
        return ("busy", "starting") if record.health == "starting" else ("ok", record.health or "running")
    if record.state == "exited":
        if record.oom:
            return "bad", "out of memory"
        return ("warn", f"exited {record.exit_code}") if record.exit_code else ("off", "exited")
    return _CONTAINER.get(record.state, "off"), record.state


def of_server(server: ServerView) -> Mark:
    """Return how a real server is. One without a weight gets nothing, whatever its state."""
    if server.state == "active" and not server.weight:
        return "off", "weight 0"
    return _SERVER.get(server.state, "off"), server.state


def of_balancer(balancer: BalancerView) -> Mark:
    """Return how a balancer is."""
    return _BALANCER.get(balancer.state, "off"), balancer.state


def of_topic(topic: str) -> Tone:
    """Return what an event's topic sounds like."""
    last = topic.rpartition(".")[2]
    if last in ("lost", "died", "oom", "unhealthy", "down", "panic", "empty", "fatal", "firing", "problem"):
        return "bad" if last not in ("died", "empty") else "warn"
    if last in ("draining", "slow", "torpid", "out", "repaired", "exited", "stopped"):
        return "warn"
    return "off" if last not in ("up", "started", "healthy", "active", "filled", "calm", "solved", "resolved") else "ok"


def size(count: float) -> str:
    """Return bytes in words, as `cells.js` writes them."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while count >= 1000 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.1f} {units[0]}" if units[0] != "B" and count < 9.95 else f"{count:.0f} {units[0]}"
