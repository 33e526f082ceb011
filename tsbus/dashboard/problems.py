"""Problems: what is wrong now, in words, and where to look. Pure: made anew from the model whenever somebody asks.

A lost node speaks for all below it and for everything on it: of what nobody can see, nothing more is said.
"""

from collections.abc import Callable, Iterator
from typing import Final, Literal

import msgspec

from tsbus.core.target import fold
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import BalancerView, ContainerView, NodeView

LATELY_MS: Final = 3_600_000
"""A container that ended with an error, or met the out-of-memory killer, is a problem for an hour."""
LOOP_STARTS: Final = 3
LOOP_MS: Final = 300_000
"""Started so often within this time, a container does not get up."""
SKEW_MS: Final = 2000
STOP_MS: Final = 60_000
"""An end so soon after the stop signal is what somebody wanted, whatever the exit code."""

Kind = Literal[
    "disconnected", "node-lost", "node-torpid", "slow-reader", "clock-skew", "process-fatal", "engine-down", "stale",
    "container-unhealthy", "restart-loop", "container-oom", "container-failed",
    "balancer-off", "balancer-clash", "balancer-empty", "balancer-panic", "balancer-problem",
    "history",
]  # fmt: skip
WARNINGS: Final[frozenset[Kind]] = frozenset(
    ("node-torpid", "slow-reader", "clock-skew", "stale", "balancer-problem", "balancer-panic", "history")
)
_OF_LOST: Final = {
    "bye": "its router was stopped: start it there, with supervisorctl start router or treescale up",
    "never": "start it; if it runs, its address or its key is not what the tree here says: see router.log there",
}
_LOST_MEND: Final = "see that the machine runs and can be reached, then its router: supervisorctl status, router.log"
_AWAY_MEND: Final = "supervisorctl status router tells why; its end is in router.log"


