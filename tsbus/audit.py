"""The audit log: one JSON line for each thing that somebody did or was not allowed to do. The edge to its file.

The services that act for callers write it: executor and containers. A line that cannot be written is an error: without
a trace nothing is done.
"""

import ctypes
import errno
import itertools
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

MAX_BYTES = 10 << 20
"""Of one file; then it becomes FILE.1, which becomes FILE.2 and so on."""
FILES = 10
"""How many files are kept in all."""
_ROOM_BYTES = 1024
"""What the lines of a program take, mostly."""
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of <linux/falloc.h>

Outcome = Literal["ok", "failed", "refused", "open"]
"""`open`: it is under way, or its end was not written down."""
MAX_ENTRIES = 1000
"""That one answer has."""


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which entries somebody wants to see: the body of `exec.audit`."""

    last: Annotated[int, msgspec.Meta(ge=1, le=MAX_ENTRIES)] = 100
    since_ms: int = 0
    """Unix milliseconds."""
    person: str = ""
    """Of whom: the person, or the caller, as "uid:1000" or without its kind."""
    command: str = ""
    """A part of the command or of what it was about."""

    def fits(self, entry: "Entry") -> bool:
        """Tell whether the person and the command of an entry are wanted."""
        names = (entry.person, entry.who, entry.who.partition(":")[2])
        return (not self.person or self.person in names) and self.command in f"{entry.command} {entry.what}"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that somebody did or was not allowed to do, from its begin to its end."""

    time_ms: int
    """When it began, Unix milliseconds of the node's clock."""
    command: str
    """`exec.run`, `containers.stop` ..."""
    what: str = ""
    """The program that was run, the containers, the image."""
    who: str = ""
    person: str = ""
    """For whom, as the caller says."""
    origin: str = ""
    """The node where the caller was."""
    role: str = ""
    run_as: str = ""
    """The user as whom a program ran."""
    outcome: Outcome
    why: str = ""
    """Why it failed or was refused."""
    took_ms: int | None = None


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """The first piece of the answer of `exec.audit`; lists of entries follow, the newest first."""

    entries: int
    whole: bool
    """Whether there is nothing before or beside them that was wanted."""
    problems: tuple[str, ...] = ()
    """Which logs cannot be read, and why."""


def time_now() -> str:
    """Return the time as records have it: UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class AuditError(Exception):
    """The audit log cannot be written; the text says which file and why."""


class AuditLog:
    """The file at `path`. It is opened for each line, so that it may be moved, rotated or deleted at any time."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, files: int = FILES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        self._torn = False
        self._failed = False

    def write(self, record: dict[str, Any]) -> None:
        """Append `record` as one line. Raises AuditError."""
        # ASCII: no character of a caller can look like the end of a line, and unpaired surrogates can be written.
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            if self._is_full(len(line)):
                self._rotate()
            self._append(line)
            self._failed = False
        except OSError as error:
            self._failed = True
            raise AuditError(self._why(error)) from error

    def trouble(self) -> str:
        """Return why no line could be written now, "" when one could. Takes room for one, and writes none."""
        try:
            if self._failed:
                # Not every file system can say whether there is room: only an empty line, which is none, shows it.
                self._append(b"\n")
            file = self._open()
            try:
                _take_room(file)
            finally:
                os.close(file)
        except OSError as error:
            return self._why(error)
        self._failed = False
        return ""

    def _why(self, error: OSError) -> str:
        return f"cannot write the audit log {self.path}: {error.strerror}"

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640)

    def _append(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        file = self._open()
        try:
            # The disk may be full in the middle of a line: the rest fails, and the next line starts on its own.
            written = os.write(file, line)
            self._torn = written < len(line)
            while written < len(line):
                written += os.write(file, line[written:])
            self._torn = False
        finally:
            os.close(file)

    def _is_full(self, more: int) -> bool:
        try:
            return self.path.stat().st_size + more > self._max_bytes
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        names = [self.path, *(Path(f"{self.path}.{number}") for number in range(1, self._files))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            if newer.exists():
                newer.replace(older)


def _take_room(file: int) -> None:
    """Have the file system keep room for the next lines of `file`, whose size stays. Raises OSError if there is none.

    What statvfs says does not help: a quota is not in it, nor what the file system keeps for itself.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_long(os.fstat(file).st_size)
    if libc.fallocate(file, _KEEP_SIZE, size, ctypes.c_long(_ROOM_BYTES)) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))
