"""Upgrade: brings a release to nodes wave by wave, and takes it back where the tree does not answer. And rollback.

What is new is installed everywhere first, which touches nothing that runs. Then one leaf goes on with it, a tenth, and
the others from below, the root last (fleet.careful_waves). Each wave must answer over the bus before the next begins.
"""

from collections.abc import Iterator, Mapping

from tsbus.build import fleet
from tsbus.build.campaign import Campaign, no_node
from tsbus.build.facts import Facts
from tsbus.build.jobs import Task
from tsbus.build.plan import HostPlan
from tsbus.build.reports import Report
from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import Wanted, is_same_code
from tsbus.core.target import fold


class Upgrade(Campaign):
    """A run that brings the console's release to nodes; it ends with the first wave that goes wrong."""

    done = "upgraded"

    def plan_of(self, name: str, wish: Wanted) -> HostPlan:
        """Return the plan of a build. What is no node yet cannot be upgraded: nobody would answer."""
        if not self.facts[name].current:
            return no_node(wish)
        return super().plan_of(name, wish)

    def waves(self, steps: Mapping[str, tuple[Step, ...]]) -> Iterator[tuple[str, ...]]:
        """Yield those that have something to do, from below."""
        for wave in fleet.careful_waves(self.plans[name] for name in self.course.standing if steps.get(name)):
            if not self.course.root_failed and (left := tuple(name for name in wave if name in self.course.standing)):
                yield left

    def after(self, wave: tuple[str, ...]) -> Iterator[Report]:
        """See that the wave answers; otherwise take it back, and leave out all that would come after it."""
        if went := [name for name in wave if name in self.course.standing]:
            yield from self.hear(went)
        if failed := [name for name in wave if name in self.course.failed]:
            why = f"{fold(failed)} went wrong, which ended the run"
            yield from self._take_back(wave, why)
            yield from self.skip_all("activate", why)

    def _take_back(self, wave: tuple[str, ...], why: str) -> Iterator[Report]:
        """Let a wave go on with what it had before."""
        tasks = {}
        for name in wave:
            facts = self.facts[name]
            # Whose activation has failed is back already, which is looked at again: nothing is done then.
            if facts.current != self.release_of(name):
                plan = HostPlan(name, 0, (_go_on_with(facts.current, facts, why),), python=self.plans[name].python)
                tasks[name] = Task.of(plan, {"activate"}, facts.current, {})
        for name in tasks:
            if name in self.course.standing:
                yield self.skip(name, "activate", f"it is back at {self.facts[name].current}: {why}")
        yield from self.carry_out(tasks)


class Rollback(Upgrade):
    """A run that lets nodes go on with the release that they had before, and with what that writes to be started."""

    done = "rolled back"

    def plan_of(self, name: str, wish: Wanted) -> HostPlan:
        """Return the one step, or why there is none."""
        facts = self.facts[name]
        found = super().plan_of(name, wish)
        before = release_before(facts)
        if not found.can_go:
            return found
        if not before:
            trouble = Trouble(
                "step",
                f"no release before {facts.current} is left there",
                "`treescale build upgrade` brings the console's",
            )
            return HostPlan(name, wish.depth, (), (trouble,))
        step = _go_on_with(before, facts, f"it runs {facts.current}")
        return HostPlan(name, wish.depth, (step,), python=found.python)

    def release_of(self, name: str) -> str:
        """Return the release before."""
        return release_before(self.facts[name])


def release_before(facts: Facts) -> str:
    """Return the newest release there whose code is older than that of the one in use; "" when there is none."""
    since_s = {each.name: each.since_s for each in facts.releases if each.python}
    now_s = since_s.get(facts.current, 0)
    older = [
        (since, name) for name, since in since_s.items() if since <= now_s and not is_same_code(name, facts.current)
    ]
    return max(older, default=(0, ""))[1]


def _go_on_with(release: str, facts: Facts, why: str) -> Step:
    data = {"how": "restart", "release": release, "init": facts.init, "own_files": True}
    return Step("activate", f"go on with release {release}", why, data)
