"""Keeper: turns what is known into the kernel's table, again and again: facts, plan, carry out, tell.

One turn at a time, in this loop; the kernel is asked in a thread. A turn follows every change, the planner's own
times, and every `reconcile_s`, when the whole host is compared.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

from tsbus.balancer import answers, statefile
from tsbus.balancer.carrier import Carried, Carrier
from tsbus.balancer.deaths import Deaths
from tsbus.balancer.facts import Facts
from tsbus.balancer.machine import Machine, MachineError, Unusable
from tsbus.balancer.plan import Named, Plan, Planner
from tsbus.balancer.report import Problem, Report
from tsbus.balancer.rules import Backend, front, published
from tsbus.balancer.standing import Standing, Where
from tsbus.balancer.statefile import StateError
from tsbus.balancer.steps import words
from tsbus.balancer.table import Entry, Key
from tsbus.balancer.tally import Tally
from tsbus.balancer.telling import Telling
from tsbus.balancer.world import Override, Reading, Run
from tsbus.config import Balancer, Tree
from tsbus.cost import own_cost
from tsbus.lb_records import CapacityEvent, Cost, LbEvent
from tsbus.log import Log
from tsbus.records import Container

RETRY_S: Final = 5.0
"""After what failed."""
COUNT_S: Final = 0.1
"""Between two counts of the connections of servers that drain, or ten times what the last one took."""
FINISH_S: Final = 0.02
"""So long after a change what follows from it is done, which takes 10 ms of a core: what is told of it goes first."""
FRESH_S: Final = 0.2
"""So old the kernel's counts may be that callers are given."""
MAX_TOLD_STEPS: Final = 100
"""Steps that one event names."""

_log = Log("lb")
T = TypeVar("T")
Publish = Callable[[str, LbEvent | CapacityEvent], object]


class NotReady(Exception):
    """Nothing is balanced yet; the text says why."""


