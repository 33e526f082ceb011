"""What callers may ask for: bodies, Docker's notation in the engine's words, and what the policy makes of it."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.config import DockerPolicy
from tsbus.containers import notation, orders
from tsbus.containers.orders import OrderError, RunOrder, parse
from tsbus.containers.policy import Denied, Mount, Powers, decide, decide_exec, named_volumes, powers_of, volume_path
from tsbus.core.roles import Role


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (orders.Stop, {"containers": ["a"], "timeout": 1}, "there is no key `timeout`; the keys are timeout_s, "),
        (orders.Stop, {"containers": ["a", 1]}, "containers[1]: Expected `str`, got `int`"),
        (orders.Stop, {"containers": []}, "containers: Expected `array` of length >= 1"),
        (orders.Stop, None, "missing required field `containers`"),
        (orders.Stop, ["a"], "the body must be a JSON object"),
        (orders.Stop, {"containers": ["a"], "timeout_s": -1}, "timeout_s: Expected `float` >= 0.0"),
        (orders.Kill, {"containers": ["a"], "signal": "; rm"}, 'signal: write a signal like "TERM"'),
        (orders.Rename, {"container": "a", "name": "-b"}, "name: a name has letters"),
        (orders.Wait, {"containers": ["a"], "for": "ever"}, "for: Invalid enum value 'ever'"),
        (orders.Exec, {"container": "a", "argv": []}, "argv: Expected `array` of length >= 1"),
        (orders.Exec, {"container": "a", "argv": ["a\0b"]}, "no text may hold the character NUL"),
        (orders.Exec, {"container": "a", "argv": ["a"], "env": {"A=B": ""}}, "env: 'A=B' cannot be the name"),
        (orders.Exec, {"container": "a", "argv": ["a"], "size": [0, 80]}, "size[0]: Expected `int` >= 1"),
        (orders.Pull, {"image": "a b"}, "image: write the image as for docker run"),
        (RunOrder, {"image": "a", "health": {"cmd": "x"}}, "health: there is no key `cmd`"),
        (RunOrder, {"image": "a", "names": {"n": ["x"]}}, "names[0]: a name has letters"),
        (RunOrder, {"image": "a", "names": {"n": ["web"]}, "count": 2}, "give either names or count"),
        (RunOrder, {"image": "a", "names": {"n": ["web", "web"]}}, "names.n: a name stands there twice"),
        (RunOrder, {"image": "a", "names": {"n": ["web", "db"]}, "attach": True}, "attach: the output of one"),
        (RunOrder, {"image": "a", "mounts": []}, "there is no key `mounts`"),
    ],
)
def test_bad_bodies(kind: Any, body: Any, told: str) -> None:
    """A body that is not in order is told in one line that names the key."""
    with pytest.raises(OrderError, match=re.escape(told)) as raised:
        parse(kind, body)
    assert "\n" not in str(raised.value)


def test_names_on_a_node() -> None:
    """`names` says how many containers each node makes; without it each makes `count`, one if that is not given."""
    spread = parse(RunOrder, {"image": "a", "names": {"n": ["web-1", "web-2"]}})
    assert spread.names_on("n") == ["web-1", "web-2"]
    assert spread.names_on("m") == []
    assert parse(RunOrder, {"image": "a", "count": 3}).names_on("n") == [None] * 3
    assert parse(RunOrder, {"image": "a"}).names_on("n") == [None]


def pairs(*texts: str) -> list[tuple[str, str, str]]:
    return [(port, where["HostIp"], where["HostPort"]) for port, where in notation.ports(texts)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("80", [("80/tcp", "", "")]),
        ("53/udp", [("53/udp", "", "")]),
        ("8080:80", [("80/tcp", "", "8080")]),
        (":80", [("80/tcp", "", "")]),
        ("127.0.0.1:8080:80/sctp", [("80/sctp", "127.0.0.1", "8080")]),
        ("127.0.0.1::80", [("80/tcp", "127.0.0.1", "")]),
        ("[::1]:8080:80", [("80/tcp", "::1", "8080")]),
        ("[::]::80", [("80/tcp", "::", "")]),
        ("80-81", [("80/tcp", "", ""), ("81/tcp", "", "")]),
        ("8000-8001:80-81", [("80/tcp", "", "8000"), ("81/tcp", "", "8001")]),
        ("8000-8010:80", [("80/tcp", "", "8000-8010")]),
    ],
)
def test_publish(text: str, found: list[tuple[str, str, str]]) -> None:
    """Ports are published as Docker's command line writes it."""
    assert pairs(text) == found


