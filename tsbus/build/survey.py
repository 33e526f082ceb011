"""Survey: what each server is now, next to what it should be: through the tree, over SSH where that does not reach."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tsbus.build.bus import ask_root
from tsbus.build.campaign import Campaign
from tsbus.build.facts import Facts
from tsbus.build.jobs import Seen
from tsbus.build.places import CONFIG, SUPERVISOR
from tsbus.build.reports import Left, Noted, Opened, Report
from tsbus.build.ssh import ServerTrouble
from tsbus.build.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Standing:
    """What one server is."""

    name: str
    answers: bool
    """It has answered over the bus."""
    release: str
    """The one in use; empty: it is no node."""
    drift: tuple[str, ...] = ()
    """What is not as it should be, in words."""


def by_bus(name: str, told: dict[str, Any], wish: Wanted) -> Standing:
    """Return what a node has told of itself (`node.facts`)."""
    release, *rest = (str(told.get(key, "")) for key in ("release", "config", "supervisor", "pending"))
    return Standing(name, True, release, _drift(wish, release, *rest))


def by_ssh(name: str, facts: Facts, wish: Wanted) -> Standing:
    """Return what a look at the server has found."""
    if not facts.current:
        return Standing(name, False, "", ("it is no node yet",))
    runs = bool(facts.ours) if facts.init == "none" else facts.unit.active
    silent = "it does not answer over the bus" if runs else "its node does not run"
    digests = facts.digests.get(CONFIG, ""), facts.digests.get(SUPERVISOR, "")
    return Standing(name, False, facts.current, (silent, *_drift(wish, facts.current, *digests, facts.pending)))


def _drift(wish: Wanted, release: str, config: str, supervisor: str, pending: str) -> tuple[str, ...]:
    found = []
    if release != wish.release.name:
        found.append(f"its release is {release or 'none'}, the console's {wish.release.name}")
    if config != wish.config:
        found.append("its copy of the tree is another")
    if wish.supervisor and supervisor != wish.supervisor:
        found.append("its supervisord.conf is another")
    if pending:
        found.append("its processes have not been told of what is new")
    return tuple(found)


class Survey(Campaign):
    """A run that only looks; then there are `standings`, but of those that failed."""

    def look(self) -> Iterator[Report]:
        """Ask the tree, then look at those that have not answered. Raises StoreError."""
        yield Opened("probe", self.names)
        wishes = self.wishes()
        self.standings: dict[str, Standing] = {}
        try:
            answers = ask_root(self, self.names, "node.facts")
        except ServerTrouble as error:
            yield Noted("", f"the tree cannot be asked, so each server is: {error.trouble.text}")
        else:
            self.standings = {name: by_bus(name, told, wishes[name]) for name, told in answers.given.items()}
            yield from (Left(name, "probe", 0.0) for name in self.standings)

        def note(name: str, seen: Seen) -> None:
            self.standings[name] = by_ssh(name, seen.facts, wishes[name])

        yield from self.look_at([name for name in self.names if name not in self.standings], note)
