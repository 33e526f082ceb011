"""The kernel's files: where those of a container are, and what they say. The texts are recorded from real machines."""

import pytest

from tsbus.containers import kernel
from tsbus.containers.kernel import Home, NotHere, find_home, parse_mounts

ID = "6d9b988de295a6c9b95e61dfc5ddcc04aa727d592d3e39b9b92b2a0f0dca3ee5"

V2_MOUNTS = parse_mounts("22 18 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
HYBRID_MOUNTS = parse_mounts(
    """\
23 1 254:0 / / rw,noatime - ext4 /dev/root rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"/docker/{ID}", f"/docker/{ID}"),
        (f"/system.slice/docker-{ID}.scope", f"/system.slice/docker-{ID}.scope"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"/machine.slice/libpod-{ID}.scope"),
        (f"/docker/{ID}/init.scope", f"/docker/{ID}"),
        (f"/shop.slice/docker-{ID}.scope (deleted)", f"/shop.slice/docker-{ID}.scope"),
    ],
)
def test_the_directory_is_that_with_the_id_in_its_name(path, found):
    """Whatever the driver calls it, a container's cgroup is found, and no deeper one that was made inside."""
    home = find_home(f"0::{path}\n", V2_MOUNTS, ID)
    assert home == Home({}, f"/sys/fs/cgroup{found}", "/sys/fs/cgroup")


def test_a_hybrid_machine_has_some_controllers_in_v1():
    """Controllers are found where each is mounted, two that share a mount too, and the unified hierarchy besides."""
    lines = ["9:name=systemd", "8:pids", "7:blkio", "4:memory", "3:cpuset", "2:cpu,cpuacct", "0:"]
    home = find_home("".join(f"{line}:/docker/{ID}\n" for line in lines), HYBRID_MOUNTS, ID)
    assert home.v2 == f"/sys/fs/cgroup/unified/docker/{ID}"
    assert home.v1["cpuacct"] == home.v1["cpu"] == f"/sys/fs/cgroup/cpu,cpuacct/docker/{ID}"
    assert home.v1["memory"] == f"/sys/fs/cgroup/memory/docker/{ID}"
    assert "cpuset" not in home.v1
    first = {name: next(iter(kernel.paths(home, sources)))[0] for name, sources in kernel.FIGURES.items()}
    assert first["cpu_ns"].endswith("/cpuacct.usage")
    assert first["memory"].endswith("/memory.usage_in_bytes")


def test_an_engine_inside_a_container_is_followed():
    """Where only a part of the cgroups is mounted, as inside a container, paths are taken relative to it."""
    outer = "f" * 64
    mounts = parse_mounts(f"35 31 0:32 /docker/{outer} /sys/fs/cgroup/memory\\040here ro - cgroup cgroup rw,memory\n")
    home = find_home(f"4:memory:/docker/{outer}/docker/{ID}\n", mounts, ID)
    assert home.v1["memory"] == f"/sys/fs/cgroup/memory here/docker/{ID}"


def test_a_cgroup_namespace_with_the_whole_mount_is_seen_through():
    """A process that entered a cgroup namespace and kept the old mount sees paths that climb, and the mount too."""
    mounts = parse_mounts("41 31 0:38 /.. /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n")
    assert find_home(f"0::/../docker/{ID}\n", mounts, ID).v2 == f"/sys/fs/cgroup/docker/{ID}"


@pytest.mark.parametrize(
    ("membership", "mounts", "reason"),
    [
        (f"0::/../{ID}\n", V2_MOUNTS, "--cgroupns=host"),
        ("0::/system.slice/ssh.service\n", V2_MOUNTS, "--pid=host"),
        (f"0::/docker/{ID}\n", (), "mount its /sys/fs/cgroup"),
        (f"4:memory:/docker/{ID}\n", V2_MOUNTS, "mount its /sys/fs/cgroup"),
        ("", V2_MOUNTS, "--pid=host"),
    ],
)
def test_what_cannot_be_found_is_explained(membership, mounts, reason):
    """A container that cannot be found gives an error that says what to do."""
    with pytest.raises(NotHere, match=reason):
        find_home(membership, mounts, ID)


CPU_STAT_V2 = b"""\
usage_usec 5930000
user_usec 5879745
system_usec 50254
nr_periods 113
nr_throttled 4
throttled_usec 120000
"""
MEMORY_EVENTS = b"low 0\nhigh 0\nmax 31\noom 3\noom_kill 2\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("figure", "file", "text", "value"),
    [
        ("cpu_ns", "cpuacct.usage", b"165151667\n", 165151667),
        ("cpu_ns", "cpu.stat", CPU_STAT_V2, 5_930_000_000),
        ("throttled_ns", "cpu.stat", b"nr_periods 4\nnr_throttled 1\nthrottled_time 40785873\nnr_bursts 0\n", 40785873),
        ("memory", "memory.usage_in_bytes", b"802816\n", 802816),
        ("memory", "memory.current", b"765952\n", 765952),
        ("inactive_file", "memory.stat", b"inactive_file 7\ntotal_cache 0\ntotal_inactive_file 4096\n", 4096),
        ("memory_limit", "memory.stat", b"cache 0\nhierarchical_memory_limit 67108864\ntotal_cache 0\n", 67108864),
        ("memory_limit", "memory.stat", b"hierarchical_memory_limit 9223372036854771712\n", 0),
        ("oom_kills", "memory.oom_control", b"oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("oom_kills", "memory.oom_control", b"oom_kill_disable 0\nunder_oom 0\n", 0),
        ("oom_kills", "memory.events", MEMORY_EVENTS, 2),
        ("pids", "pids.current", b"17\n", 17),
    ],
)
def test_single_numbers_are_read(figure, file, text, value):
    """Each figure that is one number is read from the file of v1, and of v2."""
    sources = [source for source in kernel.FIGURES[figure] if source.file == file]
    assert sources[0].parse(text) == value


def test_throttling_of_v2_is_in_nanoseconds():
    """In v2 times are microseconds, and of each line's name the whole counts."""
    assert kernel.FIGURES["throttled_ns"][1].parse(CPU_STAT_V2) == 120_000_000
    assert kernel.FIGURES["inactive_file"][1].parse(b"anon 57344\ninactive_file 196608") == 196608


@pytest.mark.parametrize(("text", "value"), [(b"max\n", 0), (b"50\n", 50), (b"9223372036854771712\n", 0)])
def test_no_limit_is_0(text, value):
    """A limit is a number, and both words of the kernel for none are 0."""
    assert kernel.limit(text) == value


def test_limits_of_v2_hold_from_the_top_down():
    """Of v2 the memory limits of all cgroups above a container are looked at, and its own limit of processes."""
    home = find_home(f"0::/shop.slice/docker-{ID}.scope\n", V2_MOUNTS, ID)
    assert [(name, path) for name, path, _ in kernel.limit_paths(home)] == [
        ("pids_limit", f"{home.v2}/pids.max"),
        ("memory_limit", f"{home.v2}/memory.max"),
        ("memory_limit", "/sys/fs/cgroup/shop.slice/memory.max"),
    ]


def test_blocks_are_summed_over_devices():
    """Bytes read and written are those of all devices, without the lines of totals and of other operations."""
    v1 = b"8:0 Read 100\n8:0 Write 20\n8:0 Sync 3\n8:0 Total 123\n254:0 Read 1\n254:0 Write 2\nTotal 126\n"
    assert kernel.blocks_v1(v1) == (101, 22)
    assert kernel.blocks_v1(b"Total 0\n") == (0, 0)
    v2 = b"8:0 rbytes=100 wbytes=20 rios=1 wios=2 dbytes=7 dios=1\n254:16 \n7:0 rbytes=1 wbytes=2 rios=1 wios=1\n"
    assert kernel.blocks_v2(v2) == (101, 22)
    assert kernel.blocks_v2(b"") == (0, 0)


NET_HEAD = b"""\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo:  999      12    0    0    0     0          0         0  999       0    0    0    0     0       0          0
"""


def test_the_network_is_what_the_engine_made():
    """Interfaces count without lo, and where the engine made some, without what the container made itself."""
    eth0 = (
        b"  eth0:    1112      12    0    0    0     0          0         0   30       0    0    0    0     0   0   0\n"
    )
    eth1 = b"  eth1:8       1    0    0    0     0          0         0   2       0    0    0    0     0       0   0\n"
    inner = (
        b"docker0:    5      12    0    0    0     0          0         0   6       0    0    0    0     0   0   0\n"
    )
    assert kernel.network(NET_HEAD) == (0, 0)
    assert kernel.network(NET_HEAD + eth0 + eth1) == (1120, 32)
    assert kernel.network(NET_HEAD + inner + eth0) == (1112, 30)
    assert kernel.network(NET_HEAD + inner) == (5, 6)


def test_pressure_is_that_of_the_last_ten_seconds():
    """Of a pressure file the share of time counts in which some process waited, over 10 s."""
    text = (
        b"some avg10=43.15 avg60=39.85 avg300=12.00 total=157622151\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1\n"
    )
    assert kernel.stalled(text) == 43.15


def test_the_machine_is_summed_as_docker_does():
    """The machine's CPU time is user to softirq, idle and in use, without steal and guests; CPUs online are counted."""
    stat = b"cpu  817382 13048 151273 1377421 2873 0 9680 1530 9 9\ncpu0 1 2 3 4\ncpu3 1 2 3 4\nintr 5 0 0\nctxt 1\n"
    assert kernel.machine_cpu(stat, 100) == (2371677 * 10_000_000, 991383 * 10_000_000, 2)
    assert kernel.total_memory(b"MemTotal:       24683720 kB\nMemFree: 1 kB\n") == 24683720 * 1024
