"""Background: a site whose loop runs in a thread, for command lines: they block the thread that calls them."""

import asyncio
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

LIMIT_S = 240
"""How long all of a site may take to come up or to end, on a busy machine."""


class Background(ABC):
    """A tree with what runs on it, while this is entered."""

    bus: str
    """The address of a bus, for command lines; `live` says of which."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    @abstractmethod
    def live(self, folder: Path) -> AbstractAsyncContextManager[None]:
        """Everything runs while this is entered."""

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the site's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(LIMIT_S)

    def _work(self) -> None:
        try:
            asyncio.run(self._run())
        except Exception as error:
            if self._ready.is_set():
                raise
            self._failure = error
            self._ready.set()

    async def _run(self) -> None:
        self._over, self._loop = asyncio.Event(), asyncio.get_running_loop()
        with tempfile.TemporaryDirectory(prefix="ts-") as folder:  # short enough for a socket's address
            async with self.live(Path(folder)):
                self._ready.set()
                await self._over.wait()
