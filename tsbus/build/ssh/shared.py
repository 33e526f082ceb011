"""Shared: what all sessions of a run have in common."""

import threading
import time
from typing import Final

from tsbus.build.known_hosts import Known
from tsbus.build.secrets import Secrets
from tsbus.build.ssh.keys import Keys
from tsbus.build.trouble import Trouble

HANDSHAKES: Final = 32
UPLOADS: Final = 8
TICK_S: Final = 0.1
"""How soon a waiting thread learns that the run is cancelled."""


class ServerTrouble(Exception):
    """Something is wrong with a server; `trouble` says what, and the next step."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


class Cancelled(Exception):
    """The run was cancelled."""


class Shared:
    """Secrets, keys, known hosts, limits and the wish to end of one run. Threads may share it."""

    def __init__(self, *, handshakes: int = HANDSHAKES, uploads: int = UPLOADS) -> None:
        """`handshakes`, `uploads`: how many may be under way at the same time."""
        self.secrets = Secrets()
        self.keys = Keys(self.secrets)
        self.known = Known()
        self.handshakes = threading.BoundedSemaphore(handshakes)
        self.uploads = threading.BoundedSemaphore(uploads)
        self.cancelled = threading.Event()

    def wait(self, event: threading.Event, until: float) -> bool:
        """Wait until `event` is set; returns False when the time `until` has come first. Raises Cancelled."""
        while not event.wait(min(TICK_S, max(0.0, until - time.monotonic()))):
            self.check()
            if time.monotonic() >= until:
                return False
        return True

    def acquire(self, limit: threading.Semaphore) -> None:
        """Wait for a turn. Raises Cancelled."""
        self.check()
        while not limit.acquire(timeout=TICK_S):
            self.check()

    def check(self) -> None:
        """Raise Cancelled when the run is."""
        if self.cancelled.is_set():
            raise Cancelled
