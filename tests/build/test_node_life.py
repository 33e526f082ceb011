"""A whole node in a sandbox: built from the real bundle, it runs as who it should, follows, goes back, and goes."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from installing import (
    ACCOUNTS,
    STEP_FOLDERS,
    STEP_KEY,
    TINY,
    activate_step,
    config_step,
    in_box,
    install,
    manifest,
    parcel_of,
    release_step,
    states,
    tiny,
    uninstall,
)
from node_bundle import made
from sandbox import Sandbox

from tsbus.build import orders, units
from tsbus.build.places import CONFIG, SUPERVISOR
from tsbus.copies import digest, supervisor_digest
from tsbus.supervision.conf import render_server

pytestmark = pytest.mark.usefixtures("sandboxed")
PROGRAMS = "/opt/treescale/current/bin"
PORT = 888
"""Below 1024: nobody but root may listen there by himself."""
TREE = """\
current_node = "a"
[servers.a]
ip = "10.9.9.9"
service_port = 888
public_key = "{key}"
[servers.a.balancers.web]
address = "10.9.9.9:80"
[servers.a.balancers.web.servers]
a = 8080
[balancing]
backend = "nftables"
[policy.users]
root = "admin"
"@treescale" = "operate"
"""


class Node:
    """A sandbox with a node."""

    def __init__(self) -> None:
        self.box = Sandbox()
        self.box.run("ip address add 10.9.9.9/32 dev lo")
        self.release = made().release
        bundle = made().path.read_bytes()
        steps = [ACCOUNTS, STEP_FOLDERS, release_step(self.release), STEP_KEY]
        first = self.do(*steps, bundle=bundle)
        self.texts = {
            CONFIG: TREE.format(key=first[-1].told["public_key"]),
            SUPERVISOR: render_server("a", port=PORT, balancer=True),
        }
        self.reports = first + self.do(config_step(self.texts), activate_step("start", self.release))
        self.serving = self.treescale("call . router.stats --json")
        """What its router said as soon as it was activated."""

    def do(self, *steps, bundle=None, release=""):
        parcel = parcel_of(bundle) if bundle is not None else None
        told = [orders.order(step, getattr(self, "texts", {}), parcel) for step in steps]
        return install(self.box, orders.document(release or self.release, told, parcel), bundle)

    def treescale(self, *words, check=True):
        return self.box.run(f"{PROGRAMS}/treescale {' '.join(words)}", check=check)

    def supervisorctl(self, words, check=True):
        return self.box.run(f"{PROGRAMS}/supervisorctl -c {SUPERVISOR} {words}", check=check)

    def pid(self, program):
        return self.supervisorctl(f"pid {program}")

    def pids(self):
        """The process of each program, "0" where there is none."""
        programs = ("router", "executor", "docker", "balancer", "events")
        return dict(zip(programs, self.supervisorctl(f"pid {' '.join(programs)}", check=False).split(), strict=True))

    def status(self, program):
        """What the kernel says of a program: names in /proc/PID/status -> words."""
        lines = self.box.run(f"cat /proc/{self.pid(program)}/status").splitlines()
        return {line.split(":")[0]: line.split(":")[1].split() for line in lines}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    one = Node()
    yield one
    one.box.end()


def uid(node, name):
    return node.box.run(f"id -u {name}")


def test_all_of_it_is_done_and_the_router_answers(node):
    """Every order changes something, and at the end all programs run and have joined, and the node answers."""
    assert states(node.reports) == ["changed"] * 6
    assert "up" in node.treescale("status")
    assert set(node.reports[-1].told["programs"]) == {"router", "executor", "docker", "events", "balancer"}
    workers = json.loads(node.serving.splitlines()[0])["body"]["workers"]
    assert {"exec.run", "node.facts", "docker.info", "lb.ls"} <= {one for each in workers for one in each["services"]}


@pytest.mark.parametrize(
    ("program", "user", "capabilities", "gains"),
    [
        ("router", "treescale", {10}, False),
        ("docker", "treescale-docker", set(), False),
        ("balancer", "root", {12, 13}, False),
        ("executor", "root", None, True),
        ("events", "root", None, True),
    ],
)
def test_each_program_runs_as_who_it_needs_to_be(node, program, user, capabilities, gains):
    """With that user, those capabilities and no way to more; only the executor and the listener are all of root."""
    status = node.status(program)
    assert set(status["Uid"]) == {uid(node, user)}
    assert status["NoNewPrivs"] == [str(int(not gains))]
    if capabilities is not None:
        mask = sum(1 << number for number in capabilities)
        assert {int(status[each][0], 16) for each in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {mask}
    if program in ("docker", "balancer"):
        assert node.box.run("getent group treescale").split(":")[2] in status["Groups"]


def test_nobody_else_can_write_where_root_writes(node):
    """Folders are closed to others; the router and the monitor have their own, so that neither can set a trap."""
    ask = "stat -c '%a %U %G'"
    assert node.box.run(f"{ask} /run/treescale /run/treescale/router /run/treescale/router/bus") == (
        "750 root treescale\n750 treescale treescale\n770 treescale treescale"
    )
    assert node.box.run(f"{ask} /run/treescale/ctl /var/log/treescale /var/log/treescale/docker") == (
        "700 root root\n2750 root treescale\n2750 treescale-docker treescale"
    )
    for user in ("treescale", "treescale-docker", "treescale-exec"):
        touch = f"setpriv --reuid {user} --regid {user} --init-groups touch"
        assert node.box.run(f"{touch} /run/treescale/x /var/log/treescale/x /etc/treescale/x", check=False)
    assert node.box.run("find /run/treescale /var/log/treescale /etc/treescale -name x") == ""


def test_programs_of_the_executor_are_of_an_ordinary_user(node):
    """Whoever names no user gets treescale-exec, an administrator root if he says so; the audit log has both."""
    assert node.treescale("exec a --no-prefix -q -- id -un") == "treescale-exec"
    assert node.treescale("exec a --no-prefix -q --sudo-user root -- id -un") == "root"
    audit = [json.loads(line) for line in node.box.run("cat /var/log/treescale/exec-audit.log").splitlines()]
    assert [line["run_as"] for line in audit if line["record"] == "start"] == ["treescale-exec", "root"]


def test_an_operator_is_no_root(node):
    """A member of the group treescale may use the bus and run programs, but not as root; others cannot even ask."""
    node.box.run("useradd --system --groups treescale olga; useradd --system paul")
    as_olga = f"setpriv --reuid olga --regid olga --init-groups {PROGRAMS}/treescale"
    assert node.box.run(f"{as_olga} exec a --no-prefix -q -- id -un") == "treescale-exec"
    assert "no rule lets" in node.box.run(f"{as_olga} exec a --sudo-user root -- id", check=False)
    as_paul = as_olga.replace("olga", "paul").replace("--init-groups", "--clear-groups")
    assert "no router answers" in node.box.run(f"{as_paul} status", check=False)
    node.box.run("userdel olga; userdel paul")


def test_the_balancer_works_with_two_capabilities(node):
    """The table is in the kernel, and nothing is wrong."""
    assert "1 balancer: 1 ok" in node.treescale("lb ls")
    assert "dnat ip to 10.9.9.9:8080" in node.box.run("nft list ruleset")


def test_a_worker_is_kept_running_as_its_user(node):
    """It is started, shown, started again when it is killed, changed only on demand, and removed."""
    node.box.run("useradd --system --groups treescale walter")
    worker = f"{PROGRAMS}/python -c 'import time, tsbus; print(1); time.sleep(1000)'"
    add = f"{PROGRAMS}/treescale worker add mine --cwd / --user walter"
    assert "a: mine runs (pid " in node.box.run(f"{add} -- {worker}")
    status = node.status("mine")
    assert set(status["Uid"]) == {uid(node, "walter")}
    assert (status["NoNewPrivs"], int(status["CapBnd"][0], 16)) == (["1"], 0)
    before = node.pid("mine")
    assert f"runs already (pid {before})" in node.box.run(f"{add} -- {worker}")
    assert "another worker mine already" in node.box.run(f"{add} -- sleep 1000", check=False)
    (listed,) = map(json.loads, node.treescale("worker ls --json").splitlines())
    assert (listed["name"], listed["state"], str(listed["pid"])) == ("mine", "RUNNING", before)
    assert "mine  RUNNING" in node.treescale("worker ls")
    node.box.run(f"kill -9 {before}; while [ $({PROGRAMS}/supervisorctl -c {SUPERVISOR} pid mine) = {before} ]; do "
                 "sleep 0.1; done")  # fmt: skip
    assert "a: mine is gone" in node.treescale("worker remove mine")
    assert "no workers of your own" in node.treescale("worker ls")
    assert node.box.run("pgrep -u walter", check=False) == ""
    node.box.run("userdel walter")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("add mine -- sleep 1", "as whom? Give --user NAME"),
        ("add mine --user nemo -- sleep 1", "no user 'nemo'"),
        ("add mine --user root -- no-such-program", "no program no-such-program"),
        ("add router --user root -- sleep 1", "cannot be the name of a worker"),
        ("add mine --user root -- false", "does not stay, and is tried again"),
        ("remove nothing", "has no worker 'nothing'"),
        ("ls --conf /etc/passwd", "is no supervisord.conf of TreeScale"),
        ("ls --conf /nowhere", "there is no /nowhere"),
    ],
)
def test_a_worker_that_cannot_be_is_told(node, words, text):
    """One line says what is wrong and what to do, and the node goes on."""
    assert text in node.treescale("worker", words, check=False)
    node.treescale("worker remove mine", check=False)
    assert node.box.run("ls /etc/treescale/conf.d") == ""


def test_a_new_tree_ends_nothing_that_it_does_not_concern(node):
    """Only who reads what is new starts anew, and who was stopped by hand stays so; supervisord's password stays."""
    before, password = node.pids(), node.box.run(f"grep ^password {SUPERVISOR}")
    node.supervisorctl("stop docker")
    node.texts = {
        CONFIG: node.texts[CONFIG].replace('address = "10.9.9.9:80"', 'address = "10.9.9.9:81"'),
        SUPERVISOR: node.texts[SUPERVISOR].replace("docker.log\n", "engine.log\n"),
    }
    reports = node.do(config_step(node.texts), activate_step("reload", node.release))
    assert states(reports) == ["changed", "changed"]
    after = node.pids()
    assert {name for name in before if before[name] != after[name]} == {"balancer", "docker"}
    assert after["docker"] == "0"
    assert node.box.run(f"grep ^password {SUPERVISOR}") == password
    assert node.box.run("ls /var/lib/treescale") == "manifest.json"


