"""The balancer's edge to a real kernel: what is written is what is read, here and by ipvsadm."""

import gc
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from socket import AF_INET

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ipvsadm import run, saved
from pyroute2 import IPVS, IPVSDest, IPVSService

from tsbus.balancer.ipvs import (
    Exists,
    Impossible,
    Kernel,
    Missing,
    NoModule,
    NoScheduler,
    remove,
)
from tsbus.balancer.machine import Unusable, open_machine
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Destination, Forward, Mark, Protocol, Service, Virtual

pytestmark = pytest.mark.guest

WEB = Virtual(Protocol.TCP, ip_address("10.0.0.1"), 80)
WEB6 = Virtual(Protocol.TCP, ip_address("fd00::1"), 80)
ONE = Address(ip_address("172.17.0.2"), 8080)
TWO = Address(ip_address("172.17.0.3"), 8080)
GUEST_SCHEDULERS = {"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"}

# Addresses that are no group's and not the unspecified one.
ADDRESSES = {
    4: st.integers(0x0A000001, 0x0AFFFFFE).map(IPv4Address),
    6: st.integers(1, 2**64).map(lambda n: IPv6Address((0xFD << 120) + n)),
}
VIRTUALS = st.sampled_from([4, 6]).flatmap(
    lambda version: st.builds(Virtual, st.sampled_from(Protocol), ADDRESSES[version], st.integers(1, 65535))
)
MARKS = st.builds(Mark, st.integers(1, 2**31 - 1), st.sampled_from([4, 6]))  # ipvsadm shows larger ones as negative


@st.composite
def services(draw: st.DrawFn) -> Service:
    key = draw(VIRTUALS | MARKS)
    persistent_s = draw(st.integers(0, 86400))
    return Service(
        key,
        draw(st.sampled_from(sorted(GUEST_SCHEDULERS))),
        persistent_s=persistent_s,
        client_prefix=draw(st.integers(1, 32 if key.version == 4 else 128)),
        one_packet=draw(st.booleans()),
        hash_fallback=draw(st.booleans()),
        hash_port=draw(st.booleans()),
        owned=draw(st.booleans()),
    )


@st.composite
def destinations(draw: st.DrawFn, version: int) -> Destination:
    upper = draw(st.integers(0, 2**31 - 1))
    return Destination(
        Address(draw(ADDRESSES[version]), draw(st.integers(1, 65535))),
        weight=draw(st.integers(0, 65535)),
        forward=draw(st.sampled_from([Forward.NAT, Forward.TUNNEL, Forward.DIRECT])),
        upper=upper,
        lower=draw(st.integers(0, upper)),
    )


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[Service, list[Destination]]]:
    some = draw(st.lists(services(), min_size=10, max_size=20, unique_by=lambda service: service.key))
    return [
        (service, draw(st.lists(destinations(service.key.version), max_size=4, unique_by=lambda one: one.address)))
        for service in some
    ]


def in_words_of_ipvsadm(service: Service, places: list[Destination]) -> list[str]:
    """The lines with which `ipvsadm -Sn` says this; without thresholds, which it leaves out."""
    match service.key:
        case Mark(number, version):
            name = f"-f {number}" + " -6" * (version == 6)
        case Virtual(protocol, ip, port):
            letter = {Protocol.TCP: "t", Protocol.UDP: "u", Protocol.SCTP: "-sctp-service"}[protocol]
            name = f"-{letter} {Address(ip, port)}"
    line = f"-A {name} -s {service.scheduler}"
    if service.persistent_s:
        line += f" -p {service.persistent_s}"
        if service.client_prefix:
            mask = service.client_prefix
            line += f" -M {mask if service.key.version == 6 else IPv4Address((2**32 - 1) << (32 - mask) & (2**32 - 1))}"
    if service.one_packet:
        line += " -o"
    hashing = {"sh": "sh", "mh": "mh"}.get(service.scheduler)
    if service.hash_fallback or service.hash_port:
        words = [word for word, on in (("fallback", service.hash_fallback), ("port", service.hash_port)) if on]
        flags = [f"{hashing}-{word}" if hashing else f"flag-{1 if word == 'fallback' else 2}" for word in words]
        line += f" -b {','.join(flags)}"
    letters = {Forward.NAT: "m", Forward.TUNNEL: "i", Forward.DIRECT: "g"}
    return [line] + [f"-a {name} -r {one.address} -{letters[one.forward]} -w {one.weight}" for one in places]


