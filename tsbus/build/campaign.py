"""Campaign: one run of a build, from two files to a tree that answers. It lets the runner do what the course says.

    campaign = Campaign(tree, console, Options(), Store.beside(console), render_servers(tree))
    for report in campaign.look(): ...      # then campaign.plans
    for report in campaign.apply(): ...     # then campaign.outcome

Both yield what happens (reports.py). Whoever stops listening ends the run: connections are cut within a second, the
lock is given back, and what is known is remembered. The next run goes on from what it finds on the servers.
"""

import getpass
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tsbus.build import access, jobs, units
from tsbus.build.access import Local, Login
from tsbus.build.bundle import Bundle, Bundler
from tsbus.build.course import EARLY, LATE, Course, Outcome, Stages
from tsbus.build.facts import Facts
from tsbus.build.jobs import Log, Seen, Task
from tsbus.build.lock import Holder, Lock
from tsbus.build.places import CONFIG, SUPERVISOR, UNITS
from tsbus.build.plan import HostPlan, plan
from tsbus.build.reports import STAGES, Answered, Entered, Failed, Noted, Opened, Report, Skipped, StageName, Stepped
from tsbus.build.runner import Again, Begun, Done, Runner, Told
from tsbus.build.runner import Failed as RunnerFailed
from tsbus.build.runner import Skipped as RunnerSkipped
from tsbus.build.ssh import ServerTrouble, Session, Shared, client_config
from tsbus.build.steps import Platform, Step
from tsbus.build.store import Remembered, Store, Transcripts
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import Release, Wanted, known_keys, wanted
from tsbus.config import Console, Tree
from tsbus.copies import Copies, supervisor_digest
from tsbus.core.target import fold

ANSWER_S: Final = 30.0
"""How long it may take, after the last activation, until all links stand: routers dial within a second or two."""

_T = TypeVar("_T")
Job = Callable[[Session, Callable[[Report], None], Log], Any]
"""As the runner's, with what writes to the server's transcript."""
Check = Callable[[str, Any], Trouble | None]
"""Takes what a job has returned for a server, and says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for, beyond what console.toml says."""

    names: tuple[str, ...] = ()
    """The servers of the run; empty: all."""
    parallel: int | None = None
    max_fail: int | None = None
    """Failed servers after which no further one is begun."""
    docker: bool = True
    """Install an engine where there is none."""
    offline: bool = False
    wheelhouse: Path | None = None
    accept_new: bool = False
    """Take unknown host keys, and the node keys of servers that were made anew."""
    what: str = "build"
    """Shown to whoever finds the lock taken."""


