"""The roll-up of history in a real SQLite file: the mean of what was, within its bounds, whatever happens to it."""

import asyncio
import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import told
from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.dashboard.history import STEP_S, History, Key
from tsbus.dashboard.historyfile import RING_MINUTES, SCHEMA, HistoryError, HistoryFile, Keeper
from tsbus.dashboard.problems import problems
from tsbus.dashboard.rollup import DAY_MINUTES, MINUTES, QUARTERS, Rolled, Span, first_left, rolled
from tsbus.records import Sample

FIRST = 28_333_335
"""A minute at which a quarter of an hour begins."""
assert FIRST % QUARTERS.minutes == 0
BIG = 1 << 30
CONTAINER = ("a", told.short())
MEMORY = "/dev/shm"
"""Where a file takes no time: each minute that is kept is written through to a disk, and thousands are kept here."""


def row(key: Key, cpu: float, highest: float | None = None) -> Rolled:
    return key, (cpu, 7.0, 0.0, 0.5, None, 0.0), (cpu if highest is None else highest, 7.0, 0.0, 0.5, None, 0.0)


def cpus(file: HistoryFile, minutes: int, now: int, key: Key = CONTAINER, *, highest: bool = False) -> dict[int, float]:
    """What there is to see at the minute `now`: step -> percent."""
    lines = file.lines(key, minutes, now * MINUTES.step_ms)
    first = lines.start_ms // lines.step_ms
    known = (lines.highest if highest else lines.figures)["cpu"]
    return {first + place: cpu for place, cpu in enumerate(known) if not math.isnan(cpu)}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 45), st.sampled_from("ab"), st.integers(0, 800), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_in_any_order_with_gaps_and_restarts_it_is_the_mean_of_its_minutes(told_minutes):
    """What was written last of a minute counts; each quarter has the mean of its minutes, and the highest."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "history.db"
        file, wanted = HistoryFile(path, 7, BIG), {}
        for minute, node, cpu, restart in told_minutes:
            file.put(FIRST + minute, [row((node, "x"), cpu, cpu + minute)])
            wanted[node, FIRST + minute] = float(cpu)
            if restart:
                file = HistoryFile(path, 7, BIG)
        for node in "ab":
            fine = {minute: cpu for (whose, minute), cpu in wanted.items() if whose == node}
            quarters = defaultdict(list)
            for minute, cpu in fine.items():
                quarters[minute // QUARTERS.minutes].append(cpu)
            assert cpus(file, DAY_MINUTES, FIRST + 60, (node, "x")) == fine
            coarse = {quarter: fmean(each) for quarter, each in quarters.items()}
            assert cpus(file, 2 * DAY_MINUTES, FIRST + 60, (node, "x")) == pytest.approx(coarse, rel=1e-5)
            top: dict[int, float] = {}
            for minute, cpu in fine.items():
                quarter = minute // QUARTERS.minutes
                top[quarter] = max(top.get(quarter, 0.0), cpu + minute - FIRST)
            assert cpus(file, 2 * DAY_MINUTES, FIRST + 60, (node, "x"), highest=True) == top


@given(
    st.lists(st.lists(st.one_of(st.floats(0, 1e6), st.just(math.nan)), min_size=1, max_size=12), min_size=1, max_size=6)
)
def test_a_row_is_of_what_is_known(lines):
    """Gaps count for nothing in the mean and the highest, and a series of which nothing is known has no row."""
    known = [[point for point in points if not math.isnan(point)] for points in lines]
    found = rolled([(CONTAINER, lines)])
    assert bool(found) == any(known)
    for _, means, highest in found:
        assert means == tuple(pytest.approx(fmean(points)) if points else None for points in known)
        assert highest == tuple(max(points, default=None) for points in known)


@pytest.fixture
def memory():
    """A folder in memory."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def test_minutes_are_kept_for_a_day_and_quarters_for_as_many_as_wanted(memory):
    """What is too old goes with the next minute, and with it series that have nothing any more."""
    file = HistoryFile(memory / "history.db", 3, BIG)
    for hour in range(24 * 5):
        file.put(FIRST + hour * 60, [row(("a", f"box{hour // 24}"), 1.0), row(CONTAINER, hour)])
    now = FIRST + (24 * 5 - 1) * 60
    assert len(cpus(file, DAY_MINUTES, now)) == 24
    assert len(cpus(file, 31 * DAY_MINUTES, now)) == 3 * 24 + 1
    with sqlite3.connect(file.path) as raw:
        names = {name for (name,) in raw.execute("SELECT container FROM series")}
        oldest = raw.execute("SELECT min(step) FROM quarters").fetchone()[0]
    assert "box0" not in names
    assert {"box3", "box4", told.short()} <= names
    assert oldest == (now - 3 * DAY_MINUTES) // QUARTERS.minutes


