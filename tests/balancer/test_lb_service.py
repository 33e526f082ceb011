"""The balancer's service on a tree in memory, over a kernel in memory: real routers, its own events and commands."""

import asyncio
import json
import threading
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from model_kernel import box, tree
from site_of_balancer import KEYS, VIP, MemoryMachine, replace_struct, site
from waiting import LIMIT_S

from tsbus import Role, Worker
from tsbus.balancer import statefile
from tsbus.balancer.keeper import Keeper
from tsbus.balancer.statefile import State
from tsbus.balancer.steps import DeleteDestination
from tsbus.balancer.table import Address, Destination, Entry, Protocol, Virtual
from tsbus.balancer.table import Service as Virt

C2, C3 = box("c2", "172.17.0.2"), box("c3", "172.17.0.3")


async def test_the_table_follows_containers(tmp_path: Path) -> None:
    """The table has the containers that run at the start, then those that come, and not those that are gone."""
    async with site(tmp_path, KEYS, C2) as one:
        await one.servers(c2=1)
        await one.monitors["n1"].has(C3, "started")
        await one.servers(c2=1, c3=1)
        await one.monitors["n1"].has(C2, "destroyed")
        await one.servers(c3=1)
        (gone,) = await one.until(lambda: one.topics("lb.removed"))
        assert (gone["node"], gone["balancer"], gone["cause"]) == ("n1", "web", "its container is gone")
        assert gone["server"]["ip"] == "172.17.0.2"


async def test_published_ports_of_nodes_below(tmp_path: Path) -> None:
    """A container of a node below takes part at the port that its node publishes; with its link it goes and comes."""
    async with site(tmp_path, KEYS + "\npanic = 1\nhold_s = 5", C2) as one:
        await one.servers(c2=1)
        await one.monitors["n2"].has(box("far", host_port=8080), "started")
        far = "192.168.0.2:8080"
        await one.until(lambda: one.machine.kernel.servers().get(far) == 1)
        one.memory.cut("n1", "n2")
        await one.until(lambda: one.machine.kernel.servers().get(far) == 0)
        await one.until(lambda: far not in one.machine.kernel.servers())
        one.memory.mend("n1", "n2")
        await one.until(lambda: one.machine.kernel.servers().get(far) == 1)


async def test_nothing_changes_before_all_have_told(tmp_path: Path) -> None:
    """While the own monitor has not told, the table stays as the last balancer left it, and commands say why."""
    machine = MemoryMachine()
    async with site(tmp_path, KEYS, C2, machine=machine) as one:
        await one.servers(c2=1)
        await one.stop()
        await one.memory.kill(one.monitors["n1"])
        await one.start()
        await one.advance(3)
        (listed,) = await one.call("lb.ls")
        assert listed["balancers"][0]["state"] == "waiting"
        assert "not known yet" in (await one.call("lb.check"))[0]["problems"][0]["text"]
        assert machine.kernel.servers() == {"172.17.0.2:80": 1}
        one.monitors["n1"].boxes = {C3.id: C3}
        await one.memory.run(one.monitors["n1"], "n1")
        await one.servers(c3=1)


async def test_the_end_in_the_moment_of_an_event(tmp_path: Path) -> None:
    """The service ends when it is told to, also when something happens in the same moment."""
    async with site(tmp_path, KEYS, C2) as one:
        for turns in range(4):
            await one.servers(c2=1)
            one.service.keeper.soon()
            for _ in range(turns):
                await asyncio.sleep(0)
            assert one.task is not None
            one.task.cancel()
            await one.until(one.task.done)
            await one.stop()
            await one.start()


