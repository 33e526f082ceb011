"""`treescale top`: what it shows on 80x24, what keys do, and that nothing flows any more when it has ended."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import told
from click.testing import CliRunner
from terminals import Terminal
from tree import until

from tsbus import Request, Worker, connect
from tsbus.cli.main import cli
from tsbus.cli.topview import SORTS, Look, after_key, picture
from tsbus.dashboard.state import Model
from tsbus.mirror import MONITOR
from tsbus.records import Sample, SnapshotHead

NOW = told.NOW
ROOT = Path(__file__).parents[2]
PROGRAM = "from tsbus.cli.main import main; main()"


def busy(*lost: str) -> Model:
    """A tree with thirty containers on a node."""
    model = told.model(lost=lost)
    numbers = range(1, 31)
    told.Node(model, "a", *(told.container(number, name=f"front-{number}") for number in numbers))
    samples = {number: Sample(cpu=number * 1.5, memory=(31 - number) << 20, memory_limit=1 << 30) for number in numbers}
    model.figures(told.figures("a", samples), NOW)
    return model


def draw(model: Model, look: Look, width: int = 80, height: int = 24) -> list[str]:
    shown = picture(model, frozenset(model.nodes), look, NOW, width=width, height=height)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.lines]


def press(model: Model, look: Look, *keys: str) -> Look:
    """Press keys one after the other, as if each was followed by a drawing."""
    for key in keys:
        shown = picture(model, frozenset(model.nodes), look, NOW, width=80, height=24)
        following = after_key(look, key, shown.chosen)
        assert following is not None
        look = following
    return look


def test_the_tree_with_what_is_wrong():
    """Totals, the worst problem, and a line for each node with its state; a lost one says since when."""
    lines = draw(busy("b"), Look())
    assert lines[0] == "root: 5 nodes, 1 LOST | 30 of 30 containers running | CPU 12 %, memory 465 MiB"
    assert lines[1] == "1 problem: b is lost (heartbeat) (60 s)"
    assert [line.split()[:4] for line in lines[4:9]] == [
        [">", "root", "up", "-"], ["├─", "a", "up", "12"], ["│", "├─", "a1", "up"], ["│", "└─", "a2", "up"],
        ["└─", "b", "LOST", "-"],
    ]  # fmt: skip


def test_the_cpu_of_a_node_is_a_share_of_all_its_cores():
    """As on the dashboard: four busy cores of 64 are less than two of two; only that of a container is of one core."""
    model = told.model()
    for name, cpu, cpus in (("a", 400.0, 64), ("b", 200.0, 2)):
        told.Node(model, name, told.container(1, name=f"on-{name}"))
        model.figures(told.figures(name, {1: Sample(cpu=150.0)}, cpu=cpu, cpus=cpus), NOW)
    lines = draw(model, Look(sorts={"nodes": "cpu", "containers": "cpu"}))
    assert "CPU 9 %" in lines[0]
    assert lines[3].split()[2:6] == ["CPU", "%", "OF", "CORES"]
    assert [line.lstrip("> ").split()[:4] for line in lines[4:6]] == [["b", "up", "100", "2"], ["a", "up", "6", "64"]]
    assert all(" 150.0 " in line for line in draw(model, Look(kind="containers"))[4:6])


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 8), (20, 3), (200, 60)])
@pytest.mark.parametrize("look", [Look(), Look(kind="containers", place=20), Look(wanted="front", typing=True)])
def test_it_fits_any_terminal(look, width, height):
    """No more lines than the terminal has, unless it has no room for one row; 80 columns are enough for all."""
    lines = draw(busy(), look, width, height)
    assert len(lines) <= max(height - 1, 8)
    assert width < 80 or max(map(len, lines)) <= width


def test_containers_are_sorted_and_the_chosen_one_is_in_sight():
    """The busiest first; `s` goes through the orders, `j` and `k` move, Tab changes over."""
    model = busy()
    look = press(model, Look(), "\t")
    assert draw(model, look)[4].split()[2] == "front-30"
    look = press(model, look, "s")
    assert look.sort == "memory"
    assert draw(model, look)[4].split()[2] == "front-1"
    look = press(model, look, *"j" * 25, "k")
    (chosen,) = [line for line in draw(model, look) if line.startswith(">")]
    assert chosen.split()[2] == "front-25"
    look = press(model, look, *"s" * (len(SORTS["containers"]) - 1))
    assert (look.sort, look.place) == ("cpu", 0)


def test_a_filter_is_typed_and_taken_back():
    """What is typed is part of a name, an image or a state; Enter keeps it, Escape takes it back."""
    model = busy()
    look = press(model, Look(kind="containers"), "/", "-", "2", "x", "\x7f", "\r")
    assert (look.wanted, look.typing) == ("-2", False)
    assert len([line for line in draw(model, look) if " front-" in line]) == 11
    assert press(model, look, "esc").wanted == ""
    assert press(model, look, "/", "q", "esc").wanted == ""
    assert "no containers with 'zz'" in "\n".join(draw(model, Look(kind="containers", wanted="zz")))


def test_enter_opens_a_node():
    """Its containers alone; Escape goes back, and q ends."""
    model = busy()
    told.Node(model, "b", told.container(99, name="elsewhere"))
    look = press(model, Look(), "j", "\r")
    assert (look.kind, look.node) == ("containers", "a")
    assert "elsewhere" not in "\n".join(draw(model, look))
    assert press(model, look, "esc").kind == "nodes"
    assert after_key(look, "q", "") is None


def test_names_from_outside_cannot_steer_the_terminal():
    """Control characters in names, and in a filter, are shown and do nothing."""
    model = told.model()
    told.Node(model, "a", told.container(name="\x1b[2Jevil", health="unhealthy"))
    shown = picture(model, frozenset(model.nodes), Look(kind="containers"), NOW, width=None, height=None)
    assert "\x1b[2J" not in "".join(shown.lines)
    assert "\\x1b[2Jevil" in "".join(shown.lines)


def test_what_was_known_stays_while_the_router_is_away():
    """The title says so, and figures are marked with their age."""
    model = busy()
    model.connection(False, NOW)
    shown = picture(model, frozenset(model.nodes), Look(), NOW + 9000, width=100, height=24)
    assert shown.lines[0].startswith("the router here is away since 9 s")
    assert any("figures 9 s old" in line for line in shown.lines)


# The program ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def watched(lone_bus: str) -> AsyncIterator[tuple[str, asyncio.Event, asyncio.Event]]:
    """A lone router with a monitor that tells figures, and whether it is listened to and not any more."""
    worker, begun, over = Worker(MONITOR), asyncio.Event(), asyncio.Event()

    @worker.command("snapshot", role="observe")
    async def snapshot(_: Request):
        yield SnapshotHead(node="solo", epoch=1, seq=0, engine=told.engine("solo"), count=1)
        yield [told.container(name="shop")]

    @worker.command("sample", role="observe")
    def sample(_: Request):
        return told.figures("solo", {1: Sample(cpu=12.5, memory=3 << 20)}, full=True)

    async with connect(lone_bus, timeout_s=20) as client:

        async def note() -> None:
            async with client.interest("containers.stats.solo") as interest:
                async for wanted in interest:
                    (begun if wanted else over).set()

        tasks = [asyncio.create_task(worker.serve(client)), asyncio.create_task(note())]
        await worker.wait_ready()
        yield lone_bus, begun, over
        for task in tasks:
            task.cancel()


async def test_on_a_terminal_it_draws_takes_keys_and_leaves_nothing_behind(watched):
    """Keys come through a real terminal of 80x24; after `q` it is given back, and the monitor is not listened to."""
    bus, begun, over = watched
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(inner)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "--bus", bus, "top", cwd=ROOT, stdin=inner, stdout=inner, env=environment
    )
    seen = bytearray()
    asyncio.get_running_loop().add_reader(terminal, lambda: seen.extend(os.read(terminal, 65536)))
    try:
        await until("the tree is drawn", lambda: b"1 of 1 container running" in seen)
        await asyncio.wait_for(begun.wait(), 20)
        os.write(terminal, b"\t")
        await until("the container is drawn with what it uses", lambda: b"shop" in seen and b"12.5" in seen)
        os.write(terminal, b"/none")
        await until("the filter is drawn", lambda: b"no containers with" in seen)
        os.write(terminal, b"\rq")
        assert await asyncio.wait_for(program.wait(), 20) == 0
        assert seen.endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(inner) == before
        await asyncio.wait_for(over.wait(), 20)
    finally:
        asyncio.get_running_loop().remove_reader(terminal)
        with contextlib.suppress(ProcessLookupError):
            program.kill()
        os.close(terminal)
        os.close(inner)


async def test_once_fits_the_terminal_that_it_is_printed_on(watched, tmp_path):
    """40 columns are enough for one drawing as for the screen that stays."""

    def printed() -> str:
        argv = [sys.executable, "-c", PROGRAM, "--bus", watched[0], "top", "--once"]
        with Terminal(argv, {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path, (24, 40)) as terminal:
            code, text = terminal.end()
        assert code == 0
        return text

    lines = (await asyncio.to_thread(printed)).split("\r\n")
    assert any(line.startswith("solo") for line in lines)
    assert max(map(len, lines)) <= 40


async def test_once_and_json_are_for_scripts(watched):
    """One drawing, or one object with all that is known; a target that names nobody is an error of the caller."""
    bus, _, _ = watched

    def run(*args: str):
        return CliRunner().invoke(cli, ["--bus", bus, "top", *args])

    printed = await asyncio.to_thread(run, "--once", "--containers")
    told_json = await asyncio.to_thread(run, "--once", "--json")
    wrong = await asyncio.to_thread(run, "nobody", "--once")
    assert printed.exit_code == 0
    assert printed.output.splitlines()[4].split()[:2] == ["solo", "shop"]
    said = json.loads(told_json.stdout)
    assert [node["name"] for node in said["nodes"]] == ["solo"]
    assert said["containers"][0]["sample"]["cpu"] == 12.5
    assert wrong.exit_code == 2
    assert "nobody" in wrong.output
    assert run("--sort", "net").exit_code == 2
