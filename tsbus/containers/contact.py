"""Contact: when to reach for the engine again, when to ask whether it is still there, when to list. Pure.

The service tells it what happened and asks what is due. All times are monotonic seconds.
"""

from typing import Final

FIRST_DELAY_S: Final = 0.2
MAX_DELAY_S: Final = 5.0
"""Attempts to connect are so far apart at first, then twice as far each time, up to the second; less up to a half."""
STEADY_S: Final = 1.0
"""A stream that ends sooner after it was opened counts as a failed attempt."""
SILENCE_S: Final = 90.0
"""An engine of which nothing was heard for so long is pinged: a cut-off one looks like an idle one."""
LIST_S: Final = 60.0
"""Full lists are so far apart."""


class Backoff:
    """Growing delays between attempts."""

    def __init__(self, first_s: float = FIRST_DELAY_S, most_s: float = MAX_DELAY_S) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def next(self, chance: float) -> float:
        """Return how long to wait now. `chance`, from 0 to 1, spreads those who lost the same engine."""
        delay_s, self._next_s = self._next_s, min(self._next_s * 2, self._most_s)
        return delay_s * (1 - chance / 2)

    def reset(self) -> None:
        """Begin with short delays again."""
        self._next_s = self._first_s


class Contact:
    """One program's contact with the engine, from the stream of events that it reads."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_down = False
        """An attempt has failed since it was open last. A stream that only ended is no reason to say so."""
        self._backoff = Backoff()
        self._opened_at = self._heard_at = self._listed_at = 0.0

    def opened(self, now: float) -> None:
        """The stream of events is open, and a full list has been asked for."""
        self.is_open, self.is_down = True, False
        self._opened_at = self._heard_at = self._listed_at = now

    def heard(self, now: float) -> None:
        """An event came, or an answer to a ping."""
        self._heard_at = now

    def listed(self, now: float) -> None:
        """A full list was asked for."""
        self._listed_at = now

    def ended(self, now: float, chance: float) -> float:
        """The stream ended, or was given up. Returns after how many seconds to connect."""
        if now - self._opened_at < STEADY_S:
            return self.failed(chance)
        self.is_open = False
        self._backoff.reset()
        return 0.0

    def failed(self, chance: float) -> float:
        """An attempt to connect failed. Returns after how many seconds to make the next."""
        self.is_open, self.is_down = False, True
        return self._backoff.next(chance)

    def wants_ping(self, now: float) -> bool:
        """Tell whether the engine has been silent for too long."""
        return self.is_open and now >= self._heard_at + SILENCE_S

    def wants_list(self, now: float) -> bool:
        """Tell whether a full list is due."""
        return self.is_open and now >= self._listed_at + LIST_S

    @property
    def next_at(self) -> float | None:
        """When something will be due; None while there is no stream."""
        return min(self._heard_at + SILENCE_S, self._listed_at + LIST_S) if self.is_open else None
