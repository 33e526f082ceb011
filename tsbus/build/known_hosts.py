"""Known hosts: whether a server shows the key that it is known by, as OpenSSH's known_hosts files say.

Host keys are compared as text: `ssh-ed25519 AAAA...`. A server that is known by a key of one kind and shows only one of
another kind has changed: whoever stands in its place could choose the kind.
"""

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from typing import Final, Literal

from tsbus.build.access import Login

Verdict = Literal["right", "unknown", "changed", "revoked"]
MAX_BYTES: Final = 64 << 20
"""Of a known_hosts file; one of 100,000 hosts has 15 MB."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """The public half."""

    kind: str
    """As `ssh-ed25519`."""
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As `SHA256:...`, which `ssh-keygen -l` shows."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"


@dataclass(frozen=True, slots=True)
class Line:
    """One entry of a file."""

    hosts: str
    key: HostKey
    revoked: bool = False


def name_of(login: Login) -> str:
    """Return how the host of `login` is written in known_hosts."""
    host = (login.known_as or login.host).lower()
    return host if login.known_as or login.port == 22 else f"[{host}]:{login.port}"


def parse(text: str) -> list[Line]:
    """Return the entries of a file; lines that make no sense are passed over, as OpenSSH does."""
    lines = []
    for line in text.splitlines():
        words = line.split(None, 3)
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        # Certificates of hosts are nothing that this console can check.
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        key = _key(words[1], words[2].split()[0])
        if key:
            lines.append(Line(words[0], key, marker == "@revoked"))
    return lines


def _key(kind: str, encoded: str) -> HostKey | None:
    try:
        return HostKey(kind, base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        return None


def is_of(hosts: str, name: str) -> bool:
    """Whether the first word of an entry means this host: a hash, or patterns between commas, `!` before those not."""
    if hosts.startswith("|1|"):
        return _is_hash_of(hosts, name)
    meant = False
    for pattern in hosts.split(","):
        if _matches(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            meant = True
    return meant


def _is_hash_of(hosts: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in hosts.split("|")[2:4])
    except ValueError:  # binascii's is one
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)


def _matches(pattern: str, name: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return pattern.lower() == name
    # Brackets stand for themselves there: [host]:port.
    return bool(re.match(translate(pattern.replace("[", "[[]")), name, re.IGNORECASE))


class Known:
    """What the files say, read once for all servers, and the recording of new keys. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Path, tuple[tuple[int, int], dict[str, list[Line]], list[Line]]] = {}

    def keys(self, login: Login) -> list[Line]:
        """Return the entries of the host of `login`. Raises OSError when a file is there and cannot be read."""
        if login.host_key:
            return []
        name = name_of(login)
        with self._lock:
            found = []
            for path in login.known_hosts:
                plain, others = self._read(path)
                found += plain.get(name, [])
                found += [line for line in others if is_of(line.hosts, name)]
            return found

    def check(self, login: Login, key: HostKey) -> Verdict:
        """Return whether `key` is that of the host. Raises OSError when a file cannot be read."""
        if login.host_key:
            return "right" if is_pinned(login.host_key, key) else "changed"
        return judge(self.keys(login), key)

    def record(self, login: Login, key: HostKey) -> Verdict:
        """Add the key of a host that has none to the first file; returns what it then is.

        Others may have been first, with another key. Raises OSError when the file cannot be written.
        """
        path = login.known_hosts[0]
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Appended in one write: it keeps what OpenSSH appends meanwhile, and a file that is a link. The lock is for us.
        with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            verdict = self.check(login, key)
            if verdict == "unknown":
                line = f"{name_of(login)} {key}\n".encode()
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
                verdict = "right"
            return verdict

    def _read(self, path: Path) -> tuple[dict[str, list[Line]], list[Line]]:
        """Return the entries by name, and those that have to be tried one by one."""
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                version = (status.st_mtime_ns, status.st_size)
                if path in self._files and self._files[path][0] == version:
                    return self._files[path][1:]
                text = file.read(MAX_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return {}, []
        plain: dict[str, list[Line]] = {}
        others = []
        for line in parse(text):
            if any(char in line.hosts for char in "|*?!"):
                others.append(line)
            else:
                for name in line.hosts.lower().split(","):
                    plain.setdefault(name, []).append(line)
        self._files[path] = (version, plain, others)
        return plain, others


def judge(lines: Iterable[Line], key: HostKey) -> Verdict:
    """Return what `key` is where these are the host's entries."""
    lines = list(lines)
    if any(line.revoked and line.key == key for line in lines):
        return "revoked"
    trusted = [line.key for line in lines if not line.revoked]
    if key in trusted:
        return "right"
    return "changed" if trusted else "unknown"


def is_pinned(pin: str, key: HostKey) -> bool:
    """Whether `key` is that of `host_key` in console.toml: a key or a fingerprint."""
    words = pin.split()
    if words[0].startswith("SHA256:"):
        return hmac.compare_digest(words[0].rstrip("="), key.fingerprint)
    return len(words) > 1 and _key(words[0], words[1]) == key
