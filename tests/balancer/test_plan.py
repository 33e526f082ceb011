"""What becomes of the real servers of a balancer: each rule of docs/balancer.md."""

from ipaddress import ip_address

import pytest
from model_kernel import CONTAINERS, SECOND, VIP, Kernel, Scene, box

from tsbus.balancer.table import Address, Mark
from tsbus.balancer.weights import headroom
from tsbus.balancer.world import Capacity, Override
from tsbus.config.address import parse_address

A, B = box("a", "172.17.0.2"), box("b", "172.17.0.3")
AT_A, AT_B = "172.17.0.2:80", "172.17.0.3:80"


def changed(one, **fields):
    """A copy of a record with other values."""
    return type(one)(**{name: getattr(one, name) for name in one.__struct_fields__} | fields)


@pytest.fixture
def scene():
    """A balancer of two local containers, both active."""
    scene = Scene()
    scene.boxes("n1", A, B)
    assert scene.plan() == {AT_A: 1, AT_B: 1}
    return scene


# Who takes part


def test_containers_here_and_below_take_part():
    """A local container is reached at its own address, one below where its node publishes it."""
    scene = Scene()
    scene.boxes("n1", A, box("other", "172.17.0.9", image="redis"))
    scene.boxes("n2", box("c", host_port=8080), box("hidden"), box("private", host_port=81, host_ip="127.0.0.1"))
    assert scene.plan() == {AT_A: 1, "192.168.0.2:8080": 1}
    assert {each.name: each.reason for each in scene.last.reports[0].left_out} == {
        "hidden": "its port 80/tcp is not published on n2",
        "private": "its port 80 is published on 127.0.0.1 only, which other nodes cannot reach",
    }


def test_without_subtree_only_local_containers_take_part():
    """With subtree = false the nodes below do not count."""
    scene = Scene(CONTAINERS + "\nsubtree = false")
    scene.boxes("n1", A)
    scene.boxes("n2", box("c", host_port=8080))
    assert scene.plan() == {AT_A: 1}


def test_child_servers_take_part_by_name_and_tag():
    """A node that is named twice is one server, and its weight is that of its key."""
    scene = Scene('servers = {n2 = 8080, "@web" = 8080}\nserver_weights = {n2 = 3, "@web" = 2}')
    assert scene.plan() == {"192.168.0.2:8080": 3, "192.168.0.3:8080": 2}


def test_an_empty_balancer_is_a_service_without_servers_and_told_once():
    """An image that nobody runs is no error: the service is there, and the event says that it is empty."""
    scene = Scene()
    assert scene.plan() == {}
    assert scene.events == [("empty", "web")]
    assert scene.last.reports[0].state == "empty"
    scene.plan(1)
    assert scene.events == []
    scene.boxes("n1", A)
    scene.plan(1)
    assert scene.events == [("active", "a"), ("filled", "web")]


def test_several_addresses_are_one_service_by_mark():
    """A range or a second address makes a firewall mark of the balancer; port 0 keeps the client's port."""
    scene = Scene('containers = {nginx = 0}\naddresses = ["10.0.0.2:80-90"]\nstart_grace_s = 0')
    scene.boxes("n1", A)
    scene.plan()
    (key,) = scene.kernel.table
    assert isinstance(key, Mark)
    assert scene.kernel.servers(key) == {"172.17.0.2:0": 1}


def test_a_port_that_the_kernel_would_not_write_leaves_out():
    """A service by mark that keeps its clients leaves the port as it is: a server at another one is left out."""
    scene = Scene('containers = {nginx = 0}\naddresses = ["10.0.0.2:80"]\npersistence_s = 9\nstart_grace_s = 0')
    scene.boxes("n1", A, box("c", "172.17.0.4", labels={"treescale.port": "8080"}))
    scene.plan()
    (key,) = scene.kernel.table
    assert scene.kernel.servers(key) == {"172.17.0.2:80": 1}
    (left,) = scene.last.reports[0].left_out
    assert left.reason == "its port is 8080, and the kernel leaves the one that the client came to"


def test_the_balancer_is_no_server_of_its_own():
    """A container of the host's network at the balancer's own address and port is left out."""
    scene = Scene()
    scene.view("n1", ips=(VIP.ip,))
    scene.boxes("n1", box("a", networks={"host": ""}, endpoints=()))
    assert scene.plan() == {}
    (left,) = scene.last.reports[0].left_out
    assert left.reason == "10.0.0.1:80 is the balancer's own address"


