"""Liveness of one link: PINGs, the torpid state, round trips and the clock offset (protocol section 8). Pure."""

from collections import deque
from enum import Enum, auto

_SAMPLES = 16


class Verdict(Enum):
    """What `Liveness.tick` asks its owner to do."""

    PING = auto()
    TORPID = auto()
    RESET = auto()


class Liveness:
    """The third detector: the other program's own loop must answer, not only its I/O thread.

    All times are monotonic milliseconds, passed in.
    """

    __slots__ = (
        "_next_ping", "_offsets", "_ping_ms", "_reset_ms", "_torpid_after", "ping_id", "rtt_ms",
        "torpid_since", "unanswered",
    )  # fmt: skip

    def __init__(self, now: int, *, ping_ms: int, torpid_after: int, reset_after_s: int) -> None:
        """`torpid_after`: PINGs in a row without a sign of life; `reset_after_s`: seconds torpid before the cut."""
        self._ping_ms = ping_ms
        self._torpid_after = torpid_after
        self._reset_ms = reset_after_s * 1000
        self._next_ping = now + ping_ms
        self._offsets: deque[int] = deque(maxlen=_SAMPLES)
        self.ping_id = 0
        self.unanswered = 0
        self.rtt_ms: float | None = None
        self.torpid_since: int | None = None

    def tick(self, now: int, late_ms: int) -> list[Verdict]:
        """Return what is due. `late_ms`: how late this program's own timer is, taken off the verdicts (8.3)."""
        if self.torpid_since is not None and now - self.torpid_since - late_ms >= self._reset_ms:
            return [Verdict.RESET]
        if now < self._next_ping:
            return []
        self._next_ping = now + self._ping_ms
        verdicts = [Verdict.PING]
        if late_ms < self._ping_ms:
            if self.unanswered >= self._torpid_after and self.torpid_since is None:
                self.torpid_since = now
                verdicts.append(Verdict.TORPID)
            self.unanswered += 1
        self.ping_id += 1
        return verdicts

    def heard(self) -> bool:
        """Any frame came. Returns True if the link was torpid and now is not."""
        self.unanswered = 0
        recovered = self.torpid_since is not None
        self.torpid_since = None
        return recovered

    def answered(self, ping_id: int, sent: float, now: float) -> None:
        """A PONG came for the PING `ping_id` sent at `sent` (milliseconds, may be fractions)."""
        if ping_id == self.ping_id:
            self.rtt_ms = now - sent

    def clock(self, theirs: int, now: int) -> None:
        """The peer told its link clock (HELLO, PING, PONG); see protocol 8.4."""
        self._offsets.append(now - theirs)

    def age(self, sent_ms: int, now: int) -> int:
        """Return how many milliseconds ago the peer queued what it stamped `sent_ms`; 0 when unknown."""
        if not self._offsets:
            return 0
        return max(0, now - sent_ms - min(self._offsets))
