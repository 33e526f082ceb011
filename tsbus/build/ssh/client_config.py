"""Client configuration: what ~/.ssh/config and /etc/ssh/ssh_config say of a host."""

import re
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any, Final

import paramiko

from tsbus.build.access import AccessError, Lookup

SYSTEM: Final = Path("/etc/ssh/ssh_config")
MAX_DEPTH: Final = 16
"""Of files that include others, as OpenSSH has it."""
_INCLUDE: Final = re.compile(r"\s*include(?:\s*=\s*|\s+)(.+)", re.IGNORECASE)
_BLOCK: Final = re.compile(r"\s*(?:host|match)\b.*", re.IGNORECASE)
_ALL: Final = "Host *"


def client_config(home: Path, system: Path = SYSTEM) -> Lookup:
    """Return a function that says what the user's and then the system's configuration have for a host.

    It raises AccessError, which says so where a file cannot be used.
    """
    user = home / ".ssh/config"
    lines = [_ALL, *_lines(user, user.parent, _ALL, 0), _ALL, *_lines(system, system.parent, _ALL, 0)]
    try:
        config = paramiko.SSHConfig.from_text("\n".join(lines))
        problem = ""
    except paramiko.SSHException as error:
        problem = str(error)

    def lookup(host: str) -> Mapping[str, Any]:
        if problem:
            raise _unusable(problem)
        try:
            found: Mapping[str, Any] = config.lookup(host)
        except (paramiko.SSHException, ImportError, KeyError, ValueError, OSError) as error:
            raise _unusable(f"{type(error).__name__}: {error}") from None
        return found

    return lookup


def _unusable(why: str) -> AccessError:
    return AccessError(f"your SSH configuration cannot be used: {why}", "mend ~/.ssh/config")


def _lines(path: Path, base: Path, block: str, depth: int) -> Iterator[str]:
    """Yield the lines of a file, with those of the files that it includes in their places.

    `block`: the Host or Match line under which it is included. Blocks of a file that is included under one are read as
    if they were not.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        included = _INCLUDE.fullmatch(line)
        if not included:
            block = line if _BLOCK.fullmatch(line) else block
            yield line
        elif depth < MAX_DEPTH:
            for pattern in included[1].split():
                name = Path(pattern.strip('"')).expanduser()
                for found in sorted(glob(str(base / name))):  # noqa: PTH207  (the pattern may be absolute)
                    yield from _lines(Path(found), base, block, depth + 1)
                    yield block
