"""The two books of calls that a router keeps (protocol section 10). Pure.

`Outgoing` is the account of the calls that this router's own clients made: who was asked, who still owes an answer.
`Serving` knows which local worker works on which call, so that its death, a cancel or the caller's loss ends the call.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tsbus.core.accounting import Account, Outcome
from tsbus.core.message import Done
from tsbus.core.target import fold

GRACE_MS = 250
"""Added to the budget before the router decides itself, so that the worker's own word wins (protocol 10.2)."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a local client."""

    handle: int
    number: int
    command: str
    account: Account
    deadline: int

    def done(self) -> Done:
        """Return the closed account as DONE tells it."""
        summary = self.account.summary()
        return Done(**{outcome.name.lower(): fold(summary[outcome]) for outcome in Outcome if summary.get(outcome)})


class Outgoing:
    """Calls of local clients by (handle, call number); times are monotonic milliseconds."""

    def __init__(self, limit: int = 10_000) -> None:
        """`limit`: calls open at once for each client."""
        self._calls: dict[tuple[int, int], Call] = {}
        self._open: dict[int, set[int]] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self._calls)

    def open(self, handle: int, number: int, command: str, nodes: frozenset[str], deadline: int) -> Call | None:
        """Begin a call; None if the client has too many open, or this very one."""
        mine = self._open.setdefault(handle, set())
        if len(mine) >= self._limit or number in mine:
            return None
        mine.add(number)
        call = self._calls[(handle, number)] = Call(handle, number, command, Account(nodes), deadline)
        return call

    def get(self, handle: int, number: int) -> Call | None:
        """Return an open call."""
        return self._calls.get((handle, number))

    def close(self, call: Call) -> None:
        """Forget a call whose account is closed."""
        self._calls.pop((call.handle, call.number), None)
        mine = self._open.get(call.handle)
        if mine is not None:
            mine.discard(call.number)
            if not mine:
                del self._open[call.handle]

    def of(self, handle: int) -> list[Call]:
        """Return the open calls of a client."""
        return [self._calls[(handle, number)] for number in self._open.get(handle, ())]

    def waiting_for(self, nodes: frozenset[str]) -> Iterator[tuple[Call, frozenset[str]]]:
        """Yield the calls that wait for any of `nodes`, with those nodes."""
        for call in list(self._calls.values()):
            owing = call.account.waiting & nodes
            if owing:
                yield call, owing

    def overdue(self, now: int) -> list[Call]:
        """Return the calls whose budget and grace are over."""
        return [call for call in self._calls.values() if now >= call.deadline]


Key = tuple[str, int, int]
"""(origin node, caller's handle, call number): one call everywhere."""


class Serving:
    """Which worker works on which call."""

    def __init__(self) -> None:
        self._worker: dict[Key, int] = {}
        self._calls: dict[int, set[Key]] = {}

    def __len__(self) -> int:
        return len(self._worker)

    def begin(self, key: Key, worker: int) -> bool:
        """Note that the worker with the handle `worker` has the call; False if it is known already."""
        if key in self._worker:
            return False
        self._worker[key] = worker
        self._calls.setdefault(worker, set()).add(key)
        return True

    def count(self, worker: int) -> int:
        """Return how many calls a worker has."""
        return len(self._calls.get(worker, ()))

    def worker(self, key: Key) -> int | None:
        """Return the handle of the worker that has the call."""
        return self._worker.get(key)

    def end(self, key: Key) -> None:
        """The call is over here."""
        worker = self._worker.pop(key, None)
        if worker is not None:
            calls = self._calls[worker]
            calls.discard(key)
            if not calls:
                del self._calls[worker]

    def of(self, worker: int) -> list[Key]:
        """Return the calls of a worker."""
        return list(self._calls.get(worker, ()))

    def from_nodes(self, nodes: Iterable[str]) -> list[Key]:
        """Return the calls whose caller is on one of `nodes`."""
        lost = frozenset(nodes)
        return [key for key in self._worker if key[0] in lost]