def test_where_it_is_not_known_what_was_read_all_that_run_start_anew(node):
    """A build that wrote a tree and was cut off, and one with another tree: a service may have read either."""
    before, text = node.pids(), node.texts[CONFIG]
    for max_jobs in (7, 8):
        node.texts = {**node.texts, CONFIG: text + f"[servers.a.executor]\nmax_jobs = {max_jobs}\n"}
        node.do(config_step(node.texts))
    assert states(node.do(activate_step("reload", node.release))) == ["changed"]
    after = node.pids()
    assert {name for name in before if before[name] != after[name]} == {"executor", "balancer"}
    assert after["docker"] == "0"
    node.supervisorctl("start docker")


def test_a_release_whose_router_does_not_run_is_left_again(node):
    """The node goes back to the release before, which answers with the files that it writes itself; why is told."""
    bundle = tiny()
    step = orders.order(release_step(), {}, parcel_of(bundle))
    step["data"]["check"] = ""
    document = orders.document(TINY, [step], parcel_of(bundle))
    assert states(install(node.box, document, bundle)) == ["changed"]
    step, pids = activate_step("restart", TINY), node.pids()
    (failed,) = node.do(replace(step, data={**step.data, "own_files": True}), release=TINY)
    assert "release 1.0-tiny does not know what to do with the tree here: " in failed.told["error"]
    assert node.pids() == pids, "it was asked first"
    (failed,) = node.do(activate_step("restart", TINY), release=TINY)
    assert f"it is back to releases/{node.release}" in failed.told["error"]
    assert node.box.run("readlink /opt/treescale/current") == f"releases/{node.release}"
    node.box.run(f"for i in $(seq 100); do {PROGRAMS}/treescale ping . && exit; sleep 0.1; done; exit 1")
    node.texts[SUPERVISOR] = render_server("a", port=PORT, balancer=True)
    assert facts(node)["supervisor"] == supervisor_digest(node.texts[SUPERVISOR]), "not as another build had it"
    assert states(node.do(activate_step("restart", node.release))) == ["changed"]


