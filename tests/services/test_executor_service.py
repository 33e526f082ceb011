"""The executor on a tree in memory: real routers, workers and callers, real programs."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT_S

from tsbus import Client, Event, Outcome, Reply, Result, Role
from tsbus.config import ExecRule, ExecutorPolicy, Handler
from tsbus.executor.service import AUDIT_NAME, make_worker
from tsbus.testing import MemoryTree

OPEN = (ExecRule(("**",), ("operate",), ("*",), shell=True),)  # noqa: S604  (a rule; it runs nothing)


class Site:
    """A tree root - (a, b) with executors on a and b."""

    def __init__(self, tree: MemoryTree, folder: Path) -> None:
        self.tree = tree
        self.folder = folder
        self.workers: dict[str, Any] = {}

    async def run_on(self, node: str, policy: ExecutorPolicy, handlers: dict[str, Handler]) -> None:
        folder = self.folder / node
        folder.mkdir()
        config = replace(self.tree.config.with_current(node), executor=policy, handlers=handlers)
        self.workers[node] = await self.tree.run(make_worker(config, folder), node)

    def audit(self, node: str = "a") -> list[dict[str, Any]]:
        file = self.folder / node / AUDIT_NAME
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@asynccontextmanager
async def open_site(
    folder: Path, *, handlers: dict[str, Handler] | None = None, **policy: Any
) -> AsyncIterator[tuple[Site, Client]]:
    async with MemoryTree({"root": ["a", "b"]}) as tree:
        site = Site(tree, folder)
        for node in ("a", "b"):
            await site.run_on(node, ExecutorPolicy(**{"allow": OPEN, **policy}), handlers or {})
        yield site, await tree.connect("root")


async def execute(client: Client, *argv: str, target: str = "a", **more: Any) -> Result:
    return await client.call(target, "exec.run", {"argv": list(argv), **more})


def ending(result: Result, node: str = "a") -> dict[str, Any]:
    return dict(result.values()[node])


async def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await real_pause()


async def real_pause(seconds: float = 0.005) -> None:
    """Let real time pass: the loop's own clock stands still while the tree is open."""
    await asyncio.to_thread(time.sleep, seconds)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second when it goes while it is read
        return False


async def first_line(call: Any) -> str:
    reply = await call.next()
    assert isinstance(reply, Reply)
    return reply.body.decode().strip()


async def test_output_and_ending_of_every_node(tmp_path: Path) -> None:
    """A program's output streams back from every node, and the last reply tells how it ended."""
    async with open_site(tmp_path) as (_, client):
        result = await execute(client, "sh", "-c", "echo out $TREESCALE_NODE; echo err >&2", target="a,b")
        assert result.ok == {"a", "b"}
        assert result.replies["b"].startswith(b"out b\n")
        about = ending(result)
        assert (about["exit"], about["signal"], about["truncated"], about["output_bytes"]) == (0, None, False, 10)


async def test_failure_has_its_exit_code(tmp_path: Path) -> None:
    """A program that fails ends the call as failed, with its exit code or its signal in the last reply."""
    async with open_site(tmp_path) as (_, client):
        for script, exit_code, number in (("exit 3", 3, None), ("kill -9 $$", None, "KILL")):
            async with client.request("a", "exec.run", {"shell": script}) as call:
                last = [reply async for reply in call][-1]
            assert last.status is Outcome.FAILED
            assert (last.json()["exit"], last.json()["signal"]) == (exit_code, number)


async def test_streams_are_apart(tmp_path: Path) -> None:
    """Standard error comes as the second stream."""
    async with open_site(tmp_path) as (_, client):
        async with client.request("a", "exec.run", {"shell": "echo out; echo err >&2"}) as call:
            chunks = [(reply.second, reply.body) async for reply in call if not reply.last]
        assert sorted(chunks) == [(False, b"out\n"), (True, b"err\n")]


async def test_input_streams_through(tmp_path: Path) -> None:
    """A megabyte of input goes through the program and comes back, in order."""
    data = os.urandom(1 << 20)
    async with open_site(tmp_path) as (_, client):
        async with client.request("a", "exec.run", {"argv": ["cat"], "stdin": True}, input=True) as call:

            async def feed() -> None:
                for start in range(0, len(data), 50_000):
                    await call.send_input(data[start : start + 50_000])
                await call.end_input()

            feeding = asyncio.create_task(feed())
            back = b"".join([reply.body async for reply in call if not reply.last])
            await feeding
        assert back == data


async def test_slow_caller_stops_the_program(tmp_path: Path) -> None:
    """While the caller does not read, the program stands still at its pipe, and goes on later."""
    marker = tmp_path / "written"
    async with open_site(tmp_path) as (_, client):
        request = {"shell": f"head -c 8000000 /dev/zero; touch {marker}"}
        async with client.request("a", "exec.run", request) as call:
            await real_pause(0.2)
            assert not marker.exists()
            assert sum([len(reply.body) async for reply in call if not reply.last]) == 8_000_000
            assert marker.exists()


