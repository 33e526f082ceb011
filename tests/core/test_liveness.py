"""Liveness of one link: when it is asked, when it is torpid, when it is cut (protocol section 8)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.core.liveness import Liveness, Verdict

PING, TORPID, RESET = Verdict.PING, Verdict.TORPID, Verdict.RESET


def liveness(now=0):
    return Liveness(now, ping_ms=500, torpid_after=3, reset_after_s=30)


def verdicts(live, *times, late_ms=0):
    return [live.tick(now, late_ms) for now in times]


def test_a_ping_is_due_every_so_often():
    """The first PING comes one interval after the link, and each tick before the next one asks for nothing."""
    assert verdicts(liveness(), 0, 499, 500, 510, 999, 1000) == [[], [], [PING], [], [], [PING]]


def test_silence_makes_torpid_once():
    """After three PINGs without a sign of life the fourth finds the link torpid, and says so once (8.1)."""
    assert verdicts(liveness(), 500, 1000, 1500, 2000, 2500) == [[PING], [PING], [PING], [PING, TORPID], [PING]]


@pytest.mark.parametrize("heard_at", [600, 1100, 1999])
def test_any_frame_is_a_sign_of_life(heard_at):
    """A frame of any kind begins the count of unanswered PINGs anew (8.2)."""
    live = liveness()
    for now in range(500, 2001, 500):
        if now - 500 < heard_at <= now:
            assert not live.heard()
        assert TORPID not in live.tick(now, 0)


def test_a_torpid_link_recovers():
    """The first frame of a torpid link is news, the next is not; then it takes full silence again."""
    live = liveness()
    verdicts(live, 500, 1000, 1500, 2000)
    assert live.heard()
    assert not live.heard()
    assert verdicts(live, 2500, 3000, 3500, 4000) == [[PING], [PING], [PING], [PING, TORPID]]


def test_torpid_for_too_long_is_cut():
    """A link that stays torpid for the whole patience is to be cut (8.1)."""
    live = liveness()
    verdicts(live, 500, 1000, 1500, 2000)
    assert live.tick(31_999, 0) == [PING]
    assert live.tick(32_000, 0) == [RESET]


def test_a_late_router_distrusts_itself():
    """PINGs of a router that was late do not count as unanswered, and lateness is taken off a cut (8.3)."""
    live = liveness()
    assert verdicts(live, 5000, 10_000, 15_000, 20_000, 25_000, late_ms=4500) == [[PING]] * 5
    assert live.unanswered == 0
    assert verdicts(live, 25_500, 26_000, 26_500, 27_000)[-1] == [PING, TORPID]
    assert live.tick(58_000, 1500) == [PING]
    assert live.tick(58_000, 1000) == [RESET]


@given(st.lists(st.tuples(st.integers(1, 2000), st.booleans(), st.integers(0, 1000)), max_size=60))
def test_no_link_is_torpid_without_enough_silence(course):
    """Whatever the course of ticks and frames: torpid takes three PINGs in a row that were in time and unanswered."""
    live, now, silent = liveness(), 0, 0
    for step, is_heard, late_ms in course:
        now += step
        if is_heard:
            live.heard()
            silent = 0
        found = live.tick(now, late_ms)
        if TORPID in found:
            assert silent >= 3
        if PING in found and late_ms < 500:
            silent += 1
        if RESET in found:
            assert live.torpid_since is not None


def test_a_round_trip_counts_for_the_last_ping_only():
    """A PONG for an older PING says nothing of the round trip."""
    live = liveness()
    live.tick(500, 0)
    live.tick(1000, 0)
    live.answered(live.ping_id - 1, 500.0, 1001.0)
    assert live.rtt_ms is None
    live.answered(live.ping_id, 1000.0, 1001.5)
    assert live.rtt_ms == 1.5


@given(st.integers(-(10**9), 10**9), st.lists(st.integers(0, 5000), min_size=1, max_size=40), st.integers(0, 10_000))
def test_the_age_of_a_stamp_needs_no_common_clock(shift, delays, slept):
    """What slept is as old as it slept, up to the least delay of the last 16 clock readings (8.4)."""
    live, now = liveness(), 1_000_000
    for delay in delays:
        live.clock(now - delay + shift, now)
    least = min(delays[-16:])
    assert live.age(now - slept - least + shift, now) == slept


def test_age_is_never_negative_or_invented():
    """A stamp from the future is fresh, and without any reading of the other clock every stamp is."""
    live = liveness()
    assert live.age(5, 1_000_000) == 0
    live.clock(100, 100)
    assert live.age(200, 150) == 0
