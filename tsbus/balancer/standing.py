"""Standing: how the balancers of a node stand after the last turn: their servers, states and problems. Pure.

The keeper brings it up to date and tells what is new; commands look things up in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tsbus.balancer.carrier import Carried
from tsbus.balancer.life import State
from tsbus.balancer.plan import Plan
from tsbus.balancer.pool import virtual
from tsbus.balancer.report import Problem, Report, ServerReport
from tsbus.balancer.rules import Front
from tsbus.balancer.table import Address, Mark
from tsbus.config import Balancer

Where = tuple[str, str, Address]
"""Balancer, id and address of a server."""


@dataclass(slots=True)
class Standing:
    """Of the `balancers` of one node, by name."""

    balancers: Mapping[str, Balancer]
    plan: Plan | None = None
    reports: dict[str, Report] = field(default_factory=dict)
    fronts: tuple[Front, ...] = ()
    """As the host should have them."""
    carried: Carried = field(default_factory=Carried)
    unusable: Problem | None = None
    """Why nothing can balance, where that is so."""
    _told: dict[tuple[str, Problem], None] = field(default_factory=dict)

    def take(self, plan: Plan) -> list[Report]:
        """Take what is planned, and return the reports that are new."""
        changed = [report for report in plan.reports if self.reports.get(report.name) is not report]
        self.plan, self.reports = plan, {report.name: report for report in plan.reports}
        return changed

    def report(self, name: str) -> Report:
        """Return the report of a balancer, perhaps one that nothing is known of yet."""
        return self.reports.get(name) or Report(name, virtual(self.balancers[name]) or Mark(0), "waiting")

    def front(self, name: str) -> Front | None:
        """Return a balancer as the host should have it; None while that is not known."""
        return next((each for each in self.fronts if each.name == name), None)

    def find(self, place: Where) -> ServerReport | None:
        """Return what is known of a server; None when it is gone."""
        balancer, id_, address = place
        servers = self.reports[balancer].servers if balancer in self.reports else ()
        return next((each for each in servers if (each.id, each.address) == (id_, address)), None)

    def drains(self, place: Where) -> bool:
        """Tell whether a server drains."""
        server = self.find(place)
        return server is not None and server.state is State.DRAINING

    @property
    def undone(self) -> frozenset[str]:
        """The balancers that the kernel has otherwise."""
        keys = self.carried.undone
        return frozenset(name for name, report in self.reports.items() if report.key in keys)

    def state(self, report: Report) -> str:
        """Return the state of a balancer: the planner's, or a clash."""
        return "clash" if report.key in self.carried.clashes else report.state

    def problems(self, name: str = "") -> list[Problem]:
        """Return the problems of a balancer, or of the host."""
        if not name:
            return [*self._start, *(self.plan.problems if self.plan else ()), *self.lasting()]
        report = self.report(name)
        return [*(() if report.state == "waiting" else report.problems), *self.lasting(name)]

    def lasting(self, name: str = "") -> list[Problem]:
        """Return the problems that carrying out the plan had, of a balancer or of the host; a clash is the last."""
        key = self.reports[name].key if name in self.reports else None
        if name and key is None:
            return []
        found = [problem for each, problem in self.carried.problems if each == key]
        if key in self.carried.clashes:
            text = f"{key} is in the kernel's table already, made by somebody else: nothing is done there"
            mend = f"remove it there, or set adopt = true in balancer {name} to take it over"
            found.append(Problem(text, mend))
        return found

    def news(self) -> list[tuple[str, str, Problem]]:
        """Return what is a problem now and was not before, and what is solved, each with topic and balancer."""
        now = {("", problem): None for problem in (*self._start, *self.lasting())}
        now |= {(name, problem): None for name in self.reports for problem in self.lasting(name)}
        before, self._told = self._told, now
        return [
            *(("problem", *each) for each in sorted(now.keys() - before.keys())),
            *(("solved", *each) for each in sorted(before.keys() - now.keys())),
        ]

    @property
    def _start(self) -> tuple[Problem, ...]:
        return (self.unusable,) if self.unusable else ()
