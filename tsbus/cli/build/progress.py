"""Progress: what a run of the build has come to, from its reports. Pure: time comes with each report."""

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from tsbus.build.reports import (
    STAGES,
    Answered,
    Entered,
    Failed,
    Left,
    Noted,
    Opened,
    Report,
    Sent,
    Skipped,
    StageName,
    Stepped,
)

State = Literal["waiting", "working", "done", "failed", "skipped"]
"""Of one server in one stage."""
_LAST: Final[tuple[StageName, ...]] = ("activate", "clean")


@dataclass(slots=True)
class Work:
    """What somebody does on a server now."""

    name: str
    stage: StageName
    since_s: float
    """When the server came into this stage."""
    doing: str = ""


class Upload(NamedTuple):
    """Bytes of the bundle, of all servers that have begun to take it."""

    have: int
    total: int


class Progress:
    """How far every server is. It keeps a few words for each, whatever is reported."""

    def __init__(self, now_s: float) -> None:
        self._begun_s = now_s
        self._stages: dict[StageName, dict[str, State]] = {}
        self._working: dict[str, Work] = {}
        self._sent: dict[str, Sent] = {}
        self._ended: set[str] = set()
        """Those of whom nothing more comes."""
        self.failed: dict[str, Failed] = {}
        """In the order in which it happened."""

    def take(self, report: Report, now_s: float) -> None:
        """Go on by one report."""
        match report:
            case Opened(stage, names):
                states = self._stages.setdefault(stage, {})
                for name in names:
                    states.setdefault(name, "waiting")
            case Entered(name, stage, doing):
                self._enter(name, stage, doing, now_s)
            case Stepped(name, step):
                if name in self._working:
                    self._working[name].doing = f"{step.words}: done"
            case Sent(name):
                self._sent[name] = report
            case Noted(name, text):
                if name in self._working:
                    self._working[name].doing = text
            case Left(name, stage):
                self._leave(name, stage)
            case Failed(name, stage):
                self.failed[name] = report
                self._end(name, stage, "failed")
            case Skipped(name, stage):
                self._end(name, stage, "skipped")
            case Answered():
                pass  # the summary tells; that it has left the stage is told as well

    def elapsed_s(self, now_s: float) -> float:
        """Return how long the run has been going."""
        return now_s - self._begun_s

    def counts(self) -> dict[StageName, Counter[State]]:
        """Return how many servers of each stage are in which state, in the order of the stages.

        Whom a stage has lost to an earlier one, where the server failed or was left out, does not count.
        """
        return {stage: Counter(self._stages[stage].values()) for stage in STAGES if self._stages.get(stage)}

    def longest(self, most: int) -> list[Work]:
        """Return those that have been at work in their stage for longest."""
        return sorted(self._working.values(), key=lambda work: work.since_s)[:most]

    def upload(self) -> Upload | None:
        """Return what has been uploaded, None when nothing was."""
        sent = self._sent.values()
        return Upload(sum(each.have for each in sent), sum(each.total for each in sent)) if sent else None

    def upload_of(self, name: str) -> Upload | None:
        """Return what a server has of the bundle while that comes; None before and after."""
        sent = self._sent.get(name)
        return Upload(sent.have, sent.total) if sent and sent.have < sent.total else None

    def finished(self) -> list[str]:
        """Return the servers that have gone well through the stage after which they are what they should be."""
        done = [name for stage in _LAST for name, state in self._stages.get(stage, {}).items() if state == "done"]
        return [name for name in done if name not in self._ended]

    def _enter(self, name: str, stage: StageName, doing: str, now_s: float) -> None:
        work = self._working.get(name)
        if work is None or work.stage != stage:
            work = self._working[name] = Work(name, stage, now_s)
        work.doing = doing or work.doing
        self._stages.setdefault(stage, {})[name] = "working"

    def _leave(self, name: str, stage: StageName) -> None:
        self._stages.setdefault(stage, {})[name] = "done"
        if name in self._working and self._working[name].stage == stage:
            del self._working[name]

    def _end(self, name: str, stage: StageName, state: State) -> None:
        """Nothing more comes of the server: take it out of the stages that still waited for it."""
        self._ended.add(name)
        self._working.pop(name, None)
        for states in self._stages.values():
            if states.get(name) in ("waiting", "working"):
                del states[name]
        self._stages.setdefault(stage, {})[name] = state
