"""What nodes tell, for tests of the dashboard's model: short ways to make their answers and events."""

from typing import Any

import msgspec

from tsbus import mirror
from tsbus.core.events import Event
from tsbus.core.message import EventMeta, Route, Type, encode
from tsbus.dashboard.answers import NodeStatus, Status
from tsbus.dashboard.state import Model
from tsbus.lb_records import Details, ServerRecord
from tsbus.records import Container, ContainerEvent, EngineFacts, Image, Sample, SnapshotHead, StatsEvent

NOW = 1_700_000_000_000
"""Unix milliseconds of the day on which nothing goes on."""
TREE = {"root": "", "a": "root", "b": "root", "a1": "a", "a2": "a"}
"""Node -> its parent."""


def status(lost: tuple[str, ...] = (), here: str = "root", tree: dict[str, str] = TREE, **more: Any) -> Status:
    """The answer of `router.status` where links of nodes are `lost`; `more` are fields of nodes by name."""

    def is_lost(name: str) -> bool:
        return name in lost or (bool(tree[name]) and is_lost(tree[name]))

    def depth(name: str) -> int:
        return 1 + depth(tree[name]) if tree[name] else 0

    nodes = []
    for name, parent in tree.items():
        facts: dict[str, Any] = {
            "name": name, "parent": parent, "home": parent, "depth": depth(name), "since_ms": NOW - 60_000,
            "state": "lost" if is_lost(name) else "up", "link": "lost" if name in lost else "up",
            "cause": "heartbeat" if name in lost else "joined",
        }  # fmt: skip
        nodes.append(NodeStatus(**facts | more.get(name, {})))
    return Status(node=here, nodes=tuple(nodes))


def container(number: int = 1, state: str = "running", **more: Any) -> Container:
    facts: dict[str, Any] = {"id": f"{number:064x}"[::-1], "name": f"c{number}", "image": Image(given="nginx")}
    return Container(**facts | {"state": state} | more)


def short(number: int = 1) -> str:
    """The short id of the container with this number."""
    return container(number).id[:12]


def engine(node: str, up: bool = True, **more: Any) -> EngineFacts:
    return EngineFacts(node=node, up=up, since_ns=NOW * 1_000_000, **more)


class Node:
    """A node's containers as a mirror follows them, and the events that change them."""

    def __init__(self, model: Model, name: str, *containers: Container) -> None:
        self.model, self.name, self.seq = model, name, 0
        self.mirror = mirror.Mirror()
        self.snapshot(*containers)

    @property
    def view(self) -> mirror.NodeView:
        return self.mirror.view(self.name)

    def snapshot(self, *containers: Container, up: bool = True, reason: str = "") -> None:
        facts = engine(self.name, up, reason=reason)
        self.seq += 1
        head = SnapshotHead(node=self.name, epoch=1, seq=self.seq, engine=facts, count=len(containers))
        self.mirror.snapshot(head, containers)
        self.model.mirrored(self.view)

    def event(self, action: str, after: Container, at_ms: int = NOW, **more: Any) -> None:
        self.seq += 1
        event = ContainerEvent(
            node=self.name, epoch=1, seq=self.seq, action=action, time_ns=at_ms * 1_000_000, container=after, **more
        )
        self.mirror.event(event)
        self.model.mirrored(self.view, event)


def figures(node: str, samples: dict[int, Sample], time_ms: int = NOW, **more: Any) -> StatsEvent:
    facts: dict[str, Any] = {"cpu": 50.0, "cpus": 4}
    told = {short(number): sample for number, sample in samples.items()}
    return StatsEvent(node=node, time_ms=time_ms, samples=told, **facts | more)


def balancer(name: str = "web", state: str = "ok", *servers: ServerRecord) -> Details:
    return Details(name=name, addresses=("10.0.0.1:80",), protocol="tcp", alg="rr", state=state, servers=servers)


def server(number: int = 1, state: str = "active", **more: Any) -> ServerRecord:
    facts: dict[str, Any] = {"id": f"s{number}", "name": f"s{number}", "ip": "172.17.0.2", "port": number}
    return ServerRecord(**facts | {"state": state, "weight": 1, "base": 1} | more)


def event(topic: str, node: str, body: object = b"", *, who: str = "router", time_ms: int = NOW) -> Event:
    meta = encode(EventMeta(incarnation=1, seq=1, time_ms=time_ms, content=0))
    told = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Event(Route(type=Type.EVENT, origin=node, target="*", topic=topic, who=who, role=3), meta, told)


def model(**more: Any) -> Model:
    """A model of TREE that is connected."""
    made = Model()
    made.connection(True, NOW)
    made.status(status(**more), NOW)
    return made