def test_the_file_stays_within_its_bytes(memory):
    """However many series there are, the oldest minutes go first, then the oldest quarters, and the newest is there."""
    limit = 512 << 10
    file = HistoryFile(memory / "history.db", 7, limit)
    rows = [row(("a", f"{number:012x}"), number * 1.1) for number in range(300)]
    for minute in range(0, 1200, 3):
        file.put(FIRST + minute, rows)
        assert file.path.stat().st_size < limit + (64 << 10)
    now, key = FIRST + 1197, ("a", f"{7:012x}")
    fine, coarse = cpus(file, DAY_MINUTES, now, key), cpus(file, 2 * DAY_MINUTES, now, key)
    assert now in fine
    assert len(coarse) * QUARTERS.minutes > now - min(fine), "quarters reach back further than minutes"


def test_room_is_made_by_the_oldest():
    """A tenth of the minutes down to an hour of them, then of the quarters; what is empty has nothing to give."""
    assert first_left({MINUTES: Span(100, 1099), QUARTERS: Span(1, 50)}) == (MINUTES, 200)
    assert first_left({MINUTES: Span(100, 159), QUARTERS: Span(1, 50)}) == (QUARTERS, 6)
    assert first_left({MINUTES: Span(100, 100)}) == (MINUTES, 101)
    assert first_left({}) is None


# The keeper -----------------------------------------------------------------------------------------------------------


