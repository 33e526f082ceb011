"""The small parts of the balancer's service: names, the state file, connections that are not over, the main program."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lan import Lan
from lone_router import ROOT, LoneRouter
from waiting import LIMIT_S, wait

from tsbus import Event, connect_blocking
from tsbus.balancer import naming, open_connections, statefile
from tsbus.balancer.life import State as Life
from tsbus.balancer.naming import Meant, NotOne
from tsbus.balancer.report import Event as Change
from tsbus.balancer.report import Report, ServerReport
from tsbus.balancer.rules import Listen
from tsbus.balancer.statefile import State, StateError
from tsbus.balancer.table import Address, Counts, Mark, Protocol, Virtual
from tsbus.balancer.telling import Telling
from tsbus.balancer.world import Override

VIP = Virtual(Protocol.TCP, ip_address("10.0.0.1"), 80)
CONNECTIONS = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A000002 D431 0A000001 0050 AC110002 1F90 ESTABLISHED     899
TCP 0A000002 D432 0A000001 0050 AC110002 1F90 FIN_WAIT        119
TCP 0A000002 D433 0A000001 0050 AC110002 1F90 TIME_WAIT        99
TCP 0A000002 D434 0A000001 0051 AC110002 1F90 ESTABLISHED     899
TCP 0A000002 D435 0A000001 0050 AC110003 1F90 CLOSE             9
TCP 0A000002 0000 0A000001 0050 AC110002 1F90 NONE            300
TCP fd00:0000:0000:0000:0000:0000:0000:0002 D431 fd00:0000:0000:0000:0000:0000:0000:0001 0050 \
fd17:0000:0000:0000:0000:0000:0000:0002 1F90 TIME_WAIT 99
what is this
"""


def report(*servers: tuple[str, str, str, str], name: str = "web") -> Report:
    """Servers as (id, name, node, ip)."""
    found = [
        ServerReport(id_, called, node, Address(ip_address(ip), 80), Life.ACTIVE, "", 0.0, 1, 1, "", None)
        for id_, called, node, ip in servers
    ]
    return Report(name, VIP, "ok", tuple(found))


REPORT = report(("aa11", "one", "n1", "1.0.0.1"), ("aa22", "two", "n1", "1.0.0.2"), ("n2", "n2", "n2", "1.0.0.3"))


@pytest.mark.parametrize(
    ("name", "server", "found"),
    [
        ("one", "aa11", 1),
        ("aa2", "aa22", 1),
        ("1.0.0.2:80", "aa22", 1),
        ("n1", "n1", 2),
        ("n2", "n2", 1),
        ("n3", "n3", 0),
    ],
)
def test_names(name: str, server: str, found: int) -> None:
    """A server is meant by its name, its id or the beginning of it, its address, or its node, which means all there."""
    (meant,) = naming.resolve([name], (), [REPORT], ["n1", "n2", "n3"], if_here=False)
    assert (meant.server, len(meant.found)) == (server, found)


def test_orders_name_the_run_of_a_container() -> None:
    """What is set for a container names its node and its run, what is set for a node neither."""
    one, two = replace(REPORT.servers[0], run=7), REPORT.servers[2]
    meant = [Meant(one.id, (("web", one),)), Meant("n1", (("web", one),)), Meant("n2", (("web", two),))]
    drains = naming.drained((), meant, (), Override(""))
    weights = naming.weighed((), meant, (), (), Override("", weight=2))
    for found in (drains, weights):
        assert [(each.server, each.node, each.run) for each in found] == [
            ("aa11", "n1", 7),
            ("n1", "", 0),
            ("n2", "", 0),
        ]


def test_names_that_mean_several() -> None:
    """The beginning of two ids is refused with both; a name that two nodes have, too."""
    with pytest.raises(NotOne, match=r"one on n1 \(aa11\), two on n1 \(aa22\)"):
        naming.resolve(["aa"], (), [REPORT], [], if_here=False)


NAMES = st.sampled_from(["a", "b", "c"])
BALANCERS = ("web", "api")
SOME = st.lists(st.sampled_from(BALANCERS), unique=True)


