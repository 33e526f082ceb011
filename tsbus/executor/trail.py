"""Trail: the audit logs of a node read back, the newest first: what the executor, the container monitor and the node
itself wrote down of their callers (tsbus/audit.py). An edge: it reads files, and takes a while.
"""

import heapq
import json
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Final

from tsbus.audit import FILES, Entry, Outcome, Wish

MAX_READ: Final = 32 << 20
"""Bytes of one log that one question reads; what is before them is left out, and that is said."""
MAX_LINE: Final = 1 << 20
"""No line of ours is as long."""
MAX_TEXT: Final = 1000
"""Characters that an entry has of a command; the log has more."""
MAX_OPEN: Final = 1000
"""Ends whose begin has not been found yet."""
_BLOCK: Final = 64 << 10

Record = dict[str, Any]


def find_logs(files: Iterable[Path], folder: Path) -> list[Path]:
    """Return the audit logs of this node: `files`, and those of other services in `folder` and just below."""
    found = [*files, *folder.glob("*-audit.log"), *folder.glob("*/*-audit.log")]
    return list({path.resolve(): path for path in found}.values())


def read(logs: Iterable[Path], wish: Wish) -> tuple[list[Entry], bool, list[str]]:
    """Return the entries that are wanted, the newest first; whether there is nothing else; what could not be read."""
    troubles: list[str] = []
    with ExitStack() as stack:
        trails = [_Trail(stack, path, troubles) for path in logs]
        told = heapq.merge(*(_wanted(trail, wish) for trail in trails), key=lambda one: one.time_ms, reverse=True)
        found = list(islice(told, wish.last + 1))
    return found[: wish.last], len(found) <= wish.last and all(trail.is_whole for trail in trails), troubles


def _wanted(trail: "_Trail", wish: Wish) -> Iterator[Entry]:
    return filter(wish.fits, takewhile(lambda one: one.time_ms >= wish.since_ms, entries(trail.records())))


class _Trail:
    """One log with those that it became before."""

    def __init__(self, stack: ExitStack, path: Path, troubles: list[str]) -> None:
        """`stack` closes the files; what cannot be read goes to `troubles`."""
        self.is_whole = True
        # All are opened before the first is read: one that is rotated meanwhile is neither missed nor read twice.
        self._files: dict[tuple[int, int], tuple[int, int]] = {}
        for each in (path, *(Path(f"{path}.{number}") for number in range(1, FILES))):
            try:
                file = os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as error:
                troubles.append(f"cannot read {each}: {error.strerror}")
                continue
            stack.callback(os.close, file)
            about = os.fstat(file)
            if stat.S_ISREG(about.st_mode):
                self._files.setdefault((about.st_dev, about.st_ino), (file, about.st_size))

    def records(self) -> Iterator[Record]:
        """Return what the lines say, the last one first; what is no record is left out."""
        room = MAX_READ
        for file, size in self._files.values():
            self.is_whole = self.is_whole and size <= room
            for line in _lines(file, size, max(size - room, 0)):
                try:
                    record = json.loads(line)  # msgspec would refuse the surrogates in some of our own lines
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield record
            room = max(room - size, 0)


def _lines(file: int, end: int, begin: int) -> Iterator[bytes]:
    """Return the lines between two places of a file, the last one first."""
    rest = b""
    while end > begin:
        size = min(_BLOCK, end - begin)
        end -= size
        rest, *lines = (os.pread(file, size, end) + rest).split(b"\n")
        yield from reversed(lines)
        if len(rest) > MAX_LINE:
            rest = b""
    yield rest


# Pure from here on ----------------------------------------------------------------------------------------------------


def entries(records: Iterable[Record]) -> Iterator[Entry]:
    """Put begin and end of each thing together, from records that come the newest first."""
    ends: dict[Any, Record] = {}
    for record in records:
        kind = record.get("record")
        if kind == "end":
            ends[_key(record)] = record
            if len(ends) > MAX_OPEN:
                del ends[next(iter(ends))]
        elif kind == "start":
            if entry := _entry(record, ends.pop(_key(record), None)):
                yield entry
        elif kind == "refused" and (entry := _entry(record, record)):
            yield entry


def _key(record: Record) -> tuple[str, str]:
    """What the lines of one thing have in common: a number of their service, or the call."""
    name = next((name for name in ("job", "number") if name in record), "")
    return name, str(record[name] if name else (record.get("handle"), record.get("call")))


def _entry(start: Record, end: Record | None) -> Entry | None:
    """Return the entry; None for what is none of ours."""
    outcome, why = _outcome(end)
    took_ms = (end or {}).get("duration_ms", (end or {}).get("took_ms"))
    try:
        return Entry(
            time_ms=_time_ms(start["time"]),
            command=_text(start.get("command", "exec.run")),
            what=_what(start),
            who=_text(start.get("who", "")),
            person=_text(start.get("person", "")),
            origin=_text(start.get("origin", "")),
            role=_text(start.get("role", "")),
            run_as=_text(start.get("run_as") or start.get("user", "")),
            outcome=outcome,
            why=why,
            took_ms=took_ms if isinstance(took_ms, int) else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _outcome(end: Record | None) -> tuple[Outcome, str]:
    if end is None:
        return "open", ""
    if end.get("record") == "refused":
        return "refused", _text(end.get("reason", ""))
    signal, code = end.get("signal"), end.get("exit")
    why = end.get("reason") or end.get("error") or (f"killed by {signal}" if signal else f"exit {code}" if code else "")
    return ("failed" if why or end.get("ok") is False else "ok"), _text(why)


def _what(record: Record) -> str:
    """Return what the command was about: a program, or the names of containers or an image."""
    if "argv" in record:
        return _text(shlex.join(map(str, record["argv"])))
    if record.get("containers"):
        return _text(" ".join(str(name or number) for number, name in record["containers"]))
    order = record.get("order")
    return _text(record.get("shell") or (order.get("image", "") if isinstance(order, dict) else ""))


def _time_ms(time: object) -> int:
    """Return Unix milliseconds of a time as records have it: a text with its zone, or seconds."""
    seconds = datetime.fromisoformat(time).timestamp() if isinstance(time, str) else float(str(time))
    return round(seconds * 1000)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    # Surrogates stand for bytes that are no UTF-8, and cannot be sent.
    text = text[:MAX_TEXT]
    return text if text.isascii() else text.encode(errors="replace").decode()
