"""The traps of pyroute2's IPVS, V1 to V13 in docs/decisions/ipvs.md: none of them catches our edge."""

import threading
from dataclasses import replace
from ipaddress import ip_address

import pytest
from ipvsadm import run, saved

from tsbus.balancer.ipvs import Kernel
from tsbus.balancer.table import Address, Destination, Forward, Mark, Protocol, Service, Virtual

pytestmark = pytest.mark.guest

WEB = Virtual(Protocol.TCP, ip_address("10.0.0.1"), 80)
WEB6 = Virtual(Protocol.TCP, ip_address("fd00::1"), 80)
ONE = Address(ip_address("172.17.0.2"), 8080)


def test_v1_set_does_not_delete(kernel: Kernel) -> None:
    """V1: pyroute2's "update" of a service or destination deletes it; ours is still there, changed."""
    kernel.add_service(Service(WEB))
    kernel.add_destination(WEB, Destination(ONE))
    kernel.set_service(Service(WEB, "wrr"))
    kernel.set_destination(WEB, Destination(ONE, weight=7))
    assert saved() == ["-A -t 10.0.0.1:80 -s wrr", "-a -t 10.0.0.1:80 -r 172.17.0.2:8080 -m -w 7"]


def test_v2_nat_unless_said_otherwise(kernel: Kernel) -> None:
    """V2: a destination of which nothing is said gets direct routing from pyroute2; from us NAT."""
    kernel.add_service(Service(WEB))
    kernel.add_destination(WEB, Destination(ONE))
    assert saved()[1].endswith("-m -w 1")


def test_v3_ipv6_and_marks_have_masks(kernel: Kernel) -> None:
    """V3: without a netmask of the right kind IPv6 services fail, and marks are persistent for everybody at once."""
    kernel.add_service(Service(WEB6))
    kernel.add_service(Service(Mark(1), persistent_s=60))
    kernel.add_service(Service(Mark(1, 6), persistent_s=60, client_prefix=64))
    kernel.add_service(Service(Mark(2), persistent_s=60, client_prefix=24))
    assert saved() == [
        "-A -f 1 -6 -s rr -p 60 -M 64",
        "-A -f 1 -s rr -p 60",
        "-A -f 2 -s rr -p 60 -M 255.255.255.0",
        "-A -t [fd00::1]:80 -s rr",
    ]


def test_v4_marks_are_keys(kernel: Kernel) -> None:
    """V4: pyroute2 before 0.9.7 loses a mark that it reads; here it is the key, up to the largest, of each family."""
    keys = {Mark(1), Mark(1, 6), Mark(2**32 - 1)}
    for key in keys:
        kernel.add_service(Service(key))
        kernel.add_destination(key, Destination(Address(ip_address("10.0.0.9" if key.version == 4 else "fd00::9"), 0)))
    table = kernel.services()
    assert table.keys() == keys
    assert all(len(entry.destinations) == 1 for entry in table.values())


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.TUNNEL, Forward.DIRECT])
def test_v5_what_is_read_can_be_written(kernel: Kernel, forward: Forward) -> None:
    """V5: pyroute2 reads any destination as direct and without thresholds; ours is written back with another weight."""
    letter = {Forward.NAT: "-m", Forward.TUNNEL: "-i", Forward.DIRECT: "-g"}[forward]
    run("ipvsadm", "-A", "-t", "10.0.0.1:80", "-s", "wrr")
    run("ipvsadm", "-a", "-t", "10.0.0.1:80", "-r", "10.0.0.9:80", letter, "-x", "100", "-y", "50")
    (one,) = kernel.services()[WEB].destinations.values()
    kernel.set_destination(WEB, replace(one, weight=3))
    (again,) = kernel.services()[WEB].destinations.values()
    assert (again.forward, again.weight, again.upper, again.lower) == (forward, 3, 100, 50)
    assert f"{letter} -w 3" in saved()[1]


def test_v6_nothing_empties_the_table(kernel: Kernel) -> None:
    """V6: what pyroute2 cannot do, emptying the table, we do not do: others' services stay whatever we do."""
    foreign = ["-A -u 10.0.0.7:53 -s rr", "-a -u 10.0.0.7:53 -r 10.0.0.8:53 -m -w 1"]
    for line in foreign:
        run("ipvsadm", *line.split())
    kernel.add_service(Service(WEB, owned=True))
    kernel.delete_service(WEB)
    with Kernel():
        pass
    assert saved() == foreign


def test_v7_counters_are_read(kernel: Kernel) -> None:
    """V7: the kernel pads its 64-bit counters with attributes that pyroute2 calls unknown; they are passed over."""
    kernel.add_service(Service(WEB))
    kernel.add_destination(WEB, Destination(ONE))
    (counts,) = kernel.services()[WEB].counts.values()
    assert (counts.active, counts.connections, counts.out_bytes_s) == (0, 0, 0)  # real ones: test_paths.py


def test_v8_persistence_is_flag_and_time(kernel: Kernel) -> None:
    """V8: persistence needs a time and a flag, and flags go through: all of them, on UDP and SCTP, too."""
    kernel.add_service(
        Service(Virtual(Protocol.SCTP, ip_address("10.0.0.1"), 9), "sh", persistent_s=300, hash_port=True)
    )
    kernel.add_service(
        Service(Virtual(Protocol.UDP, ip_address("10.0.0.1"), 53), "sh", one_packet=True, hash_fallback=True)
    )
    assert saved() == [
        "-A --sctp-service 10.0.0.1:9 -s sh -p 300 -b sh-port",
        "-A -u 10.0.0.1:53 -s sh -o -b sh-fallback",
    ]
    kernel.set_service(Service(Virtual(Protocol.SCTP, ip_address("10.0.0.1"), 9), "sh"))
    assert saved()[0] == "-A --sctp-service 10.0.0.1:9 -s sh"


def test_v9_ready_when_opened(kernel: Kernel) -> None:
    """V9: pyroute2's asyncio socket must be set up by hand first; ours works at once, in any thread that opens one."""
    found = []

    def work() -> None:
        with Kernel() as kernel:
            found.append(kernel.services())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [kernel.services()] == [{}]


def test_v10_values_are_keys(kernel: Kernel) -> None:
    """V10: pyroute2's services are dictionaries whose keys() raises; ours are values, equal when they say the same."""
    kernel.add_service(Service(Virtual(Protocol.TCP, ip_address("fd00:0::1"), 80)))
    table = kernel.services()
    assert list(table.keys()) == [WEB6]
    assert table[WEB6].service == Service(WEB6, client_prefix=128)


def test_v12_the_upper_flags_are_changed_too(kernel: Kernel) -> None:
    """V12: pyroute2's mask leaves out the flags above 0xFFFF, so ownership could be neither given nor taken."""
    for owned in (True, False, True):
        service = Service(WEB, owned=owned)
        (kernel.set_service if kernel.services() else kernel.add_service)(service)
        assert kernel.services()[WEB].service == service