def test_a_hashing_scheduler_has_its_fallback():
    """sh and mh would refuse the clients of a drained server without it."""
    for alg, fallback in (("sh", True), ("mh", True), ("wrr", False)):
        scene = Scene(CONTAINERS)
        scene.tree = scene.tree.with_current("n1")
        balancer = scene.tree.servers["n1"].balancers["web"]
        object.__setattr__(balancer, "alg", alg)
        scene.plan()
        assert scene.kernel.table[VIP].service.hash_fallback is fallback


# Joining


def test_a_container_joins_when_its_health_check_has_passed():
    """One with a health check gets no connections before it is healthy, and one that fails never any."""
    scene = Scene()
    scene.boxes("n1", changed(A, health="starting"), changed(B, health="unhealthy"))
    assert scene.plan() == {}
    assert scene.states() == {"a": "joining", "b": "joining"}
    scene.boxes("n1", changed(A, health="healthy"), changed(B, health="unhealthy"))
    assert scene.plan(1) == {AT_A: 1}


def test_a_container_without_a_check_joins_after_its_grace():
    """The plan says when it is due; one that was started long ago does not wait, whatever its node's clock says."""
    scene = Scene("containers = {nginx = 80}\nstart_grace_s = 2")
    scene.boxes("n1", changed(A, started_ns=scene.time_ns), B)
    assert scene.plan() == {AT_B: 1}
    assert scene.last.wake == scene.now + 2
    assert scene.plan(1.9) == {AT_B: 1}
    assert scene.plan(0.1) == {AT_A: 1, AT_B: 1}
    ahead = changed(box("late", "172.17.0.9"), started_ns=scene.time_ns + 3600 * SECOND)
    scene.boxes("n1", ahead)
    scene.plan()
    assert scene.plan(2) == {"172.17.0.9:80": 1}


def test_health_can_be_left_out_of_it():
    """With health = false an unhealthy container stays."""
    scene = Scene(CONTAINERS + "\nhealth = false")
    scene.boxes("n1", changed(A, health="unhealthy"))
    assert scene.plan() == {AT_A: 1}


# Out and back


@pytest.mark.parametrize("fields", [{"health": "unhealthy"}, {"state": "paused"}])
def test_what_may_pass_is_weight_0(scene, fields):
    """An unhealthy or paused container keeps its connections and gets no new ones until it is well again."""
    scene.boxes("n1", changed(A, **fields), B)
    assert scene.plan(1) == {AT_A: 0, AT_B: 1}
    assert scene.states()["a"] == "out"
    assert scene.plan(10_000) == {AT_A: 0, AT_B: 1}
    scene.boxes("n1", A, B)
    assert scene.plan(1) == {AT_A: 1, AT_B: 1}
    assert scene.events == [("active", "a")]


def test_a_dead_container_is_deleted_at_once(scene):
    """Its address may soon be another's."""
    scene.boxes("n1", changed(A, state="exited", exit_code=3), B)
    assert scene.plan(1) == {AT_B: 1}
    assert scene.last.events[0].cause == "its container ended with exit code 3"
    assert scene.last.events[0].was == "active"


def test_the_same_address_of_another_container_is_another_server(scene):
    """The new container waits for its own health although the old one was active at this address."""
    scene.boxes("n1", changed(box("c", "172.17.0.2"), health="starting"), B)
    assert scene.plan(1) == {AT_B: 1}
    assert scene.states() == {"b": "active", "c": "joining"}


def test_a_container_that_was_started_again_unseen_is_a_new_server(scene):
    """When its end and its start were told together, it joins as a new one."""
    scene.boxes("n1", changed(A, started_ns=5 * SECOND, health="starting"), B)
    assert scene.plan(1) == {AT_B: 1}
    assert scene.events == [("removed", "a"), ("joining", "a")]


# Draining


def test_a_stop_signal_drains_until_the_last_connection(scene):
    """Weight 0 when the signal is told, deleted when the connections are over, and told each time."""
    scene.boxes("n1", changed(A, draining=True), B)
    assert scene.plan(1) == {AT_A: 0, AT_B: 1}
    assert scene.events == [("draining", "a")]
    assert scene.last.watched == ((VIP, Address(ip_address("172.17.0.2"), 80)),)
    assert scene.last.wake == scene.now + 30
    scene.now += 1
    scene.count(2, "172.17.0.2")
    assert scene.plan() == {AT_A: 0, AT_B: 1}
    assert scene.last.reports[0].servers[0].connections == 2
    scene.now += 1
    scene.count(0, "172.17.0.2")
    assert scene.plan() == {AT_B: 1}
    assert scene.last.events[0].cause == "its stop signal was sent; its last connection is over"


