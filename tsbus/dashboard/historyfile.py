"""History file: figures of before the last hour, in SQLite; rollup.py decides what is in it. Edge.

Each minute is one transaction, in a thread. The file is opened anew each time: one that was moved away, damaged or read
only is told as a problem, is no reason to end, and is used again as soon as it is in order.
"""

import asyncio
import os
import sqlite3
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from tsbus.dashboard.feed import Feed, unix_ms
from tsbus.dashboard.history import POINTS, STEP_S, Key, Lines, figures_of
from tsbus.dashboard.rollup import (
    DAY_MINUTES,
    MINUTES,
    QUARTERS,
    TIERS,
    Rolled,
    Span,
    Tier,
    Values,
    first_kept,
    first_left,
    rolled,
    steps_of,
    tier_for,
)
from tsbus.dashboard.views import Trouble
from tsbus.log import Log

SCHEMA: Final = 2
"""Version of the tables; in the file as its `user_version`."""
APPLICATION: Final = 0x54534849
"""By this the file is known to be ours ("TSHI")."""
LATE_S: Final = 2.0
"""So long after its end a minute is written: its last points are there then."""
BUSY_S: Final = 5.0
"""Patience with another program that reads the file."""
RING_MINUTES: Final = POINTS * STEP_S // 60
"""What the memory has: so long the file may be away before something is missing in it."""
_AT_ONCE: Final = 1000
"""Rows that are taken back in one turn of the loop."""

_MEANS: Final = tuple(f"f{number}" for number in range(6))
_HIGHEST: Final = tuple(f"h{number}" for number in range(6))
_COLUMNS: Final = _MEANS + _HIGHEST
_ROWS: Final = (
    f"(step INTEGER NOT NULL, series INTEGER NOT NULL, {' REAL, '.join(_COLUMNS)} REAL, "
    "PRIMARY KEY (step, series)) WITHOUT ROWID"
)
_TABLES: Final = (
    "CREATE TABLE series (id INTEGER PRIMARY KEY, node TEXT NOT NULL, container TEXT NOT NULL, day INTEGER NOT NULL,"
    " UNIQUE (node, container))",
    *(f"CREATE TABLE {tier.name} {_ROWS}" for tier in TIERS),
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)
_SEEN: Final = (
    "INSERT INTO series (node, container, day) VALUES (?, ?, ?)"
    " ON CONFLICT DO UPDATE SET day = excluded.day WHERE day <> excluded.day"
)
_PUT: Final = (
    f"INSERT OR REPLACE INTO minutes SELECT ?, id, {', '.join('?' for _ in _COLUMNS)} FROM series"  # noqa: S608
    " WHERE node = ? AND container = ?"
)
_ROLL: Final = (
    f"INSERT OR REPLACE INTO quarters SELECT step / {QUARTERS.minutes}, series, "  # noqa: S608  (nothing from outside)
    f"{', '.join([f'avg({column})' for column in _MEANS] + [f'max({column})' for column in _HIGHEST])}"
    " FROM minutes WHERE step BETWEEN ? AND ? GROUP BY series"
)
_log = Log("dashboard.history")


class HistoryError(Exception):
    """The file cannot be used; the text says why, `mend` what to do."""

    def __init__(self, text: str, mend: str) -> None:
        super().__init__(text)
        self.mend = mend