@pytest.mark.parametrize(
    "text",
    ["", "web", "0:80", "80:0", "65536", "1-2:3-5", "2-1:80", "1:2:3:4", "::1:80:80", "host:1:2", "80/icmp", "-80",
     "80-", "1-65535:80", "127.0.0.1:80", "[127.0.0.1:80:80", "８０"],
)  # fmt: skip
def test_bad_ports(text: str) -> None:
    """A port that cannot be published is told with the field and what was written."""
    with pytest.raises(OrderError, match=r"^publish: "):
        notation.ports([text])


def test_ports_are_bounded() -> None:
    """A container publishes at most MAX_PORTS, however they are written."""
    assert len(notation.ports([f"1-{notation.MAX_PORTS}"])) == notation.MAX_PORTS
    with pytest.raises(OrderError, match="more than 1024 ports"):
        notation.ports(["1-1000", "1001-1100"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/data", ("", "/data", "")),
        ("db:/data", ("db", "/data", "")),
        ("db:/data:ro,nocopy", ("db", "/data", "ro,nocopy")),
        ("/srv/x:/data:ro,z", ("/srv/x", "/data", "ro,z")),
        ("/srv/a/../../etc/./:/data", ("/etc", "/data", "")),
        ("//etc:/data", ("/etc", "/data", "")),
    ],
)
def test_volumes(text: str, found: tuple[str, str, str]) -> None:
    """Volumes are written as for Docker; a path of the host comes out without anything that leads elsewhere."""
    assert notation.volume(text) == found


@pytest.mark.parametrize(
    "text",
    ["", "data", "db:data", ":/data", "./x:/data", "../x:/data", "~/x:/data", "a:/b:ro:z", "/a:/b:rshared", "/a:/b:rw,",
     "-x:/data", "a/b:/data", "C:\\x:/data"],
)  # fmt: skip
def test_bad_volumes(text: str) -> None:
    """Relative paths, mounts that spread to the host, and what is no volume are told."""
    with pytest.raises(OrderError, match=r"^volumes: "):
        notation.volume(text)


@pytest.mark.parametrize(
    ("value", "count"),
    [("256m", 256 << 20), ("256M", 256 << 20), ("256MiB", 256 << 20), ("1.5g", 3 << 29), ("1024", 1024), (1024, 1024),
     ("64kb", 64 << 10), ("7b", 7), ("1 g", 1 << 30)],
)  # fmt: skip
def test_sizes(value: Any, count: int) -> None:
    """Sizes are written as for Docker, or as a number of bytes."""
    assert notation.size("memory", value) == count


@pytest.mark.parametrize("value", ["m", "-1", "1x", "1.m", "1e9", -5, "0x10", "1mm", "1bb"])
def test_bad_sizes(value: Any) -> None:
    """What is no size is told with an example."""
    with pytest.raises(OrderError, match='write it like "256m"'):
        notation.size("memory", value)


