"""Whole routers in random trees, under random faults at random moments: what must be true whatever happens.

Each run is a seed and can be repeated exactly. TREESCALE_RUNS=2000 runs as many instead of the few of every day.
"""

import os
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from memory import REDIAL_MS, Net, Probe

from tsbus.config import BusSettings
from tsbus.core.accounting import Outcome
from tsbus.core.directory import UPWARD, NodeState
from tsbus.core.target import resolve
from tsbus.core.topic import matches
from tsbus.core.tree import Topology, adopter

RUNS = int(os.environ.get("TREESCALE_RUNS", "60"))
SETTINGS = BusSettings(adopt_after_s=0.4, steady_s=0.5, reset_after_s=3.0, ping_ms=200)
TOPICS = ("a", "b", "a.b", "a.a", "b.a.b")
PATTERNS = (*TOPICS, ">", "*", "a.>", "*.b", "b.*.b")
SCOPES = ("all", "all", "subtree", "node")


def random_tree(rng: Random, nodes: int) -> Topology:
    """A tree whose nodes hang below earlier ones."""
    names = [f"n{number}" for number in range(nodes)]
    children: dict[str, list[str]] = {name: [] for name in names}
    for place, name in enumerate(names[1:], 1):
        children[names[rng.randrange(max(0, place - 4), place)]].append(name)
    return Topology(children)