class Campaign:
    """One run."""

    def __init__(
        self,
        tree: Tree,
        console: Console,
        options: Options,
        store: Store,
        supervisors: Mapping[str, str],
        *,
        bundler: Bundler | None = None,
        release: Release | None = None,
    ) -> None:
        """`supervisors`: the supervisord.conf of each server. `bundler` makes other bundles than the usual ones,
        `release` is another one than the bundler's: the servers must have it. Raises StoreError.
        """
        self.tree, self.console, self.options, self.store = tree, console, options, store
        self.topology = tree.topology()
        self.settings = console.build if options.docker else replace(console.build, docker="no")
        self.bundler = bundler or Bundler(wheelhouse=_wheelhouse(console, options), offline=options.offline)
        self.release = release or self.bundler.release
        self.shared = Shared(uploads=self.settings.upload_parallel)
        self.course = Course(self.topology, options.names or self.topology.names, options.max_fail)
        self.stages = Stages()
        self.facts: dict[str, Facts] = {}
        self.plans: dict[str, HostPlan] = {}
        """Of all servers of the run, when it has looked at them; those that it could not reach have a trouble."""
        self.keys = known_keys(tree, store.keys())
        self.transcripts: Transcripts = store.transcripts(self.shared.secrets.mask)
        self._supervisors = supervisors
        self._supervisor_digests = {name: supervisor_digest(text) for name, text in supervisors.items()}
        self._states = store.states()
        self._offsets: dict[str, float] = {}
        self._releases: dict[str, str] = {}
        self._configs: dict[str, str] = {}
        self._changed: dict[str, set[str]] = {}
        self._answered: dict[str, float] = {}
        self._holder: Holder | None = None
        self._lock: Lock | None = None
        self._copies: tuple[dict[str, str], Copies] | None = None
        self._logins, self.unusable = self._find_logins()
        """`unusable`: servers that nobody can log in to, by what the files say."""
        self.runner = Runner(self._logins, self.shared, parallel=options.parallel or self.settings.parallel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The servers of the run."""
        return self.course.names

    @property
    def outcome(self) -> Outcome:
        """How it has ended, or stands."""
        course = self.course
        waiting = {name: above for name, above in course.waiting.items() if name not in self._answered}
        return Outcome(
            names=course.names,
            ok=tuple(name for name in course.standing if name not in waiting),
            waiting=waiting,
            failed=dict(course.failed),
            skipped=dict(course.skipped),
            changed={name: len(words) for name, words in self._changed.items()},
            answered=dict(self._answered),
            root_failed=course.root_failed,
            reached=bool(self.facts),
            locked=str(self._holder or ""),
        )

    def look(self) -> Iterator[Report]:
        """Log in to all servers and look at them: nothing is changed. Then there are `plans`. Raises StoreError."""
        yield Opened("probe", self.names)
        for name in self.names:
            if name in self.unusable:
                yield self.fail(name, "probe", self.unusable[name])
        wishes = self.wishes()

        def judge(name: str, seen: Seen) -> Trouble | None:
            self.facts[name], self._offsets[name] = seen.facts, seen.offset_s
            found = self.plan_of(name, wishes[name]).troubles
            return next((trouble for trouble in found if trouble.fatal), None)

        yield from self.each(dict.fromkeys(self.course.standing, "probe"), _probe, judge)
        self._plan()
        self._remember()

    def apply(self) -> Iterator[Report]:
        """Do what the plans say, and see that the tree answers. Raises BundleError, StoreError."""
        try:
            if any(self.plans[name].steps for name in self.course.standing):
                bundles = self._bundles()
                yield from self.take_lock()
                if self._holder:
                    return
                yield from self._early(bundles)
                yield from self._late()
            yield from self.verify()
        finally:
            self.close()

    def close(self) -> None:
        """End it: connections, lock; what is known is remembered. Raises StoreError."""
        try:
            if self._lock:
                self._lock.release()
        finally:
            self.runner.close()
            self._remember()

    # What runs of other kinds are made of as well.

    def each(self, names: Mapping[str, StageName], job: Job, check: Check | None = None) -> Iterator[Report]:
        """Let servers go through a job, and yield what happens.

        `names`: with the stage that each begins with. `check` has the last word when a job has gone well.
        """
        for news in self.runner.each(names, partial(_logged, job, self.transcripts), max_fail=self.course.room):
            name, now = news.name, time.monotonic()
            match news:
                case Begun():
                    yield from self.stages.enter(name, names[name], now)
                case Told(value=Entered(stage=stage, doing=doing)):
                    yield from self.stages.enter(name, stage, now, doing)
                case Told(value=report):
                    if isinstance(report, Stepped) and report.changed:
                        self._changed.setdefault(name, set()).add(report.step.words)
                    yield report
                case Again(trouble=trouble, delay_s=delay_s):
                    self.stages.again(name)
                    yield Noted(name, f"{trouble.text}; it is tried again in {delay_s:.0f} s")
                case Done(value=value):
                    if check and (found := check(name, value)):
                        yield self.fail(name, names[name], found)
                    else:
                        yield from self.stages.leave(name, now)
                case RunnerFailed(trouble=trouble):
                    yield self.fail(name, names[name], trouble)
                case RunnerSkipped():
                    yield self.skip(name, names[name], "too many others have failed")

    def fail(self, name: str, stage: StageName, trouble: Trouble) -> Failed:
        """Note that a server has failed, in the stage that it is in, or else in this one."""
        self.course.fail(name, trouble)
        self.transcripts.add(name, f"failed: {trouble}")
        return self.stages.fail(name, stage, trouble, time.monotonic())

    def skip(self, name: str, stage: StageName, why: str) -> Skipped:
        """Note that a server is left out from now on."""
        self.course.skip(name, why)
        self.transcripts.add(name, f"left out: {why}")
        return Skipped(name, stage, why)

    def skip_all(self, stage: StageName, why: str) -> Iterator[Skipped]:
        """Leave out whoever has not come to an end yet."""
        for name in self.course.standing:
            yield self.skip(name, stage, why)

    def carry_out(
        self, tasks: Mapping[str, Task], done: Callable[[str, Mapping[str, Any]], None] | None = None
    ) -> Iterator[Report]:
        """Let each server do its task; `done` takes what the installer of one has told."""

        def job(session: Session, tell: Callable[[Report], None], log: Log) -> dict[str, Any]:
            return jobs.carry_out(session, self.shared, tasks[session.login.name], tell, log)

        yield from self.each({name: task.steps[0].stage for name, task in tasks.items()}, job, done)

    def take_lock(self) -> Iterator[Report]:
        """Keep everybody else from building until `close`; then `outcome.locked` says if somebody does already."""
        root = self.topology.root
        trouble = self.unusable.get(root) or (None if root in self.facts else self.course.failed.get(root))
        if trouble is None:
            me = Holder(getpass.getuser(), socket.gethostname(), os.getpid(), self.options.what, time.time())
            self._lock = Lock(self._logins[root], self.shared, me, partial(self.transcripts.add, root))
            try:
                self._holder = self._lock.take()
                return
            except ServerTrouble as error:
                trouble = error.trouble
                if root in self.course.standing:
                    yield self.fail(root, "probe", trouble)
        yield Noted("", f"others are not kept from building: the lock is on the server of {root}, and {trouble.text}")

    def verify(self, wait_s: float = ANSWER_S) -> Iterator[Report]:
        """Send a message from the root to every server that stands, and back, over the bus."""
        root = self.topology.root
        yield Opened("verify", self.course.standing)
        if self.course.root_failed:
            yield from self.skip_all("verify", f"the root {root} has failed")
        elif root in self.unusable:
            yield from self.skip_all("verify", f"the root {root} cannot be asked: {self.unusable[root].text}")
        elif self.course.standing:
            waiting = self.course.waiting
            yield from self.hear([name for name in self.course.standing if name not in waiting], wait_s, waiting)

    def hear(self, names: Collection[str], wait_s: float = ANSWER_S, waiting: Collection[str] = ()) -> Iterator[Report]:
        """Let the root ask servers over the bus; who does not answer has failed, but those that wait for others."""
        root = self.topology.root
        for name in names:
            yield from self.stages.enter(name, "verify", time.monotonic())

        def job(session: Session, tell: Callable[[Report], None], log: Log) -> dict[str, str]:
            if waiting:
                jobs.ask(session, waiting, 0, tell, log)
            return jobs.ask(session, names, wait_s, tell, log) if names else {}

        silent: dict[str, str] = {}
        for news in self.runner.each([root], partial(_logged, job, self.transcripts)):
            match news:
                case Told(value=Answered(name, rtt_s)):
                    self._answered[name] = rtt_s
                    yield news.value
                    yield from self.stages.leave(name, time.monotonic())
                case Done(value=silent):
                    pass
                case RunnerFailed(trouble=trouble):
                    if root in self.course.standing:
                        yield self.fail(root, "verify", trouble)
                    yield from self.skip_all("verify", f"the root {root} cannot be asked: {trouble.text}")
        for name, reason in silent.items():
            yield self.fail(name, "verify", Trouble("silent", f"it does not answer over the bus: {reason}", _SILENT))

    def at_root(self, do: Callable[[Session], _T]) -> _T:
        """Return what `do` does on the root's server, outside of the run. Raises ServerTrouble."""
        root = self.topology.root
        if root in self.unusable:
            raise ServerTrouble(self.unusable[root])
        with Session(self._logins[root], self.shared) as session:
            return do(session)

    def wishes(self) -> dict[str, Wanted]:
        """Return what each server of the tree should be, by what is known of keys now."""
        return wanted(
            self.tree,
            self.settings,
            self.release,
            saved=self.keys,
            probed={name: facts.key for name, facts in self.facts.items() if facts.key},
            supervisors=self._supervisor_digests,
            accept_keys=self.options.accept_new,
        )

    def texts(self, name: str) -> dict[str, str]:
        """Return what is to be in the files of a server."""
        if self._copies is None or self._copies[0] != self.keys:
            self._copies = dict(self.keys), Copies(self.tree, self.keys)
        return {CONFIG: self._copies[1].text(name), SUPERVISOR: self._supervisors[name],
                **{UNITS[init]: text for init, text in units.TEXTS.items()}}  # fmt: skip

    # What runs of other kinds do in a way of their own.

    def plan_of(self, name: str, wish: Wanted) -> HostPlan:
        """Return the plan of a server that has been looked at."""
        return plan(wish, self.facts[name], self._offsets[name])

    def release_of(self, name: str) -> str:
        """Return the release that a server is to use."""
        return self.release.name

    def waves(self, steps: Mapping[str, tuple[Step, ...]]) -> Iterator[tuple[str, ...]]:
        """Yield who follows at the same time, one wave after the other; `steps` are the late ones of each."""
        return self.course.waves(steps)

    def after(self, wave: tuple[str, ...]) -> Iterator[Report]:
        """Do what is to be done between two waves."""
        yield from ()

    # Inside.

    def _find_logins(self) -> tuple[dict[str, Login], dict[str, Trouble]]:
        home = Path.home()
        names = {*self.names, self.topology.root}
        local = Local(getpass.getuser(), home)
        return access.logins(self.console, names, client_config(home), local, accept_new=self.options.accept_new)

    def _plan(self) -> None:
        """Make the plans."""
        wishes = self.wishes()
        for name in self.names:
            if name in self.facts:
                self.plans[name] = self.plan_of(name, wishes[name])
                self._releases[name] = self.facts[name].current
            else:
                self.plans[name] = HostPlan(name, wishes[name].depth, (), (self.course.failed[name],))

    def _bundles(self) -> dict[Platform, Bundle]:
        plans = (self.plans[name] for name in self.course.standing)
        needed = [each.platform for each in plans if each.platform and _has_release(each.steps)]
        return self.bundler.make(needed) if needed else {}

    def _early(self, bundles: Mapping[Platform, Bundle]) -> Iterator[Report]:
        """Let all servers have what they need beside what runs; then `keys` has the keys of all."""
        steps = {name: each.steps for name, each in self.plans.items()}
        yield from _opened(steps, self.course.standing)
        learned: dict[str, str] = {}

        def learn(name: str, told: Mapping[str, Any]) -> None:
            if key := told.get("public_key"):
                learned[name] = str(key)

        tasks = {}
        for name in self.course.early(steps):
            bundle = bundles.get(platform) if (platform := self.plans[name].platform) else None
            tasks[name] = Task.of(self.plans[name], EARLY, self.release.name, {}, bundle)
        yield from self.carry_out(tasks, learn)
        for name in self.course.standing:
            if key := learned.get(name) or self.facts[name].key:
                self.facts[name] = replace(self.facts[name], key=key)
        found = {name: self.facts[name].key for name in self.course.standing if self.facts[name].key}
        others = set(self.topology.names).difference(self.names)
        if others and found.items() - self.keys.items():
            yield Noted("", f"{fold(others)} will not know all keys: build there as well")
        self.keys |= found
        self.store.save_keys(self.keys)
        self._remember()

    def _late(self) -> Iterator[Report]:
        """Let the servers follow, the root first. They are planned once more, with the keys that are known now."""
        wishes = self.wishes()
        plans = {name: self.plan_of(name, wishes[name]) for name in self.course.standing}
        for name, each in plans.items():
            if not each.can_go:
                yield self.fail(name, "configure", next(trouble for trouble in each.troubles if trouble.fatal))
        steps = {name: tuple(step for step in each.steps if step.stage in LATE) for name, each in plans.items()}
        yield from _opened(steps, self.course.standing)

        def follow(name: str, _: Mapping[str, Any]) -> None:
            self._releases[name], self._configs[name] = self.release_of(name), wishes[name].config

        for wave in self.waves(steps):
            if self._lock and self._lock.lost_to:
                self._holder = self._lock.lost_to
                yield from self.skip_all("configure", f"{self._holder} builds now: we were not heard for too long")
                return
            tasks = {name: Task.of(plans[name], LATE, self.release_of(name), self.texts(name)) for name in wave}
            yield from self.carry_out(tasks, follow)
            self._remember()
            yield from self.after(wave)
        if not self.course.root_failed:
            for name in self.course.standing:
                follow(name, {})
        else:
            yield from self.skip_all("activate", f"nothing is activated: the root {self.topology.root} has failed")

    def _remember(self) -> None:
        """Write down how far each server got."""
        now = time.time()
        for name, stage in self.stages.last.items():
            more: dict[str, Any] = {"release": self._releases.get(name, ""), "config": self._configs.get(name, "")}
            more["time_s"] = now
            if name in self.course.failed:
                self._states[name] = Remembered.failed(stage, self.course.failed[name], **more)
            else:
                self._states[name] = Remembered(stage, text=self.course.skipped.get(name, ""), **more)
        self.store.save_states({name: each for name, each in self._states.items() if name in self.topology})


_SILENT: Final = "see `treescale status` on the root, and /var/log/treescale/router.log there and here"


def _probe(session: Session, _: Callable[[Report], None], log: Log) -> Seen:
    return jobs.probe(session, log)


def _logged(job: Job, transcripts: Transcripts, session: Session, tell: Callable[[Report], None]) -> Any:
    return job(session, tell, partial(transcripts.add, session.login.name))


def _has_release(steps: Collection[Step]) -> bool:
    return any(step.kind == "release" for step in steps)


def _opened(steps: Mapping[str, tuple[Step, ...]], names: Collection[str]) -> Iterator[Opened]:
    """Yield who has something to do in which stage."""
    for stage in STAGES:
        if found := tuple(name for name in names if any(step.stage == stage for step in steps[name])):
            yield Opened(stage, found)


def _wheelhouse(console: Console, options: Options) -> Path | None:
    configured = console.build.wheelhouse
    return options.wheelhouse or (console.beside(configured, Path.home()) if configured else None)
