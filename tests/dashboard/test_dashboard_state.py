"""The model: whatever order news come in, the last word counts, nothing is set to zero, and everything is bounded."""

import tracemalloc
from typing import Any

import msgspec
import pytest
import told
from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.core.target import TargetError
from tsbus.dashboard.answers import Stats
from tsbus.dashboard.eventlog import MAX_BYTES, MAX_EVENTS, EventLog
from tsbus.dashboard.figures import MAX_SAMPLES
from tsbus.dashboard.state import MAX_MARKS, MAX_PEERS, Model
from tsbus.dashboard.views import NodeView, Rates
from tsbus.lb_records import BalancerTraffic, Traffic
from tsbus.records import Sample

NOW = told.NOW
BUSY = Sample(cpu=12.5, memory=1000, memory_limit=4000, net_rx=100, net_tx=50)


def known(model: Model) -> Any:
    """What a model says now, without when it was told, by how many changes, and what happened meanwhile."""
    nodes = {
        name: msgspec.structs.replace(node, revision=0, skew_ms=0, stats_ms=0, balancers_ms=0, rtt_ms=None)
        for name, node in model.nodes.items()
    }
    containers = {
        (node, short): (one.record, one.sample)
        for node, each in model.containers.items()
        for short, one in each.items()
    }
    balancers = {
        (node, name): [(server.id, server.state, server.weight) for server in one.servers]
        for node, each in model.balancers.items()
        for name, one in each.items()
    }
    return nodes, containers, balancers


class World:
    """Two nodes with what they have: what it tells of them now is the truth."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.lost: tuple[str, ...] = ()
        self.nodes = {name: told.Node(model, name) for name in ("a", "a1")}
        self.there: dict[str, dict[int, str]] = {"a": {}, "a1": {}}
        self.servers: dict[str, list[int]] = {"a": [], "a1": []}
        self.now = NOW

    def containers(self, node: str):
        return [told.container(number, state) for number, state in self.there[node].items()]

    def samples(self, node: str) -> dict[int, Sample]:
        running = [number for number, state in self.there[node].items() if state == "running"]
        return {number: Sample(cpu=number + 0.5, memory=self.now - NOW + number) for number in running}

    def change(self, node: str, number: int, state: str, heard: bool) -> None:
        """A container takes another state, or goes; its event may be missed."""
        gone = state == "gone"
        if gone and number not in self.there[node]:
            return
        after = told.container(number, "exited" if gone else state)
        action = "destroyed" if gone else "started" if state == "running" else "died"
        self.there[node].pop(number, None)
        if not gone:
            self.there[node][number] = state
        if heard:
            self.nodes[node].event(action, after)

    def tell(self, what: str, node: str) -> None:
        """Let a node tell all of one kind."""
        self.now += 1000
        if what == "tree":
            self.model.status(told.status(self.lost), self.now)
        elif what == "containers":
            self.nodes[node].snapshot(*self.containers(node))
        elif what == "figures":
            self.model.figures(told.figures(node, self.samples(node), self.now, full=True), self.now)
        else:
            servers = [told.server(number) for number in self.servers[node]]
            self.model.balancing(node, [told.balancer("web", "ok", *servers)], self.now)

    def tell_all(self) -> None:
        for what in ("tree", "containers", "figures", "balancers"):
            for node in self.nodes:
                self.tell(what, node)


node_names = st.sampled_from(["a", "a1"])
kinds = st.sampled_from(["tree", "containers", "figures", "balancers"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("change"), node_names, st.integers(1, 3),
                  st.sampled_from(["running", "exited", "gone"]), st.booleans()),
        st.tuples(st.just("tell"), kinds, node_names),
        st.tuples(st.just("some"), node_names, st.sets(st.integers(1, 4)), st.booleans()),
        st.tuples(st.just("serve"), node_names, st.lists(st.integers(1, 3), unique=True)),
        st.tuples(st.just("lose"), st.sampled_from([(), ("a",), ("a1",), ("b",)])),
    ),
    max_size=40,
)  # fmt: skip


def play(world: World, taken: list[Any]) -> None:
    for kind, *facts in taken:
        if kind == "change":
            world.change(*facts)
        elif kind == "tell":
            world.tell(*facts)
        elif kind == "some":  # a delta of anything, also of what is not there, perhaps out of its time
            node, numbers, late = facts
            event = told.figures(node, dict.fromkeys(numbers, BUSY), world.now - (5000 if late else 0))
            world.model.figures(event, world.now)
        elif kind == "serve":
            world.servers[facts[0]] = facts[1]
        else:
            world.lost = facts[0]


@settings(max_examples=150)
@given(steps)
def test_any_order_ends_in_what_was_told_last(taken):
    """Whatever was told, missed, repeated or late before: after a last word of everybody the model says just that."""
    world = World(told.model())
    play(world, taken)
    world.tell_all()

    fresh = World(told.model())
    fresh.lost, fresh.there, fresh.servers, fresh.now = world.lost, world.there, world.servers, world.now - 8000
    fresh.tell_all()

    assert known(world.model) == known(fresh.model)


def test_only_the_node_and_what_is_below_it_are_shown():
    """A dashboard on an interior node has its subtree; on the root it has all, in the tree's order."""
    assert list(told.model().nodes) == ["root", "a", "b", "a1", "a2"]
    inside = told.model(here="a")
    assert list(inside.nodes) == ["a", "a1", "a2"]
    assert (inside.scope, told.model().scope) == ("subtree", "all")
    assert inside.select("*") == {"a", "a1", "a2"}
    with pytest.raises(TargetError, match="no node named 'nobody'"):
        inside.select("nobody")


