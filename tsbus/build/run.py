"""Run: servers, and what is known of each while something is done on them under one lock. What all runs are made of.

A run lets the runner do jobs and yields what happens (reports.py); whoever stops listening ends it. The course says how
each server stands, the transcripts have what it said, the store what is remembered of it.
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

from tsbus.build import access, jobs
from tsbus.build.access import Local, Login
from tsbus.build.course import Course, Outcome, Stages
from tsbus.build.facts import Facts
from tsbus.build.jobs import Log, Task
from tsbus.build.lock import Holder, Lock
from tsbus.build.reports import Answered, Entered, Failed, Noted, Report, Skipped, StageName, Stepped
from tsbus.build.runner import Again, Begun, Done, Retry, Runner, Told
from tsbus.build.runner import Failed as RunnerFailed
from tsbus.build.runner import Skipped as RunnerSkipped
from tsbus.build.ssh import Cancelled, ServerTrouble, Session, Shared, client_config
from tsbus.build.store import Remembered, Store, Transcripts
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import known_keys
from tsbus.config import Console, Tree

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


class Run:
    """One run."""

    def __init__(self, tree: Tree, console: Console, options: Options, store: Store) -> None:
        """Nothing is done yet but a look at what is remembered. Raises StoreError."""
        self.tree, self.console, self.options, self.store = tree, console, options, store
        self.topology = tree.topology()
        self.settings = console.build if options.docker else replace(console.build, docker="no")
        self.shared = Shared(uploads=self.settings.upload_parallel)
        self.course = Course(self.topology, options.names or self.topology.names, options.max_fail)
        self.stages = Stages()
        self.facts: dict[str, Facts] = {}
        """What probes have told."""
        self.keys = known_keys(tree, store.keys())
        """The public keys of all servers, as far as they are known."""
        self.revoked = {name: key for name, key in store.revoked().items() if self.keys.get(name) == key}
        """Those of them that nobody is to take."""
        self.releases: dict[str, str] = {}
        self.configs: dict[str, str] = {}
        """The release and the SHA-256 of the copy of the tree that servers were last seen to have."""
        self.holder: Holder | None = None
        """Who else builds, so that we may not."""
        self.transcripts: Transcripts = store.transcripts(self.shared.secrets.mask)
        self._states = store.states()
        self.configs |= {name: each.config for name, each in self._states.items() if each.config}
        self._changed: dict[str, set[str]] = {}
        self._answered: dict[str, float] = {}
        self._lock: Lock | None = None
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
    def valid_keys(self) -> dict[str, str]:
        """The public keys that servers are to be known by; "" for one that is revoked."""
        return self.keys | dict.fromkeys(self.revoked, "")

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
            locked=str(self.holder or ""),
        )

    def close(self) -> None:
        """End it: connections, lock; what is known is remembered. Raises StoreError."""
        try:
            if self._lock:
                self._lock.release()
        finally:
            self.runner.close()
            self.remember()

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

    def keep_lock(self) -> Iterator[Skipped]:
        """See that the lock is still ours; where it is not, all that stand are left out."""
        if self._lock is None or self._lock.is_ours:
            return
        self.holder = self._lock.lost_to
        who = f"{self.holder} builds now" if self.holder else "nothing is heard of the lock any more"
        yield from self.skip_all("configure", f"{who}: the way to the root was cut for too long")

    def take_lock(self) -> Iterator[Report]:
        """Keep everybody else from building until `close`; then `outcome.locked` says if somebody does already."""
        self.transcripts.mark()
        root = self.topology.root
        trouble = self.unusable.get(root) or (None if root in self.facts else self.course.failed.get(root))
        if trouble is None:
            me = Holder(getpass.getuser(), socket.gethostname(), os.getpid(), self.options.what, time.time())
            self._lock = Lock(self._logins[root], self.shared, me, partial(self.transcripts.add, root))
            try:
                self.holder = self._lock.take()
                return
            except ServerTrouble as error:
                trouble = error.trouble
                if root in self.course.standing:
                    yield self.fail(root, "probe", trouble)
        yield Noted("", f"others are not kept from building: the lock is on the server of {root}, and {trouble.text}")

    def hear(self, names: Collection[str], waiting: Collection[str] = ()) -> Iterator[Report]:
        """Let the root ask servers over the bus; who does not answer has failed, but those that wait for others."""
        root = self.topology.root
        for name in names:
            yield from self.stages.enter(name, "verify", time.monotonic())

        def job(session: Session, tell: Callable[[Report], None], log: Log) -> dict[str, str]:
            if waiting:
                jobs.ask(session, waiting, 0, tell, log)
            return jobs.ask(session, names, ANSWER_S, tell, log) if names else {}

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
        """Return what `do` does on the root's server, outside of the run; it may be done anew. Raises ServerTrouble."""
        root = self.topology.root
        if root in self.unusable:
            raise ServerTrouble(self.unusable[root])
        failed = 0
        while True:
            try:
                with Session(self._logins[root], self.shared) as session:
                    return do(session)
            except ServerTrouble as error:
                failed += 1
                delay_s = Retry().after(failed, error.trouble)
                if delay_s is None:
                    raise
                self.transcripts.add(root, f"{error.trouble.text}; it is tried again in {delay_s:.0f} s")
                if self.shared.cancelled.wait(delay_s):
                    raise Cancelled from error

    # Inside.

    def _find_logins(self) -> tuple[dict[str, Login], dict[str, Trouble]]:
        home = Path.home()
        names = {*self.names, self.topology.root}
        local = Local(getpass.getuser(), home)
        return access.logins(self.console, names, client_config(home), local, accept_new=self.options.accept_new)

    def remember(self) -> None:
        """Write down how far each server got. Raises StoreError."""
        now = time.time()
        for name, stage in self.stages.last.items():
            known: dict[str, Any] = {"release": self.releases.get(name, ""), "config": self.configs.get(name, "")}
            if trouble := self.course.failed.get(name):
                self._states[name] = Remembered(stage, trouble.kind, trouble.text, **known, time_s=now)
            elif name in self.course.skipped or stage != "probe":  # a mere look makes good nothing that has failed
                self._states[name] = Remembered(stage, text=self.course.skipped.get(name, ""), **known, time_s=now)
        for name, config in self.configs.items():  # also of servers that were told over the bus
            if name in self._states:
                self._states[name] = replace(self._states[name], config=config)
        self.store.save_states({name: each for name, each in self._states.items() if name in self.topology})


_SILENT: Final = "see `treescale status` on the root, and /var/log/treescale/router.log there and here"


def _logged(job: Job, transcripts: Transcripts, session: Session, tell: Callable[[Report], None]) -> Any:
    return job(session, tell, partial(transcripts.add, session.login.name))
