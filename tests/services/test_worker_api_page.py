"""The examples of docs/worker-api.md do what the page says."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT_S, wait

import tsbus
from tsbus import Worker
from tsbus.config import Balancer
from tsbus.records import Container, EngineFacts, Image, SnapshotHead
from tsbus.testing import MemoryTree

PAGE = Path(__file__).parents[2] / "docs/worker-api.md"
WORKER, CLIENT, MIRROR, DRAINING, BLOCKING, TESTING = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def page_worker() -> Worker:
    """Return the worker of the page, made anew."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(WORKER, str(PAGE), "exec"), names)  # noqa: S102
    worker: Worker = names["worker"]
    return worker


async def test_worker_and_client(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The client's example runs to its end against the worker's, and prints what the page claims."""
    async with MemoryTree({"root": ["a", "b"], "a": [], "b": []}, tags={"web": ["a", "b"]}) as tree:
        await tree.run(page_worker(), "b")
        client = await tree.connect("b")
        monkeypatch.setattr(tsbus, "connect", lambda: client)
        code = compile(CLIENT, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(code, {})  # noqa: S307
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "b uid:0 ADMIN",
        "['b'] ['a', 'root']",
        "{'b': {'greeting': 'hello you from b'}}",
        "frozenset({'b'})",
        "b 0",
        " False OK",
        "b 1",
        " False OK",
        "b 2",
        " False OK",
        "b  True OK",
        "{'b': {'bytes': 1000000}}",
        lines[-1],
    ]
    assert lines[-1].startswith("greeter.saw b uid:0 {'topic': 'container.died', 'from': 'b'}")


async def test_draining(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of draining stops nothing while a balancer does not answer, and all once they have drained."""
    front = Container(id="1" * 64, name="front", image=Image(given="nginx:1"), state="running")
    containers, lb, done = Worker("containers"), Worker("lb"), list[str]()

    @containers.command("snapshot")
    async def snapshot(call: Any) -> Any:
        await call.send(
            SnapshotHead(node=call.node, epoch=1, seq=1, engine=EngineFacts(node=call.node, up=True), count=1)
        )
        return [front]

    @containers.command("stop")
    def stop(call: Any) -> None:
        done.append(f"stop {call.json()['containers'][0][:4]}")

    @lb.command("drain")
    def drain(call: Any) -> Any:
        waits = call.json().get("wait", False)
        done.append("wait" if waits else "drain")
        return {"id": front.id, "name": "front", "balancer": "web", "state": "removed" if waits else "draining"}

    lb.command("undrain")(lambda _: None)
    memory = MemoryTree({"root": ["a"]})
    balancer = Balancer("web", "127.0.0.1:80")
    root = replace(memory.config.servers["root"], balancers={"web": balancer})
    memory.config = replace(memory.config, servers=memory.config.servers | {"root": root})
    async with memory as tree:
        await tree.run(containers, "a")
        code = compile(DRAINING, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for _ in range(2):
            client = await tree.connect("root")
            monkeypatch.setattr(tsbus, "connect", lambda client=client: client)
            await tree.settle()
            await eval(code, {})  # noqa: S307
            if not done:
                assert "the balancer of root did not do it: no worker" in capsys.readouterr().out
                await tree.run(lb, "root")
    assert done == ["drain", "wait", "stop 1111"]


async def test_mirror(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The mirror's example shows what a monitor has, and is told when that changes."""
    nginx = Container(id="1" * 64, name="front", image=Image(given="nginx:1"), state="running")
    other = Container(id="2" * 64, name="db", image=Image(given="postgres"), state="running")
    monitor = Worker("containers")

    @monitor.command("snapshot", role="observe")
    async def snapshot(call: tsbus.Request) -> None:
        engine = EngineFacts(node=call.node, up=True)
        await call.send(SnapshotHead(node=call.node, epoch=1, seq=0, engine=engine, count=2))
        await call.send([nginx, other])

    async with MemoryTree({"root": ["a"], "a": []}, tags={"web": ["a"]}) as tree:
        await tree.run(monitor, "a")
        client = await tree.connect("root")
        monkeypatch.setattr(tsbus, "connect", lambda: client)
        code = compile(MIRROR, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(code, {})  # noqa: S307
    assert capsys.readouterr().out.splitlines() == ["a live", "a front running"]


async def test_testing() -> None:
    """The example of a user's test passes."""
    names: dict[str, Any] = {"worker": page_worker()}
    exec(compile(TESTING, str(PAGE), "exec"), names)  # noqa: S102
    await names["test_greeter"]()


@pytest.fixture
def greeter_process(lone_bus: str, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    file = tmp_path / "greeter.py"
    file.write_text(WORKER)
    process = subprocess.Popen([sys.executable, file], env={"TREESCALE_BUS": lone_bus})
    yield process
    process.kill()
    process.wait()


def test_blocking(
    lone_bus: str,
    greeter_process: "subprocess.Popen[bytes]",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script without asyncio works with the worker's example as a process of its own."""
    monkeypatch.setenv("TREESCALE_BUS", lone_bus)
    with tsbus.connect_blocking(timeout_s=LIMIT_S) as bus:
        wait("the worker serves", lambda: bus.call("solo", "greeter.stats").complete)
        exec(compile(BLOCKING, str(PAGE), "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.splitlines() == [
        "{'topic': 'container.died', 'from': 'solo'}",
        "{'solo': {'greeting': 'hello you from solo'}}",
        "0",
        "1",
        "2",
    ]
