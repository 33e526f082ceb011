"""How many connections are left of a server that drains, while thousands of others come and go in the same table."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest
from lan import address
from stage import Stage, place, virtual
from waiting import wait

from tsbus.balancer.machine import open_machine
from tsbus.balancer.table import Address, Destination, Service

pytestmark = pytest.mark.guest

COUNTS = 150


@contextmanager
def crowd(stage: Stage) -> Iterator[None]:
    """Packets of UDP from one port after the other, until this is left; the kernel remembers each for a second."""
    stage.add(Service(virtual("udp")), place("c2"))
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.sendto(b"x", (address("host"), 80))

    sending = threading.Thread(target=stage.lan["client"].call, args=(send,))
    sending.start()
    try:
        yield
    finally:
        over.set()
        sending.join()


def test_none_is_passed_over(stage: Stage) -> None:
    """A half-closed connection is counted each time, whatever else comes and goes; one that is over is not for long."""
    web, server = virtual(), Destination(Address(ip_address(address("c1")), 8099))
    stage.add(Service(web), server)
    machine = stage.host.call(open_machine, "ipvs", "leave")
    with (
        stage.lan["c1"].call(socket.create_server, ("", 8099)) as listener,
        stage.lan.flow("client", "tcp", (address("host"), 80)).end as half,
        listener.accept()[0] as kept,
        stage.lan.flow("client", "tcp", (address("host"), 80)).end as ended,
        listener.accept()[0] as closed,
        stage.short_memory(),
        crowd(stage),
    ):
        stage.weigh(web, replace(server, weight=0))
        half.shutdown(socket.SHUT_WR)
        ended.close()
        assert kept.recv(1) == closed.recv(1) == b""
        closed.close()
        here = {(web, server.address)}
        wait("the other is over", lambda: set(stage.host.call(machine.connections, here, {}).values()) == {1})
        counts = [stage.host.call(machine.connections, here, {})[web, server.address] for _ in range(COUNTS)]
    stage.host.call(machine.close)
    assert set(counts) <= {1, 2}  # 2: the list passed over the one that is over
    assert counts.count(2) < COUNTS / 10
