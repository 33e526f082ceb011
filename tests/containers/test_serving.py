"""The small parts of the container service, without an engine: names, waits, lines, pulls, threads, what is shown."""

import asyncio
import queue
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import LIMIT_S

from tsbus.containers import orders
from tsbus.containers.asking import verdict
from tsbus.containers.facts import PullStep
from tsbus.containers.naming import NotOne, Target, near, resolve
from tsbus.containers.orders import parse, shown
from tsbus.containers.output import MAX_LINE, PIECE_BYTES, Lines, joined
from tsbus.containers.pulling import Layers
from tsbus.containers.threads import Pool, Pump
from tsbus.records import Container, Image

WEB = Target("ab12" + "0" * 60, "web")
DB = Target("ab34" + "0" * 60, "db")
HEX = Target("cd56" + "0" * 60, "ab")


def test_resolve() -> None:
    """A name or whole id wins over beginnings; each container comes once, in the order asked for."""
    known = [WEB, DB, HEX]
    assert resolve(["db", "web", DB.id, "ab12"], known, if_here=False) == [DB, WEB]
    assert resolve(["ab"], known, if_here=False) == [HEX]
    assert resolve(["ab1"], known, if_here=False) == [WEB]
    assert resolve(["c", "none"], known, if_here=True) == [HEX]
    with pytest.raises(NotOne, match=r"'a' begins the ids of 2 containers: web \(ab1200000000\), db \(ab3400000000\)"):
        resolve(["a"], known, if_here=True)
    with pytest.raises(NotOne, match=r"^no container 'wbe' here; did you mean 'web'\?$"):
        resolve(["wbe"], known, if_here=False)
    assert near("zzz", known) == ""
    assert near("shop", [DB, Target(WEB.id, "shop-web-2"), Target(HEX.id, "shop-web-1")]) == "shop-web-1"


def box(**more: Any) -> Container:
    return Container(**{"id": WEB.id, "name": "web", "image": Image(given="x"), "state": "running", **more})


@pytest.mark.parametrize(
    ("until", "first", "now", "last", "done"),
    [
        ("died", box(started_ns=1), box(started_ns=1), box(), None),
        ("died", box(started_ns=1), box(started_ns=1, state="exited", exit_code=3), box(), {"exit_code": 3}),
        ("died", box(state="created"), box(state="created"), box(), None),
        ("died", box(started_ns=1), box(started_ns=2), box(exit_code=3), {"exit_code": 3}),
        ("died", box(started_ns=1), None, box(exit_code=3), {"exit_code": 3, "state": "removed"}),
        ("died", box(started_ns=1), box(started_ns=1, state="paused"), box(), None),
        ("removed", box(), box(state="exited"), box(), None),
        ("removed", None, None, None, {"state": "removed"}),
        ("running", box(state="created"), box(state="created"), box(), None),
        ("running", box(state="created"), box(), box(), {"state": "running"}),
        ("running", box(), None, box(), {"error": "it was removed"}),
        ("running", box(state="created"), box(state="exited", finished_ns=5, exit_code=1), box(),
         {"error": "it has ended with exit code 1"}),
        ("healthy", box(health="starting"), box(health="starting"), box(), None),
        ("healthy", box(health="starting"), box(health="unhealthy"), box(), None),
        ("healthy", box(health="starting"), box(health="healthy"), box(), {"state": "running"}),
        ("healthy", box(), box(), box(), {"error": "it has no health check"}),
    ],
)  # fmt: skip
def test_when_a_wait_is_over(
    until: str, first: Container | None, now: Container | None, last: Container | None, done: dict[str, Any] | None
) -> None:
    """A wait ends with what it was for, with the exit code, or with the reason why that will not come."""
    said = verdict(WEB, until, first, now, last)
    assert (said is None) == (done is None)
    if said is not None and done is not None:
        assert said.ok == ("error" not in done)
        assert {key: getattr(said, key) for key in done} == done


