"""Scanner: where every key and every array element stands in a TOML or JSON text, and which headers are short.

The standard parsers give positions for syntax errors only. This one walk over the text finds the positions of all
keys, and re-roots the short headers of TOML files: `[balancers]`, `[balancers.X]` and `[containers]` belong to the
last `[servers.NAME]` header above them. It judges no syntax: at the first thing it cannot read it stops, and the
parser that document.py runs next says what is wrong.
"""

import json
import re
import tomllib
from typing import NamedTuple

from tsbus.config.problem import Path

MAX_DEPTH = 16
"""Levels of nesting. The real format needs six; the parsers recurse, and this keeps hostile files from doing harm."""
MAX_VALUES = 200_000
"""Keys and array elements of one file; 10,000 servers have 130,000. It bounds the time that a hostile file can take."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^\s,\[\]{}#\"'=][^\n,\]}#]*")
BALANCER_TABLES = ("containers", "servers", "server_weights")


class ScanError(Exception):
    """A fault that the scanner itself must report, because the parser would fail on it or say less."""

    def __init__(self, offset: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.offset, self.message, self.hint = offset, message, hint


class ShortHeader(NamedTuple):
    """A header that was re-rooted: its span in the text, and what stands there instead."""

    start: int
    end: int
    path: tuple[str, ...]


class _Unreadable(Exception):
    """Ends the scan; the parser will say what is wrong."""


class Scanner:
    """One walk over one text; `offsets` and `short_headers` are its results. Raises ScanError from the walks."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.offsets: dict[Path, int] = {}
        self.short_headers: list[ShortHeader] = []
        self._at = 0
        self._json = False
        self._array_index: dict[Path, int] = {}
        self._headers: set[Path] = set()
        self._server: str | None = None
        self._balancer: tuple[str, ...] | None = None

    def scan_json(self) -> None:
        """Walk over a JSON text."""
        self._json = True
        try:
            self._skip(_BLANK)
            self._value(())
        except _Unreadable:
            pass

    def scan_toml(self) -> None:
        """Walk over a TOML text."""
        table: Path = ()
        try:
            self._skip(_BLANK)
            while self._at < len(self.text):
                if self._peek() == "[":
                    table = self._header()
                else:
                    self._pair(table)
                self._skip(_BLANK)
        except _Unreadable:
            pass

    def _peek(self) -> str:
        return self.text[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self._at)
        if match is None:
            raise _Unreadable
        self._at = match.end()
        return match.group()

    def _expect(self, token: str) -> None:
        if not self.text.startswith(token, self._at):
            raise _Unreadable
        self._at += len(token)

    def _header(self) -> Path:
        start = self._at
        brackets = 2 if self.text.startswith("[[", start) else 1
        self._expect("[" * brackets)
        keys = self._dotted_key()
        self._expect("]" * brackets)
        full = tuple(key for key, _ in keys)
        if brackets == 1:
            full = self._rooted(full, start)
        path: Path = ()
        ends = [keys[0][1]] * (len(full) - len(keys)) + [offset for _, offset in keys]
        for depth, (key, offset) in enumerate(zip(full, ends, strict=True), 1):
            path = (*path, key)
            self.offsets.setdefault(path, offset)
            if brackets == 2 and depth == len(full):
                self._array_index[path] = self._array_index.get(path, -1) + 1
            if path in self._array_index:
                path = (*path, self._array_index[path])
                self.offsets.setdefault(path, start)
        return path

    def _rooted(self, header: tuple[str, ...], start: int) -> tuple[str, ...]:
        """Return the full path of `header`, and remember the server and the balancer that it opens."""
        full = header
        if header[0] == "balancers" and self._server is not None:
            full = ("servers", self._server, *header)
        elif header == ("containers",) and self._balancer is not None:
            full = (*self._balancer, "containers")
        if full != header:
            self.short_headers.append(ShortHeader(start, self._at, full))
            if full in self._headers:
                hint = f"give each balancer a name: [servers.{self._server}.balancers.NAME]"
                shown = ".".join(header)
                raise ScanError(start, f'the second [{shown}] of server "{self._server}"', hint)
        self._headers.add(full)
        if full[0] == "servers" and len(full) >= 2:
            if full[1] != self._server:
                self._server, self._balancer = full[1], None
            if len(full) >= 3 and full[2] == "balancers":
                named = len(full) >= 4 and full[3] not in BALANCER_TABLES
                self._balancer = full[: 4 if named else 3]
        return full

    def _pair(self, table: Path) -> None:
        path = table
        for key, offset in self._dotted_key():
            path = (*path, key)
            if self._json and path in self.offsets:
                raise ScanError(offset, f"the key {json.dumps(key)} is given twice", "keep one of them")
            self.offsets.setdefault(path, offset)
        self._expect(":" if self._json else "=")
        self._skip(_BLANK if self._json else _SPACE)
        self._value(path)

    def _dotted_key(self) -> list[tuple[str, int]]:
        blank = _BLANK if self._json else _SPACE
        keys: list[tuple[str, int]] = []
        while True:
            self._skip(blank)
            start = self._at
            if self._peek() in ('"', "'"):
                keys.append((self._unquote(self._skip(_STRING)), start))
            else:
                keys.append((self._skip(_BARE_KEY), start))
            self._check_size(len(keys))
            self._skip(blank)
            if self._json or self._peek() != ".":
                return keys
            self._expect(".")

    def _unquote(self, token: str) -> str:
        if "\\" not in token or token[0] == "'":
            return token[1:-1]
        try:
            return str(json.loads(token) if self._json else tomllib.loads(f"key = {token}")["key"])
        except ValueError:
            raise _Unreadable from None

    def _value(self, path: Path) -> None:
        self._check_size(len(path))
        char = self._peek()
        if char == "[":
            self._items("]", path)
        elif char == "{":
            self._items("}", path)
        else:
            self._skip(_STRING if char in ('"', "'") else _SCALAR)

    def _items(self, end: str, path: Path) -> None:
        """Walk over the elements of an array or the pairs of an inline table."""
        self._at += 1
        index = 0
        self._skip(_BLANK)
        while self._peek() != end:
            if end == "}":
                self._pair(path)
            else:
                self.offsets[(*path, index)] = self._at
                self._value((*path, index))
                index += 1
            self._skip(_BLANK)
            if self._peek() != end:
                self._expect(",")
                self._skip(_BLANK)
        self._at += 1

    def _check_size(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ScanError(self._at, f"nested more than {MAX_DEPTH} levels deep", "no key of this format is so deep")
        if len(self.offsets) > MAX_VALUES:
            raise ScanError(self._at, f"more than {MAX_VALUES} keys and elements", "is this the right file?")