def test_a_lost_node_keeps_what_was_known_of_it():
    """The state is lost, and figures and containers stay with the time when they were told."""
    model = told.model()
    node = told.Node(model, "a1", told.container())
    model.figures(told.figures("a1", {1: BUSY}, full=True), NOW)
    model.status(told.status(lost=("a",)), NOW + 60_000)

    view = model.nodes["a1"]
    assert (view.state, view.cpu, view.stats_ms, view.running) == ("lost", 50.0, NOW, 1)
    assert model.containers["a1"][told.short()].sample == BUSY
    node.mirror.lost("a1", "a lost the link", NOW)
    model.mirrored(node.view)
    assert (model.nodes["a1"].standing, model.nodes["a1"].running) == ("lost", 1)


def test_a_lost_node_was_seen_until_its_link_was_lost():
    """Also one that had nothing to say for an hour; that it is still lost is no sign of life."""
    model = told.model()
    model.status(told.status(lost=("a",)), NOW + 3_600_000)
    model.status(told.status(lost=("a",)), NOW + 3_700_000)
    assert (model.heard_ms["a1"], model.heard_ms["b"]) == (NOW + 3_600_000, NOW + 3_700_000)


def test_rates_are_of_the_last_second():
    """A rate is over the time since the node told before; who is not told of moved nothing; a new start has none."""
    model = told.model()
    told.Node(model, "a", told.container())

    def rates(second: int, received: int | None) -> Rates | None:
        samples = {} if received is None else {1: Sample(net_rx=received)}
        model.figures(told.figures("a", samples, NOW + second * 1000), NOW + second * 1000)
        return model.containers["a"][told.short()].rates

    assert rates(0, 1000) is None
    assert rates(1, 3000) == Rates(net_rx=2000)
    assert rates(2, None) == Rates()
    assert rates(3, 3500) == Rates(net_rx=500)
    assert rates(4, 10) is None


def test_figures_wait_for_their_container_and_end_with_its_run():
    """What is told of an unknown container is there once it is known, and gone when it ends."""
    model = told.model()
    model.figures(told.figures("a", {1: BUSY}, full=True), NOW)
    node = told.Node(model, "a", told.container())
    assert model.container("a", "c1").sample == BUSY
    node.event("died", told.container(1, "exited", exit_code=137, oom=True))
    view = model.container("a", told.short())
    assert view.sample is None
    assert [(mark.action, mark.exit_code, mark.oom) for mark in view.marks] == [("died", 137, True)]


def test_a_container_is_found_by_name_and_by_the_beginning_of_its_id():
    """As addresses of pages and callers have it."""
    model = told.model()
    told.Node(model, "a", told.container())
    view = model.containers["a"][told.short()]
    assert model.container("a", "c1") is model.container("a", view.record.id[:20]) is view
    assert model.container("a", view.record.id[:12] + "f") is None
    assert model.container("b", "c1") is None


