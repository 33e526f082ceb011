"""Inspections: about which containers the engine is asked, in which order, and how many at once. Pure.

monitor.py says which and why. Those for which an event waits come first.
"""

from dataclasses import dataclass
from typing import Final

MAX_INSPECTS: Final = 16
"""Inspections under way at once; more wait."""
MAX_UNHURRIED: Final = 8
"""Of these for what nobody waits for. The engine answers about a container that it starts when it has started it."""
RETRY_S: Final = 1.0
"""An inspection that the engine did not answer is asked for again after so long."""


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask the engine about this container, then tell the monitor: `inspected`, or `unanswered` if it did not say."""

    id: str


class Inspections:
    """The inspections of one engine: waiting, under way, and to be tried again. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._hurried: dict[str, None] = {}
        """Containers for which an event waits."""
        self._unhurried: dict[str, None] = {}
        """Containers that are to be inspected when there is room."""
        self._retries: dict[str, float] = {}
        """Containers about which the engine did not answer, and when to ask again."""
        self._asked: dict[str, bool] = {}
        """Those under way, and whether something waits for them."""

    def __contains__(self, id_: str) -> bool:
        """Whether the inspection of a container is under way."""
        return id_ in self._asked

    def is_put_off(self, id_: str) -> bool:
        """Whether the engine did not answer about a container, and will be asked again."""
        return id_ in self._retries

    def ask(self, id_: str) -> None:
        """Have a container inspected, before those that are only checked."""
        self._unhurried.pop(id_, None)
        self._retries.pop(id_, None)
        if id_ not in self._asked:
            self._hurried[id_] = None

    def ask_later(self, id_: str) -> None:
        """Have a container inspected when there is room."""
        if id_ not in self._asked and id_ not in self._hurried:
            self._unhurried[id_] = None

    def retry(self, id_: str, now: float) -> None:
        """Have a container inspected a little later: the engine did not answer."""
        self._retries[id_] = now + RETRY_S

    def ended(self, id_: str) -> bool:
        """Note that an inspection has ended; False if it is not waited for."""
        return self._asked.pop(id_, None) is not None

    def lost(self) -> list[str]:
        """Return those under way, none of which will be answered."""
        asked, self._asked = self._asked, {}
        return list(asked)

    def forget(self, id_: str) -> None:
        """Do not ask about a container any more."""
        for waiting in (self._hurried, self._unhurried, self._retries):
            waiting.pop(id_, None)

    def tick(self, now: float) -> None:
        """Ask again where that is due."""
        for id_ in [id_ for id_, at in self._retries.items() if at <= now]:
            self.ask(id_)

    @property
    def next_tick(self) -> float | None:
        """When `tick` has something to do, None if nothing is planned."""
        return min(self._retries.values(), default=None)

    def take(self) -> list[Inspect]:
        """Return as many inspections as there is room for; they are under way now."""
        taken = []
        while len(self._asked) < MAX_INSPECTS:
            if self._hurried:
                waiting, hurried = self._hurried, True
            elif self._unhurried and sum(not hurried for hurried in self._asked.values()) < MAX_UNHURRIED:
                waiting, hurried = self._unhurried, False
            else:
                break
            id_ = next(iter(waiting))
            del waiting[id_]
            self._asked[id_] = hurried
            taken.append(Inspect(id_))
        return taken

    def stats(self) -> dict[str, int]:
        """Return how many are under way and to come."""
        return {"inspecting": len(self._asked), "to_inspect": len(self._hurried) + len(self._unhurried)}
