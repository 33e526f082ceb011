"""Questions: asks again what an event made doubtful: one question of a kind at a time, and not too often."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec

from tsbus.connection import Signal
from tsbus.errors import BusError
from tsbus.log import Log

REST_S: Final = 0.5
"""Between the answer of a node and the next question to it."""

_log = Log("dashboard.questions")


class Questions:
    """One question, to many nodes. The first is asked at once; what is wanted meanwhile is asked once afterwards."""

    def __init__(
        self,
        ask: Callable[[str], Awaitable[None]],
        start: Callable[[Coroutine[Any, Any, None]], object],
        rest_s: float = REST_S,
    ) -> None:
        """`ask` asks one node and takes the answer; `start` runs a coroutine in a task; then there is rest."""
        self._ask, self._start, self._rest_s = ask, start, rest_s
        self._wanted: dict[str, bool] = {}
        """Nodes that are being asked, or rest; whether they are wanted once more."""
        self._waiting: set[str] = set()
        """Those that have not answered since they were wanted."""
        self._answered = Signal()

    @property
    def idle(self) -> bool:
        """Whether everything that was wanted has been answered, or cannot be."""
        return not self._waiting

    def want(self, node: str) -> None:
        """Let the node be asked."""
        self._waiting.add(node)
        rests = node in self._wanted
        self._wanted[node] = True
        if not rests:
            self._start(self._run(node))

    async def wait_idle(self) -> None:
        """Wait until everything that was wanted has been answered, or cannot be."""
        await self._answered.until(lambda: self.idle)

    async def _run(self, node: str) -> None:
        try:
            while self._wanted[node]:
                self._wanted[node] = False
                try:
                    await self._ask(node)
                except (BusError, TimeoutError, msgspec.DecodeError) as error:
                    _log.info("questions.unanswered", node=node, error=str(error))
                if not self._wanted[node]:
                    self._waiting.discard(node)
                    self._answered()
                await asyncio.sleep(self._rest_s)
        finally:
            del self._wanted[node]