def test_the_same_code_is_the_same_release_wherever_it_runs(node):
    """A console that was installed makes the release that a checkout makes."""
    program = "from tsbus.build.bundle import Bundler; print(Bundler().release.name)"
    assert node.box.run(f"{PROGRAMS}/python -c '{program}'") == node.release


def test_a_release_has_all_that_its_modules_import(node):
    """Every module can be loaded on a node but those that need the console's SSH or the dashboard's extra."""
    program = (
        "import importlib, pkgutil, tsbus\n"
        'for each in pkgutil.walk_packages(tsbus.__path__, "tsbus.", onerror=lambda _: None):\n'
        "    try: importlib.import_module(each.name)\n"
        '    except ImportError as error: print(each.name.split(".")[1], error.name)\n'
    )
    missing = set(node.box.run(f"{PROGRAMS}/python -c '{program}'").splitlines())
    extra = {"nicegui", "fastapi", "starlette", "uvicorn", "prometheus_client"}
    assert {"build paramiko"} < missing <= {"build paramiko", *(f"dashboard {each}" for each in extra)}


def test_a_node_is_no_console(node):
    """Its release builds nothing and says in a line what is missing; help and completion of the build are there."""
    for words in ("", "status", "unlock", "upgrade --yes", "add b"):
        assert node.treescale("build", words, check=False) == (
            "treescale: this machine is no console, paramiko is not installed; "
            "build from one, or make one of it: pip install paramiko"
        )
    assert "new key pairs" in node.treescale("build rotate-keys --help")
    complete = "COMP_WORDS='treescale build r' COMP_CWORD=2 _TREESCALE_COMPLETE=bash_complete"
    assert "plain,rotate-keys" in node.box.run(f"{complete} {PROGRAMS}/treescale")