async def test_drain_and_wait(tmp_path: Path) -> None:
    """A drain takes the weight at once and answers, when asked to wait, once the last connection is over."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        one.machine.open["172.17.0.2:80"] = 3
        (told,) = await one.call("lb.drain", {"servers": ["c2"]})
        assert (told["name"], told["balancer"], told["state"]) == ("c2", "web", "draining")
        assert one.machine.kernel.servers() == {"172.17.0.2:80": 0, "172.17.0.3:80": 1}
        await one.advance(1)
        (shown,) = [each for each in (await one.show())["servers"] if each["name"] == "c2"]
        assert (shown["connections"], shown["state"]) == (3, "draining")
        assert "drained by uid:0 at n1" in shown["reason"]
        waiting = asyncio.create_task(one.call("lb.drain", {"servers": ["172.17.0.2:80"], "wait": True}))
        await one.advance(1)
        assert not waiting.done()
        one.machine.open.clear()
        await one.until(waiting.done)
        assert waiting.result()[0]["state"] == "removed"
        await one.servers(c3=1)
        (told,) = await one.call("lb.undrain", {"servers": ["c2"]})
        assert told["state"] == "active"
        await one.servers(c2=1, c3=1)


async def test_a_drain_ends_when_its_connections_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is answered when the kernel has forgotten the server's connections: engines would do it worse."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        begun, forgotten = threading.Event(), threading.Event()

        def finish() -> None:
            if "172.17.0.2:80" not in one.machine.kernel.servers():
                begun.set()
                assert forgotten.wait(LIMIT_S)

        monkeypatch.setattr(one.machine, "finish", finish)
        async with one.caller.request("n1", "lb.drain", {"servers": ["c2"], "wait": True}) as call:
            answer = asyncio.create_task(call.result())
            end = time.monotonic() + LIMIT_S
            # The tree's time goes no faster than the kernel's thread, or the call would be over before it has begun.
            while not await asyncio.to_thread(begun.wait, 0.05):
                assert time.monotonic() < end
                await one.memory.advance(0.05)
            await one.memory.advance(1)
            assert not answer.done()
            forgotten.set()
            await one.until(answer.done)


async def test_a_drain_that_is_taken_back(tmp_path: Path) -> None:
    """Who waits for the end of a drain is told when it is taken back."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        one.machine.open["172.17.0.2:80"] = 1
        waiting = asyncio.create_task(one.call("lb.drain", {"servers": ["c2"], "wait": True}))
        await one.servers(c2=0, c3=1)
        await one.call("lb.undrain", {"servers": ["c2"]})
        await one.until(waiting.done)
        assert waiting.result()[0]["state"] == "active"


async def test_what_is_left_when_the_time_of_a_drain_is_over(tmp_path: Path) -> None:
    """Who waits for the end of a drain is told how many connections its time limit cut off."""
    async with site(tmp_path, KEYS.replace("= 20", "= 2"), C2, C3) as one:
        await one.servers(c2=1, c3=1)
        one.machine.open["172.17.0.2:80"] = 3
        (told,) = await one.call("lb.drain", {"servers": ["c2"], "wait": True})
        assert (told["state"], told["connections"]) == ("removed", 3)
        await one.advance(1)
        assert one.server("c2") == {"state": "removed", "connections": 3}