def test_connections_counted_before_the_drain_do_not_end_it(scene):
    """A count of 0 from before weight 0 says nothing."""
    scene.count(0, "172.17.0.2")
    scene.boxes("n1", changed(A, draining=True), B)
    assert scene.plan() == {AT_A: 0, AT_B: 1}
    assert scene.plan(1) == {AT_A: 0, AT_B: 1}


def test_a_drain_ends_with_the_container_or_its_time(scene):
    """A container that dies is deleted at once, one that does not end is when drain_timeout_s is over."""
    scene.boxes("n1", changed(A, draining=True), changed(B, draining=True))
    scene.plan(1)
    scene.boxes("n1", changed(A, state="exited"), changed(B, draining=True))
    assert scene.plan(1) == {AT_B: 0}
    assert scene.plan(28.5) == {AT_B: 0}
    assert scene.plan(0.5) == {}
    assert scene.states() == {"b": "removed"}


def test_a_drain_that_did_not_end_the_container_is_taken_back(scene):
    """A program that ignores its stop signal is active again when the monitor says so, even after it was removed."""
    scene.boxes("n1", changed(A, draining=True), B)
    scene.plan(1)
    assert scene.plan(40) == {AT_B: 1}
    scene.boxes("n1", A, B)
    assert scene.plan(1) == {AT_A: 1, AT_B: 1}


def test_udp_drains_until_the_end():
    """UDP connections are never over, so a count of 0 does not end the drain."""
    scene = Scene(CONTAINERS + '\nprotocol = "udp"')
    key = VIP._replace(protocol=17)
    one = changed(A, endpoints=())
    scene.boxes("n1", one)
    scene.plan()
    assert scene.kernel.servers(key) == {AT_A: 1}
    scene.boxes("n1", changed(one, draining=True))
    scene.plan(1)
    assert scene.last.watched == ()
    scene.now += 1
    scene.count(0, "172.17.0.2", key=key)
    scene.plan()
    assert scene.kernel.servers(key) == {AT_A: 0}


def test_an_operator_drains_and_undrains(scene):
    """A drained server stays away, over restarts of the balancer and of the container, until it is undrained."""
    scene.overrides = [Override(A.id, drain=True, by="alice")]
    assert scene.plan(1) == {AT_A: 0, AT_B: 1}
    assert scene.reason("a") == "drained by alice"
    scene.now += 1
    scene.count(0, "172.17.0.2")
    assert scene.plan() == {AT_B: 1}
    scene.start()
    assert scene.plan(1) == {AT_B: 1}
    scene.boxes("n1", changed(A, started_ns=9 * SECOND), B)
    assert scene.plan(1) == {AT_B: 1}
    assert scene.states()["a"] == "removed"
    scene.overrides = []
    assert scene.plan(1) == {AT_A: 1, AT_B: 1}


def test_a_drain_for_a_stop_ends_with_the_run(scene):
    """What was drained once is active again when the container was started again."""
    scene.overrides = [Override(A.id, drain=True, once=True, run=A.started_ns)]
    assert scene.plan(1) == {AT_A: 0, AT_B: 1}
    scene.boxes("n1", changed(A, state="exited"), B)
    assert scene.plan(1) == {AT_B: 1}
    assert scene.overrides == []
    scene.boxes("n1", changed(A, started_ns=3 * SECOND), B)
    assert scene.plan(1) == {AT_A: 1, AT_B: 1}


def test_a_drain_for_a_stop_compares_no_clocks(scene):
    """Also where the clock of the container's node is behind and its end was not seen, its next run has no drain."""
    scene.overrides = [Override(A.id, drain=True, once=True, run=A.started_ns, made_ns=scene.time_ns)]
    assert scene.plan(1) == {AT_A: 0, AT_B: 1}
    scene.boxes("n1", changed(A, started_ns=A.started_ns + 1), B)
    assert scene.plan(1) == {AT_A: 1, AT_B: 1}
    assert scene.overrides == []


