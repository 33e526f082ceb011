"""Every scheduler that the kernel has: who is given connections, with traffic; and clients that are kept."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from lan import KINDS, Flow, address
from stage import Stage, place, virtual
from waiting import wait

from tsbus.balancer import open_connections
from tsbus.balancer.table import Service

pytestmark = pytest.mark.guest

VERSIONS = pytest.mark.parametrize("version", [4, 6])
PORTS = itertools.count(20_000)
"""One for each service, since the kernel would count on from what was left at another's."""
HOMES = range(32, 48)
"""The last bytes of the addresses that the client has besides its own."""


class Game:
    """A service with a scheduler, as the balancer makes it, and its clients."""

    def __init__(self, stage: Stage, scheduler: str, kind: str, version: int) -> None:
        self.stage, self.kind, self.version = stage, kind, version
        self.key = virtual(kind, next(PORTS), version)
        self.service = Service(self.key, scheduler, hash_fallback=scheduler in ("sh", "mh"), owned=True)
        self.flows: list[Flow] = []

    def begin(self, **weights: int) -> None:
        """Make the service with these servers."""
        self.stage.add(self.service, *(place(name, weight, self.version) for name, weight in weights.items()))

    def weigh(self, **weights: int) -> None:
        """Give servers other weights."""
        for name, weight in weights.items():
            self.stage.weigh(self.key, place(name, weight, self.version))

    def keep(self, number: int = 1) -> list[str]:
        """Who answers new connections that stay open."""
        to = (address("host", self.version), self.key.port)
        servers = []
        for _ in range(number):
            self.flows.append(self.stage.lan.flow("client", self.kind, to))
            servers.append(self.flows[-1].ask().server)
        return servers

    def shares(self, number: int) -> Counter[str]:
        """How many of so many connections each server is given; they stay open."""
        return Counter(self.keep(number))

    def homes(self) -> dict[int, str]:
        """Who answers each of the client's addresses; twice, which must be the same."""
        first, second = ({each: self._answer(each) for each in HOMES} for _ in range(2))
        assert first == second
        return first

    def _answer(self, number: int) -> str:
        source = client_address(number, self.version)
        return self.stage.ask("client", self.kind, self.key.port, self.version, source).server


def client_address(number: int, version: int) -> str:
    """One more address of the client."""
    return f"10.0.0.{number}" if version == 4 else f"fd00::{number}"


@pytest.fixture(scope="module", autouse=True)
def many_clients(bare: Stage) -> None:
    """A client machine with many addresses."""
    lines = [f"address add {client_address(each, 4)}/24 dev eth0" for each in HOMES]
    lines += [f"address add {client_address(each, 6)}/64 dev eth0 nodad" for each in HOMES]
    bare.lan["client"].ip(*lines)


# ---- What each promises ----


def rr(game: Game) -> None:
    """All the same, in turn."""
    game.begin(c1=1, c2=1, c3=1)
    assert game.shares(9) == {"c1": 3, "c2": 3, "c3": 3}


def wrr(game: Game) -> None:
    """By weight."""
    game.begin(c1=1, c2=2, c3=3)
    assert game.shares(12) == {"c1": 2, "c2": 4, "c3": 6}


def lc(game: Game) -> None:
    """Who has the fewest open connections; weights do not count."""
    game.begin(c1=1, c2=0)
    game.keep(2)
    game.weigh(c2=5)
    assert game.keep(2) == ["c2", "c2"]
    assert game.shares(2) == {"c1": 1, "c2": 1}


def wlc(game: Game) -> None:
    """As many open connections as the weights say, wherever it began."""
    game.begin(c1=1, c2=0)
    game.keep(2)
    game.weigh(c2=2)
    assert game.keep(4) == ["c2"] * 4
    assert game.shares(6) == {"c1": 2, "c2": 4}


def sed(game: Game) -> None:
    """The shortest wait: a server that is thrice as strong is better with two than a weak one with none."""
    game.begin(c1=1, c2=4)
    assert game.keep(3) == ["c2"] * 3
    assert game.shares(2) == {"c1": 1, "c2": 1}


def nq(game: Game) -> None:
    """An idle one first, however weak."""
    game.begin(c1=1, c2=4)
    assert game.shares(2) == {"c1": 1, "c2": 1}
    assert game.keep(2) == ["c2", "c2"]


def fo(game: Game) -> None:
    """The one with the highest weight alone, and the next one when that drains."""
    game.begin(c1=1, c2=3, c3=2)
    assert game.keep(3) == ["c2"] * 3
    game.weigh(c2=0)
    assert game.keep(3) == ["c3"] * 3


def ovf(game: Game) -> None:
    """The one with the highest weight until it has more open connections than that, then the next one, then nobody."""
    game.begin(c1=1, c2=2)
    assert game.keep(5) == ["c2"] * 3 + ["c1"] * 2
    with pytest.raises(ConnectionRefusedError):
        game.keep()
    game.weigh(c1=2)
    assert game.keep() == ["c1"]