async def test_undrain_once(tmp_path: Path) -> None:
    """Who takes back a drain for once does not take back what an operator has drained."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        await one.call("lb.drain", {"servers": ["c2"]})
        await one.call("lb.drain", {"servers": ["c2", "c3"], "once": True, "for_s": 60})
        (two, three) = await one.call("lb.undrain", {"servers": ["c2", "c3"], "once": True})
        assert (two["state"], three["state"]) == ("removed", "active")
        await one.servers(c3=1)


async def test_wait(tmp_path: Path) -> None:
    """`lb.wait` answers for each server when it is active and the kernel has it so, also for one that is to come."""
    async with site(tmp_path, KEYS.replace("grace_s = 0", "grace_s = 2"), C2) as one:
        (told,) = await one.call("lb.wait", {"servers": ["c2"]})
        assert (told["name"], told["balancer"], told["state"]) == ("c2", "web", "active")
        waiting = asyncio.create_task(one.call("lb.wait", {"servers": [C3.id, "c2"], "balancers": ["web"]}))
        await one.advance(1)
        assert not waiting.done()
        one.machine.refuse = "no room"
        await one.monitors["n1"].has(replace_struct(C3, started_ns=time.time_ns()), "started")
        await one.until(lambda: one.server("c3").get("state") == "active")
        await one.advance(1)
        assert not waiting.done()
        one.machine.refuse = ""
        await one.until(waiting.done)
        assert [each["name"] for each in waiting.result()] == ["c2", "c3"]
        assert one.machine.kernel.servers() == {"172.17.0.2:80": 1, "172.17.0.3:80": 1}
        assert "there are web" in await one.fails("lb.wait", {"servers": ["c2"], "balancers": ["x"]})


async def test_wait_does_not_count_what_is_drained(tmp_path: Path) -> None:
    """A server that an operator has drained is not active, however long one waits."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        await one.call("lb.drain", {"servers": ["c2"], "wait": True})
        waiting = asyncio.create_task(one.call("lb.wait", {"servers": ["c2"]}))
        await one.advance(3)
        assert not waiting.done()
        await one.call("lb.undrain", {"servers": ["c2"]})
        await one.until(waiting.done)


async def test_a_drain_that_the_kernel_cannot_have(tmp_path: Path) -> None:
    """While a balancer is in the kernel otherwise, no drain in it is said to be done."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        one.machine.lacking = {"wrr"}
        await one.call("lb.sync")
        error = await one.fails("lb.drain", {"servers": ["c2"], "once": True})
        assert error == "it is noted, but not so in the kernel yet: the kernel has no scheduler wrr"
        assert one.machine.kernel.servers() == {"172.17.0.2:80": 1, "172.17.0.3:80": 1}
        one.machine.lacking = set()
        await one.call("lb.sync")
        await one.servers(c3=1)


async def test_a_drain_of_who_may_be_in_the_kernel(tmp_path: Path) -> None:
    """After a restart, a container whose node has not told yet may be what the kernel has: it is not passed over."""
    far = box("far", host_port=8080)
    machine = MemoryMachine()
    async with site(tmp_path, KEYS, C2, machine=machine) as one:
        await one.servers(c2=1)
        await one.monitors["n2"].has(far, "started")
        await one.until(lambda: machine.kernel.servers().get("192.168.0.2:8080") == 1)
        await one.stop()
        await one.memory.kill(one.monitors["n2"])
        await one.start()
        await one.until(lambda: one.service.keeper.standing.reports and one.server("c2"))
        error = await one.fails("lb.drain", {"servers": [far.id], "if_here": True})
        assert "may be 192.168.0.2:8080: its node has not told yet" in error
        assert await one.call("lb.drain", {"servers": [C2.id], "if_here": True})
        assert await one.call("lb.undrain", {"servers": [far.id], "if_here": True}) == []


async def test_drain_outlives_the_balancer(tmp_path: Path) -> None:
    """What operators have set is in the state file and holds after a restart; a drain for a time ends."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        await one.call("lb.drain", {"servers": ["c2"]})
        await one.call("lb.weight", {"servers": ["c3"], "weight": 7})
        await one.servers(c3=7)
        await one.stop()
        await one.start()
        await one.advance(1)
        await one.servers(c3=7)
        assert [each["name"] for each in (await one.show())["servers"] if each["state"] == "removed"] == ["c2"]
        await one.call("lb.weight", {"servers": ["c3"], "weight": None})
        await one.servers(c3=1)
        await one.call("lb.undrain", {"servers": ["c2"]})
        await one.servers(c2=1, c3=1)
        await one.call("lb.drain", {"servers": ["c2"], "for_s": 0.2})
        await one.servers(c2=1, c3=1)


