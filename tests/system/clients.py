"""Clients: who connects to balancers, once or all the time, from another machine; and what came of it."""

import random
import socket
import threading
import time
from collections import Counter
from typing import NamedTuple, Self

from lan import Answer, Box, enter
from machines import wait

LIMIT_S = 60.0
"""How long a connection or an answer may take."""
PAUSE_S = 0.06
"""Between two visits of a client."""


class Flow:
    """A connection; `server` and `source` are what the server says at once."""

    def __init__(self, box: Box, to: tuple[str, int]) -> None:
        self._end = box.call(socket.create_connection, to, LIMIT_S)
        self.first = self._hear()

    def ask(self) -> Answer:
        """Raises OSError when there is no answer."""
        self._end.send(b"who?\n")
        return self._hear()

    def close(self) -> None:
        self._end.close()

    def _hear(self) -> Answer:
        return _hear(self._end)


def _hear(end: socket.socket) -> Answer:
    words = end.recv(100).decode().split()
    if len(words) != 2:
        raise ConnectionResetError("the server ended the connection")
    return Answer(*words)


def ask(box: Box, to: tuple[str, int]) -> Answer:
    """What one new connection is answered."""
    flow = Flow(box, to)
    flow.close()
    return flow.first


def answers(box: Box, to: tuple[str, int], times: int) -> Counter[Answer]:
    """Of so many connections, one after another."""
    return Counter(ask(box, to) for _ in range(times))


class Failure(NamedTuple):
    """A visit that did not end well."""

    began: float
    ended: float
    server: str
    """Empty: none had answered yet."""
    error: str


class Visitors:
    """Clients that come all the time, each with a new connection, while this is entered.

    Those that hold theirs ask many times before they go.
    """

    def __init__(self, box: Box, to: tuple[str, int], brief: int = 2, holding: int = 0, hold_s: float = 2.0) -> None:
        self.answered: Counter[str] = Counter()
        """Visits that ended well, by server."""
        self.failed: list[Failure] = []
        self._box, self._to, self._hold_s = box, to, hold_s
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._come, args=(number >= brief,)) for number in range(brief + holding)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def forget(self) -> None:
        """Count anew, only visits that begin from now on: one that is over may not have been counted yet."""
        self.answered = Counter()

    def wait_more(self, *servers: str) -> None:
        """Wait until each of these has had two more visits that ended well."""
        before = Counter(self.answered)
        wait(f"visits to {servers}", lambda: all(self.answered[name] >= before[name] + 2 for name in servers))

    def _come(self, holds: bool) -> None:
        enter(self._box.fd)
        while not self._over.wait(PAUSE_S):
            self._visit(random.uniform(0, self._hold_s) if holds else 0)

    def _visit(self, hold_s: float) -> None:
        began, server, answered = time.monotonic(), "", self.answered
        try:
            with socket.create_connection(self._to, LIMIT_S) as end:
                server = _hear(end).server
                while True:
                    end.send(b"who?\n")
                    _hear(end)
                    if time.monotonic() > began + hold_s or self._over.wait(2 * PAUSE_S):
                        break
        except OSError as error:
            self.failed.append(Failure(began, time.monotonic(), server, repr(error)))
        else:
            answered[server] += 1