@given(st.lists(st.tuples(st.sampled_from(["drain", "undrain", "weigh"]), NAMES, SOME), max_size=12))
def test_what_operators_set_is_what_holds(orders: list[tuple[str, str, list[str]]]) -> None:
    """After any orders each server is drained, and weighs, in each balancer as the last order about it says."""
    overrides: tuple[Override, ...] = ()
    drained: dict[tuple[str, str], bool] = {}
    weights: dict[tuple[str, str], int] = {}
    for number, (order, name, balancers) in enumerate(orders):
        meant = [Meant(name, ())]
        for each in balancers or BALANCERS:
            if order == "weigh":
                weights[name, each] = number
            else:
                drained[name, each] = order == "drain"
        match order:
            case "drain":
                overrides = naming.drained(overrides, meant, balancers, Override(""))
            case "undrain":
                overrides = naming.undrained(overrides, meant, balancers, BALANCERS)
            case _:
                overrides = naming.weighed(overrides, meant, balancers, BALANCERS, Override("", weight=number))
    for name in "abc":
        for each in BALANCERS:
            fits = [one for one in overrides if one.server == name and one.balancer in ("", each)]
            assert any(one.drain for one in fits) == drained.get((name, each), False)
            assert [one.weight for one in fits if one.weight is not None][-1:] == [
                *([weights[name, each]] if (name, each) in weights else [])
            ]


def test_so_many_orders_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """More drains and weights than there is room for are refused."""
    monkeypatch.setattr(naming, "MAX_OVERRIDES", 1)
    with pytest.raises(NotOne, match="take some back"):
        naming.drained((), [Meant("a", ()), Meant("b", ())], (), Override(""))


PLACES = [Address(ip_address(f"1.0.0.{number}"), 80) for number in (1, 2)]
FLAGS = {"filled": "empty", "unsorry": "sorry"}
MOVES = st.one_of(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(sorted(set(Life) - {Life.KEPT})), st.integers(1, 3)),
    st.sampled_from(["undone", "empty", "filled", "sorry", "unsorry"]),
)


def _changed(known: dict[Any, Any], move: Any) -> list[Change]:
    """What a planner tells of a move, if it is one, with what it was told last in `known`."""
    if isinstance(move, str):
        flag = FLAGS.get(move, move)
        if (flag == move) == (flag in known):
            return []
        _learn(known, event := Change(move, "web", ""))
        return [event]
    address, state, number = move
    weight = number if state is Life.ACTIVE else 0
    was, weighed = known.get(address, ("", 0))
    if (state.value, weight) == (was, weighed):
        return []
    one = ServerReport("id", "name", "n1", address, state, "", 0.0, weight, 1, "", None)
    _learn(known, event := Change("weight" if state.value == was else state.value, "web", "", one, was, weighed))
    return [event]


def _learn(known: dict[Any, Any], event: Change) -> None:
    """Take an event, which must be news."""
    if event.server is None:
        flag = FLAGS.get(event.topic, event.topic)
        assert (flag == event.topic) == (flag not in known)
        known.pop(flag, None)
        known |= {flag: True} if flag == event.topic else {}
        return
    address, state = event.server.address, event.server.state.value
    assert known.pop(address, ("", 0)) == (event.was, event.weighed)
    assert event.topic == ("weight" if state == event.was else state)
    known |= {address: (state, event.server.weight)} if state != "removed" else {}


@given(st.lists(MOVES, max_size=40))
def test_what_the_kernel_does_not_have_is_not_told(moves: list[Any]) -> None:
    """While the kernel has a balancer otherwise nothing is told of it; then who folds the events knows all there is."""
    telling, undone = Telling(), False
    truth: dict[Any, Any] = {}
    known: dict[Any, Any] = {}
    for move in moves:
        undone ^= move == "undone"
        told = telling.take(_changed(truth, move) if move != "undone" else [], {"web"} if undone else set())
        assert not (undone and told)
        for event in told:
            _learn(known, event)
        assert undone or known == truth


def test_state_file(tmp_path: Path) -> None:
    """The file gives back what was written; there is none for nothing, and nonsense says what to do."""
    path = tmp_path / statefile.NAME
    assert statefile.load(path) is None
    state = State(
        frozenset({VIP, Mark(7, 6), Virtual(Protocol.UDP, ip_address("fd00::1"), 53)}),
        (Override("a", "web", drain=True, by="me", made_ns=5), Override("b", weight=0)),
    )
    statefile.save(path, state)
    assert statefile.load(path) == state
    assert [each.name for each in tmp_path.iterdir()] == [statefile.NAME]
    path.write_text('{"services": [{"protocol": "x"}], "overrides": []}')
    with pytest.raises(StateError, match="remove it"):
        statefile.load(path)
    statefile.save(path, State())
    assert not path.exists()