def test_a_drain_whose_caller_died_ends_with_its_time(scene):
    """After for_s a drain is over, and the plan wakes for it."""
    scene.overrides = [Override(A.id, drain=True, until_ns=scene.time_ns + 20 * SECOND)]
    assert scene.plan() == {AT_A: 0, AT_B: 1}
    assert scene.last.wake == scene.now + 20
    assert scene.plan(20) == {AT_A: 1, AT_B: 1}
    assert scene.overrides == []


def test_orders_for_a_destroyed_container_are_forgotten():
    """What was set for it goes when its node has told everything, and not before; what was set for a node stays."""
    scene = Scene()
    scene.overrides = kept = [
        Override("n2", drain=True),
        Override("ab" * 32, node="n3", weight=3),
        Override(A.id, node="n1", drain=True),
        Override("cd" * 32, node="gone", drain=True),
    ]
    lost = Override("ef" * 32, "other", node="n1", drain=True)
    for picture, found in (("unknown", [*kept, lost]), ("down", [*kept, lost]), ("complete", kept)):
        scene.overrides = [*kept, lost]
        scene.view("n3", picture="stale")
        scene.boxes("n1", changed(A, state="exited"), picture=picture)
        scene.plan(11)
        assert scene.overrides == found
    scene.boxes("n1")
    scene.plan(1)
    assert scene.overrides == [*kept[:2], kept[3]]


def test_a_whole_node_can_be_drained():
    """An override with a node's name holds for the node and for the containers on it, in one balancer or in all."""
    scene = Scene(CONTAINERS + "\nservers = {n2 = 8080, n3 = 8080}")
    scene.boxes("n2", box("c", host_port=81))
    scene.overrides = [Override("n2", balancer="web", drain=True), Override("n3", balancer="other", drain=True)]
    assert scene.plan() == {"192.168.0.3:8080": 1}


def test_what_the_configuration_does_not_name_any_more_is_drained(scene):
    """A new configuration takes a running server out with its connections; the others keep their state."""
    scene.overrides = [Override(B.id, drain=True)]
    scene.plan(1)
    since = {each.name: each.since for each in scene.last.reports[0].servers}
    fresh = Scene("containers = {redis = 80}\nservers = {n2 = 80}")
    scene.planner.configure(fresh.tree)
    assert scene.plan(1) == {AT_A: 0, AT_B: 0, "192.168.0.2:80": 1}
    assert scene.reason("a") == "the configuration does not name it any more"
    assert {each.name: each.since for each in scene.last.reports[0].servers}["b"] == since["b"]
    scene.now += 1
    scene.count(0, "172.17.0.2")
    assert scene.plan() == {AT_B: 0, "192.168.0.2:80": 1}
    scene.boxes("n1", A, changed(B, state="exited"))
    assert scene.plan() == {"192.168.0.2:80": 1}


def test_a_balancer_that_is_gone_from_the_configuration_is_deleted(scene):
    """Its service is deleted, and a new address is a new service with the same servers at once."""
    fresh = Scene().tree
    object.__setattr__(fresh.servers["n1"].balancers["web"], "address", "10.0.0.9:80")
    scene.planner.configure(fresh)
    scene.plan(1)
    assert list(scene.kernel.table) == [VIP._replace(ip=ip_address("10.0.0.9"))]
    object.__setattr__(fresh.servers["n1"], "balancers", {})
    scene.planner.configure(fresh)
    scene.plan(1)
    assert scene.kernel.table == {}


# Weights


def test_weights_come_from_label_key_and_operator(scene):
    """The operator's weight wins over the label, the label over the key's, and 0 is out."""
    scene = Scene(CONTAINERS + "\nserver_weights = {nginx = 2}")
    scene.boxes("n1", changed(A, labels={"treescale.weight": "7"}), B)
    assert scene.plan() == {AT_A: 7, AT_B: 2}
    scene.overrides = [Override(A.id, weight=9)]
    assert scene.plan(1) == {AT_A: 9, AT_B: 2}
    assert scene.events == [("weight", "a")]
    scene.overrides = [Override(A.id, weight=0)]
    assert scene.plan(1) == {AT_A: 0, AT_B: 2}
    assert scene.states()["a"] == "out"


CHILD = '[servers.n2.balancers.inner]\naddress = "192.168.0.2:8080"\n'


