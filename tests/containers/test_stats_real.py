"""The statistics of real containers of a real engine, next to what that engine says of them."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from dockerd import Dockerd
from waiting import wait

from tsbus.containers.cgroup import Cgroups, Gone, MachineMeter, Meter, Unreadable
from tsbus.containers.sampler import Depth, Reading, reading_of, sample
from tsbus.containers.stats import UNSEEN_S, Statistics
from tsbus.records import Sample, StatsEvent

LIMIT_S = 60.0
IN_GUEST = "UML" in os.environ
IMAGE = "busybox:lab" if IN_GUEST else "box:1"
MIB = 1 << 20

LOAD = """
dd if=/dev/zero of=/tmp/held bs=1M count=12 2>/dev/null
while :; do :; done &
while :; do
  dd if=/dev/zero of=/tmp/file bs=64k count=16 conv=fsync 2>/dev/null
  dd if=/tmp/file of=/dev/null bs=64k iflag=direct 2>/dev/null
  nc -w 1 $GATEWAY 9 </dev/null 2>/dev/null
done
"""
"""Takes all the CPU that it may have, and does a little of everything else."""


MOUNTING = """
for each in $0; do
  mkdir "$1/$each"
  mount -t cgroup -o "$each" cgroup "$1/$each"
done
shift
exec "$@"
"""


def unseen_hierarchies() -> list[str]:
    """What this kernel has of cgroups v1, if they are in use here, that is not mounted here."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup " in line]
    seen = {option for words in mounts for option in words[-1].split(",")}
    every = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()[1:]} if seen else set()
    unseen = every - seen
    both = {"net_cls", "net_prio"}  # everybody mounts these two together
    return sorted([*(unseen - both), *([",".join(sorted(both))] if both <= unseen else [])])


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine of the guest, or one of this run.

    An engine counts nothing as soon as there are cgroups v1 that it does not see, as when another engine of the machine
    mounts some for itself. So where some are not mounted it gets a mount namespace of its own with them.
    """
    if IN_GUEST:
        yield os.environ["DOCKER_HOST"]
    elif not (unseen := unseen_hierarchies()):
        yield request.getfixturevalue("dockerd").host
    else:
        with tempfile.TemporaryDirectory(prefix="ts-") as folder:
            own = Dockerd(through=("unshare", "--mount", "sh", "-ec", MOUNTING, " ".join(unseen), folder))
            try:
                own.start()
                own.image(IMAGE)
                yield own.host
            finally:
                own.stop()


@pytest.fixture(scope="module")
def engine(host: str) -> Iterator[docker.APIClient]:
    """A client of the engine."""
    client = docker.APIClient(host, version="auto", timeout=60)
    yield client
    client.close()


class Boxes:
    """Starts containers, and removes them after the test."""

    def __init__(self, engine: docker.APIClient) -> None:
        self.engine = engine
        self._ids: list[str] = []

    def run(self, script: str, environment: dict[str, str] | None = None, **limits: Any) -> str:
        """Start a container that runs `script`, with `limits` as in the engine's HostConfig. Returns its id."""
        config = self.engine.create_host_config(**limits)
        command = ["sh", "-c", script]
        made = self.engine.create_container(IMAGE, command, host_config=config, environment=environment)
        self._ids.append(made["Id"])
        self.engine.start(made["Id"])
        return made["Id"]

    def pid(self, container: str) -> int:
        """Of its first process."""
        return self.engine.inspect_container(container)["State"]["Pid"]

    def running(self, *containers: str) -> dict[str, int]:
        """As Statistics wants it."""
        return {container: self.pid(container) for container in containers}

    def remove(self) -> None:
        for container in self._ids:
            self.engine.remove_container(container, force=True, v=True)


@pytest.fixture
def boxes(engine: docker.APIClient) -> Iterator[Boxes]:
    made = Boxes(engine)
    yield made
    made.remove()


def disk_of(path: str) -> str | None:
    """The disk that `path` is on; None if it is on none."""
    device = Path(path).stat().st_dev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not place.exists():
        return None
    place = place.resolve()
    return f"/dev/{(place.parent if (place / 'partition').exists() else place).name}"