def by_client(game: Game) -> None:
    """The same client the same server; when one drains, its clients get others and nobody else moves."""
    game.begin(c1=1, c2=1, c3=1)
    before = game.homes()
    assert set(before.values()) == {"c1", "c2", "c3"}
    game.weigh(c1=0)
    after = game.homes()
    assert set(after.values()) == {"c2", "c3"}
    assert all(after[each] == server for each, server in before.items() if server != "c1")


def dh(game: Game) -> None:
    """All clients of one address the same server, and nobody when that drains."""
    game.begin(c1=1, c2=1)
    (server,) = set(game.homes().values())
    game.weigh(**{server: 0})
    with pytest.raises(ConnectionRefusedError):
        game.keep()


def lblc(game: Game) -> None:
    """All clients of one address the same server, until it has more than its weight and another has next to nothing."""
    game.begin(c1=2, c2=2)
    first, *same = game.keep(3)
    assert same == [first, first]
    other = ({"c1", "c2"} - {first}).pop()
    assert game.keep(3) == [other] * 3


def lblcr(game: Game) -> None:
    """As lblc, but then the address has two servers, and the one with fewer connections is given the next."""
    game.begin(c1=2, c2=2)
    first, *same = game.keep(3)
    assert same == [first, first]
    other = ({"c1", "c2"} - {first}).pop()
    assert game.keep(3) == [other] * 3
    assert game.shares(4) == {first: 2, other: 2}


PROMISES: dict[str, Callable[[Game], None]] = {
    "rr": rr, "wrr": wrr, "lc": lc, "wlc": wlc, "lblc": lblc, "lblcr": lblcr, "dh": dh, "sh": by_client,
    "mh": by_client, "sed": sed, "nq": nq, "fo": fo, "ovf": ovf,
}  # fmt: skip
WITHOUT_CONNECTIONS = ("rr", "wrr", "lc", "wlc", "dh", "sh", "mh", "fo")
"""Those that do not ask which connections are established, and so balance UDP as well."""


def test_no_scheduler_is_forgotten(stage: Stage) -> None:
    """Each scheduler that this kernel has is tested here."""
    assert stage.host.call(stage.kernel.schedulers) == PROMISES.keys()


@VERSIONS
@pytest.mark.parametrize("scheduler", PROMISES)
def test_connections(stage: Stage, scheduler: str, version: int) -> None:
    """TCP connections are spread as the scheduler promises."""
    PROMISES[scheduler](Game(stage, scheduler, "tcp", version))


@VERSIONS
@pytest.mark.parametrize("scheduler", WITHOUT_CONNECTIONS)
def test_packets(stage: Stage, scheduler: str, version: int) -> None:
    """Flows of UDP packets are spread as the scheduler promises."""
    PROMISES[scheduler](Game(stage, scheduler, "udp", version))


# ---- Clients that are kept ----


@VERSIONS
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_is_kept(stage: Stage, kind: str, version: int) -> None:
    """With persistence a client has the same server again, and another client another one."""
    game = persistent(stage, kind, version)
    game.begin(c1=1, c2=1)
    assert set(game.homes().values()) == {"c1", "c2"}


def test_a_client_is_kept_for_a_time(stage: Stage) -> None:
    """When its time is over after its last connection, a client is given to the next server as any other."""
    game = persistent(stage, "udp", 4, seconds=2)
    with stage.short_memory():
        game.begin(c1=1, c2=1)
        (first,) = game.keep()
        wait("it is forgotten", lambda: not known(stage, game.key.port), pause_s=0.1)
        assert game.keep(2) == [({"c1", "c2"} - {first}).pop()] * 2


def test_a_client_of_a_drained_server(stage: Stage) -> None:
    """A kept client leaves a drained server only with expire_quiescent_template, and keeps its connections there."""
    game = persistent(stage, "tcp", 4)
    game.begin(c1=1, c2=0)
    assert game.keep() == ["c1"]
    game.weigh(c1=0, c2=1)
    assert game.keep() == ["c1"]
    stage.host.sysctl("net.ipv4.vs.expire_quiescent_template", 1)
    assert game.keep(2) == ["c2", "c2"]
    assert [flow.ask().server for flow in game.flows] == ["c1", "c1", "c2", "c2"]


def persistent(stage: Stage, kind: str, version: int, seconds: int = 60) -> Game:
    """A service that keeps its clients."""
    game = Game(stage, "rr", kind, version)
    game.service = replace(game.service, persistent_s=seconds)
    return game


def known(stage: Stage, port: int) -> list[str]:
    """What the kernel remembers of the connections to a port, and of the clients that it keeps."""
    lines = stage.host.call(open_connections.PLACE.read_text).splitlines()[1:]
    return [line for line in lines if line.split()[4] == f"{port:04X}"]
