"""The installer, run for real in a sandbox: what it makes and takes back, killed, cut off, or short of room."""

import errno
import random
from collections.abc import Iterator

import pytest
from installing import (
    ACCOUNTS,
    STEP_FOLDERS,
    STEP_KEY,
    TEXTS,
    TINY,
    Console,
    config_step,
    in_box,
    install,
    manifest,
    parcel_of,
    release_step,
    states,
    tiny,
    tiny_orders,
    tree,
    uninstall,
)
from node_bundle import HERE
from sandbox import Sandbox
from waiting import wait

from tsbus.build import orders
from tsbus.build.places import CONFIG, KEY, SUPERVISOR
from tsbus.build.steps import Step
from tsbus.build.trouble import classify
from tsbus.copies import digest

pytestmark = pytest.mark.usefixtures("sandboxed")
BUNDLE = tiny()
DOCUMENT = tiny_orders(BUNDLE, TEXTS)
RELEASE = f"/opt/treescale/releases/{TINY}"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    one = Sandbox()
    yield one
    one.end()


def document(*made, parcel=None, release=TINY):
    return orders.document(release, made, parcel)


def test_a_second_time_nothing_is_changed(box):
    """Orders that are carried out are found so, and nothing is written again."""
    assert states(install(box, DOCUMENT, BUNDLE)) == ["changed"] * 5
    before = tree(box)
    assert states(install(box, DOCUMENT, BUNDLE)) == ["ok"] * 5
    assert tree(box) == before


def test_an_uninstall_leaves_what_was_there_before(box):
    """Files, folders, users, groups: all is as it was, and a second uninstall finds nothing to do."""
    install(box, DOCUMENT, BUNDLE)
    assert len(box.changes()) > 30
    assert states(uninstall(box)) == ["changed"]
    assert box.changes() == {}
    assert states(uninstall(box)) == ["ok"]
    assert box.changes() == {}


def test_what_was_there_is_put_back(box):
    """Files, rights and users from before the build are not in its way, and an uninstall gives them back."""
    box.run("useradd --system treescale-exec; install -d -m 0700 -o nobody /etc/treescale; cd /etc/treescale; "
            "echo mine > treescale.toml; echo too > other; chmod 0604 *")  # fmt: skip
    before = tree(box)
    assert states(install(box, DOCUMENT, BUNDLE)) == ["changed"] * 5
    assert in_box(box, CONFIG).read_text() == TEXTS[CONFIG]
    uninstall(box)
    assert tree(box) == before


KILLER = """
import os, sys
count = 0
def look(event, args, number={number}):
    global count
    if event.split(".")[0] in ("open", "os", "shutil", "subprocess", "fcntl"):
        count += 1
        if count == number:
            os.kill(os.getpid(), 9)
sys.addaudithook(look)
"""
MOMENTS = 400
"""About as many steps a whole run has; a kill at a later one comes too late."""


