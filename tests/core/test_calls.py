"""The books of calls: nothing stays open that nobody waits for, and nothing is closed twice (protocol section 10)."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tsbus.core.accounting import Outcome
from tsbus.core.calls import Outgoing, Serving
from tsbus.core.message import Done
from tsbus.core.target import spell

NODES = frozenset({"n1", "n2", "n3", "db"})
handles = st.integers(1, 3)
numbers = st.integers(1, 4)
node_sets = st.frozensets(st.sampled_from(sorted(NODES)), min_size=1)


class OutgoingMachine(RuleBasedStateMachine):
    """The account of a router's own clients, against plain dictionaries."""

    def __init__(self):
        super().__init__()
        self.book = Outgoing(limit=3)
        self.model: dict[tuple[int, int], tuple[set[str], int]] = {}

    @rule(handle=handles, number=numbers, nodes=node_sets, deadline=st.integers(0, 100))
    def begin(self, handle, number, nodes, deadline):
        mine = [key for key in self.model if key[0] == handle]
        call = self.book.open(handle, number, "svc.run", nodes, deadline)
        assert (call is None) == (len(mine) >= 3 or (handle, number) in self.model)
        if call is not None:
            self.model[handle, number] = (set(nodes), deadline)

    @rule(handle=handles, number=numbers, node=st.sampled_from(sorted(NODES)), outcome=st.sampled_from(Outcome))
    def answer(self, handle, number, node, outcome):
        call = self.book.get(handle, number)
        if call is not None and call.account.finish(node, outcome):
            self.model[handle, number][0].discard(node)
            if call.account.closed:
                self.book.close(call)
                self.book.close(call)
                del self.model[handle, number]

    @rule(nodes=node_sets)
    def lose(self, nodes):
        for call, owing in self.book.waiting_for(nodes):
            assert owing == self.model[call.handle, call.number][0] & nodes
            for node in owing:
                call.account.finish(node, Outcome.UNREACHABLE)
            self.model[call.handle, call.number][0].difference_update(owing)
            if call.account.closed:
                self.book.close(call)
                del self.model[call.handle, call.number]

    @rule(handle=handles)
    def client_ends(self, handle):
        for call in self.book.of(handle):
            self.book.close(call)
            del self.model[handle, call.number]
        assert self.book.of(handle) == []

    @invariant()
    def the_books_agree(self):
        assert len(self.book) == len(self.model)
        for handle in (1, 2, 3):
            found = {(call.handle, call.number) for call in self.book.of(handle)}
            assert found == {key for key in self.model if key[0] == handle}
        for key, (waiting, _) in self.model.items():
            call = self.book.get(*key)
            assert call is not None
            assert call.account.waiting == waiting
        overdue = {(call.handle, call.number) for call in self.book.overdue(50)}
        assert overdue == {key for key, (_, deadline) in self.model.items() if deadline <= 50}


TestOutgoing = OutgoingMachine.TestCase
TestOutgoing.__doc__ = "After any course of calls, answers, losses and ends, exactly the calls that wait are open."


@given(st.dictionaries(st.sampled_from(sorted(NODES)), st.sampled_from(Outcome), min_size=1))
def test_done_tells_every_node_once(outcomes):
    """DONE has each node of the call in the set of its outcome, folded (10.2)."""
    call = Outgoing().open(1, 1, "svc.run", frozenset(outcomes), 0)
    for node, outcome in outcomes.items():
        call.account.finish(node, outcome)
    told = {outcome: spell(getattr(call.done(), outcome.name.lower())) for outcome in Outcome}
    assert told == {outcome: {node for node, each in outcomes.items() if each is outcome} for outcome in Outcome}


def test_done_folds():
    """Nodes with one outcome are told as one folded set, outcomes without a node are empty."""
    call = Outgoing().open(1, 1, "svc.run", NODES, 0)
    call.account.finish("db", Outcome.FAILED)
    call.account.finish_all(Outcome.OK)
    assert call.done() == Done(ok="n[1-3]", failed="db")


keys = st.tuples(st.sampled_from(sorted(NODES)), handles, numbers)
facts = st.one_of(
    st.tuples(st.just("begin"), keys, st.integers(1, 2)),
    st.tuples(st.just("end"), keys),
    st.tuples(st.just("worker gone"), st.integers(1, 2)),
    st.tuples(st.just("lost"), node_sets),
)


@given(st.lists(facts, max_size=40))
def test_each_call_has_one_worker_until_it_ends(history):
    """After any course, a call that began and did not end is found by its worker, its key and its caller's node."""
    serving, model = Serving(), {}
    for fact, *about in history:
        if fact == "begin":
            key, worker = about
            assert serving.begin(key, worker) == (key not in model)
            model.setdefault(key, worker)
        elif fact == "end":
            serving.end(about[0])
            model.pop(about[0], None)
        else:
            mine = (
                {key for key, worker in model.items() if worker == about[0]}
                if fact == "worker gone"
                else {key for key in model if key[0] in about[0]}
            )
            found = serving.of(about[0]) if fact == "worker gone" else serving.from_nodes(about[0])
            assert sorted(found) == sorted(mine)
            for key in found:
                serving.end(key)
                del model[key]
        assert len(serving) == len(model)
        assert all(serving.worker(key) == worker for key, worker in model.items())
        assert all(set(serving.of(worker)) == {k for k, w in model.items() if w == worker} for worker in (1, 2))
        assert all(serving.count(worker) == len(serving.of(worker)) for worker in (1, 2))
