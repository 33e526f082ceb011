"""Plans: what each kind of server needs to become a node, what keeps it from that, and that a second plan is empty."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_server import PROBES, apply_all, key_of, recorded

from tsbus.build.facts import Disk, Holder, Listener, Python, Release, Stat, Unit, parse
from tsbus.build.fleet import careful_waves, groups, waiting, waves
from tsbus.build.places import CONFIG, DASHBOARD_USERS, FILES, FOLDERS, KEY, MODULES_FILE, USERS
from tsbus.build.plan import HostPlan, plan
from tsbus.build.steps import STAGES
from tsbus.build.wanted import Release as NewRelease
from tsbus.build.wanted import Wanted, known_keys, wanted
from tsbus.config import Balancer, Balancing, BuildSettings, Dashboard, DockerPolicy, Server, Tree, dump
from tsbus.copies import Copies, digest, supervisor_digest

RELEASE = NewRelease("0.2.0-abc", {"systemd": "5" * 64, "openrc": "0" * 64})
WEB = Balancer(name="web", address="10.0.0.1:80", alg="wlc", servers={"a": 8080})


def tree_of(balancers=(), **sections):
    """A tree of three servers, one below the other."""
    servers = {
        "a": Server("a", "10.0.0.1", 8888, childs=("b",), balancers={each.name: each for each in balancers}),
        "b": Server("b", "10.0.0.1", 8888, childs=("c",)),
        "c": Server("c", "10.0.0.1", 8888),
    }
    return Tree(servers=servers, **sections)


def want(name="a", balancers=(), keys=None, settings=BuildSettings(), **changes):  # noqa: B008  (frozen)
    """What one server of the tree should be."""
    return replace(wanted(tree_of(balancers), settings, RELEASE, saved=keys)[name], **changes)


def kinds(found):
    return [step.kind for step in found.steps]


NODE = ["accounts", "folders", "release", "key", "config", "unit", "activate"]
EXPECTED = {
    "debian-11": "python",
    "debian-12": NODE,
    "debian-13": ["docker", *NODE],
    "ubuntu-2204": ["python", "docker", *NODE],
    "ubuntu-2404": ["docker", *NODE],
    "rhel-8": "docker",
    "rhel-9": ["python", "docker", *NODE],
    "rocky-9": ["docker", *NODE],
    "alma-9": ["docker", *NODE],
    "fedora-41": ["docker", *NODE],
    "amazon-2023": ["python", "docker", *NODE],
    "opensuse-156": ["python", "docker", *NODE],
    "alpine-321": ["python", "docker", *NODE],
}


@pytest.mark.parametrize("name", PROBES)
def test_each_distribution_gets_the_steps_it_needs_or_one_trouble(name):
    """A bare server of each kind gets these steps, in this order; where it cannot be a node, one trouble says why."""
    found, expected = plan(want(), recorded(name)), EXPECTED[name]
    if isinstance(expected, str):
        assert [trouble.kind for trouble in found.troubles if trouble.fatal] == [expected]
        assert found.steps == ()
    else:
        assert kinds(found) == expected
        assert found.can_go


@pytest.mark.parametrize("name", PROBES)
def test_a_built_server_needs_nothing(name):
    """After the steps of its plan each server is as it should be, and its release is for the Python that it has."""
    facts = recorded(name)
    first = plan(want(), facts)
    after = apply_all(first, facts, want(keys={"a": key_of("a")}).config)
    again = plan(want(keys={"a": key_of("a")}), after)
    assert again.steps == ()
    assert first.platform == again.platform
    assert first.can_go == again.can_go


def texts(found):
    return [str(trouble) for trouble in found.troubles]


def test_a_plan_says_what_and_why():
    """Steps and troubles are whole sentences for people."""
    found = plan(want(), recorded("ubuntu-2204"))
    assert [str(step) for step in found.steps] == [
        "install Python 3.11 of the distribution: /usr/bin/python3.10 is 3.10.12, and 3.11 to 3.14 can be used",
        "install Docker from Docker's own packages: there is no engine",
        "add the users treescale, treescale-docker, treescale-exec: they are not there",
        "make /opt/treescale, /opt/treescale/releases, /etc/treescale, /etc/treescale/conf.d, /var/lib/treescale, "
        "/var/log/treescale, /var/log/treescale/docker: they are not there",
        "upload and install release 0.2.0-abc: it has none",
        "make its key pair: it has none",
        "write its copy of the tree: there is none",
        "start the node at boot (systemd): there is none",
        "start release 0.2.0-abc: the node does not run",
    ]
    assert texts(found) == [
        "unattended-upgr (pid 2417) holds the package lock; it is waited for, up to 5 minutes",
    ]
    assert [step.stage for step in found.steps] == sorted(
        (step.stage for step in found.steps), key=list(dict.fromkeys(STAGES.values())).index
    )
    assert [step.kind for step in found.steps if not step.reversible] == ["python", "docker"]


D12, D13 = recorded("debian-12"), recorded("debian-13")
ROOM = D12.disks | {"/opt": Disk(100, True, "/opt"), "/var": Disk(1100, True, "/")}
TROUBLES = {
    "machine": (D12, {"machine": "armv7l"}, "platform",
                "it is a machine of the kind armv7l; there are packages for x86_64 and aarch64 only"),
    "libc": (D12, {"libc_version": (2, 17)}, "platform",
             "its glibc 2.17 is too old; 2.28 is needed: take a newer release of the distribution"),
    "address": (D12, {"addresses": frozenset({"127.0.0.1", "10.0.0.2"})}, "address",
                "10.0.0.1 is none of its addresses (10.0.0.2); mend `ip` of servers.a: its router listens there"),
    "port": (D12, {"listeners": (Listener("", 8888, 77, "nginx"),)}, "port",
             "port 8888 is in use by nginx (pid 77); stop it, or choose another service_port for a"),
    "port of nobody known": (D12, {"listeners": (Listener("10.0.0.1", 8888),)}, "port",
                             "port 8888 is in use by another program; "
                             "stop it, or choose another service_port for a"),
    "disk": (D12, {"disks": ROOM}, "disk", "150 MB are needed in /opt, and 100 MB are free on /opt; make room there"),
    "disk of several": (D13, {"disks": ROOM | {"/opt": Disk(1100, True, "/")}}, "disk",
                        "1355 MB are needed in /var and /opt and /etc, and 1100 MB are free on /; make room there"),
    "read-only": (D12, {"disks": D12.disks | {"/opt": Disk(900, False, "/opt")}}, "disk",
                  "/opt cannot be written (file system /opt); mount it for writing"),
    "no root": (D12, {"uid": 1000, "user": "ops", "sudo": "password"}, "sudo",
                "ops is not root: sudo asks for a password; "
                "check `sudo` and the password in console.toml, and the sudoers there"),
    "cut off": (parse(b"treescale-probe=1\nuid=0\n"), {}, "probe",
                "the probe could not tell all: it was cut off, the machine, the C library, the init system; "
                "look at its transcript; /proc must be mounted, and sh, df, uname and id be there"),
    "python of others": (recorded("debian-11"), {"os_id": "arch", "os_name": "Arch Linux", "docker_engine": "28.0.0"},
                         "python",
                         "Arch Linux has no Python for a node: /usr/bin/python3.9 is 3.9.2, and 3.11 to 3.14 can be "
                         "used; install Python 3.11 or newer there, up to 3.14, in /usr/bin or /usr/local/bin"),
    "python too old": (recorded("debian-11"), {}, "python",
                       "Debian GNU/Linux 11 (bullseye) has no Python for a node: /usr/bin/python3.9 is 3.9.2, and 3.11 "
                       "to 3.14 can be used; its packages have none: upgrade it to Debian 12 or newer, or install "
                       "Python 3.11 or newer there, up to 3.14, in /usr/bin or /usr/local/bin"),
    "engine too old": (D12, {"docker_engine": "18.09.1"}, "docker",
                       "its Docker engine 18.09.1 is too old; upgrade it by hand: its containers stop then"),
    "docker of others": (D13, {"os_id": "arch", "os_name": "Arch Linux"}, "docker",
                         "we cannot install Docker on Arch Linux; install Docker by hand, then build with --no-docker"),
    "key": (D12, {"stats": {KEY: FILES[KEY]}, "key_error": "bad\nfile is no key"}, "identity",
            "/etc/treescale/node.key cannot be used: file is no key; "
            "put the right one back, or move it away for a new one"),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "changes", "kind", "text"), TROUBLES.values(), ids=TROUBLES)
def test_what_keeps_a_server_from_being_built_is_told_once(facts, changes, kind, text):
    """Each of these is one fatal trouble with its next step, and there are no steps then."""
    found = plan(want(), replace(facts, **changes))
    (trouble,) = (each for each in found.troubles if each.fatal)
    assert (trouble.kind, str(trouble)) == (kind, text)
    assert found.steps == ()
    assert found.platform is None


def test_packages_in_the_way_are_named():
    """What Docker's packages cannot stay beside is a trouble, and with the distribution's they are its own."""
    (trouble,) = plan(want(), recorded("rhel-8")).troubles
    assert str(trouble).startswith("runc cannot stay beside Docker from Docker's own packages; remove them")
    found = plan(want(docker="distro"), replace(D13, packages={"runc": "1", "containerd": "1"}))
    assert "install Docker from the distribution's packages" in [step.words for step in found.steps]
    (trouble,) = plan(want(docker="distro"), replace(recorded("rhel-9"), packages={})).troubles
    assert str(trouble).endswith('has no Docker of its own; build with docker = "vendor"')


def test_a_clock_that_is_off_is_a_warning_then_a_trouble():
    """A minute is nothing, an hour is told, more keeps the server from being built."""
    assert texts(plan(want(), D12, 59.0)) == []
    (late,) = plan(want(), D12, -90.0).troubles
    assert (late.kind, late.fatal, late.text) == ("clock", False, "its clock is 90 seconds behind")
    (hours,) = plan(want(), D12, 7300.0).troubles
    assert (hours.fatal, hours.text) == (True, "its clock is 2 hours ahead")


def test_our_own_router_may_have_the_port():
    """A port that a process of TreeScale has is no trouble, also where the process cannot be told."""
    for pid in (7, 0):
        facts = replace(D12, listeners=(Listener("10.0.0.1", 8888, pid, "python3"),), ours=frozenset({7}))
        assert plan(want(), facts).can_go
    elsewhere = replace(D12, listeners=(Listener("127.0.0.1", 8888, 9, "x"),))
    assert plan(want(), elsewhere).can_go


def test_without_docker_there_is_no_step_for_it():
    """--no-docker, a disabled monitor and an engine elsewhere all leave Docker alone."""
    bare = replace(D13, groups={})
    assert "docker" not in kinds(plan(want(settings=BuildSettings(docker="no")), bare))
    for policy in (DockerPolicy(enabled=False), DockerPolicy(host="tcp://10.0.0.9:2375")):
        found = wanted(tree_of(docker=policy), BuildSettings(), RELEASE)["a"]
        (step,) = (step for step in plan(found, D12).steps if step.kind == "accounts")
        assert found.docker == "no"
        assert step.data["groups"] == {"treescale-docker": ["treescale"]}


def test_an_installed_engine_is_started_not_installed():
    """Where the packages are there and no engine answers, it is started, now and at boot."""
    step = plan(want(), recorded("alma-9")).steps[0]
    assert (step.words, step.data) == ("start Docker, now and at boot", {"install": False})
    assert "docker-ce" not in step.script


def test_another_version_of_docker_is_left_as_it_is():
    """An engine that answers is never exchanged; that docker_version says another is told."""
    found = plan(want(settings=BuildSettings(docker_version="28")), D12)
    assert "docker" not in kinds(found)
    assert texts(found) == [
        "its Docker engine is 20.10.24+dfsg1, and docker_version says 28; "
        "upgrade it by hand if you mean it: its containers stop then"
    ]
    assert texts(plan(want(settings=BuildSettings(docker_version="20.10")), D12)) == []


def test_balancers_need_modules_and_settings_and_others_do_not():
    """The modules of the algorithms and the settings of the ways are for servers with balancers only."""
    steps = {step.kind: step for step in plan(want(balancers=[WEB]), D12).steps}
    assert steps["modules"].data["now"] == ["ip_vs", "ip_vs_wlc"]
    assert steps["modules"].data["file"] == MODULES_FILE
    assert steps["settings"].data["now"] == {"net.ipv4.ip_forward": "1", "net.ipv4.vs.conntrack": "1"}
    assert {"modules", "settings"}.isdisjoint(kinds(plan(want("b", balancers=[WEB]), D12)))


def test_a_balancer_that_is_taken_away_takes_its_files_with_it():
    """When there are no balancers any more, nothing is loaded or set for them at boot."""
    after = apply_all(plan(want(balancers=[WEB]), D12), D12, want(keys={"a": key_of("a")}).config)
    assert MODULES_FILE in after.digests
    found = plan(want(keys={"a": key_of("a")}), after)
    assert kinds(found) == ["modules", "settings"]
    assert MODULES_FILE not in apply_all(found, after).digests


def test_a_kernel_without_ipvs_is_a_trouble_unless_nftables_may_do():
    """With backend ipvs the kernel must have it and the algorithms; auto and nftables do without, and need nft."""
    bare = replace(D12, modules=frozenset(), modules_loaded=frozenset(), tools=frozenset())

    def found(backend, facts):
        tree = tree_of([WEB], balancing=Balancing(backend=backend, sysctls="leave"))
        return plan(wanted(tree, BuildSettings(), RELEASE)["a"], facts)

    assert texts(found("ipvs", bare))[0].startswith("its kernel 6.1.0-31-amd64 has no IPVS, and balancers need it; ")
    lacking = replace(bare, modules=frozenset({"ip_vs"}), tools=frozenset({"nft"}))
    assert texts(found("ipvs", lacking))[0].startswith("its kernel 6.1.0-31-amd64 has no ip_vs_wlc; ")
    for backend in ("auto", "nftables"):
        assert kinds(found(backend, bare)) == ["packages", *NODE]


def built(**changes):
    """What a server is that has been built, with changes since then."""
    config = want(keys={"a": key_of("a")}).config
    return replace(apply_all(plan(want(), D12), D12, config), **changes)


def changed(wish, facts):
    return [(step.kind, step.data.get("how")) for step in plan(wish, facts).steps]


def test_only_what_has_changed_is_done():
    """A new tree is reloaded, a new release is started, a stopped node too: each alone is all there is to do."""
    keys = {"a": key_of("a")}
    other = want(keys={**keys, "b": key_of("b")})
    assert changed(want(keys=keys), built()) == []
    assert changed(other, built()) == [("config", None), ("activate", "reload")]
    newer = replace(want(keys=keys), release=replace(RELEASE, name="0.3.0-def"))
    assert changed(newer, built()) == [("release", None), ("activate", "restart")]
    stopped = built(unit=Unit(True, True, False))
    assert changed(want(keys=keys), stopped) == [("activate", "start")]
    off = built(unit=Unit(True, False, True))
    assert changed(want(keys=keys), off) == [("unit", None), ("activate", "restart")]
    readable = {**built().stats, CONFIG: Stat(0o644, "root", "root")}
    assert changed(want(keys=keys), built(stats=readable)) == [("config", None), ("activate", "reload")]
    edited = want(keys=keys, supervisor="5" * 64)
    assert changed(edited, built()) == [("config", None), ("activate", "reload")]


def test_a_half_finished_run_is_gone_on_with():
    """A release without its mark is installed again, a key that nobody could read is read, and rights are mended."""
    keys = {"a": key_of("a")}
    half = built(releases=(Release(RELEASE.name, ""),))
    assert str(plan(want(keys=keys), half).steps[0]) == (
        "upload and install release 0.2.0-abc: its installation was not finished"
    )
    folders = {path: each for path, each in built().stats.items() if path != "/etc/treescale/conf.d"}
    assert [step.words for step in plan(want(keys=keys), built(stats=folders)).steps] == ["make /etc/treescale/conf.d"]
    for told in ("reload", "restart"):
        assert changed(want(keys=keys), built(pending=told)) == [("activate", told)]
    loose = {**built().stats, KEY: Stat(0o644, "root", "root")}
    assert [step.words for step in plan(want(keys=keys), built(stats=loose)).steps] == [
        "set the rights of its key",
        "take the new configuration",
    ]


def test_a_server_that_was_made_anew_is_refused_until_somebody_says_so():
    """Another key than last time, or none any more, is told; --accept-new takes it."""
    keys = {"a": "x" * 40}
    assert texts(plan(want(keys=keys), built()))[0].startswith("it has another key than last time: was it made anew?")
    assert texts(plan(want(keys=keys), D12))[0].startswith("it had a key, and has none any more: was it made anew?")
    assert plan(want(keys=keys, accept_key=True), built()).can_go
    assert kinds(plan(want(keys=keys, accept_key=True), D12)) == NODE


def test_releases_that_nobody_needs_go():
    """The wanted release, the one before and the newest of the others stay; what was begun and left goes."""
    releases = [Release("old", "/p", 1), Release("older", "/p", 0), Release("before", "/p", 2), Release("half", "")]
    mine = built().releases
    facts = built(releases=(*mine, *releases), current="before")
    (step,) = (step for step in plan(want(keys={"a": key_of("a")}), facts).steps if step.kind == "prune")
    assert step.data["releases"] == ["half", "older"]


def test_a_dashboard_brings_packages_to_its_node_alone():
    """Where one is switched on later that is a release with more in it, a user and a file; others get the new tree."""
    tree, keys = tree_of(), {name: key_of(name) for name in "abc"}
    before = wanted(tree, BuildSettings(), RELEASE, saved=keys)
    bare = {name: plan(replace(wish, key=""), D12) for name, wish in before.items()}
    facts = {name: apply_all(bare[name], D12, before[name].config) for name in before}
    tree.servers["b"] = replace(tree.servers["b"], dashboard=Dashboard(enabled=True))
    now = wanted(tree, BuildSettings(), RELEASE, saved=keys)
    plans = {name: plan(now[name], facts[name]) for name in now}
    assert changed(now["a"], facts["a"]) == changed(now["c"], facts["c"]) == [("config", None), ("activate", "reload")]
    assert [str(step) for step in plans["b"].steps] == [
        "add the users treescale-dashboard: they are not there",
        "make /var/lib/treescale-dashboard: they are not there",
        "upload and install release 0.2.0-abc-dashboard: 0.2.0-abc has not the packages of the dashboard",
        "write its copy of the tree and a users file for the dashboard: what is there is another",
        "go on with release 0.2.0-abc-dashboard: it runs 0.2.0-abc",
    ]
    assert [plans[name].platform.dashboard for name in "abc"] == [False, True, False]
    after = apply_all(plans["b"], facts["b"], now["b"].config)
    assert plan(now["b"], after).steps == ()
    theirs = replace(after, stats={**after.stats, DASHBOARD_USERS: Stat(0o640, "root", "root")})
    assert changed(now["b"], theirs) == [("config", None), ("activate", "reload")]
    assert changed(before["b"], after) == [("config", None), ("activate", "restart")]


def test_an_interpreter_is_not_changed_without_need():
    """The Python of the current release stays; otherwise that of the distribution goes before newer ones elsewhere."""
    local = Python("/usr/local/bin/python3.13", (3, 13, 0))
    bare = replace(D12, pythons=(*D12.pythons, local, Python("/usr/bin/python3.14", (3, 14, 0), abi="t")))
    assert plan(want(), bare).platform.python == 11
    keys = {"a": key_of("a")}
    assert plan(want(keys=keys), built(pythons=(local, *D12.pythons))).steps == ()
    gone = plan(want(keys=keys), built(pythons=(local,)))
    assert [step.kind for step in gone.steps] == ["release", "activate"]
    assert gone.steps[0].why == "its Python /usr/bin/python3.11 cannot be used any more"


@pytest.mark.parametrize(
    ("name", "install", "by_hand"),
    [
        ("rhel-9", "-q -y install python3.11", "/usr/bin/python3.12"),
        ("ubuntu-2204", "install python3.11", "/usr/bin/python3.13"),
        ("debian-11", "", "/usr/local/bin/python3.12"),
    ],
)
def test_a_server_with_an_old_python_gets_a_newer_one(name, install, by_hand):
    """From its distribution where that has one; one that somebody has installed beside the old one is taken instead."""
    facts = recorded(name)
    steps = [step for step in plan(want(), facts).steps if step.kind == "python"]
    assert [install in step.script for step in steps] == ([True] if install else [])
    minor = int(by_hand.rpartition(".")[2])
    found = plan(want(), replace(facts, pythons=(*facts.pythons, Python(by_hand, (3, minor, 1)))))
    assert (found.can_go, found.python, found.platform.python) == (True, by_hand, minor)
    assert "python" not in kinds(found)


def test_a_part_of_the_standard_library_is_missing():
    """A Python without modules that a node needs is completed by the distribution's package."""
    facts = replace(D12, pythons=(Python("/usr/bin/python3.11", (3, 11, 2), missing=("asyncio", "xmlrpc")),))
    step = plan(want(), facts).steps[0]
    assert str(step) == "install Python 3.11 of the distribution: /usr/bin/python3.11 lacks asyncio, xmlrpc"