def killed(seed):
    """The moments at which three runs are killed: one early, one anywhere, one late."""
    chance = random.Random(seed)
    return [chance.randint(1, MOMENTS // 4), chance.randint(1, MOMENTS), chance.randint(MOMENTS // 2, MOMENTS)]


@pytest.fixture(scope="module")
def reference() -> dict:
    """What a run that nobody disturbs makes."""
    one = Sandbox()
    install(one, DOCUMENT, BUNDLE)
    made = tree(one)
    one.end()
    return made


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_it_is_done_by_doing_it_again(box, reference, seed):
    """Runs that are killed between any two steps leave nothing that keeps the next one from the same end, nor from
    taking all of it back: killed in the middle of that, too."""
    for number in killed(seed):
        install(box, DOCUMENT, BUNDLE, before=KILLER.format(number=number))
    if seed % 2:
        uninstall(box, before=KILLER.format(number=random.Random(seed).randint(1, 200)))
        if seed % 4 == 1:
            install(box, DOCUMENT, BUNDLE, before=KILLER.format(number=random.Random(seed).randint(1, MOMENTS)))
        assert states(uninstall(box))[-1] in ("ok", "changed")
        assert box.changes() == {}
    else:
        assert "failed" not in states(install(box, DOCUMENT, BUNDLE))
        assert set(tree(box)) == set(reference)
        different = {path for path, about in tree(box).items() if about != reference[path]}
        assert different <= {"/var/lib/treescale/manifest.json"}
        uninstall(box)
        assert box.changes() == {}


def test_an_upload_goes_on_where_it_broke_off(box):
    """What has come of the bundle is there at the next time; the rest makes it whole."""
    half = len(BUNDLE) // 2
    console = Console(box, parcel_of(BUNDLE))
    console.send(DOCUMENT + BUNDLE[:half])
    (cut,) = console.end()
    assert (cut.state, cut.told["type"]) == ("failed", "EOFError")
    assert classify(cut.failure(None, "root@a:22")).kind == "lost"
    again = Console(box, parcel_of(BUNDLE))
    assert again.first.have == half
    again.send(DOCUMENT + BUNDLE[half:])
    assert [report.state for report in again.end() if report.state == "failed"] == []
    assert in_box(box, f"{RELEASE}/ready").exists()


def test_a_damaged_bundle_is_not_unpacked(box):
    """What is not the bundle that was said is thrown away, so that the next time all of it comes."""
    console = Console(box, parcel_of(BUNDLE))
    console.send(DOCUMENT + BUNDLE[:-1] + b"x")
    (failed,) = console.end()
    assert failed.told["error"] == "what came of the bundle is not what was sent; build again"
    assert Console(box, parcel_of(BUNDLE)).first.have == 0
    assert not in_box(box, "/opt/treescale").exists()


@pytest.mark.parametrize(("options", "name"), [("size=256k", "ENOSPC"), ("ro", "EROFS")])
def test_a_disk_that_cannot_be_written_is_told_and_left_empty(box, options, name):
    """A full disk or one that cannot be written fails with its own kind, and what was half made is gone."""
    bundle = tiny(random.Random(1).randbytes(500_000))
    install(box, document(orders.order(ACCOUNTS, {}), orders.order(STEP_FOLDERS, {})))
    box.run(f"mount -t tmpfs -o {options},mode=755 none /opt/treescale/releases")
    *before, failed = install(box, tiny_orders(bundle, TEXTS), bundle)
    assert states(before) == ["ok", "ok"]
    assert failed.told["errno"] == getattr(errno, name)
    assert classify(failed.failure(release_step(), "root@a:22")).kind == "disk"
    assert list(in_box(box, "/opt/treescale/releases").iterdir()) == []


def test_a_release_that_does_not_work_is_not_there(box):
    """A self-check that fails is told with its last line; nothing of the release is left."""
    made = orders.order(release_step(), {}, parcel_of(BUNDLE))
    made["data"]["check"] = "import tiny; assert 0, 'no CURVE'"
    first = [orders.order(ACCOUNTS, {}), orders.order(STEP_FOLDERS, {})]
    reports = install(box, document(*first, made, parcel=parcel_of(BUNDLE)), BUNDLE)
    assert "AssertionError: no CURVE" in reports[-1].told["error"]
    assert list(in_box(box, "/opt/treescale/releases").iterdir()) == []


def test_a_release_is_a_virtual_environment_with_its_programs(box):
    """Its Python finds its packages and nothing of the system's, and its scripts run from where it will be."""
    install(box, DOCUMENT, BUNDLE)
    asked = box.run(f"{RELEASE}/bin/python -c 'import sys, tiny; print(tiny.__file__, sys.prefix)'").split()
    assert asked == [f"{RELEASE}/lib/python3.{HERE.python}/site-packages/tiny/__init__.py", RELEASE]
    assert in_box(box, f"{RELEASE}/bin/script").read_text().startswith(f"#!{RELEASE}/bin/python3 -IS\n")
    assert box.run(f"{RELEASE}/bin/treescale keys public {KEY}") == "p" * 40
    assert list(in_box(box, RELEASE).rglob("__pycache__/*.pyc"))
    assert in_box(box, KEY).stat().st_mode & 0o777 == 0o600


def test_the_password_of_supervisord_is_made_there_and_stays(box):
    """It is in the file alone, another one on each node, and the same after a change of the rest."""
    console_lines = []
    install(box, DOCUMENT, BUNDLE)
    first = in_box(box, SUPERVISOR).read_text()
    password = first.splitlines()[0].removeprefix("password=")
    assert len(password) == 32
    assert first == f'password={password}\nenvironment=SUPERVISOR_PASSWORD="{password}"\n'
    other = {SUPERVISOR: f"; new\n{TEXTS[SUPERVISOR]}"}
    console = Console(box)
    console.send(document(orders.order(config_step(other), other)))
    console.end()
    console_lines += console.lines
    assert in_box(box, SUPERVISOR).read_text() == f"; new\n{first}"
    assert in_box(box, "/var/lib/treescale/pending").read_text() == "restart"
    assert password not in "".join(console_lines)
    assert password not in in_box(box, "/var/lib/treescale/manifest.json").read_text()


def test_scripts_say_what_they_do_and_end_as_they_end(box):
    """Lines are passed on as they come; a status other than 0 is a failure with the last line."""
    step = Step("packages", "install nftables", "", {"packages": ["nftables"]}, "echo one; echo two >&2; exit 75")
    console = Console(box)
    console.send(document(orders.order(step, {})))
    said = console.end()
    assert "".join(each.told["text"] for each in said if each.state == "output") == "one\ntwo\n"
    assert said[-1].told["status"] == 75
    assert classify(said[-1].failure(step, "root@a:22")).kind == "package-lock"
    made = {"what": "packages", "kind": "packages", "packages": ["nftables"]}
    assert made in manifest(box)


def test_a_script_outlives_its_console(box):
    """A package manager is not cut off in the middle because somebody's laptop was closed."""
    box.run("mkfifo /go")
    step = Step("docker", "install", "", {}, "echo begun; read word < /go; seq 10000; touch /done")
    console = Console(box)
    console.send(document(orders.order(step, {})))
    while (report := console.read()) is not None and report.state != "output":
        pass
    console.hang_up()
    box.run("echo on > /go; while [ ! -e /done ]; do sleep 0.05; done")


def test_a_release_that_nobody_waits_for_is_given_up(box):
    """Who comes back after the console was lost need not wait for the rest of it, and finds nothing of it."""
    compiling = 'sys.executable, "-I", "-m", "compileall", *options, self._site'
    console = Console(box, parcel_of(BUNDLE), change=[(compiling, '"sleep", "1000"')])
    console.send(DOCUMENT + BUNDLE)
    box.run("while ! pgrep sleep; do sleep 0.05; done")
    console.hang_up()
    assert "failed" not in states(install(box, DOCUMENT, BUNDLE))
    wait("it is gone", lambda: "sleep" not in box.run("ps -e -o comm"))


@pytest.mark.parametrize(
    ("script", "limit_s", "why"),
    [("sleep 1000 & sleep 1000", 0.3, "has not ended within 0.3 s"), ("yes", 60, "writes without end")],
)
def test_a_script_has_limits(box, script, limit_s, why):
    """One that does not end, or fills the memory, is ended with all that it has started; what is told is bounded."""
    console = Console(box)
    console.send(document({"kind": "script", "data": {"script": script, "limit_s": limit_s}}))
    said = console.end()
    assert said[-1].told["error"] == f"the script {why}"
    assert sum(len(each.told["text"]) for each in said if each.state == "output") <= 1 << 20
    # Killed it is already; process 1 buries it when it has time.
    wait("all of it is gone", lambda: not {"sleep", "yes"} & set(box.run("ps -e -o comm").split()))


def test_only_one_changes_a_server_at_a_time(box):
    """While one installer works, another waits, and says why when that takes too long."""
    first = Console(box)
    second = Console(box, change=[("LOCK_S: Final = 300.0", "LOCK_S: Final = 0.2")])
    assert second.first.told["error"] == "another build is changing this server; wait until it is done"
    assert second.end() == []
    first.end()


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ({"kind": "prune", "data": {"releases": ["../../etc"]}}, "'../../etc' is no name"),
        ({"kind": "accounts", "data": {"add": ["-o"], "groups": {}}}, "'-o' is no name"),
        ({"kind": "modules", "data": {"now": ["a b"], "file": "/etc/x", "text": ""}}, "'a b' is no name"),
        ({"kind": "nonsense", "data": {}}, "'nonsense'"),
        (
            {"kind": "config", "data": {"files": {CONFIG: {"text": "cut of", "digest": digest("cut off")}}}},
            f"{CONFIG} came with another digest than it has",
        ),
        (orders.order(STEP_KEY, {}), "no user treescale or no group treescale on this machine"),
        ({"kind": "activate", "data": {"init": "none", "how": "start"}}, f"release {TINY} is not installed"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_orders_that_make_no_sense_change_nothing(box, order, text):
    """Each is one line, and nothing but the node's memory is there then."""
    (failed,) = install(box, document(order))
    assert failed.told["error"].startswith(text)
    assert all(path.startswith("/var/lib/treescale") for path in box.changes())


def test_old_releases_go_but_never_the_one_in_use(box):
    """Pruning removes what it is told, with what a killed run has left."""
    install(box, DOCUMENT, BUNDLE)
    box.run(f"ln -s releases/{TINY} /opt/treescale/current; cd /opt/treescale/releases; mkdir 0.9-old {TINY}.new")
    order = {"kind": "prune", "data": {"releases": ["0.9-old", TINY, f"{TINY}.new"]}}
    assert states(install(box, document(order))) == ["changed"]
    assert [each.name for each in in_box(box, "/opt/treescale/releases").iterdir()] == [TINY]


def test_kernel_settings_are_set_now_and_at_boot_and_their_file_goes(box):
    """Values and the file for the next boot; without values the file is taken away."""
    file = "/etc/sysctl.d/90-treescale.conf"
    data = {"file": file, "text": "net.ipv4.ip_forward = 1\n", "now": {"net.ipv4.ip_forward": "1"}}
    assert states(install(box, document({"kind": "settings", "data": data}))) == ["changed"]
    assert states(install(box, document({"kind": "settings", "data": data}))) == ["ok"]
    assert box.run("cat /proc/sys/net/ipv4/ip_forward") == "1"
    assert in_box(box, file).read_text() == data["text"]
    gone = {"kind": "settings", "data": {"file": file, "text": "", "now": {}}}
    assert states(install(box, document(gone))) == ["changed"]
    assert not in_box(box, file).exists()