def test_a_childs_balancer_weighs_what_is_alive_behind_it():
    """A child that is a balancer counts as much as it says, and nothing when nothing is alive there."""
    scene = Scene('servers = {"@web" = 8080}', child=CHILD)
    inner = (parse_address("192.168.0.2:8080"),)
    scene.capacities = {"n2": (Capacity(inner, "tcp", 3.0), Capacity((parse_address("192.168.0.2:9"),), "tcp", 8.0))}
    assert scene.plan() == {"192.168.0.2:8080": 3, "192.168.0.3:8080": 1}
    scene.capacities["n2"] = (Capacity(inner, "tcp", 0.0),)
    assert scene.plan(1) == {"192.168.0.2:8080": 0, "192.168.0.3:8080": 1}
    assert scene.reason("n2") == "nothing is alive behind it"


def test_what_is_alive_is_told_to_the_nodes_above():
    """The capacity is the sum of the weights, and with weights by CPU of their hundredths."""
    scene = Scene(CONTAINERS + "\nserver_weights = {nginx = 2}")
    scene.boxes("n1", A, B, changed(box("c", "172.17.0.4"), health="unhealthy"))
    scene.plan()
    assert scene.last.reports[0].capacity == 4
    scene = Scene(CONTAINERS + '\nweights = "cpu"')
    scene.boxes("n1", A, B)
    scene.headroom = {A.id: 0.25, B.id: 1.0}
    scene.plan()
    assert scene.last.reports[0].capacity == 1.25


def test_weights_follow_the_cpu_in_steps():
    """A small difference moves nothing, a large one moves a bounded step, and not again within five seconds."""
    scene = Scene(CONTAINERS + '\nweights = "cpu"\nserver_weights = {nginx = 2}')
    scene.boxes("n1", A)
    scene.headroom = {A.id: 0.9}
    assert scene.plan() == {AT_A: 180}
    scene.headroom = {A.id: 0.8}
    assert scene.plan(10) == {AT_A: 180}
    scene.headroom = {A.id: 0.0}
    assert scene.plan(10) == {AT_A: 90}
    assert scene.plan(4) == {AT_A: 90}
    assert scene.last.wake == scene.now + 1
    assert scene.plan(1) == {AT_A: 45}
    scene.headroom = {A.id: 1.0}
    assert scene.plan(5) == {AT_A: 56}
    scene.headroom = {}
    assert scene.plan(50) == {AT_A: 56}
    scene.start()
    scene.headroom = {A.id: 0.3}
    assert scene.plan(1) == {AT_A: 56}


def test_a_nodes_weight_follows_its_cpu_unless_it_is_a_balancer():
    """A node of `servers` weighs its own free share; one whose balancer is behind the port what that says is alive."""
    scene = Scene('servers = {"@web" = 8080}\nweights = "cpu"', child=CHILD)
    scene.capacities = {"n2": (Capacity((parse_address("192.168.0.2:8080"),), "tcp", 2.5),)}
    scene.headroom = {"n2": 0.2, "n3": 0.2}
    assert scene.plan() == {"192.168.0.2:8080": 250, "192.168.0.3:8080": 20}


@pytest.mark.parametrize("weights", ["fixed", "cpu"])
def test_a_restart_is_no_news(weights):
    """A balancer that begins again changes nothing and tells only that a drain goes on, even before figures come."""
    keys = f'containers = {{nginx = 80}}\nservers = {{"@web" = 8080, n4 = 8080}}\nweights = "{weights}"'
    scene = Scene(f'{keys}\nstart_grace_s = 5\nsorry_server = "10.9.9.9:80"', child=CHILD)
    names = ("well", "drained", "draining", "weighed", "sick", "joining")
    boxes = {name: box(name, f"172.17.0.{number}") for number, name in enumerate(names, 2)}
    drains = [Override(boxes[name].id, drain=True) for name in ("drained", "draining")]
    capacities = {"n2": (Capacity((parse_address("192.168.0.2:8080"),), "tcp", 3.0),)}
    headroom = {"n3": 0.3} | {one.id: 0.6 for one in boxes.values()}
    scene.overrides = [drains[0], Override(boxes["weighed"].id, weight=7), Override("n4", drain=True)]
    scene.capacities, scene.headroom = capacities, headroom
    scene.boxes("n1", *boxes.values())
    scene.plan()
    boxes["sick"] = changed(boxes["sick"], health="unhealthy")
    boxes["joining"] = changed(boxes["joining"], started_ns=scene.time_ns, health="starting")
    scene.boxes("n1", *boxes.values())
    scene.overrides.append(drains[1])
    table = scene.plan(1)
    assert (table["192.168.0.2:8080"], table["172.17.0.2:80"]) == ((3, 1) if weights == "fixed" else (300, 60))
    assert scene.plan(1) == table
    states, capacity = scene.states(), scene.last.reports[0].capacity
    scene.capacities, scene.headroom = {}, {}
    scene.start()
    assert scene.plan() is None
    assert scene.plan(10) == table
    assert scene.events == [("draining", "draining")]
    for figures in ({}, capacities):
        scene.capacities, scene.headroom = figures, headroom if figures else {}
        assert scene.plan(1) == table
        assert (scene.change.steps, scene.events) == ((), [])
        assert scene.states() == states
        assert scene.last.reports[0].capacity == capacity