@pytest.mark.parametrize("how", ["cancel", "caller gone", "link lost", "connection lost"])
async def test_nobody_waits_any_more(tmp_path: Path, how: str) -> None:
    """Whatever ends a call ends the program's whole group, and the audit log has the reason."""
    async with open_site(tmp_path) as (site, client):
        call = client.request("a", "exec.run", {"shell": "sleep 60 & echo $!; wait"})
        child = int(await first_line(call))
        if how == "cancel":
            call.cancel()
        elif how == "caller gone":
            await client.close()
        elif how == "link lost":
            site.tree.cut("root", "a")
        else:
            await site.tree.kill(site.workers["a"])
        await wait_until(lambda: not is_alive(child))
        await wait_until(lambda: len(site.audit()) == 2)
        assert site.audit()[1]["reason"] == "cancelled"


async def test_executor_stops(tmp_path: Path) -> None:
    """An executor that is told to stop has ended its programs, and written that down, when it has stopped."""
    async with MemoryTree({"root": ["a"]}) as tree:
        worker = make_worker(tree.config.with_current("a"), tmp_path)
        serving = asyncio.create_task(worker.serve(await tree.connect("a")))
        await worker.wait_ready()
        client = await tree.connect("root")
        call = client.request("a", "exec.run", {"shell": "echo $$; exec sleep 60"})
        leader = int(await first_line(call))
        serving.cancel()
        await asyncio.wait([serving])
        assert not is_alive(leader)
        assert json.loads((tmp_path / AUDIT_NAME).read_text().splitlines()[1])["reason"] == "the executor stopped"
        assert (await call.result()).cancelled == {"a"}


async def test_budget(tmp_path: Path) -> None:
    """At the end of the caller's patience the call ends as timeout at once, and a stubborn program is killed later."""
    async with open_site(tmp_path, kill_grace_s=3) as (site, client):
        request = {"shell": "trap '' TERM; echo $$; while :; do sleep 0.01; done"}
        call = client.request("a", "exec.run", request, timeout_s=2)
        leader = int(await first_line(call))
        await site.tree.advance(2.1)
        assert (await call.result()).timeout == {"a"}
        assert is_alive(leader)
        await site.tree.advance(4)
        await wait_until(lambda: not is_alive(leader))
        await wait_until(lambda: len(site.audit()) == 2)
        assert (site.audit()[1]["reason"], site.audit()[1]["signal"]) == ("out of time", "KILL")


@pytest.mark.parametrize("limits", [{"max_output_bytes": 100_000}, {}])
async def test_too_much_output(tmp_path: Path, limits: dict[str, int]) -> None:
    """A program that writes more than the policy or the caller allows is ended and says so; no byte more arrives."""
    async with open_site(tmp_path, **limits) as (_, client):
        more = {} if limits else {"max_output": 100_000}
        async with client.request("a", "exec.run", {"argv": ["yes"], **more}) as call:
            replies = [reply async for reply in call]
        assert sum(len(reply.body) for reply in replies[:-1]) == 100_000
        about = replies[-1].json()
        assert replies[-1].status is Outcome.FAILED
        assert about["truncated"]
        assert about["reason"] == "ended because it wrote more than 100000 bytes"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"argv": ["no-such"]}, "no program 'no-such' on this node"),
        ({"argv": ["ls"], "cwd": "/no"}, "cannot enter the directory '/no'"),
        ({"argv": ["ls"], "user": "no-one"}, "no user 'no-one' on this node"),
        ({"argv": []}, "'argv' must be a list"),
        (b"{", "not JSON"),
        (b"", "must be a JSON object"),
    ],
)
async def test_cannot_be_started(tmp_path: Path, body: Any, told: str) -> None:
    """What cannot be run is answered as failed with one clear sentence."""
    async with open_site(tmp_path) as (_, client):
        result = await client.call("a", "exec.run", body)
        assert result.failed == {"a"}
        assert told in result.errors["a"]


async def test_refused_by_policy(tmp_path: Path) -> None:
    """What no rule allows is refused with the rule that it would take, not run, and written down."""
    marker = tmp_path / "ran"
    async with open_site(tmp_path, allow=(ExecRule(("uname", "**")),)) as (site, client):
        result = await execute(client, "touch", str(marker))
        assert result.refused == {"a"}
        assert 'argv = ["touch", ' in result.errors["a"]
        assert not marker.exists()
        assert [line["record"] for line in site.audit()] == ["refused"]
        assert (await execute(client, "uname", "-s")).ok == {"a"}


