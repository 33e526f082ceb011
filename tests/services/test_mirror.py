"""The mirror: events and snapshots in any order come to the same view, and `follow` keeps one up over a living bus."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsbus
from tsbus import Request, Worker
from tsbus.core.roles import Role
from tsbus.filters import Filter, FilterError
from tsbus.live_mirror import ABSENT_TRIES, Change, LiveMirror, follow
from tsbus.mirror import MAX_KEPT, MONITOR, Mirror
from tsbus.records import Container, ContainerEvent, EngineFacts, Image, SnapshotHead
from tsbus.testing import MemoryTree

IDS = [f"{number:064x}" for number in range(4)]


def container(id_: str, state: str = "running", **more) -> Container:
    return Container(id=id_, name=f"c{int(id_, 16)}", image=Image(given="nginx"), state=state, **more)


class Publisher:
    """What a monitor keeps: its containers, and the events that it makes."""

    def __init__(self, node: str, epoch: int = 1) -> None:
        self.node, self.epoch, self.seq = node, epoch, 0
        self.records: dict[str, Container] = {}
        self.engine = EngineFacts(node=node, up=True, since_ns=epoch)

    def change(self, id_: str) -> ContainerEvent:
        """Let something happen to a container: it is made, then changes, then goes."""
        known = self.records.get(id_)
        self.seq += 1
        if known is None:
            action, after = "started", container(id_, created_ns=self.seq)
        elif known.restarts < 2:
            action, after = "changed", msgspec.structs.replace(known, restarts=known.restarts + 1)
        else:
            action, after = "destroyed", known
        self.records[id_] = after
        if action == "destroyed":
            del self.records[id_]
        return ContainerEvent(
            node=self.node, epoch=self.epoch, seq=self.seq, action=action, time_ns=self.seq, container=after
        )

    def snapshot(self) -> tuple[SnapshotHead, list[Container]]:
        records = list(self.records.values())
        head = SnapshotHead(node=self.node, epoch=self.epoch, seq=self.seq, engine=self.engine, count=len(records))
        return head, records

    def restart(self) -> None:
        """A new start of the monitor: what it finds then is told anew."""
        self.epoch, self.seq = self.epoch + 1, 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from(IDS)),
        st.tuples(st.just("deliver"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["lose", "ask", "read", "answer", "fail", "restart", "stale", "lost"]), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=500)
@given(STEPS)
def test_any_order_converges(steps):
    """Whatever is lost, late, asked twice or restarted: when no more is under way, the view is the monitor's."""
    monitor, mirror = Publisher("n"), Mirror()
    stream: list[ContainerEvent] = []
    answers: list[tuple[SnapshotHead, list[Container]] | None] = []

    def wants(fine: bool) -> None:
        """Ask for a snapshot if one is needed and none is under way, as `follow` does."""
        if not fine and not answers:
            answers.append(None)
            mirror.asked("n")

    def deliver(count: int) -> None:
        for _ in range(min(count, len(stream))):
            wants(mirror.event(stream.pop(0)))

    def read() -> None:
        answers[:] = [answer or monitor.snapshot() for answer in answers]

    def answer() -> None:
        if answers:
            read()
            head, records = answers.pop(0)
            wants(mirror.snapshot(head, records))

    wants(False)
    for what, detail in steps:
        match what:
            case "change":
                stream.append(monitor.change(detail))
            case "deliver":
                deliver(detail)
            case "lose":
                stream.clear()
            case "ask":
                wants(False)
            case "read":
                read()
            case "answer":
                answer()
            case "fail" if answers:
                answers.pop()
                mirror.failed("n", "no answer")
            case "restart":
                monitor.restart()
            case "stale":
                mirror.stale("n", "gap", 1)
            case "lost":
                mirror.lost("n", "gone", 1)
        view = mirror.nodes["n"]
        assert (view.state == "live") == (view.complete and not view.lost)
    stream.append(monitor.change(IDS[0]))  # the next event shows whatever was missed
    while stream or answers:
        deliver(100)
        answer()
    view = mirror.nodes["n"]
    assert (view.state, view.epoch, view.seq) == ("live", monitor.epoch, monitor.seq)
    assert view.containers == monitor.records