def test_other_notations() -> None:
    """Restart policies, CPUs, devices, limits, hosts and signals come out as the engine's API takes them."""
    assert notation.restart_policy("on-failure:3") == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert notation.restart_policy("unless-stopped") == {"Name": "unless-stopped"}
    assert notation.nano_cpus("1.5") == notation.nano_cpus(1.5) == 1_500_000_000
    fuse = {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}
    assert notation.device("/dev/fuse") == notation.device("/dev/fuse:/dev/fuse:rwm") == fuse
    assert notation.device("/dev/x/../fuse:/dev/f:r")["PathOnHost"] == "/dev/fuse"
    assert notation.device("/dev/fuse:rw")["CgroupPermissions"] == "rw"
    assert notation.ulimit("nofile=1024:2048") == {"Name": "nofile", "Soft": 1024, "Hard": 2048}
    assert notation.ulimit("core=-1") == {"Name": "core", "Soft": -1, "Hard": -1}
    assert notation.extra_host("db:fd00::1") == "db:fd00::1"
    assert notation.tmpfs("/run:size=64m,mode=1777,exec") == ("/run", "size=64m,mode=1777,exec")
    assert [notation.signal(text) for text in ("term", "SIGHUP", "9", "RTMIN+3")] == [
        "SIGTERM", "SIGHUP", "9", "SIGRTMIN+3"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "order",
    [{"restart": "on-failure:x"}, {"restart": "always:3"}, {"restart": "yes"}, {"cpus": "0"}, {"cpus": "nan"},
     {"cpus": "many"}, {"cpus": -1}, {"devices": ["fuse"]}, {"devices": ["/dev/fuse:/dev/fuse:x"]},
     {"devices": ["vendor.com/gpu=all"]}, {"ulimits": ["nofile"]}, {"ulimits": ["nofile=1:2:3"]},
     {"add_hosts": ["db"]}, {"add_hosts": ["db:web"]}, {"dns": ["web"]}, {"tmpfs": ["run"]},
     {"tmpfs": ["/run:bind"]}, {"tmpfs": ["/run:size"]}, {"tmpfs": ["/run:rshared"]}, {"cap_add": ["x y"]},
     {"pid": "private"}, {"pid": "container:"}, {"ipc": "public"}],
    ids=str,
)  # fmt: skip
def test_what_the_engine_would_not_understand(order: dict[str, Any]) -> None:
    """Each mistake is told with the name of its field."""
    with pytest.raises(OrderError, match=rf"^{next(iter(order))}: "):
        notation.spec(parse(RunOrder, {"image": "a", **order}))