def test_a_restart_of_an_empty_balancer_is_no_news():
    """That only the sorry server answers, or nobody, was told before; that somebody does again is told."""
    for keys, back in (("", ["filled"]), ('\nsorry_server = "10.9.9.9:80"', ["filled", "unsorry"])):
        scene = Scene(CONTAINERS + keys)
        scene.plan()
        assert scene.events
        scene.start()
        scene.plan()
        assert (scene.change.steps, scene.events) == ((), [])
        scene.start()
        scene.boxes("n1", A)
        scene.plan()
        assert [topic for topic, name in scene.events if name == "web"] == back


@pytest.mark.parametrize(
    ("percent", "limit", "cores", "free"),
    [
        (0, 0, 4, 1.0),
        (200, 0, 4, 0.5),
        (25, 0.5, 4, 0.5),
        (50, 0.5, 4, 0.0),
        (90, 8, 4, 0.775),
        (999, 1, 1, 0.0),
        (50, 0, 0, 0.5),
    ],
)
def test_headroom_is_the_free_share_of_limit_or_node(percent, limit, cores, free):
    """The free CPU of a container is that of its limit, or of the node's cores when these are fewer or it has none."""
    assert headroom(percent, limit, cores) == pytest.approx(free)


def test_two_servers_at_one_address_are_one():
    """A node's port that is named and also published by a container takes part once, as the named server."""
    scene = Scene(CONTAINERS + "\nservers = {n2 = 8080}")
    scene.boxes("n2", box("c", host_port=8080))
    assert scene.plan() == {"192.168.0.2:8080": 1}
    (left,) = scene.last.reports[0].left_out
    assert (left.name, left.reason) == ("c", "192.168.0.2:8080 takes part already, as n2")


def test_an_idle_world_costs_no_plan(scene):
    """When nothing has changed the same pool is wanted, as the same object, and nothing is told."""
    wanted = scene.last.wanted[VIP]
    scene.boxes("n1", A, B, box("other", "172.17.0.9", image="redis"))
    scene.plan(1)
    assert scene.last.wanted[VIP] is wanted
    assert scene.events == []
    assert scene.last.wake is None


# Lost links


def four_nodes(keys=""):
    """Four servers of one weight: one here, three below."""
    scene = Scene("servers = {n1 = 8080, n2 = 8080, n3 = 8080, n4 = 8080}\n" + keys)
    scene.plan()
    return scene


def weights(scene):
    return [scene.kernel.servers().get(f"192.168.0.{n}:8080") for n in (1, 2, 3, 4)]


def test_a_lost_link_takes_its_server_out_and_later_away():
    """Weight 0 at once, deleted after hold_s, back with the link."""
    scene = four_nodes()
    scene.view("n2", up=False)
    scene.plan(1)
    assert weights(scene) == [1, 0, 1, 1]
    assert scene.last.wake == scene.now + 30
    scene.plan(30)
    assert weights(scene) == [1, None, 1, 1]
    scene.view("n2", up=True)
    scene.plan(1)
    assert weights(scene) == [1, 1, 1, 1]


def test_lost_links_never_take_out_more_than_the_share():
    """Half of the servers may go; with one more, all that are still in the table are kept, and it is said."""
    scene = four_nodes()
    scene.view("n2", up=False)
    scene.view("n3", up=False)
    scene.plan(1)
    assert weights(scene) == [1, 0, 0, 1]
    scene.view("n4", up=False)
    scene.plan(1)
    assert weights(scene) == [1, 1, 1, 1]
    assert scene.events == [("active", "n2"), ("active", "n3"), ("panic", "web")]
    assert scene.last.reports[0].state == "panic"
    scene.plan(10_000)
    assert weights(scene) == [1, 1, 1, 1]
    scene.view("n4", up=True)
    scene.plan(1)
    assert weights(scene) == [1, 0, 0, 1]
    assert scene.events[-1] == ("calm", "web")