def test_without_an_init_system_the_node_is_started_all_the_same():
    """Nothing starts such a server's node at boot: that is said, and so that no engine is started."""
    facts = replace(D13, init="none", packages={})
    found = plan(want(), facts)
    assert "unit" not in kinds(found)
    assert kinds(found)[-1] == "activate"
    assert [(each.kind, each.fatal) for each in found.troubles] == [("docker", False), ("platform", False)]
    after = apply_all(found, facts, want(keys={"a": key_of("a")}).config)
    assert plan(want(keys={"a": key_of("a")}), after).steps == ()


# Many hosts -----------------------------------------------------------------------------------------------------------


def test_hosts_with_the_same_steps_are_one_group():
    """Hosts are told apart by what is done and what is wrong, not by digests or depth."""
    wishes = wanted(tree_of(), BuildSettings(), RELEASE)
    plans = [plan(wishes["a"], D13), plan(wishes["b"], recorded("debian-11")), plan(wishes["c"], D13)]
    found = groups(plans)
    assert [group.title() for group in found] == ["2 hosts: the same 8 steps", "b: cannot be built"]
    assert [group.names for group in found] == [("a", "c"), ("b",)]
    assert groups([plan(want(keys={"a": key_of("a")}), built())])[0].title() == "a: nothing to do"