def test_events_that_are_kept_are_bounded():
    """A flood during a snapshot is not kept for ever: the snapshot is then asked for again."""
    monitor, mirror = Publisher("n"), Mirror()
    mirror.asked("n")
    early = monitor.snapshot()
    for _ in range(MAX_KEPT + 10):
        assert mirror.event(monitor.change(IDS[0]))
    assert not mirror.snapshot(*early)
    mirror.asked("n")
    assert mirror.snapshot(*monitor.snapshot())
    assert mirror.nodes["n"].containers == monitor.records


def test_a_node_without_a_monitor_can_be_reached():
    """A node that was lost and answers that it has no monitor is not lost any more; a snapshot says it has one."""
    mirror = Mirror()
    mirror.lost("n", "cut", 7)
    mirror.absent("n", "no such service")
    view = mirror.view("n")
    assert (view.state, view.absent) == ("unknown", True)
    publisher = Publisher("n")
    head = SnapshotHead(node="n", epoch=1, seq=0, engine=publisher.engine, count=0)
    assert mirror.snapshot(head, ())
    assert (view.state, view.absent) == ("live", False)


def test_a_lost_node_keeps_its_last_containers():
    """What was known of a lost node stays, with the time from which on it may be wrong; a snapshot ends that."""
    monitor, mirror = Publisher("n"), Mirror()
    monitor.change(IDS[0])
    mirror.snapshot(*monitor.snapshot())
    mirror.lost("n", "cut", 7)
    mirror.lost("n", "again", 9)
    view = mirror.nodes["n"]
    assert (view.state, view.since_ns, view.why) == ("lost", 7, "cut")
    assert [node for node, _ in mirror.containers()] == ["n"]
    mirror.snapshot(*monitor.snapshot())
    assert (view.state, view.since_ns, view.why) == ("live", 0, "")


def test_an_engine_that_is_down():
    """A view without its engine says so; older news of the engine in a snapshot does not undo newer events."""
    monitor, mirror = Publisher("n"), Mirror()
    assert not mirror.engine(EngineFacts(node="n", up=False, since_ns=50, reason="gone"))
    mirror.asked("n")
    mirror.snapshot(*monitor.snapshot())
    assert mirror.nodes["n"].state == "engine down"
    assert mirror.engine(EngineFacts(node="n", up=True, since_ns=60))
    assert mirror.nodes["n"].state == "live"


def test_find():
    """A name means the container called so on each node, else those whose ids begin so."""
    mirror = Mirror()
    for node in ("a", "b"):
        monitor = Publisher(node)
        for id_ in IDS:
            monitor.change(id_)
        monitor.records["1" * 64] = msgspec.structs.replace(container("1" * 64), name="0000")
        mirror.snapshot(*monitor.snapshot())
    assert [(node, one.id) for node, one in mirror.find("c1")] == [("a", IDS[1]), ("b", IDS[1])]
    assert [one.name for _, one in mirror.find("0000")] == ["0000", "0000"]
    assert len(mirror.find("00000")) == 8
    assert len(mirror.find(IDS[3])) == 2
    assert mirror.find("") == mirror.find("nope") == []


