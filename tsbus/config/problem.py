"""Problem: one thing that is wrong with a configuration file, said so that a person can mend it at once."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tsbus.config.forms import quote

Severity = Literal["error", "warning", "info"]
Path = tuple[str | int, ...]
"""Where a value stands in the structure: ("servers", "node1", "childs", 1)."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def show_path(path: Path) -> str:
    """Return `path` as a person writes it: servers.node1.childs[1]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else quote(part))
    return text


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. Lines and columns count from 1; line 0 means the file as a whole."""

    severity: Severity
    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        subject = f"{self.path}: " if self.path else ""
        return f"{place}: {self.severity}: {subject}{self.message}" + (f"; {self.hint}" if self.hint else "")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says why, all of them at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