def test_connections_that_are_not_over() -> None:
    """Half-closed connections are left, those in TIME_WAIT and CLOSE are not; one that is listed twice counts once."""
    ended = open_connections.over([*CONNECTIONS.splitlines(), CONNECTIONS.splitlines()[3]])
    one, two = Address(ip_address("172.17.0.2"), 8080), Address(ip_address("172.17.0.3"), 8080)
    counts = Counts(1, 2, 1, *[0] * 10)
    assert open_connections.left(counts, ended, VIP, one) == 2
    assert open_connections.left(Counts(0, 1, *[0] * 11), ended, VIP, two) == 0
    assert open_connections.left(Counts(1, 0, *[0] * 11), ended, VIP, two) == 1
    listens = [Listen(Protocol.TCP, ip_address("10.0.0.1"), 80, 90)]
    assert open_connections.left(counts, ended, Mark(7), one, listens) == 2
    assert open_connections.left(counts, ended, Mark(7), Address(one.ip, 0), listens) == 2
    assert open_connections.left(counts, ended, Mark(7), one) == 3
    six = Virtual(Protocol.TCP, ip_address("fd00::1"), 80)
    assert open_connections.left(counts, ended, six, Address(ip_address("fd17::2"), 8080)) == 2


def test_the_program(tmp_path: Path) -> None:
    """The program balances with CAP_NET_ADMIN alone, in a network namespace of its own, and leaves at a signal."""
    router = LoneRouter(str(tmp_path))
    config = tmp_path / "with-balancer.toml"
    balancer = 'address = "10.0.0.1:80"\nservers = {solo = 8080}\nmanage_vip = true\n'
    config.write_text(
        f"{(tmp_path / 'treescale.toml').read_text()}[servers.solo.balancers.web]\n{balancer}"
        '[balancing]\nbackend = "nftables"\n[docker]\nenabled = false\n'
    )
    program = [sys.executable, ROOT / "services/ts_balancer.py", "--config", config, "--run-dir", tmp_path]
    with connect_blocking(router.bus, timeout_s=LIMIT_S) as bus, bus.subscribe("lb.active") as active:
        few = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"]
        process = subprocess.Popen(["unshare", "--net", *few, *program], env=os.environ | {"TREESCALE_BUS": router.bus})
        try:
            event = active.next(timeout_s=LIMIT_S)
            assert isinstance(event, Event)
            assert event.json()["server"]["ip"] == "127.0.0.1"
            (told,) = bus.call_one("solo", "lb.ls")["balancers"]
            assert (told["state"], told["backend"], told["active"]) == ("ok", "nftables", 1)
            assert bus.call_one("solo", "lb.check") == {"problems": []}
        finally:
            process.terminate()
            assert process.wait(LIMIT_S) == 0
            router.kill()


def test_the_program_after_the_last_balancer(tmp_path: Path) -> None:
    """When all about balancing has left the configuration, the program clears up, whichever table it had."""
    router = LoneRouter(str(tmp_path))
    plain = (tmp_path / "treescale.toml").read_text() + "[docker]\nenabled = false\n"
    balancer = '[servers.solo.balancers.web]\naddress = "203.0.113.80:80"\nservers = {solo = 8080}\nmanage_vip = true\n'
    config = tmp_path / "tree.toml"
    words = [sys.executable, ROOT / "services/ts_balancer.py", "--config", config, "--run-dir", tmp_path]
    with Lan() as lan:

        def run(text: str, is_so: Callable[[], bool]) -> None:
            config.write_text(text)
            environment = os.environ | {"TREESCALE_BUS": router.bus}
            process = lan.host.call(partial(subprocess.Popen, words, env=environment))
            try:
                wait("the table follows", is_so)
            finally:
                process.terminate()
                assert process.wait(LIMIT_S) == 0

        def rules() -> str:
            return lan.host.run("nft", "list", "ruleset")

        try:
            before = rules()
            run(f'{plain}{balancer}[balancing]\nbackend = "nftables"\n', lambda: "goto s/tcp/203.0.113.80" in rules())
            run(plain, lambda: rules() == before)
            assert rules() == before
        finally:
            router.kill()


def test_a_configuration_that_is_not_in_order(tmp_path: Path) -> None:
    """Without a configuration the program ends with status 2 and says why."""
    words = [sys.executable, ROOT / "services/ts_balancer.py", "--config", tmp_path / "none.toml"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ts_balancer: ")
