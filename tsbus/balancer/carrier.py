"""Carrier: carries a plan out in the kernel, and writes down before what becomes ours. Blocks; for one thread."""

from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsbus.balancer import statefile, steps
from tsbus.balancer.machine import Machine, MachineError
from tsbus.balancer.netfilter import Done
from tsbus.balancer.report import Problem
from tsbus.balancer.rules import Front, listens_of
from tsbus.balancer.statefile import State, StateError
from tsbus.balancer.steps import Pool, Step, Wanted, key_of
from tsbus.balancer.table import Address, Entry, Key
from tsbus.balancer.world import Override


@dataclass(frozen=True, slots=True)
class Carried:
    """What came of a plan."""

    steps: tuple[Step, ...] = ()
    """That were taken."""
    repaired: tuple[Step, ...] = ()
    """Those of them that mended what somebody else had changed."""
    changes: tuple[str, ...] = ()
    """Of the host's rules and settings, in words."""
    clashes: frozenset[Key] = frozenset()
    problems: tuple[tuple[Key | None, Problem], ...] = ()
    """With the service they concern; None: the host."""
    failed: frozenset[Key] = frozenset()
    """Services that are not as they are wanted; it is worth another try."""

    @property
    def undone(self) -> frozenset[Key]:
        """All services that are not as they are wanted: also clashes, and where the kernel lacks something."""
        return self.failed | self.clashes | {key for key, _ in self.problems if key is not None}


class Carrier:
    """Knows which services are ours, and how the table was left."""

    def __init__(self, machine: Machine, path: Path, state: State | None, named: Container[Key]) -> None:
        """`path` is the state file, `state` what it holds.

        Without one, what is among the `named` and has our mark is ours: anything else with the mark may belong to
        another TreeScale on this kernel, such as another node of a tree on one machine.
        """
        self.machine = machine
        self._path = path
        self._recorded = state
        self._named = named
        self.overrides = state.overrides if state else ()
        self._held: frozenset[Key] = frozenset()
        self._retire: Container[Key] | None = self._may_be_ours
        """What the other backend may still have of ours; None: it has nothing any more."""
        self._left: dict[Key, Pool] = {}
        self._done: Wanted | None = None
        """What was wanted when all of it was carried out, and written down what is gone; None: there is more to do."""

    def begin(self) -> dict[Key, Entry]:
        """Return what of the kernel's table is ours. Raises MachineError."""
        actual = self.machine.services()
        self._held = steps.owned(actual, self._may_be_ours)
        return {key: actual[key] for key in self._held}

    def keep(self, overrides: tuple[Override, ...]) -> None:
        """Write down what operators have set. Raises StateError, and then it is as before."""
        recorded = self._recorded or State()
        self._write(State(recorded.keys | self._held, overrides, recorded.host))
        self.overrides = overrides

    def try_to_keep(self, overrides: tuple[Override, ...]) -> None:
        """Write down that some are over; if it fails, the next writing does it."""
        try:
            self.keep(overrides)
        except StateError:
            self.overrides = overrides

    def count(self, watched: Iterable[tuple[Key, Address]], fronts: Iterable[Front]) -> dict[tuple[Key, Address], int]:
        """Return how many connections of these servers are not over. Raises MachineError."""
        return self.machine.connections(watched, listens_of(fronts))

    def carry(self, fronts: Sequence[Front], adopt: Collection[Key], *, anew: bool) -> Carried:
        """Make host and table as they are wanted. Raises MachineError when the table cannot be read.

        Only the services that are wanted otherwise than they were left are compared with the kernel's; all of them
        with `anew`, and where none is.
        """
        wanted = {front.pool.service.key: front.pool for front in fronts}
        problems: list[tuple[Key | None, Problem]] = []
        done = Done()
        if not fronts or self._announced(problems):
            done = self.machine.prepare(fronts, anew=anew)
        problems += [(None, each) for each in done.problems]
        if wanted == self._done and self.machine.untouched():
            return Carried(changes=done.changes, problems=tuple(problems))
        keys = None if anew else self._different(wanted)
        looked_at = wanted if keys is None else {key: wanted[key] for key in keys}
        aside = frozenset() if keys is None else self._held - keys
        actual = self.machine.services(keys, counted=False)
        ours = steps.owned(actual, self._may_be_ours, self._held)
        change = steps.change(looked_at, actual, ours, adopt)
        left = {key: pool for key, pool in self._left.items() if change.steps and key in looked_at}
        drift = {step for step in steps.change(left, actual, ours, adopt).steps if key_of(step) in left}
        skipped = {}
        for key, pool in looked_at.items():
            if key not in change.clashes and (why := self.machine.why_not(pool)) is not None:
                skipped[key] = why
        problems += [*skipped.items()]
        host = bool(fronts or done.problems)
        self._claim(change.claims | aside, problems, host=host)
        unwritten = (change.claims | aside) - self._held
        todo = [step for step in change.steps if key_of(step) not in skipped and key_of(step) not in unwritten]
        refusals = self.machine.apply(todo, listens_of(fronts)) if todo else []
        problems += refusals
        refused = {each.key for each in refusals}
        untouched = refused | skipped.keys() | unwritten | set(change.clashes)
        self._left = {key: pool for key, pool in wanted.items() if key not in untouched}
        taken = tuple(step for step in todo if key_of(step) not in refused)
        changes = done.changes if untouched else done.changes + self._retired(problems)
        more = untouched or self._retire is not None or self._held != wanted.keys()
        self._done = None if more else wanted
        repaired = tuple(step for step in taken if step in drift)
        return Carried(
            taken, repaired, changes, frozenset(change.clashes), tuple(problems), frozenset(refused | unwritten)
        )

    def _different(self, wanted: Wanted) -> frozenset[Key] | None:
        """Return the services that were not left as they are wanted; None: all are to be looked at."""
        found = frozenset(key for key, pool in wanted.items() if self._left.get(key) != pool)
        return found if found and self._left and self._left.keys() <= wanted.keys() else None

    def _retired(self, problems: list[tuple[Key | None, Problem]]) -> tuple[str, ...]:
        """Take away what the other backend has, once, when this one has everything."""
        if self._retire is None:
            return ()
        try:
            changes = self.machine.retire_other(self._retire)
        except MachineError as error:
            problems.append((None, Problem(f"what another backend left is still there: {error}", "see the text")))
            return ()
        self._retire = None
        return changes

    @property
    def _may_be_ours(self) -> Container[Key]:
        return self._named if self._recorded is None else self._recorded.keys

    def _announced(self, problems: list[tuple[Key | None, Problem]]) -> bool:
        """Tell whether it is written down that the host may have rules of ours: before the first, whenever we end."""
        if self._recorded is None or not self._recorded.host:
            self._claim(self._held, problems, host=True)
        return self._recorded is not None and self._recorded.host

    def _claim(self, claims: frozenset[Key], problems: list[tuple[Key | None, Problem]], *, host: bool) -> None:
        """Write down what is ours from now on; where that fails nothing is, and it must not be made."""
        try:
            self._write(State(claims, self.overrides, host))
        except StateError as error:
            problem = Problem(str(error), "see that this process may write there, and that there is room")
            problems += [] if (None, problem) in problems else [(None, problem)]
        else:
            self._held = claims

    def _write(self, state: State) -> None:
        if state != self._recorded:
            statefile.save(self._path, state)
            self._recorded = state
