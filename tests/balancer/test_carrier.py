"""The carrier: which services it looks at, and what it writes down."""

from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from model_kernel import VIP, server
from site_of_balancer import MemoryMachine

from tsbus.balancer import statefile
from tsbus.balancer.carrier import Carrier
from tsbus.balancer.rules import Front
from tsbus.balancer.steps import Pool, SetDestination
from tsbus.balancer.table import Entry, Key, Protocol, Service, Virtual

OTHER = Virtual(Protocol.TCP, ip_address("10.0.0.2"), 80)


class Watched(MemoryMachine):
    """Notes which services were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[set[Key] | None] = []

    def services(self, keys: Collection[Key] | None = None, *, counted: bool = True) -> dict[Any, Entry]:
        self.read.append(None if keys is None else set(keys))
        return super().services(keys, counted=counted)


def front(key: Virtual, weight: int) -> Front:
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