def test_the_root_is_activated_first_and_nodes_wait_for_the_nearest_failed_one():
    """Activation goes down the tree; who is below a failed node waits for it."""
    tree = tree_of()
    wishes = wanted(tree, BuildSettings(), RELEASE)
    assert waves(plan(wishes[name], D13) for name in ("c", "a", "b")) == (("a",), ("b",), ("c",))
    assert waiting(tree.topology(), {"a"}) == {"b": "a", "c": "a"}
    assert waiting(tree.topology(), {"a", "b"}) == {"c": "b"}


@given(st.lists(st.integers(1, 5), max_size=60))
def test_an_upgrade_begins_with_one_leaf_and_ends_with_the_root(depths):
    """Every host goes once, the first alone, then a tenth, and after that no host before one below its depth."""
    hosts = [HostPlan(f"n{number}", depth) for number, depth in enumerate([0, *depths])]
    found = careful_waves(hosts)
    assert sorted(name for wave in found for name in wave) == sorted(each.name for each in hosts)
    depth_of = {each.name: each.depth for each in hosts}
    assert len(found[0]) == 1 and depth_of[found[0][0]] == max(depth_of.values())
    assert found[-1] == ("n0",)
    flat = [depth_of[name] for wave in found for name in wave]
    assert flat == sorted(flat, reverse=True)
    if len(hosts) > 19:
        assert len(found[1]) == len(hosts) // 10