def test_systemd_finds_nothing_wrong_with_the_unit(node):
    """Its own check knows every key of the unit, and finds the programs that it starts."""
    path = "/etc/systemd/system/treescale.service"
    in_box(node.box, path).write_text(units.SYSTEMD)
    said = node.box.run(f"systemd-analyze verify {path} 2>&1 | grep -i treescale", check=False)
    node.box.run(f"rm {path}")
    assert said == ""


def facts(node):
    """What the node says of itself."""
    return json.loads(node.treescale("call . node.facts --json").splitlines()[0])["body"]


def send(node, text):
    """Send the node a tree over its own bus, by hand."""
    in_box(node.box, "/tmp/tree.toml").write_text(text)
    answer = json.loads(node.treescale("call . node.config --json --text - < /tmp/tree.toml").splitlines()[0])["body"]
    in_box(node.box, "/tmp/tree.toml").unlink()
    return answer


def test_a_node_tells_what_a_build_compares(node):
    """Its release, and the digests that a probe would find: all that `build status` needs, through the tree."""
    told = facts(node)
    assert told["release"] == node.release
    assert told["config"] == digest(in_box(node.box, CONFIG).read_text())
    assert told["supervisor"] == supervisor_digest(node.texts[SUPERVISOR])
    assert (told["manifest"]["made"], told["pending"]) == (len(manifest(node.box)), "")


