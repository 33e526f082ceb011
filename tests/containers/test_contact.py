"""When the service reaches for the engine, asks whether it is there, and lists."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tsbus.containers.contact import LIST_S, MAX_DELAY_S, SILENCE_S, STEADY_S, Backoff, Contact


def test_delays_grow_to_a_bound_and_begin_anew():
    """Each attempt waits twice as long as the one before, five seconds at most."""
    backoff = Backoff()
    assert [backoff.next(0.0) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next(0.0) == 0.2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_delays_are_spread(chances):
    """Chance takes off up to a half, so that those who lost one engine do not come back together, and never early."""
    backoff, plain = Backoff(), Backoff()
    for chance in chances:
        most = plain.next(0.0)
        assert most / 2 <= backoff.next(chance) <= most <= MAX_DELAY_S


def test_a_stream_that_ends_is_opened_again_at_once():
    """Only an attempt that fails means that the engine is down."""
    contact = Contact()
    contact.opened(100.0)
    assert contact.ended(100.0 + STEADY_S, 0.0) == 0.0
    assert not contact.is_down
    assert contact.failed(0.0) == 0.2
    assert contact.is_down
    contact.opened(102.0)
    assert not contact.is_down


def test_a_stream_that_never_lasts():
    """An engine that ends each stream at once is left alone for longer and longer."""
    contact, now, delays = Contact(), 100.0, []
    for _ in range(6):
        contact.opened(now)
        delays.append(contact.ended(now + 0.1, 0.0))
        now += delays[-1]
    assert all(one < two for one, two in itertools.pairwise(delays))
    assert contact.is_down


def test_what_is_due():
    """A silent engine is pinged, a list is due every minute, and next_at says when."""
    contact = Contact()
    assert contact.next_at is None
    contact.opened(100.0)
    assert contact.next_at == 100.0 + LIST_S
    assert not contact.wants_list(100.0 + LIST_S - 1)
    assert contact.wants_list(100.0 + LIST_S)
    contact.listed(100.0 + LIST_S)
    assert contact.next_at == 100.0 + SILENCE_S
    assert contact.wants_ping(100.0 + SILENCE_S)
    contact.heard(100.0 + SILENCE_S)
    assert not contact.wants_ping(100.0 + SILENCE_S)
    contact.ended(300.0, 0.0)
    assert not contact.wants_ping(1000.0)
    assert not contact.wants_list(1000.0)