@pytest.fixture(scope="module")
def loaded(engine: docker.APIClient) -> Iterator[tuple[str, int]]:
    """A container that does all that is counted, and its process."""
    made = Boxes(engine)
    gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]
    address = gateway.get("Gateway") or gateway["Subnet"].partition("/")[0]
    limits = {"cpu_period": 100_000, "cpu_quota": 50_000, "mem_limit": "64m", "pids_limit": 50}
    if disk := disk_of(engine.info()["DockerRootDir"]):
        # Recent kernels count the blocks of v1 only where there is a limit.
        limits["device_write_bps"] = [{"Path": disk, "Rate": 1 << 40}]
    box = made.run(LOAD, {"GATEWAY": address}, **limits)
    yield box, made.pid(box)
    made.remove()


@pytest.fixture
def cgroups() -> Cgroups:
    return Cgroups()


def rounds(statistics: Statistics, running: dict[str, int], until: Callable[[list[StatsEvent]], Any]) -> Any:
    """Hold rounds until the events of one satisfy `until`; return what that returned."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        time.sleep(statistics.wait_s())
        if found := until(statistics.round(running)):
            return found
    raise AssertionError(f"no such event within {LIMIT_S:g} s")


def of(container: str) -> Callable[[list[StatsEvent]], Sample | None]:
    """For `rounds`: the figures of `container`."""
    return lambda events: next((e.samples[container[:12]] for e in events if container[:12] in e.samples), None)


def open_files() -> set[str]:
    """The files of cgroups and networks that this process holds."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if "/cgroup/" in target or target.endswith("net/dev"):
            found.add(f"{entry.name} {target}")
    return found


def test_the_machine_itself():
    """Without any container the event says how many CPUs this machine has, and what they do while one is busy."""
    busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        (event,) = asyncio.run(Statistics("n").sample_now({}))
    finally:
        busy.kill()
        busy.wait()
    assert event.cpus == os.cpu_count()
    assert 0 < event.cpu <= 100 * event.cpus


