"""The measurements: what is started, what is sent, and which figures come out.

Each function measures one contestant once and returns figures by name; `bench.__main__` repeats and compares.
CPU is read from the kernel before and after, so it is the figure that compares on a machine others use too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.contestant import CHAIN, FAN, Contestant, Crowd, Tree
from bench.harness import BenchError, Fleet, Process, wait_until

Figures = dict[str, float]
WARM_UP_DELIVERIES = 10_000
PROBE_SILENCE_S = 0.3  # a path that takes longer than this is tried again
SILENCE_S = 3.0  # after so long without an event the missing ones are lost


@dataclass(frozen=True)
class Load:
    """Who publishes what to whom. Publishers sit at the first router."""

    size: int = 100
    tree: Tree = CHAIN
    publishers: int = 1
    connections_per_publisher: int = 1
    subscribers_at: tuple[int, ...] = (2,)
    connections_per_subscriber: int = 1
    seconds: float = 2.0  # how long one measured burst should take

    @property
    def copies(self) -> int:
        """Deliveries that one event causes."""
        return len(self.subscribers_at) * self.connections_per_subscriber


@dataclass(frozen=True)
class Scenario:
    """A title, the contestants it is for, and how to measure one of them."""

    title: str
    contestants: tuple[str, ...]
    measure: Callable[[Any], Figures]
    compare: tuple[str, ...]  # figures shown as a ratio to the baseline's too
    restarts: bool = True  # False: one start is so dear that the rounds happen inside it


def open_client(
    fleet: Fleet, contestant: Contestant, role: str, router: int, kind: str, connections: int = 1
) -> Process:
    endpoint = contestant.endpoint(router, kind)
    return fleet.python(role, "bench.client", type(contestant).__module__, kind, endpoint, str(connections))


def answered(process: Process, limit_s: float = 90.0) -> dict[str, Any]:
    answer = process.must_hear(limit_s)
    if "error" in answer:
        raise BenchError(f"{process.role}: {answer['error']}")
    return answer


def burst(
    pubs: Sequence[Process], subs: Sequence[Process], each: int, size: int, silence_s: float
) -> tuple[int, float]:
    """Each publisher process sends `each` events; return deliveries and seconds from first call to last arrival."""
    for sub in subs:
        sub.tell({"receive": each * len(pubs), "size": size, "silence_s": silence_s})
    for pub in pubs:
        pub.tell({"send": each, "size": size})
    sent, received = [answered(pub) for pub in pubs], [answered(sub) for sub in subs]
    seconds = max(answer["end"] for answer in received) - min(answer["start"] for answer in sent)
    return sum(answer["received"] for answer in received), seconds


def wait_path(pubs: Sequence[Process], subs: Sequence[Process], load: Load) -> None:
    """Return once an event of every publisher reaches every subscriber; each attempt has a size of its own."""
    expected = load.connections_per_publisher * len(pubs) * load.copies
    for attempt in range(1, min(load.size, 60)):
        if burst(pubs, subs, load.connections_per_publisher, attempt, PROBE_SILENCE_S)[0] == expected:
            return
    raise BenchError("the subscribers never heard all publishers")


def throughput(contestant: Contestant, load: Load) -> Figures:
    """Events per second and CPU per event, with nothing lost."""
    with Fleet() as fleet:
        contestant.start(fleet, load.tree)
        subs = [
            open_client(fleet, contestant, f"subscriber {n}", router, "Subscriber", load.connections_per_subscriber)
            for n, router in enumerate(load.subscribers_at, 1)
        ]
        pubs = [
            open_client(fleet, contestant, f"publisher {n}", 0, "Publisher", load.connections_per_publisher)
            for n in range(1, load.publishers + 1)
        ]
        for client in (*subs, *pubs):
            answered(client)
        wait_path(pubs, subs, load)

        warm_up = WARM_UP_DELIVERIES // load.copies // load.publishers
        _, warm_up_s = burst(pubs, subs, warm_up, load.size, SILENCE_S)
        each = int(warm_up / warm_up_s * load.seconds)
        before = fleet.cpu_by_role()
        delivered, seconds = burst(pubs, subs, each, load.size, SILENCE_S)
        after = fleet.cpu_by_role()

        wanted = each * load.publishers * load.copies
        micros = {role: (after[role] - before[role]) / wanted * 1e6 for role in after}
        hops = contestant.hops(load.tree) if load.copies == 1 else 1
        return {
            "deliveries/s": delivered / seconds,
            "lost": wanted - delivered,
            "pub us": micros["publisher"],
            "router us/hop": micros["router"] / hops,
            "sub us": micros["subscriber"],
            "all us": sum(micros.values()),
            "routers MiB": fleet.memory_by_role("Rss")["router"],
        }


def latency(contestant: Contestant, bulk: Load | None, seconds: float) -> Figures:
    """Round trips of request and answer through the chain, one at a time; `bulk` streams over the chain meanwhile."""
    with Fleet() as fleet:
        contestant.start(fleet, CHAIN)
        answerer = open_client(fleet, contestant, "answerer", 2, "Answerer")
        requester = open_client(fleet, contestant, "requester", 0, "Requester")
        answered(answerer)
        answered(requester)

        def is_warm() -> bool:
            requester.tell({"ask_s": 0.3, "size": 100})
            return "error" not in requester.must_hear()

        wait_until(is_warm, "a first answer through the chain", every_s=0.05)
        streamed = 0.0
        if bulk is not None:
            sub = open_client(fleet, contestant, "subscriber", 2, "Subscriber")
            pub = open_client(fleet, contestant, "publisher", 0, "Publisher")
            answered(sub)
            answered(pub)
            wait_path([pub], [sub], bulk)
            sub.tell({"receive": 1 << 40, "size": bulk.size, "silence_s": SILENCE_S})
            pub.tell({"stream_s": seconds + 0.5, "size": bulk.size})
        before = fleet.cpu_by_role()["router"]
        requester.tell({"ask_s": seconds, "size": 100})
        latencies = sorted(answered(requester)["latencies"])
        router_s = fleet.cpu_by_role()["router"] - before
        if bulk is not None:
            answer = answered(pub)
            streamed = answer["sent"] / answer["seconds"]
        figures = {
            "p50 us": latencies[len(latencies) // 2] * 1e6,
            "p99 us": latencies[len(latencies) * 99 // 100] * 1e6,
            "requests": len(latencies),
        }
        if bulk is None:
            return figures | {"router us/hop": router_s / len(latencies) / contestant.hops(CHAIN) * 1e6}
        return figures | {"stream/s": streamed}


def crowd(contestant: Crowd, operations: Sequence[str], nodes: int = 20, repeats: int = 3) -> Figures:
    """Median time of each operation over all nodes, and what a node weighs."""
    with Fleet() as fleet:
        contestant.start(fleet, nodes)
        fleet.wait_quiet()
        memory = {f"{field} MiB/node": fleet.memory_by_role(field)["node"] / nodes for field in ("Rss", "Pss")}
        can = contestant.operations()
        timings = {f"{name} ms": statistics.median(can[name]() for _ in range(repeats)) * 1e3 for name in operations}
        return timings | memory


def forest(contestant: Any, nodes: int = 111) -> Figures:
    """What many nodes on one machine take, and how soon they act together."""
    with Fleet() as fleet:
        begun = time.monotonic()
        contestant.start(fleet, nodes)
        figures = {"up s": time.monotonic() - begun}
        before = sum(fleet.cpu_by_role().values())
        time.sleep(5.0)  # the window over which the idle tree is measured
        figures["idle core %/node"] = (sum(fleet.cpu_by_role().values()) - before) / 5.0 / nodes * 100
        figures["Pss MiB/node"] = fleet.memory_by_role("Pss")["node"] / nodes
        can = contestant.operations()
        for name, repeats in (("ping", 20), ("exec", 10), ("fork/exec alone", 10), ("event", 20)):
            figures[f"{name} p50 ms"] = statistics.median(can[name]() for _ in range(repeats)) * 1e3
        killed = sorted(can["killed known"]() * 1e3 for _ in range(20))
        stopped = [can["stopped known"]() * 1e3 for _ in range(3)]
        return figures | {
            "killed p50 ms": statistics.median(killed),
            "killed max of 20 ms": killed[-1],
            "router knows p50 ms": statistics.median(contestant.known_to_router) * 1e3,
            "router knows max ms": max(contestant.known_to_router) * 1e3,
            "stopped max of 3 ms": max(stopped),
        }


def idle(contestant: Contestant, seconds: float = 20.0) -> Figures:
    """What a router takes when nothing happens."""
    with Fleet() as fleet:
        contestant.start(fleet, CHAIN)
        time.sleep(3.0)  # until the links stand
        before = fleet.cpu_by_role()["router"]
        time.sleep(seconds)
        used = fleet.cpu_by_role()["router"] - before
        memory = {f"router {field} MiB": fleet.memory_by_role(field)["router"] / len(CHAIN) for field in ("Rss", "Pss")}
        return {"router core %": used / seconds / len(CHAIN) * 100} | memory


def promises(contestant: Any) -> Figures:
    """For what only we measure: the contestant knows how."""
    figures: Figures = contestant.measure()
    return figures


def streams(title: str, load: Load) -> Scenario:
    buses = ("ours", "zmq.proxy", "zmq.proxy-1frame", "nats", "redis", "mosquitto")
    return Scenario(f"{title}, {load.size} B", buses, partial(throughput, load=load), ("deliveries/s", "all us"))


def asks(title: str, bulk: Load | None, seconds: float) -> Scenario:
    measure = partial(latency, bulk=bulk, seconds=seconds)
    return Scenario(title, ("ours", "zmq.proxy", "nats"), measure, ("p50 us", "p99 us"))


def crowds(title: str, peer: str, operations: tuple[str, ...]) -> Scenario:
    compare = tuple(f"{name} ms" for name in operations)
    return Scenario(title, ("ours-crowd", peer), partial(crowd, operations=operations), compare, restarts=False)


def balancing(title: str, kind: str, contestants: tuple[str, ...]) -> Scenario:
    """What the balancer does on a host of its own."""
    return Scenario(title, contestants, lambda contestant: contestant.measure(kind), ())


HOSTS = ("nftables", "ipvs-uml")
WAYS = (
    *(f"{host}{way}" for host in HOSTS for way in (" drain", " stop", " kill")),
    *("swarm-uml stop", "swarm-uml scale"),
)


def watching(contestant: Any, awake: int) -> Figures:
    """What one who watches containers takes; the containers are the same for all."""
    figures: Figures = contestant.measure(awake)
    return figures


def watchers(title: str, awake: int) -> Scenario:
    all_of_them = (
        "nobody",
        "ours-statistics",
        "ours-monitor",
        "ours-unwatched",
        "docker-stats",
        "docker-py",
        "glances",
    )
    return Scenario(title, all_of_them, partial(watching, awake=awake), ())


SCENARIOS: dict[str, list[Scenario]] = {
    "throughput": [
        streams("one publisher, one subscriber, three hops", Load()),
        streams("one publisher, one subscriber, three hops", Load(size=4096)),
    ],
    "publishers": [
        streams(
            "50 publishers in 5 processes, one subscriber, three hops", Load(publishers=5, connections_per_publisher=10)
        )
    ],
    "fanout": [
        streams(
            "one publisher at the root, 100 subscribers on four leaves (us per delivery)",
            Load(tree=FAN, subscribers_at=(1, 2, 3, 4), connections_per_subscriber=25),
        )
    ],
    "latency": [
        asks("request and answer, three hops, idle", None, 2.0),
        asks("request and answer, three hops, beside a 4 KiB stream", Load(size=4096), 4.0),
    ],
    "idle": [Scenario("an idle chain of three", ("ours", "nats", "redis", "mosquitto"), idle, ())],
    "stopped": [Scenario("1 GB of events for a stopped child", ("ours-stopped",), promises, ())],
    "commands": [Scenario("commands from start to exit", ("ours-commands",), promises, ())],
    "container-events": [Scenario("engine's event to the root, three hops", ("ours-container-events",), promises, ())],
    "container-list": [
        Scenario("50 nodes with 20 containers each, from start to exit", ("ours-container-list",), promises, ())
    ],
    "balancer-events": [balancing("engine's event to the table changed, here and one hop above", "events", HOSTS)],
    "balancer-large": [balancing("100 services with 50 servers each", "large", HOSTS)],
    "balancer-floors": [balancing("what the hosts take for the smallest things", "floors", HOSTS)],
    "balancer-stop": [balancing("one of three containers stopped under load, five times", "stop", WAYS)],
    "ssh": [Scenario("40 servers: log in, probe, 4 MiB, a script", ("ours-ssh", "openssh"), promises, ())],
    "slow-servers": [Scenario("200 slow servers at the same time", ("ours-slow",), promises, ())],
    "provision": [Scenario("8 servers made into nodes, twice", ("ours-build", "pyinfra", "ansible"), promises, ())],
    "statistics": [watchers("200 containers watched, 20 of them awake each second", awake=20)],
    "statistics-idle": [watchers("200 idle containers watched", awake=0)],
    "dashboard": [Scenario("111 nodes with 18 containers each, watched", ("ours-dashboard",), promises, ())],
    "dashboard-pages": [Scenario("the same with five pages, then closed", ("ours-dashboard-pages",), promises, ())],
    "forest": [Scenario("111 nodes on this machine, a 10-10 tree", ("ours-forest",), forest, (), restarts=False)],
    "salt": [crowds("20 nodes told to answer and to run /bin/true", "salt", ("ping", "exec"))],
    "serf": [crowds("20 nodes: event to the last handler, killed node known", "serf", ("event", "killed known"))],
}
