"""Workers that read requests and end none of them (protocol 9.5 and 10.1)."""

import pytest
from memory import Net, Probe

from tsbus.core.accounting import Outcome
from tsbus.core.exchanges import MAX_SERVED
from tsbus.core.tree import Topology

WHY = "the worker that serves svc.run on b has 10,000 calls under way, and gets no more before it ends some"


class Full:
    """A node a above b, where a worker has all the calls that it may have."""

    def __init__(self) -> None:
        self.net = Net(Topology({"a": ["b"], "b": []}))
        self.net.start("a", "b")
        self.net.advance(1000)
        self.first, self.other, caller = self.worker(), self.net.probe("a"), self.net.probe("a")
        self.net.run()
        for number in range(MAX_SERVED):
            caller.request("b", "svc.run")
            if number % 10 == 0:  # a pipe of the net takes 16 frames
                self.net.run()
        self.net.run()
        assert len(self.first.requests) == MAX_SERVED

    def worker(self) -> Probe:
        worker = self.net.probe("b")
        self.net.run()
        worker.serve("svc", "run")
        self.net.run()
        return worker

    def call(self) -> int:
        """Begin one more call."""
        number = self.other.request("b", "svc.run")
        self.net.run()
        return number


@pytest.fixture
def full() -> Full:
    return Full()


def test_the_router_refuses_for_a_full_worker(full: Full) -> None:
    """One call more is refused with the reason, and the worker and its calls stay."""
    number = full.call()
    assert full.other.calls[number].texts == {"b": WHY}
    assert full.other.calls[number].done == {Outcome.REFUSED: frozenset("b")}
    assert full.first.alive
    assert len(full.net.stations["b"].router.services.serving) == len(full.first.requests) == MAX_SERVED


def test_a_worker_that_ends_a_call_gets_the_next(full: Full) -> None:
    """Each call that ends, by an answer or by its caller, makes room for one."""
    full.first.answer(next(iter(full.first.requests)))
    full.net.run()
    number = full.call()
    assert not full.other.calls[number].ended
    full.other.cancel(number)
    full.net.run()
    assert not full.other.calls[full.call()].ended
    assert full.other.calls[full.call()].texts == {"b": WHY}


def test_a_full_worker_is_passed_over(full: Full) -> None:
    """Another worker of the command gets what the full one cannot take, all of it."""
    second = full.worker()
    for _ in range(10):
        assert not full.other.calls[full.call()].ended
    assert len(second.requests) == 10
