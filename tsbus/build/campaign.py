"""Campaign: one run of a build, from two files to a tree that answers. It lets the runner do what the course says.

    campaign = Campaign(tree, console, Options(), Store.beside(console), render_servers(tree))
    for report in campaign.look(): ...      # then campaign.plans
    for report in campaign.apply(): ...     # then campaign.outcome

Both yield what happens (reports.py). Whoever stops listening ends the run (run.py): connections are cut within a
second, the lock is given back, and what is known is remembered. The next one goes on from what it finds on the servers.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from tsbus.build import jobs, units
from tsbus.build.bundle import Bundle, Bundler
from tsbus.build.course import EARLY, LATE
from tsbus.build.jobs import Log, Seen, Task
from tsbus.build.places import CONFIG, DASHBOARD_USERS, NOBODY, SUPERVISOR, UNITS
from tsbus.build.plan import HostPlan, plan
from tsbus.build.reports import STAGES, Noted, Opened, Report
from tsbus.build.run import Check, Options, Run
from tsbus.build.ssh import Session
from tsbus.build.steps import Platform, Step
from tsbus.build.store import Store
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import Wanted, release_for, wanted
from tsbus.config import Console, Tree
from tsbus.copies import Copies, supervisor_digest
from tsbus.core.target import fold


class Campaign(Run):
    """A run that makes servers what they should be."""

    done: ClassVar[str] = "built"
    """What has become of a server in the end, as people are told."""

    def __init__(
        self, tree: Tree, console: Console, options: Options, store: Store, supervisors: Mapping[str, str]
    ) -> None:
        """`supervisors`: the supervisord.conf of each server. Raises StoreError."""
        super().__init__(tree, console, options, store)
        self.bundler = Bundler(wheelhouse=_wheelhouse(console, options), offline=options.offline)
        self.release = self.bundler.release
        self.plans: dict[str, HostPlan] = {}
        """Of all servers of the run, when it has looked at them; those that it could not reach have a trouble."""
        self._supervisors = supervisors
        self._supervisor_digests = {name: supervisor_digest(text) for name, text in supervisors.items()}
        self._offsets: dict[str, float] = {}
        self._copies: tuple[dict[str, str], Copies] | None = None

    def look(self) -> Iterator[Report]:
        """Log in to all servers and look at them: nothing is changed. Then there are `plans`. Raises StoreError."""
        yield Opened("probe", self.names)
        wishes = self.wishes()

        def judge(name: str, seen: Seen) -> Trouble | None:
            self.facts[name], self._offsets[name] = seen.facts, seen.offset_s
            found = self.plan_of(name, wishes[name]).troubles
            return next((trouble for trouble in found if trouble.fatal), None)

        yield from self.look_at(self.names, judge)
        self._plan()
        self.remember()
        if gone := sorted(set(self.store.keys()) - set(self.tree.servers)):
            yield Noted("", f"{fold(gone)} was built, and is not in the tree's file any more: a build cuts it off and "
                            f"leaves it as it is, `treescale build remove {' '.join(gone)}` cleans it")  # fmt: skip

    def look_at(self, names: Collection[str], judge: Check) -> Iterator[Report]:
        """Look at some servers over SSH; `judge` gets what was `Seen` of each, and may say what is wrong with it."""

        def job(session: Session, _: Callable[[Report], None], log: Log) -> Seen:
            return jobs.probe(session, log)

        for name in names:
            if name in self.unusable:
                yield self.fail(name, "probe", self.unusable[name])
        yield from self.each({name: "probe" for name in names if name not in self.unusable}, job, judge)

    def apply(self) -> Iterator[Report]:
        """Do what the plans say, and see that the tree answers. Raises BundleError, StoreError."""
        try:
            if any(self.plans[name].steps for name in self.course.standing):
                bundles = self._bundles()
                yield from self.take_lock()
                if self.holder:
                    return
                yield from self._early(bundles)
                yield from self._late()
            if not self.course.root_failed:
                yield from self.look_after([name for name in self.keys if name not in self.names])
            yield from self.verify()
        finally:
            self.close()

    def verify(self) -> Iterator[Report]:
        """Send a message from the root to every server that stands, and back, over the bus."""
        root = self.topology.root
        yield Opened("verify", self.course.standing)
        if self.course.root_failed:
            yield from self.skip_all("verify", f"the root {root} has failed")
        elif root in self.unusable:
            yield from self.skip_all("verify", f"the root {root} cannot be asked: {self.unusable[root].text}")
        elif self.course.standing:
            waiting = self.course.waiting
            yield from self.hear([name for name in self.course.standing if name not in waiting], waiting)

    def wishes(self) -> dict[str, Wanted]:
        """Return what each server of the tree should be, by what is known of keys now."""
        return wanted(
            self.tree,
            self.settings,
            self.release,
            saved=self.keys,
            revoked=self.revoked,
            probed={name: facts.key for name, facts in self.facts.items() if facts.key},
            supervisors=self._supervisor_digests,
            accept_keys=self.options.accept_new,
        )

    def texts(self, name: str) -> dict[str, str]:
        """Return what is to be in the files of a server."""
        if self._copies is None or self._copies[0] != self.valid_keys:
            self._copies = self.valid_keys, Copies(self.tree, self.valid_keys)
        return {CONFIG: self._copies[1].text(name), SUPERVISOR: self._supervisors[name], DASHBOARD_USERS: NOBODY,
                **{UNITS[init]: text for init, text in units.TEXTS.items()}}  # fmt: skip

    # What runs of other kinds do in a way of their own.

    def plan_of(self, name: str, wish: Wanted) -> HostPlan:
        """Return the plan of a server that has been looked at."""
        return plan(wish, self.facts[name], self._offsets[name])

    def release_of(self, name: str) -> str:
        """Return the release that a server is to use."""
        return release_for(self.tree, name, self.release).name

    def waves(self, steps: Mapping[str, tuple[Step, ...]]) -> Iterator[tuple[str, ...]]:
        """Yield who follows at the same time, one wave after the other; `steps` are the late ones of each."""
        return self.course.waves(steps)

    def after(self, wave: tuple[str, ...]) -> Iterator[Report]:
        """Do what is to be done between two waves."""
        yield from ()

    def look_after(self, others: Collection[str]) -> Iterator[Report]:
        """Tell which nodes of the tree, of those that are not in the run, lack what is new in it."""
        wishes = self.wishes()
        behind = [name for name in others if self.configs.get(name) != wishes[name].config]
        if behind:
            parents = {self.topology.parent(name) for name in self.names}
            near = [name for name in behind if name in parents or self.topology.parent(name) in self.names]
            first = f", {fold(near)} before others: it is next to a server of this run" if near else ""
            yield Noted("", f"{fold(behind)} was left out, and has not all keys and settings of this tree: build there "
                            f"as well{first}")  # fmt: skip

    # Inside.

    def _plan(self) -> None:
        """Make the plans."""
        wishes = self.wishes()
        for name in self.names:
            if name in self.facts:
                self.plans[name] = self.plan_of(name, wishes[name])
                self.releases[name] = self.facts[name].current
                self.configs[name] = self.facts[name].digests.get(CONFIG, "")
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
            tasks[name] = Task.of(self.plans[name], EARLY, self.release_of(name), {}, bundle)
        yield from self.carry_out(tasks, learn)
        for name in self.course.standing:
            if key := learned.get(name) or self.facts[name].key:
                self.facts[name] = replace(self.facts[name], key=key)
        found = {name: self.facts[name].key for name in self.course.standing if self.facts[name].key}
        self.keys |= found
        self.store.save_keys(self.keys)
        self.remember()

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
            self.releases[name], self.configs[name] = self.release_of(name), wishes[name].config

        for wave in self.waves(steps):
            yield from self.keep_lock()
            there = [name for name in wave if name in self.course.standing]
            tasks = {name: Task.of(plans[name], LATE, self.release_of(name), self.texts(name)) for name in there}
            yield from self.carry_out(tasks, follow)
            self.remember()
            yield from self.after(wave)
        if not self.course.root_failed:
            for name in self.course.standing:
                follow(name, {})
        else:
            yield from self.skip_all("activate", f"nothing is activated: the root {self.topology.root} has failed")


def no_node(wish: Wanted) -> HostPlan:
    """Return the plan of a server that is no node yet, for runs that are about nodes only."""
    trouble = Trouble("step", "it is no node yet", "`treescale build` makes it one")
    return HostPlan(wish.name, wish.depth, (), (trouble,))


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