NGINX = Image(
    given="nginx:1.27", repo="nginx", tag="1.27", digest="sha256:" + "d" * 64, id="sha256:" + "abc123" + "0" * 58
)
IMAGES = [
    ("nginx", NGINX, True),
    ("docker.io/library/nginx", NGINX, True),
    ("docker.io/nginx:1.27", NGINX, True),
    ("library/nginx:1.27", NGINX, True),
    ("nginx:latest", NGINX, False),
    ("ngin", NGINX, False),
    ("nginx@sha256:" + "d" * 64, NGINX, True),
    ("nginx:1.27@sha256:" + "d" * 64, NGINX, True),
    ("httpd@sha256:" + "d" * 64, NGINX, False),
    ("sha256:" + "d" * 64, NGINX, True),
    ("sha256:abc1", NGINX, True),
    ("abc123", NGINX, True),
    ("abc124", NGINX, False),
    ("docker.io/library/nginx:latest", Image(given="nginx", repo="nginx", tag="latest"), True),
    ("nginx:latest", Image(given="nginx", repo="docker.io/library/nginx"), True),
    ("nginx", Image(given="docker.io/library/nginx:2", repo="docker.io/library/nginx", tag="2"), True),
    ("team/app", Image(given="r:5000/team/app:7", repo="r:5000/team/app", tag="7"), False),
    ("r:5000/team/app", Image(given="r:5000/team/app:7", repo="r:5000/team/app", tag="7"), True),
    ("nginx", Image(given="nginx:1"), True),
    ("nginx:1", Image(given="docker.io/library/nginx:1"), True),
    ("nginx:latest", Image(given="nginx"), True),
    ("nginx:latest", Image(given="nginx:1"), False),
    ("sha256", Image(given="sha256:" + "e" * 64, id="sha256:" + "e" * 64), False),
    ("eeee", Image(given="sha256:" + "e" * 64, id="sha256:" + "e" * 64), True),
]


@pytest.mark.parametrize(("wanted", "image", "fits"), IMAGES)
def test_image_filters(wanted, image, fits):
    """An image is found under all the names that Docker would take for it."""
    one = Container(id=IDS[0], name="x", image=image, state="running")
    assert Filter.parse(f"image={wanted}").matches("n", one) is fits


FILTERS = [
    ((), True),
    (("label=tier",), True),
    (("label=tier=web",), True),
    (("label=tier=db",), False),
    (("label=tier=db", "label=tier=web"), True),
    (("label=nope",), False),
    (("state=running", "health=none"), True),
    (("state=exited", "state=running"), True),
    (("state=exited", "name=front"), False),
    (("health=healthy",), False),
    (("node=web*",), True),
    (("node=web",), False),
    (("name=ront",), True),
    (("name=ront*",), False),
    (("name=front?1",), True),
]


@pytest.mark.parametrize(("texts", "fits"), FILTERS)
def test_filters(texts, fits):
    """Of one key any value may fit, of different keys one of each must."""
    one = Container(
        id=IDS[0], name="front-1", image=Image(given="nginx"), state="running", labels={"tier": "web", "a": ""}
    )
    assert Filter.parse(*texts).matches("web1", one) is fits


@pytest.mark.parametrize("text", ["", "nginx", "image=", "colour=red", "state=up", "health=well"])
def test_bad_filters(text):
    """What is no filter is refused with a text that says what there is."""
    with pytest.raises(FilterError, match=r"one of|KEY=VALUE"):
        Filter.parse(text)


# On a bus -------------------------------------------------------------------------------------------------------------


class Box:
    """A monitor's place on the bus, with a `Publisher` behind it."""

    def __init__(self, node: str, epoch: int = 1) -> None:
        self.publisher = Publisher(node, epoch)
        self.asked = 0
        self.worker = Worker(MONITOR)
        self.worker.command("snapshot", role="observe")(self._snapshot)

    async def _snapshot(self, call: Request) -> None:
        self.asked += 1
        head, records = self.publisher.snapshot()
        await call.send(head)
        for start in range(0, len(records), 2):
            await call.send(records[start : start + 2])

    async def change(self, id_: str) -> None:
        event = self.publisher.change(id_)
        await self.worker.publish(f"container.{event.action}", event)


class Scene:
    """A tree with a monitor on each node, and one who follows."""

    def __init__(self, tree: MemoryTree) -> None:
        self.tree = tree
        self.boxes: dict[str, Box] = {}
        self.changes: list[Change] = []

    async def place(self, node: str, epoch: int = 1) -> Box:
        self.boxes[node] = box = Box(node, epoch)
        await self.tree.run(box.worker, node)
        return box

    async def change(self, node: str, *places: int) -> None:
        for place in places:
            await self.boxes[node].change(IDS[place])
        await self.tree.settle()

    def check(self, mirror: Mirror) -> None:
        """The view is what the monitors have."""
        for node, box in self.boxes.items():
            view = mirror.nodes[node]
            assert (node, view.state, view.why) == (node, "live", "")
            assert view.containers == box.publisher.records

    def asked(self) -> dict[str, int]:
        return {node: box.asked for node, box in self.boxes.items()}


