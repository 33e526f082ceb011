"""Whatever happens to containers, nodes, links, operators and the balancer itself, the kernel's table stays right."""

from ipaddress import ip_address

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kernel import VIP, Kernel, Scene, box

from tsbus.balancer import weights
from tsbus.balancer.table import Address, Destination, Entry, Protocol, Service, Virtual
from tsbus.balancer.world import Override

FOREIGN = Virtual(Protocol.TCP, ip_address("10.0.0.77"), 77)
NODES = ("n1", "n2", "n3", "n4")
KEYS = "containers = {nginx = 80}\nservers = {n4 = 9000}\nstart_grace_s = 1\nhold_s = 20"
replace = msgspec.structs.replace


class Life:
    """The truth about containers and nodes, of which the balancer sees what the links and monitors let through."""

    def __init__(self):
        kernel = Kernel()
        kernel.table[FOREIGN] = Entry(
            Service(FOREIGN),
            {Address(ip_address("10.5.5.5"), 1): Destination(Address(ip_address("10.5.5.5"), 1))},
        )
        self.scene = Scene(KEYS, kernel=kernel)
        self.truth = {node: {} for node in NODES}
        self.born = 0
        self.begun = False
        self.served = {}
        """Address -> (container, run) of those who served after the last plan."""
        for node in ("n1", "n1", "n1", "n2", "n2", "n3"):
            self.act("create", node, 0, 0)
            self.start(node, list(self.truth[node].values())[-1], "")

    def act(self, op, node, pick, number):
        """Let something happen."""
        boxes = self.truth[node]
        one = list(boxes.values())[pick % len(boxes)] if boxes else None
        match op:
            case "create" if len(boxes) < 4:
                self.born += 1
                one = box(f"c{self.born}", state="created")
                boxes[one.id] = one
            case "start" if one and one.state in ("created", "exited"):
                self.start(node, one, ["", "starting", "healthy"][number % 3])
            case "stop" if one and one.state == "running":
                boxes[one.id] = replace(one, draining=True)
            case "ignore" if one:
                boxes[one.id] = replace(one, draining=False)
            case "die" if one and one.state in ("running", "paused"):
                boxes[one.id] = replace(one, state="exited", draining=False, health="", endpoints=(), networks={})
            case "destroy" if one and one.state in ("created", "exited"):
                del boxes[one.id]
            case "pause" if one and one.state == "running":
                boxes[one.id] = replace(one, state="paused")
            case "unpause" if one and one.state == "paused":
                boxes[one.id] = replace(one, state="running")
            case "health" if one and one.health:
                boxes[one.id] = replace(one, health=["healthy", "unhealthy"][number % 2])
            case "lose" if node != "n1":
                self.scene.view(node, up=False)
            case "return" if not self.scene.nodes[node].up:
                stale = self.scene.nodes[node].picture
                self.scene.view(node, up=True, picture="stale" if stale == "complete" else stale)
            case "engine":
                self.scene.view(node, picture="down")
            case "tell":
                self.tell(node)
            case "drain" if one:
                self.scene.overrides.append(Override(one.id, drain=True))
            case "undrain":
                self.scene.overrides = self.scene.overrides[:-1]
            case "weight" if one:
                self.scene.overrides.append(Override(one.id, weight=number))
            case "restart":
                self.restart()
            case "wait":
                self.plan(after=number)
            case "crash":
                self.plan(crash_after=number + 1)

    def start(self, node, one, health):
        """Start a container at an address that nobody has at the moment."""
        used = {each.networks.get("bridge") for each in self.truth[node].values()}
        ports = {end.host_port for each in self.truth[node].values() for end in each.endpoints}
        ip = next(ip for n in range(2, 9) if (ip := f"172.17.0.{n}") not in used)
        port = next(port for port in range(81, 90) if port not in ports)
        fresh = box(one.name, ip, host_port=port, health=health, started_ns=self.scene.time_ns)
        self.truth[node][one.id] = fresh

    def tell(self, node):
        """A node's monitor tells everything, if it can be heard."""
        if self.scene.nodes[node].up:
            self.scene.view(node, picture="complete", containers=dict(self.truth[node]))

    def restart(self):
        """The balancer's process begins again and knows nothing."""
        self.scene.start()
        self.begun = False
        for node in NODES:
            self.scene.view(node, picture="unknown", containers={})

    def plan(self, **how):
        """What is live is seen; then plan, and check what must hold at every moment."""
        scene = self.scene
        for node in NODES:
            if scene.nodes[node].picture == "complete":
                self.tell(node)
        if "after" in how:
            scene.now += how.pop("after")
        for key, address in scene.last.watched if scene.last else ():
            scene.count(int(scene.now) % 3, str(address.ip), address.port, key)
        planner = scene.planner
        before = scene.kernel.copy().get(VIP)
        scene.plan(**how)
        assert FOREIGN in scene.kernel.table and len(scene.kernel.table[FOREIGN].destinations) == 1
        if scene.planner is not planner:
            self.restart()
            return
        if not self.begun and scene.nodes["n1"].picture == "unknown":
            assert scene.last.wanted is None, "the own containers are not known yet"
        if scene.last.wanted is None:
            assert scene.kernel.table.get(VIP) == before, "changed before the picture was complete"
            return
        self.begun = True
        self.check()

    def check(self):
        """What holds after each plan that was carried out."""
        scene, report = self.scene, self.scene.last.reports[0]
        table = scene.kernel.servers()
        drained = {each.server for each in scene.overrides if each.drain}
        addresses = [str(each.address) for each in report.servers if each.state.value not in ("removed", "joining")]
        assert sorted(addresses) == sorted(table), "the report and the kernel agree, and no server is there twice"
        for each in report.servers:
            assert each.id not in drained or not each.weight
        for node in NODES:
            if scene.nodes[node].picture == "complete" and scene.nodes[node].up:
                running = {i for i, one in self.truth[node].items() if one.state in ("running", "paused")}
                listed = {each.id for each in report.servers if each.node == node and each.id not in ("", node)}
                assert listed <= running, "a dead container is never in the table"
        lost = [each for each in report.servers if each.state.value == "out" and "link to" in each.reason]
        active = [each for each in report.servers if each.weight]
        assert len(lost) <= 0.5 * (len(lost) + len(active)), "lost links take out half at most"
        expected = self.expected(up=True)
        for address, run in self.served.items():
            if expected.get(address) and self.runs().get(address) == run:
                assert table.get(address), "who serves well goes on to serve, whatever is known of it"
        # One that was started again while its node told nothing is new to the balancer when it hears of it.
        told = {i for node in NODES if scene.nodes[node].picture == "complete" for i in self.truth[node]}
        self.served = {
            address: run
            for address, run in self.runs().items()
            if table.get(address) and (run[0] in told or self.served.get(address) == run)
        }

    def runs(self):
        """Address -> (container, run), by the truth."""
        return {
            self.address(node, one): (one.id, one.started_ns) for node in NODES for one in self.truth[node].values()
        }

    def address(self, node, one):
        """Where a running container is reached."""
        if not one.endpoints:
            return ""
        end = one.endpoints[0]
        return f"{end.ip}:80" if node == "n1" else f"{self.scene.tree.servers[node].ip}:{end.host_port}"

    def settle(self):
        """All links and monitors come back, and time passes."""
        for node in NODES:
            self.scene.view(node, up=True)
            self.tell(node)
        self.plan(after=0)
        self.plan(after=2)
        self.plan(after=40)
        self.plan(after=2)

    def expected(self, *, up=False):
        """Who shall serve, by the truth: address -> weight. With `up` only those whose node can be reached."""
        drained = {each.server for each in self.scene.overrides if each.drain}
        given = {each.server: each.weight for each in self.scene.overrides if each.weight is not None}
        found = {} if up and not self.scene.nodes["n4"].up else {"192.168.0.4:9000": 1}
        for node in NODES:
            for one in self.truth[node].values():
                well = one.state == "running" and one.health in ("", "healthy") and not one.draining
                if well and one.id not in drained and given.get(one.id, 1) and (self.scene.nodes[node].up or not up):
                    found[self.address(node, one)] = given.get(one.id, 1)
        return found


