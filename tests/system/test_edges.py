"""A router that looks at a socket between two waits must not sleep through what came in meanwhile (trap P13)."""

import select
import tempfile
from pathlib import Path

import zmq

from tsbus.loop import SystemClock
from tsbus.transport import SocketTransport

LIMIT_MS = 30_000


class Heard:
    """A sink that notes who spoke and how many connections ended."""

    def __init__(self):
        self.frames = []
        self.ended = 0

    def connected(self, conn): ...

    def received(self, conn, frame):
        self.frames.append(frame)

    def disconnected(self, conn, cause="closed"):
        self.ended += 1


def speaker(context, path, word):
    """Connect to `path` and say a word."""
    socket = context.socket(zmq.DEALER)
    socket.linger = LIMIT_MS
    socket.connect(f"ipc://{path}")
    socket.send(word)
    return socket


def test_a_word_said_while_an_end_is_noted_is_heard():
    """Who speaks in the moment in which another one's end is noted is heard at once, not with the next sign of life."""
    heard = Heard()
    with tempfile.TemporaryDirectory(prefix="ts-") as folder, zmq.Context() as context:
        path = Path(folder, "bus")
        transport = SocketTransport(
            SystemClock(),
            keys=None,
            allowed={},
            dial_addresses={},
            heartbeat_ms=500,
            heartbeat_timeout_ms=1500,
        )
        transport.serve(heard)
        transport.bind_local(path)
        (listener,) = transport._listeners
        for _ in range(100):  # the second word is not always there in time to be missed
            heard.frames.clear()
            first = speaker(context, path, b"first")
            while b"first" not in heard.frames:
                transport.read(transport.wait(LIMIT_MS))
            transport.read(transport.wait(0))
            first.close()
            ready = transport.wait(LIMIT_MS)  # the end of the first, not yet looked at
            second = speaker(context, path, b"second")
            assert select.select([listener._line.descriptor], [], [], LIMIT_MS / 1000)[0]
            transport.read(ready)
            while b"second" not in heard.frames:
                ready = transport.wait(LIMIT_MS)
                assert ready, "asleep although somebody spoke"
                transport.read(ready)
            second.close()
            ended = heard.ended
            while heard.ended == ended:
                transport.read(transport.wait(LIMIT_MS))
        transport.stop()
