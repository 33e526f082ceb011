"""The fourteen traps of libzmq, P1 to P14 in docs/decisions/libzmq-traps.md: none of them catches our routers."""

import asyncio
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import zmq
from raw import RawWorker
from tree import HOST, QUICK, ROUTER, Cutter, Grow, bodies, until
from waiting import LIMIT_S
from zmq.utils.monitor import recv_monitor_message

from tsbus import Request, Worker
from tsbus.config import Operator
from tsbus.core import message as wire
from tsbus.core.message import MAX_FRAME, Type
from tsbus.core.roles import Role
from tsbus.transport import new_keypair
from tsbus.transport.dial import REDIAL_MS
from tsbus.transport.options import new_socket

ALONE = replace(QUICK, adopt_after_s=600.0)


def recorder(runs: list[Any]) -> Worker:
    worker = Worker("note")

    @worker.command("down", role="observe")
    def down(call: Request) -> None:
        runs.append(call.json())

    return worker


async def test_p1_late_program_and_reconnect() -> None:
    """P1: a peer with a fixed id that reconnects while the ROUTER's program is late is never heard again."""
    server, client = (new_socket(zmq.Context.instance(), kind) for kind in (zmq.ROUTER, zmq.DEALER))
    port = server.bind_to_random_port(f"tcp://{HOST}")
    cutter = Cutter(port)
    await cutter.mend()
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    client.connect(f"tcp://{HOST}:{cutter.port}")
    await until("the first connection", lambda: monitor.poll(0) and monitor.recv_multipart())
    client.send(b"first")
    await until("the first message", lambda: server.poll(0))  # and the program does not come to read it
    cutter.reset()
    await until("the second connection", lambda: monitor.poll(0) and monitor.recv_multipart())
    client.send(b"second")
    heard: list[bytes] = []

    def second_came() -> bool:
        while server.poll(0):
            heard.append(server.recv_multipart()[1])
        return b"second" in heard

    await until("the second message", second_came)
    cutter.close()
    client.disable_monitor()
    client.close()
    server.close()


async def test_p2_nobody_takes_over_a_connection(grow: Grow) -> None:
    """P2: with handover, whoever has any valid key takes another's id and receives its commands."""
    tree = await grow("a")
    with RawWorker(tree.bus("a"), routing_id=b"me") as first, RawWorker(tree.bus("a"), routing_id=b"me") as thief:
        await first.hello()
        thief.local(Type.HELLO, wire.WorkerHello(versions=(1, 1), name="thief", incarnation=1, window=1))
        for call in range(50):
            first.request("a", "router.ping", call)
        await first.wait(Type.DONE, 50)
        assert not thief.of(Type.DONE)


async def test_p2_one_key_twice(grow: Grow) -> None:
    """P2: two connections with one key are two peers, each with its own session and answers."""
    public, secret = new_keypair()
    tree = await grow("a:b", operators={"eve": Operator("eve", public, Role.OBSERVE)})
    keys = tree.keys("b", secret)
    with RawWorker(tree.address("b"), keys) as one, RawWorker(tree.address("b"), keys) as two:
        await one.hello()
        await two.hello()
        assert one.welcome.handle != two.welcome.handle
        two.request("b", "router.ping", 1)
        await two.wait(Type.DONE)
        await one.settled()
        assert not one.of(Type.DONE)


async def test_p3_connection_is_an_epoch(grow: Grow) -> None:
    """P3: with a fixed id nobody can tell a new connection from the old; ours begins a new epoch every time."""
    tree = await grow("a:b", cut=("b",), bus=ALONE)
    first = (await tree.status("a"))["b"]
    tree.cutters["b"].reset()

    async def again() -> dict[str, Any] | None:
        entry = (await tree.status("a"))["b"]
        return entry if entry["state"] == "up" and entry["epoch"] != first["epoch"] else None

    second = await until("a new epoch", again)
    assert second["epoch"] > first["epoch"]
    assert second["incarnation"] == first["incarnation"]


async def test_p4_nothing_waits_for_the_next_incarnation(grow: Grow) -> None:
    """P4: a DEALER without IMMEDIATE keeps commands for a dead peer and delivers them to its successor."""
    tree = await grow("a:b", bus=ALONE)
    runs: list[int] = []
    await tree.run(recorder(runs), "b")
    client = await tree.connect("a")
    assert (await client.call("b", "note.down", 0)).ok == {"b"}
    tree.kill("b")
    results = await asyncio.gather(*(client.call("b", "note.down", number) for number in range(1, 30)))
    assert all(result.unreachable == {"b"} for result in results)
    tree.start("b")
    await tree.whole()
    await until("the worker is back", lambda: answered(client))
    assert [number for number in runs if number not in (0, 99)] == []


async def answered(client: Any) -> bool:
    return bool((await client.call("b", "note.down", 99)).complete)