async def test_role_of_the_caller(tmp_path: Path) -> None:
    """By default operate may run programs but no shell line; observe may not even ask, but sees the jobs."""
    async with open_site(tmp_path, allow=ExecutorPolicy().allow) as (site, _):
        client = await site.tree.connect("root", uid=4242, role=Role.OPERATE)
        assert (await execute(client, "true")).ok == {"a"}
        assert (await client.call("a", "exec.run", {"shell": "true"})).refused == {"a"}
        watcher = await site.tree.connect("root", uid=4243, role=Role.OBSERVE)
        assert (await execute(watcher, "true")).refused == {"a"}
        assert (await watcher.call("a", "exec.jobs")).ok == {"a"}


async def test_audit_lines(tmp_path: Path) -> None:
    """Each run leaves a line before its start and one after its end: who, what, where and how it went."""
    async with open_site(tmp_path) as (site, client):
        await execute(client, "echo", "hi", cwd="/tmp", env={"SECRET": "s3cret"})
        start, end = site.audit()
        assert (start["record"], end["record"]) == ("start", "end")
        for line in (start, end):
            assert (line["node"], line["who"], line["origin"], line["role"]) == ("a", "uid:0", "root", "admin")
            assert (line["argv"], line["cwd"], line["env"]) == (["echo", "hi"], "/tmp", ["SECRET"])
        assert (end["exit"], end["output_bytes"], end["job"]) == (0, 3, start["job"])
        assert "s3cret" not in (tmp_path / "a" / AUDIT_NAME).read_text()


async def test_audit_lines_name_a_person(tmp_path: Path) -> None:
    """Whom a caller says he asks for is written down beside who he is, also where it is refused."""
    async with open_site(tmp_path) as (site, client):
        await execute(client.for_person("alice"), "true")
        await execute(client.for_person("bob"), "true", user="nobody-here")
        assert [(line["who"], line["person"]) for line in site.audit()] == [("uid:0", "alice")] * 2


async def test_no_audit_no_run(tmp_path: Path) -> None:
    """With a full disk under the audit log nothing is run, the caller learns why, and the executor goes on."""
    marker = tmp_path / "ran"
    async with open_site(tmp_path, audit_file="/dev/full") as (_, client):
        result = await execute(client, "touch", str(marker))
        assert result.refused == {"a"}
        assert "cannot write the audit log /dev/full: No space left on device" in result.errors["a"]
        assert not marker.exists()
        assert (await client.call_one("a", "exec.stats"))["audit_errors"] == 1


async def test_it_tells_that_it_would_refuse(tmp_path: Path) -> None:
    """Whoever asks for its figures learns why programs would be refused, before one is, and no longer than it is so."""
    log = tmp_path / "log"
    async with open_site(tmp_path, audit_file=str(log / "audit")) as (_, client):
        told = await client.call_one("a", "exec.stats")
        assert told["trouble"] == f"cannot write the audit log {log}/audit: No such file or directory"
        log.mkdir()
        assert (await client.call_one("a", "exec.stats"))["trouble"] == ""


async def test_disk_fills_up_while_it_runs(tmp_path: Path) -> None:
    """When the end cannot be written down any more, the caller still gets it, and the failure is counted."""
    log = tmp_path / "log"
    async with open_site(tmp_path, audit_file=str(log / "audit")) as (_, client):
        log.mkdir()
        result = await execute(client, "rm", "-r", str(log))
        assert result.ok == {"a"}
        assert (await client.call_one("a", "exec.stats"))["audit_errors"] == 1


async def test_max_jobs(tmp_path: Path) -> None:
    """More programs than max_jobs are refused while that many run, and welcome when one has ended."""
    async with open_site(tmp_path, max_jobs=1) as (_, client):
        async with client.request("a", "exec.run", {"shell": "echo; exec sleep 60"}) as call:
            await first_line(call)
            result = await execute(client, "true")
            assert result.refused == {"a"}
            assert "1 programs run here already (max_jobs)" in result.errors["a"]
            call.cancel()
            await call.result()
        end = time.monotonic() + LIMIT_S
        while not (await execute(client, "true")).ok:
            assert time.monotonic() < end, "the slot was never free again"
            await real_pause()