def test_keys_of_others_are_one_more_round():
    """While keys are made nobody has them all; with all of them each server gets its copy, and then needs nothing."""
    tree, facts = tree_of(), dict.fromkeys("abc", D12)
    first = {name: plan(wish, D12) for name, wish in wanted(tree, BuildSettings(), RELEASE).items()}
    keys = {name: key_of(name) for name in facts}
    wishes = wanted(tree, BuildSettings(), RELEASE, probed=keys)
    after = {name: apply_all(first[name], facts[name], wishes[name].config) for name in facts}
    assert [plan(wishes[name], after[name]).steps for name in facts] == [(), (), ()]
    more = wanted(tree, BuildSettings(), RELEASE, saved=keys, probed={"c": "z" * 40}, accept_keys=True)
    assert [kinds(plan(more[name], after[name])) for name in "ab"] == [["config", "activate"]] * 2


# Properties -----------------------------------------------------------------------------------------------------------

flags = st.booleans()
machines = st.sampled_from([name for name, expected in EXPECTED.items() if not isinstance(expected, str)])


@st.composite
def servers(draw):
    """Servers of any kind, somewhere between bare and built."""
    facts = recorded(draw(machines))
    some = st.sets(st.sampled_from(USERS)).map(frozenset)
    stats = {
        path: draw(st.sampled_from([each, Stat(0o777, "x", "y")])) for path, each in FOLDERS.items() if draw(flags)
    }
    if has_key := draw(flags):
        stats[KEY] = draw(st.sampled_from([FILES[KEY], Stat(0o640, "root", "root")]))
    if draw(flags):
        stats[CONFIG] = FILES[CONFIG]
    releases = draw(st.lists(st.builds(Release, st.sampled_from(["r1", "r2", RELEASE.name]),
                                       st.sampled_from(["", "/usr/bin/python3.11", "/gone"]), st.integers(0, 9)),
                             max_size=4, unique_by=lambda each: each.name))  # fmt: skip
    groups = {**facts.groups, "docker": frozenset(), "treescale": draw(some)}
    return replace(
        facts,
        init=draw(st.sampled_from([facts.init, "none"])),
        accounts=draw(some),
        groups=groups if draw(flags) else {**facts.groups, "docker": frozenset()},
        stats=stats,
        key=draw(st.sampled_from(["", key_of("a")])) if has_key else "",
        releases=tuple(releases),
        current=draw(st.sampled_from(["", *(each.name for each in releases)])),
        unit=Unit(draw(flags), draw(flags), draw(flags)),
        digests={path: draw(st.sampled_from(["", "f" * 64])) for path in (CONFIG, MODULES_FILE) if draw(flags)},
        modules_loaded=draw(st.sampled_from([frozenset(), frozenset({"ip_vs"})])),
        tools=draw(st.sampled_from([frozenset(), frozenset({"nft"}), frozenset({"iptables"})])),
        ours=draw(st.sampled_from([frozenset(), frozenset({1})])),
        locks=draw(st.sampled_from([(), (Holder(1, "apt"),)])),
    )


