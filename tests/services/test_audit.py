"""The audit log against a real file system, a full one included."""

import json
import stat
from pathlib import Path

import pytest

from tsbus.audit import AuditError, AuditLog


def test_lines(tmp_path: Path) -> None:
    """Each record is one line of JSON, whatever is in it, in a file that others cannot read."""
    log = AuditLog(tmp_path / "audit.log")
    records = [{"argv": ["a\nb", "\u2028", "\udcff"]}, {"n": 2}]
    for record in records:
        log.write(record)
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == records
    assert stat.S_IMODE(log.path.stat().st_mode) & 0o137 == 0


def test_moved_away(tmp_path: Path) -> None:
    """When somebody moves the file away, the next record starts a new one."""
    log = AuditLog(tmp_path / "audit.log")
    log.write({"n": 1})
    log.path.rename(tmp_path / "old")
    log.write({"n": 2})
    assert log.path.read_text() == '{"n":2}\n'


def test_rotation(tmp_path: Path) -> None:
    """Files stay within their size and their number; the newest records are kept, whole and in order."""
    log = AuditLog(tmp_path / "audit.log", max_bytes=100, files=3)
    for number in range(100):
        log.write({"n": number})
    files = [tmp_path / "audit.log.2", tmp_path / "audit.log.1", tmp_path / "audit.log"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 100 for file in files)
    numbers = [json.loads(line)["n"] for file in files for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 100))


def test_full_disk() -> None:
    """A full disk is an error that names the file and the cause."""
    with pytest.raises(AuditError, match="cannot write the audit log /dev/full: No space left on device"):
        AuditLog(Path("/dev/full")).write({"n": 1})


def test_no_directory(tmp_path: Path) -> None:
    """A missing directory is an error, and no directory is made."""
    with pytest.raises(AuditError, match="No such file or directory"):
        AuditLog(tmp_path / "no" / "audit.log").write({"n": 1})
    assert not list(tmp_path.iterdir())
