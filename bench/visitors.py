"""Visitors: requests at a steady rate, each with a connection of its own, whatever has become of those before."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

LIMIT_S = 5.0  # a visitor who waits longer goes away, and that is a failure
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


@dataclass
class Visitors:
    """`rate` requests a second to one address while this is entered."""

    host: str
    port: int
    rate: float
    seconds: list[float] = field(default_factory=list)
    """How long each took that was answered."""
    errors: list[tuple[float, str]] = field(default_factory=list)
    """When those came that were not, on the monotonic clock, and what became of them."""

    async def __aenter__(self) -> Visitors:
        self._over = False
        self._coming = asyncio.create_task(self._come())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await self._coming

    async def answered(self) -> bool:
        """Whether one request is answered."""
        before = len(self.seconds), list(self.errors)
        await self._visit()
        done = len(self.seconds) > before[0]
        self.seconds, self.errors = self.seconds[: before[0]], before[1]
        return done

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
        begun = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT_S):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    writer.write(REQUEST)
                    said = await reader.read()
                finally:
                    writer.close()
            if b" 200 " not in said:
                raise ConnectionResetError("no answer")
        except OSError as error:  # a timeout is one, too
            self.errors.append((begun, type(error).__name__))
        else:
            self.seconds.append(time.monotonic() - begun)