async def test_p5_reconnects_are_spread(grow: Grow) -> None:
    """P5: with RECONNECT_IVL_MAX set there is no jitter, so all who lost one router come back in the same moment."""
    tree = await grow("a:b", bus=ALONE)
    tree.kill("b")
    times: list[float] = []

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        writer.close()

    server = tree.config.servers["b"]
    listener = await asyncio.start_server(refuse, server.ip, server.service_port)
    await until("six tries", lambda: len(times) >= 6)
    listener.close()
    pauses = [after - before for before, after in pairwise(times)]
    assert min(pauses) > REDIAL_MS[0] / 1000 * 0.5
    assert max(pauses) - min(pauses) > 0.02
    tree.start("b")
    await tree.whole()


async def test_p6_refused_key_is_tried_again(grow: Grow) -> None:
    """P6: after a refused key libzmq never tries again, so a key that is rolled out late needs a restart."""
    tree = await grow("a:b", bus=ALONE)
    tree.kill("b")
    right = tree.config
    other, _ = new_keypair()
    tree.config = replace(right, servers=right.servers | {"a": replace(right.servers["a"], public_key=other)})
    tree.start("b")
    await until("a is refused", lambda: "dial.refused" in tree.log("a"))
    tree.kill("b")
    tree.config = right
    tree.start("b")
    await tree.whole()


async def test_p7_messages_of_several_parts(grow: Grow) -> None:
    """P7: a message whose peer dies between two parts is reported as sent; ours have one, and others are malformed."""
    tree = await grow("a")
    with RawWorker(tree.bus("a")) as worker:
        await worker.hello()
        subscribe = wire.encode_frame(wire.local(Type.SUBSCRIBE, wire.Subscribe(">")))
        worker.socket.send_multipart([subscribe, subscribe])
        await worker.settled()
        assert (await worker.counters())["malformed"] == 1
        assert (await tree.ask("a", "router.stats"))["subscriptions"] == 0


async def test_p8_the_right_worker_is_gone(grow: Grow) -> None:
    """P8: the monitor tells a descriptor and no routing id, so nobody knows which of a ROUTER's peers has gone."""
    tree = await grow("a")
    heard = await tree.collect("a", "worker.left")
    workers = [await RawWorker(tree.bus("a")).hello(f"w{number}") for number in range(20)]
    server, caller = workers[7], workers[13]
    server.local(Type.SERVE, wire.Serve("svc", {"run": 1}))
    await server.settled()
    caller.request("a", "svc.run", 1, budget_ms=600_000)
    await server.wait(Type.REQUEST)
    server.close()
    await caller.wait(Type.DONE)  # long before its budget is over
    assert b"w7 ended" in caller.of(Type.REPLY)[0].body
    await until("worker.left", lambda: heard)
    assert [body["name"] for body in bodies(heard)] == ["w7"]
    for worker in workers:
        worker.close()


async def test_p9_who_is_cut_is_not_heard(grow: Grow) -> None:
    """P9: a single peer cannot be disconnected from a ROUTER; ours does not hear it until it connects anew."""
    tree = await grow("a")
    heard = await tree.collect("a", "x")
    with RawWorker(tree.bus("a")) as worker, RawWorker(tree.bus("a")) as other:
        await worker.hello()
        await other.hello()
        for _ in range(100):
            worker.socket.send(b"nonsense")
        assert (await worker.wait(Type.BYE)).map()["reason"] == "malformed"
        worker.say(Type.EVENT, "*", "x", wire.EventMeta(1, 1), b"from the dead")
        worker.local(Type.PING, meta=wire.PingMeta(1, 1))
        other.say(Type.EVENT, "*", "x", wire.EventMeta(1, 1), b"from the living")
        await until("an event", lambda: heard)
        await other.settled()
        assert [event.body for event in heard] == [b"from the living"]
        assert not worker.of(Type.PONG)


async def test_p10_no_key_no_port(grow: Grow) -> None:
    """P10: CURVE without a ZAP handler lets any client in that knows the server's key; see also test_security."""
    tree = await grow("a:b")
    argv = tree.argv("b")
    place = argv.index("--key")
    tree.kill("b")
    result = subprocess.run([*argv[:place], *argv[place + 2 :]], capture_output=True, text=True, timeout=LIMIT_S)
    assert result.returncode == 2
    assert "secret key" in result.stderr
    tree.start("b")
    await tree.whole()


async def test_p11_bytes_are_bounded_not_messages(grow: Grow) -> None:
    """P11: high-water marks count messages, so a slow reader of large ones costs gigabytes."""
    tree = await grow("a", bus=replace(ALONE, queue_bytes=4 << 20))
    publisher = await tree.connect("a")
    with RawWorker(tree.bus("a")) as sleeper:
        await sleeper.hello(window=1 << 40)
        sleeper.local(Type.SUBSCRIBE, wire.Subscribe("big"))
        await sleeper.settled()
        before = tree.rss_kib("a")
        for _ in range(150):
            await publisher.publish("big", b"x" * 1_000_000)
        await publisher.flush()
        assert tree.rss_kib("a") - before < 40_000