def test_a_node_takes_a_tree_from_the_bus(node):
    """Its copy is written by root for the group, as a build does it, and its router follows."""
    text = in_box(node.box, CONFIG).read_text()
    new = text.replace('ip = "10.9.9.9"', 'ip = "10.9.9.9"\ntags = ["new"]')
    router = node.pid("router")
    assert send(node, new.replace('current_node = "a"', 'current_node = "."'))["tells"] == {
        "balancer": "restart", "router": "reload"
    }  # fmt: skip
    assert in_box(node.box, CONFIG).read_text() == new
    assert node.box.run(f"stat -c '%a %U %G' {CONFIG}") == "640 root treescale"
    node.box.run(f"until {PROGRAMS}/treescale call @new router.ping; do sleep 0.1; done")
    node.box.run(f"while {PROGRAMS}/treescale call . node.facts --json | grep follow; do sleep 0.1; done")
    assert node.pid("router") == router


def test_a_full_disk_leaves_the_tree_that_is_there(node):
    """Where there is no room for a new tree the answer says so; the old one is in place, and nothing is pending."""
    text = in_box(node.box, CONFIG).read_text()
    node.box.run("cp -a /etc/treescale /tmp/etc && mount -t tmpfs -o size=64k,mode=755 none /etc/treescale && "
                 "cp -a /tmp/etc/. /etc/treescale && rm -r /tmp/etc && ls /etc/treescale > /tmp/before")  # fmt: skip
    large = text.replace('current_node = "a"', 'current_node = "."') + "# more\n" * 20_000
    in_box(node.box, "/tmp/tree.toml").write_text(large)
    said = node.treescale("call . node.config --text - < /tmp/tree.toml", check=False)
    assert "No space left on device" in said
    assert in_box(node.box, CONFIG).read_text() == text
    assert node.box.run("ls /etc/treescale | diff /tmp/before -") == ""
    assert facts(node)["pending"] == ""
    node.box.run("umount /etc/treescale; rm /tmp/tree.toml /tmp/before")


def test_a_key_is_exchanged_for_the_next(node):
    """The next one is made beside it and told; trees that name both, and then it alone, put it in the other's place."""
    old = node.treescale("keys public /etc/treescale/node.key")

    def key(order):
        (report,) = install(node.box, orders.document(node.release, [order]))
        return report

    made = key(orders.next_key())
    new = made.told["public_key"]
    assert (made.state, new == old) == ("changed", False)
    assert key(orders.next_key()).told["public_key"] == facts(node)["other_public_key"] == new
    assert "is not the key" in key(orders.exchange_key("x" * 40)).told["error"]
    text = in_box(node.box, CONFIG).read_text().replace('current_node = "a"', 'current_node = "."')
    for mine, other in ((old, new), (new, old), (new, "")):
        line = f'public_key = "{mine}"' + (f'\nother_public_key = "{other}"' if other else "")
        assert send(node, text.replace(f'public_key = "{old}"', line))["changed"]
    assert (facts(node)["public_key"], facts(node)["other_public_key"]) == (new, "")
    assert key(orders.exchange_key(new)).state == "ok"
    assert node.box.run("ls /etc/treescale | grep key; stat -c '%a %U' /etc/treescale/node.key") == (
        "node.key\n600 treescale"
    )
    assert states(node.do(activate_step("restart", node.release))) == ["changed"]


def test_an_uninstalled_node_is_a_server_as_before(node):
    """Its processes end, the kernel's table is empty, and no file of it is left."""
    assert states(uninstall(node.box)) == ["changed"]
    assert node.box.changes() == {}
    assert node.box.run("find /run -name 'treescale*'; nft list ruleset; pgrep -f /opt/treescal[e]", check=False) == ""