def test_spec() -> None:
    """A whole order becomes the JSON of the engine's API."""
    order = parse(RunOrder, {
        "image": "nginx", "argv": ["-v"], "entrypoint": ["/bin/sh"], "env": {"A": "1"}, "labels": {"l": "v"},
        "publish": ["8080:80", "127.0.0.1:8081:80"], "volumes": ["/scratch", "db:/data:ro"], "memory": "64m",
        "stop_signal": "QUIT", "stop_timeout_s": 3, "init": True, "rm": True, "cap_drop": ["cap_chown"],
        "health": {"command": "true", "interval_s": 0.5, "retries": 2},
    })  # fmt: skip
    told = notation.spec(order)
    assert (told["Cmd"], told["Entrypoint"], told["Env"]) == (["-v"], ["/bin/sh"], ["A=1"])
    assert (told["StopSignal"], told["StopTimeout"]) == ("SIGQUIT", 3)
    assert told["Volumes"] == {"/scratch": {}}
    assert told["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 500_000_000, "Retries": 2}
    host = told["HostConfig"]
    assert [each["HostPort"] for each in host["PortBindings"]["80/tcp"]] == ["8080", "8081"]
    assert (host["Binds"], host["Memory"], host["Init"]) == (["db:/data:ro"], 64 << 20, True)
    assert (host["CapDrop"], host["AutoRemove"]) == (["CHOWN"], True)
    assert notation.health_check(orders.Health(command=["curl", "x"]))["Test"] == ["CMD", "curl", "x"]
    assert notation.health_check(orders.Health(disable=True)) == {"Test": ["NONE"]}


# What may be made.


def refusal(order: dict[str, Any], **policy: Any) -> str:
    """Return why `order` may not be run under `policy`, "" if it may."""
    powers = powers_of(notation.spec(parse(RunOrder, {"image": "a", **order})), {"evil": "/etc"}, resolve)
    denied = decide(powers, DockerPolicy(**policy))
    return denied.reason if denied else ""


def resolve(path: str) -> str:
    """Follow the one link of these tests."""
    return path.replace("/srv/link", "/etc")


WAYS = [
    ({"privileged": True}, {"privileged": True}),
    ({"volumes": ["/srv/data:/d"]}, {"host_mounts": ("/srv/data",)}),
    ({"volumes": ["/srv/data/x:/d"]}, {"host_mounts": ("/srv/**",)}),
    ({"volumes": ["/srv/data:/d:ro"]}, {"host_mounts": ("/srv/data:ro",)}),
    ({"volumes": ["/srv/link:/d"]}, {"host_mounts": ("/srv/link",)}),
    ({"volumes": ["/srv/link:/d"]}, {"host_mounts": ("/srv/**", "/etc/**")}),
    ({"volumes": ["/:/d"]}, {"host_mounts": ("/",)}),
    ({"volumes": ["/etc:/d"]}, {"host_mounts": ("/**",)}),
    ({"volumes": ["evil:/d"]}, {"host_mounts": ("/etc",)}),
    ({"volumes": ["/var/run/docker.sock:/d"]}, {"host_mounts": ("/var/run/docker.sock",)}),
    ({"network": "host"}, {"host_namespaces": True}),
    ({"network": "container:web"}, {"host_namespaces": True}),
    ({"pid": "host"}, {"host_namespaces": True}),
    ({"pid": "container:web"}, {"host_namespaces": True}),
    ({"ipc": "host"}, {"host_namespaces": True}),
    ({"ipc": "container:web"}, {"host_namespaces": True}),
    ({"cap_add": ["SYS_ADMIN"]}, {"capabilities": ("SYS_ADMIN",)}),
    ({"cap_add": ["cap_net_admin"]}, {"capabilities": ("ALL",)}),
    ({"cap_add": ["ALL"]}, {"capabilities": ("ALL",)}),
    ({"devices": ["/dev/sda"]}, {"devices": ("/dev/sda",)}),
    ({"devices": ["/dev/snd/x"]}, {"devices": ("/dev/snd/**",)}),
    ({"security_opt": ["seccomp=unconfined"]}, {"security_opt": True}),
    ({"security_opt": ["apparmor=unconfined"]}, {"security_opt": True}),
]


@pytest.mark.parametrize(("order", "key"), WAYS, ids=str)
def test_every_way_to_become_root_has_its_key(order: dict[str, Any], key: dict[str, Any]) -> None:
    """Each dangerous thing is refused by default with a reason that names its key; that key alone allows it."""
    why = refusal(order)
    assert f"{next(iter(key))} in [docker]" in why or f"{next(iter(key))} = true in [docker]" in why
    assert refusal(order, **key) == ""
    others = {"privileged": True, "host_mounts": ("/**",), "host_namespaces": True, "capabilities": ("ALL",),
              "devices": ("/**",), "security_opt": True}  # fmt: skip
    assert refusal(order, **{name: value for name, value in others.items() if name not in key})


@pytest.mark.parametrize(
    ("order", "policy"),
    [
        ({"volumes": ["/srv/data:/d"]}, {"host_mounts": ("/srv/data:ro",)}),
        ({"volumes": ["/srv/data2:/d"]}, {"host_mounts": ("/srv/data", "/srv/data/**")}),
        ({"volumes": ["/srv/data/x:/d"]}, {"host_mounts": ("/srv/data",)}),
        ({"volumes": ["/srv/../etc:/d"]}, {"host_mounts": ("/srv/**",)}),
        ({"volumes": ["/srv/link:/d"]}, {"host_mounts": ("/srv/**",)}),
        ({"volumes": ["/srv/link/shadow:/d:ro"]}, {"host_mounts": ("/srv/**",)}),
        ({"volumes": ["/srv:/d"]}, {"host_mounts": ("/srv/data/**",)}),
        ({"devices": ["/dev/snd/../sda"]}, {"devices": ("/dev/snd/**",)}),
        ({"devices": ["/dev"]}, {"devices": ("/dev/sda",)}),
        ({"cap_add": ["SYS_ADMIN"]}, {"capabilities": ("NET_ADMIN",)}),
        ({"security_opt": ["no-new-privileges", "label=disable"]}, {}),
    ],
    ids=str,
)
def test_what_only_looks_allowed(order: dict[str, Any], policy: dict[str, Any]) -> None:
    """Neighbours, parents, .. and links out of an allowed place are refused."""
    assert refusal(order, **policy)


@pytest.mark.parametrize(
    "order",
    [{}, {"volumes": ["db:/d", "/d2"]}, {"network": "bridge"}, {"network": "none"}, {"network": "backend"},
     {"ipc": "private"}, {"ipc": "shareable"}, {"cap_drop": ["ALL"]}, {"security_opt": ["no-new-privileges:true"]},
     {"publish": ["80:80"]}, {"tmpfs": ["/run"]}, {"user": "root"}],
    ids=str,
)  # fmt: skip
def test_what_is_always_allowed(order: dict[str, Any]) -> None:
    """What gives nothing of the host takes no key."""
    assert refusal(order) == ""


def test_the_refusal_tells_where_a_link_leads() -> None:
    """Of a link out of an allowed place the reason names both ends."""
    assert refusal({"volumes": ["/srv/link/x:/d"]}, host_mounts=("/srv/**",)) == (
        "the node's /srv/link/x (which leads to /etc/x) may make one root of the node; "
        'that takes "/etc/x" in host_mounts in [docker] of its configuration'
    )


def test_powers_of_a_container_that_runs() -> None:
    """The same is read out of an inspection, where older engines and other tools left more than we ever ask for."""
    told = {
        "HostConfig": {
            "Privileged": False, "CapAdd": ["CAP_SYS_ADMIN"], "PidMode": "container:4711", "IpcMode": "private",
            "UTSMode": "host", "UsernsMode": "host", "NetworkMode": "default", "SecurityOpt": None, "Devices": [],
            "DeviceCgroupRules": ["c 42:* rmw"], "ReadonlyPaths": [], "Binds": None,
        },
        "Mounts": [
            {"Type": "bind", "Source": "/var/run/docker.sock", "RW": False},
            {"Type": "volume", "Name": "evil", "Source": "/var/lib/docker/volumes/evil/_data", "RW": True},
            {"Type": "volume", "Name": "db", "Source": "/var/lib/docker/volumes/db/_data", "RW": True},
            {"Type": "tmpfs", "Source": "", "RW": True},
        ],
    }  # fmt: skip
    assert named_volumes(told) == ["evil", "db"]
    assert powers_of(told, {"evil": "/etc"}, resolve) == Powers(
        mounts=(Mount("/var/run/docker.sock", "/var/run/docker.sock", read_only=True), Mount("/etc", "/etc")),
        namespaces=("pid: container:4711", "uts: host", "userns: host"),
        capabilities=("SYS_ADMIN",),
        devices=("c 42:* rmw",),
        security=("systempaths=unconfined",),
    )
    assert powers_of({}, {}) == Powers()


def test_volumes_that_are_paths_of_the_host() -> None:
    """A volume of the local driver that binds a directory or mounts a disk counts as that path; others do not."""
    assert volume_path({"Driver": "local", "Options": {"type": "none", "o": "bind", "device": "/etc"}}) == "/etc"
    assert volume_path({"Driver": "local", "Options": {"type": "ext4", "device": "/dev/sda1"}}) == "/dev/sda1"
    assert volume_path({"Driver": "local", "Options": {"type": "nfs", "device": ":/export"}}) is None
    assert volume_path({"Driver": "local", "Options": None}) is None


paths = st.lists(st.sampled_from(["a", "b", "..", ".", "srv"]), max_size=5).map(lambda parts: "/" + "/".join(parts))


@given(paths, paths)
def test_nothing_outside_gets_in(given_path: str, entry: str) -> None:
    """Whatever path is written, it is mounted only if it is the entry's or below it, as the engine would see it."""
    import posixpath

    entry = posixpath.normpath(entry)
    allowed = refusal({"volumes": [f"{given_path}:/d"]}, host_mounts=(f"{entry.rstrip('/')}/**",)) == ""
    real = posixpath.normpath(given_path)
    assert allowed == (posixpath.commonpath([real, entry]) == entry)


def test_denied_says_why() -> None:
    """A refusal is a value with its reason."""
    assert decide(Powers(privileged=True), DockerPolicy()) == Denied(
        "a privileged container may make one root of the node; "
        "that takes privileged = true in [docker] of its configuration"
    )


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("role", [Role.OPERATE, Role.ADMIN])
def test_who_may_get_into_a_container_that_has_powers(role: Role, privileged: bool) -> None:
    """Admins may run programs in any container that is there; privileged ones take their key from everybody."""
    for powers in (Powers(namespaces=("pid: host",)), Powers(privileged=True)):
        denied = decide_exec(powers, DockerPolicy(), role, privileged=privileged)
        assert (denied is None) == (role is Role.ADMIN and not privileged)
        assert denied is None or denied.reason.endswith(", or role admin") == (not privileged)