def test_what_went_long_ago_does_not_cause_a_panic():
    """Servers that were removed after their hold count no more: slow deaths are deaths."""
    scene = four_nodes()
    for node in ("n2", "n3"):
        scene.view(node, up=False)
    scene.plan(1)
    scene.plan(30)
    scene.view("n4", up=False)
    scene.plan(1)
    assert weights(scene) == [1, None, None, 0]


def test_the_last_server_is_not_lost_for_a_link():
    """A balancer of one node below keeps it whatever the link says, but an operator's drain is obeyed."""
    scene = Scene("servers = {n2 = 80}")
    scene.plan()
    scene.view("n2", up=False)
    assert scene.plan(1) == {"192.168.0.2:80": 1}
    scene.overrides = [Override("n2", drain=True)]
    assert scene.plan(1) == {"192.168.0.2:80": 0}


def test_panic_1_switches_it_off():
    """With panic = 1 every lost link takes its servers out."""
    scene = four_nodes("panic = 1.0")
    for node in ("n2", "n3", "n4"):
        scene.view(node, up=False)
    scene.plan(1)
    assert weights(scene) == [1, 0, 0, 0]


def test_containers_come_back_when_their_node_has_told():
    """After a lost link a container below is not served on the strength of what was known before."""
    scene = Scene()
    scene.boxes("n1", A)
    scene.boxes("n2", box("c", host_port=81))
    scene.plan()
    scene.view("n2", up=False, picture="stale")
    assert scene.plan(1) == {AT_A: 1, "192.168.0.2:81": 0}
    scene.view("n2", up=True)
    assert scene.plan(1) == {AT_A: 1, "192.168.0.2:81": 0}
    scene.view("n2", picture="complete")
    assert scene.plan(1) == {AT_A: 1, "192.168.0.2:81": 1}


def test_what_was_kept_in_a_panic_is_not_taken_out_when_its_link_is_back():
    """A container that served through the panic goes on while its node has not told yet."""
    scene = Scene()
    scene.boxes("n2", box("c", host_port=81))
    scene.boxes("n1", A)
    scene.boxes("n3", box("d", host_port=81))
    scene.plan()
    for node in ("n2", "n3"):
        scene.view(node, up=False, picture="stale")
    both = {AT_A: 1, "192.168.0.2:81": 1, "192.168.0.3:81": 1}
    assert scene.plan(1) == both
    scene.view("n2", up=True)
    assert scene.plan(1) == both | {"192.168.0.3:81": 0}


# What is not known


@pytest.mark.parametrize("picture", ["stale", "down", "absent"])
def test_a_silent_monitor_or_engine_changes_nothing(scene, picture):
    """While the engine is down or the monitor away, containers stay as they were, even if nothing is told of them."""
    scene.view("n1", picture=picture)
    assert scene.plan(100) == {AT_A: 1, AT_B: 1}
    if picture != "stale":
        scene.boxes("n1", picture=picture)
        assert scene.plan(100) == {AT_A: 1, AT_B: 1}


def test_a_process_that_is_known_to_be_dead_is_deleted_without_its_engine(scene):
    """The engine is down, but the kernel says that the container's process has ended."""
    scene.view("n1", picture="down")
    scene.dead = frozenset({A.id})
    assert scene.plan(1) == {AT_B: 1}


def test_nothing_is_changed_before_the_own_containers_are_known(scene):
    """After a restart the table stays in force until the picture is complete, without a limit for the own node."""
    scene.start()
    scene.boxes("n1", picture="unknown")
    assert scene.plan(100) is None
    assert scene.kernel.servers() == {AT_A: 1, AT_B: 1}
    assert scene.last.reports[0].state == "waiting"
    scene.boxes("n1", A, picture="complete")
    assert scene.plan(1) == {AT_A: 1}


def test_a_node_without_a_monitor_holds_nothing_up():
    """Without a container monitor here the first plan waits ten seconds, and not at all when Docker is switched off."""
    scene = Scene("servers = {n2 = 80}")
    scene.view("n1", picture="absent")
    assert scene.plan() is None
    assert scene.last.wake == scene.now + 10
    assert scene.plan(10) == {"192.168.0.2:80": 1}
    scene = Scene("servers = {n2 = 80}\n[servers.n1.docker]\nenabled = false")
    scene.view("n1", picture="absent")
    assert scene.plan() == {"192.168.0.2:80": 1}