class HistoryFile:
    """The file. What it does takes a while, and raises HistoryError."""

    def __init__(self, path: Path, days: int, max_bytes: int) -> None:
        """`days` are kept, as far as they fit into `max_bytes`."""
        self.path, self.days = path, days
        self._max_bytes = max_bytes

    def put(self, minute: int, rows: Sequence[Rolled]) -> None:
        """Write a minute of all series, and let go what is too old or too much: in one transaction."""
        day, quarter = minute // DAY_MINUTES, minute // QUARTERS.minutes * QUARTERS.minutes
        with self._open() as file:
            file.execute("BEGIN IMMEDIATE")
            for tier in TIERS:  # first, so that the new rows take the place of the old ones
                _drop(file, tier, first_kept(tier, minute, self.days))
            file.execute("DELETE FROM series WHERE day < ?", (day - self.days,))
            file.executemany(_SEEN, ((*key, day) for key, *_ in rows))
            file.executemany(_PUT, ((minute, *_wide(means), *_wide(highest), *key) for key, means, highest in rows))
            file.execute(_ROLL, (quarter, quarter + QUARTERS.minutes - 1))
            while _used(file) > self._max_bytes and (goes := first_left(_spans(file))):
                _drop(file, *goes)
            file.execute("COMMIT")
            free, pages = _number(file, "PRAGMA freelist_count"), _number(file, "PRAGMA page_count")
            if free > pages // 4:
                file.execute("PRAGMA incremental_vacuum").fetchall()

    def minutes(self, first: int, last: int) -> list[tuple[int, Key, Values]]:
        """Return all rows of these minutes, oldest first."""
        select = (
            f"SELECT step, node, container, {', '.join(_MEANS)} FROM minutes JOIN series ON id = series"  # noqa: S608
            " WHERE step BETWEEN ? AND ? ORDER BY step"
        )
        with self._open(write=False) as file:
            return [(step, (node, box), values) for step, node, box, *values in file.execute(select, (first, last))]

    def lines(self, key: Key, minutes: int, now_ms: int) -> Lines:
        """Return the points of the last `minutes` of one series."""
        tier = tier_for(minutes)
        span = steps_of(tier, minutes, now_ms)
        names = figures_of(key[1])
        means, highest = ({name: array("f", [float("nan")]) * span.steps for name in names} for _ in range(2))
        columns = ", ".join(_MEANS[: len(names)] + _HIGHEST[: len(names)])
        lines = [*((means, name) for name in names), *((highest, name) for name in names)]
        # A range of steps has the rows of all series: to look for each step by itself is much less to read.
        select = (
            "WITH RECURSIVE steps (step) AS (SELECT ? UNION ALL SELECT step + 1 FROM steps WHERE step < ?)"  # noqa: S608
            f" SELECT step, {columns} FROM steps CROSS JOIN {tier.name} USING (step)"
            " WHERE series = (SELECT id FROM series WHERE node = ? AND container = ?)"
        )
        with self._open(write=False) as file:
            for step, *values in file.execute(select, (span.first, span.last, *key)):
                for (of, name), value in zip(lines, values, strict=True):
                    if value is not None:
                        of[name][step - span.first] = value
        return Lines(span.first * tier.step_ms, tier.step_ms, means, highest)

    @contextmanager
    def _open(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        try:
            if write:
                # For its words, and so that nobody else may read it.
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640))
            elif not self.path.exists():
                with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
                    _make(empty)
                    yield empty
                return
            # To read, too: what a killed writer left behind has to be taken back first. Never made by SQLite itself.
            address = f"{self.path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)) as file:
                self._check(file)
                yield file
        except OSError as error:
            raise HistoryError(f"cannot write {self.path}: {error.strerror}", _LET) from error
        except sqlite3.Error as error:
            raise _explained(self.path, error) from error

    def _check(self, file: sqlite3.Connection) -> None:
        """Make the tables in a new file. Raises HistoryError for a file that is not ours."""
        if not _number(file, "PRAGMA schema_version"):
            _make(file)
        elif _number(file, "PRAGMA application_id") != APPLICATION:
            raise HistoryError(f"{self.path} belongs to another program", "name another history_file")
        elif (version := _number(file, "PRAGMA user_version")) != SCHEMA:
            mend = "name another history_file, or move this one away: a new one is made"
            raise HistoryError(f"{self.path} is of another release (version {version} of its tables)", mend)


_LET: Final = "let the user of the dashboard write there, or name another history_file"
_WORDS: Final = {
    sqlite3.SQLITE_NOTADB: ("{path} is damaged or no SQLite file", "move it away: a new one is made"),
    sqlite3.SQLITE_CORRUPT: ("{path} is damaged", "move it away: a new one is made"),
    sqlite3.SQLITE_FULL: ("there is no room for {path}", "make room on its file system, or lower history_max_bytes"),
    sqlite3.SQLITE_READONLY: ("{path} cannot be written", _LET),
    sqlite3.SQLITE_CANTOPEN: ("{path} cannot be opened", _LET),
    sqlite3.SQLITE_BUSY: ("another program holds {path}", "end it, or give each dashboard a history_file of its own"),
}


def _explained(path: Path, error: sqlite3.Error) -> HistoryError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it says more than anybody needs
    text, mend = _WORDS.get(code, ("{path} cannot be used", "look at its disk, or name another history_file"))
    return HistoryError(f"{text.format(path=path)} ({error})", mend)