def test_what_routers_tell_of_their_links():
    """Links and workers, and the round trip of each node from the one above it."""
    model = told.model()
    link = {"name": "a", "kind": "child", "role": "child", "rtt_ms": 1.5, "queue": {"event": 7}, "slow": True}
    worker = {"name": "exec", "kind": "worker", "who": "uid:0", "role": "admin", "services": ["exec"]}
    model.router("root", msgspec.convert({"links": [link], "workers": [worker], "release": "9"}, Stats), NOW)
    view = model.nodes["root"].router
    assert (view.links[0].kind, view.links[0].queued, view.workers[0].services) == ("child", 7, ("exec",))
    assert model.nodes["a"].rtt_ms == 1.5
    assert [slow.name for slow in model.nodes["root"].slow] == ["a"]


def test_events_tell_of_slow_readers_and_programs():
    """A slow peer is there until it recovers or leaves; a program has the state that was told last."""
    model = told.model()

    def slow() -> list[str]:
        return [peer.name for peer in model.nodes["a"].slow]

    for peer in ("one", "two"):
        model.event(told.event("bus.slow", "a", {"peer": peer, "kind": "worker", "dropped": 3}), NOW)
    assert slow() == ["one", "two"]
    model.event(told.event("bus.recovered", "a", {"peer": "one"}), NOW)
    model.event(told.event("worker.left", "a", {"name": "two"}), NOW)
    assert slow() == []
    model.event(told.event("bus.slow", "a", {"peer": "x"}, who="uid:1000"), NOW)
    assert slow() == []  # only routers know
    for happened in ("started", "fatal"):
        model.event(told.event(f"process.{happened}", "a", {"name": "docker"}, who="uid:0"), NOW)
    assert [(one.name, one.state) for one in model.nodes["a"].processes] == [("docker", "fatal")]


def test_a_clock_is_judged_by_several_events():
    """One event that waited somewhere says nothing of the clock; all of them being off does."""
    model = told.model()
    for late_ms in (30_000, 40, 60):
        model.event(told.event("x.y", "a", time_ms=NOW - late_ms), NOW)
    assert model.nodes["a"].skew_ms == 0
    for _ in range(8):
        model.event(told.event("x.y", "a", time_ms=NOW + 7_200_000), NOW)
    assert model.nodes["a"].skew_ms == 7_200_000


def test_traffic_belongs_to_its_balancer_and_servers():
    """Rates come to the servers that they are of, and stay when the servers are told anew."""
    model = told.model()
    model.balancing("a", [told.balancer("web", "ok", told.server(1), told.server(2))], NOW)
    seat = Traffic(id="s2", ip="172.17.0.2", port=2, cps=9)
    model.traffic("a", BalancerTraffic(name="web", cps=9, servers=(seat,)), NOW)
    model.balancing("a", [told.balancer("web", "ok", told.server(2, since_s=5))], NOW + 1000)
    view = model.balancers["a"]["web"]
    assert (view.traffic.cps, [server.traffic.cps for server in view.servers], view.active) == (9, [9], 1)
    model.traffic("a", BalancerTraffic(name="unknown"), NOW)
    model.unbalanced("a", "its balancer does not run")
    assert (model.nodes["a"].balancers_why, list(model.balancers["a"])) == ("its balancer does not run", ["web"])


def test_servers_in_several_pieces_are_one_balancer():
    """More servers than fit one piece of the answer come in further ones."""
    model = told.model()
    pieces = [told.balancer("web", "ok", told.server(number)) for number in (1, 2, 3)]
    model.balancing("a", pieces, NOW)
    assert [server.id for server in model.balancers["a"]["web"].servers] == ["s1", "s2", "s3"]


def test_what_strangers_tell_is_passed_over():
    """Nodes that are not shown change nothing, whatever they tell."""
    model = told.model(here="a")
    before = model.revision
    model.figures(told.figures("b", {1: BUSY}), NOW)
    model.balancing("b", [told.balancer()], NOW)
    told.Node(model, "b", told.container())
    model.router("b", Stats(), NOW)
    model.clock("b", NOW, NOW)
    assert (model.revision, list(model.nodes)) == (before, ["a", "a1", "a2"])