wishes = st.builds(
    want,
    balancers=st.sampled_from([(), (WEB,)]),
    settings=st.builds(
        BuildSettings,
        docker=st.sampled_from(["vendor", "distro", "no"]),
        keep_releases=st.integers(2, 4),
    ),
    supervisor=st.sampled_from(["", "9" * 64]),
    dashboard=flags,
)


@given(wishes, servers())
def test_a_plan_that_was_done_leaves_nothing_to_do(wish: Wanted, facts):
    """Whatever a server was before, after the steps of its plan it has no more; then it may be of any kind."""
    first = plan(wish, facts)
    keyed = replace(wish, key=key_of("a"), config=want(keys={"a": key_of("a")}).config)
    after = apply_all(first, facts, keyed.config)
    again = plan(keyed, after)
    if first.can_go:
        # A server that has its key already gets the whole tree one plan later, when all keys are known.
        after = apply_all(again, after, keyed.config)
        assert set(kinds(again)) <= {"config", "activate", "prune"}
        assert plan(keyed, after).steps == ()
    else:
        assert first.steps == ()


@settings(max_examples=40)
@given(st.lists(st.tuples(wishes, servers()), max_size=5))
def test_groups_part_the_hosts(hosts):
    """Each host is in exactly one group, with its own words in it, and the groups are in the hosts' order."""
    plans = [replace(plan(wish, facts), name=f"h{number}") for number, (wish, facts) in enumerate(hosts)]
    found = groups(plans)
    assert sorted(name for group in found for name in group.names) == sorted(each.name for each in plans)
    by_name = {each.name: each for each in plans}
    for group in found:
        for name in group.names:
            assert list(map(str, by_name[name].steps)) == list(map(str, group.steps))
            assert by_name[name].troubles == group.troubles
    assert [group.names[0] for group in found] == sorted((group.names[0] for group in found), key=list(by_name).index)


