"""Figures: what the containers of one node use, put together from events that tell what has changed. Pure."""

from typing import Final

import msgspec

from tsbus.dashboard.views import SHORT_ID, Rates
from tsbus.records import Sample, StatsEvent

MAX_SAMPLES: Final = 10_000
"""Containers of one node whose figures are kept, known or not."""

_STILL: Final = Rates()


class Held(msgspec.Struct, frozen=True, gc=False):
    """The last figures of a container."""

    sample: Sample
    rates: Rates | None
    heard_ms: int


class Figures:
    """Those of one node, by the short ids of containers; they may come before their container is known."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self._moving: set[str] = set()
        """Containers whose rates are not zero."""
        self._time_ms = 0
        self._seconds = 0.0
        """Between the node's last two readings."""

    @property
    def cpu(self) -> float:
        """Of all together, percent of a core."""
        return sum(one.sample.cpu for one in self.held.values())

    @property
    def memory(self) -> int:
        """Of all together, bytes."""
        return sum(one.sample.memory for one in self.held.values())

    def take(self, event: StatsEvent, now_ms: int) -> set[str]:
        """Take an event; returns the containers of which something may be different."""
        changed = {key[:SHORT_ID] for key in event.gone}
        if event.full:
            changed |= self.held.keys() - event.samples.keys()
        for short in changed:
            self.drop(short)
        if event.time_ms != self._time_ms:  # else it is a further part of the same reading
            changed |= self._next_reading(event)
        for key, sample in event.samples.items():
            short = key[:SHORT_ID]
            before = self.held.get(short)
            if before is None and len(self.held) >= MAX_SAMPLES:
                continue
            rates = _rates(before.sample, sample, self._seconds) if before is not None and self._seconds > 0 else None
            if rates is None or rates == _STILL:
                self._moving.discard(short)
            else:
                self._moving.add(short)
            self.held[short] = Held(sample, rates, now_ms)
            changed.add(short)
        return changed

    def _next_reading(self, event: StatsEvent) -> set[str]:
        """Begin a reading: of whom it does not tell, nothing has moved."""
        self._seconds = (event.time_ms - self._time_ms) / 1000 if self._time_ms else 0.0
        self._time_ms = event.time_ms
        still = self._moving - event.samples.keys()
        for short in still:
            self.held[short] = msgspec.structs.replace(self.held[short], rates=_STILL)
        self._moving -= still
        return still

    def drop(self, short: str) -> None:
        """Forget a container."""
        self.held.pop(short, None)
        self._moving.discard(short)


def _rates(before: Sample, after: Sample, seconds: float) -> Rates | None:
    """Return what flowed in between; None where a counter went back, because the container was started anew."""
    flows = (
        after.net_rx - before.net_rx,
        after.net_tx - before.net_tx,
        after.block_read - before.block_read,
        after.block_write - before.block_write,
    )
    if not any(flows):
        return _STILL
    if min(flows) < 0:
        return None
    rx, tx, read, write = (flow / seconds for flow in flows)
    return Rates(net_rx=rx, net_tx=tx, block_read=read, block_write=write)