async def test_jobs_and_kill(tmp_path: Path) -> None:
    """exec.jobs lists what runs and what ended; exec.kill signals a job, but not somebody else's."""
    async with open_site(tmp_path) as (site, client):
        call = client.request("a", "exec.run", {"shell": "echo; exec sleep 60"})
        await first_line(call)
        (job,) = (await client.call_one("a", "exec.jobs"))["running"]
        assert (job["who"], job["shell"]) == ("uid:0", "echo; exec sleep 60")
        body = {"job": job["job"], "signal": "INT"}
        other = await site.tree.connect("root", uid=4242, role=Role.OPERATE)
        assert "belongs to uid:0 at root" in (await other.call("a", "exec.kill", body)).errors["a"]
        for bad in ({}, [], {"job": 1, "signal": "NOPE"}, {"job": True}):
            assert "must be like" in (await client.call("a", "exec.kill", bad)).errors["a"]
        assert (await client.call("a", "exec.kill", body)).ok == {"a"}
        assert (await call.result()).failed == {"a"}
        listed = await client.call_one("a", "exec.jobs")
        assert (listed["running"], listed["finished"][0]["signal"]) == ([], "INT")
        assert "no job" in (await client.call("a", "exec.kill", body)).errors["a"]


async def test_handler_gets_the_event(tmp_path: Path) -> None:
    """A handler's program gets the event's body on its input and the rest in its environment."""
    script = 'printf "%s|%s|%s|" "$TREESCALE_TOPIC" "$TREESCALE_ORIGIN" "$TREESCALE_WHO" > $0; cat >> $0'
    file = tmp_path / "seen"
    handler = Handler("note", "disk.*", ("sh", "-c", script, str(file)))
    async with open_site(tmp_path, handlers={"note": handler}) as (site, client):
        await site.tree.kill(site.workers["b"])
        await client.publish("disk.full", b"x" * 200_000)
        whole = "disk.full|root|uid:0|" + "x" * 200_000
        await wait_until(lambda: file.exists() and file.stat().st_size >= len(whole))
        assert file.read_text() == whole


async def test_handler_of_other_nodes_events(tmp_path: Path) -> None:
    """Only events from the nodes of its `from` start a handler; `.` is the handler's own node."""
    handler = Handler("note", "disk.*", ("sh", "-c", "cat >> $0", str(tmp_path / "seen")), origin=".")
    async with open_site(tmp_path, handlers={"note": handler}) as (site, client):
        at_a = await site.tree.connect("a")
        await client.publish("disk.full", "root")
        await at_a.publish("disk.full", "a")
        await wait_until(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text())
        assert (tmp_path / "seen").read_text() == "a"


async def test_handler_that_fails(tmp_path: Path) -> None:
    """A handler that fails, or cannot be started, is told on the bus; such events start no handler."""
    fail = ("sh", "-c", "exit 4")
    handlers = {"bad": Handler("bad", "x.>", fail), "none": Handler("none", "x.*", ("no-such",)),
                "watch": Handler("watch", "handler.>", fail)}  # fmt: skip
    async with open_site(tmp_path, handlers=handlers) as (site, client):
        await site.tree.kill(site.workers["b"])
        async with client.subscribe("handler.failed") as events:
            await client.publish("x.y", b"")
            told = {}
            for _ in range(2):
                event = await events.next()
                assert isinstance(event, Event)
                told[event.json()["name"]] = event.json()
        assert (told["bad"]["topic"], told["bad"]["exit"]) == ("x.y", 4)
        assert "no program 'no-such'" in told["none"]["reason"]
        await site.tree.settle()
        counted = (await client.call_one("a", "exec.stats"))["handlers"]
        assert {name: one["failed"] for name, one in counted.items()} == {"bad": 1, "none": 1, "watch": 0}


async def test_handler_under_load(tmp_path: Path) -> None:
    """Events beyond max_parallel wait, those beyond max_queue are dropped, oldest first, and that is told."""
    gate, seen = tmp_path / "gate", tmp_path / "seen"
    script = f"while [ ! -e {gate} ]; do sleep 0.01; done; cat >> {seen}"
    handler = Handler("slow", "x.y", ("sh", "-c", script), max_parallel=1, max_queue=2)
    async with open_site(tmp_path, handlers={"slow": handler}) as (site, client):
        await site.tree.kill(site.workers["b"])
        async with client.subscribe("handler.dropped") as events:
            for number in range(5):
                await client.publish("x.y", str(number))
            await site.tree.settle()
            gate.touch()
            event = await events.next()
            assert isinstance(event, Event)
            assert event.json() == {"name": "slow", "dropped": 2}
        await wait_until(lambda: seen.exists() and seen.read_text() == "034")


async def test_handler_timeout(tmp_path: Path) -> None:
    """A handler that takes too long is ended and told."""
    slow = Handler("slow", "x.y", ("sh", "-c", f"touch {tmp_path}/on; exec sleep 60"), timeout_s=2)
    async with open_site(tmp_path, handlers={"slow": slow}) as (site, client):
        await site.tree.kill(site.workers["b"])
        async with client.subscribe("handler.failed") as events:
            await client.publish("x.y", b"")
            await wait_until((tmp_path / "on").exists)
            await site.tree.advance(2.1)
            event = await events.next()
            assert isinstance(event, Event)
            assert (event.json()["reason"], event.json()["signal"]) == ("timeout", "TERM")