def _make(file: sqlite3.Connection) -> None:
    file.execute("PRAGMA auto_vacuum = INCREMENTAL")  # it counts only before the first table
    file.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        file.execute(statement)
    file.execute("COMMIT")


def _wide(values: Values) -> Values:
    return (values + (None,) * len(_MEANS))[: len(_MEANS)]


def _drop(file: sqlite3.Connection, tier: Tier, first: int) -> None:
    """Delete what is older than the step `first`."""
    file.execute(f"DELETE FROM {tier.name} WHERE step < ?", (first,))  # noqa: S608  (a name of ours)


def _spans(file: sqlite3.Connection) -> dict[Tier, Span]:
    spans = {}
    for tier in TIERS:
        select = f"SELECT (SELECT min(step) FROM {tier.name}), (SELECT max(step) FROM {tier.name})"  # noqa: S608
        first, last = file.execute(select).fetchone()
        if first is not None:
            spans[tier] = Span(first, last)
    return spans


def _used(file: sqlite3.Connection) -> int:
    pages = _number(file, "PRAGMA page_count") - _number(file, "PRAGMA freelist_count")
    return pages * _number(file, "PRAGMA page_size")


def _number(file: sqlite3.Connection, ask: str) -> int:
    return int(file.execute(ask).fetchone()[0])


class Keeper:
    """Writes the history of a feed into a file, minute by minute, and reads what is older than an hour."""

    def __init__(self, feed: Feed, file: HistoryFile, clock: Callable[[], int] = unix_ms) -> None:
        """`clock` returns Unix milliseconds."""
        self._feed, self._file, self._clock = feed, file, clock
        self._next = 0
        """The first minute that is not written."""

    @property
    def days(self) -> int:
        """How many are kept."""
        return self._file.days

    async def restore(self) -> None:
        """Take the last hour of before back into the memory, while new points may already come."""
        now = self._next = self._now
        with self._telling():
            rows = await asyncio.to_thread(self._file.minutes, now - RING_MINUTES + 1, now - 1)
            for number, (step, key, values) in enumerate(rows):
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                known = [float("nan") if value is None else value for value in values]
                self._feed.history.restore(key, step, known[: len(figures_of(key[1]))])

    async def keep(self) -> None:
        """Write all minutes that are over, as far back as the memory goes."""
        now = self._now
        self._next = max(min(self._next, now), now - RING_MINUTES + 1)
        with self._telling():
            while self._next < now:
                points = self._feed.history.minute(self._next)
                await asyncio.to_thread(self._write, self._next, points)
                self._next += 1

    async def run(self) -> None:
        """Restore, then write each minute, until cancelled."""
        await self.restore()
        while True:
            await asyncio.sleep((MINUTES.step_ms - self._clock() % MINUTES.step_ms) / 1000 + LATE_S)
            await self.keep()

    async def lines(self, node: str, container: str, minutes: int) -> Lines:
        """Return the points of the last `minutes`, of a container by its short id, or with "" of the node.

        An hour comes from the memory, more from the file. Raises HistoryError.
        """
        now_ms = self._clock()
        if minutes <= RING_MINUTES:
            return self._feed.history.lines(node, container, now_ms, minutes)
        return await asyncio.to_thread(self._file.lines, (node, container), minutes, now_ms)

    @property
    def _now(self) -> int:
        return self._clock() // MINUTES.step_ms

    def _write(self, minute: int, points: "list[tuple[Key, list[array[float]]]]") -> None:
        self._file.put(minute, rolled(points))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the model what goes wrong, and that it is over."""
        model = self._feed.model
        try:
            yield
        except HistoryError as error:
            if model.unkept is None or model.unkept.text != str(error):
                _log.warning("history.not-kept", error=str(error))
            since_ms = model.unkept.since_ms if model.unkept else self._clock()
            model.keeping(Trouble(text=str(error), mend=error.mend, since_ms=since_ms))
        else:
            model.keeping(None)


@asynccontextmanager
async def keeping(feed: Feed, file: HistoryFile) -> AsyncIterator[Keeper]:
    """Keep the history of `feed` in `file` while the block lasts; figures of the whole tree flow as long."""
    keeper = Keeper(feed, file)
    with feed.watching():
        running = asyncio.create_task(keeper.run())
        try:
            yield keeper
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