@settings(max_examples=40)
@given(st.lists(st.tuples(wishes, servers()), min_size=2, max_size=3), st.integers(0, 3))
def test_a_broken_host_changes_no_other(hosts, which):
    """When one host cannot be built, the steps of the others are the same as before."""
    broken = [list(host) for host in hosts]
    victim = which % len(hosts)
    broken[victim][1] = replace(broken[victim][1], machine="pdp11")
    before, after = [plan(*host) for host in hosts], [plan(*host) for host in broken]
    assert not after[victim].can_go
    assert [each for at, each in enumerate(before) if at != victim] == [
        each for at, each in enumerate(after) if at != victim
    ]


@given(st.sampled_from(sorted(PROBES)), st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6)), max_size=12))
def test_a_damaged_probe_is_planned_or_refused(name, damages):
    """Whatever a probe has become on its way, there is a plan or a trouble, and nothing raises."""
    output = bytearray(PROBES[name].read_bytes())
    for at, damage in damages:
        at %= len(output)
        output[at : at + len(damage) + 3] = damage
    found = plan(want(balancers=[WEB]), parse(bytes(output)))
    assert found.can_go or (found.troubles and not found.steps)


# What is wanted -------------------------------------------------------------------------------------------------------


def test_each_server_has_its_own_copy_of_the_tree_with_all_keys():
    """A copy is what the tree writes itself to be for that server, and its digest that of the file."""
    tree, keys = tree_of([WEB]), {"a": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"}
    servers = {**tree.servers, "a": replace(tree.servers["a"], public_key=keys["a"])}
    text = dump(replace(tree, servers=servers).with_current("b"))
    assert Copies(tree, keys).text("b") == text
    assert wanted(tree, BuildSettings(), RELEASE, saved=keys)["b"].config == digest(text)
    assert known_keys(tree, keys) == keys
    assert known_keys(replace(tree, servers=servers), {}) == keys


def test_keys_that_servers_have_told_are_in_every_copy():
    """A console that has lost its state finds the keys again; one that has them takes others only when told to."""
    tree, old, new = tree_of(), {"b": "o" * 40}, {"b": "n" * 40}

    def copy(**keys):
        return wanted(tree, BuildSettings(), RELEASE, **keys)["a"].config

    assert copy(probed=new) == digest(Copies(tree, new).text("a"))
    assert copy(saved=old, probed=new) == digest(Copies(tree, old).text("a"))
    assert copy(saved=old, probed=new, accept_keys=True) == digest(Copies(tree, new).text("a"))


def test_the_password_of_supervisord_is_not_compared():
    """Two files that differ in their own passwords alone are the same file."""
    text = '[supervisord]\nuser=root\n[unix_http_server]\npassword={0}\nenvironment=SUPERVISOR_PASSWORD="{0}"\n'
    assert supervisor_digest(text.format("one")) == supervisor_digest(text.format("another"))
    assert supervisor_digest(text.format("one")) != supervisor_digest(text.replace("root", "me").format("one"))
