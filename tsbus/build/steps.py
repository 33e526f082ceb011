"""Steps: what a plan is made of. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

StepKind = Literal[
    "python", "docker", "packages", "accounts", "folders", "modules", "settings", "release", "key", "config", "unit",
    "activate", "prune", "uninstall",
]  # fmt: skip
Stage = Literal["docker", "prepare", "bundle", "key", "configure", "activate", "clean"]
STAGES: Final[Mapping[StepKind, Stage]] = {
    "python": "docker",
    "docker": "docker",
    "packages": "docker",
    "accounts": "prepare",
    "folders": "prepare",
    "modules": "prepare",
    "settings": "prepare",
    "release": "bundle",
    "key": "key",
    "config": "configure",
    "unit": "configure",
    "activate": "activate",
    "prune": "activate",
    "uninstall": "clean",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one server."""

    kind: StepKind
    words: str
    """What is done, the same for all hosts where the same is done."""
    why: str
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the installer on the node needs, as plain data for JSON."""
    script: str = ""
    """The sh script that does it before there is an installer; empty: the installer does it."""
    reversible: bool = True
    """An uninstall takes it back."""

    @property
    def stage(self) -> Stage:
        """As in docs/build.md."""
        return STAGES[self.kind]

    def __str__(self) -> str:
        return f"{self.words}: {self.why}"


class Platform(NamedTuple):
    """What a bundle is made for."""

    machine: str
    libc: str
    python: int
    """Minor version of Python 3."""
    dashboard: bool = False
    """Whether the packages of the dashboard are in it."""

    def __str__(self) -> str:
        return f"cp3{self.python}-{self.libc}-{self.machine}{'-dashboard' if self.dashboard else ''}"