async def test_once_ends_with_the_run(tmp_path: Path) -> None:
    """A drain for once is over when its container was started again."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        await one.call("lb.drain", {"servers": ["c2"], "once": True, "wait": True})
        await one.servers(c3=1)
        await one.monitors["n1"].has(replace_struct(C2, state="exited", endpoints=(), networks={}), "died")
        await one.monitors["n1"].has(replace_struct(C2, started_ns=time.time_ns() + 10**9), "started")
        await one.servers(c2=1, c3=1)
        assert statefile.load(tmp_path / statefile.NAME) == State(frozenset({VIP}), (), host=True)


async def test_a_drained_node(tmp_path: Path) -> None:
    """A drained node drains all on it, also what comes later, and a container of it is not undrained by itself."""
    async with site(tmp_path, KEYS, C2) as one:
        await one.servers(c2=1)
        await one.call("lb.drain", {"servers": ["n1"]})
        await one.servers()
        await one.monitors["n1"].has(C3, "started")
        await one.advance(1)
        await one.servers()
        assert "undrain n1" in await one.fails("lb.undrain", {"servers": ["c3"]})
        await one.call("lb.undrain", {"servers": ["n1"]})
        await one.servers(c2=1, c3=1)


async def test_names_that_fit_nothing(tmp_path: Path) -> None:
    """A server or balancer that is not there is an error that says what is there, or passed over with if_here."""
    async with site(tmp_path, KEYS, C2) as one:
        await one.servers(c2=1)
        assert await one.fails("lb.drain", {"servers": ["x"]}) == "no server 'x' in these balancers; there are c2"
        assert "there are web" in await one.fails("lb.show", {"balancers": ["x"]})
        assert "not understood" in await one.fails("lb.drain", {"server": ["c2"]})
        assert "not understood" in await one.fails("lb.weight", {"servers": ["c2"], "weight": 65536})
        assert await one.call("lb.drain", {"servers": ["x"], "if_here": True, "wait": True}) == []
        elsewhere = {"servers": ["c2"], "balancers": ["x"], "if_here": True}
        assert await one.call("lb.drain", elsewhere) == []
        assert one.service.keeper.facts.overrides == ()
        assert one.machine.kernel.servers() == {"172.17.0.2:80": 1}


async def test_show_some_servers(tmp_path: Path) -> None:
    """`lb.show` tells of some servers only, when they are named; of who is left out, too."""
    hidden = box("c4", "", networks={}, endpoints=())
    async with site(tmp_path, KEYS, C2, C3, hidden) as one:
        await one.servers(c2=1, c3=1)
        (told,) = await one.call("lb.show", {"servers": [C2.id, "c4", "no"]})
        assert [each["name"] for each in told["servers"]] == ["c2"]
        assert [each["name"] for each in told["left_out"]] == ["c4"]
        (told,) = await one.call("lb.show", {"servers": ["172.17.0.3:80"]})
        assert [each["name"] for each in told["servers"]] == ["c3"]
        assert "left_out" not in told


async def test_roles(tmp_path: Path) -> None:
    """Who may observe can look at everything and change nothing."""
    async with site(tmp_path, KEYS, C2) as one:
        await one.servers(c2=1)
        watcher = await one.memory.connect("n1", uid=7, role=Role.OBSERVE)
        for command in ("lb.ls", "lb.show", "lb.stats", "lb.capacity", "lb.check", "lb.cost"):
            assert await one.call(command, by=watcher)
        for command in ("lb.drain", "lb.undrain", "lb.weight"):
            assert "operate" in await one.fails(command, {"servers": ["c2"], "weight": 0}, by=watcher)
        assert "operate" in await one.fails("lb.sync", by=watcher)


async def test_drift_is_mended(tmp_path: Path) -> None:
    """What somebody else changes in our service is mended at the next comparison and told; what is foreign stays."""
    foreign = Virtual(Protocol.TCP, ip_address("10.0.0.9"), 80)
    async with site(tmp_path, KEYS, C2) as one:
        await one.servers(c2=1)
        table = one.machine.kernel.table
        address = Address(ip_address("172.17.0.2"), 80)
        table[VIP].destinations[address] = Destination(address, 9)
        table[VIP] = Entry(replace(table[VIP].service, owned=False), table[VIP].destinations)
        table[foreign] = Entry(Virt(foreign), {})
        (synced,) = await one.call("lb.sync")
        assert "set 172.17.0.2:80 of tcp 10.0.0.1:80, weight 1" in synced["steps"]
        assert one.machine.kernel.servers() == {"172.17.0.2:80": 1}
        assert table[VIP].service.owned
        assert foreign in table
        (repaired,) = await one.until(lambda: one.topics("lb.repaired"))
        assert repaired["steps"] == synced["steps"]
        del table[VIP]
        await one.advance(31)
        await one.servers(c2=1)


async def test_clash(tmp_path: Path) -> None:
    """A foreign service at our address is not touched and told as a clash, until it is gone."""
    machine = MemoryMachine()
    machine.kernel.table[VIP] = Entry(Virt(VIP, "sh"), {})
    async with site(tmp_path, KEYS, C2, machine=machine) as one:
        (problem,) = await one.until(lambda: one.topics("lb.problem"))
        assert "made by somebody else" in problem["text"]
        assert "adopt = true" in problem["mend"]
        assert (await one.show())["state"] == "clash"
        assert machine.kernel.table[VIP].service.scheduler == "sh"
        del machine.kernel.table[VIP]
        await one.call("lb.sync")
        await one.servers(c2=1)
        assert await one.until(lambda: one.topics("lb.solved"))
        assert await one.call("lb.check") == [{"problems": []}]


async def test_check(tmp_path: Path) -> None:
    """The check says what is wrong of an image that nobody runs, of a published port and of a kernel, with the mend."""
    async with site(tmp_path, KEYS, start=False) as one:
        one.unusable = "this kernel has no IPVS"
        await one.start()
        await one.until(lambda: one.topics("lb.problem"))
        assert (await one.call("lb.check"))[0]["problems"] == [{"text": "this kernel has no IPVS", "mend": "load it"}]
        one.unusable = ""
        await one.until(lambda: one.topics("lb.empty"))
        (empty,) = (await one.call("lb.check"))[0]["problems"]
        assert (empty["text"], empty["mend"]) == ("no server can take connections", "start one")
        await one.monitors["n1"].has(box("c2", "172.17.0.2", host_port=80), "started")
        await one.servers(c2=1)
        (published,) = (await one.call("lb.check"))[0]["problems"]
        assert published["text"] == "container c2 publishes this port, so Docker takes the packets to tcp 10.0.0.1:80"
        assert published["mend"] == "publish another port of c2, or give web another address"


async def test_the_file_is_written_before_the_service(tmp_path: Path) -> None:
    """Without a state file that can be written no service is made; as soon as there is room, it is."""
    folder = tmp_path / "later"
    async with site(folder, KEYS, C2) as one:
        (problem,) = await one.until(lambda: one.topics("lb.problem"))
        assert "cannot be written" in problem["text"]
        assert VIP not in one.machine.kernel.table
        assert "cannot be written" in await one.fails("lb.drain", {"servers": ["c2"]})
        folder.mkdir()
        await one.servers(c2=1)
        held = json.loads((folder / statefile.NAME).read_text())["services"]
        assert held == [{"protocol": "tcp", "ip": "10.0.0.1", "port": 80}]


async def test_refusals(tmp_path: Path) -> None:
    """A step that the kernel refuses, and a scheduler that it lacks, are problems, and tried again."""
    machine = MemoryMachine()
    machine.refuse = "no room"
    async with site(tmp_path, KEYS, C2, machine=machine) as one:
        (problem,) = await one.until(lambda: one.topics("lb.problem"))
        assert (problem["balancer"], problem["text"]) == ("web", "no room")
        machine.refuse = ""
        await one.servers(c2=1)
        machine.lacking = {"wrr"}
        await one.call("lb.sync")
        await one.until(lambda: "scheduler wrr" in one.topics("lb.problem")[-1]["text"])
        assert machine.kernel.servers() == {"172.17.0.2:80": 1}


async def test_a_kernel_that_fails(tmp_path: Path) -> None:
    """Without a usable kernel the commands say so; when it can be used, the table is made."""
    async with site(tmp_path, KEYS, C2, start=False) as one:
        one.unusable = "this kernel has no IPVS"
        await one.start()
        (problem,) = await one.until(lambda: one.topics("lb.problem"))
        assert (problem["text"], problem["mend"]) == ("this kernel has no IPVS", "load it")
        assert "no IPVS" in await one.fails("lb.drain", {"servers": ["c2"]})
        assert (await one.call("lb.ls"))[0]["balancers"][0]["state"] == "waiting"
        one.unusable = ""
        await one.servers(c2=1)
        one.machine.broken = True
        await one.monitors["n1"].has(C3, "started")
        await one.until(lambda: "out of order" in one.topics("lb.problem")[-1]["text"])
        one.machine.broken = False
        await one.servers(c2=1, c3=1)


async def test_stats(tmp_path: Path) -> None:
    """`lb.stats` has what the kernel counts, with the names of the servers; `lb.watch` repeats it."""
    async with site(tmp_path, KEYS, C2) as one:
        await one.servers(c2=1)
        (told,) = await one.call("lb.stats")
        assert (told["name"], told["servers"][0]["name"], told["weight"]) == ("web", "c2", 1)
        async with one.caller.request("n1", "lb.watch", {"every_s": 0.5}) as call:
            pieces = []
            task = asyncio.create_task(_some(call, 3, pieces))
            await one.until(task.done)
        assert [each["name"] for each in pieces] == ["web"] * 3


async def _some(call: Any, number: int, pieces: list[Any]) -> None:
    async for reply in call:
        pieces.append(reply.value())
        if len(pieces) == number:
            return


async def test_capacity_of_a_child(tmp_path: Path) -> None:
    """A child's own balancer weighs what is alive behind it, as it tells; nothing alive takes it out."""
    child = '[servers.n2.balancers.own]\naddress = "192.168.0.2:80"\n'
    alive = {"value": 3.0}
    lb = Worker("lb")

    def body() -> dict[str, Any]:
        own = {"addresses": ["192.168.0.2:80"], "protocol": "tcp", "capacity": alive["value"]}
        return {"node": "n2", "balancers": {"own": own}}

    lb.command("capacity", role="observe")(lambda _: body())
    async with site(tmp_path, "servers = {n2 = 80}", start=False, child=child) as one:
        await one.memory.run(lb, "n2")
        await one.start()
        far = "192.168.0.2:80"
        await one.until(lambda: VIP in one.machine.kernel.table and one.machine.kernel.servers() == {far: 3})
        assert (await one.call("lb.capacity"))[0]["balancers"]["web"]["capacity"] == 3
        alive["value"] = 0.0
        await lb.publish("lb.capacity", body())
        await one.until(lambda: one.machine.kernel.servers() == {far: 0})
        told = await one.until(lambda: [each for each in one.topics("lb.capacity") if each["node"] == "n1"][1:])
        assert told[0]["balancers"]["web"]["capacity"] == 0


