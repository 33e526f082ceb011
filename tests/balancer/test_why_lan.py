"""`lb.why` over real kernels, in namespaces: what it says of a packet is what becomes of it, and its mends mend."""

import asyncio
import ctypes
import re
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lan import LIMIT_S, PATIENCE_S, PORT, Answer, Lan, address
from model_kernel import box
from site_of_balancer import Site, opened, site

from tsbus.balancer import slots
from tsbus.balancer.ipvs import SCHEDULERS, Kernel
from tsbus.balancer.machine import Machine
from tsbus.balancer.table import Protocol, Service, Virtual

VIP = ("10.0.0.1", 80)
HOST = "start_grace_s = 0\n[balancing]\nreconcile_s = 3600"
"""What a test breaks is mended by nobody else: time passes quickly while a thread is waited for."""
LOCAL = f"containers = {{nginx = {PORT}}}\nsubtree = false\n{HOST}"
REMOTE = f"servers = {{n2 = {PORT}}}\n{HOST}"
_NET_ADMIN = 12
CLIENT = "the client's own address"
IPVS = pytest.param("ipvs", marks=pytest.mark.guest)
LONG_IPVS = pytest.param("ipvs", marks=[pytest.mark.guest, pytest.mark.long])
WITH_BOTH = pytest.mark.parametrize("backend", [IPVS, "nftables"], scope="module")
WITH_IPVS = pytest.mark.parametrize("backend", [IPVS], scope="module")
WITH_NFTABLES = pytest.mark.parametrize("backend", ["nftables"], scope="module")


@pytest.fixture(scope="module")
def bare(backend: str) -> Iterator[Lan]:
    """A host in a network where the node n2 has its address."""
    if backend == "ipvs":
        subprocess.run(["modprobe", "-a", "ip_vs", "dummy"], check=True)
    with Lan() as lan:
        lan["node"].ip("address add 192.168.0.2/32 dev eth0")
        lan.host.ip("route add 192.168.0.2/32 via 10.0.0.3")
        yield lan


@pytest.fixture
def lan(bare: Lan) -> Lan:
    """With the rules of Docker and no others, and nothing that balances."""
    clean(bare)
    bare.host.run("sh", "-c", "nft delete table inet treescale-lb; ipvsadm -C; true")
    return bare


class Stage:
    """A balancer on the host of a Lan."""

    def __init__(self, lan: Lan, one: Site) -> None:
        self.lan, self.site = lan, one

    async def why(self, client: str = "remote", place: str = "10.0.0.1:80", **more: str) -> Any:
        (answer,) = await self.site.call("lb.why", {"address": place, "from": client, **more}, timeout_s=3000)
        return answer

    async def failing(self, client: str = "remote", place: str = "10.0.0.1:80") -> Any:
        """The first check that fails; the verdict names it."""
        told = await self.why(client, place)
        found = next((each for each in told["checks"] if each["result"] == "fail"), None)
        assert found, told
        assert told["works"] is False
        assert f"ends at the check {found['name']!r}" in told["verdict"]
        return found

    async def asks(
        self, name: str = "client", to: tuple[str, int] = VIP, kind: str = "tcp", limit_s: float = LIMIT_S
    ) -> Answer:
        """Who answers."""
        return await asyncio.to_thread(self.lan.ask, name, kind, to, limit_s)

    async def asks_in_vain(self, name: str = "client", to: tuple[str, int] = VIP, kind: str = "tcp") -> bool:
        """Whether nobody answers."""
        try:
            await self.asks(name, to, kind, PATIENCE_S)
        except OSError:
            return True
        return False

    async def mend(self, text: str) -> None:
        """Do what a mend says: the first command in it."""
        command = re.search("`(.*?)`", text)
        assert command, text
        match command[1].split():
            case ["treescale", "lb", "sync", "n1"]:
                await self.site.call("lb.sync")
            case ["treescale", "lb", "undrain", "n1", name]:
                await self.site.call("lb.undrain", {"servers": [name]})
            case ["treescale", "lb", "weight", "n1", name, "default"]:
                await self.site.call("lb.weight", {"servers": [name], "weight": None})
            case _:
                await asyncio.to_thread(self.lan.host.run, "sh", "-c", command[1])