def test_memory_agrees_with_docker_stats(engine, boxes, cgroups):
    """Memory of a container that holds some and has files in the cache is what the engine says, to 2 percent."""
    script = (
        "dd if=/dev/zero of=/hold/it bs=1M count=24 2>/dev/null; "
        "dd if=/dev/zero of=/tmp/cached bs=1M count=16 2>/dev/null; exec sleep 1000"
    )
    box = boxes.run(script, tmpfs={"/hold": "size=32m"})
    pid = boxes.pid(box)
    wait("the files", lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"), LIMIT_S)
    meter, machine = Meter(box, pid, cgroups), MachineMeter()
    wait("memory in use", lambda: meter.read().memory > 24 * MIB, LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while True:
        stats = engine.stats(box, stream=False)["memory_stats"]
        kinds = stats["stats"]
        theirs = stats["usage"] - kinds.get("total_inactive_file", kinds["inactive_file"])
        ours = sample(None, Reading(meter.read(), machine.read()))
        if abs(ours.memory - theirs) <= 0.02 * theirs:
            break
        assert time.monotonic() < deadline, (ours, stats)
    meter.close()
    assert ours.memory > 24 * MIB
    if not IN_GUEST:  # there the cached file is in memory for good
        assert ours.memory < 34 * MIB
    assert ours.memory_limit == stats["limit"] == machine.read().memory
    assert ours.pids_limit == 0
    machine.close()


def test_the_network_of_the_machine_does_not_count(engine, boxes, cgroups):
    """A container in the machine's network has no network figures, as the engine has none for it."""
    box = boxes.run("sleep 1000", network_mode="host")
    meter = Meter(box, boxes.pid(box), cgroups)
    counters = meter.read()
    meter.close()
    assert (counters.net_rx, counters.net_tx) == (0, 0)
    assert "networks" not in engine.stats(box, stream=False)


def test_kills_for_want_of_memory_are_counted(boxes, cgroups):
    """Each process that the kernel kills because the container is out of memory shows in the figures."""
    script = "while :; do dd if=/dev/zero of=/dev/null bs=48M count=1 2>/dev/null; sleep 0.05; done"
    box = boxes.run(script, mem_limit="16m", memswap_limit="16m")
    meter = Meter(box, boxes.pid(box), cgroups)
    wait("two kills", lambda: meter.read().oom_kills >= 2, LIMIT_S)
    meter.close()


def test_rounds_follow_a_container_to_its_end(boxes):
    """A container is told with its CPU, then only when something changes, then as gone; in the end no file is open."""
    idle, busy = boxes.run("sleep 1000"), boxes.run("while :; do :; done", cpu_period=100_000, cpu_quota=20_000)
    held = open_files()
    statistics, running = Statistics("n1"), boxes.running(idle, busy)
    statistics.begin()
    first = rounds(statistics, running, lambda events: events)[0]
    assert first.full
    assert first.source == "kernel"
    assert set(first.samples) == {idle[:12], busy[:12]}
    assert first.samples[busy[:12]].cpu > 0
    assert first.samples[idle[:12]].pids == 1
    changed = rounds(statistics, running, lambda events: events)[0]
    assert not changed.full
    assert set(changed.samples) == {busy[:12]}
    assert open_files() > held

    boxes.engine.kill(busy)
    boxes.engine.wait(busy)
    # The news of its end is not here yet: the files themselves say so, and it is not looked for again.
    gone = rounds(statistics, running, lambda events: [event for event in events if event.gone])[0]
    assert gone.gone == (busy[:12],)
    rounds(statistics, running, lambda events: events)
    assert statistics.counts().metered == 1
    rounds(statistics, {}, lambda events: [event for event in events if event.gone == (idle[:12],)])
    statistics.end()
    assert open_files() == held
    assert statistics.round(running) == []
    assert statistics.counts().unreadable == 0


def paused(engine: docker.APIClient, container: str) -> bool:
    """Pause it; runc gives up when its processes, which wait for their share of the CPU, do not freeze at once."""
    with contextlib.suppress(docker.errors.APIError):
        engine.pause(container)
        return True
    return False


def test_a_paused_container_uses_nothing(boxes):
    """A paused container stays in the statistics, with no CPU, and has some again when it goes on."""
    box = boxes.run("while :; do :; done", cpu_period=100_000, cpu_quota=20_000)
    statistics, running = Statistics("n1"), boxes.running(box)
    statistics.begin()
    assert rounds(statistics, running, of(box)).cpu > 0
    wait("it is paused", lambda: paused(boxes.engine, box), LIMIT_S)
    rounds(statistics, running, lambda events: (now := of(box)(events)) and now.cpu == 0)
    boxes.engine.unpause(box)
    rounds(statistics, running, lambda events: (now := of(box)(events)) and now.cpu > 0)
    statistics.end()


def test_a_restarted_container_is_read_anew(boxes):
    """After a restart the counters are those of the new run, found at its new process."""
    box = boxes.run("while :; do :; done", cpu_period=100_000, cpu_quota=20_000)
    statistics = Statistics("n1")
    statistics.begin()
    rounds(statistics, boxes.running(box), of(box))
    boxes.engine.restart(box, timeout=0)
    running = boxes.running(box)
    again = rounds(statistics, running, of(box))
    assert 0 < again.cpu < 100
    (event,) = asyncio.run(statistics.sample_now(running))
    assert set(event.samples) == {box[:12]}
    assert event.gone == ()
    statistics.end()


async def test_a_sample_can_be_asked_for_at_any_time(boxes):
    """Without rounds a sample takes a moment and leaves no file open; many askers at once cost no more than one."""
    box = boxes.run("while :; do :; done", cpu_period=100_000, cpu_quota=20_000)
    held = open_files()
    statistics, running = Statistics("n1"), boxes.running(box)
    answers = await asyncio.gather(*(statistics.sample_now(running) for _ in range(20)))
    for (event,) in answers:
        assert event.full
        assert event.samples[box[:12]].cpu > 0
    assert statistics.counts().readings == 2
    assert open_files() == held


def test_without_descriptors_files_are_opened_each_time(boxes, cgroups):
    """Where no descriptors may be held, the same is read, and the end of the container is noticed as well."""
    box = boxes.run("dd if=/dev/zero of=/tmp/held bs=1M count=2 2>/dev/null; exec sleep 1000", pids_limit=20)
    pid = boxes.pid(box)
    held = open_files()
    cgroups.may_hold = 5
    poor = Meter(box, pid, cgroups)
    assert poor.held == 0
    assert open_files() == held
    rich = Meter(box, pid, Cgroups())
    assert rich.held > 5
    wait("the same counters", lambda: poor.read() == rich.read(), LIMIT_S)
    assert poor.probe() == rich.probe()
    boxes.engine.kill(box)
    boxes.engine.wait(box)
    for meter in (poor, rich):
        wait("its end", lambda meter=meter: meter.probe() is None, LIMIT_S)
        assert meter.read(Depth.ALL) is None
        meter.close()
    assert open_files() == held


def test_a_strange_process_is_refused(boxes, cgroups):
    """A number that is now another process's, or nobody's, is never taken for the container."""
    box = boxes.run("sleep 1000")
    held = open_files()
    with pytest.raises(Unreadable, match="--pid=host"):
        Meter(box, os.getpid(), cgroups)
    with pytest.raises(Gone):
        Meter(box, 2**22 + 1, cgroups)
    assert open_files() == held


async def test_the_engine_is_asked_where_the_kernel_is_silent(engine, boxes):
    """A container whose process is not seen is unreadable after a while; then the engine's own statistics are told."""
    box = boxes.run("while :; do :; done", cpu_period=100_000, cpu_quota=20_000)
    running = {box: 2**22 + 1}
    now_s = 100.0
    statistics = Statistics("n1", clock=lambda: now_s)
    statistics.begin()
    assert statistics.round(running) == []
    assert not statistics.unreadable
    now_s += UNSEEN_S
    statistics.round(running)
    assert "is seen here" in statistics.unreadable[box]
    for _ in range(2):
        now_s += 1
        events = statistics.round(running, {box: reading_of(engine.stats(box, stream=False))})
    assert events[-1].source == "engine"
    assert events[-1].samples[box[:12]].cpu > 0

    async def ask(ids):
        return {one: reading_of(engine.stats(one, stream=False)) for one in ids}

    now_s += 1
    (event,) = await statistics.sample_now(running, ask)
    assert event.source == "engine"
    statistics.end()


def test_our_totals_enclose_the_engines(engine, loaded, cgroups):
    """Every counter that only grows lies, in the engine's statistics, between our readings before and after them."""
    box, pid = loaded
    meter, machine = Meter(box, pid, cgroups), MachineMeter()
    counted = ["cpu_ns", "throttled_ns", "net_rx", "net_tx"]
    if disk_of(engine.info()["DockerRootDir"]):
        counted += ["block_read", "block_write"]
    for counter in counted:
        wait(counter, lambda counter=counter: getattr(meter.read(), counter), LIMIT_S)
    before, machine_before = meter.read(), machine.read()
    told = reading_of(engine.stats(box, stream=False))
    after, machine_after = meter.read(), machine.read()
    meter.close()
    machine.close()
    for counter in counted:
        assert getattr(before, counter) <= getattr(told.counters, counter) <= getattr(after, counter), counter
    assert machine_before.cpu_ns <= told.machine.cpu_ns <= machine_after.cpu_ns
    assert machine_before.cpus == told.machine.cpus
    assert (before.memory_limit, before.pids_limit) == (told.counters.memory_limit, told.counters.pids_limit)
    assert before.memory_limit == 64 * MIB
    assert before.pids_limit == 50


def as_the_command_line(stats: dict[str, Any]) -> float:
    """CPU percent as `docker stats` computes it from one message of the engine's stream."""
    now, then = stats["cpu_stats"], stats["precpu_stats"]
    cpu = now["cpu_usage"]["total_usage"] - then["cpu_usage"]["total_usage"]
    system = now["system_cpu_usage"] - then["system_cpu_usage"]
    return cpu / system * now["online_cpus"] * 100


def test_cpu_agrees_with_docker_stats(engine, loaded, cgroups):
    """Our CPU figure over the engine's interval is the engine's own, to 2 percent of it."""
    box, pid = loaded
    meter, machine = Meter(box, pid, cgroups), MachineMeter()
    pairs = []
    ours = None
    for number, stats in enumerate(engine.stats(box, decode=True)):
        # The engine has just read: our readings lie behind its own by the same little time, when nobody holds us up.
        before, ours = ours, Reading(meter.read(), machine.read())
        if "system_cpu_usage" in stats["precpu_stats"] and before:
            pairs.append((as_the_command_line(stats), sample(before, ours).cpu))
            if abs(pairs[-1][0] - pairs[-1][1]) <= 0.02 * pairs[-1][0]:
                break
        assert number < 20, (pairs, stats)
    meter.close()
    machine.close()
    # At most what its quota gives it, half a core.
    assert 2 < pairs[-1][1] < 75


def test_names_of_mounts_may_be_any_bytes(tmp_path):
    """A mount whose name is no UTF-8, as of a disk from elsewhere, keeps nobody from reading cgroups."""
    script = 'mkdir "$0"; mount -t tmpfs none "$0"; exec "$@"'
    code = "from tsbus.containers.cgroup import Cgroups; print(len(Cgroups().mounts))"
    argv = ["unshare", "--mount", "sh", "-ec", script, bytes(tmp_path) + b"/caf\xe9", sys.executable, "-c", code]
    assert int(subprocess.run(argv, check=True, capture_output=True).stdout) == len(Cgroups().mounts)