class Keeper:
    """The balancers of one node."""

    def __init__(
        self,
        tree: Tree,
        node: str,
        run_dir: Path,
        open_machine: Callable[[], Machine],
        publish: Publish,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`run_dir` is where the state file is; `open_machine` raises Unusable."""
        self.facts = Facts(tree, node)
        self.balancers: Mapping[str, Balancer] = tree.servers[node].balancers
        self.standing = Standing(self.balancers)
        self.backend = ""
        self._tree, self.node = tree, node
        self._settings = tree.balancing_for(node)
        self._path = run_dir / statefile.NAME
        self._open, self._publish, self._wall_ns = open_machine, publish, wall_ns
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "kernel")
        self._carrier: Carrier | None = None
        self._planner: Planner | None = None
        self._telling = Telling()
        self.tally = Tally()
        self._deaths = Deaths(self._died)
        self._carried_plan: Mapping[Key, object] | None = None
        self._capacity: CapacityEvent | None = None
        self._due = asyncio.Event()
        self._anew = False
        self._ordering = asyncio.Lock()
        self._planned = self._compared = 0.0
        self._count_at = 0.0
        """When connections are counted next; 0: there are none to count."""
        self._turns: list[asyncio.Future[Carried]] = []
        self._finishing: set[asyncio.Task[None]] = set()
        self._turned = asyncio.Condition()
        self._settled: tuple[Sequence[Report], Collection[str]] = (), ()
        self._counts: tuple[float, dict[Key, Entry]] | None = None

    # What others use.

    def soon(self) -> None:
        """Something is different: a turn is due."""
        self._due.set()

    async def turn(self, *, anew: bool = False) -> Carried:
        """Wait for a turn that begins now, or as soon as the present one is over; `anew`: compare the whole host."""
        self._require()
        future: asyncio.Future[Carried] = self._loop.create_future()
        self._turns.append(future)
        self._anew |= anew
        self.soon()
        return await future

    async def override(
        self, change: Callable[[tuple[Override, ...]], tuple[Override, ...]], balancers: Iterable[str]
    ) -> None:
        """Have operators' settings hold as `change` makes them; returns when the table is so, of these balancers.

        Raises what `change` raises, StateError, and NotReady where the kernel could not be changed: it is tried again.
        """
        carrier = self._require()
        async with self._ordering:
            overrides = change(self.facts.overrides)
            await self.in_thread(carrier.keep, overrides)
            self.facts.overrides = overrides
        await self.turn()
        standing = self.standing
        for name in balancers:
            if name in standing.undone:
                why = next((each.text for each in standing.lasting(name) or standing.lasting()), "see lb.check")
                raise NotReady(f"it is noted, but not so in the kernel yet: {why}")

    async def wait_begun(self) -> None:
        """Wait until it is known what should be balanced. Raises NotReady where that cannot be."""
        standing = self.standing
        async with self._turned:
            await self._turned.wait_for(lambda: standing.plan is not None or standing.unusable)
            self._require()
            await self._turned.wait_for(lambda: standing.plan is not None and standing.plan.wanted is not None)

    async def wait_settled(self, look: Callable[[Sequence[Report], Collection[str]], T | None]) -> T:
        """Wait until `look` returns something, and return it.

        It sees the reports of the last turn that is over, and the names of balancers that the kernel has otherwise.
        """
        found: T | None = None

        def is_so() -> bool:
            nonlocal found
            found = look(*self._settled)
            return found is not None

        async with self._turned:
            await self._turned.wait_for(is_so)
        assert found is not None  # noqa: S101  (for the type checker)
        return found

    async def wait_drained(self, places: Sequence[Where]) -> Where:
        """Wait until one of these servers does not drain any more, and return it: it is removed, or in use again.

        The kernel has forgotten its connections then. Of those in TIME_WAIT, too: an engine that stops a container ends
        them by what their clients sent, and with them who has the port by then (conntrack.py).
        """
        async with self._turned:
            await self._turned.wait_for(lambda: not all(map(self.standing.drains, places)))
        if self._finishing:
            await asyncio.wait(self._finishing)
        return next(place for place in places if not self.standing.drains(place))

    async def counts(self) -> dict[Key, Entry]:
        """Return what the kernel has, with its counts. Raises NotReady, MachineError."""
        carrier = self._require()
        if self._counts is None or self._loop.time() - self._counts[0] >= FRESH_S:
            self._counts = self._loop.time(), await self.in_thread(carrier.machine.services)
        return self._counts[1]

    @property
    def machine(self) -> Machine | None:
        """What balances; None while nothing can."""
        return self._carrier.machine if self._carrier else None

    @property
    def likely(self) -> Backend:
        """What should balance here by the configuration."""
        return "nftables" if self._settings.backend == "nftables" else "ipvs"

    @property
    def containers(self) -> tuple[Container, ...]:
        """Those of this node, as far as they are known."""
        own = self.facts.mirror.nodes.get(self.node)
        return tuple(own.containers.values()) if own else ()

    @property
    def now_ns(self) -> int:
        """Unix time."""
        return self._wall_ns()

    def problems(self, name: str = "") -> list[Problem]:
        """Return the problems of a balancer, or of the host."""
        fronts = [each for each in self.standing.fronts if each.name == name and self.backend == "ipvs"]
        return [*self.standing.problems(name), *published(fronts, self.containers)]

    @property
    def capacity(self) -> CapacityEvent:
        """What is alive here. Raises NotReady."""
        if self._capacity is None:
            raise NotReady("it is not known yet what runs here")
        return self._capacity

    def cost(self) -> Cost:
        """Return what was done, and what this process takes."""
        return Cost(**asdict(self.tally), watched=self._deaths.held, **own_cost())

    async def in_thread(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Let the kernel's thread do something."""
        return await self._loop.run_in_executor(self._thread, lambda: call(*args, **options))

    # The loop.

    async def run(self) -> None:
        """Keep the table until cancelled; the kernel goes on balancing then."""
        try:
            while self._carrier is None:
                await self._begin()
            while True:
                await self._wait()
                await self._turn()
        finally:
            for future in self._turns:
                future.cancel()
            for task in self._finishing:
                task.cancel()
            self._deaths.close()
            if self._carrier is not None:
                self._thread.submit(self._carrier.machine.close)
            self._thread.shutdown(wait=False)

    async def _begin(self) -> None:
        """Open the kernel, and see what in it is ours."""
        try:
            carrier, found = await self.in_thread(self._opened)
        except Unusable as error:
            problem = Problem(str(error), error.mend)
        except (MachineError, StateError) as error:
            problem = Problem(str(error), f"see the text; it is tried again every {RETRY_S:g} s")
        else:
            self._carrier, self.backend, self.standing.unusable = carrier, carrier.machine.backend, None
            self.facts.overrides = carrier.overrides
            self._planner = Planner(self._tree, self.node, found, self._loop.time())
            self.soon()
            return
        if self.standing.unusable != problem:
            _log.error("lb.unusable", error=problem.text, mend=problem.mend)
        self.standing.unusable = problem
        self._tell_problems()
        async with self._turned:
            self._turned.notify_all()
        await asyncio.sleep(RETRY_S)

    def _opened(self) -> tuple[Carrier, dict[Key, Entry]]:
        state = statefile.load(self._path)
        machine = self._open()
        carrier = Carrier(machine, self._path, state, Named(self.balancers))
        try:
            return carrier, carrier.begin()
        except BaseException:
            machine.close()
            raise

    async def _wait(self) -> None:
        """Wait until a turn is due."""
        now = self._loop.time()
        times = [self._compared + self._settings.reconcile_s if self._compared else now + RETRY_S]
        plan = self.standing.plan
        if plan is not None and plan.wake is not None and plan.wake > self._planned:
            times.append(plan.wake)
        if plan is not None and plan.watched:
            self._count_at = self._count_at or now + COUNT_S
            times.append(self._count_at)
        if self.standing.carried.failed:
            times.append(now + RETRY_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times) - now)):  # wait_for loses a cancel at an event
                await self._due.wait()
        self._due.clear()

    async def _turn(self) -> None:
        waiting, self._turns = self._turns, []
        began = time.monotonic()
        try:
            carried = await self._one_turn()
        finally:
            for future in waiting:
                if not future.done():
                    future.set_result(self.standing.carried)
        self.tally.turned(time.monotonic() - began)
        _log_carried(carried)
        self._tell_problems()
        self._settled = tuple(self.standing.reports.values()), self.standing.undone
        async with self._turned:
            self._turned.notify_all()

    async def _one_turn(self) -> Carried:
        carrier, planner = self._carrier, self._planner
        assert carrier is not None and planner is not None  # noqa: S101  (run has begun)
        await self._count(carrier)
        now, time_ns = self._planned, _ = self._loop.time(), self._wall_ns()
        plan = planner.plan(self.facts.world(now, time_ns))
        changed = self.standing.take(plan)
        self.facts.watch(plan.watched)
        if plan.spent:
            async with self._ordering:
                self.facts.overrides = tuple(each for each in self.facts.overrides if each not in plan.spent)
                await self.in_thread(carrier.try_to_keep, self.facts.overrides)
        carried = Carried()
        if plan.wanted is not None:
            anew, self._anew = self._anew or now >= self._compared + self._settings.reconcile_s, False
            if anew or plan.wanted != self._carried_plan or self.standing.carried.failed:
                carried = await self._carry(carrier, plan, anew=anew)
        for event in self._telling.take(plan.events, self.standing.undone):
            self._publish(f"lb.{event.topic}", answers.event(event, self.node, time_ns, now))
        if carried.repaired:
            steps = tuple(words(step) for step in carried.repaired[:MAX_TOLD_STEPS])
            self._publish("lb.repaired", LbEvent(node=self.node, time_ns=time_ns, steps=steps))
        self._tell_capacity(plan)
        if changed:
            self._deaths.watch(self.facts.runs(changed))
        return carried

    async def _carry(self, carrier: Carrier, plan: Plan, *, anew: bool) -> Carried:
        wanted = plan.wanted or {}
        by_name = {report.name: report.key for report in plan.reports}
        fronts = tuple(front(each, wanted[by_name[name]]) for name, each in self.balancers.items())
        self.standing.fronts = fronts
        adopt = [by_name[name] for name, each in self.balancers.items() if each.adopt]
        began, done = time.monotonic(), True
        try:
            carried = await self.in_thread(carrier.carry, fronts, adopt, anew=anew)
            if carried.steps:
                self._finish_later(carrier)
        except MachineError as error:
            problem = Problem(str(error), "see what the kernel says")
            carried, done = Carried(problems=((None, problem),), failed=frozenset(wanted)), False
        self.standing.carried, self._carried_plan = carried, wanted if done else None
        self.tally.carried(carried, time.monotonic() - began, anew=anew and done)
        if anew and done:
            self._compared = self._loop.time()
        return carried

    def _finish_later(self, carrier: Carrier) -> None:
        task = asyncio.create_task(self._finish(carrier))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _finish(self, carrier: Carrier) -> None:
        await asyncio.sleep(FINISH_S)
        try:
            await self.in_thread(carrier.machine.finish)
        except MachineError as error:
            _log.warning("lb.connections-stay", error=str(error))

    async def _count(self, carrier: Carrier) -> None:
        """Count the connections of the servers that drain, if it is time: other turns do not wait for it."""
        watched = self.standing.plan.watched if self.standing.plan else ()
        at, began = self._loop.time(), time.monotonic()
        if not watched:
            self._count_at = 0.0
        if not 0 < self._count_at <= at:
            return
        try:
            counted = await self.in_thread(carrier.count, watched, self.standing.fronts)
        except MachineError as error:
            _log.warning("lb.not-counted", error=str(error))
            counted = {}
        self._count_at = self._loop.time() + max(COUNT_S, 10 * (time.monotonic() - began))
        self.facts.readings |= {place: Reading(at, number) for place, number in counted.items()}

    def _died(self, id_: str, run: Run) -> None:
        self.facts.died(id_, run)
        self.soon()

    def _require(self) -> Carrier:
        if self._carrier is None:
            unusable = self.standing.unusable
            raise NotReady(unusable.text if unusable else "the balancer is just starting")
        return self._carrier

    # What is told.

    def _tell_problems(self) -> None:
        for topic, name, (text, mend, _) in self.standing.news():
            if topic == "problem":
                _log.warning("lb.problem", balancer=name, text=text, mend=mend)
            told = LbEvent(node=self.node, balancer=name, time_ns=self._wall_ns(), text=text, mend=mend)
            self._publish(f"lb.{topic}", told)

    def _tell_capacity(self, plan: Plan) -> None:
        if plan.wanted is None:
            return
        pairs = [(self.balancers[report.name], report) for report in plan.reports]
        told = answers.capacity(self.node, pairs, self.standing.undone, self._capacity)
        if told != self._capacity:
            self._capacity = told
            self._publish("lb.capacity", told)


def _log_carried(carried: Carried) -> None:
    for step in carried.steps:
        _log.info("lb.step", step=words(step), repaired=step in carried.repaired)
    for change in carried.changes:
        _log.info("lb.host", change=change)
