"""Uninstall: leaves servers as they were before they were nodes, by the manifest that each of them keeps.

Leaves go first and the root last, so that whoever is still a node can be reached over the tree.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tsbus.build import distros, fleet, interpreter, orders
from tsbus.build.campaign import Campaign
from tsbus.build.jobs import Task
from tsbus.build.places import MANIFEST
from tsbus.build.plan import HostPlan
from tsbus.build.reports import Opened, Report
from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import Wanted


class Uninstall(Campaign):
    """A run that takes nodes away."""

    done = "cleaned"

    with_docker = False
    """Remove the packages of Docker as well, where a build has installed them."""

    def plan_of(self, name: str, wish: Wanted) -> HostPlan:
        """Return the one step; none where nothing was built."""
        facts = self.facts[name]
        if MANIFEST not in facts.stats:
            return HostPlan(name, wish.depth)
        python = interpreter.choose(facts)
        if python is None:
            trouble = Trouble("python", "there is no Python any more that could take it away", "install it once more")
            return HostPlan(name, wish.depth, (), (trouble,))
        words = "remove TreeScale" + (", and Docker where a build has installed it" if self.with_docker else "")
        step = Step("uninstall", words, "packages and the kernel's settings stay", reversible=False)
        return HostPlan(name, wish.depth, (step,), python=python.path)

    def apply(self) -> Iterator[Report]:
        """Take them away, the leaves first. Raises StoreError."""
        try:
            if any(self.plans[name].steps for name in self.course.standing):
                yield from self.take_lock()
                if not self.holder:
                    yield from self.clean()
        finally:
            self.close()

    def clean(self) -> Iterator[Report]:
        """Take them away, under whosever lock."""
        todo = [name for name in self.course.standing if self.plans[name].steps]
        yield Opened("clean", tuple(todo))
        for wave in reversed(fleet.waves(self.plans[name] for name in todo)):
            yield from self.carry_out({name: self._task(name) for name in wave}, self._gone)

    def _task(self, name: str) -> Task:
        facts, plan = self.facts[name], self.plans[name]
        script = distros.docker_removal(facts) if self.with_docker else ""
        return Task(facts.current or self.release.name, plan.python, plan.steps, (orders.uninstall(script),))

    def _gone(self, name: str, _: Mapping[str, Any]) -> None:
        """Forget the key: a new node there will have another one."""
        self.keys.pop(name, None)
        self.store.save_keys(self.keys)
