"""Reports: what a run says of itself while it goes, to whoever draws it and to the transcripts. Pure.

A run yields them in the order in which things happen. What is in them may be shown: secrets are masked already.
"""

from dataclasses import dataclass
from typing import Final, Literal

from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble

StageName = Literal[
    "probe", "docker", "prepare", "bundle", "key", "configure", "activate", "verify", "drain", "clean"
]  # fmt: skip
STAGES: Final[tuple[StageName, ...]] = (
    "probe", "drain", "docker", "prepare", "bundle", "key", "configure", "activate", "verify", "clean",
)  # fmt: skip
"""In their order; drain and clean are those of servers that leave."""


@dataclass(frozen=True, slots=True)
class Opened:
    """These servers have something to do in this stage; what they have in the stages before comes first."""

    stage: StageName
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entered:
    """Somebody works on the server, in this stage."""

    name: str
    stage: StageName
    doing: str = ""
    """The step that begins, in its words; empty where it is the stage as a whole."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step of the server's plan has ended well."""

    name: str
    step: Step
    changed: bool
    """Whether anything was to be done."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Sent:
    """How much of the bundle the server has, in bytes."""

    name: str
    have: int
    total: int


@dataclass(frozen=True, slots=True)
class Noted:
    """One line to know, of a server, or of the whole run where `name` is empty: a warning, a wait, another try."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Left:
    """The server has gone well through the stage."""

    name: str
    stage: StageName
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The server has not; it is left as it was before that stage, and nothing more is done on it."""

    name: str
    stage: StageName
    trouble: Trouble
    seconds: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing more is done on the server, because of others."""

    name: str
    stage: StageName
    why: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The message from the root has come back from the server, over the bus."""

    name: str
    rtt_s: float


Report = Opened | Entered | Stepped | Sent | Noted | Left | Failed | Skipped | Answered