@settings(
    max_examples=2,
    phases=[Phase.generate],  # to shrink one takes minutes here
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(table=tables())
def test_what_is_written_is_what_is_read(kernel: Kernel, table: list[tuple[Service, list[Destination]]]) -> None:
    """Any table that passes its checks is read back as it was written, and ipvsadm sees the same."""
    run("ipvsadm", "-C")
    for service, places in table:
        kernel.add_service(service)
        for one in places:
            kernel.add_destination(service.key, one)
    read = {key: (entry.service, set(entry.destinations.values())) for key, entry in kernel.services().items()}
    assert read == {service.key: (service, set(places)) for service, places in table}
    assert [line.split(" --tun-type")[0] for line in saved()] == sorted(
        line for service, places in table for line in in_words_of_ipvsadm(service, places)
    )


def test_changes(kernel: Kernel) -> None:
    """Set gives new settings to what is there, and delete takes away what it names and nothing else."""
    kernel.add_service(Service(WEB, "rr", owned=True))
    kernel.add_destination(WEB, Destination(ONE))
    kernel.add_destination(WEB, Destination(TWO))
    kernel.set_service(Service(WEB, "wlc", persistent_s=60, owned=True))
    kernel.set_destination(WEB, Destination(ONE, weight=0, upper=10))
    kernel.delete_destination(WEB, TWO)
    entry = kernel.services()[WEB]
    assert entry.service == Service(WEB, "wlc", persistent_s=60, owned=True)
    assert list(entry.destinations.values()) == [Destination(ONE, weight=0, upper=10)]
    kernel.delete_service(WEB)
    assert saved() == []


def test_five_hundred_destinations(kernel: Kernel) -> None:
    """A service with more destinations than one message of the kernel holds is read whole."""
    kernel.add_service(Service(WEB))
    addresses = [Address(ip_address("10.1.0.0") + number, 80) for number in range(500)]
    wanted = {address: Destination(address, weight) for weight, address in enumerate(addresses)}
    for one in wanted.values():
        kernel.add_destination(WEB, one)
    assert kernel.services()[WEB].destinations == wanted
    assert len(saved()) == 501


def test_schedulers(kernel: Kernel) -> None:
    """The kernel's schedulers are found, each of them works, and looking for them leaves nothing behind."""
    assert kernel.schedulers() == GUEST_SCHEDULERS
    assert saved() == []
    for number, name in enumerate(sorted(GUEST_SCHEDULERS), start=1):
        kernel.add_service(Service(Mark(number), name))
    assert {entry.service.scheduler for entry in kernel.services().values()} == GUEST_SCHEDULERS


def test_ownership(kernel: Kernel) -> None:
    """Whose a service is stays in the kernel over a new connection and over changes; an edit by ipvsadm disowns it."""
    kernel.add_service(Service(WEB, owned=True))
    kernel.add_service(Service(WEB6, owned=True))
    run("ipvsadm", "-A", "-f", "5")
    kernel.set_service(Service(WEB, "lc", owned=True))
    run("ipvsadm", "-a", "-t", "10.0.0.1:80", "-r", "10.0.0.2", "-m")
    with Kernel() as again:
        assert {key: entry.service.owned for key, entry in again.services().items()} == {
            WEB: True,
            WEB6: True,
            Mark(5): False,
        }
        run("ipvsadm", "-E", "-t", "10.0.0.1:80", "-s", "rr")
        assert not again.services()[WEB].service.owned


def test_removal(kernel: Kernel) -> None:
    """Of the services that were written down those with our mark are removed, once, and no others."""
    foreign = Mark(7)
    for key in (WEB, WEB6, foreign):
        kernel.add_service(Service(key, owned=key != foreign))
    assert remove({WEB, foreign})
    assert kernel.services().keys() == {WEB6, foreign}
    assert not remove({WEB, foreign})


def test_refusals(kernel: Kernel) -> None:
    """Each refusal of the kernel has a type of its own, and a text that names the thing."""
    kernel.add_service(Service(WEB))
    kernel.add_destination(WEB, Destination(ONE))
    with pytest.raises(Exists, match=r"tcp 10\.0\.0\.1:80 is in"):
        kernel.add_service(Service(WEB))
    with pytest.raises(Exists, match=r"172\.17\.0\.2:8080 of tcp 10\.0\.0\.1:80 is in"):
        kernel.add_destination(WEB, Destination(ONE))
    for attempt in (
        lambda: kernel.set_service(Service(WEB6)),
        lambda: kernel.delete_service(Mark(1)),
        lambda: kernel.add_destination(WEB6, Destination(ONE)),
        lambda: kernel.set_destination(WEB, Destination(TWO)),
        lambda: kernel.set_destination(Mark(1), Destination(ONE)),
        lambda: kernel.delete_destination(WEB, TWO),
        lambda: kernel.delete_destination(Mark(1), TWO),
    ):
        with pytest.raises(Missing, match="read the table again"):
            attempt()
    for change in (kernel.add_service, kernel.set_service):
        with pytest.raises(NoScheduler, match="no scheduler 'best'"):
            change(Service(WEB if change == kernel.set_service else WEB6, "best"))
    with pytest.raises(Impossible, match="IPv4 and IPv6"):
        kernel.add_destination(WEB, Destination(Address(ip_address("fd00::2"), 80)))
    with pytest.raises(ValueError, match="the weight is 65536: it can be 0 to 65535"):
        kernel.add_destination(WEB, Destination(TWO, weight=65536))
    assert len(saved()) == 2


def test_a_scheduler_that_the_kernel_lacks(kernel: Kernel) -> None:
    """A balancer with a scheduler that is not there is told which module has it, and which are there."""
    machine = open_machine("ipvs", "leave")
    try:
        problem = machine.why_not(Pool(Service(WEB, "twos")))
        assert machine.why_not(Pool(Service(WEB, "mh"))) is None
    finally:
        machine.close()
    assert problem is not None
    assert problem.text == "the kernel has no scheduler twos"
    assert problem.mend == f"load ip_vs_twos, or use one of {', '.join(sorted(GUEST_SCHEDULERS))}"


def test_foreign_values(kernel: Kernel) -> None:
    """What others may have written and we would not is read, and a service of another protocol is passed over."""
    run("ipvsadm", "-A", "-f", "5", "-s", "wlc", "-p", "10", "-M", "255.0.255.0")
    run("ipvsadm", "-a", "-f", "5", "-r", "10.0.0.2", "-m", "-w", "2147483647", "-x", "9", "-y", "8")
    raw = IPVS()
    raw.service("add", service=IPVSService(addr="10.0.0.1", port=5, protocol=50, sched_name="rr"))
    mark = IPVSService(af=AF_INET, fwmark=5)
    raw.dest("add", service=mark, dest=IPVSDest(addr="10.0.0.3", port=0, fwd_method=5, weight=1))
    raw.close()
    table = kernel.services()
    assert table.keys() == {Mark(5)}
    assert set(table[Mark(5)].destinations.values()) == {
        Destination(Address(ip_address("10.0.0.2"), 0), weight=2147483647, upper=9, lower=8),
        Destination(Address(ip_address("10.0.0.3"), 0), forward=Forward.OTHER),
    }


def test_no_permission() -> None:
    """A root that lacks the capability, and one of a user namespace, are told that they do."""
    program = "from tsbus.balancer.ipvs import Kernel, NoPermission"
    program += "\ntry: Kernel()\nexcept NoPermission as error: print(error)"
    for words in (["setpriv", "--bounding-set=-net_admin"], ["unshare", "--user", "--map-root-user", "--net"]):
        assert "CAP_NET_ADMIN" in run(*words, sys.executable, "-c", program)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_module(kernel: Kernel) -> None:
    """Where the module is not loaded the kernel loads it; where it cannot be, the text says so, and nothing leaks."""
    kernel.close()
    # No test before this one in a guest may use `stage`: its services need the modules, and do not outlive them.
    modules = [line.split()[0] for line in run("lsmod").splitlines() if line.startswith("ip_vs_")]
    loader = run("sysctl", "-n", "kernel.modprobe").strip()
    run("modprobe", "-r", "xt_ipvs", *modules, "ip_vs")
    run("sysctl", "-w", "kernel.modprobe=/bin/false")
    gc.disable()  # what is left to it counts as leaked
    try:
        before = open_files()
        for _ in range(5):
            with pytest.raises(NoModule, match=r"^this kernel has no IPVS: load it with `modprobe ip_vs`, or run one"):
                Kernel()
        assert open_files() == before
        with pytest.raises(Unusable, match="load it with `modprobe ip_vs`") as caught:
            open_machine("ipvs", "leave")
        assert 'backend = "auto"' in caught.value.mend
    finally:
        gc.enable()
        run("sysctl", "-w", f"kernel.modprobe={loader}")
    Kernel().close()
    run("modprobe", "xt_ipvs")
