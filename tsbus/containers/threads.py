"""Threads: where the engine's blocking calls and streams meet the loop. An edge.

engine.py blocks; watch.py and service.py live in one loop. Calls run in a bounded pool, each stream has a thread.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
_Item = TypeVar("_Item", covariant=True)


class Source(Protocol[_Item]):
    """A blocking iterator that another thread may end."""

    def __next__(self) -> _Item:
        """Return the next item. Raises StopIteration at the end."""
        ...

    def close(self) -> None:
        """Unblock who waits in `__next__`."""
        ...


_S = TypeVar("_S", bound=Source[Any])


class Pool:
    """Runs blocking calls, so many at the same time; more wait their turn."""

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, f"engine-{name}")

    async def run(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Return what the call returns. A caller that is cancelled does not wait; the call goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(call, *args, **options))

    async def open(self, opening: Callable[..., _S], *args: Any, **options: Any) -> _S:
        """Return the stream that a call opens; it is closed if nobody waits for it any more."""
        future = self._executor.submit(partial(opening, *args, **options))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_close_what_came)
            raise

    def close(self) -> None:
        """Take no more calls, and do not wait for those under way."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _close_what_came(future: Any) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


class Pump(Generic[T]):
    """A thread that reads a stream ahead, as far as `most` allows, for one reader in the loop."""

    def __init__(self, source: Source[T], most: int, weight: Callable[[T], int] = lambda _: 1) -> None:
        """`most`: the weights of the items that wait for the reader, together; the thread stands still beyond."""
        self._source = source
        self._most = most
        self._weight = weight
        self._items: deque[T] = deque()
        self._waiting = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        # A daemon: no stream holds up the end of the process.
        threading.Thread(target=self._read, name="engine-stream", daemon=True).start()

    async def take(self) -> list[T]:
        """Wait for items and return all that are there; none at the end. Raises what the stream raised."""
        while True:
            await self._ready.wait()
            with self._changed:
                items = list(self._items)
                self._items.clear()
                self._waiting = 0
                if not self._ended:
                    self._ready.clear()
                self._changed.notify()
            if items:
                return items
            if self._error is not None and not self._closed:
                raise self._error
            if self._ended:
                return []

    def close(self) -> None:
        """End the stream, also in the middle of a wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._source.close()

    def _read(self) -> None:
        try:
            while not self._closed:
                item = next(self._source)
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting < self._most or self._closed)
                    self._items.append(item)
                    self._waiting += self._weight(item)
                    alone = len(self._items) == 1
                if alone:
                    self._wake()
        except StopIteration:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._source.close()
            self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads
            self._loop.call_soon_threadsafe(self._ready.set)
