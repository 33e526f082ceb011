"""The carrier: which services it looks at, and what it writes down."""

from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from model_kernel import VIP, server
from site_of_balancer import MemoryMachine

from tsbus.balancer import statefile
from tsbus.balancer.carrier import Carrier
from tsbus.balancer.plan import Named, keys_of
from tsbus.balancer.report import Problem
from tsbus.balancer.rules import Front
from tsbus.balancer.statefile import State
from tsbus.balancer.steps import Pool, SetDestination
from tsbus.balancer.table import Entry, Key, Protocol, Service, Virtual
from tsbus.config import Balancer

OTHER = Virtual(Protocol.TCP, ip_address("10.0.0.2"), 80)


class Watched(MemoryMachine):
    """Notes which services were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[set[Key] | None] = []

    def services(self, keys: Collection[Key] | None = None, *, counted: bool = True) -> dict[Any, Entry]:
        self.read.append(None if keys is None else set(keys))
        return super().services(keys, counted=counted)


def front(key: Key, weight: int) -> Front:
    """A balancer with one server."""
    one = server("172.17.0.2", weight=weight)
    return Front("web", (), Pool(Service(key, owned=True), {one.address: one}))


def test_a_change_looks_at_its_service(tmp_path: Path) -> None:
    """A change reads the service that it concerns, and a whole comparison finds what others have done elsewhere."""
    machine = Watched()
    carrier = Carrier(machine, tmp_path / "state.json", None, frozenset({VIP, OTHER}))
    carrier.begin()
    carrier.carry([front(VIP, 1), front(OTHER, 1)], (), anew=False)
    machine.kernel.apply(SetDestination(VIP, server("172.17.0.2", weight=9)))
    changed = [front(VIP, 1), front(OTHER, 2)]
    assert len(carrier.carry(changed, (), anew=False).steps) == 1
    assert machine.read == [None, None, {OTHER}]
    state = statefile.load(tmp_path / "state.json")
    assert state is not None
    assert state.keys == {VIP, OTHER}
    for anew in (True, False):
        mended = carrier.carry(changed, (), anew=anew)
        assert len(mended.repaired) == anew
    assert machine.kernel.servers(VIP) == {"172.17.0.2:80": 1}
    carrier.carry(changed[:1], (), anew=False)
    assert machine.read[3:] == [None, None, None]
    assert not machine.kernel.serves(OTHER)


def test_rules_have_to_be_written_down(tmp_path: Path) -> None:
    """The host gets no rule before the file says so, and the file goes when the host is without them, not before."""
    machine, path = MemoryMachine(), tmp_path / "state" / "state.json"
    carrier = Carrier(machine, path, None, frozenset({VIP}))
    carrier.begin()
    carried = carrier.carry([front(VIP, 1)], (), anew=True)
    assert (machine.prepared, machine.kernel.table) == ([], {})
    assert ["cannot be written" in problem.text for _, problem in carried.problems] == [True]
    path.parent.mkdir()
    carrier.carry([front(VIP, 1)], (), anew=True)
    assert machine.prepared == [("web",)]
    assert statefile.load(path) == State(frozenset({VIP}), host=True)
    machine.problems = (Problem("nft does not end", "see what else the machine does"),)
    for _ in range(2):
        carrier.carry((), (), anew=True)
    assert machine.kernel.table == {}
    assert statefile.load(path) == State(host=True)
    machine.problems = ()
    carrier.carry((), (), anew=True)
    assert not path.exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, {"ports": "80-89"}), ({"ports": "80-89"}, {}), ({}, {"addresses": ("10.0.0.2:80",)})],
    ids=["one becomes a range", "a range becomes one", "one becomes several"],
)
def test_other_addresses_without_a_state_file(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """What was at a balancer's address with another configuration makes room, also without a file; others stay."""
    machine = MemoryMachine()
    foreign = Virtual(Protocol.TCP, ip_address("10.0.0.1"), 90)
    machine.kernel.table[foreign] = Entry(Service(foreign, owned=True), {})
    for number, keys in enumerate((before, after)):
        balancers = {"web": balancer(**keys)}
        (key,) = keys_of(balancers).values()
        carrier = Carrier(machine, tmp_path / f"{number}.json", None, Named(balancers))
        carrier.begin()
        carrier.carry([front(key, 1)], (), anew=True)
        assert machine.kernel.table.keys() == {key, foreign}


def balancer(ports: str = "80", addresses: tuple[str, ...] = ()) -> Balancer:
    """The balancer `web` at 10.0.0.1."""
    return Balancer("web", f"10.0.0.1:{ports}", addresses=addresses)