OPS = (
    "create", "create", "start", "start", "start", "stop", "ignore", "die", "destroy", "pause", "unpause", "health",
    "lose", "lose", "return", "engine", "tell", "drain", "undrain", "weight", "restart", "wait", "wait", "crash",
)  # fmt: skip
programs = st.lists(
    st.tuples(st.sampled_from(OPS), st.sampled_from(NODES), st.integers(0, 3), st.integers(0, 6), st.booleans()),
    min_size=15,
    max_size=60,
)


@settings(max_examples=200)
@given(programs)
def test_any_life_ends_in_the_right_table(program):
    """Through starts, deaths, drains, lost links, restarts and crashes in the middle of a change: at every moment the
    invariants hold, and when all is well again the table is the truth."""
    life = Life()
    life.settle()
    for op, node, pick, number, planned in program:
        life.act(op, node, pick, number)
        if planned:
            life.plan()
    life.settle()
    table = life.scene.kernel.servers()
    assert {address: weight for address, weight in table.items() if weight} == life.expected()
    life.plan()
    assert life.scene.change.steps == ()


@settings(max_examples=100)
@given(st.floats(0, 1), st.integers(1, 50), st.integers(1, 100))
def test_a_weight_comes_to_rest(free, base, percent):
    """With a steady load a weight stops moving within twenty steps, near the wanted one."""
    weight, goal = base * max(percent, 10), weights.wanted(base, free)
    steps = 0
    while (following := weights.moved(weight, goal)) != weight:
        assert weight * weights.FALL - 1 <= following <= max(weight + 1, weight * weights.RISE + 1)
        weight, steps = following, steps + 1
    assert steps <= 20
    assert abs(goal - weight) <= weights.STEP * weight


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.05, 4), st.floats(0, 1)), min_size=1, max_size=60))
def test_weights_do_not_flap(readings):
    """However the load jumps, a server's weight moves at most once in five seconds, and is never 0."""
    scene = Scene('containers = {nginx = 80}\nstart_grace_s = 0\nweights = "cpu"')
    one = box("a", "172.17.0.2")
    scene.boxes("n1", one)
    moved_at, weight = scene.now, scene.plan()["172.17.0.2:80"]
    for after, free in readings:
        scene.headroom = {one.id: free}
        now = scene.plan(after)["172.17.0.2:80"]
        assert weights.LOWEST <= now <= weights.HIGHEST
        if now != weight:
            assert scene.now - moved_at >= weights.PACE_S - 1e-9
            assert abs(now - weight) >= weights.STEP * weight or abs(now - weight) == 1
            moved_at, weight = scene.now, now