class Chaos:
    """One run: a tree, what happens to it, and the account of what was promised."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        topology = random_tree(rng, rng.randint(2, 9))
        self.net = Net(topology, settings=SETTINGS, rng=rng)
        self.story: list[str] = []
        self.notices_at_once = True
        """Nobody was frozen: then only silence tells that the other side has hung up meanwhile."""
        self.bodies = 0
        for node in rng.choices((topology.names, rng.sample(topology.names, len(topology) // 2)), (3, 1))[0]:
            self.net.start(node)
            self.join(node)
        self.net.advance(500)
        self.net.run()

    # What can happen.

    def join(self, node: str) -> None:
        """A client that also serves `svc.run`, on most nodes."""
        probe = self.net.probe(node, f"on-{node}")
        if self.rng.random() < 0.8:
            probe.serve("svc", "run")
        probe.answers_at_once = self.rng.random() < 0.5

    def probes(self) -> list[Probe]:
        return [probe for probe in self.net.probes if probe.alive]

    def act(self) -> None:
        """One random thing happens."""
        actions = {
            self.request: 6, self.answer: 6, self.publish: 4, self.subscribe: 2, self.unsubscribe: 1, self.cancel: 1,
            self.new_probe: 1, self.kill_probe: 1, self.stop: 1, self.start: 1, self.cut: 1, self.mend: 1,
            self.hold: 1, self.release: 2, self.freeze: 1, self.thaw: 2, self.wait: 4,
        }  # fmt: skip
        self.rng.choices(list(actions), list(actions.values()))[0]()
        self.net.steps(self.rng.choice((0, 1, 5, 20, 1000)))

    def note(self, *words: object) -> None:
        self.story.append(" ".join(map(str, (self.net.now, *words))))

    def target(self) -> str:
        names = self.net.topology.names
        one = self.rng.choice(names)
        return self.rng.choice(("*", one, f"{one}/", ".", ",".join(self.rng.sample(names, min(2, len(names))))))

    def request(self) -> None:
        for probe in self.some(self.probes()):
            target = self.target()
            number = probe.request(target, self.rng.choice(("svc.run", "svc.run", "svc.none", "router.ping")), 20_000)
            self.note("request", number, "from", probe.node, "to", target)

    def answer(self) -> None:
        for probe in self.some([probe for probe in self.probes() if probe.requests]):
            key = self.rng.choice(list(probe.requests))
            self.note("answer", probe.node, key)
            probe.answer(key, outcome=self.rng.choice((Outcome.OK, Outcome.FAILED)))

    def publish(self) -> None:
        for probe in self.some(self.probes()):
            self.bodies += 1
            probe.publish(self.rng.choice(TOPICS), b"%d" % self.bodies, self.target())

    def subscribe(self) -> None:
        for probe in self.some(self.probes()):
            probe.subscribe(self.rng.choice(PATTERNS), self.rng.choice(SCOPES))

    def unsubscribe(self) -> None:
        for probe in self.some([probe for probe in self.probes() if probe.subscriptions]):
            probe.unsubscribe(*self.rng.choice(sorted(probe.subscriptions)))

    def cancel(self) -> None:
        for probe in self.some(self.probes()):
            for number in self.some([number for number, call in probe.calls.items() if call.open]):
                self.note("cancel", number)
                probe.cancel(number)

    def new_probe(self) -> None:
        for node in self.some(list(self.net.stations)):
            self.join(node)

    def kill_probe(self) -> None:
        for probe in self.some(self.probes()):
            self.note("kill probe on", probe.node)
            probe.leave()

    def stop(self) -> None:
        for node in self.some(list(self.net.stations)):
            self.note("stop", node)
            self.net.stop(node)

    def start(self) -> None:
        for node in self.some([name for name in self.net.topology.names if name not in self.net.stations]):
            self.note("start", node)
            self.net.start(node)
            self.join(node)

    def cut(self) -> None:
        for one, two in self.some(sorted(self.net.links())):
            self.note("cut", one, two)
            self.net.cut(one, two)

    def mend(self) -> None:
        for one, two in self.some(sorted(map(sorted, self.net.cuts))):
            self.note("mend", one, two)
            self.net.mend(one, two)

    def hold(self) -> None:
        for one, two in self.some(sorted(self.net.links())):
            self.note("hold", one, two)
            self.net.hold(one, two)

    def release(self) -> None:
        for one, two in self.some(sorted(map(sorted, self.net.held))):
            self.note("release", one, two)
            self.net.release(one, two)

    def freeze(self) -> None:
        for node in self.some(list(self.net.stations)):
            self.note("freeze", node)
            self.notices_at_once = False
            self.net.stations[node].frozen = True

    def thaw(self) -> None:
        for node in self.some([node for node, station in self.net.stations.items() if station.frozen]):
            self.note("thaw", node)
            self.net.stations[node].frozen = False

    def wait(self) -> None:
        ms = self.rng.choice((50, 300, 2000, 6000))
        self.note("wait", ms)
        self.net.advance(ms, self.rng.choice((None, 10, 50)))

    def some(self, choices: list) -> list:
        """One of the choices, if there is any."""
        return [self.rng.choice(choices)] if choices else []

    # What must be true.

    def rest(self, ms: int = 0) -> None:
        """Nothing is under way any more, and the tree had `ms` to notice and heal."""
        for one, two in list(map(tuple, self.net.held)):
            self.net.release(one, two)
        for station in self.net.stations.values():
            station.frozen = False
        self.net.run()
        self.net.advance(ms)
        self.net.run()

    def mend_all(self) -> None:
        """All faults end; everybody has time to go home."""
        self.note("mend all")
        self.net.cuts.clear()
        for node in self.net.topology.names:
            if node not in self.net.stations:
                self.net.start(node)
                self.join(node)
        self.rest(30_000)

    def check_directories(self) -> None:
        """In each component the routers agree, and know exactly who can be reached."""
        for node, component in self.net.components().items():
            directory = self.net.stations[node].router.directory
            assert directory.reachable == component, (
                f"{node} believes {sorted(directory.reachable ^ component)} wrongly"
            )
            for other in component:
                theirs = self.net.stations[other].router.directory.entries
                for name in component:
                    assert theirs[name] == directory.entries[name], f"{node} and {other} disagree on {name}"

    def check_interest(self) -> None:
        """Each link is asked for exactly what section 7.2 says."""
        for parent, child in self.net.links():
            upper, lower = (self.net.stations[name].router for name in (parent, child))
            assert upper.interest.of(child) == self.wanted(child, UPWARD), f"{parent} of {child}"
            assert lower.interest.of(UPWARD) == self.wanted(parent, child), f"{child} of {parent}"

    def wanted(self, node: str, way: str) -> frozenset[str]:
        interest = self.net.stations[node].router.interest
        links = [other for other in self.net.stations[node].router.links.by_way if other != way]
        local = {
            pattern
            for probe in self.probes()
            if probe.node == node
            for pattern, scope in probe.subscriptions
            if scope == "all" or (scope == "subtree" and way != UPWARD)
        }
        return frozenset(local).union(*(interest.of(other) for other in links))

    def check_calls(self) -> None:
        """What a caller waits for is at work somewhere, and what a worker does somebody waits for.

        Only who goes home while a call is under way may miss a word of it; such a call ends with its time.
        """
        at_work = {(number, origin, probe.node) for probe in self.probes() for origin, _, number in probe.requests}
        waited_for = {
            (number, probe.node, node)
            for probe in self.probes()
            for number, call in probe.calls.items()
            if call.open
            for node in (call.nodes or frozenset()) - call.ended.keys()
        }
        for number, caller, node in at_work ^ waited_for:
            assert self.went_home(caller) or self.went_home(node), f"call {number} of {caller} to {node}"
        for node, station in self.net.stations.items():
            mine = [probe for probe in self.probes() if probe.node == node]
            router = station.router
            assert len(router.commands.outgoing) == sum(call.open for probe in mine for call in probe.calls.values())
            assert len(router.services.serving) == sum(len(probe.requests) for probe in mine)

    def went_home(self, node: str) -> bool:
        """Whether `node`, or one above it, has changed its parent."""
        entries = self.net.stations[node].router.directory.entries
        while node:
            if entries[node].cause == "moved":
                return True
            node = entries[node].parent
        return False

    def check_accounts(self) -> None:
        """Every call that had a target was closed with each of its nodes in one outcome, the one it had told."""
        for probe in self.probes():
            for number, call in probe.calls.items():
                assert call.error is None
                assert call.nodes == resolve(call.target, self.net.topology, probe.node)
                assert call.done is not None, f"call {number} of {probe.node} is open"
                told = Counter(node for nodes in call.done.values() for node in nodes)
                assert told == Counter(call.nodes)
                assert all(call.ended[node] is outcome for outcome, nodes in call.done.items() for node in nodes)
        for (number, node), route in self.net.deliveries.items():
            assert node in resolve(route.target, self.net.topology, route.origin), f"{number} was not for {node}"

    def check_events(self) -> None:
        """Nobody got an event twice or against the order of its author."""
        for probe in self.net.probes:
            last: dict[int, int] = {}
            for _, meta, _ in probe.events:
                assert last.get(meta.incarnation, -1) < meta.seq
                last[meta.incarnation] = meta.seq

    def check_healed(self) -> None:
        """All living are joined whom the rule of section 8.5 joins, once no link is cut."""
        self.note("mend links")
        self.net.cuts.clear()
        self.rest(60_000)
        alive = self.net.stations.__contains__
        components = self.net.components()
        for node in self.net.stations:
            above = adopter(self.net.topology, node, alive)
            assert above is None or above in components[node], f"{above} does not reach {node}"

    def check_home(self) -> None:
        """Every node is up and below its own parent, and all routers agree on everything."""
        topology = self.net.topology
        expected = {(topology.parent(name), name) for name in topology.names if name != topology.root}
        assert self.net.links() == expected
        views = [station.router.directory.entries for station in self.net.stations.values()]
        assert all(one == two for one, two in pairwise(views))
        for name, entry in views[0].items():
            assert entry.state == NodeState.UP
            assert entry.parent == (topology.parent(name) or "")

    def check_peace(self) -> None:
        """Nobody broke the protocol."""
        for station in self.net.stations.values():
            for reason in ("malformed", "oversize", "forged", "unknown-type", "window", "overflow"):
                assert not station.router.counters[reason], f"{reason} at {station.node}"

    def deliver_all(self) -> None:
        """Without faults, each event comes to exactly those who want it, in order."""
        self.join(self.net.topology.root)
        self.net.run()
        for probe in self.net.probes:
            probe.events.clear()
        expected: dict[Probe, list[bytes]] = {probe: [] for probe in self.probes()}
        author = self.rng.choice(self.probes())
        for _ in range(10):
            self.bodies += 1
            topic, target, body = self.rng.choice(TOPICS), self.target(), b"%d" % self.bodies
            author.publish(topic, body, target)
            nodes = resolve(target, self.net.topology, author.node)
            for probe in expected:
                if probe.node in nodes and any(
                    matches(pattern, topic) and self.in_scope(author.node, probe.node, scope)
                    for pattern, scope in probe.subscriptions
                ):
                    expected[probe].append(body)
        self.net.run()
        for probe, bodies in expected.items():
            assert [body for _, _, body in probe.events] == bodies

    def in_scope(self, origin: str, node: str, scope: str) -> bool:
        below = {"all": self.net.topology.names, "subtree": self.net.topology.subtree(node), "node": (node,)}
        return origin in below[scope]


@pytest.mark.parametrize("seed", range(RUNS))
def test_whatever_happens(seed):
    """After any course of faults, calls are closed, views agree with the truth, and in the end everybody is home."""
    chaos = Chaos(seed)
    try:
        for _ in range(chaos.rng.randint(1, 4)):
            for _ in range(chaos.rng.randint(1, 25)):
                chaos.act()
            chaos.rest(0 if chaos.notices_at_once else 5_000)
            chaos.check_calls()
            chaos.rest(12_000)
            chaos.check_directories()
            chaos.check_interest()
        chaos.check_healed()
        chaos.check_directories()
        chaos.mend_all()
        chaos.check_home()
        chaos.check_interest()
        chaos.check_accounts()
        chaos.check_events()
        chaos.deliver_all()
        chaos.check_peace()
    except AssertionError:
        print(*chaos.story, sep="\n")
        raise


# What the random runs found once.


def tree_of(children: dict[str, list[str]]) -> Net:
    """A tree whose messages arrive in order, all up."""
    net = Net(Topology(children), settings=SETTINGS)
    net.start(*children)
    net.advance(500)
    return net


def reachable(net: Net, node: str) -> frozenset[str]:
    return net.stations[node].router.directory.reachable


def test_a_new_parent_disowns_children_that_it_does_not_have():
    """A child that died while its parent was away is lost when the parent is back, whatever the others remember."""
    net = tree_of({"a": ["b"], "b": ["c"], "c": []})
    net.stop("b")
    net.stop("c")
    net.run()
    net.start("b")
    net.advance(3000)
    assert reachable(net, "a") == reachable(net, "b") == {"a", "b"}


def test_who_went_home_is_lost_to_those_it_left():
    """An adopter that cannot reach the home of the node that leaves it no longer counts that node as there."""
    net = tree_of({"a": ["b"], "b": ["c"], "c": []})
    net.stop("b")
    net.advance(5000)
    assert reachable(net, "a") == {"a", "c"}
    net.cut("a", "b")
    net.start("b")
    net.advance(10_000)
    assert net.links() == {("b", "c")}
    assert reachable(net, "a") == {"a"}


def test_a_node_agrees_on_its_own_illness():
    """A node that was torpid knows every change of its entry that its parent noted, so that its own come after them."""
    net = tree_of({"a": ["b"], "b": []})
    net.hold("a", "b")
    net.advance(2000)
    above, below = (net.stations[node].router.directory.entries for node in "ab")
    assert above["b"].state == NodeState.TORPID
    net.release("a", "b")
    net.advance(1000)
    assert above["b"].state == NodeState.UP
    assert above["b"] == below["b"]


def test_who_starts_alone_adopts_too():
    """A root that has never seen its child takes it for dead after a longer patience, and dials those below."""
    net = Net(Topology({"a": ["b"], "b": ["c"], "c": []}), settings=SETTINGS)
    net.start("a", "c")
    net.advance(20_000)
    assert net.links() == {("a", "c")}


def test_interest_that_changes_during_a_handshake_is_told():
    """A subscription made after HELLO was sent and before WELCOME came reaches the new link."""
    net = tree_of({"a": ["b"], "b": []})
    probe = net.probe("a")
    net.run()
    net.stop("b")
    net.run()
    net.start("b")
    net.advance(REDIAL_MS, steps=0)
    net.steps(1)
    net.hold("a", "b")
    probe.subscribe("x")
    net.run()
    net.release("a", "b")
    net.run()
    assert net.stations["b"].router.interest.of(UPWARD) == {"x"}


def test_a_cancel_does_not_overtake_its_request():
    """A call that is cancelled while its request is under way comes to no worker that nobody tells of the end."""
    net = tree_of({"a": ["b"], "b": []})
    caller, worker = net.probe("a"), net.probe("b")
    net.run()
    worker.serve("svc", "run")
    net.run()
    caller.cancel(caller.request("b", "svc.run"))
    net.run()
    assert net.deliveries
    assert not worker.requests


def test_who_went_home_gets_no_second_copy_from_where_it_was():
    """What an adopter still sends to a node that has left is not heard: the copy from home is the only one (7.5)."""
    net = tree_of({"a": ["b"], "b": ["c"], "c": []})
    author, reader = net.probe("a"), net.probe("c")
    net.run()
    reader.subscribe("x")
    net.stop("b")
    net.advance(3000)
    assert net.links() == {("a", "c")}
    net.start("b")
    net.hold("a", "c")
    net.advance(2500)
    assert "c" in net.stations["a"].router.links.by_way
    assert ("b", "c") in net.links()
    author.publish("x", b"once")
    net.run()
    net.release("a", "c")
    net.run()
    assert [body for _, _, body in reader.events] == [b"once"]
