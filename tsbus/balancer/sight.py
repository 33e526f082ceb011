"""Sight: what is new in the world since the last plan, so that a plan costs what changed and not what is. Pure."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tsbus.balancer.match import BALANCER
from tsbus.balancer.world import World
from tsbus.records import Container, Image


class Seen(NamedTuple):
    """A container that is new, different or gone."""

    id: str
    node: str
    record: Container | None
    """None: it is gone."""


class Changed:
    """Containers that are new, different or gone, sorted so that a balancer has to look at few of them."""

    def __init__(self, some: Collection[Seen]) -> None:
        self.ids = frozenset(each.id for each in some)
        self.labelled: list[Seen] = []
        """Those whose label says in which balancers they are."""
        self.by_image: Mapping[Image, list[Seen]] = defaultdict(list)
        """The others."""
        for each in some:
            if each.record is not None:
                labelled = BALANCER in each.record.labels
                (self.labelled if labelled else self.by_image[each.record.image]).append(each)


@dataclass(frozen=True, slots=True)
class News:
    """The difference between two worlds."""

    containers: Changed
    general: bool
    """Something that concerns every balancer: links, what is known of nodes, what operators have set."""
    readings: bool
    headroom: bool


@dataclass(slots=True)
class Sight:
    """Remembers the last world. Records are compared as objects: a changed container is another record."""

    _containers: dict[str, dict[str, Container]] = field(default_factory=dict)
    _dead: frozenset[str] = frozenset()
    _general: Any = None
    _readings: Any = None
    _headroom: Any = None

    def look(self, world: World) -> News:
        """Return what is new, and remember it."""
        containers: dict[str, Seen] = {}
        for node, view in world.nodes.items():
            self._compare(node, view.containers, containers)
        for node in self._containers.keys() - world.nodes.keys():
            self._compare(node, {}, containers)
        if news_of_dead := world.dead ^ self._dead:
            for node, view in world.nodes.items():
                containers |= {
                    id_: Seen(id_, node, view.containers[id_]) for id_ in news_of_dead & view.containers.keys()
                }
        nodes = {name: (view.up, view.picture, view.ips) for name, view in world.nodes.items()}
        general = (nodes, dict(world.capacities), world.overrides)
        readings, headroom = dict(world.readings), dict(world.headroom)
        different = (general != self._general, readings != self._readings, headroom != self._headroom)
        news = News(Changed(containers.values()), *different)
        self._dead, self._general, self._readings, self._headroom = world.dead, general, readings, headroom
        return news

    def _compare(self, node: str, now: Mapping[str, Container], found: dict[str, Seen]) -> None:
        before = self._containers.setdefault(node, {})
        for id_, record in now.items():
            if before.get(id_) is not record:
                found[id_] = Seen(id_, node, record)
                before[id_] = record
        if len(before) != len(now):
            for id_ in before.keys() - now.keys():
                del before[id_]
                found.setdefault(id_, Seen(id_, node, None))
