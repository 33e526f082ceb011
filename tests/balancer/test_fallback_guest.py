"""Schedulers that hash, over real IPVS: the clients of a drained server move to another, and come back."""

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lan import Lan
from model_kernel import box
from site_of_balancer import KEYS, opened, site
from test_service_paths import VIP

pytestmark = pytest.mark.guest

BOXES = {"c1": "172.17.0.2", "c2": "172.17.0.3"}


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    subprocess.run(["modprobe", "-a", "ip_vs", "ip_vs_sh", "ip_vs_mh"], check=True)
    with Lan() as lan:
        lan.docker()
        yield lan


@pytest.mark.parametrize("alg", ["sh", "mh"])
async def test_clients_of_a_drained_server_move(lan: Lan, tmp_path: Path, alg: str) -> None:
    """A client has one server; while that is drained it has the other, thanks to the fallback alone."""

    async def answered() -> set[str]:
        return {(await asyncio.to_thread(lan.ask, "client", "tcp", VIP)).server for _ in range(3)}

    keys = KEYS.replace("nginx = 80", "nginx = 8080")
    async with site(tmp_path, keys, *(box(name, ip) for name, ip in BOXES.items()), start=False) as one:
        node = one.config.servers["n1"]
        balancers = {"web": replace(node.balancers["web"], alg=alg)}
        one.config = replace(one.config, servers={**one.config.servers, "n1": replace(node, balancers=balancers)})
        one.opener = lambda: opened(lan, "ipvs")
        await one.start()
        await one.call("lb.wait", {"servers": [*BOXES]})
        (server,) = await answered()
        flow = await asyncio.to_thread(lan.flow, "client", "tcp", VIP)
        (other,) = BOXES.keys() - {server}
        await one.call("lb.drain", {"servers": [server]})
        assert await answered() == {other}

        lan.host.run("ipvsadm", "-E", "-t", "10.0.0.1:80", "-s", alg)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(lan.ask, "client", "tcp", VIP)
        (synced,) = await one.call("lb.sync")
        assert synced["steps"]
        assert await answered() == {other}

        await one.call("lb.undrain", {"servers": [server]})
        assert await answered() == {server}
        assert (await asyncio.to_thread(flow.ask)).server == server
        flow.end.close()
