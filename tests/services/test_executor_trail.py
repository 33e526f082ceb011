"""The audit logs read back: whole, in order, filtered and bounded, whatever is in the files."""

import json
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_executor_service import execute, open_site

from tsbus import Role
from tsbus.audit import AuditLog, Entry, Trail, Wish
from tsbus.executor.trail import MAX_TEXT, find_logs, read

ALL = Wish(last=1000)
START = 1_700_000_000


def at(seconds: int) -> str:
    return datetime.fromtimestamp(START + seconds, UTC).isoformat(timespec="milliseconds")


def job(number: int, seconds: int, *argv: str, person: str = "alice", ended: bool = True, **how: Any) -> Iterator[Any]:
    """The lines of the executor about one program."""
    about = {"node": "a", "job": number, "who": "uid:996", "person": person, "origin": "root", "role": "operate",
             "handle": 1, "call": number, "argv": list(argv), "user": ""}  # fmt: skip
    yield {"time": at(seconds), "record": "start", **about, "run_as": "nobody"}
    if ended:
        yield {"time": at(seconds + 1), "record": "end", **about, **{"exit": 0, "duration_ms": 5, "reason": ""} | how}


def act(number: int, seconds: int, command: str, *names: str, **how: Any) -> Iterator[Any]:
    """Those of the container monitor about one command."""
    containers = [[f"{place:012x}", name] for place, name in enumerate(names)]
    yield {"time": at(seconds), "record": "start", "number": number, "node": "a", "who": "operator:bob", "origin": "b",
           "role": "admin", "command": command, "containers": containers, "order": {"image": "nginx"}}  # fmt: skip
    yield {"time": at(seconds + 1), "record": "end", "number": number, "command": command, "took_ms": 7,
           "ok": not how, **how}  # fmt: skip


def write(path: Path, *parts: Iterator[Any], **limits: int) -> Path:
    log = AuditLog(path, **limits)
    for part in parts:
        for line in part:
            log.write(line)
    return path


def test_each_thing_is_one_entry(tmp_path: Path) -> None:
    """Begin and end are put together, over all services of the node, the newest first."""
    refused = {"time": at(40), "record": "refused", "job": 9, "who": "uid:1", "origin": "a", "shell": "reboot",
               "role": "observe", "reason": "no rule"}  # fmt: skip
    write(
        tmp_path / "exec-audit.log",
        job(1, 0, "df", "-h /"),
        job(2, 20, "false", exit=3),
        job(3, 30, "sleep", "9", person="", ended=False),
        iter([refused]),
        job(4, 50, "sleep", "1", exit=None, signal="KILL"),
    )
    (tmp_path / "docker").mkdir()
    write(tmp_path / "docker/docker-audit.log", act(1, 10, "containers.stop", "web", "db"),
          act(2, 25, "containers.run", error="no such image"))  # fmt: skip
    taken = {"who": "uid:0", "handle": 1, "call": 7, "command": "node.config", "node": "a"}
    write(
        tmp_path / "node-audit.log",
        iter(
            [
                {"time": START + 15.5, "record": "start", **taken},
                {"time": START + 16, "record": "end", "ok": True, **taken},
            ]
        ),
    )
    found, whole, troubles = read(find_logs([tmp_path / "exec-audit.log"], tmp_path), ALL)
    assert (whole, troubles) == (True, [])
    assert [(one.time_ms // 1000 - START, one.command, one.what, one.outcome, one.why) for one in found] == [
        (50, "exec.run", "sleep 1", "failed", "killed by KILL"),
        (40, "exec.run", "reboot", "refused", "no rule"),
        (30, "exec.run", "sleep 9", "open", ""),
        (25, "containers.run", "nginx", "failed", "no such image"),
        (20, "exec.run", "false", "failed", "exit 3"),
        (15, "node.config", "", "ok", ""),
        (10, "containers.stop", "web db", "ok", ""),
        (0, "exec.run", "df '-h /'", "ok", ""),
    ]
    first = found[-1]
    assert (first.who, first.person, first.origin, first.run_as, first.took_ms) == (
        "uid:996",
        "alice",
        "root",
        "nobody",
        5,
    )


@pytest.mark.parametrize(
    ("wish", "commands"),
    [
        ({"person": "alice"}, ["ls", "df"]),
        ({"person": "bob"}, ["web"]),
        ({"person": "uid:996"}, ["ls", "df"]),
        ({"person": "ali"}, []),
        ({"command": "containers."}, ["web"]),
        ({"command": "d"}, ["df"]),
        ({"since_ms": (START + 10) * 1000}, ["web", "ls"]),
        ({"last": 1}, ["web"]),
        ({"last": 1, "person": "alice"}, ["ls"]),
    ],
)
def test_filters(tmp_path: Path, wish: dict[str, Any], commands: list[str]) -> None:
    """Entries are chosen by person or caller, by a part of the command, by time, and the last of these."""
    write(tmp_path / "exec-audit.log", job(1, 0, "df"), job(2, 10, "ls"))
    write(tmp_path / "docker-audit.log", act(1, 20, "containers.stop", "web"))
    found, whole, _ = read(find_logs([], tmp_path), msgspec.convert(wish, Wish))
    assert [one.what for one in found] == commands
    assert whole == ("last" not in wish)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 80))