class Problem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Something that is wrong."""

    kind: Kind
    node: str = ""
    """On which node; empty of the dashboard itself."""
    subject: str = ""
    """What on it: short id of a container, name of a balancer, a process or a peer."""
    text: str
    """One sentence without a full stop. Names in it come from outside."""
    mend: str = ""
    """What to do, where that is known."""
    since_ms: int = 0
    """Unix milliseconds, 0 where nobody knows."""

    @property
    def severe(self) -> bool:
        """Whether something is down, and not only doubtful."""
        return self.kind not in WARNINGS

    @property
    def path(self) -> str:
        """The page that shows it."""
        if self.kind.startswith("container") or self.kind == "restart-loop":
            return f"/container/{self.node}/{self.subject}"
        if self.kind.startswith("balancer"):
            return "/balancers"
        if self.kind == "history":
            return "/"
        return "/bus" if self.kind in ("slow-reader", "disconnected") else f"/node/{self.node}"


def problems(model: Model, now_ms: int) -> list[Problem]:
    """Return all problems, the severe ones first, of each sort the newest first."""
    found = list(_all(model, now_ms))
    found.sort(key=lambda one: (not one.severe, -one.since_ms, one.node, one.subject))
    return found


def _all(model: Model, now_ms: int) -> Iterator[Problem]:
    if not model.connected:
        text = "not connected to the router here: everything is as it was last known"
        yield Problem(kind="disconnected", text=text, mend=_AWAY_MEND, since_ms=model.connected_ms)
    if (trouble := model.unkept) is not None:
        text = f"figures are kept for an hour only: {trouble.text}"
        yield Problem(kind="history", text=text, mend=trouble.mend, since_ms=trouble.since_ms)
    for top, below in lost_tops(model):
        mend = _OF_LOST.get(top.cause, _LOST_MEND)
        yield Problem(kind="node-lost", node=top.name, text=_lost(top, below), mend=mend, since_ms=top.since_ms)
    for node in model.nodes.values():
        if node.state == "lost":
            continue
        for judge in _OF_NODES:
            # While the router here is away, everything is as it was: that is said once.
            yield from (one for one in judge(node) if model.connected or one.kind != "stale")
        for container in model.containers.get(node.name, {}).values():
            yield from of_container(container, now_ms)
        for balancer in model.balancers.get(node.name, {}).values():
            yield from _of_balancer(balancer)


# Nodes ----------------------------------------------------------------------------------------------------------------


def lost_tops(model: Model) -> Iterator[tuple[NodeView, tuple[str, ...]]]:
    """Return the lost nodes at the top of what is lost, each with the names of those that are lost with it."""
    lost = {name: node for name, node in model.nodes.items() if node.state == "lost"}
    below: dict[str, list[str]] = {}
    tops = []
    for name, node in lost.items():
        above = node.parent or node.home
        if above in lost and above != name:
            below.setdefault(above, []).append(name)
        else:
            tops.append(node)
    for top in tops:
        found: dict[str, None] = {}
        todo = below.get(top.name, [])[:]
        while todo:
            name = todo.pop()
            if name not in found:
                found[name] = None
                todo += below.get(name, [])
        yield top, tuple(name for name in lost if name in found)


def _lost(top: NodeView, below: tuple[str, ...]) -> str:
    what = "was never seen" if top.cause == "never" else f"is lost ({top.cause or 'no link'})"
    return f"{top.name} {what}" + (f", and with it {len(below)} below: {fold(below)[:200]}" if below else "")


def _torpid(node: NodeView) -> Iterator[Problem]:
    if node.state == "torpid":
        text = f"{node.name} is connected, but its router does not answer"
        mend = "see there what keeps its router busy: top, router.log; supervisorctl restart router ends it"
        yield Problem(kind="node-torpid", node=node.name, text=text, mend=mend, since_ms=node.since_ms)


def _slow(node: NodeView) -> Iterator[Problem]:
    for peer in node.slow:
        lost = f" and has lost {peer.dropped} events" if peer.dropped else ""
        text = f"{peer.name} reads more slowly than events come from {node.name}{lost}"
        mend = "see what it waits for; what it has missed does not come again"
        yield Problem(
            kind="slow-reader", node=node.name, subject=peer.name, text=text, mend=mend, since_ms=peer.since_ms
        )


def _skewed(node: NodeView) -> Iterator[Problem]:
    if abs(node.skew_ms) > SKEW_MS:
        side = "ahead of" if node.skew_ms > 0 else "behind"
        text = f"the clock of {node.name} is {abs(node.skew_ms) / 1000:.0f} s {side} the one here"
        yield Problem(kind="clock-skew", node=node.name, text=text, mend="check its time service, and the one here")


def _fatal(node: NodeView) -> Iterator[Problem]:
    for process in node.processes:
        if process.state == "fatal":
            text = f"{process.name} on {node.name} does not start; it is tried again"
            mend = f"read {process.name}.log there"
            yield Problem(
                kind="process-fatal", node=node.name, subject=process.name, text=text, mend=mend, since_ms=process.at_ms
            )


def _engine(node: NodeView) -> Iterator[Problem]:
    if node.standing == "engine down" and node.engine is not None:
        text = f"the Docker engine of {node.name} is down: {node.engine.reason or 'nobody knows why'}"
        mend = "start Docker there; if there is to be none, say enabled = false in its [docker]"
        since_ms = node.engine.since_ns // 1_000_000
        yield Problem(kind="engine-down", node=node.name, text=text, mend=mend, since_ms=since_ms)
    elif node.standing == "stale" and node.monitored:
        text = f"the containers of {node.name} are as they were last known: {node.standing_why}"
        yield Problem(kind="stale", node=node.name, text=text, since_ms=node.standing_since_ms)


def _unbalanced(node: NodeView) -> Iterator[Problem]:
    if node.balancers_why:
        text = f"the balancers of {node.name} do not tell: {node.balancers_why}"
        yield Problem(kind="balancer-off", node=node.name, text=text, mend="supervisorctl start balancer")


_OF_NODES: Final[tuple[Callable[[NodeView], Iterator[Problem]], ...]] = (
    _torpid, _slow, _skewed, _fatal, _engine, _unbalanced,
)  # fmt: skip


# Containers -----------------------------------------------------------------------------------------------------------


def of_container(view: ContainerView, now_ms: int) -> Iterator[Problem]:
    """Return what is wrong with a container: at most one thing, the one that explains the others."""
    record = view.record
    if record.state == "running" and record.health != "unhealthy" and not record.oom and not view.marks:
        return  # as nearly all do: there is nothing to look for
    where = f"{view.name} on {view.node}"
    starts = starts_since(view, now_ms - LOOP_MS)
    is_looping = len(starts) >= LOOP_STARTS
    ended_ms = record.finished_ns // 1_000_000
    lately = now_ms - ended_ms < LATELY_MS
    if is_looping or record.state == "restarting":
        # What was before we listened, the engine has counted.
        times = (
            f"{len(starts)} times in {LOOP_MS // 60_000} minutes" if is_looping else f"again {record.restarts} times"
        )
        code = next((f", last with exit code {mark.exit_code}" for mark in reversed(view.marks) if mark.exit_code), "")
        yield _about(view, "restart-loop", f"{where} was started {times}{code}", starts[0] if starts else ended_ms)
    elif record.state == "running" and record.health == "unhealthy":
        since = next((mark.at_ms for mark in reversed(view.marks) if mark.action == "unhealthy"), 0)
        yield _about(view, "container-unhealthy", f"{where} is unhealthy", since)
    elif (killed_ms := _killed(view)) and now_ms - killed_ms < LATELY_MS:
        yield _about(view, "container-oom", f"{where} met the out-of-memory killer", killed_ms)
    elif record.state in ("exited", "dead") and record.exit_code and lately and not _was_stopped(view):
        yield _about(view, "container-failed", f"{where} ended with exit code {record.exit_code}", ended_ms)


def starts_since(view: ContainerView, since_ms: int) -> list[int]:
    """Return when a container was started after `since_ms`, as far as events told."""
    return [mark.at_ms for mark in view.marks if mark.action == "started" and mark.at_ms > since_ms]


def _killed(view: ContainerView) -> int:
    """Return when the out-of-memory killer came, 0 for never."""
    told = next((mark.at_ms for mark in reversed(view.marks) if mark.oom), 0)
    record = view.record
    return told or (max(record.finished_ns, record.started_ns) // 1_000_000 if record.oom else 0)


def _was_stopped(view: ContainerView) -> bool:
    """Whether somebody wanted it to end: its stop signal was sent, or it ended by that signal."""
    ended_ms = view.record.finished_ns // 1_000_000
    told = any(mark.action == "draining" and 0 <= ended_ms - mark.at_ms < STOP_MS for mark in view.marks)
    return told or view.record.exit_code == 128 + view.record.stop_signal


def _about(view: ContainerView, kind: Kind, text: str, since_ms: int) -> Problem:
    return Problem(kind=kind, node=view.node, subject=view.id, text=text, since_ms=since_ms)


# Balancers ------------------------------------------------------------------------------------------------------------

_STATES: Final[dict[str, tuple[Kind, str]]] = {
    "empty": ("balancer-empty", "has no server"),
    "sorry": ("balancer-empty", "has no server: all connections go to the sorry server"),
    "panic": ("balancer-panic", "keeps the servers of lost nodes, because too many of them are lost"),
    "clash": ("balancer-clash", "cannot have its address: somebody else balances there"),
}


def _of_balancer(view: BalancerView) -> Iterator[Problem]:
    where = f"{view.name} on {view.node}"
    if view.state in _STATES:
        kind, text = _STATES[view.state]
        since = max((server.since_ms for server in view.servers), default=0)
        yield Problem(kind=kind, node=view.node, subject=view.name, text=f"balancer {where} {text}", since_ms=since)
    for problem in view.problems:
        if not problem.note:
            text = f"balancer {where}: {problem.text}"
            yield Problem(kind="balancer-problem", node=view.node, subject=view.name, text=text, mend=problem.mend)
