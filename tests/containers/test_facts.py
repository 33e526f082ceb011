"""What engines say, made into values: the shapes of many engines, and any JSON at all."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.containers.facts import (
    MAX_COMMAND,
    MAX_ENDPOINTS,
    EngineEvent,
    PullStep,
    Summary,
    container_of,
    event_of,
    facts_of,
    image_line,
    image_of,
    parse_name,
    pull_step_of,
    summary_of,
    time_ns,
    usage_of,
)
from tsbus.records import MAX_LABEL_BYTES, Endpoint

ID = "ab" * 32
IMAGE = "sha256:" + "cd" * 32
DIGEST = "sha256:" + "ef" * 32
NEVER = "0001-01-01T00:00:00Z"

INSPECTED = {
    "Id": ID,
    "Created": "2024-05-06T07:08:09.123456789Z",
    "Path": "nginx",
    "Args": ["-g", "daemon off;"],
    "State": {
        "Status": "running", "Running": True, "Paused": False, "Restarting": False, "OOMKilled": False, "Dead": False,
        "Pid": 4711, "ExitCode": 0, "StartedAt": "2024-05-06T07:08:10.5Z", "FinishedAt": NEVER,
        "Health": {"Status": "healthy", "FailingStreak": 0, "Log": []},
    },
    "Image": IMAGE,
    "Name": "/web1",
    "RestartCount": 2,
    "HostConfig": {
        "NetworkMode": "default", "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        "Memory": 268435456, "NanoCpus": 1500000000, "CpuQuota": 0, "CpuPeriod": 0,
    },
    "Config": {
        "Image": "nginx:1.27", "Labels": {"app": "web"}, "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
        "StopSignal": "SIGQUIT", "StopTimeout": 30,
    },
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "192.0.2.1", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
                  "443/tcp": None},
        "Networks": {"bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": ""}},
    },
}  # fmt: skip
NGINX = {"RepoTags": ["nginx:1.27", "nginx:latest"], "RepoDigests": [f"nginx@{DIGEST}"]}


def changed(**parts: dict) -> dict:
    """INSPECTED with other values in some of its parts."""
    return {**INSPECTED, **{name: {**INSPECTED[name], **part} for name, part in parts.items()}}


def test_every_field_of_a_container():
    """The record of a container has all that its inspection says."""
    record = container_of(INSPECTED, NGINX)
    assert record.id == ID
    assert record.name == "web1"
    assert msgspec.to_builtins(record.image) == {
        "given": "nginx:1.27", "repo": "nginx", "tag": "1.27", "digest": DIGEST, "id": IMAGE,
    }  # fmt: skip
    assert (record.state, record.health, record.draining) == ("running", "healthy", False)
    assert record.command == "nginx -g 'daemon off;'"
    assert (record.labels, record.labels_cut) == ({"app": "web"}, 0)
    assert record.networks == {"bridge": "172.17.0.2"}
    assert record.created_ns == 1714979289_123456789
    assert (record.started_ns, record.finished_ns) == (1714979290_500000000, 0)
    assert (record.exit_code, record.oom, record.restarts) == (None, False, 2)
    assert (record.restart_policy, record.pid) == ("on-failure:3", 4711)
    assert (record.stop_signal, record.stop_timeout_s) == (3, 30)
    assert (record.memory_limit, record.cpus) == (268435456, 1.5)


def test_endpoints():
    """Each published address of the node is an endpoint; a port that is only exposed is one without."""
    here = {"ip": "172.17.0.2", "network": "bridge"}
    assert container_of(INSPECTED, None).endpoints == (
        Endpoint(port=80, host_ip="192.0.2.1", host_port=8080, **here),
        Endpoint(port=80, host_ip="::", host_port=8080, **here),
        Endpoint(port=443, **here),
    )


@pytest.mark.parametrize(
    ("settings", "config", "host", "expected"),
    [
        ({"Networks": {"host": {"IPAddress": ""}}, "Ports": {}}, {}, {"NetworkMode": "host"}, ("", "host", 2)),
        ({"Networks": {"none": {"IPAddress": ""}}, "Ports": {}}, {"ExposedPorts": None}, {}, None),
        ({"Networks": {"web": {"IPAddress": "10.0.0.2"}, "db": {"IPAddress": "10.1.0.2"}}, "Ports": {}}, {},
         {"NetworkMode": "web"}, ("10.0.0.2", "web", 2)),
        ({"Networks": {"web": {"IPAddress": "10.0.0.2"}, "db": {"IPAddress": "10.1.0.2"}}, "Ports": {}}, {},
         {"NetworkMode": "gone"}, ("10.1.0.2", "db", 2)),
        ({"Networks": {"six": {"IPAddress": "", "GlobalIPv6Address": "fd00::2"}}, "Ports": {}}, {},
         {"NetworkMode": "six"}, ("fd00::2", "six", 2)),
        ({"Networks": {"bridge": {"IPAddress": ""}}, "Ports": {"53/udp": [{"HostIp": "", "HostPort": ""}]}},
         {"ExposedPorts": {}}, {}, ("", "bridge", 1)),
        ({"Networks": None, "Ports": {"8000-8002/tcp": None, "x/tcp": None, "1/icmp": None, "99999/tcp": None}},
         {"ExposedPorts": {"70": {}}}, {}, ("", "", 1)),
    ],
    ids=["host", "none", "several", "left its first", "IPv6", "stopped", "odd ports"],
)  # fmt: skip
def test_the_network_of_endpoints(settings, config, host, expected):
    """A container is known by its address in the network that it was made in."""
    found = container_of(changed(NetworkSettings=settings, Config=config, HostConfig=host), None).endpoints
    assert {(one.ip, one.network, len(found)) for one in found} == ({expected} if expected else set())


def test_too_many_ports():
    """Of a range of thousands of ports some are told, so that the record fits a message."""
    ports = {f"{port}/tcp": [{"HostIp": "", "HostPort": str(port)}] for port in range(1, 30_000)}
    assert len(container_of(changed(NetworkSettings={"Ports": ports}), None).endpoints) == MAX_ENDPOINTS


@pytest.mark.parametrize(
    ("given", "image", "expected"),
    [
        ("nginx", NGINX, ("nginx", "latest", DIGEST)),
        ("nginx:1.27", None, ("nginx", "1.27", "")),
        ("docker.io/library/nginx:1.27", NGINX, ("nginx", "1.27", DIGEST)),
        ("docker.io/team/app", None, ("team/app", "latest", "")),
        ("localhost/box:1", None, ("localhost/box", "1", "")),
        ("registry:5000/team/app", NGINX, ("registry:5000/team/app", "latest", "")),
        (f"registry:5000/app:2@{DIGEST}", None, ("registry:5000/app", "2", DIGEST)),
        (f"app@{DIGEST}", None, ("app", "", DIGEST)),
        (IMAGE, NGINX, ("nginx", "1.27", DIGEST)),
        ("cdcdcdcdcdcd", NGINX, ("nginx", "1.27", DIGEST)),
        ("cdcd", {"RepoTags": ["cdcd:latest"]}, ("cdcd", "latest", "")),
        (IMAGE, {"RepoTags": None, "RepoDigests": []}, ("", "", "")),
        (IMAGE, {"RepoTags": ["<none>:<none>"]}, ("", "", "")),
        ("", {}, ("", "", "")),
    ],
)
def test_names_of_images(given, image, expected):
    """An image is known by the name it was given, normalised, or by its first name where an id was given."""
    found = image_of(given, IMAGE, image or {})
    assert (found.repo, found.tag, found.digest) == expected
    assert (found.given, found.id) == (given, IMAGE)


@given(st.from_regex(r"[a-z]{1,5}(:[0-9]{2,4})?(/[a-z]{1,5}){1,2}", fullmatch=True), st.sampled_from(["", "1.2", "x"]))
def test_names_are_taken_apart(repo, tag):
    """The port of a registry is never taken for a tag."""
    assert parse_name(f"{repo}:{tag}" if tag else repo) == (repo.removeprefix("docker.io/"), tag or "latest", "")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "exited", "Running": False, "ExitCode": 137, "OOMKilled": True,
          "FinishedAt": "2024-05-06T07:08:10Z"}, ("exited", 137, True)),
        ({"Status": "created", "ExitCode": 127, "FinishedAt": NEVER}, ("created", None, False)),
        ({"Status": "paused", "ExitCode": 0, "FinishedAt": "2024-05-06T07:08:10Z"}, ("paused", None, False)),
        ({"Status": "restarting", "ExitCode": 1, "FinishedAt": "2024-05-06T07:08:10Z"}, ("restarting", 1, False)),
        ({"Status": "configured", "FinishedAt": NEVER}, ("created", None, False)),
        ({"Status": "stopped", "Running": False, "ExitCode": -1, "FinishedAt": "2024-05-06T07:08:10+02:00"},
         ("exited", -1, False)),
        ({"Status": None, "Running": True}, ("running", None, False)),
    ],
    ids=["killed", "failed to start", "paused", "restarting", "podman new", "podman stopped", "old engine"],
)  # fmt: skip
def test_states(state, expected):
    """The exit code is that of the last run: none while one runs or before the first."""
    record = container_of(changed(State=state), None)
    assert (record.state, record.exit_code, record.oom) == expected


@pytest.mark.parametrize(
    ("value", "number"),
    [("SIGTERM", 15), ("TERM", 15), ("sigusr1", 10), ("9", 9), (None, 15), ("", 15), ("RTMIN+3", 37), ("NONSENSE", 15),
     ("99999", 15), (3, 15)],
)  # fmt: skip
def test_stop_signals(value, number):
    """A stop signal is a number, in whatever way it is written; nonsense is SIGTERM."""
    assert container_of(changed(Config={"StopSignal": value}), None).stop_signal == number


@pytest.mark.parametrize(
    ("host", "cpus", "policy"),
    [
        ({"NanoCpus": 0, "CpuQuota": 50000, "CpuPeriod": 100000}, 0.5, "on-failure:3"),
        ({"NanoCpus": 0, "CpuQuota": 50000, "CpuPeriod": 0}, 0.5, "on-failure:3"),
        ({"NanoCpus": None, "CpuQuota": -1, "RestartPolicy": None}, 0.0, "no"),
        ({"RestartPolicy": {"Name": "", "MaximumRetryCount": 0}}, 1.5, "no"),
        ({"RestartPolicy": {"Name": "unless-stopped"}}, 1.5, "unless-stopped"),
    ],
)
def test_limits_and_policies(host, cpus, policy):
    """The two ways to limit the CPU give one number; no policy is `no`."""
    record = container_of(changed(HostConfig=host), None)
    assert (record.cpus, record.restart_policy) == (cpus, policy)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-06T07:08:09Z", 1714979289_000000000),
        ("2024-05-06T07:08:09.1Z", 1714979289_100000000),
        ("2024-05-06T07:08:09.123456789Z", 1714979289_123456789),
        ("2024-05-06T09:08:09.000000001+02:00", 1714979289_000000001),
        ("2024-05-06 07:08:09.1234567899Z", 1714979289_123456789),
        (NEVER, 0),
        ("0001-01-01T00:00:00.000000000Z", 0),
        ("", 0),
        ("yesterday", 0),
        ("2024-13-06T07:08:09Z", 0),
        ("9999-01-01T00:00:00Z", 0),
        (None, 0),
        (1714979289, 0),
    ],
)
def test_times(text, expected):
    """Times of up to nine digits and any zone are Unix nanoseconds; the year 1 and nonsense are never."""
    assert time_ns(text) == expected


def test_a_long_command():
    """A command is one line of at most 256 characters, whatever is in it."""
    record = container_of({**INSPECTED, "Args": ["a\nb\x1b[31m", "x" * 100_000]}, None)
    assert len(record.command) == MAX_COMMAND
    assert record.command.isprintable()


@given(st.dictionaries(st.text(max_size=20), st.integers(0, 30_000), max_size=12))
def test_labels_that_are_too_long(sizes):
    """Labels keep within their limit; ours go first, and it is told how many are missing."""
    labels = {**{name: "x" * size for name, size in sizes.items()}, "treescale.balancer": "web"}
    record = container_of(changed(Config={"Labels": labels}), None)
    assert sum(len(name.encode()) + len(value) for name, value in record.labels.items()) <= MAX_LABEL_BYTES
    assert record.labels["treescale.balancer"] == "web"
    assert len(record.labels) + record.labels_cut == len(labels)
    if not record.labels_cut:
        assert record.labels == labels


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"status": "start", "id": ID, "from": "nginx", "Type": "container", "Action": "start",
          "Actor": {"ID": ID, "Attributes": {"image": "nginx", "name": "web"}}, "scope": "local", "time": 17,
          "timeNano": 17_000_000_001}, ("container", "start", "", {"image": "nginx", "name": "web"}, 17_000_000_001)),
        ({"Type": "container", "Action": "health_status: unhealthy", "Actor": {"ID": ID}, "timeNano": 1},
         ("container", "health_status", "unhealthy", {}, 1)),
        ({"Type": "container", "Action": "health_status:healthy", "Actor": {"ID": ID}, "timeNano": 1},
         ("container", "health_status", "healthy", {}, 1)),
        ({"Type": "container", "Action": "health_status", "HealthStatus": "healthy", "Actor": {"ID": ID}, "time": 2},
         ("container", "health_status", "healthy", {}, 2_000_000_000)),
        ({"Type": "container", "Action": "died", "Actor": {"ID": ID, "Attributes": {"containerExitCode": 1}}},
         ("container", "die", "", {"containerExitCode": "1"}, 0)),
        ({"Type": "container", "Action": "remove", "Actor": {"ID": ID}}, ("container", "destroy", "", {}, 0)),
        ({"Type": "image", "Action": "remove", "Actor": {"ID": ID}}, ("image", "delete", "", {}, 0)),
        ({"status": "die", "id": ID, "from": "nginx", "time": 3}, ("container", "die", "", {}, 3_000_000_000)),
    ],
    ids=["start", "health", "health of newer", "health of podman", "died", "removed", "image removed", "old engine"],
)  # fmt: skip
def test_events(raw, expected):
    """An event is the same value, whichever engine of whatever age tells it."""
    kind, action, detail, attributes, at = expected
    assert event_of(raw) == EngineEvent(kind, action, detail, ID, attributes, at)


@pytest.mark.parametrize("raw", [{}, {"Action": "start"}, {"Actor": {"ID": ID}}, {"Action": None, "Actor": None}])
def test_what_is_no_event(raw):
    """Without an action or an id it is no event."""
    assert event_of(raw) is None


@pytest.mark.parametrize(
    ("status", "health"),
    [("Up 2 minutes (healthy)", "healthy"), ("Up 1 second (health: starting)", "starting"), ("Up 3 hours", ""),
     ("Up 3 hours (unhealthy)", "unhealthy"), ("Exited (0) 2 days ago", ""), (None, "")],
)  # fmt: skip
def test_lines_of_the_list(status, health):
    """A line of the list gives the health out of its text, and the container's own name among its links'."""
    raw = {
        "Id": ID, "Names": ["/web/db", "/db"], "State": "running", "Status": status,
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
    }  # fmt: skip
    assert summary_of(raw) == Summary(ID, "db", "running", health, {"bridge": "172.17.0.2"})


@pytest.mark.parametrize(
    ("version", "info", "expected"),
    [
        ({"Version": "20.10.24", "ApiVersion": "1.41", "Components": [{"Name": "Engine"}]},
         {"CgroupVersion": "2", "CgroupDriver": "systemd", "NCPU": 8}, ("Docker", "20.10.24", "1.41", "v2/systemd", 8)),
        ({"Version": "19.03.15", "ApiVersion": "1.40"}, {"CgroupDriver": "cgroupfs"},
         ("Docker", "19.03.15", "1.40", "v1/cgroupfs", 0)),
        ({"Version": "4.3.1", "ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]},
         {"CgroupVersion": "v2", "CgroupDriver": "systemd"}, ("Podman", "4.3.1", "1.41", "v2/systemd", 0)),
    ],
)  # fmt: skip
def test_facts_of_engines(version, info, expected):
    """An engine is known by name, versions, cgroups and machine; Podman is told from Docker."""
    facts = facts_of(version, info)
    assert (facts.name, facts.version, facts.api, facts.cgroup, facts.cpus) == expected
    assert facts.up


def test_disk_usage():
    """What could be freed is what nothing uses; layers that images share are counted once."""
    raw = {
        "LayersSize": 100,
        "Images": [{"Containers": 2, "Size": 60, "SharedSize": 20}, {"Containers": 0, "Size": 60, "SharedSize": 20}],
        "Containers": [{"State": "running", "SizeRw": 5}, {"State": "exited", "SizeRw": 7}, {"State": "created"}],
        "Volumes": [{"UsageData": {"Size": 10, "RefCount": 1}}, {"UsageData": {"Size": -1, "RefCount": -1}}, {}],
        "BuildCache": None,
    }
    assert usage_of(raw) == {
        "images": {"count": 2, "active": 1, "bytes": 100, "reclaimable": 60},
        "containers": {"count": 3, "active": 1, "bytes": 12, "reclaimable": 7},
        "volumes": {"count": 3, "active": 1, "bytes": 10, "reclaimable": 0},
        "cache": {"count": 0, "active": 0, "bytes": 0, "reclaimable": 0},
    }


def test_steps_of_a_pull():
    """A step of a pull has its layer and how far that is, if the engine says so."""
    raw = {"status": "Downloading", "id": "a1b2", "progressDetail": {"current": 5, "total": 9}, "progress": "[=> ]"}
    assert pull_step_of(raw) == PullStep("a1b2", "Downloading", 5, 9)
    assert pull_step_of({"status": "Digest: sha256:..."}) == PullStep("", "Digest: sha256:...")


KEYS = sorted(
    {"Actor", "Action", "ID", "Attributes", "Names", "Networks", "Ports", "HostIp", "HostPort", "RestartPolicy",
     "80/tcp", "RepoTags", "RepoDigests", "UsageData", "IPAddress", "Health", "Components", "Images", "Volumes",
     *INSPECTED, *INSPECTED["State"], *INSPECTED["Config"], *INSPECTED["HostConfig"]}
)  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
    | st.text(alphabet="\ud800\n:/", max_size=4) | st.sampled_from(["80/tcp", "2024-05-06T07:08:09Z", "running"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip
objects = st.dictionaries(st.sampled_from(KEYS), anything)


@given(objects, objects)
def test_any_json(raw, other):
    """Whatever JSON an engine answers with, the result is a value that can be sent."""
    for value in (
        container_of(raw, other), facts_of(raw, other), event_of(raw), summary_of(raw), pull_step_of(raw),
        image_line(raw, 1), usage_of(raw),
    ):  # fmt: skip
        msgspec.json.encode(value)


@given(st.sampled_from(["State", "Config", "HostConfig", "NetworkSettings"]), objects)
def test_any_json_in_an_inspection(part, raw):
    """A part of an inspection that is nonsense spoils no more than what it would have said."""
    record = container_of(changed(**{part: raw}), NGINX)
    assert (record.id, record.name) == (ID, "web1")
    msgspec.json.encode(record)
