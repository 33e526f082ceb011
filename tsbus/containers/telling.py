"""Telling: what the followers of a node's containers have been told, and the events that tell it. Pure.

monitor.py decides what is told; the bodies are those of docs/containers.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from msgspec.structs import replace

from tsbus.containers.facts import EngineEvent
from tsbus.containers.transitions import Step
from tsbus.records import Container, ContainerEvent, EngineFacts

IMAGE_TOPICS: Final = {
    "delete": "deleted", "import": "imported", "load": "loaded", "prune": "pruned", "pull": "pulled", "push": "pushed",
    "save": "saved", "tag": "tagged", "untag": "untagged",
}  # fmt: skip
NETWORK_TOPICS: Final = {
    "connect": "connected", "create": "created", "destroy": "destroyed", "disconnect": "disconnected",
    "prune": "pruned", "remove": "removed", "update": "updated",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish this, in the order of the effects."""

    topic: str
    body: ContainerEvent | EngineFacts | Mapping[str, object]


class Telling:
    """What followers know of one node, and what is about to be published. All times are monotonic seconds."""

    def __init__(self, node: str, epoch: int) -> None:
        """`epoch` is the number of this start of the monitor, higher than that of any earlier one."""
        self.node = node
        self.epoch = epoch
        self.seq = 0
        """Of the last event that was told."""
        self.records: dict[str, Container] = {}
        """By id: exactly what followers were told."""
        self.engine = EngineFacts(node=node, up=False, reason="not asked yet")
        self._engine_told = False
        self._clock = (0, 0.0)
        self._ahead: list[Publish] = []

    def take(self) -> list[Publish]:
        """Return what is to be published now."""
        ahead, self._ahead = self._ahead, []
        return ahead

    def set_clock(self, time_ns: int, now: float) -> None:
        """Note the engine's time at `now`."""
        self._clock = (time_ns, now)

    def engine_time(self, now: float) -> int:
        """Return the engine's time, reckoned from the last that it told."""
        time_ns, at = self._clock
        return time_ns + round((now - at) * 1e9)

    def container(self, step: Step, cause: Literal["event", "reconcile"], now: float) -> None:
        """Tell of a transition, and note that followers know it."""
        self.seq += 1
        if step.action == "destroyed":
            del self.records[step.container.id]
        else:
            self.records[step.container.id] = step.container
        body = ContainerEvent(
            node=self.node,
            epoch=self.epoch,
            seq=self.seq,
            action=step.action,
            time_ns=step.time_ns or self.engine_time(now),
            cause=cause,
            signal=step.signal,
            was=step.was,
            container=step.container,
        )
        self._ahead.append(Publish(f"container.{step.action}", body))

    def engine_is_up(self, facts: EngineFacts, now: float, time_ns: int) -> None:
        """Tell that the engine answers, if it did not before or is another one; `time_ns` is Unix time."""
        same = replace(facts, node=self.node, up=True, reason="", since_ns=self.engine.since_ns)
        if same != self.engine:
            self._clock = self._clock if self._clock[0] else (time_ns, now)
            self._engine_is(replace(same, since_ns=time_ns))

    def engine_is_down(self, reason: str, time_ns: int) -> None:
        """Tell that the engine cannot be reached; of one that is still away only note why."""
        if self.engine.up or not self._engine_told:
            self._engine_is(replace(self.engine, up=False, reason=reason, since_ns=time_ns))
        else:
            self.engine = replace(self.engine, reason=reason)

    def _engine_is(self, facts: EngineFacts) -> None:
        self.engine = facts
        self._engine_told = True
        self._ahead.append(Publish("docker.up" if facts.up else "docker.down", facts))

    def repaired(self, steps: Iterable[Step]) -> None:
        """Tell that these transitions had been missed."""
        repairs = [f"{step.container.name}: {step.action}" for step in steps]
        self._ahead.append(Publish("docker.repaired", {"node": self.node, "repairs": repairs}))

    def image(self, event: EngineEvent) -> None:
        """Tell of what happened to an image."""
        self._other(f"image.{IMAGE_TOPICS[event.action]}", event)

    def network(self, event: EngineEvent) -> None:
        """Tell of what happened to a network."""
        more = {"driver": event.attributes.get("type", ""), "container": event.attributes.get("container", "")}
        self._other(f"network.{NETWORK_TOPICS[event.action]}", event, **more)

    def _other(self, topic: str, event: EngineEvent, **more: str) -> None:
        name = event.attributes.get("name", "")
        body = {"node": self.node, "action": topic.partition(".")[2], "id": event.id, "name": name, **more}
        self._ahead.append(Publish(topic, {**body, "time_ns": event.time_ns}))
