"""The balancer's service over real kernels, in namespaces: what clients meet while containers come, drain and go."""

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from lan import Lan
from model_kernel import box
from site_of_balancer import KEYS, Site, opened, site
from waiting import LIMIT_S

from tsbus.balancer import statefile
from tsbus.balancer.clear import clear
from tsbus.balancer.statefile import State
from tsbus.config import Balancing

VIP = ("10.0.0.1", 80)
BOXES = {"c1": "172.17.0.2", "c2": "172.17.0.3"}
DIES = """
import os, signal, sys
from ipaddress import ip_address
from pathlib import Path

from tsbus.balancer.carrier import Carrier
from tsbus.balancer.machine import open_machine
from tsbus.balancer.rules import Front, Listen
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Destination, Protocol, Service, Virtual

machine = open_machine("nftables", "set")
key = Virtual(Protocol.TCP, ip_address("10.0.0.99"), 80)
server = Address(ip_address("172.17.0.2"), 8080)
pool = Pool(Service(key, owned=True), {server: Destination(server)})
carrier = Carrier(machine, Path(sys.argv[1]), None, {key})
carrier.begin()
machine.services = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # what a turn asks first after the rules
carrier.carry([Front("web", (Listen(*key, key.port),), pool, manage_vip=True)], (), anew=True)
"""
"""A balancer that is killed when it has made the rules of the host, and nothing of its table."""


@pytest.mark.guest
async def test_with_ipvs(tmp_path: Path) -> None:
    """With IPVS: drained servers keep their connections and get no new ones, over a restart too; clear ends it."""
    subprocess.run(["modprobe", "-a", "ip_vs", "dummy"], check=True)
    await _story(tmp_path, "ipvs")


async def test_with_nftables(tmp_path: Path) -> None:
    """Without IPVS it is the same, over a table of nft."""
    await _story(tmp_path, "nftables")


async def test_killed_between_rules_and_table(tmp_path: Path) -> None:
    """Rules and addresses are noted before they are made: what a killed balancer left goes with the last balancer."""
    with Lan() as lan:
        lan.docker()
        path = tmp_path / statefile.NAME
        killed = lan.host.call(subprocess.run, [sys.executable, "-c", DIES, path])
        assert killed.returncode == -signal.SIGKILL
        assert "treescale" in lan.host.run("nft", "list", "ruleset").lower()
        assert "10.0.0.99" in lan.host.run("ip", "address")
        assert statefile.load(path) == State(host=True)
        async with site(tmp_path, start=False) as one:
            servers = {**one.config.servers, "n1": replace(one.config.servers["n1"], balancers={})}
            one.config = replace(one.config, servers=servers)
            one.opener = lambda: opened(lan, "nftables")
            await one.start()
            await one.until(lambda: not path.exists())
        assert "treescale" not in lan.host.run("nft", "list", "ruleset").lower()
        assert "10.0.0.99" not in lan.host.run("ip", "address")


async def _story(folder: Path, backend: str) -> None:
    with Lan() as lan:
        lan.docker()
        keys = KEYS.replace("nginx = 80", "nginx = 8080")
        async with site(folder, keys, *(box(name, ip) for name, ip in BOXES.items()), start=False) as one:
            one.opener = lambda: opened(lan, backend)
            await one.start()
            await _states(one, c1="active", c2="active")
            assert (await one.call("lb.ls"))[0]["balancers"][0]["backend"] == backend
            assert await _asked(lan) == {"c1": 2, "c2": 2}

            flow = await asyncio.to_thread(lan.flow, "client", "tcp", VIP)
            server = (await asyncio.to_thread(flow.ask)).server
            other = ({*BOXES} - {server}).pop()
            await one.call("lb.drain", {"servers": [server]})
            assert await _asked(lan) == {other: 4}
            assert (await asyncio.to_thread(flow.ask)).server == server
            await one.stop()
            assert await _asked(lan) == {other: 4}
            await one.start()
            waiting = asyncio.create_task(one.call("lb.drain", {"servers": [server], "wait": True}))
            await one.until(lambda: "connections" in one.server(server))
            assert one.server(server)["connections"] == 1
            assert (await asyncio.to_thread(flow.ask)).server == server
            assert not waiting.done()
            flow.end.close()
            await one.until(waiting.done)
            assert waiting.result()[0]["state"] == "removed"

            await one.call("lb.undrain", {"servers": [server]})
            assert await _asked(lan) == {"c1": 2, "c2": 2}
            end = time.monotonic() + LIMIT_S
            while (await one.call("lb.stats"))[0].get("connections", 0) < 4:  # the kernel's totals come 2 s after
                assert time.monotonic() < end
            assert await one.call("lb.check") == [{"problems": []}]

            await one.stop()
            tree = replace(one.config, balancing=Balancing(backend=backend)).with_current("n1")
            assert lan.host.call(clear, tree, folder).problems == ()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.to_thread(lan.ask, "client", "tcp", VIP)
            tool = ("iptables-save",) if backend == "ipvs" else ("nft", "list", "ruleset")
            assert "treescale" not in lan.host.run(*tool).lower()
            assert not (folder / statefile.NAME).exists()


async def _states(one: Site, **wanted: str) -> None:
    await one.until(lambda: {name: one.server(name).get("state") for name in wanted} == wanted)


async def _asked(lan: Lan) -> Counter[str]:
    """Who answers four new connections."""
    answers = [await asyncio.to_thread(lan.ask, "client", "tcp", VIP) for _ in range(4)]
    return Counter(each.server for each in answers)