def test_a_node_that_is_taken_out_leaves_nothing():
    """Node, containers and figures go, and that is a change."""
    model = told.model()
    told.Node(model, "b", told.container())
    revision = model.revision
    model.status(told.status(tree={"root": "", "a": "root"}), NOW)
    assert list(model.nodes) == ["root", "a"]
    assert "b" not in model.containers
    assert model.revision > revision
    assert model.totals().containers == 0


def test_the_model_is_bounded():
    """A node that tells of any number of containers, programs, slow peers or changes fills no memory."""
    model = told.model()
    node = told.Node(model, "a", told.container())
    for number in range(60):
        samples = {number * 1000 + each: BUSY for each in range(1000)}
        model.figures(told.figures("a", samples, NOW + number), NOW)
    assert model.nodes["a"].containers_memory == MAX_SAMPLES * BUSY.memory
    for number in range(MAX_PEERS + 9):
        model.event(told.event("bus.slow", "a", {"peer": f"p{number}"}), NOW)
        model.event(told.event("process.started", "a", {"name": f"p{number:04}"}), NOW)
        node.event("died", told.container(1, "exited"))
    view = model.nodes["a"]
    assert (len(view.slow), len(view.processes)) == (MAX_PEERS, MAX_PEERS)
    assert len(model.container("a", "c1").marks) == MAX_MARKS


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(0, 70))
def test_the_event_log_forgets_the_oldest_and_says_how_many(sizes, number):
    """Its number and bytes are bounded, and a reader who was away is told what it has missed."""
    model = Model(EventLog(max_events=10, max_bytes=200))
    for size in sizes:
        model.event(told.event("a.b", "a", b"x" * size), NOW)
    log = model.events
    assert len(log) <= 10
    assert log.bytes == sum(len(one.body) for one in log) <= 200
    events, lost = log.since(min(number, log.last))
    assert lost + len(events) == log.last - min(number, log.last)
    assert [one.number for one in events] == list(range(log.last - len(events) + 1, log.last + 1))


def test_totals_are_sums_over_the_nodes():
    """The line above everything."""
    model = told.model(lost=("b",))
    told.Node(model, "a", told.container(), told.container(2, health="unhealthy"), told.container(3, "exited"))
    model.figures(told.figures("a", {1: BUSY}), NOW)
    model.balancing("a", [told.balancer("x", "ok"), told.balancer("y", "empty")], NOW)
    totals = model.totals()
    assert (totals.nodes, totals.up, totals.lost) == (5, 4, 1)
    assert (totals.containers, totals.running, totals.unhealthy) == (3, 2, 1)
    assert (totals.balancers, totals.balancers_ok, totals.cpu, totals.memory) == (2, 1, 50.0, 1000)
    assert (totals.freshest_ms, totals.oldest_ms) == (NOW, NOW)


def test_a_node_knows_its_place():
    """It is adopted when it hangs on another node than its own parent."""
    model = told.model(a1={"parent": "b"})
    assert isinstance(model.nodes["a1"], NodeView)
    assert (model.nodes["a1"].adopted, model.nodes["a2"].adopted) == (True, False)


def test_any_number_of_events_takes_bounded_memory():
    """After the log is full, nothing grows any more, whatever the events say and however large they are."""
    model = told.model()

    def tell(numbers: range) -> int:
        for number in numbers:
            body = {"peer": f"sub{number}", "name": f"p{number}", "kind": "worker", "dropped": number, "x": "y" * 8000}
            topic = ("bus.slow", "process.fatal", "shop.order")[number % 3]
            model.event(told.event(topic, "a" if number % 2 else "b", body), NOW + number)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        full = tell(range(3000))
        assert tell(range(3000, 6000)) < full + (1 << 20)
    finally:
        tracemalloc.stop()
    assert len(model.events) <= MAX_EVENTS
    assert model.events.bytes <= MAX_BYTES
    assert all(max(len(view.slow), len(view.processes)) <= MAX_PEERS for view in model.nodes.values())
