"""A process that has no file descriptor left for a moment goes on as soon as there is one again."""

import asyncio
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from lone_router import LoneRouter
from waiting import LIMIT_S, wait

from tsbus import connect
from tsbus.loop import SystemClock
from tsbus.router import MALFORMED_LIMIT
from tsbus.transport import Curve, SocketTransport, new_keypair


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more: new descriptors would be below 3, and what is there is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_client_comes_back_when_descriptors_do(caplog):
    """A client that cannot open its next connection for want of a file descriptor tries again until it can."""
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:
        router = LoneRouter(folder)
        try:
            async with connect(router.bus, timeout_s=LIMIT_S) as client:
                with no_descriptors():
                    # Of a router that goes on: the BYE of one that ends is lost if the end is seen first (P12).
                    for _ in range(MALFORMED_LIMIT):
                        assert client._connection._channel.send(b"")
                    async with asyncio.timeout(LIMIT_S):
                        while not any(record.message == "channel.not-opened" for record in caplog.records):
                            await asyncio.sleep(0.01)
                assert not client.connected
                await client.wait_connected(LIMIT_S)
        finally:
            router.kill()


def test_a_router_dials_when_descriptors_come_back(caplog):
    """A router that cannot make a socket for a node below tries again later, and serves the others meanwhile."""
    keys, (theirs, _) = Curve(*new_keypair()), new_keypair()
    addresses = {"below": ("tcp://127.0.0.1:1", (theirs,))}
    transport = SocketTransport(SystemClock(), keys=keys, allowed={}, dial_addresses=addresses)
    try:
        with no_descriptors():
            transport.set_dials(frozenset(["below"]))
        assert [record.message for record in caplog.records] == ["dial.failed"]
        (dial,) = transport._dials.values()
        assert dial.due_ms is not None
        wait("the next try", lambda: transport.wait(50) is not None and dial.due_ms is None)
    finally:
        transport.stop()
