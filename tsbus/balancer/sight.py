"""Sight: what is new in the world since the last plan, so that a plan costs what changed and not what is. Pure."""

from dataclasses import dataclass, field
from typing import Any

from tsbus.balancer.world import World
from tsbus.records import Container


@dataclass(frozen=True, slots=True)
class News:
    """The difference between two worlds."""

    containers: dict[str, tuple[str, Container | None]]
    """By id, of those that are new, different or gone (None): node and record."""
    general: bool
    """Something that concerns every balancer: links, what is known of nodes, what operators have set."""
    readings: bool
    headroom: bool


@dataclass(slots=True)
class Sight:
    """Remembers the last world. Records are compared as objects: a changed container is another record."""

    _containers: dict[str, dict[str, Container]] = field(default_factory=dict)
    _general: Any = None
    _readings: Any = None
    _headroom: Any = None

    def look(self, world: World) -> News:
        """Return what is new, and remember it."""
        containers: dict[str, tuple[str, Container | None]] = {}
        for node, view in world.nodes.items():
            self._compare(node, view.containers, containers)
        for node in self._containers.keys() - world.nodes.keys():
            self._compare(node, {}, containers)
        nodes = {name: (view.up, view.picture, view.ips) for name, view in world.nodes.items()}
        general = (nodes, dict(world.capacities), world.overrides, world.dead)
        readings, headroom = dict(world.readings), dict(world.headroom)
        news = News(containers, general != self._general, readings != self._readings, headroom != self._headroom)
        self._general, self._readings, self._headroom = general, readings, headroom
        return news

    def _compare(self, node: str, now: Any, found: dict[str, tuple[str, Container | None]]) -> None:
        before = self._containers.setdefault(node, {})
        for id_, record in now.items():
            if before.get(id_) is not record:
                found[id_] = (node, record)
                before[id_] = record
        if len(before) != len(now):
            for id_ in before.keys() - now.keys():
                del before[id_]
                found.setdefault(id_, (node, None))