def test_what_the_audit_log_shows() -> None:
    """Of variables and labels the names, of credentials nothing, of long texts the beginning."""
    order = parse(orders.RunOrder, {"image": "a", "env": {"B": "secret", "A": "1"}, "labels": {"l": "v"}})
    assert shown(order) == {"image": "a", "env": ["A", "B"], "labels": ["l"]}
    pull = parse(orders.Pull, {"image": "a", "username": "me", "password": "secret"})
    assert shown(pull) == {"image": "a"}
    exec_ = parse(orders.Exec, {"container": "c", "argv": ["x" * 10_000]})
    assert len(shown(exec_)["argv"]) < 5_000
    assert shown(parse(orders.Stop, {"containers": ["c"], "if_here": True})) == {}


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=40_000)), max_size=20))
def test_joined_pieces_are_the_same_bytes(pieces: list[tuple[bool, bytes]]) -> None:
    """Pieces are put together without a change of order, output or bytes, and none is too large."""
    done = list(joined(pieces))
    assert all(0 < len(data) <= PIECE_BYTES for _, data in done)
    for which in (False, True):
        assert b"".join(data for second, data in done if second is which) == b"".join(
            data for second, data in pieces if second is which
        )
    assert len(done) <= len(pieces)


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_lines_behind_a_name(pieces: list[bytes]) -> None:
    """However the bytes are cut, the lines come whole, each behind its name, and the last one gets an end."""
    lines = Lines("web", 5)
    out = b"".join(lines.take(False, data) for data in pieces) + lines.rest(False)
    whole = b"".join(pieces)
    expected = whole.removesuffix(b"\n").split(b"\n") if whole else []
    assert out == b"".join(b"web   | " + line + b"\n" for line in expected)


def test_a_line_without_an_end_is_told_in_parts() -> None:
    """A line that never ends takes no more memory than MAX_LINE."""
    lines = Lines("web", 3)
    out = lines.take(False, b"x" * (3 * MAX_LINE + 5))
    assert out.count(b"\n") == 3
    assert lines.rest(False) == b"web | " + b"x" * 5 + b"\n"


def test_layers_of_a_pull() -> None:
    """The bytes count once, while they come from the network; the tag's own line is no layer."""
    layers = Layers()
    for step in (
        PullStep("1.27", "Pulling from library/nginx"),
        PullStep("aa", "Pulling fs layer"),
        PullStep("bb", "Already exists"),
        PullStep("aa", "Downloading", 30, 100),
    ):
        layers.step(step)
    now = layers.progress
    assert (now.layers, now.done, now.current, now.total, now.status) == (2, 1, 30, 100, "Downloading")
    for step in (
        PullStep("aa", "Download complete"),
        PullStep("aa", "Extracting", 7, 50),
        PullStep("aa", "Pull complete"),
        PullStep("", "Status: Downloaded newer image for nginx:1.27"),
    ):
        layers.step(step)
    now = layers.progress
    assert (now.layers, now.done, now.current, now.total) == (2, 2, 100, 100)
    assert now.status.startswith("Status: ")


class Source:
    """A blocking iterator that a test feeds."""

    def __init__(self) -> None:
        self.items: queue.Queue[Any] = queue.Queue()
        self.taken = 0
        self.closed = threading.Event()

    def __next__(self) -> Any:
        item = self.items.get()
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        self.taken += 1
        return item

    def close(self) -> None:
        self.closed.set()
        self.items.put(None)


async def test_pump() -> None:
    """A pump gives all that is there at once, reads no further ahead than it may, and passes on the end and errors."""
    source = Source()
    pump: Pump[str] = Pump(source, 2)
    for item in "abcdef":
        source.items.put(item)
    got = []
    while len(got) < 6:
        pieces = await pump.take()
        assert len(pieces) <= 3
        got += pieces
    assert got == list("abcdef")
    source.items.put(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await pump.take()
    assert await asyncio.to_thread(source.closed.wait, LIMIT_S)


async def test_a_pump_that_is_closed() -> None:
    """Closing a pump ends the wait for its next item, and its thread, also one that waits for room."""
    for items in ("", "abcdef"):
        source = Source()
        for item in items:
            source.items.put(item)
        pump: Pump[str] = Pump(source, 2)
        taking = asyncio.create_task(pump.take())
        if items:
            await taking
        pump.close()
        while await (pump.take() if items else taking):
            pass
        assert source.closed.is_set()


async def test_a_stream_that_nobody_waits_for() -> None:
    """A stream that is opened after its caller has gone is closed."""
    pool, may_open, source = Pool("test", 1), threading.Event(), Source()

    def opening() -> Source:
        may_open.wait()
        return source

    task = asyncio.create_task(pool.open(opening))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_open.set()
    assert await asyncio.to_thread(source.closed.wait, LIMIT_S)
    pool.close()
