"""Document: the text of one configuration file as plain data, with the place of every value in it.

Neighbours: scanner.py finds the places, reader.py makes structs of the data.
"""

import bisect
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from tsbus.config.forms import nearest
from tsbus.config.problem import Path, Problem, Severity, show_path
from tsbus.config.scanner import ScanError, Scanner

MAX_BYTES = 4 << 20
"""A tree of 10,000 servers needs about 2 MiB."""
MAX_PROBLEMS = 100
"""More of them help nobody, and the nearest name to each costs time."""

_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass
class Document:
    """One file: its plain data (None when there is none), the places of its keys, and the problems so far."""

    file: str
    data: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    _offsets: dict[Path, int] = field(default_factory=dict)
    _lines: list[int] = field(default_factory=lambda: [0])
    _untold: int = 0

    @property
    def failed(self) -> bool:
        """Whether there is an error among the problems."""
        return any(problem.severity == "error" for problem in self.problems)

    @property
    def full(self) -> bool:
        """Whether further problems are only counted."""
        return len(self.problems) >= MAX_PROBLEMS

    def note(self, severity: Severity, path: Path, message: str, hint: str = "") -> None:
        """Add a problem with the value at `path`, placed at the nearest key around it that has a place."""
        depth = len(path)
        while depth and path[:depth] not in self._offsets:
            depth -= 1
        place = self._place(self._offsets[path[:depth]]) if depth else (0, 0)
        self._add(severity, place, show_path(path), message, hint)

    def note_unknown(self, severity: Severity, path: Path, message: str, word: str, choices: Any) -> None:
        """Add a problem about a name that does not exist, with the nearest name as the hint."""
        self.note(severity, path, message, "" if self.full else nearest(word, choices))

    def close(self) -> None:
        """Put the problems in the order of the file, and say how many there was no room for."""
        self.problems.sort(key=lambda problem: (problem.line, problem.column))
        if self._untold:
            message = f"{self._untold} more problems"
            self.problems.append(Problem("error", self.file, 0, 0, "", message, "mend these first"))
            self._untold = 0

    def fail(self, place: tuple[int, int], message: str, hint: str = "") -> None:
        """Add an error about the text as such, at (line, column); (0, 0) is the whole file."""
        self._add("error", place, "", message, hint)

    def _add(self, severity: Severity, place: tuple[int, int], path: str, message: str, hint: str) -> None:
        if not self.full:
            self.problems.append(Problem(severity, self.file, *place, path, message, hint))
        elif severity == "error":
            self._untold += 1

    def _place(self, offset: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def _parse(self, text: str) -> None:
        self._lines += [match.end() for match in re.finditer("\n", text)]
        scanner = Scanner(text)
        self._offsets = scanner.offsets
        format_name = "JSON" if text.lstrip()[:1] == "{" else "TOML"
        try:
            data = _parse_json(text, scanner) if format_name == "JSON" else _parse_toml(text, scanner)
        except ScanError as error:
            self.fail(self._place(error.offset), error.message, error.hint)
        except json.JSONDecodeError as error:
            self.fail((error.lineno, error.colno), f"not JSON: {error.msg}")
        except (ValueError, RecursionError) as error:
            # Besides TOMLDecodeError: numbers with thousands of digits, and constants that JSON does not have.
            self.fail(self._toml_place(text, error), f"not {format_name}: {_TOML_PLACE.sub('', str(error))}")
        else:
            self.data = data
            self._tell_short_headers(scanner)

    def _toml_place(self, text: str, error: Exception) -> tuple[int, int]:
        found = _TOML_PLACE.search(str(error))
        if found is None:
            return 0, 0
        if found[1] is None:
            return self._place(len(text))
        # The parser saw re-rooted headers, which are longer than those in the file.
        line = int(found[1])
        end = self._lines[line] - 1 if line < len(self._lines) else len(text)
        return line, min(int(found[2]), end - self._lines[line - 1] + 1)

    def _tell_short_headers(self, scanner: Scanner) -> None:
        if scanner.short_headers:
            start, end, path = scanner.short_headers[0]
            message = f"short headers are read as part of the server above them: {scanner.text[start:end]} is "
            hint = "`treescale config show` prints this form"
            self._add("info", self._place(start), "", f"{message}[{show_path(path)}]", hint)


def parse(text: str, file: str) -> Document:
    """Return the document of `text`: JSON when it begins with {, otherwise TOML. `file` names it in problems."""
    document = Document(file)
    document._parse(text.removeprefix("\ufeff").replace("\r\n", "\n"))
    return document


def read(path: FilePath) -> Document:
    """Return the document of the file at `path`; one that cannot be read has a problem and no data."""
    document = Document(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) <= MAX_BYTES:
            return parse(content.decode(), str(path))
        document.fail((0, 0), f"larger than {MAX_BYTES >> 20} MiB", "is this the right file?")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        document.fail((line, column), "not UTF-8 text", "save the file as UTF-8")
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL in it.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        document.fail((0, 0), f"cannot be read: {reason}", "check the path and its permissions")
    return document


def _parse_json(text: str, scanner: Scanner) -> Any:
    scanner.scan_json()
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _parse_toml(text: str, scanner: Scanner) -> Any:
    """Parse the text with its short headers written out, on the same lines."""
    scanner.scan_toml()
    parts, at = [], 0
    for start, end, path in scanner.short_headers:
        parts += [text[at:start], "[", ".".join(json.dumps(key, ensure_ascii=False) for key in path), "]"]
        at = end
    return tomllib.loads("".join(parts) + text[at:])