async def test_no_monitor_below(tmp_path: Path) -> None:
    """A node below without a monitor holds nothing up, and can be a server."""
    async with site(tmp_path, "servers = {n2 = 8080}", monitors=("n1",)) as one:
        far = "192.168.0.2:8080"
        await one.until(lambda: VIP in one.machine.kernel.table and one.machine.kernel.servers() == {far: 1})
        one.memory.cut("n1", "n2")
        await one.until(lambda: one.topics("lb.panic"))
        one.memory.mend("n1", "n2")
        await one.until(lambda: one.topics("lb.calm"))


async def test_an_order_that_the_kernel_refuses(tmp_path: Path) -> None:
    """Who drains is told when the kernel does not take it, and it is done as soon as it does."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        one.machine.refuse = "out of order"
        assert "not so in the kernel yet: out of order" in await one.fails(
            "lb.drain", {"servers": ["c2"], "wait": True}
        )
        one.machine.refuse = ""
        await one.servers(c3=1)


async def test_what_the_kernel_refuses_is_not_told(tmp_path: Path) -> None:
    """A change that the kernel does not take is a problem and no event of a server, nor capacity, until it takes it."""
    machine = MemoryMachine()
    machine.refuse = "no room"
    async with site(tmp_path, KEYS, C2, machine=machine) as one:
        (problem,) = await one.until(lambda: one.topics("lb.problem"))
        assert problem["text"] == "no room"
        assert [each.topic for each in one.events] == ["lb.capacity", "lb.problem"]
        assert one.topics("lb.capacity")[0]["balancers"]["web"]["capacity"] == 0
        await one.monitors["n1"].has(C3, "started")
        await one.advance(1)
        await one.monitors["n1"].has(C3, "destroyed")
        await one.advance(1)
        machine.refuse = ""
        await one.until(lambda: one.topics("lb.solved"))
        assert [each["server"]["name"] for each in one.topics("lb.active")] == ["c2"]
        assert one.topics("lb.capacity")[-1]["balancers"]["web"]["capacity"] == 1
        one.events.clear()
        machine.broken = True
        await one.monitors["n1"].has(replace_struct(C2, state="paused"), "paused")
        await one.until(lambda: one.topics("lb.problem"))
        machine.broken = False
        await one.until(lambda: one.topics("lb.solved"))
        assert [each.topic for each in one.events] == ["lb.capacity", "lb.problem", "lb.out", "lb.empty", "lb.solved"]


async def test_the_last_balancer_goes(tmp_path: Path) -> None:
    """A node that has no balancers any more takes its services out of the kernel, and then its state file away."""
    async with site(tmp_path, KEYS, C2) as one:
        await one.servers(c2=1)
        await one.stop()
        servers = {**one.config.servers, "n1": replace(one.config.servers["n1"], balancers={})}
        one.config = replace(one.config, servers=servers)
        await one.start()
        await one.until(lambda: not one.machine.kernel.table)
        await one.until(lambda: not (tmp_path / statefile.NAME).exists())


async def test_a_restart_tells_nothing_twice(tmp_path: Path) -> None:
    """A balancer that starts over the table that it left takes no step and tells its capacity once, nothing else."""
    boxes = [box(f"c{number}", f"172.17.0.{number}") for number in range(2, 52)]
    async with site(tmp_path, KEYS + '\nweights = "cpu"', *boxes) as one:
        await one.servers(**{each.name: 100 for each in boxes})
        await one.until(lambda: one.topics("lb.capacity"))
        await one.stop()
        one.events.clear()
        await one.start()
        await one.until(lambda: one.service.keeper.standing.reports)
        assert await one.call("lb.sync") == [{"steps": []}]
        await one.advance(12)
        await one.servers(**{each.name: 100 for each in boxes})
        assert [each.topic for each in one.events] == ["lb.capacity"]


@pytest.mark.parametrize("moments", range(4))
async def test_a_stop_is_heard(tmp_path: Path, moments: int) -> None:
    """A keeper that is told to end while a turn becomes due ends, whichever comes first."""
    keeper = Keeper(tree(KEYS).with_current("n1"), "n1", tmp_path, MemoryMachine, lambda *_: None)
    task = asyncio.create_task(keeper.run())
    while not keeper.standing.reports:
        await keeper.in_thread(lambda: None)
    await keeper.turn()
    await keeper.in_thread(lambda: None)
    keeper.soon()
    for _ in range(moments):
        await asyncio.sleep(0)
    task.cancel()
    assert (await asyncio.wait({task}, timeout=LIMIT_S))[0] == {task}


async def test_another_treescale_on_this_kernel(tmp_path: Path) -> None:
    """Without a state file, a service with our mark that the configuration does not name is left alone."""
    machine = MemoryMachine()
    other = Virtual(Protocol.TCP, ip_address("10.0.0.9"), 80)
    machine.kernel.table[other] = Entry(Virt(other, owned=True), {})
    machine.kernel.table[VIP] = Entry(Virt(VIP, owned=True), {})
    async with site(tmp_path, KEYS, C2, machine=machine) as one:
        await one.servers(c2=1)
        assert other in machine.kernel.table


async def test_cost(tmp_path: Path) -> None:
    """`lb.cost` counts what was done and tells what it took; a change by somebody else counts as repaired."""
    async with site(tmp_path, KEYS, C2, C3) as one:
        await one.servers(c2=1, c3=1)
        (before,) = await one.call("lb.cost")
        assert (before["steps"], before["compares"]) == (3, 1)
        assert before["cpu_s"] > 0
        assert before["rss_bytes"] > 10 << 20
        one.machine.kernel.apply(DeleteDestination(VIP, Address(ip_address("172.17.0.2"), 80)))
        await one.call("lb.sync")
        one.machine.refuse = "no room"
        await one.fails("lb.drain", {"servers": ["c2"]})
        (after,) = await one.call("lb.cost")
        grown = {
            name: after.get(name, 0) - before.get(name, 0) for name in ("steps", "repairs", "refusals", "compares")
        }
        assert grown == {"steps": 1, "repairs": 1, "refusals": 1, "compares": 1}
        assert after["turns"] > before["turns"]
        assert after["published"] > before["published"]


async def test_weights_that_follow_the_cpu(tmp_path: Path) -> None:
    """With weights = "cpu" a busy container gets less, as its node's statistics say."""
    async with site(tmp_path, KEYS + '\nweights = "cpu"', C2, C3) as one:
        await one.servers(c2=100, c3=100)
        samples = {C2.id[:12]: {"cpu": 80.0}, C3.id[:12]: {"cpu": 5.0}}
        body = {"node": "n1", "time_ms": 1, "full": True, "samples": samples}
        await one.advance(6)
        await one.monitors["n1"].client.publish("containers.stats.n1", body)
        await one.servers(c2=50, c3=100)


