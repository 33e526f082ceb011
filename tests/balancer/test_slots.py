"""Slots: shares follow weights, turns are spread evenly, and homes change only for the clients of who is gone."""

from collections import Counter
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from tsbus.balancer.slots import MANY, slots
from tsbus.balancer.table import Address, Destination


def place(number: int) -> Address:
    return Address(IPv4Address(0x0A000000 + number), 80)


def servers(*weights: int) -> list[Destination]:
    return [Destination(place(number), weight) for number, weight in enumerate(weights)]


WEIGHTS = st.lists(st.integers(0, 65535), max_size=20).map(lambda weights: servers(*weights))


def test_turns_are_spread() -> None:
    """Connections of a heavier server are not bunched together."""
    assert [each.ip for each in slots("wrr", servers(2, 1, 1))] == [place(each).ip for each in (0, 1, 2, 0)]
    assert slots("wrr", servers(100, 100)) == slots("rr", servers(7, 1)) == [place(0), place(1)]


@given(WEIGHTS, st.sampled_from(["rr", "wrr", "sh"]))
def test_who_has_slots(some: list[Destination], scheduler: str) -> None:
    """Who has a weight has a slot, except with sh where it is very small; who has none has none."""
    found = set(slots(scheduler, some))
    ready = {each.address for each in some if each.weight}
    assert found == ready if scheduler != "sh" else found <= ready and bool(found) == bool(ready)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_exact_shares(weights: list[int]) -> None:
    """Weights that are small enough are kept to exactly."""
    counts = Counter(slots("wrr", servers(*weights)))
    assert len({counts[place(number)] / weight for number, weight in enumerate(weights)}) == 1


@given(WEIGHTS)
def test_bounded(some: list[Destination]) -> None:
    """However the weights are, a service has few slots, and shares are wrong by little."""
    order = slots("wrr", some)
    assert len(order) <= MANY + len(some)
    total = sum(each.weight for each in some)
    for each in some:
        assert total == 0 or abs(order.count(each.address) / len(order) - each.weight / total) < 0.1


@given(st.lists(st.integers(1, 100), min_size=2, max_size=10), st.data())
def test_homes(weights: list[int], data: st.DataObject) -> None:
    """With sh, when a server gets no more connections, the clients of all others keep theirs."""
    gone = data.draw(st.integers(0, len(weights) - 1))
    before = slots("sh", servers(*weights))
    after = slots("sh", servers(*(0 if number == gone else weight for number, weight in enumerate(weights))))
    assert [old for old, new in zip(before, after, strict=True) if old != new] == [place(gone)] * before.count(
        place(gone)
    )


def test_homes_by_weight() -> None:
    """With sh, shares follow weights roughly, as 256 homes allow."""
    counts = Counter(slots("sh", servers(100, 100, 200)))
    assert 90 < counts[place(2)] < 166
    assert min(counts.values()) > 40
