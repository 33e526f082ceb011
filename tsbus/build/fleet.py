"""Fleet: the plans of many hosts: who has the same, who comes first, who waits for whom. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tsbus.build.plan import HostPlan
from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble
from tsbus.core.tree import Topology


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts with the same steps, as people read them, and the same troubles."""

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    """The data are those of the first host."""
    troubles: tuple[Trouble, ...]

    def title(self, done: str = "built") -> str:
        """Return `97 hosts: the same 6 steps`, or that they cannot be `done`."""
        many = len(self.names) > 1
        who = f"{len(self.names)} hosts" if many else self.names[0]
        if any(trouble.fatal for trouble in self.troubles):
            return f"{who}: cannot be {done}"
        if not self.steps:
            return f"{who}: nothing to do"
        if len(self.steps) == 1:
            return f"{who}: {'the same' if many else 'one'} step"
        return f"{who}: {'the same ' if many else ''}{len(self.steps)} steps"


def groups(plans: Iterable[HostPlan]) -> tuple[Group, ...]:
    """Return the plans as groups, each where its first host stands."""
    found: dict[tuple[object, ...], list[HostPlan]] = {}
    for each in plans:
        found.setdefault((tuple(map(str, each.steps)), each.troubles), []).append(each)
    return tuple(Group(tuple(each.name for each in same), same[0].steps, same[0].troubles) for same in found.values())


def waves(plans: Iterable[HostPlan]) -> tuple[tuple[str, ...], ...]:
    """Return the hosts in the order of their activation: the root, then its children, and so on."""
    by_depth: dict[int, list[str]] = {}
    for each in plans:
        by_depth.setdefault(each.depth, []).append(each.name)
    return tuple(tuple(by_depth[depth]) for depth in sorted(by_depth))


def careful_waves(plans: Iterable[HostPlan]) -> tuple[tuple[str, ...], ...]:
    """Return the hosts in the order of an upgrade: one leaf, a tenth of all, then the others, the root last.

    Whoever is below goes first, and of the others one depth at a time: a node that starts anew drops its links for a
    moment, and what goes wrong should be seen first where nobody is below.
    """
    upward = waves(plans)[::-1]
    order = [name for wave in upward for name in wave]
    tenth = order[1 : 1 + len(order) // 10]
    early = {*order[:1], *tenth}
    others = (tuple(name for name in wave if name not in early) for wave in upward)
    return tuple(wave for wave in (tuple(order[:1]), tuple(tenth), *others) if wave)


def waiting(topology: Topology, failed: Collection[str]) -> dict[str, str]:
    """Return who waits for whom: each node below a failed one -> the nearest failed one above it.

    They are built, and have no parent until that one is.
    """
    above = {name: next((each for each in topology.ancestors(name) if each in failed), "") for name in topology.names}
    return {name: parent for name, parent in above.items() if parent and name not in failed}