async def test_weights_that_follow_the_cpu_of_nodes(tmp_path: Path) -> None:
    """With weights = "cpu" a node of `servers` weighs what is free of its CPU; one that does not tell, 100."""
    async with site(tmp_path, 'servers = {n2 = 80, n3 = 80}\nweights = "cpu"') as one:
        both = {"192.168.0.2:80": 100, "192.168.0.3:80": 100}
        await one.until(lambda: VIP in one.machine.kernel.table and one.machine.kernel.servers() == both)
        body = {"node": "n2", "time_ms": 1, "samples": {}, "cpu": 140.0, "cpus": 2}
        await one.advance(6)
        await one.monitors["n2"].client.publish("containers.stats.n2", body)
        await one.until(lambda: one.machine.kernel.servers() == both | {"192.168.0.2:80": 50})
        (told,) = await one.until(lambda: one.topics("lb.weight"))
        assert (told["server"]["name"], told["server"]["weight"]) == ("n2", 50)


async def test_servers_with_a_host_name(tmp_path: Path) -> None:
    """A node that the configuration gives a host name is a server at the address of that name."""
    async with site(tmp_path, "servers = {n2 = 8080}", start=False) as one:
        servers = {**one.config.servers, "n2": replace(one.config.servers["n2"], ip="localhost")}
        one.config = replace(one.config, servers=servers)
        await one.start()
        await one.until(lambda: VIP in one.machine.kernel.table and "127.0.0.1:8080" in one.machine.kernel.servers())