TREE = {"root": ["a", "b"], "a": ["c"]}


@pytest.fixture
async def scene() -> Iterator[Scene]:
    async with MemoryTree(TREE) as tree:
        scene = Scene(tree)
        for node in ("root", "a", "b", "c"):
            await scene.place(node)
            await scene.change(node, 0, 1, 2)
        yield scene


async def test_follow_asks_once_and_listens(scene: Scene):
    """Each node is asked once; from then on events alone keep the view, and every change is told."""
    client = await scene.tree.connect("root", role=Role.OBSERVE)
    async with follow(client, on_change=scene.changes.append) as mirror:
        assert await mirror.wait_settled(5)
        scene.check(mirror)
        scene.changes.clear()
        await scene.change("c", 0, 3, 1)
        await scene.change("b", 0)
        assert [(one.node, one.event.container.name) for one in scene.changes] == [
            ("c", "c0"), ("c", "c3"), ("c", "c1"), ("b", "c0"),
        ]  # fmt: skip
        await scene.tree.advance(600)
        scene.check(mirror)
        assert set(scene.asked().values()) == {1}
    await scene.change("b", 1)
    assert len(scene.changes) == 4


async def test_follow_part_of_the_tree_with_filters(scene: Scene):
    """Only the nodes of the target are mirrored, and only containers that fit, or did, are told of."""
    client = await scene.tree.connect("root")
    async with follow(client, "a,b", filters=["name=c1"], on_change=scene.changes.append) as mirror:
        await mirror.wait_settled(5)
        assert sorted(mirror.nodes) == ["a", "b"]
        assert [one.name for _, one in mirror.containers()] == ["c1", "c1"]
        assert len(list(mirror.containers(Filter()))) == 6
        scene.changes.clear()
        await scene.change("a", 0, 1)
        await scene.change("c", 1)
        assert [(one.node, one.event.container.name) for one in scene.changes] == [("a", "c1")]


async def test_a_missed_event_is_repaired(scene: Scene):
    """A hole in the numbers makes follow ask that node again, and no other."""
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        await mirror.wait_settled(5)
        scene.boxes["c"].publisher.change(IDS[3])  # and nobody hears of it
        await scene.change("c", 0)
        scene.check(mirror)
        assert scene.asked() == {"root": 1, "a": 1, "b": 1, "c": 2}


async def test_a_monitor_that_starts_anew(scene: Scene):
    """While its monitor is gone a node is stale; a new one, with a new epoch, is asked as soon as it serves."""
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        await mirror.wait_settled(5)
        before = dict(mirror.nodes["b"].containers)
        await scene.tree.kill(scene.boxes["b"].worker)
        view = mirror.nodes["b"]
        assert (view.state, view.why) == ("stale", "its monitor ended")
        assert view.since_ns > 0
        assert view.containers == before
        await scene.place("b", epoch=2)
        await scene.tree.advance(1)
        scene.check(mirror)
        await scene.change("b", 0)
        scene.check(mirror)


async def test_a_link_that_is_cut(scene: Scene):
    """Nodes behind a lost link keep their last containers, with the time; when they are back they are asked."""
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        await mirror.wait_settled(5)
        last = dict(mirror.nodes["c"].containers)
        scene.tree.cut("root", "a")
        scene.tree.cut("root", "c")
        scene.tree.cut("b", "a")
        await scene.tree.advance(1)
        await scene.change("c", 0, 3)
        assert {node: view.state for node, view in mirror.nodes.items()} == {
            "root": "live", "b": "live", "a": "lost", "c": "lost",
        }  # fmt: skip
        assert mirror.nodes["c"].containers == last
        assert mirror.nodes["c"].since_ns > 0
        scene.tree.mend("root", "a")
        await scene.tree.advance(5)
        scene.check(mirror)


