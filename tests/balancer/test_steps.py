"""From the kernel's table to the wanted one: the order, and what is not touched."""

from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from model_kernel import Kernel, climb, server

from tsbus.balancer import steps
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import Address, Destination, Entry, Forward, Protocol, Service, Virtual

KEYS = [Virtual(Protocol.TCP, ip_address("10.0.0.1"), port) for port in (80, 81, 82)]
PLACES = [Address(ip_address(f"10.1.0.{n}"), 80) for n in range(5)]

destinations = st.dictionaries(
    st.sampled_from(PLACES),
    st.tuples(st.sampled_from([0, 0, 1, 5]), st.sampled_from([Forward.NAT, Forward.DIRECT])),
    max_size=5,
).map(lambda found: {place: Destination(place, weight, forward) for place, (weight, forward) in found.items()})
services = st.tuples(st.sampled_from(["rr", "wlc"]), st.sampled_from([0, 60]), destinations)
wanteds = st.dictionaries(st.sampled_from(KEYS), services).map(
    lambda found: {key: Pool(Service(key, alg, keep, owned=True), places) for key, (alg, keep, places) in found.items()}
)
tables = st.dictionaries(st.sampled_from(KEYS), st.tuples(services, st.booleans())).map(
    lambda found: {
        key: Entry(Service(key, alg, keep, owned=owned), places) for key, ((alg, keep, places), owned) in found.items()
    }
)


def shown(table):
    """A table without counts."""
    return {key: (entry.service, entry.destinations) for key, entry in table.items()}


@settings(max_examples=300)
@given(wanteds, tables, st.none() | st.sets(st.sampled_from(KEYS)), st.sets(st.sampled_from(KEYS)), st.integers(0, 30))
def test_every_table_becomes_the_wanted_one(wanted, table, recorded, adopt, crash):
    """Step by step no served service is empty and no foreign one is touched, a crash between any two steps is
    mended by the next comparison, and in the end ours are as wanted and foreign ones as they were."""
    kernel = Kernel()
    kernel.table = {key: Entry(entry.service, dict(entry.destinations)) for key, entry in table.items()}
    ours = steps.owned(kernel.table, recorded)
    foreign = {key: entry for key, entry in table.items() if key not in ours and not (key in wanted and key in adopt)}
    change = steps.change(wanted, kernel.copy(), ours, adopt)
    for number, _ in enumerate(climb(kernel, change, wanted)):
        if number == crash:
            recorded = change.claims
            ours = steps.owned(kernel.table, recorded)
            change = steps.change(wanted, kernel.copy(), ours, adopt)
            for _ in climb(kernel, change, wanted):
                pass
            break
    result = shown(kernel.table)
    expected = {key: (pool.service, dict(pool.destinations)) for key, pool in wanted.items() if key not in foreign}
    assert result == expected | shown(foreign)
    assert set(change.clashes) == set(foreign) & set(wanted)
    assert steps.change(wanted, kernel.copy(), steps.owned(kernel.table, change.claims), adopt).steps == ()


def test_who_owns_a_service():
    """The mark and the state file must both say so; without a file the mark does; what was ours in this run stays."""
    marked, plain = Entry(Service(KEYS[0], owned=True), {}), Entry(Service(KEYS[1]), {})
    table = {KEYS[0]: marked, KEYS[1]: plain}
    assert steps.owned(table, None) == {KEYS[0]}
    assert steps.owned(table, set()) == set()
    assert steps.owned(table, set(KEYS)) == {KEYS[0]}
    assert steps.owned(table, set(KEYS), held=set(KEYS)) == {KEYS[0], KEYS[1]}


def test_the_state_file_knows_a_service_before_it_is_made():
    """A crash between the two leaves no service that is marked and not in the file."""
    change = steps.change({KEYS[0]: Pool(Service(KEYS[0]))}, {}, frozenset())
    assert change.claims == {KEYS[0]}
    assert change.steps == (steps.AddService(Service(KEYS[0], owned=True)),)


def test_the_order_of_steps():
    """Add, raise, lower, weight 0, delete."""
    names = {number: f"10.1.0.{number}" for number in range(5)}
    before = {0: 5, 1: 1, 2: 5, 3: 1}
    actual = {
        KEYS[0]: Entry(
            Service(KEYS[0], owned=True),
            {(one := server(names[n], weight=w)).address: one for n, w in before.items()},
        )
    }
    after = [server(names[n], weight=w) for n, w in {0: 0, 1: 5, 2: 1, 4: 1}.items()]
    wanted = {KEYS[0]: Pool(Service(KEYS[0]), {one.address: one for one in after})}
    change = steps.change(wanted, actual, {KEYS[0]})
    assert change.steps == (
        steps.AddDestination(KEYS[0], server(names[4])),
        steps.SetDestination(KEYS[0], server(names[1], weight=5)),
        steps.SetDestination(KEYS[0], server(names[2], weight=1)),
        steps.SetDestination(KEYS[0], server(names[0], weight=0)),
        steps.DeleteDestination(KEYS[0], server(names[3]).address),
    )
