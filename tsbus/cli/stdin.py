"""Stdin: standard input for an event loop, whatever it is: pipe, terminal or file."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator

READ_AHEAD = 4
"""Chunks that are read before they are asked for."""


async def stdin_chunks(size: int) -> AsyncIterator[bytes]:
    """Yield what comes on standard input, in chunks of at most `size` bytes, until it ends."""
    # A thread, because epoll takes no files; a daemon, because nothing ends a read from a terminal.
    loop = asyncio.get_running_loop()
    room = threading.Semaphore(READ_AHEAD)
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    # Not sys.stdin.buffer: its lock, held by the reading thread, would stop the interpreter's end.
    if sys.stdin is None:  # started with it closed
        return
    fd = sys.stdin.fileno()

    def read() -> None:
        chunk = b"-"
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants more
            while chunk:
                room.acquire()
                chunk = _read(fd, size)
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    threading.Thread(target=read, daemon=True).start()
    while chunk := await chunks.get():
        room.release()
        yield chunk


def _read(fd: int, size: int) -> bytes:
    try:
        return os.read(fd, size)
    except OSError:  # a terminal that was hung up: whoever waits for input must learn that none comes
        return b""
