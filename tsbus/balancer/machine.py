"""Machine: the kernel under the balancers of a node, one shape for IPVS and for nftables, with the host's rules.

Everything here blocks for system calls or tools, and is for one thread without a loop: carrier.py's.
"""

from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple, Protocol

from tsbus.balancer import ipvs, nftables, open_connections
from tsbus.balancer.ipvs import IpvsError, Kernel, NoPermission
from tsbus.balancer.lock import Lock, Taken
from tsbus.balancer.netfilter import Done, HostEdge
from tsbus.balancer.netfilter import Policy as SysctlPolicy
from tsbus.balancer.nftables import Table
from tsbus.balancer.programs import HostError
from tsbus.balancer.report import Problem
from tsbus.balancer.rules import Backend, Front, Host, Listen, Needs, needs
from tsbus.balancer.steps import (
    AddDestination,
    AddService,
    DeleteDestination,
    DeleteService,
    Pool,
    SetDestination,
    SetService,
    Step,
    key_of,
)
from tsbus.balancer.table import Address, Entry, Key, Mark
from tsbus.balancer.verdicts import impossible

Listens = Mapping[Mark, tuple[Listen, ...]]


class Unusable(Exception):
    """No kernel to balance with; the text says why, `mend` what to do."""

    def __init__(self, text: str, mend: str) -> None:
        super().__init__(text)
        self.mend = mend


class MachineError(Exception):
    """The kernel's table cannot be read now; the text says why."""


@contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except (IpvsError, HostError) as error:
        raise MachineError(str(error)) from error


class Refusal(NamedTuple):
    """A step that the kernel refused."""

    key: Key
    problem: Problem


class Machine(Protocol):
    """What balances."""

    @property
    def backend(self) -> Backend:
        """Which kind."""
        ...

    def services(self, keys: Collection[Key] | None = None, *, counted: bool = True) -> dict[Key, Entry]:
        """Return those of `keys` that are in the table, without `keys` everything. Raises MachineError.

        Without `counted` it costs less, and the counts are nothing.
        """
        ...

    def untouched(self) -> bool:
        """Tell whether nobody has changed the table since it was read or changed here; False where nobody knows."""
        ...

    def why_not(self, pool: Pool) -> Problem | None:
        """Return why this kernel cannot hold a service, None when it can."""
        ...

    def apply(self, steps: Sequence[Step], listens: Listens) -> list[Refusal]:
        """Take the steps in their order; of a service of which one is refused, the later ones are left out."""
        ...

    def finish(self) -> None:
        """Do what follows from the steps and takes longer, while what they led to is told. Raises MachineError."""
        ...

    def connections(self, watched: Iterable[tuple[Key, Address]], listens: Listens) -> dict[tuple[Key, Address], int]:
        """Return how many connections of these servers are not over. Raises MachineError."""
        ...

    def prepare(self, fronts: Sequence[Front], *, anew: bool) -> Done:
        """Make the host as the balancers need it, and tell what had to be changed; `anew`: look at all of it again."""
        ...

    def retire_other(self, ours: Container[Key]) -> tuple[str, ...]:
        """Take away what balancers here have left with the other backend, now that all is in this one.

        `ours` are the services that may be ours. Returns what was done, in words. Raises MachineError.
        """
        ...

    def close(self) -> None:
        """Close what is open; the table stays in force."""
        ...


def open_machine(backend: str, sysctls: SysctlPolicy, node: str = "") -> Machine:
    """Return what `backend` asks for, for the balancers of `node`: ipvs, nftables, or auto. Raises Unusable."""
    try:
        lock = Lock(node)
    except Taken as error:
        mend = "let one node of this machine have balancers, or give each a network namespace of its own"
        raise Unusable(str(error), mend) from error
    try:
        return _opened(backend, sysctls, lock)
    except BaseException:
        lock.close()
        raise


def _opened(backend: str, sysctls: SysctlPolicy, lock: Lock) -> Machine:
    if backend in ("ipvs", "auto"):
        try:
            return _Ipvs(sysctls, lock)
        except IpvsError as error:
            if backend == "ipvs":
                first = "run the balancer as root" if isinstance(error, NoPermission) else "`modprobe ip_vs`"
                mend = f'{first}, or set backend = "auto" in [balancing] for a balancer without IPVS'
                raise Unusable(str(error), mend) from error
    if why := nftables.why_unavailable():
        raise Unusable(f"neither IPVS nor nftables can be used: {why}", "load ip_vs, or install nftables; run as root")
    return _Nftables(sysctls, lock)


class _OnHost:
    """The host's rules, settings and addresses, written when the needs change and compared when asked to."""

    def __init__(self, backend: Backend, sysctls: SysctlPolicy, lock: Lock) -> None:
        self.backend = backend
        self._edge = HostEdge(backend)
        self._sysctls, self._lock = sysctls, lock
        self._host: Host | None = None
        self._thought: tuple[Sequence[Front], Host, Needs] | None = None
        self._needs: Needs | None = None
        """What the host was made to have."""
        self._problems: tuple[Problem, ...] = ()

    def prepare(self, fronts: Sequence[Front], *, anew: bool) -> Done:
        done = self._prepared(fronts, anew=anew)
        return replace(done, problems=(*done.problems, self._lock.problem)) if self._lock.problem else done

    def _prepared(self, fronts: Sequence[Front], *, anew: bool) -> Done:
        try:
            if self._host is None or anew or self._needed(fronts, self._host) != self._needs:
                self._host = self._edge.read()
                self._needs = None  # until it is done
                wanted = self._needed(fronts, self._host)
                done = self._edge.apply(wanted, self._sysctls)
                self._needs, self._problems = wanted, done.problems
                return done
        except HostError as error:
            return Done(problems=(Problem(error.text, error.mend),))
        return Done(problems=self._problems)

    def _needed(self, fronts: Sequence[Front], host: Host) -> Needs:
        """What these need: thought over once, since that takes 5 ms for 5,000 servers."""
        if self._thought is None or self._thought[:2] != (fronts, host):
            self._thought = fronts, host, needs(fronts, host)
        return self._thought[2]

    def close(self) -> None:
        self._edge.close()
        self._lock.close()


