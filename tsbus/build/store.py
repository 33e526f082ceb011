"""Store: what the console remembers of its servers, in `.treescale/` beside console.toml. The edge to these files.

keys.json has the servers' public keys as they were last seen; whoever shows another one is refused. state.json says how
far each server got, for people and for `--failed`: the truth is probed anew by every run. logs/RUN/SERVER.log is all
that a server said. Nobody but the user may read any of it.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from tsbus.config import Console

FOLDER: Final = ".treescale"
RUNS: Final = 20
"""Runs whose transcripts are kept: of those that change servers, and of those that only look."""
_CHANGES: Final = ".changes"
"""Is among the transcripts of a run of the first kind: a `status` every minute must not push them out."""
MAX_BYTES: Final = 4 << 20
"""Of the transcript of one server in one run."""
_FORMAT: Final = 1
_RUN: Final = re.compile(r"\d{8}-\d{6}-\d{3}")


class StoreError(Exception):
    """What is remembered cannot be read or written; the text says which file, and what to do."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """How the last run of a server ended."""

    stage: str
    """The last one that it entered."""
    kind: str = ""
    """Of the trouble that ended it; empty when all went well, or when it was left out because of others."""
    text: str = ""
    """The trouble, or why it was left out."""
    release: str = ""
    """The one in use, as far as is known."""
    config: str = ""
    """SHA-256 of the copy of the tree that it was last seen to have; empty: none."""
    time_s: float = 0.0
    """When, in seconds since 1970."""


class Store:
    """The folder of one console.toml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, console: Console) -> Self:
        """Return that of a console's file."""
        return cls(console.beside(FOLDER))

    def keys(self) -> dict[str, str]:
        """Return the public keys of the servers, as they were last seen. Raises StoreError."""
        mend = "put a copy back: without it, nobody notices a server that was made anew"
        found = self._read("keys.json", "keys", mend)
        if not all(isinstance(key, str) for key in found.values()):
            raise StoreError(f"{self.folder / 'keys.json'} is damaged; {mend}")
        return found

    def save_keys(self, keys: Mapping[str, str]) -> None:
        """Remember the public keys of all servers. Raises StoreError."""
        self._write("keys.json", "keys", dict(keys))

    def revoked(self) -> dict[str, str]:
        """Return the servers whose key nobody is to take any more, and that key. Raises StoreError."""
        mend = "put a copy back: without it, the next build takes revoked keys for good ones"
        return self._read("revoked.json", "keys", mend)

    def save_revoked(self, keys: Mapping[str, str]) -> None:
        """Remember which keys are revoked. Raises StoreError."""
        self._write("revoked.json", "keys", dict(keys))

    def states(self) -> dict[str, Remembered]:
        """Return how each server's last run ended. Raises StoreError."""
        mend = "remove it: builds do not need it"
        try:
            return {name: Remembered(**each) for name, each in self._read("state.json", "servers", mend).items()}
        except TypeError:
            raise StoreError(f"{self.folder / 'state.json'} is damaged; {mend}") from None

    def save_states(self, states: Mapping[str, Remembered]) -> None:
        """Remember how the last runs of all servers ended. Raises StoreError."""
        self._write("state.json", "servers", {name: asdict(each) for name, each in states.items()})

    def failed(self) -> tuple[str, ...]:
        """Return the servers whose last run did not go to its end, for `--failed`. Raises StoreError."""
        return tuple(name for name, each in self.states().items() if each.text)

    def transcripts(self, mask: Callable[[str], str]) -> "Transcripts":
        """Begin the transcripts of a new run, and remove those of old ones; `mask` hides secrets. Raises StoreError."""
        logs = self.folder / "logs"
        try:
            self._make()
            logs.mkdir(0o700, exist_ok=True)
            runs = sorted(each for each in logs.iterdir() if _RUN.fullmatch(each.name))
            for changing in (True, False):
                for old in [each for each in runs if (each / _CHANGES).exists() is changing][: 1 - RUNS]:
                    shutil.rmtree(old)
            return Transcripts(_new_folder(logs), mask)
        except OSError as error:
            raise StoreError(f"{error.filename or logs} cannot be written: {error.strerror}") from error

    def _read(self, file: str, key: str, mend: str) -> dict[str, Any]:
        path = self.folder / file
        try:
            found = json.loads(path.read_bytes())
            if found["format"] == _FORMAT and isinstance(found[key], dict):
                return dict(found[key])
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        raise StoreError(f"{path} is damaged; {mend}")

    def _write(self, file: str, key: str, value: Mapping[str, Any]) -> None:
        """Write a file in one step, so that there is always a whole one."""
        path = self.folder / file
        try:
            self._make()
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=f".{file}.", delete=False) as new:
                json.dump({"format": _FORMAT, key: value}, new, indent=1)
                new.flush()
                os.fsync(new.fileno())
            Path(new.name).replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error

    def _make(self) -> None:
        self.folder.mkdir(0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)


class Transcripts:
    """All that the servers of one run said. Threads may share it, one for each server at a time."""

    def __init__(self, folder: Path, mask: Callable[[str], str]) -> None:
        self.folder = folder
        self._mask = mask
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """Return where the transcript of a server is."""
        return self.folder / f"{name}.log"

    def mark(self) -> None:
        """Note that the run changes servers."""
        (self.folder / _CHANGES).touch(0o600)

    def add(self, name: str, text: str) -> None:
        """Write down one more line of a server. What it says beyond MAX_BYTES is left out."""
        line = f"{time.strftime('%H:%M:%S')} {self._mask(text)}\n".encode(errors="replace")
        with self._lock:
            before = self._sizes.get(name, 0)
            self._sizes[name] = before + len(line)
        if before > MAX_BYTES:
            return
        if before + len(line) > MAX_BYTES:
            line = b"... the rest is left out\n"
        with os.fdopen(os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            file.write(line)


def _new_folder(parent: Path) -> Path:
    """Make a folder that is named after this moment, and that nobody else has."""
    while True:
        now = time.time()
        folder = parent / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now * 1000) % 1000:03d}"
        with contextlib.suppress(FileExistsError):  # another run began in the same millisecond
            folder.mkdir(0o700)
            return folder
