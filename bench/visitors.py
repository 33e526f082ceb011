"""Visitors: requests at a steady rate, each with a connection of its own, whatever has become of those before."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import NamedTuple

LIMIT_S = 5.0  # a visitor who waits longer goes away, and that is a failure
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


class Failure(NamedTuple):
    """A request that was not answered."""

    begun: float
    """On the monotonic clock."""
    took_s: float
    port: int
    """The client's; 0: it has none any more, as it was refused."""
    step: str
    """What it was at: connecting, asking."""
    error: str


@dataclass
class Visitors:
    """`rate` requests a second to one address while this is entered."""

    host: str
    port: int
    rate: float
    seconds: list[float] = field(default_factory=list)
    """How long each took that was answered."""
    failures: list[Failure] = field(default_factory=list)

    async def __aenter__(self) -> Visitors:
        self._over = False
        self._coming = asyncio.create_task(self._come())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await self._coming

    async def answered(self) -> bool:
        """Whether one request is answered."""
        probe = Visitors(self.host, self.port, self.rate)
        await probe._visit()
        return bool(probe.seconds)

    async def _come(self) -> None:
        begun = time.monotonic()
        visits = set[asyncio.Task[None]]()
        number = 0
        while not self._over:
            while number < (time.monotonic() - begun) * self.rate:
                number += 1
                visit = asyncio.create_task(self._visit())
                visits.add(visit)
                visit.add_done_callback(visits.discard)
            await asyncio.sleep(0.5 / self.rate)
        await asyncio.gather(*visits)

    async def _visit(self) -> None:
        loop, begun, step = asyncio.get_running_loop(), time.monotonic(), "connecting"
        with socket.socket() as end:
            end.setblocking(False)
            try:
                async with asyncio.timeout(LIMIT_S):
                    await loop.sock_connect(end, (self.host, self.port))
                    step = "asking"
                    await loop.sock_sendall(end, REQUEST)
                    said = b""
                    while more := await loop.sock_recv(end, 4096):
                        said += more
                if b" 200 " not in said:
                    raise ConnectionResetError("no answer")
            except OSError as error:  # a timeout is one, too
                took_s = time.monotonic() - begun
                self.failures.append(Failure(begun, took_s, end.getsockname()[1], step, repr(error)))
            else:
                self.seconds.append(time.monotonic() - begun)