async def test_p12_order_over_changing_paths(grow: Grow) -> None:
    """P12: order holds for one path only; what comes late by the old one must not be taken for new."""
    tree = await grow("a:b c;b:d")
    heard = await tree.collect("c", "tick")
    client = await tree.connect("d")
    stop = asyncio.Event()

    async def publish() -> None:
        while not stop.is_set():
            await client.publish("tick")
            await asyncio.sleep(0.001)

    publishing = asyncio.create_task(publish())
    await until("events", lambda: len(heard) > 20)
    tree.kill("b")
    await tree.wait_seen("c", {"a", "c", "d"})
    count = len(heard)
    await until("events by the other way", lambda: len(heard) > count + 20)
    tree.start("b")
    await tree.whole()
    count = len(heard)
    await until("events by the old way", lambda: len(heard) > count + 20)
    stop.set()
    await publishing
    numbers = [event.seq for event in heard]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(("immediate", "heard"), [(0, [b"answer", b"bye"]), (1, [])])
def test_p12_what_is_unread_goes_with_the_connection(immediate: int, heard: list[bytes]) -> None:
    """P12: with IMMEDIATE, the end of a connection takes along what came over it and was not read."""
    server, client = (new_socket(zmq.Context.instance(), kind) for kind in (zmq.ROUTER, zmq.DEALER))
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECT_RETRIED)
    client.setsockopt(zmq.IMMEDIATE, immediate)
    client.connect(f"tcp://{HOST}:{server.bind_to_random_port(f'tcp://{HOST}')}")
    assert monitor.poll(LIMIT_S * 1000)
    assert recv_monitor_message(monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
    client.send(b"question")
    assert server.poll(LIMIT_S * 1000)
    identity, _ = server.recv_multipart()
    for word in (b"answer", b"bye"):
        server.send_multipart([identity, word])
    server.close(linger=int(LIMIT_S * 1000))
    assert monitor.poll(LIMIT_S * 1000)
    # DISCONNECTED comes shortly before the loss
    assert recv_monitor_message(monitor)["event"] == zmq.EVENT_CONNECT_RETRIED
    read = []
    while client.poll(0):
        read.append(client.recv())
    assert read == heard
    client.disable_monitor()
    monitor.close()
    client.close()


async def test_p13_too_large_a_message(grow: Grow) -> None:
    """P13: a message over MAXMSGSIZE is not answered, the connection just ends; the others do not notice."""
    tree = await grow("a")
    heard = await tree.collect("a", "worker.left")
    with RawWorker(tree.bus("a")) as worker, RawWorker(tree.bus("a")) as other:
        await worker.hello("big")
        await other.hello("other")
        worker.socket.send(b"x" * (MAX_FRAME + 1))
        await until("worker.left", lambda: heard)
        assert [body["name"] for body in bodies(heard)] == ["big"]
        await other.settled()


async def test_p13_a_router_ends_although_messages_wait(grow: Grow) -> None:
    """P13: with the default LINGER a process does not exit while messages for a dead peer wait."""
    tree = await grow("a:b", bus=replace(ALONE, heartbeat_timeout_ms=round(LIMIT_S) * 1000))
    events = await tree.collect("b", "bulk")
    client = await tree.connect("a")
    async with client.interest("bulk") as interest:
        await until("interest", lambda: interest.wanted)
    tree.signal(signal.SIGSTOP, "b")
    for _ in range(100):
        await client.publish("bulk", b"x" * 50_000)
    await client.flush()
    process = tree.processes.pop("a")
    process.terminate()
    assert process.wait(LIMIT_S / 2) == 0  # the link's own end comes later
    assert not events
    tree.signal(signal.SIGCONT, "b")
    tree.start("a")
    await tree.whole()


async def test_p13_no_edge_is_missed(grow: Grow) -> None:
    """P13: the descriptor tells an edge only once; bursts in both directions at once leave nothing lying."""
    tree = await grow("a:b", bus=ALONE)
    client, other = await tree.connect("a"), await tree.connect("b")
    for _ in range(20):
        calls = [one.call("*", "router.ping", timeout_s=LIMIT_S) for one in (client, other) for _ in range(25)]
        assert all(result.complete for result in await asyncio.gather(*calls))


LATE = """
import zmq
from tsbus.transport.options import beat, new_socket
from zmq.utils.monitor import recv_monitor_message
server, peer = (new_socket(zmq.Context.instance(), kind) for kind in (zmq.ROUTER, zmq.DEALER))
beat(server, 50, 60_000)
monitor = server.get_monitor_socket(zmq.EVENT_DISCONNECTED)
peer.connect(f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}")
for _ in range(5000):
    peer.send(b"")
peer.close(linger=-1)
event = None
while event != zmq.EVENT_DISCONNECTED:
    assert monitor.poll(LIMIT_MS), "it has not left"
    event = recv_monitor_message(monitor)["event"]
count = 0
while server.poll(0):
    server.recv_multipart()
    count += 1
print(count)
"""
"""A program that comes to read only when the peer that has sent much is gone."""


def test_p14_a_heartbeat_at_a_full_pipe() -> None:
    """P14: where a pipe is full when its peer leaves, the next heartbeat aborts the process."""
    code = LATE.replace("LIMIT_MS", str(round(LIMIT_S * 1000)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROUTER.parents[1]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 256