class _Ipvs(_OnHost):
    """IPVS: one step at a time."""

    def __init__(self, sysctls: SysctlPolicy, lock: Lock) -> None:
        self._kernel = Kernel()
        super().__init__("ipvs", sysctls, lock)
        try:
            self._schedulers = self._kernel.schedulers()
        except IpvsError:
            self._schedulers = frozenset()  # without IPv6 they cannot be probed; the kernel will say it of each

    def services(self, keys: Collection[Key] | None = None, *, counted: bool = True) -> dict[Key, Entry]:
        with _unreadable():
            return self._kernel.services(keys, counted=counted)

    def untouched(self) -> bool:
        return False  # this kernel tells nobody of changes

    def why_not(self, pool: Pool) -> Problem | None:
        scheduler = pool.service.scheduler
        if self._schedulers and scheduler not in self._schedulers:
            there = ", ".join(sorted(self._schedulers))
            return Problem(f"the kernel has no scheduler {scheduler}", f"load ip_vs_{scheduler}, or use one of {there}")
        return None

    def apply(self, steps: Sequence[Step], listens: Listens) -> list[Refusal]:
        refusals: dict[Key, Refusal] = {}
        for step in steps:
            key = key_of(step)
            if key in refusals:
                continue
            try:
                self._take(step)
            except (IpvsError, ValueError) as error:
                refusals[key] = Refusal(key, Problem(f"{key}: the kernel refused it: {error}", "see the text"))
        return list(refusals.values())

    def finish(self) -> None:
        pass

    def connections(self, watched: Iterable[tuple[Key, Address]], listens: Listens) -> dict[tuple[Key, Address], int]:
        places = list(watched)
        table = self.services({key for key, _ in places})
        counts = {(key, at): table[key].counts[at] for key, at in places if key in table and at in table[key].counts}
        ended: Counter[open_connections.Way] = Counter()
        if any(each.inactive for each in counts.values()):
            with suppress(OSError), open_connections.PLACE.open() as lines:
                ended = open_connections.over(lines)
        return {
            (key, at): open_connections.left(
                each, ended, key, at, listens.get(key, ()) if isinstance(key, Mark) else ()
            )
            for (key, at), each in counts.items()
        }

    def retire_other(self, ours: Container[Key]) -> tuple[str, ...]:
        with _unreadable():
            gone = nftables.remove()
        return ("IPVS balances now: the table of nftables is gone",) if gone else ()

    def close(self) -> None:
        super().close()
        self._kernel.close()

    def _take(self, step: Step) -> None:
        match step:
            case AddService(service):
                self._kernel.add_service(service)
            case SetService(service):
                self._kernel.set_service(service)
            case DeleteService(key):
                self._kernel.delete_service(key)
            case AddDestination(key, destination):
                self._kernel.add_destination(key, destination)
            case SetDestination(key, destination):
                self._kernel.set_destination(key, destination)
            case DeleteDestination(key, address):
                self._kernel.delete_destination(key, address)


class _Nftables(_OnHost):
    """A table of nft: all steps at once."""

    def __init__(self, sysctls: SysctlPolicy, lock: Lock) -> None:
        self._table = Table()
        super().__init__("nftables", sysctls, lock)

    def services(self, keys: Collection[Key] | None = None, *, counted: bool = True) -> dict[Key, Entry]:
        with _unreadable():
            return self._table.services(keys, counted=counted)

    def untouched(self) -> bool:
        return self._table.untouched()

    def why_not(self, pool: Pool) -> Problem | None:
        why = impossible(pool.service, pool.destinations.values())
        return Problem(why, 'or set backend = "ipvs" in [balancing]') if why else None

    def apply(self, steps: Sequence[Step], listens: Listens) -> list[Refusal]:
        try:
            self._table.apply(steps, listens)
            return []
        except HostError as error:
            problem = Problem(error.text, error.mend)
        except ValueError as error:
            problem = Problem(str(error), "see the text")
        return [Refusal(key, problem) for key in dict.fromkeys(map(key_of, steps))]

    def finish(self) -> None:
        with _unreadable():
            self._table.finish()

    def connections(self, watched: Iterable[tuple[Key, Address]], listens: Listens) -> dict[tuple[Key, Address], int]:
        with _unreadable():
            return self._table.connections(watched)

    def retire_other(self, ours: Container[Key]) -> tuple[str, ...]:
        with _unreadable():
            left = ipvs.remove(ours)
        return ("nftables balances now: the services of IPVS are gone",) if left else ()

    def close(self) -> None:
        super().close()
        self._table.close()
