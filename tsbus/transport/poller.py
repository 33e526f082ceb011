"""Poller: one epoll for all sockets of a router, and what it takes to miss nothing of libzmq's edges (P13)."""

import contextlib
import select
from collections.abc import Callable

from tsbus.transport.options import Socket, descriptor_of, readable


class Poller:
    """Knows the sockets by their file descriptors, and what to call when there is something to read."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, tuple[Socket, Callable[[], bool]]] = {}
        self.hot: set[int] = set()
        """Descriptors whose socket may have more to read: an edge is told only once, and whoever sends on a socket or
        looks at it may swallow the edge of what came in meanwhile. They are looked at before the next wait."""

    def watch(self, socket: Socket, read: Callable[[], bool]) -> None:
        """Call `read` whenever there is something to read; it returns whether there may be more."""
        descriptor = descriptor_of(socket)
        self._readers[descriptor] = (socket, read)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self.hot.add(descriptor)

    def unwatch(self, socket: Socket) -> None:
        """Forget a socket, before it is closed."""
        descriptor = descriptor_of(socket)
        self._readers.pop(descriptor, None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(descriptor)

    def wait(self, timeout_ms: float) -> set[int]:
        """Wait at most so long for anything to happen; hand what it returns to `read`."""
        ready: set[int] = set()
        for descriptor in self.hot:
            reader = self._readers.get(descriptor)
            if reader is not None and readable(reader[0]):
                ready.add(descriptor)
        self.hot.clear()
        for descriptor, _ in self._epoll.poll(0 if ready else timeout_ms / 1000):
            ready.add(descriptor)
        return ready

    def read(self, ready: set[int]) -> None:
        """Call the readers of these descriptors, one round for each."""
        for descriptor in ready:
            reader = self._readers.get(descriptor)
            if reader is not None and reader[1]():
                self.hot.add(descriptor)

    def close(self) -> None:
        """Watch nothing any more."""
        self._epoll.close()