def test_rotated_logs_are_one(ended, last):
    """Over any number of files, the last entries are there, each once and in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exec-audit.log"
        lines = [job(number, 2 * number, "true", ended=end) for number, end in enumerate(ended)]
        write(path, *lines, max_bytes=2000)
        found, _, _ = read([path], Wish(last=last))
        kept = [json.loads(line)["job"] for file in Path(folder).iterdir() for line in file.read_text().splitlines()
                if json.loads(line)["record"] == "start"]  # fmt: skip
    times = [(one.time_ms // 1000 - START) // 2 for one in found]
    assert times == sorted(kept, reverse=True)[:last]


def test_hostile_lines_are_left_out(tmp_path: Path) -> None:
    """What is no record of ours is passed over, and long or odd texts are cut and made sendable."""
    path = write(tmp_path / "exec-audit.log", job(1, 0, "\udcff", "x" * 9000))
    with path.open("ab") as file:
        file.write(b'\n[]\n{"record":"start"}\n{"record":"start","time":"noon"}\n{"record":"start","time":1e999}\n')
        file.write(b'{"record":"start","time":1,"argv":7}\n{"record":"start","time":1,"containers":[3]}\n\xff\n')
        file.write(b"[" * 100_000 + b"\n" + b"x" * (3 << 20) + b"\n")
        file.write(b'{"record":"end","job":[1]}\n{"torn": ')
    found, whole, troubles = read([path], ALL)
    assert [(one.outcome, len(one.what)) for one in found] == [("ok", MAX_TEXT)]
    assert (whole, troubles) == (True, [])
    assert msgspec.json.encode(found)


def test_what_is_no_file_of_ours_is_not_read(tmp_path: Path) -> None:
    """A link or a pipe in the place of a log holds nothing up and tells nothing of other files."""
    secret = write(tmp_path / "secret", job(1, 0, "secret"))
    (tmp_path / "docker-audit.log").symlink_to(secret)
    os.mkfifo(tmp_path / "node-audit.log")
    found, _, troubles = read(find_logs([], tmp_path), ALL)
    assert not found
    assert len(troubles) == 1
    assert "docker-audit.log" in troubles[0]


async def test_the_command(tmp_path: Path) -> None:
    """`exec.audit` tells who ran what on each node, to callers with the role operate, and refuses a wrong body."""
    async with open_site(tmp_path) as (site, client):
        alice = client.for_person("alice")
        for number in range(60):
            await execute(alice if number == 7 else client, "echo", str(number), target="a,b" if number == 7 else "a")
        async with client.request("*", "exec.audit", {"person": "alice"}) as call:
            pieces = [(reply.node, reply.body) async for reply in call if reply.body and not reply.last]
        for node in ("a", "b"):
            head, entries = (body for name, body in pieces if name == node)
            assert msgspec.json.decode(head, type=Trail) == Trail(entries=1, whole=True)
            (entry,) = msgspec.json.decode(entries, type=list[Entry])
            assert (entry.what, entry.person, entry.origin, entry.outcome) == ("echo 7", "alice", "root", "ok")
        async with client.request("a", "exec.audit") as call:
            _, *bodies = [reply.body async for reply in call if reply.body and not reply.last]
        found = [one for body in bodies for one in msgspec.json.decode(body, type=list[Entry])]
        assert [one.what for one in found] == [f"echo {number}" for number in range(59, -1, -1)]
        async with client.request("a", "exec.audit", {"last": 0}) as call:
            assert '"last": 100' in [reply async for reply in call][-1].text()
        observer = await site.tree.connect("root", role=Role.OBSERVE)
        assert (await observer.call("a", "exec.audit")).refused == {"a"}
