"""Tally: what the balancer has done since it began, and how long that took; `lb.cost` tells it."""

from dataclasses import dataclass

from tsbus.balancer.carrier import Carried


@dataclass(slots=True)
class Tally:
    """Counters of one process; `lb_records.Cost` says what each is."""

    turns: int = 0
    turn_ms: float = 0.0
    worst_ms: float = 0.0
    compares: int = 0
    compare_ms: float = 0.0
    steps: int = 0
    repairs: int = 0
    refusals: int = 0
    published: int = 0
    dropped: int = 0

    def turned(self, took_s: float) -> None:
        """A turn is over."""
        self.turns += 1
        self.turn_ms = round(took_s * 1000, 3)
        self.worst_ms = max(self.worst_ms, self.turn_ms)

    def carried(self, carried: Carried, took_s: float, *, anew: bool) -> None:
        """A plan was carried out; `anew`: the whole host was compared."""
        self.steps += len(carried.steps)
        self.repairs += len(carried.repaired)
        self.refusals += len(carried.failed)
        if anew:
            self.compares += 1
            self.compare_ms = round(took_s * 1000, 3)
