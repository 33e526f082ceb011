"""The container service on a tree in memory with a real engine: real routers, callers of every role, containers."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from boxes import Make
from dockerd import Dockerd
from registry import Registry

from tsbus import Client, Event, Outcome, Reply, Result, Role
from tsbus.config import DockerPolicy
from tsbus.containers import desk, output, service
from tsbus.containers.engine import Engine
from tsbus.containers.service import AUDIT_NAME, Service
from tsbus.live_mirror import follow
from tsbus.testing import MemoryTree

LIMIT_S = 20.0
ROLES = {
    "observe": {"containers.snapshot", "containers.find", "containers.sample", "containers.stats", "containers.wait",
                "images.ls", "images.stats", "docker.info", "docker.df", "docker.stats"},
    "operate": {"containers.create", "containers.run", "containers.start", "containers.stop", "containers.restart",
                "containers.pause", "containers.unpause", "containers.kill", "containers.rm", "containers.rename",
                "containers.inspect", "containers.top", "containers.logs", "containers.exec", "containers.resize",
                "images.pull", "images.tag"},
    "admin": {"images.rm", "images.prune"},
}  # fmt: skip


class Site:
    """A tree root - a with the service on a, callers on the root, and what the service published."""

    def __init__(self, tree: MemoryTree, service: Service, folder: Path) -> None:
        self.tree = tree
        self.service = service
        self.folder = folder
        self.events: list[Event] = []
        self.admin: Client
        self.operate: Client
        self.observe: Client

    async def call(
        self, command: str, body: object = b"", *, by: Client | None = None, timeout_s: float = 60
    ) -> Result:
        return await (by or self.operate).call("a", command, body, timeout_s=timeout_s)

    async def ok(self, command: str, body: object = b"", *, by: Client | None = None) -> list[Any]:
        """Call what must end well; returns the pieces of its answer, as values."""
        async with (by or self.operate).request("a", command, body, timeout_s=60) as call:
            replies = [reply async for reply in call]
        assert replies[-1].status is Outcome.OK, replies[-1].text()
        return [reply.value() for reply in replies if reply.body]

    async def refused(self, command: str, body: object, *, by: Client | None = None) -> str:
        result = await self.call(command, body, by=by)
        assert result.refused == {"a"}, result.explain()
        return result.errors["a"]

    async def failed(self, command: str, body: object = b"", *, by: Client | None = None) -> str:
        result = await self.call(command, body, by=by)
        assert result.failed == {"a"}, result.explain()
        return result.errors["a"]

    async def seen(self, topic: str, name: str = "") -> dict[str, Any]:
        """Wait for an event about a container; returns its body."""

        def find() -> dict[str, Any] | None:
            bodies = (event.json() for event in self.events if event.topic == topic)
            return next((body for body in bodies if not name or body["container"]["name"] == name), None)

        return dict(await until(f"{topic} {name}", find))

    def audit(self, record: str = "") -> list[dict[str, Any]]:
        file = self.folder / AUDIT_NAME
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if record in ("", line["record"])]


async def until(what: str, is_so: Callable[[], Awaitable[Any] | Any]) -> Any:
    """Wait in real time (the loop's own stands still) until `is_so()` is true, and return that."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        value = is_so()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"this did not come: {what}"
        await asyncio.to_thread(time.sleep, 0.005)


@asynccontextmanager
async def open_site(folder: Path, host: str, **policy: Any) -> AsyncIterator[Site]:
    async with MemoryTree({"root": ["a"]}) as tree:
        config = replace(tree.config.with_current("a"), docker=DockerPolicy(host=host, **policy))
        site = Site(tree, Service(config, folder), folder)
        site.admin = await tree.connect("root")
        site.operate = await tree.connect("root", uid=4242, role=Role.OPERATE)
        site.observe = await tree.connect("root", uid=4243, role=Role.OBSERVE)
        for topic in ("container.>", "docker.>", "image.>"):
            await site.observe.subscribe(topic, callback=site.events.append)
        serving = asyncio.create_task(site.service.serve(await tree.connect("a", name="containers")))
        ready = asyncio.create_task(site.service.wait_ready())
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        assert not serving.done(), serving.exception()
        if site.service.watch:
            await site.service.watch.wait_complete()
        try:
            yield site
        finally:
            serving.cancel()
            await asyncio.wait({serving})


@pytest.fixture
async def site(tmp_path: Path, dockerd: Dockerd) -> AsyncIterator[Site]:
    async with open_site(tmp_path, dockerd.host) as site:
        yield site


# Who may.


async def test_every_command_takes_its_role(site: Site) -> None:
    """Every command is known here with the role it takes; whoever has less is refused, whatever the body."""
    known = {
        f"{worker.name}.{name}": role for worker in site.service.workers for name, (role, _) in worker._commands.items()
    }
    assert known == {command: Role.parse(role) for role, commands in ROLES.items() for command in commands}
    for command in sorted(ROLES["operate"] | ROLES["admin"]):
        await site.refused(command, {}, by=site.observe)
    for command in sorted(ROLES["admin"]):
        await site.refused(command, {})
    assert site.audit() == []


# What is done to containers.


async def test_the_life_of_a_container(site: Site, engine: Engine) -> None:
    """Each verb does what it says, answers Done with the state after it, and leaves its lines in the audit log."""
    (made,) = await site.ok("containers.create", {"image": "box:1", "names": {"a": ["life"]}, "stop_timeout_s": 0})
    assert (made["name"], made["state"], made.get("ok")) == ("life", "created", None)
    await site.seen("container.created", "life")
    states = {}
    for verb, more in {
        "start": {}, "pause": {}, "unpause": {}, "restart": {"timeout_s": 0}, "stop": {"timeout_s": 0.0},
        "kill": None, "rename": None, "rm": {},
    }.items():  # fmt: skip
        if verb == "kill":
            assert "not running" in await site.failed("containers.kill", {"containers": ["life"], "signal": "TERM"})
        elif verb == "rename":
            (done,) = await site.ok("containers.rename", {"container": "life", "name": "after.life"})
            assert done["name"] == "after.life"
            await site.seen("container.renamed", "after.life")
        else:
            name = "after.life" if verb == "rm" else "life"
            (done,) = await site.ok(f"containers.{verb}", {"containers": [name], **(more or {})})
            assert done["id"] == made["id"]
            states[verb] = done["state"]
    assert states == {
        "start": "running", "pause": "paused", "unpause": "running", "restart": "running", "stop": "exited",
        "rm": "removed",
    }  # fmt: skip
    await site.seen("container.destroyed")
    starts, ends = site.audit("start"), {line["number"]: line for line in site.audit("end")}
    commands = ["create", "start", "pause", "unpause", "restart", "stop", "kill", "rename", "rm"]
    assert [line["command"] for line in starts] == [f"containers.{verb}" for verb in commands]
    assert all(line["containers"] == [[made["id"][:12], "life"]] for line in starts[1:8])
    assert {(line["who"], line["origin"], line["role"]) for line in starts} == {("uid:4242", "root", "operate")}
    assert [ends[line["number"]]["ok"] for line in starts] == [verb != "kill" for verb in commands]


async def test_several_at_once(site: Site, make: Make) -> None:
    """An order for several containers does what can be done, tells of each, and fails with the errors in one text."""
    for name in ("two-a", "two-b"):
        make(name=name, start=False)
    make("sleep", "1000", name="two-c")
    result = await site.call("containers.rm", {"containers": ["two-a", "two-b", "two-c"]})
    assert result.errors["a"].startswith("two-c: ")
    assert "running" in result.errors["a"]
    names = [container.name for container in await asyncio.to_thread(lambda: engine_list(site))]
    assert [name for name in names if name.startswith("two-")] == ["two-c"]


def engine_list(site: Site) -> Any:
    assert site.service.watch
    return site.service.watch.engine.list()


async def test_names(site: Site, make: Make) -> None:
    """A name wins over ids, a beginning of an id must fit one, a near name is offered, and if_here passes over."""
    first, second = make(name="names-1", start=False), make(name="names-2", start=False)
    named = make(name=first[:5], start=False)
    for name in ("names-1", "names-2", first[:5]):
        await site.seen("container.created", name)

    async def find(name: str) -> tuple[list[str], list[str]]:
        (found,) = await site.ok("containers.find", {"containers": [name]}, by=site.observe)
        return [row["id"] for row in found["found"]], [row["hint"] for row in found["missing"]]

    assert await find(first[:5]) == ([named], [])
    assert await find(first[:20]) == ([first], [])
    assert await find("names-2") == ([second], [])
    assert await find("name-2") == ([], ["names-2"])
    text = await site.failed("containers.start", {"containers": ["names-2", "name-1"]})
    assert text == "no container 'name-1' here; did you mean 'names-1'?"
    assert await site.ok("containers.stop", {"containers": ["elsewhere"], "if_here": True}) == []
    assert site.audit() == []


async def test_what_was_made_a_moment_ago(site: Site, make: Make) -> None:
    """A container is found before its event has arrived: the engine is asked for names that are not known."""
    assert site.service.watch
    site.service.watch.records.clear()
    make(name="moment", start=False)
    (done,) = await site.ok("containers.rm", {"containers": ["moment"]})
    assert done["state"] == "removed"


async def test_run(site: Site) -> None:
    """run makes as many containers as `names` gives this node, in Docker's notation, and starts them."""
    order = {"image": "box:1", "names": {"a": ["run-1", "run-2"], "b": ["run-3"]}, "memory": "32m", "rm": True,
             "publish": ["127.0.0.1::80"], "env": {"SECRET": "s3cret"}, "stop_timeout_s": 0}  # fmt: skip
    made = await site.ok("containers.run", order)
    assert {(done["name"], done["state"]) for done in made} == {("run-1", "running"), ("run-2", "running")}
    started = await site.seen("container.started", "run-1")
    (endpoint,) = started["container"]["endpoints"]
    assert (endpoint["host_ip"], endpoint["port"]) == ("127.0.0.1", 80)
    assert endpoint["host_port"] > 0
    assert started["container"]["memory_limit"] == 32 << 20
    (line,) = site.audit("start")
    assert (line["order"]["env"], line["order"]["image"]) == (["SECRET"], "box:1")
    assert sorted(site.audit("end")[0]["ids"]) == sorted(done["id"] for done in made)
    assert "s3cret" not in (site.folder / AUDIT_NAME).read_text()
    assert await site.ok("containers.run", {**order, "names": {"b": ["run-3"]}}) == []
    (told,) = await site.ok("containers.inspect", {"containers": ["run-1"]})
    assert told["Config"]["Env"] == ["SECRET=s3cret"]
    await site.ok("containers.kill", {"containers": ["run-1", "run-2"]})


async def test_run_that_cannot_start(site: Site) -> None:
    """A container that cannot be started is removed again, and the engine's reason is told."""
    text = await site.failed("containers.run", {"image": "box:1", "names": {"a": ["unable"]}, "argv": ["no-such"]})
    assert text.startswith("unable: ")
    assert "no-such" in text
    assert not [each for each in await asyncio.to_thread(engine_list, site) if each.name == "unable"]
    assert site.audit("end")[0]["ok"] is False


@pytest.mark.parametrize("more", [{}, {"attach": True}])
@pytest.mark.parametrize("action", ["create", "start"])
async def test_run_that_is_interrupted(
    site: Site, engine: Engine, dockerd: Dockerd, more: dict[str, Any], action: str
) -> None:
    """Of a container that was made and not told of nothing is left, whether its caller went before or in its start."""
    events = engine.events()
    name = f"half-{action}-{len(more)}"
    body = {"image": "box:1", "argv": ["sleep", "1000"], "names": {"a": [name]}, **more}
    call = site.operate.request("a", "containers.run", body)
    await until("its audit line", lambda: site.audit("start"))
    if action == "start":
        await asyncio.to_thread(lambda: next(event for event in events if event.action == "create"))
    dockerd.pause()
    try:
        events.close()
        assert not site.audit("end"), "the engine was faster than we"
        call.cancel()
        await until("its end", lambda: site.audit("end"))
    finally:
        dockerd.resume()
    await site.seen("container.destroyed", name)


async def test_run_without_the_image(site: Site) -> None:
    """A missing image is fetched with progress unless that is forbidden; where it cannot be had the reason is told."""
    registry = Registry()
    try:
        order = {"image": registry.image, "names": {"a": ["fetched"]}}
        assert "no such image" in (await site.failed("containers.create", {**order, "pull": "never"})).lower()
        *progress, done = await site.ok("containers.create", order)
        assert done["name"] == "fetched"
        assert progress
        assert set(progress[0]) == {"layers", "done", "current", "total", "status"}
        await site.ok("containers.rm", {"containers": ["fetched"]})
        await site.ok("images.rm", {"images": [registry.image]}, by=site.admin)
    finally:
        registry.close()
    assert "refused" in await site.failed("containers.create", {"image": registry.image})


async def test_run_attached(site: Site) -> None:
    """With `attach` all output comes, both streams apart, and the call ends as the program did, also with `rm`."""
    for rm in (True, False):
        script = "echo out; echo err >&2; printf '\\377'; exit 7"
        body = {"image": "box:1", "argv": ["sh", "-c", script], "attach": True, "rm": rm, "names": {"a": [f"att-{rm}"]}}
        async with site.operate.request("a", "containers.run", body) as call:
            replies = [reply async for reply in call]
        assert b"".join(reply.body for reply in replies[:-1] if not reply.second) == b"out\n\xff"
        assert b"".join(reply.body for reply in replies[:-1] if reply.second) == b"err\n"
        assert (replies[-1].status, replies[-1].json()) == (Outcome.FAILED, {"exit": 7})
    assert await site.ok("containers.run", {"image": "box:1", "argv": ["true"], "attach": True, "rm": True}) == [
        {"exit": 0}
    ]
    await site.ok("containers.rm", {"containers": ["att-False"]})


# What is refused.


async def test_what_could_make_one_root_is_refused(site: Site, make: Make, engine: Engine, dockerd: Dockerd) -> None:
    """By default nothing of the host is given: not by options, not by volumes, not by what runs already."""
    make("sleep", "1000", name="strong", host={"Binds": [f"{dockerd.socket}:/docker.sock"]})
    make("sleep", "1000", name="weak")
    docker = engine._api._session().patient  # no command of ours makes such a volume
    docker.create_volume("evil", driver_opts={"type": "none", "o": "bind", "device": "/etc"})
    try:
        run = {"image": "box:1", "names": {"a": ["never"]}}
        exec_ = {"container": "weak", "argv": ["id"]}
        for command, body, key in (
            ("containers.run", {**run, "privileged": True}, "privileged = true"),
            ("containers.create", {**run, "volumes": ["/:/host"]}, '"/" in host_mounts'),
            ("containers.run", {**run, "volumes": ["evil:/x"]}, '"/etc" in host_mounts'),
            ("containers.run", {**run, "network": "container:strong"}, "host_namespaces = true"),
            ("containers.exec", {**exec_, "container": "strong"}, f'"{dockerd.socket}" in host_mounts'),
            ("containers.exec", {**exec_, "privileged": True}, "privileged = true"),
        ):
            assert key in await site.refused(command, body)
        assert {line["record"] for line in site.audit()} == {"refused"}
        assert len(site.audit()) == 6
        assert not [each for each in await asyncio.to_thread(engine_list, site) if each.name == "never"]
        pieces = await site.ok("containers.exec", {**exec_, "container": "strong"}, by=site.admin)
        assert b"uid=0" in pieces[0]
    finally:
        docker.remove_volume("evil")


async def test_a_link_out_of_an_allowed_directory(tmp_path: Path, dockerd: Dockerd) -> None:
    """Where host_mounts allows all below a directory, a link in it leads nowhere else, for admins neither."""
    below = tmp_path / "below"
    below.mkdir()
    (below / "link").symlink_to("/etc")
    async with open_site(tmp_path, dockerd.host, host_mounts=(f"{below}/**",)) as site:
        order = {"image": "box:1", "names": {"a": ["linked"]}}
        text = await site.refused("containers.create", {**order, "volumes": [f"{below}/link:/x"]}, by=site.admin)
        assert "which leads to /etc" in text
        await site.ok("containers.create", {**order, "volumes": [f"{below}/x:/x"]})
        await site.ok("containers.rm", {"containers": ["linked"]})


async def test_no_audit_no_act(tmp_path: Path, dockerd: Dockerd, make: Make, engine: Engine) -> None:
    """With a full disk under the audit log nothing is done, and the caller learns why."""
    container = make(name="unseen", start=False)
    async with open_site(tmp_path, dockerd.host, audit_file="/dev/full") as site:
        text = await site.refused("containers.start", {"containers": ["unseen"]})
        assert text == "cannot write the audit log /dev/full: No space left on device"
        assert (await asyncio.to_thread(engine.inspect, container)).state == "created"
        assert (await site.ok("containers.stats"))[0]["calls"]["audit_errors"] == 1


async def test_credentials_are_seen_by_nobody(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """A password gets to the registry, and into no error, log, event or audit line."""
    registry = Registry("me:pa55word")
    try:
        order = {"image": registry.image, "username": "me", "password": "pa55word"}
        *progress, last = await site.ok("images.pull", order)
        assert progress[-1]["layers"] >= 1
        assert last["id"].startswith("sha256:")
        assert last["name"] == registry.image
        await site.ok("images.tag", {"image": registry.image, "name": "mine:2"})
        wrong = await site.failed("images.pull", {**order, "password": "pa55word2"})
        listed = await site.ok("images.ls", by=site.observe)
        assert {registry.image, "mine:2"} <= {name for image in listed[0]["images"] for name in image["names"]}
        for image in (registry.image, "mine:2"):
            await site.ok("images.rm", {"images": [image]}, by=site.admin)
        assert "removed" in (await site.ok("images.prune", by=site.admin))[0]
    finally:
        registry.close()
    assert site.audit("start")[0]["order"] == {"image": registry.image}
    everything = [wrong, (site.folder / AUDIT_NAME).read_text(), *capfd.readouterr()]
    everything += [event.body.decode() for event in site.events]
    assert not [text for text in everything if "pa55word" in text]


# Output.


async def test_logs_of_one(site: Site, make: Make) -> None:
    """The log of one container comes as it was written: both streams, bytes that are no text, a line of 5 MB."""
    script = "echo ü; echo err >&2; dd if=/dev/zero bs=1024 count=5120 2>/dev/null | tr '\\0' x; echo; echo end"
    make("sh", "-c", script, name="talker")
    await site.ok("containers.wait", {"containers": ["talker"]})
    out, err = bytearray(), bytearray()
    async with site.operate.request("a", "containers.logs", {"containers": ["talker"]}) as call:
        async for reply in call:
            (err if reply.second else out).extend(reply.body)
    assert out == "ü\n".encode() + b"x" * (5 << 20) + b"\nend\n"
    assert err == b"err\n"
    assert await site.ok("containers.logs", {"containers": ["talker"], "tail": 1}) == [b"end\n"]


async def test_logs_of_several(site: Site, make: Make) -> None:
    """Logs of several containers come together, each line whole behind its name, also a last one without an end."""
    make("sh", "-c", "for i in 1 2 3; do echo $i; done; printf last", name="one")
    make("sh", "-c", "echo x; echo y >&2", name="another")
    await site.ok("containers.wait", {"containers": ["one", "another"]})
    result = await site.call("containers.logs", {"containers": ["one", "another"]})
    lines = result.replies["a"].decode().splitlines()
    assert [line for line in lines if line.startswith("one     | ")] == [f"one     | {n}" for n in (1, 2, 3, "last")]
    assert [line for line in lines if line.startswith("another | ")] == ["another | x"]


async def test_a_follower_that_goes_away(site: Site, make: Make) -> None:
    """logs -f comes as it is written, and when its caller is gone nothing of it is left on the node."""
    make("sh", "-c", "echo begin; exec sleep 1000", name="followed")
    call = site.operate.request("a", "containers.logs", {"containers": ["followed"], "follow": True})
    reply = await call.next()
    assert isinstance(reply, Reply)
    assert reply.body == b"begin\n"
    assert await streams(site) == 1
    site.operate.abort()
    await until("the stream has ended", lambda: no_streams(site))


async def streams(site: Site) -> int:
    return int((await site.ok("containers.stats", by=site.observe))[0]["calls"]["streams"])


async def no_streams(site: Site) -> bool:
    return await streams(site) == 0


async def test_too_many_streams(site: Site, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """More streams than there is room for are refused with a sentence; the others go on."""
    monkeypatch.setattr(desk, "MAX_STREAMS", 1)
    make("sh", "-c", "echo begin; exec sleep 1000", name="crowd")
    async with site.operate.request("a", "containers.logs", {"containers": ["crowd"], "follow": True}) as call:
        assert (await call.next()) is not None
        text = await site.failed("containers.logs", {"containers": ["crowd"]})
        assert text == "1 logs, programs and pulls are followed here already; try again later"


async def test_exec(site: Site, make: Make) -> None:
    """A program in a container gets the caller's input, user, directory and variables; how it ended is told."""
    make("sleep", "1000", name="inner")
    script = "pwd; id -u; echo $A; cat; exit 3"
    body = {
        "container": "inner",
        "argv": ["sh", "-c", script],
        "stdin": True,
        "cwd": "/tmp",
        "user": "7",
        "env": {"A": "b"},
    }
    async with site.operate.request("a", "containers.exec", body, input=True) as call:
        await call.send_input(b"x" * 300_000)
        await call.end_input()
        replies = [reply async for reply in call]
    assert b"".join(reply.body for reply in replies[:-1]) == b"/tmp\n7\nb\n" + b"x" * 300_000
    assert (replies[-1].status, replies[-1].json()) == (Outcome.FAILED, {"exit": 3})
    assert (await site.ok("containers.exec", {"container": "inner", "argv": ["true"]})) == [{"exit": 0}]
    text = await site.failed("containers.exec", {"container": "inner", "argv": ["no-such"]})
    assert json.loads(text)["exit"] in (126, 127)
    line = site.audit("start")[0]
    assert (line["order"]["argv"], line["order"]["env"]) == (["sh", "-c", script], ["A"])
    assert site.audit("end")[0]["exit"] == 3
    assert await streams(site) == 0


async def test_exec_with_a_terminal(site: Site, make: Make) -> None:
    """With a terminal the first piece of the second stream is the id, with which the caller gives it another size."""
    make("sleep", "1000", name="screen")
    body = {"container": "screen", "argv": ["sh"], "stdin": True, "tty": True, "size": [31, 71]}
    async with site.operate.request("a", "containers.exec", body, input=True) as call:
        reply = await call.next()
        assert reply is not None
        assert reply.second
        exec_id = reply.json()["exec"]
        seen = b""

        async def say(line: bytes, answer: bytes) -> None:
            nonlocal seen
            await call.send_input(line)
            while answer not in seen:
                reply = await call.next()
                assert reply is not None
                seen += reply.body

        await say(b"stty size\n", b"31 71")
        await site.ok("containers.resize", {"exec": exec_id, "size": [40, 100]})
        await say(b"stty size\n", b"40 100")
        await call.send_input(b"exit 5\n")
        replies = [reply async for reply in call]
    assert replies[-1].json() == {"exit": 5}


async def test_a_program_whose_caller_is_gone(site: Site, make: Make, engine: Engine) -> None:
    """A program in a container ends with its caller, by SIGTERM or, if it does not care, by SIGKILL."""
    container = make("sleep", "1000", name="left")
    script = "trap 'touch /tmp/asked' TERM; echo on; while :; do sleep 0.1; done"
    async with site.operate.request(
        "a", "containers.exec", {"container": "left", "argv": ["sh", "-c", script]}
    ) as call:
        assert (await call.next()) is not None

    def programs() -> list[str]:
        return [" ".join(row) for row in engine.top(container)["Processes"] if "trap" in " ".join(row)]

    await until("the program has ended", lambda: not programs())
    assert await site.ok("containers.exec", {"container": "left", "argv": ["ls", "/tmp"]}) == [b"asked\n", {"exit": 0}]

    async def ended() -> int:
        return int((await site.ok("containers.stats", by=site.observe))[0]["calls"]["programs_ended"])

    await until("it is counted", ended)
    assert await ended() == 1


async def test_a_caller_that_does_not_read(site: Site, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output waits for its reader: a program that writes without end is held, and let go when the caller leaves."""
    make("sleep", "1000", name="flood")
    async with site.operate.request("a", "containers.exec", {"container": "flood", "argv": ["yes"]}) as call:
        for _ in range(20):
            reply = await call.next()
            assert reply is not None
            assert len(reply.body) <= output.PIECE_BYTES
    await until("the stream has ended", lambda: no_streams(site))
    (line,) = await until("its last line", lambda: site.audit("end"))
    assert line["error"] == "nobody waited for the end"


# What is known.


async def test_snapshot(site: Site, make: Make) -> None:
    """A snapshot is a head and pieces of at most 256 KiB, of one moment; `all` false leaves out what does not run."""
    for number in range(6):
        make(name=f"big-{number}", start=False, Labels={"x": "y" * 60_000})
    make("sleep", "1000", name="small")
    for number in range(6):
        await site.seen("container.created", f"big-{number}")
    await site.seen("container.started", "small")
    async with site.observe.request("a", "containers.snapshot") as call:
        head, *pieces = [reply async for reply in call if reply.body]
    told = head.json()
    assert told["seq"] == max(event.json()["seq"] for event in site.events if event.topic.startswith("container."))
    assert told["engine"]["up"]
    assert len(pieces) > 1
    assert all(len(piece.body) <= 256 << 10 for piece in pieces)
    rows = [row for piece in pieces for row in piece.json()]
    assert len(rows) == told["count"]
    assert {f"big-{number}" for number in range(6)} < {row["name"] for row in rows}
    head_of_running, *running = await site.ok("containers.snapshot", {"all": False}, by=site.observe)
    assert [row["name"] for piece in running for row in piece if row["name"].startswith(("big", "small"))] == ["small"]
    assert head_of_running["count"] == sum(map(len, running))


async def test_snapshot_with_filters(site: Site, make: Make) -> None:
    """Filters choose as Docker's do; one that is none is told."""
    make(name="chosen", start=False, Labels={"team": "blue"})
    make(name="other", start=False)
    for name in ("chosen", "other"):
        await site.seen("container.created", name)
    _, rows = await site.ok("containers.snapshot", {"filters": ["label=team=blue", "image=box"]}, by=site.observe)
    assert [row["name"] for row in rows] == ["chosen"]
    assert "colour" in await site.failed("containers.snapshot", {"filters": ["colour=red"]}, by=site.observe)


async def test_wait(site: Site, make: Make) -> None:
    """wait ends with the exit code when a container dies, and when it runs, is healthy or is removed."""

    async def wait(name: str, until: str = "died") -> Any:
        return (await site.ok("containers.wait", {"containers": [name], "for": until}, by=site.observe))[0]

    make("sh", "-c", "exit 4", name="short", start=False)
    waiting = [asyncio.create_task(wait("short", what)) for what in ("died", "removed")]
    await site.ok("containers.start", {"containers": ["short"]})
    done = await waiting[0]
    assert (done["state"], done["exit_code"]) == ("exited", 4)
    assert (await wait("short"))["exit_code"] == 4
    assert not waiting[1].done()
    await site.ok("containers.rm", {"containers": ["short"]})
    assert (await waiting[1])["state"] == "removed"

    make("sh", "-c", "touch /tmp/ok; exec sleep 1000", name="well", image="checked:1")
    assert (await wait("well", "running"))["state"] == "running"
    assert (await wait("well", "healthy"))["state"] == "running"
    make("sleep", "1000", name="plain")
    body = {"containers": ["plain"], "for": "healthy"}
    assert await site.failed("containers.wait", body, by=site.observe) == "plain: it has no health check"


async def test_what_else_can_be_asked(site: Site, make: Make) -> None:
    """top, docker.info, docker.df and the counters answer in the shapes of docs/containers.md."""
    container = make("sleep", "1000", name="asked")

    async def shown() -> bool:
        (told,) = await site.ok("containers.top", {"containers": ["asked"]})
        assert (told["id"], told["name"]) == (container, "asked")
        return any("sleep 1000" in " ".join(row) for row in told["processes"])

    await until("the program: a started container is the engine's own for a moment", shown)
    (info,) = await site.ok("docker.info", by=site.observe)
    assert (info["engine"]["node"], info["engine"]["name"], info["engine"]["up"]) == ("a", "Docker", True)
    assert info["running"] >= 1
    (used,) = await site.ok("docker.df", by=site.observe)
    assert set(used) == {"images", "containers", "volumes", "cache"}
    (stats,) = await site.ok("containers.stats", by=site.observe)
    assert stats["engine_up"] is True
    assert stats["lag_p99_ms"] < 5_000
    assert stats["rss_bytes"] > 10 << 20
    assert {"events", "published", "seq", "cpu_s", "outbox", "statistics", "calls"} <= set(stats)


async def test_statistics(site: Site, make: Make) -> None:
    """Counters are published once a second while somebody listens, nothing is measured otherwise; sample asks once."""
    container = make("sleep", "1000", name="measured")
    await site.seen("container.started", "measured")
    sampling = asyncio.create_task(site.ok("containers.sample", by=site.observe))
    await until("the sample", lambda: tick(site, sampling.done))
    (sample,) = await sampling
    assert sample["full"]
    assert sample["samples"][container[:12]]["memory"] > 0

    async def rounds() -> int:
        return int((await site.ok("containers.stats", by=site.observe))[0]["statistics"]["rounds"])

    assert await rounds() == 0
    async with site.observe.subscribe("containers.stats.>") as events:
        for _ in range(2):
            event = await until("statistics", lambda: tick(site, events.take))
        assert event.topic == "containers.stats.a"
        assert event.json()["node"] == "a"
    await site.tree.settle()
    (stats,) = await site.ok("containers.stats", by=site.observe)
    assert stats["statistics"]["held"] == 0


async def tick(site: Site, look: Callable[[], Any]) -> Any:
    await site.tree.advance(0.1)
    return look()


# Without an engine.


async def test_without_an_engine(tmp_path: Path) -> None:
    """Without an engine everybody is told at once why and what to do; the node says docker.down once."""
    async with open_site(tmp_path, f"unix://{tmp_path}/none.sock") as site:
        (head,) = await site.ok("containers.snapshot", by=site.observe)
        assert (head["engine"]["up"], head["count"]) == (False, 0)
        assert "is Docker installed and running?" in head["engine"]["reason"]
        for command, body in (
            ("containers.run", {"image": "box:1"}),
            ("containers.start", {"containers": ["web"]}),
            ("images.ls", {}),
            ("docker.df", {}),
        ):
            assert "is Docker installed and running?" in await site.failed(command, body)
        (info,) = await site.ok("docker.info", by=site.observe)
        assert (info["engine"]["up"], info["containers"]) == (False, 0)
        for _ in range(20):
            await site.tree.advance(1)
        assert [event.topic for event in site.events] == ["docker.down"]
        assert site.audit() == []


async def test_an_engine_that_comes_later(tmp_path: Path, dockerd: Dockerd, make: Make) -> None:
    """An engine that appears is found by itself, and by the first who asks for something."""
    make("sleep", "1000", name="patient")
    place = tmp_path / "docker.sock"
    async with open_site(tmp_path, f"unix://{place}") as site:
        assert "is Docker" in await site.failed("containers.top", {"containers": ["patient"]})
        place.symlink_to(dockerd.socket)
        assert (await site.ok("containers.top", {"containers": ["patient"]}))[0]["name"] == "patient"
        await site.seen("docker.up")
        assert (await site.seen("container.started", "patient"))["cause"] == "reconcile"


async def test_an_engine_that_hangs(tmp_path: Path, dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that accepts and does not answer is noticed after 90 s of silence, and found again when it goes on."""
    monkeypatch.setattr(service, "engine_of", lambda policy: Engine(policy.host, timeout_s=1))
    async with open_site(tmp_path, dockerd.host) as site:
        await site.seen("docker.up")
        site.events.clear()
        dockerd.pause()
        try:
            await site.tree.advance(91)
            down = await until("docker.down", lambda: tick(site, lambda: site.events))
            assert "has not answered in 1 s" in down[0].json()["reason"]
        finally:
            dockerd.resume()
        await until("docker.up", lambda: tick(site, lambda: site.events[1:]))
        assert [event.topic for event in site.events] == ["docker.down", "docker.up"]


@pytest.mark.parametrize("verb", ["kill", "stop", "run"])
async def test_an_order_to_an_engine_that_hangs(
    tmp_path: Path, dockerd: Dockerd, make: Make, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """An order ends when the engine answers no ping, for whatever limit of its own; from then on all fail at once."""
    monkeypatch.setattr(service, "engine_of", lambda policy: Engine(policy.host, timeout_s=1))
    async with open_site(tmp_path, dockerd.host) as site:
        make("sleep", "1000", name="patient")
        await site.seen("container.started", "patient")
        site.events.clear()
        dockerd.pause()
        try:
            body = {"image": "box:1", "count": 1} if verb == "run" else {"containers": ["patient"]}
            ordered = asyncio.create_task(site.failed(f"containers.{verb}", body))
            await until("its end", lambda: tick(site, ordered.done))
            assert "has not answered in 1 s: does it hang" in await ordered
            if verb == "stop":  # its first question has a limit that is as short
                return
            assert "It may still do what it was told." in await ordered
            assert [event.topic for event in site.events] == ["docker.down"]
            asked = asyncio.create_task(site.failed("docker.df"))
            await until("the next one", lambda: tick(site, asked.done))
            assert await asked == site.events[0].json()["reason"]
        finally:
            dockerd.resume()
        await until("docker.up", lambda: tick(site, lambda: [one for one in site.events if one.topic == "docker.up"]))
        if verb == "run":  # nobody was told of the container that the engine made at last
            await until("all is taken back", lambda: tick(site, lambda: len(site.service.watch.records) == 1))


async def test_orders_to_an_engine_that_hangs_ask_it_together(
    tmp_path: Path, dockerd: Dockerd, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait for an engine, it is pinged once at a time, and all of them are told that it is down."""
    pinging: list[int] = []
    most = 0

    class Counted(Engine):
        def ping(self) -> None:
            nonlocal most
            pinging.append(1)
            most = max(most, len(pinging))
            try:
                super().ping()
            finally:
                pinging.pop()

    monkeypatch.setattr(service, "engine_of", lambda policy: Counted(policy.host, timeout_s=1))
    async with open_site(tmp_path, dockerd.host) as site:
        make("sleep", "1000", name="patient")
        await site.seen("container.started", "patient")
        dockerd.pause()
        try:
            body = {"containers": ["patient"]}
            orders = [asyncio.create_task(site.failed("containers.kill", body)) for _ in range(5)]
            for order in orders:
                await until("its end", lambda order=order: tick(site, order.done))
                assert "has not answered in 1 s: does it hang" in await order
        finally:
            dockerd.resume()
        assert most == 1


async def test_a_socket_without_permission(tmp_path: Path, dockerd: Dockerd) -> None:
    """A socket that the node's user may not use is told with the way to get the permission."""
    os.seteuid(65534)
    try:
        async with open_site(tmp_path, dockerd.host) as site:
            down = await until("docker.down", lambda: [one for one in site.events if one.topic == "docker.down"])
            assert "may not use" in down[0].json()["reason"]
    finally:
        os.seteuid(0)


async def test_switched_off(tmp_path: Path, dockerd: Dockerd) -> None:
    """With enabled = false the engine is left alone, and to the tree the node is one without a monitor."""
    async with open_site(tmp_path, dockerd.host, enabled=False) as site:
        assert (await site.call("containers.snapshot")).no_such_service == {"a"}
        await site.tree.advance(10)
        assert site.events == []


async def test_a_router_that_was_away(site: Site, make: Make) -> None:
    """What happens while the node's router is away is known to followers elsewhere soon after it is back."""
    async with follow(site.observe) as mirror:
        assert site.service.watch
        watch = site.service.watch
        site.tree.stop("a")
        await site.tree.settle()
        make(name="meanwhile", start=False)
        await until("it is known", lambda: [one for one in watch.records.values() if one.name == "meanwhile"])
        assert watch.stats()["outbox"] == 1
        site.tree.start("a")

        async def is_known() -> bool:
            await site.tree.advance(0.2)
            return bool(mirror.find("meanwhile"))

        await until("the mirror knows it", is_known)
        assert watch.stats()["outbox"] == 0
