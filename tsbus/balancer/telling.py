"""Telling: when the planner's events are told. Those of a balancer wait until the kernel has it as planned. Pure."""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import replace
from typing import Final

from tsbus.balancer.life import ServerId, State
from tsbus.balancer.report import Event

_OPENED: Final = {"filled": "empty", "unsorry": "sorry", "calm": "panic"}
"""What is over with these."""


class Telling:
    """Holds what waits: of each server one event, what became of it since it was told of last."""

    def __init__(self) -> None:
        self._held: dict[str, dict[Hashable, Event]] = {}

    def take(self, events: Iterable[Event], undone: Collection[str]) -> list[Event]:
        """Return what is to be told now. `undone`: the balancers that the kernel has otherwise."""
        now = []
        for event in events:
            if event.balancer in undone or event.balancer in self._held:
                self._hold(event)
            else:
                now.append(event)
        for name in [name for name in self._held if name not in undone]:
            now += self._held.pop(name).values()
        return now

    def _hold(self, event: Event) -> None:
        held = self._held.setdefault(event.balancer, {})
        one = event.server
        place = ServerId(one.id, one.address) if one else _OPENED.get(event.topic, event.topic)
        before = held.pop(place, None)
        after = event if before is None else _joined(before, event)
        if after is not None:
            held[place] = after


def _joined(first: Event, last: Event) -> Event | None:
    """Return both as one event, None where all is as it was before."""
    if last.server is None:
        return None
    state = last.server.state.value
    moved, never_in = state != first.was, not first.was and state == State.REMOVED
    if never_in or (not moved and last.server.weight == first.weighed):
        return None
    return replace(last, topic=state if moved else "weight", was=first.was, weighed=first.weighed)