@asynccontextmanager
async def stage(
    lan: Lan, backend: str, folder: Path, keys: str, *names: str, right: bool = True, version: int = 4, **more: str
) -> AsyncIterator[Stage]:
    """A balancer with these containers, and `more` of its settings; `right`: it may change the kernel."""
    async with site(folder, keys, *(box(name, address(name, version)) for name in names), start=False) as one:
        one.opener = lambda: _open(lan, backend, right=right)
        balancers = one.config.servers["n1"].balancers
        balancers["web"] = replace(balancers["web"], **more)
        await one.start()
        standing = one.service.keeper.standing
        await one.until(
            lambda: standing.reports["web"].state == "ok" if "web" in standing.reports else standing.unusable
        )
        if right:
            await one.call("lb.sync")
        yield Stage(lan, one)


def _open(lan: Lan, backend: str, *, right: bool) -> Machine:
    if not right:
        _give_up_net_admin()
    return opened(lan, backend)


def _give_up_net_admin() -> None:
    """Take the right to change the network from this thread, and from the programs that it starts."""
    libc, header, data = ctypes.CDLL(None, use_errno=True), struct.pack("=Ii", 0x20080522, 0), bytearray(24)
    sets = (ctypes.c_char * 24).from_buffer(data)
    assert libc.prctl(24, _NET_ADMIN, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    assert libc.capget(header, sets) == 0
    for at in (0, 4):  # effective, permitted
        (bits,) = struct.unpack_from("=I", data, at)
        struct.pack_into("=I", data, at, bits & ~(1 << _NET_ADMIN))
    assert libc.capset(header, sets) == 0


def clean(lan: Lan) -> None:
    """Docker's rules and no others, and the settings of a host that forwards."""
    lan.docker()
    policies = (f"iptables -P {chain} ACCEPT" for chain in ("INPUT", "OUTPUT"))
    tables = (f"nft delete table {each} 2>/dev/null || true" for each in ("inet fire", "ip fire"))
    lan.host.run("sh", "-ec", "\n".join((*policies, *tables)))
    lan.host.sysctl("net.ipv4.ip_forward", 1)


def seen(verdict: str) -> set[str]:
    """The addresses that servers see, as a verdict has them."""
    return set(re.findall(r"which sees? (the client's own address|\S+)", verdict))


@WITH_BOTH
@pytest.mark.parametrize("keys", [LOCAL, REMOTE], ids=["local", "remote"])
async def test_what_works(lan: Lan, backend: str, tmp_path: Path, keys: str) -> None:
    """Where nothing is wrong everything works, and servers see the addresses that the verdict says."""
    async with stage(lan, backend, tmp_path, keys, "c1", "c2") as one:
        for client, names in (("remote", ["client"]), ("local", ["host"]), ("container", ["c1", "c3"])):
            told = await one.why(client)
            assert told["works"] is True, told["verdict"]
            found = {(await one.asks(name)).source for name in names}
            own = {address(name) for name in names}
            assert seen(told["verdict"]) == ({CLIENT} if found == own and client != "local" else found)
        lan.host.sysctl("net.ipv4.ip_forward", 0)
        if backend == "ipvs":
            lan.host.sysctl("net.ipv4.vs.conntrack", 0)
        told = await one.why("local")
        assert told["works"] is True, "a program of the host needs neither"
        assert seen(told["verdict"]) == {(await one.asks("host")).source}


class Fault(NamedTuple):
    """Something that breaks a way."""

    check: str
    """That should find it."""
    says: str
    """A part of its text."""
    command: str
    """That breaks it, on the host."""
    client: str = "remote"
    backends: tuple[str, ...] = ("ipvs", "nftables")
    """A guest is slow, so what is the same with both is broken there only when nothing like it is."""


LOCAL_FAULTS = (
    Fault("forwarding", "net.ipv4.ip_forward is 0", "sysctl -qw net.ipv4.ip_forward=0"),
    Fault(
        "forwarding",
        "conf.docker0.forwarding is 0",
        "sysctl -qw net.ipv4.conf.docker0.forwarding=0",
        backends=("nftables",),
    ),
    Fault("input", "the policy of INPUT", "iptables -P INPUT DROP", backends=("ipvs",)),
    Fault("input", "the answer is dropped by the policy of INPUT", "iptables -P INPUT DROP", "local"),
    Fault(
        "input",
        "the policy of in (inet fire)",
        "nft 'table inet fire { chain in { type filter hook input priority 0; policy drop; ct state vmap "
        "{ related: accept, new: drop }; tcp sport vmap { 22: accept }; iif lo accept; }; }'",
        "local",
        ("nftables",),
    ),
    Fault(
        "output",
        "-A OUTPUT -d 172.17.0.2/32 -j DROP",
        "iptables -A OUTPUT -d 172.17.0.2/32 -j DROP",
        "local",
        ("nftables",),
    ),
    Fault("output", "-A OUTPUT -o docker0 -j REJECT", "iptables -A OUTPUT -o docker0 -j REJECT", backends=("ipvs",)),
    Fault(
        "answers",
        "-A DOCKER-USER -s 172.17.0.2/32 -j DROP",
        "iptables -I DOCKER-USER 1 -s 172.17.0.2/32 -j DROP",
        backends=("nftables",),
    ),
    Fault("answers", "the policy of FORWARD", "iptables -F FORWARD"),
    Fault(
        "published",
        "-A DOCKER -p tcp -m tcp --dport 80 -j DNAT",
        "iptables -t nat -A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.9:80",
        backends=("ipvs",),
    ),
    Fault(
        "hairpin",
        "to-c1 of docker0",
        "sysctl -qw net.bridge.bridge-nf-call-iptables=1; bridge link set dev to-c1 hairpin off",
        "container",
    ),
)
REMOTE_FAULTS = (
    Fault("tracking", "vs.conntrack is 0", "sysctl -qw net.ipv4.vs.conntrack=0", backends=("ipvs",)),
    Fault("masquerade", "would answer the client directly", "iptables -t nat -F TREESCALE-POST"),
    Fault("answers", "the policy of FORWARD", "iptables -F TREESCALE-ACCEPT"),
    Fault(
        "answers",
        "the policy of forwarded (ip fire)",
        "nft 'table ip fire { chain forwarded { type filter hook forward priority 10; policy drop; }; }'",
        backends=("nftables",),
    ),
)
CLIENTS = {"remote": "client", "local": "host", "container": "c1"}


@pytest.mark.parametrize("backend", [LONG_IPVS, "nftables"], scope="module")
@pytest.mark.parametrize(("keys", "faults"), [(LOCAL, LOCAL_FAULTS), (REMOTE, REMOTE_FAULTS)], ids=["local", "remote"])
async def test_faults(lan: Lan, backend: str, tmp_path: Path, keys: str, faults: tuple[Fault, ...]) -> None:
    """What stands in a packet's way is found at its check; no client gets an answer until its mend is done."""
    async with stage(lan, backend, tmp_path, keys, "c1") as one:
        for fault in faults:
            if backend not in fault.backends:
                continue
            lan.host.run("sh", "-c", fault.command)
            found = await one.failing(fault.client)
            assert (found["name"], fault.says in found["text"]) == (fault.check, True), found
            assert await one.asks_in_vain(CLIENTS[fault.client]), fault
            await one.mend(found["mend"])
            told = await one.why(fault.client)
            assert told["works"] is True, told["verdict"]
            assert (await one.asks(CLIENTS[fault.client])).server in ("c1", "node"), fault
            clean(lan)
            await one.site.call("lb.sync")


@WITH_NFTABLES
@pytest.mark.parametrize(("version", "kind", "tool"), [(6, "tcp", "ip6tables"), (4, "udp", "iptables")])
async def test_other_kinds(lan: Lan, backend: str, tmp_path: Path, version: int, kind: str, tool: str) -> None:
    """With IPv6 and with UDP it is the same, in the words of their tools."""
    to = (address("host", version), 80)
    place = f"[{to[0]}]:80" if version == 6 else f"{to[0]}:80"
    async with stage(lan, backend, tmp_path, LOCAL, "c1", version=version, protocol=kind, address=place) as one:
        for client, name in (("remote", "client"), ("local", "host"), ("container", "c1")):
            told = await one.why(client, place, protocol=kind)
            assert told["works"] is True, told["verdict"]
            source = (await one.asks(name, to, kind)).source
            assert seen(told["verdict"]) == ({CLIENT} if client == "remote" else {source})
        lan.host.run(tool, "-F", "FORWARD")
        found = await one.failing("remote", "web")
        assert (found["name"], tool in found["mend"]) == ("answers", True)
        assert await one.asks_in_vain("client", to, kind)
        await one.mend(found["mend"])
        assert (await one.why("remote", "web"))["works"] is True
        assert (await one.asks("client", to, kind)).server == "c1"


@WITH_NFTABLES
async def test_servers(lan: Lan, backend: str, tmp_path: Path) -> None:
    """A server that refuses connections, servers without a weight, and none at all, with what brings them back."""
    port = 8081
    async with stage(lan, backend, tmp_path, LOCAL.replace(str(PORT), str(port)), "c1", "c2") as one:
        lan.serve("c2", "tcp", port)
        found = await one.failing()
        assert (found["name"], found["servers"]) == ("server", ["c1"])
        assert "Connection refused" in found["text"]
        assert any([await one.asks_in_vain() for _ in range(2)])
        assert f"listens at port {port}" in found["mend"]
        lan.serve("c1", "tcp", port)
        assert (await one.why())["works"] is True
        assert {(await one.asks()).server for _ in range(2)} == {"c1", "c2"}

        for command, body in (("lb.weight", {"weight": 0}), ("lb.drain", {})):
            await one.site.call(command, {"servers": ["c1", "c2"], **body})
            found = await one.failing()
            assert found["name"] == "servers"
            assert "c1 is " in found["text"]
            assert await one.asks_in_vain()
            await one.mend(found["mend"])
            assert (await one.asks()).server == "c1"
            await one.site.call("lb.undrain", {"servers": ["c2"]})
            await one.site.call("lb.weight", {"servers": ["c2"], "weight": None})

        monitor = one.site.monitors["n1"]
        boxes = dict(monitor.boxes)
        for each in boxes.values():
            await monitor.has(each, "destroyed")
        await one.site.until(lambda: one.site.service.keeper.standing.reports["web"].state == "empty")
        await one.site.call("lb.sync")
        found = await one.failing()
        assert (found["name"], "nginx" in found["text"]) == ("servers", True)
        assert await one.asks_in_vain()
        for each in boxes.values():
            await monitor.has(each, "started")
        await one.site.until(lambda: one.site.service.keeper.standing.reports["web"].state == "ok")
        await one.site.call("lb.sync")
        assert (await one.why())["works"] is True


@WITH_NFTABLES
async def test_addresses(lan: Lan, backend: str, tmp_path: Path) -> None:
    """An address that is not here, one of the loopback device, one that nobody has, and a port that a program has."""
    async with stage(lan, backend, tmp_path, f'addresses = ["10.0.0.50:81-82"]\n{LOCAL}', "c1") as one:
        there = ("10.0.0.50", 82)
        found = await one.failing(place="10.0.0.50:82")
        assert (found["name"], found["text"][:9]) == ("address", "10.0.0.50")
        assert await one.asks_in_vain(to=there)
        await one.mend(found["mend"])
        told = await one.why(place="10.0.0.50:82")
        assert told["works"] is True, told["verdict"]
        assert (await one.asks(to=there)).server == "c1"
        assert (await one.why(place="web"))["address"] == "10.0.0.1:80"
        lan.host.ip("address del 10.0.0.50/32 dev eth0")

        lan.host.ip("link set lo up")
        found = await one.failing("local", "127.0.0.1:80")
        assert (found["name"], found["mend"]) == ("loopback", "connect to 10.0.0.1:80")
        assert await one.asks_in_vain("host", ("127.0.0.1", 80))
        assert (await one.asks("host", ("10.0.0.1", 80))).server == "c1"

        found = await one.failing(place="10.0.0.1:99")
        assert (found["name"], "web (tcp 10.0.0.1:80, 10.0.0.50:81-82)" in found["text"]) == ("balancer", True)
        assert "neither IP:PORT nor one of the balancers here (web)" in await one.site.fails("lb.why", {"address": "x"})

        program = lan.host.call(socket.create_server, ("10.0.0.1", 80))
        with program:
            told = await one.why()
            (found,) = [each for each in told["checks"] if each["result"] == "warn"]
            assert (told["works"], found["name"]) == (True, "listener")
            assert (await one.asks()).server == "c1"
        assert [each["result"] for each in (await one.why())["checks"] if each["name"] == "listener"] == ["ok"]


@WITH_NFTABLES
async def test_what_the_kernel_lacks(lan: Lan, backend: str, tmp_path: Path) -> None:
    """A scheduler that the kernel has not is told with those that it has; with one of these it works."""
    lacking = next(name for name in SCHEDULERS if name not in slots.SCHEDULERS)
    async with stage(lan, backend, tmp_path, LOCAL, "c1", alg=lacking) as one:
        found = await one.failing()
        assert (found["name"], lacking in found["text"]) == ("backend", True)
        assert await one.asks_in_vain()
    clean(lan)
    async with stage(lan, backend, tmp_path, LOCAL, "c1", alg="rr") as one:
        assert (await one.why())["works"] is True


@WITH_NFTABLES
async def test_without_the_right(lan: Lan, backend: str, tmp_path: Path) -> None:
    """Where nothing can be balanced the command answers all the same, with what is missing and what else is seen."""
    async with stage(lan, backend, tmp_path, LOCAL, "c1", right=False) as one:
        found = await one.failing()
        assert (found["name"], "as root" in found["mend"]) == ("backend", True)
        results = {each["name"]: each["result"] for each in (await one.why())["checks"]}
        assert (results["balancer"], results["address"], results["listener"]) == ("ok", "ok", "ok")


@WITH_IPVS
async def test_other_tools(lan: Lan, backend: str, tmp_path: Path) -> None:
    """A service that another tool has made at the address, or changed, is told, and what puts it right.

    With nft the whole table is ours by its name.
    """
    theirs = Virtual(Protocol.TCP, ip_address(VIP[0]), VIP[1])
    with lan.host.call(Kernel) as kernel:
        lan.host.call(kernel.add_service, Service(theirs))
        async with stage(lan, backend, tmp_path, LOCAL, "c1") as one:
            found = await one.failing()
            assert (found["name"], "adopt = true" in found["mend"]) == ("service", True)
            assert await one.asks_in_vain()
            lan.host.call(kernel.delete_service, theirs)
            await one.site.call("lb.sync")
            assert (await one.why())["works"] is True
            assert (await one.asks()).server == "c1"
            lan.host.run("ipvsadm", "-e", "-t", "10.0.0.1:80", "-r", f"172.17.0.2:{PORT}", "-m", "-w", "7")
            lan.host.run("ipvsadm", "-E", "-t", "10.0.0.1:80", "-s", "rr")
            told = await one.why()
            (found,) = [each for each in told["checks"] if each["result"] == "warn"]
            assert (told["works"], found["name"], "weight 7" in found["text"]) == (True, "service", True)
            await one.mend(found["mend"])
            assert "warn" not in {each["result"] for each in (await one.why())["checks"]}


@WITH_IPVS
async def test_room_for_connections(lan: Lan, backend: str, tmp_path: Path) -> None:
    """A full table of tracked connections, which drops new ones, is told with the number that would do.

    In a guest only: the number is that of the whole machine.
    """
    most = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = most.read_text()
    async with stage(lan, backend, tmp_path, LOCAL, "c1") as one:
        flows = [await asyncio.to_thread(lan.flow, "client", "tcp", VIP) for _ in "12"]
        assert {flow.ask().server for flow in flows} == {"c1"}
        try:
            most.write_text("1")
            found = await one.failing()
            assert (found["name"], "new ones are dropped" in found["text"]) == ("tracking", True)
            assert await one.asks_in_vain()
        finally:
            most.write_text(before)
            for flow in flows:
                flow.end.close()
        assert (await one.asks()).server == "c1"
