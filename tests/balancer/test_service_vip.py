"""The balancer's service over real kernels with addresses of its own: several, managed, with a sorry server behind."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from ipvsadm import saved
from lan import PORT, Answer, Lan, address
from model_kernel import box
from site_of_balancer import KEYS, Site, opened, site

from tsbus.balancer.clear import clear
from tsbus.config import Balancing, Tree

VIPS = {4: ("10.0.0.100", "10.0.0.101"), 6: ("fd00::100", "fd00::101")}


@pytest.mark.guest
async def test_with_ipvs(tmp_path: Path) -> None:
    """The sorry server answers at all addresses while nobody else does; what others have in the table stays."""
    await _story(tmp_path, "ipvs", 6)


@pytest.mark.parametrize("version", [4, 6])
async def test_with_nftables(tmp_path: Path, version: int) -> None:
    """Without IPVS it is the same, over a table of nft."""
    await _story(tmp_path, "nftables", version)


async def _story(folder: Path, backend: str, version: int) -> None:
    with Lan() as lan:
        lan.docker()
        foreign = Foreign(lan, backend)
        boxes = [box(name, address(name, version)) for name in ("c1", "c2")]
        async with site(folder, KEYS.replace("nginx = 80", "nginx = 8080"), *boxes, start=False) as one:
            one.config = _with_addresses(one.config, version)
            one.opener = lambda: opened(lan, backend)
            await one.start()
            await one.until(lambda: all(one.server(each.name).get("state") == "active" for each in boxes))
            assert (await one.call("lb.check"))[0]["problems"] == []
            assert await _asked(lan, version) == {"c1": 2, "c2": 2}

            flow = await asyncio.to_thread(lan.flow, "client", "tcp", _places(version)[0])
            kept = await asyncio.to_thread(flow.ask)
            await one.call("lb.drain", {"servers": ["c1", "c2"]})
            assert await _state(one) == "sorry"
            assert await _asked(lan, version) == {"node": 4}
            assert await asyncio.to_thread(flow.ask) == kept == Answer(kept.server, address("client", version))
            sorry = await asyncio.to_thread(lan.flow, "client", "tcp", _places(version)[1])
            assert await asyncio.to_thread(sorry.ask) == Answer("node", address("host", version))

            await one.call("lb.undrain", {"servers": ["c1", "c2"]})
            assert await _state(one) == "ok"
            assert await _asked(lan, version) == {"c1": 2, "c2": 2}
            for each, server in ((flow, kept.server), (sorry, "node")):
                assert (await asyncio.to_thread(each.ask)).server == server
            sorry.end.close()
            await one.until(lambda: one.server("sorry") == {})
            foreign.check()

            await one.stop()
            tree = replace(one.config, balancing=Balancing(backend=backend)).with_current("n1")
            assert lan.host.call(clear, tree, folder).problems == ()
            assert VIPS[version][0] not in lan.host.run("ip", "address")
            foreign.check()


class Foreign:
    """A service that somebody else has made, and that works."""

    def __init__(self, lan: Lan, backend: str) -> None:
        self._lan, self._backend = lan, backend
        if backend == "ipvs":
            lan.host.run("modprobe", "-a", "ip_vs", "dummy")
            lan.host.sysctl("net.ipv4.ip_forward", 1)
            lan.host.run("ipvsadm", "-A", "-t", "10.0.0.1:81", "-s", "rr")
            lan.host.run("ipvsadm", "-a", "-t", "10.0.0.1:81", "-r", f"172.17.0.2:{PORT}", "-m", "-w", "3")
        else:
            hook = "type nat hook prerouting priority -110"
            rule = f"ip daddr 10.0.0.1 tcp dport 81 dnat ip to 172.17.0.2:{PORT}"
            lan.host.run("nft", "-f", "-", text=f"table inet mine {{ chain pre {{ {hook}; {rule}; }}; }}\n")
            lan.host.sysctl("net.ipv4.ip_forward", 1)
            lan.host.run("iptables", "-A", "DOCKER", "-d", "172.17.0.2", "-j", "ACCEPT")
        self._before = self._listed()

    def check(self) -> None:
        """It is as it was, and answers."""
        assert self._listed() == self._before
        assert self._lan.ask("client", "tcp", ("10.0.0.1", 81)).server == "c1"

    def _listed(self) -> list[str]:
        if self._backend == "ipvs":
            return [line for line in self._lan.host.call(saved) if "10.0.0.1:81" in line]
        return self._lan.host.run("nft", "list", "table", "inet", "mine").splitlines()


def _with_addresses(config: Tree, version: int) -> Tree:
    """The tree whose balancer has two managed addresses, and a sorry server."""
    places = [f"[{ip}]" if version == 6 else ip for ip in (*VIPS[version], address("node", version))]
    node = config.servers["n1"]
    web = replace(
        node.balancers["web"], alg="rr", address=f"{places[0]}:80", addresses=(f"{places[1]}:8000-8010",),
        manage_vip=True, sorry_server=f"{places[2]}:{PORT}",
    )  # fmt: skip
    return replace(config, servers={**config.servers, "n1": replace(node, balancers={"web": web})})


def _places(version: int) -> list[tuple[str, int]]:
    first, second = VIPS[version]
    return [(first, 80), (second, 8000), (first, 80), (second, 8010)]


async def _state(one: Site) -> str:
    return str((await one.call("lb.ls"))[0]["balancers"][0]["state"])


async def _asked(lan: Lan, version: int) -> Counter[str]:
    """Who answers four new connections."""
    answers = [await asyncio.to_thread(lan.ask, "client", "tcp", place) for place in _places(version)]
    return Counter(each.server for each in answers)