class Bench:
    """A keeper whose clock is ours, and a node that tells what it uses."""

    def __init__(self, path: Path, minute: int = FIRST) -> None:
        self.now_ms = minute * MINUTES.step_ms
        self.model, self.history = told.model(), History()
        told.Node(self.model, "a", told.container())
        self.file = HistoryFile(path, 7, BIG)
        self.keeper = Keeper(SimpleNamespace(model=self.model, history=self.history), self.file, lambda: self.now_ms)

    def measure(self, minutes: int, cpu: Callable[[int], float]) -> None:
        """Let `minutes` pass, with a point each five seconds."""
        for _ in range(minutes * 60 // STEP_S):
            self.model.figures(told.figures("a", {1: Sample(cpu=cpu(self.minute), memory=7)}, self.now_ms), self.now_ms)
            self.history.record(self.model, self.now_ms)
            self.now_ms += STEP_S * 1000

    @property
    def minute(self) -> int:
        return self.now_ms // MINUTES.step_ms

    def troubles(self) -> list[tuple[str, str]]:
        return [(one.text, one.mend) for one in problems(self.model, self.now_ms) if one.kind == "history"]


async def test_a_restart_shows_the_last_hours(tmp_path):
    """What was written is in the memory again for the last hour, and in the file for more."""
    before = Bench(tmp_path / "history.db")
    await before.keeper.restore()
    for _ in range(90):
        before.measure(1, float)
        await before.keeper.keep()
    after = Bench(before.file.path, before.minute + 1)
    await after.keeper.restore()
    known = [cpu for cpu in after.history.lines(*CONTAINER, after.now_ms).figures["cpu"] if not math.isnan(cpu)]
    wanted = [float(before.minute - back) for back in range(RING_MINUTES - 2, 0, -1) for _ in range(60 // STEP_S)]
    assert known[-len(wanted) :] == pytest.approx(wanted)
    day = await after.keeper.lines(*CONTAINER, DAY_MINUTES)
    assert sum(not math.isnan(cpu) for cpu in day.figures["cpu"]) == 90
    after.measure(3, lambda _: 5.0)
    assert after.history.lines(*CONTAINER, after.now_ms).figures["cpu"][-2] == 5.0


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xa5" * (len(whole) - 100))


def be_of_later_release(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA user_version = {SCHEMA + 1}")


def be_of_others(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE songs (name TEXT)")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 500), "damaged or no SQLite file"),
        (damage, "is damaged"),
        (be_of_later_release, f"is of another release (version {SCHEMA + 1} of its tables)"),
        (be_of_others, "belongs to another program"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot write"),
        (lambda path: (path.unlink(), path.symlink_to("/proc/sys/kernel/ostype")), "cannot write"),
    ],
    ids=["text", "damaged", "later", "others", "folder", "read-only"],
)
async def test_a_file_that_cannot_be_used_is_one_problem_until_it_can(tmp_path, spoil, words):
    """It is told with what to do; once it is out of the way a new file gets what the memory still has."""
    bench = Bench(tmp_path / "history.db")
    bench.measure(3, float)
    await bench.keeper.keep()
    assert not bench.troubles()
    spoil(bench.file.path)
    for _ in range(3):
        bench.measure(1, float)
        await bench.keeper.keep()
    ((text, mend),) = bench.troubles()
    assert words in text
    assert str(bench.file.path) in text
    assert mend
    if not bench.file.path.is_dir():
        with pytest.raises(HistoryError, match="history"):
            HistoryFile(bench.file.path, 7, BIG).put(bench.minute, [])
    bench.file.path.rename(tmp_path / "away")
    bench.measure(1, float)
    await bench.keeper.keep()
    assert not bench.troubles()
    assert len(cpus(bench.file, DAY_MINUTES, bench.minute)) == 4, "the minutes that could not be written are there"


async def test_a_full_disk_is_one_problem(tmp_path):
    """Where nothing more can be written, the dashboard goes on and says so, and what was kept can be read."""
    bench = Bench(tmp_path / "history.db")
    bench.measure(3, float)
    await bench.keeper.keep()
    # A file may not grow beyond its limit: for SQLite that is a full disk, without a file system of our own.
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "from tsbus.dashboard.historyfile import HistoryError, HistoryFile\n"
        "path = Path(sys.argv[1])\n"
        "size = path.stat().st_size + 4096\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "rows = [(('a', f'{number:012x}'), (1.5,) * 6, (2.5,) * 6) for number in range(20000)]\n"
        "try:\n"
        f"    HistoryFile(path, 7, {BIG}).put(int(sys.argv[2]), rows)\n"
        "except HistoryError as error:\n"
        "    print(error, error.mend)\n"
    )
    argv = [sys.executable, "-c", script, str(bench.file.path), str(bench.minute)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60)
    assert str(bench.file.path) in done.stdout, done.stderr
    assert len(cpus(bench.file, DAY_MINUTES, bench.minute)) == 3


def test_a_kill_in_the_middle_leaves_whole_minutes(tmp_path):
    """Killed while it writes, again and again, the file has each minute whole or not at all, and can be written on."""
    path, count = tmp_path / "history.db", 400
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tsbus.dashboard.historyfile import HistoryFile\n"
        f"file = HistoryFile(Path(sys.argv[1]), 7, {BIG})\n"
        f"rows = [(('a', f'{{number:012x}}'), (1.5,) * 6, (2.5,) * 6) for number in range({count})]\n"
        "minute = int(sys.argv[2])\n"
        "while True:\n"
        "    file.put(minute, rows)\n"
        "    print(minute, flush=True)\n"
        "    minute += 1\n"
    )
    done = FIRST
    for turn in range(6):
        argv = [sys.executable, "-c", script, str(path), str(done + 1)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(3 + turn):
                done = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
        with sqlite3.connect(path) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert {each for (each,) in file.execute("SELECT count(*) FROM minutes GROUP BY step")} == {count}
            assert file.execute("SELECT max(step) FROM minutes").fetchone()[0] >= done, "what was done is there"
    HistoryFile(path, 7, BIG).put(done + 2, [row(CONTAINER, 3.0)])
    assert cpus(HistoryFile(path, 7, BIG), DAY_MINUTES, done + 2) == {done + 2: 3.0}