async def test_the_own_router_goes_away(scene: Scene):
    """Without its router all views are stale; when it is back all are asked again."""
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        await mirror.wait_settled(5)
        scene.tree.stop("root")
        await scene.tree.settle()
        assert {view.state for view in mirror.nodes.values()} == {"stale"}
        await scene.change("c", 0, 3)
        scene.tree.start("root")
        await scene.tree.advance(5)
        scene.check(mirror)


async def test_a_node_without_a_monitor(scene: Scene):
    """It is unknown and says why; it is asked a few times, then left alone until a monitor comes."""
    await scene.tree.kill(scene.boxes.pop("a").worker)
    client = await scene.tree.connect("root")
    async with follow(client, on_change=scene.changes.append) as mirror:
        assert await mirror.wait_settled(5)
        view = mirror.nodes["a"]
        assert (view.state, view.why) == ("unknown", "no worker on a serves containers.snapshot")
        await scene.tree.advance(300)
        assert [one.node for one in scene.changes].count("a") == ABSENT_TRIES
        await scene.place("a")
        await scene.tree.advance(1)
        scene.check(mirror)


async def test_engines_come_and_go(scene: Scene):
    """docker.down and docker.up show in the view at once, and cost no snapshot."""
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        await mirror.wait_settled(5)
        box = scene.boxes["b"]
        await box.worker.publish("docker.down", EngineFacts(node="b", up=False, since_ns=5, reason="killed"))
        await scene.tree.settle()
        assert mirror.nodes["b"].state == "engine down"
        assert mirror.nodes["b"].engine.reason == "killed"
        await box.worker.publish("docker.up", EngineFacts(node="b", up=True, since_ns=6))
        await scene.tree.settle()
        scene.check(mirror)
        assert box.asked == 1


async def test_nobody_speaks_for_another_node(scene: Scene):
    """Events that name another node than where they come from, and what is no event, are left out."""
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        await mirror.wait_settled(5)
        forger = scene.boxes["b"].worker
        await forger.publish("container.died", Publisher("c", epoch=99).change(IDS[0]))
        await forger.publish("container.died", b"no json")
        await forger.publish("docker.down", EngineFacts(node="c", up=False, since_ns=99))
        await forger.publish("node.lost", {"node": "c", "nodes": "c"})
        await forger.publish("worker.left", {"name": MONITOR})
        await scene.tree.settle()
        scene.check(mirror)
        assert set(scene.asked().values()) == {1}


async def test_an_answer_that_cannot_be_read(scene: Scene):
    """A node whose snapshot is broken is asked again, ever less often; the others are not disturbed."""
    await scene.tree.kill(scene.boxes.pop("b").worker)
    broken, asked = Worker(MONITOR), []

    @broken.command("snapshot", role="observe")
    def snapshot(_: Request) -> dict[str, str]:
        asked.append(1)
        return {"node": "b"}

    await scene.tree.run(broken, "b")
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        assert await mirror.wait_settled(5)
        assert mirror.nodes["b"].why.startswith("its snapshot cannot be read")
        await scene.tree.advance(300)
        assert 8 < len(asked) < 20
        scene.check(mirror)
        assert set(scene.asked().values()) == {1}


async def test_the_client_is_closed(scene: Scene):
    """A client that is closed leaves a mirror that says it is stale, and can still be closed."""
    client = await scene.tree.connect("root")
    async with follow(client) as mirror:
        await mirror.wait_settled(5)
        await client.close()
        await scene.tree.settle()
        assert {view.state for view in mirror.nodes.values()} == {"stale"}


def test_names_at_the_top():
    """Programs find the mirror in the package itself."""
    assert (tsbus.Mirror, tsbus.follow, tsbus.Filter) == (Mirror, follow, Filter)
    assert issubclass(LiveMirror, Mirror)


async def test_a_closed_mirror_tells_nothing():
    """A question that was due when the mirror was closed is not asked any more."""
    told: list[Change] = []
    async with MemoryTree({"root": ["a"]}) as tree:
        client = await tree.connect("root")
        live = await follow(client, "a", on_change=told.append)
        await tree.settle()
        await tree.run(Worker(MONITOR), "a")
        await tree.settle()
        live._ask(live.nodes)
        await live.close()
        told.clear()
        await tree.advance(1)
    assert not told
