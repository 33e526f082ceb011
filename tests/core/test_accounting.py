"""The closed accounting of one call."""

from hypothesis import given
from hypothesis import strategies as st

from tsbus.core.accounting import Account, Outcome

nodes = st.sampled_from("abcdefgh")  # some of them are strangers to most accounts
outcomes = st.sampled_from(Outcome)
facts = st.one_of(
    st.tuples(st.just("finish"), nodes, outcomes),
    st.tuples(st.just("finish_all"), outcomes),
)


@given(st.frozensets(nodes), st.lists(facts), outcomes)
def test_every_node_ends_exactly_once(resolved, history, last):
    """After any facts, each node waits or has its first outcome; at the end the outcomes make up the resolved set."""
    account = Account(resolved)
    first: dict[str, Outcome] = {}
    for fact, *arguments in [*history, ("finish_all", last)]:
        news = getattr(account, fact)(*arguments)
        if fact == "finish":
            node, outcome = arguments
            assert news == (node in resolved and node not in first)
            ended = {node} if news else set()
        else:
            (outcome,) = arguments
            ended = resolved - first.keys()
            assert news == ended
        first |= dict.fromkeys(ended, outcome)
        assert account.waiting == resolved - first.keys()
        assert account.closed == (not account.waiting)
        assert account.summary() == {each: {n for n, o in first.items() if o is each} for each in Outcome}
    assert account.closed
    assert sum(map(len, account.summary().values())) == len(resolved)


def test_late_answers_change_nothing():
    """An answer after the node's end is refused and leaves the first outcome."""
    account = Account(["node1"])
    assert account.finish("node1", Outcome.TIMEOUT)
    assert not account.finish("node1", Outcome.OK)
    assert account.summary()[Outcome.TIMEOUT] == {"node1"}
    assert account.summary()[Outcome.OK] == frozenset()


def test_answers_of_strangers_change_nothing():
    """An answer from a node that was not asked is refused and appears nowhere."""
    account = Account(["node1"])
    assert not account.finish("node2", Outcome.OK)
    assert account.waiting == {"node1"}


def test_outcomes_keep_their_numbers():
    """The outcomes have the numbers of the wire format (protocol 10.2)."""
    assert {outcome.name: outcome.value for outcome in Outcome} == {
        "OK": 0,
        "FAILED": 1,
        "TIMEOUT": 2,
        "UNREACHABLE": 3,
        "REFUSED": 4,
        "NO_SUCH_SERVICE": 5,
        "CANCELLED": 6,
    }
