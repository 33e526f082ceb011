"""The feed: a model that is kept up over a living bus, and figures that flow only while somebody watches."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import told
from hypothesis import given, settings
from hypothesis import strategies as st
from tree import Tree, until

from tsbus import Request, Worker
from tsbus.config import loads
from tsbus.core.roles import Role
from tsbus.dashboard.eventlog import MAX_EVENTS
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.flows import LINGER_S
from tsbus.dashboard.problems import problems
from tsbus.dashboard.questions import REST_S
from tsbus.lb_records import BalancerTraffic
from tsbus.mirror import MONITOR
from tsbus.records import ContainerEvent, Sample, SnapshotHead
from tsbus.testing import MemoryTree

CHILDREN = {"root": ["a", "b"], "a": ["a1"]}


class Monitor:
    """A worker that says what a container monitor says, with one container at first."""

    def __init__(self, node: str) -> None:
        self.node, self.seq = node, 0
        self.there = {1: told.container()}
        self.worker = Worker(MONITOR)

        @self.worker.command("snapshot", role="observe")
        async def snapshot(_: Request):
            yield SnapshotHead(node=node, epoch=1, seq=self.seq, engine=told.engine(node), count=len(self.there))
            yield list(self.there.values())

        @self.worker.command("sample", role="observe")
        async def sample(_: Request):
            return told.figures(node, {1: Sample(cpu=1.0)}, full=True)

    def change(self, number: int, state: str) -> tuple[str, ContainerEvent]:
        """Let a container take a state; returns what is to be published."""
        self.seq += 1
        after = self.there[number] = told.container(number, state)
        action = "started" if state == "running" else "died"
        event = ContainerEvent(node=self.node, epoch=1, seq=self.seq, action=action, time_ns=1, container=after)
        return f"container.{action}", event


class Bed:
    """A tree in memory with monitors on two nodes, and a feed on one."""

    def __init__(self, tree: MemoryTree, feed: Feed) -> None:
        self.tree, self.feed, self.model = tree, feed, feed.model
        self.publishers = {}

    async def publish(self, node: str, topic: str, body: object) -> None:
        if node not in self.publishers:
            self.publishers[node] = await self.tree.connect(node)
        await self.publishers[node].publish(topic, body)
        await self.tree.settle()

    async def wanted(self, node: str, topic: str) -> bool:
        """Whether a publisher on `node` is asked for `topic`."""
        client = await self.tree.connect(node)
        async with client.interest(topic) as interest:
            await self.tree.settle()
            wanted = interest.wanted
        await client.close()
        return wanted


async def bed_on(tree: MemoryTree, node: str) -> Feed:
    for each in ("a", "b"):
        await tree.run(Monitor(each).worker, each)
    client = await tree.connect(node, name="dashboard", role=Role.OPERATE)
    return Feed(client, tree.clock.wall_ms)


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    async with MemoryTree(CHILDREN) as tree, await bed_on(tree, "root") as feed:
        await tree.settle()
        yield Bed(tree, feed)


async def test_a_feed_knows_the_tree_and_its_containers(bed):
    """It is settled once every node has told what it has, or has no monitor."""
    assert await bed.feed.wait_settled(1)
    assert {name: len(each) for name, each in bed.model.containers.items()} == {"a": 1, "b": 1, "root": 0, "a1": 0}
    assert bed.model.totals().running == 2
    assert [bed.model.nodes[name].monitored for name in bed.model.nodes] == [False, True, False, True]


async def test_events_change_the_model_and_are_in_the_log(bed):
    """A container event is seen at once, and waiters are woken."""
    revision, number = bed.model.revision, bed.model.events.last
    waiting = asyncio.create_task(bed.feed.wait_event(number))
    ended = told.container(1, "exited", exit_code=2)
    event = ContainerEvent(node="b", epoch=1, seq=1, action="died", time_ns=1, container=ended)
    await bed.publish("b", "container.died", event)
    assert bed.model.container("b", "c1").record.exit_code == 2
    assert await waiting
    assert await bed.feed.wait_change(revision)
    assert bed.model.events.since(number)[0][-1].topic == "container.died"


async def test_figures_flow_only_while_somebody_watches(bed):
    """Monitors are asked while a block of `watching` lasts, for that node or all, and for a moment after the last."""
    topic = "containers.stats.{}".format
    assert not await bed.wanted("a", topic("a"))
    with bed.feed.watching("a"):
        await bed.tree.settle()
        assert (await bed.wanted("a", topic("a")), await bed.wanted("b", topic("b"))) == (True, False)
        assert bed.model.container("a", "c1").sample == Sample(cpu=1.0)  # asked once, for those who listen already
        with bed.feed.watching():
            await bed.tree.settle()
            assert await bed.wanted("b", topic("b"))
            await bed.publish("b", topic("b"), told.figures("b", {1: Sample(cpu=7.0)}))
            assert bed.model.container("b", "c1").sample.cpu == 7.0
        await bed.tree.advance(LINGER_S + 1)
        assert (await bed.wanted("a", topic("a")), await bed.wanted("b", topic("b"))) == (True, False)
    await bed.tree.advance(LINGER_S + 1)
    assert not await bed.wanted("a", topic("a"))
    await bed.publish("b", topic("b"), told.figures("b", {1: Sample(cpu=9.0)}))
    assert bed.model.container("b", "c1").sample.cpu == 7.0


async def test_a_lease_ends_by_itself(bed):
    """Who scrapes in intervals watches for a while after each time."""
    bed.feed.watch_for(30)
    await bed.tree.advance(20)
    bed.feed.watch_for(30)
    await bed.tree.advance(20)
    assert bed.feed.watched == {"*"}
    assert await bed.wanted("b", "containers.stats.b")
    await bed.tree.advance(15)
    assert not await bed.wanted("b", "containers.stats.b")


async def test_links_and_history_grow_while_watched(bed):
    """Routers are asked every five seconds, and each time the history has a point."""
    with bed.feed.watching():
        await bed.tree.advance(11)
    assert bed.model.nodes["a"].rtt_ms is not None
    assert {link.name for link in bed.model.nodes["root"].router.links} == {"a", "b"}
    assert len(bed.feed.history) == 4  # two nodes with figures, and a container on each


async def test_what_routers_knew_before_is_asked_once(bed):
    """Links and workers are known without a viewer, of a node that comes back as well; after that nobody is asked."""
    await bed.tree.settle()
    heard = {name: view.router.heard_ms for name, view in bed.model.nodes.items()}
    bed.tree.stop("b")
    await bed.tree.advance(30)
    bed.tree.start("b")
    await bed.tree.advance(30)
    again = {name for name, view in bed.model.nodes.items() if view.router.heard_ms != heard[name]}
    assert again == {"b"}


async def test_only_what_claims_to_be_of_its_own_node_counts(bed):
    """Figures that a node publishes for another one change nothing, nor does what is no event or beyond all numbers."""
    with bed.feed.watching():
        await bed.tree.settle()
        await bed.publish("a1", "containers.stats.b", told.figures("b", {1: Sample(cpu=99.0)}))
        await bed.publish("a1", "containers.stats.a1", b"\xff")
        await bed.publish("b", "containers.stats.b", told.figures("b", {1: Sample(memory=10**400)}))
    assert bed.model.container("b", "c1").sample.cpu == 1.0


async def test_lost_nodes_and_a_lost_bus_are_seen_and_come_back(bed):
    """A killed router is lost with what is below it until it is adopted; without the own router nothing is known."""
    bed.tree.stop("a")
    await bed.tree.advance(4)
    assert (bed.model.nodes["a"].state, bed.model.nodes["a1"].adopted) == ("lost", True)
    assert bed.model.container("a", "c1") is not None
    bed.tree.start("a")
    await bed.tree.advance(20)
    assert (bed.model.nodes["a"].state, bed.model.nodes["a1"].adopted) == ("up", False)
    bed.tree.stop("root")
    await bed.tree.settle()
    assert not bed.model.connected
    bed.tree.start("root")
    await bed.tree.advance(20)
    assert bed.model.connected
    assert {node.state for node in bed.model.nodes.values()} == {"up"}


async def test_a_node_that_flaps_each_second_is_bounded_and_right_in_the_end(bed):
    """Its link goes and comes every second for a minute: routers are asked a few times a second at most, and no more
    is kept than of a calm node; when it stays, it is up and no problem is left."""
    calls = []
    request, call_one = bed.feed._client.request, bed.feed._client.call_one

    def noted(target, command, *rest, **more):
        calls.append(command)
        return request(target, command, *rest, **more)

    async def noted_one(target, command, *rest, **more):
        calls.append(command)
        return await call_one(target, command, *rest, **more)

    bed.feed._client.request, bed.feed._client.call_one = noted, noted_one
    for _ in range(30):
        bed.tree.cut("root", "b")
        await bed.tree.advance(1)
        bed.tree.mend("root", "b")
        await bed.tree.advance(1)
    assert calls.count("router.status") <= 60 / REST_S + 2
    assert len(calls) < 60 * 8, "a few questions a second"
    await bed.tree.advance(20)
    assert bed.model.nodes["b"].state == "up"
    assert bed.model.container("b", "c1") is not None
    assert problems(bed.model, bed.tree.clock.wall_ms()) == []
    assert len(bed.model.events) <= MAX_EVENTS


async def test_further_topics_are_in_the_log_while_somebody_listens(bed):
    """An event that several patterns want is there once."""
    async with bed.feed.listening("shop.>"), bed.feed.listening("shop.order.*"):
        await bed.publish("b", "shop.order.placed", {"id": 1})
    await bed.publish("b", "shop.order.placed", {"id": 2})
    assert [one.json() for one in bed.model.events if one.topic.startswith("shop")] == [{"id": 1}]


async def test_a_feed_on_an_interior_node_shows_what_is_below():
    """Nothing of its siblings flows to it."""
    async with MemoryTree(CHILDREN) as tree, await bed_on(tree, "a") as feed:
        bed = Bed(tree, feed)
        with feed.watching():
            await tree.settle()
            assert list(feed.model.nodes) == ["a", "a1"]
            assert (feed.model.totals().nodes, feed.model.totals().containers) == (2, 1)
            for topic in ("container.died", "docker.down", "node.lost", "worker.left", "lb.active"):
                assert (await bed.wanted("a1", topic), await bed.wanted("b", topic)) == (True, False), topic
            assert (await bed.wanted("a1", "containers.stats.a1"), await bed.wanted("b", "containers.stats.b")) == (
                True, False,
            )  # fmt: skip


ACTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["stop", "start"]), st.sampled_from(["root", "a", "b", "a1"])),
        st.tuples(st.sampled_from(["cut", "mend"]), st.sampled_from([("root", "a"), ("root", "b"), ("a", "a1")])),
        st.tuples(st.just("change"), st.sampled_from(["a", "b"]), st.integers(1, 3),
                  st.sampled_from(["running", "exited"])),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 5.0])),
    ),
    max_size=14,
)  # fmt: skip


async def act(tree: MemoryTree, monitors: dict[str, Monitor], down: set[str], kind: str, *facts) -> None:
    """Do one of ACTS, where it can be done."""
    if kind == "stop" and facts[0] not in down:
        down.add(facts[0])
        tree.stop(facts[0])
    elif kind == "start" and facts[0] in down:
        down.remove(facts[0])
        tree.start(facts[0])
    elif kind in ("cut", "mend"):
        getattr(tree, kind)(*facts[0])
    elif kind == "wait":
        await tree.advance(facts[0])
    elif kind == "change":
        monitor = monitors[facts[0]]
        topic, event = monitor.change(*facts[1:])
        if monitor.worker.client.connected:  # else nobody hears of it
            monitor.worker.client.publish_nowait(topic, event)


@settings(max_examples=12)
@given(ACTS)
def test_whatever_breaks_the_model_is_right_in_the_end(acts):
    """Routers die and return, links are cut and mended, containers change unheard: when all is well, all is known."""

    async def course() -> None:
        async with MemoryTree(CHILDREN) as tree:
            monitors, down = {node: Monitor(node) for node in ("a", "b")}, set()
            for node, each in monitors.items():
                await tree.run(each.worker, node)
            client = await tree.connect("root")
            async with Feed(client, tree.clock.wall_ms) as feed:
                for each in acts:
                    await act(tree, monitors, down, *each)
                for node in sorted(down):
                    await act(tree, monitors, down, "start", node)
                for link in (("root", "a"), ("root", "b"), ("a", "a1")):
                    tree.mend(*link)
                await tree.advance(60)
                model = feed.model
                assert model.connected
                assert {name: (node.state, node.adopted) for name, node in model.nodes.items()} == dict.fromkeys(
                    ("root", "a", "a1", "b"), ("up", False)
                )
                for node, each in monitors.items():
                    known = {view.record.name: view.record for view in model.containers[node].values()}
                    assert known == {one.name: one for one in each.there.values()}

    asyncio.run(course())


class Balancer:
    """A worker that says what a balancer says, and counts who watches its traffic."""

    def __init__(self) -> None:
        self.state, self.watchers, self.shows = "ok", 0, 0
        self.worker = Worker("lb")

        @self.worker.command("show", role="observe")
        async def show(_: Request):
            self.shows += 1
            yield told.balancer("web", self.state, told.server())

        @self.worker.command("watch", role="observe")
        async def watch(_: Request):
            self.watchers += 1
            try:
                yield BalancerTraffic(name="web", cps=5)
                await asyncio.Event().wait()
            finally:
                self.watchers -= 1


async def test_balancers_are_asked_when_they_say_something_and_tell_traffic_to_viewers(lone_balancer):
    """Their events make the model ask, twice a second at most; traffic comes while somebody watches."""
    tree, feed, balancer = lone_balancer
    model = feed.model
    assert model.nodes["solo"].balancers_why == "its balancer does not run"
    await tree.run(balancer.worker, "solo")
    await tree.advance(1)
    assert (model.balancers["solo"]["web"].state, model.nodes["solo"].balancers_why) == ("ok", "")
    with feed.watching():
        await tree.advance(1)
        assert balancer.watchers == 1
        assert model.balancers["solo"]["web"].traffic.cps == 5
    await tree.advance(LINGER_S + 1)
    assert balancer.watchers == 0
    balancer.state, shows = "empty", balancer.shows
    client = await tree.connect("solo")
    for _ in range(50):
        await client.publish("lb.empty", {"node": "solo", "balancer": "web", "time_ns": 1})
    await tree.advance(2)
    assert model.balancers["solo"]["web"].state == "empty"
    assert balancer.shows <= shows + 2


@pytest.fixture
async def lone_balancer() -> AsyncIterator[tuple[MemoryTree, Feed, Balancer]]:
    tree = MemoryTree({"solo": []})
    tree.config = loads(
        '[servers.solo]\nip="127.0.0.1"\nservice_port=4000\n[servers.solo.balancers.web]\naddress="10.0.0.1:80"\n'
    )
    async with tree:
        client = await tree.connect("solo", name="dashboard")
        async with Feed(client, tree.clock.wall_ms) as feed:
            await tree.settle()
            yield tree, feed, Balancer()


# Over real sockets ----------------------------------------------------------------------------------------------------


def told_of_nodes(model):
    return [event.topic for event in model.events if event.topic.startswith("node")]


async def test_over_real_links_a_killed_node_is_seen_and_figures_stop_with_the_last_viewer():
    """Routers as processes: a node that is killed is lost and comes back, and figures are told to viewers only."""
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:  # short: it is in socket addresses
        async with Tree("a:b c", Path(folder)) as tree, Feed(await tree.connect("a")) as feed:
            await tree.run(Monitor("b").worker, "b")
            model = feed.model
            await until("the container of b", lambda: model.container("b", "c1") is not None)
            async with (await tree.connect("b")).interest("containers.stats.b") as interest:
                assert not interest.wanted
                with feed.watching("b"):
                    await until("figures are wanted", lambda: interest.wanted)
                    await until("the link is told", lambda: model.nodes["b"].rtt_ms is not None)
                await until("figures are not wanted any more", lambda: not interest.wanted)
            tree.kill("c")
            await until("c is lost", lambda: model.nodes["c"].state == "lost")
            await until("that is an event", lambda: told_of_nodes(model)[-1:] == ["node.lost"])
            tree.start("c")
            await until("c is back", lambda: model.nodes["c"].state == "up")
