"""The audit log against a real file system, a full one included."""

import json
import stat
import subprocess
import sys
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


FILLED = """
import itertools, pathlib, sys
from tsbus.audit import AuditLog

folder = pathlib.Path(sys.argv[1])
log = AuditLog(folder / "audit.log")
log.write({"n": "x" * 4000})  # the rest of its block has no room for a line
try:
    with (folder / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
except OSError:
    print(log.trouble())
(folder / "fill").unlink()
print(log.trouble())
print(log.path.stat().st_size)
"""


def test_a_full_disk_is_known_before_a_line_is_lost(tmp_path: Path) -> None:
    """On a disk that fills up, the trouble is told while nobody writes, ends when there is room, and adds no byte."""
    mounted = f'mount -t tmpfs -o size=64k none "$1" && exec {sys.executable} -c "$2" "$1"'
    argv = ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted, "sh", str(tmp_path), FILLED]
    full, after, size = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (after, size) == ("", str(len('{"n":""}') + 4001))
    assert full == f"cannot write the audit log {tmp_path}/audit.log: No space left on device"


def test_what_cannot_say_whether_there_is_room_is_tried(tmp_path: Path) -> None:
    """Where only a line that was lost shows it, the trouble is told from then on, until one can be written."""
    file = tmp_path / "audit.log"
    file.symlink_to("/dev/full")
    log = AuditLog(file)
    assert log.trouble() == ""
    with pytest.raises(AuditError):
        log.write({"n": 1})
    assert log.trouble() == log.trouble() == f"cannot write the audit log {file}: No space left on device"
    file.unlink()
    assert log.trouble() == ""
    log.write({"n": 2})
    assert [json.loads(line) for line in file.read_text().split("\n") if line] == [{"n": 2}]
