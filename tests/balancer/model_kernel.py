"""A kernel's table in memory, with the manners of the real one, and a scene that plays a planner against it."""

from dataclasses import replace
from ipaddress import ip_address

from tsbus.balancer import steps
from tsbus.balancer.plan import Plan, Planner
from tsbus.balancer.table import Address, Counts, Destination, Entry, Protocol, Virtual
from tsbus.balancer.world import NodeView, Reading, World
from tsbus.config import Tree, loads
from tsbus.records import Container, Endpoint, Image

ZERO = Counts(*[0] * 13)
VIP = Virtual(Protocol.TCP, ip_address("10.0.0.1"), 80)


class Kernel:
    """Holds services and servers; refuses what a kernel refuses."""

    def __init__(self):
        self.table = {}

    def apply(self, step):
        """Carry out one step, and check that it leaves no service empty that was not and shall not be."""
        match step:
            case steps.AddService(service):
                assert service.key not in self.table, "exists"
                self.table[service.key] = Entry(service, {})
            case steps.SetService(service):
                self.table[service.key] = Entry(service, self.table[service.key].destinations)
            case steps.DeleteService(key):
                del self.table[key]
            case steps.AddDestination(key, one):
                assert one.address not in self.table[key].destinations, "exists"
                self.table[key].destinations[one.address] = one
            case steps.SetDestination(key, one):
                assert one.address in self.table[key].destinations, "missing"
                self.table[key].destinations[one.address] = one
            case steps.DeleteDestination(key, address):
                del self.table[key].destinations[address]

    def servers(self, key=VIP):
        """The servers of a service: address as text -> weight."""
        return {str(address): one.weight for address, one in self.table[key].destinations.items()}

    def serves(self, key):
        """Whether somebody gets new connections there."""
        return key in self.table and any(one.weight for one in self.table[key].destinations.values())

    def copy(self):
        return {key: Entry(entry.service, dict(entry.destinations)) for key, entry in self.table.items()}


def climb(kernel, change, wanted):
    """Carry out a change step by step; yields after each, and checks what must hold at every moment."""
    foreign = {key: entry for key, entry in kernel.copy().items() if key not in change.claims}
    served = {
        key for key, pool in wanted.items() if kernel.serves(key) and any(d.weight for d in pool.destinations.values())
    }
    for step in change.steps:
        kernel.apply(step)
        assert all(kernel.table.get(key) == entry for key, entry in foreign.items()), "a foreign service was touched"
        assert all(kernel.serves(key) for key in served - set(change.clashes)), "a service was empty for a moment"
        yield step


TREE = """
[servers.n1]
ip = "192.168.0.1"
service_port = 1
childs = ["n2", "n3", "n4"]
[servers.n1.balancers.web]
address = "10.0.0.1:80"
alg = "wrr"
{keys}
[servers.n2]
ip = "192.168.0.2"
service_port = 1
tags = ["web"]
{child}
[servers.n3]
ip = "192.168.0.3"
service_port = 1
tags = ["web"]
[servers.n4]
ip = "192.168.0.4"
service_port = 1
"""
CONTAINERS = "containers = {nginx = 80}\nstart_grace_s = 0"
SECOND = 10**9


def tree(keys=CONTAINERS, child=""):
    return loads(TREE.format(keys=keys, child=child))


def box(name, ip="", *, host_port=0, host_ip="0.0.0.0", image="nginx", state="running", **more):  # noqa: S104
    """A container: local with `ip`, published on its node with `host_port`."""
    endpoint = Endpoint(
        port=80, ip=ip or "172.17.9.9", network="bridge", host_ip=host_ip if host_port else "", host_port=host_port
    )
    repo, _, tag = image.partition(":")
    running = state in ("running", "paused")
    networks = {"bridge": endpoint.ip} if running else {}
    more = {"started_ns": SECOND, "endpoints": (endpoint,) if running else (), "networks": networks} | more
    return Container(
        id=(name.encode().hex() + "0" * 64)[:64],
        name=name,
        image=Image(given=image, repo=repo, tag=tag or "latest"),
        state=state,
        **more,
    )


class Scene:
    """A balancer's node, the nodes below it, its kernel, and the time."""

    def __init__(self, keys=CONTAINERS, *, child="", kernel=None):
        self.tree: Tree = tree(keys, child)
        self.kernel = kernel or Kernel()
        self.now = 1000.0
        self.nodes = {
            name: NodeView(up=True, picture="complete", ips=(ip_address(server.ip),))
            for name, server in self.tree.servers.items()
        }
        self.overrides = []
        self.readings = {}
        self.capacities = {}
        self.headroom = {}
        self.dead = frozenset()
        self.recorded = set()
        self.held = frozenset()
        self.events = []
        self.last: Plan | None = None
        self.start()

    def start(self):
        """Start the balancer, perhaps again: only the kernel and the state file are left of before."""
        actual = self.kernel.copy()
        ours = steps.owned(actual, self.recorded)
        self.held = frozenset()
        self.planner = Planner(self.tree, "n1", {key: actual[key] for key in ours}, self.now)

    def boxes(self, node, *containers, **state):
        """Set what runs on a node."""
        found = {one.id: one for one in containers}
        self.nodes[node] = replace(self.nodes[node], containers=found, **state)

    def view(self, node, **state):
        """Set what is known of a node."""
        self.nodes[node] = replace(self.nodes[node], **state)

    @property
    def time_ns(self):
        return int(self.now * SECOND)

    def count(self, connections, ip, port=80, key=VIP):
        """Let the connections of a server be counted now."""
        self.readings[key, Address(ip_address(ip), port)] = Reading(self.now, connections)

    def plan(self, after=0.0, *, adopt=(), crash_after=None):
        """Let time pass, plan, and carry it out, or only some steps of it. Returns the servers of VIP."""
        self.now += after
        world = World(
            self.now, self.time_ns, dict(self.nodes), dict(self.capacities), tuple(self.overrides), dict(self.readings),
            dict(self.headroom), self.dead,
        )  # fmt: skip
        self.last = plan = self.planner.plan(world)
        self.events = [(each.topic, each.server.name if each.server else each.balancer) for each in plan.events]
        self.overrides = [each for each in self.overrides if each not in plan.spent]
        if plan.wanted is None:
            return None
        actual = self.kernel.copy()
        ours = steps.owned(actual, self.recorded, self.held)
        self.change = steps.change(plan.wanted, actual, ours, adopt)
        self.recorded = self.held = self.change.claims
        for number, _ in enumerate(climb(self.kernel, self.change, plan.wanted), 1):
            if number == crash_after:
                self.start()
                return None
        return self.kernel.servers() if VIP in self.kernel.table else None

    def states(self):
        """Server name -> state, of the first balancer."""
        return {each.name: each.state.value for each in self.last.reports[0].servers}

    def reason(self, name):
        return next(each.reason for each in self.last.reports[0].servers if each.name == name)


def server(ip, port=80, weight=1):
    return Destination(Address(ip_address(ip), port), weight)
