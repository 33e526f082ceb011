"""Course: who comes next in a run, given how it has gone for others. Pure.

Early stages leave a server as it was, but for what is new beside the old: all servers go through them at once. Late
ones change what runs: they begin when the keys of all have been collected, with the root, then go down the tree. What
has failed is never touched again; when the root has, nothing of a late stage is done at all. Children of what has
failed are built all the same, and wait for it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tsbus.build import fleet
from tsbus.build.reports import Entered, Failed, Left, StageName
from tsbus.build.steps import Stage, Step
from tsbus.build.trouble import Trouble
from tsbus.core.target import fold
from tsbus.core.tree import Topology

EARLY: Final[frozenset[Stage]] = frozenset({"docker", "prepare", "bundle", "key"})
LATE: Final[frozenset[Stage]] = frozenset({"configure", "activate"})


class Course:
    """The servers of one run and how it has ended for those for whom it has."""

    def __init__(self, topology: Topology, names: Collection[str], max_fail: int | None = None) -> None:
        """`names` are the servers of the run; `max_fail`: failures after which no further server is begun."""
        self.topology = topology
        self.names = tuple(name for name in topology.names if name in names)
        self.failed: dict[str, Trouble] = {}
        self.skipped: dict[str, str] = {}
        """Why nothing more is done on a server that has not failed itself."""
        self._max_fail = None if max_fail is None else max(1, max_fail)

    @property
    def standing(self) -> tuple[str, ...]:
        """Those that have neither failed nor been left out."""
        return tuple(name for name in self.names if name not in self.failed and name not in self.skipped)

    @property
    def room(self) -> int | None:
        """How many more may fail before no further server is begun; None: any number."""
        return None if self._max_fail is None else max(0, self._max_fail - len(self.failed))

    @property
    def root_failed(self) -> bool:
        """Whether the root is in the run, and not to be counted on any more."""
        return self.topology.root in self.failed or self.topology.root in self.skipped

    @property
    def waiting(self) -> dict[str, str]:
        """Who stands, but below one that does not -> the nearest of these."""
        gone = {*self.failed, *self.skipped}
        return {name: above for name, above in fleet.waiting(self.topology, gone).items() if name in self.standing}

    def fail(self, name: str, trouble: Trouble) -> None:
        """The server has failed."""
        self.failed[name] = trouble

    def skip(self, name: str, why: str) -> None:
        """The server is left out from now on."""
        self.skipped[name] = why

    def early(self, steps: Mapping[str, tuple[Step, ...]]) -> tuple[str, ...]:
        """Return who has something to do in an early stage, by these steps."""
        return _with(steps, EARLY, self.standing)

    def waves(self, steps: Mapping[str, tuple[Step, ...]]) -> Iterator[tuple[str, ...]]:
        """Yield who has something to do in a late stage, one wave after the other.

        Each is to be done, and its failures told, before the next one is asked for. There is none after the root has
        failed.
        """
        depths = {name: self.topology.depth(name) for name in self.names}
        for depth in sorted(set(depths.values())):
            if self.root_failed:
                return
            if wave := _with(steps, LATE, [name for name in self.standing if depths[name] == depth]):
                yield wave


class Stages:
    """In which stage each server is, and since when."""

    def __init__(self) -> None:
        self._now: dict[str, tuple[StageName, float]] = {}
        self.last: dict[str, StageName] = {}
        """The last one that each has entered."""

    def enter(self, name: str, stage: StageName, now: float, doing: str = "") -> Iterator[Entered | Left]:
        """Let a server enter a stage, or another step of it; yields what is to be told.

        `now` is in seconds of any clock.
        """
        if name not in self._now or self._now[name][0] != stage:
            yield from self.leave(name, now)
            self._now[name] = stage, now
            self.last[name] = stage
        yield Entered(name, stage, doing)

    def leave(self, name: str, now: float) -> Iterator[Left]:
        """Let a server leave its stage well, if it is in one."""
        if name in self._now:
            stage, since = self._now.pop(name)
            yield Left(name, stage, now - since)

    def fail(self, name: str, stage: StageName, trouble: Trouble, now: float) -> Failed:
        """Let a server fail in its stage; in `stage` if it is in none."""
        there, since = self._now.pop(name, (stage, now))
        self.last[name] = there
        return Failed(name, there, trouble, now - since)

    def again(self, name: str) -> None:
        """Let a server begin its stages anew."""
        self._now.pop(name, None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run has ended: each of its servers is in exactly one of ok, waiting, failed and skipped."""

    names: tuple[str, ...]
    ok: tuple[str, ...] = ()
    """Built as they should be; after a whole run they have answered."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Built, and without a link until this one above them is."""
    failed: Mapping[str, Trouble] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Left out because of others -> why."""
    changed: Mapping[str, int] = field(default_factory=dict)
    """Steps that have changed something; only servers that have any."""
    answered: Mapping[str, float] = field(default_factory=dict)
    """The round trip over the bus in seconds."""
    root_failed: bool = False
    reached: bool = True
    """Whether any server could be logged in to."""
    locked: str = ""
    """Who builds meanwhile, and since when."""

    @property
    def exit_code(self) -> int:
        """As in docs/build.md."""
        if self.locked:
            return 6
        if self.names and not self.reached:
            return 4
        return 3 if self.failed or self.skipped or self.waiting else 0

    def __str__(self) -> str:
        parts = [f"ok {len(self.ok)} of {len(self.names)}"]
        for word, names in (("waiting", self.waiting), ("failed", self.failed), ("skipped", self.skipped)):
            parts += [f"{word} {len(names)}: {fold(names)}"] if names else []
        return "; ".join(parts)


def _with(steps: Mapping[str, tuple[Step, ...]], stages: Collection[Stage], names: Collection[str]) -> tuple[str, ...]:
    """Return those of `names` that have a step in one of the stages."""
    return tuple(name for name in names if any(step.stage in stages for step in steps.get(name, ())))