def test_nodes_below_are_waited_for_and_kept_as_they_were():
    """Ten seconds for those that are up; then what was in the kernel stays until its node has told."""
    scene = Scene()
    scene.boxes("n1", A)
    scene.boxes("n2", box("c", host_port=81), box("d", host_port=82))
    scene.plan()
    scene.start()
    scene.boxes("n2", picture="unknown")
    assert scene.plan(1) is None
    assert scene.plan(9) == {AT_A: 1, "192.168.0.2:81": 1, "192.168.0.2:82": 1}
    assert scene.states() == {"a": "active", "192.168.0.2:81": "kept", "192.168.0.2:82": "kept"}
    assert scene.events == []
    scene.boxes("n2", box("c", host_port=81), picture="complete")
    assert scene.plan(1) == {AT_A: 1, "192.168.0.2:81": 1}
    assert scene.states() == {"a": "active", "c": "active"}


def test_what_is_kept_goes_with_its_link():
    """A server of which nothing is known but its node's lost link is held, and removed in the end."""
    scene = Scene()
    scene.boxes("n1", A)
    scene.boxes("n2", box("c", host_port=81))
    scene.plan()
    scene.start()
    scene.boxes("n2", picture="unknown", up=False)
    assert scene.plan(1) == {AT_A: 1, "192.168.0.2:81": 0}
    assert scene.plan(30) == {AT_A: 1}
    assert scene.plan(1) == {AT_A: 1}
    assert scene.events == []


def test_a_node_whose_name_cannot_be_resolved_loses_nothing():
    """After a restart, what may belong to a node with an unknown address is kept."""
    scene = Scene()
    scene.boxes("n2", box("c", host_port=81))
    scene.plan()
    scene.start()
    ips = scene.nodes["n2"].ips
    scene.view("n2", ips=())
    assert scene.plan(1) == {"192.168.0.2:81": 1}
    scene.view("n2", ips=ips)
    assert scene.plan(1) == {"192.168.0.2:81": 1}
    assert scene.states() == {"c": "active"}


def test_a_restart_takes_the_states_over_and_disturbs_nobody():
    """A restarted balancer finds its active and unhealthy servers in the kernel, and changes nothing."""
    scene = Scene("containers = {nginx = 80}\nstart_grace_s = 5")
    scene.boxes("n1", A, B)
    scene.plan()
    scene.boxes("n1", A, changed(B, health="unhealthy"))
    assert scene.plan(10) == {AT_A: 1, AT_B: 0}
    scene.start()
    assert scene.plan(1) == {AT_A: 1, AT_B: 0}
    assert scene.change.steps == ()
    assert scene.states() == {"a": "active", "b": "out"}


def test_a_capacity_is_waited_for():
    """The first plan waits for what a child says of its balancer, so that it does not begin with a wrong weight."""
    scene = Scene('servers = {"@web" = 8080}', child=CHILD)
    assert scene.plan() is None
    scene.capacities = {"n2": ()}
    assert scene.plan(1) == {"192.168.0.2:8080": 1, "192.168.0.3:8080": 1}


# The sorry server


def test_the_sorry_server_answers_while_nobody_else_can():
    """It comes with weight 1 when the last server goes, and is drained when there is one again."""
    scene = Scene(CONTAINERS + '\nsorry_server = "10.9.9.9:81"')
    assert scene.plan() == {"10.9.9.9:81": 1}
    assert scene.events[-1] == ("sorry", "web")
    scene.start()
    assert scene.plan() == {"10.9.9.9:81": 1}
    scene.boxes("n1", A)
    assert scene.plan(1) == {"10.9.9.9:81": 0, AT_A: 1}
    scene.now += 1
    scene.count(0, "10.9.9.9", 81)
    assert scene.plan() == {AT_A: 1}
    assert scene.events == [("removed", "sorry")]


# Other people's services


def test_a_foreign_service_is_a_clash_until_it_is_adopted():
    """A service of somebody else at our address is left alone; with adopt it becomes ours without a flush."""
    kernel = Kernel()
    other = Scene(kernel=kernel)
    other.boxes("n1", A)
    other.plan()
    scene = Scene(kernel=kernel)
    scene.boxes("n1", B)
    before = kernel.copy()
    scene.plan()
    assert scene.change.clashes == (VIP,)
    assert kernel.copy() == before
    assert scene.plan(1, adopt=(VIP,)) == {AT_B: 1}
    assert kernel.table[VIP].service.owned
