"""`treescale up` with real supervisords: what starts, what comes back when it is killed, and what is refused."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tree import HOST, new_port
from waiting import LIMIT_S, wait, wait_wanted

from tsbus import connect_blocking
from tsbus.supervision import control
from tsbus.supervision.conf import NodeFiles

ROOT = Path(__file__).parents[2]
UP_S = 300.0
"""How long `treescale up` may take, which waits for what it has started."""
CHILDREN = {"a": ["b"], "b": ["c"], "c": []}
GREETER = f"greeter={sys.executable} {ROOT}/examples/greeter.py"


class Machine:
    """A tree file, and the command that starts it."""

    def __init__(self, children):
        self.folder = Path(tempfile.mkdtemp(prefix="ts-"))  # short enough for sockets
        self.file = self.folder / "tree.toml"
        self.run_dir = self.folder / "run"
        self.ports = {name: new_port() for name in children}
        self.write(children)

    def write(self, children, tag="one"):
        tables = [
            f'[servers.{name}]\nip = "{HOST}"\nservice_port = {self.ports[name]}\nchilds = {json.dumps(below)}\n'
            f'tags = ["{tag}"]\n'
            for name, below in children.items()
        ]
        self.file.write_text("\n".join(tables))

    def files(self, node):
        return NodeFiles.within(self.run_dir / node)

    def bus(self, node):
        return str(self.files(node).bus)

    def run(self, *options, code=0):
        """Run `treescale up` and return what it printed: JSON, or its complaint."""
        argv = [ROOT / "bin/treescale", "up", self.file, "--run-dir", self.run_dir, "--json", *options]
        env = os.environ | {"DOCKER_HOST": f"unix://{self.folder}/docker.sock"}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=UP_S, env=env)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    def add_program(self, name, lines):
        """Write a file for a program of node a's own."""
        folder = self.files("a").conf_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.conf").write_text(f"[program:{name}]\n{lines}\n")

    def pid(self, node, program):
        """The pid of a program that runs well, 0 otherwise."""
        argv = [ROOT / "bin/treescale", "up", self.file, "--run-dir", self.run_dir, "--json", "--status"]
        told = json.loads(subprocess.run(argv, capture_output=True, timeout=UP_S).stdout)[node] or ()
        return next((each["pid"] for each in told if each["name"] == program and each["state"] == "RUNNING"), 0)

    def pids(self):
        return [
            pid for path in self.run_dir.iterdir() for group in control.pids_of(self.files(path.name)) for pid in group
        ]

    def end(self):
        self.run("--down")
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def tree():
    """Three nodes in a row that are up, with a worker on the middle one."""
    machine = Machine(CHILDREN)
    machine.started = machine.run()
    machine.run("--node", "b", "--worker", GREETER)
    yield machine
    machine.end()


@pytest.fixture
def machine():
    """A tree of one node, not started."""
    machine = Machine({"a": []})
    yield machine
    machine.end()


def test_all_nodes_start_and_see_each_other(tree):
    """One command starts every node of the file, with keys and sockets closed to others, and waits for the tree."""
    assert tree.started["started"] == ["a", "b", "c"]
    with connect_blocking(tree.bus("c")) as bus:
        assert {each["state"] for each in bus.call_one("c", "router.status")["nodes"]} == {"up"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tree.run_dir / "a").iterdir()}
    assert modes["node.key"] == modes["supervisord.conf"] == 0o600
    assert (modes["treescale.toml"], modes["ctl"]) == (0o640, 0o700)
    assert (tree.run_dir / "a").stat().st_mode & 0o777 == 0o750


def test_the_monitor_gets_the_engine_of_the_environment(tree):
    """DOCKER_HOST goes through supervisord to the container monitor, which says where there is no engine, once."""
    with connect_blocking(tree.bus("a")) as bus:
        engine = bus.call_one("b", "docker.info")["engine"]
    assert not engine["up"]
    assert engine["reason"].startswith(f"no engine at {tree.folder}/docker.sock")
    log = (tree.files("b").log_dir / "docker.log").read_text()
    assert log.count("engine.down") == 1


def test_a_second_time_changes_nothing(tree):
    """What runs goes on when the same command is given again."""
    before = tree.pids()
    assert tree.run()["unchanged"] == ["a", "b", "c"]
    assert sorted(tree.pids()) == sorted(before)


@pytest.mark.parametrize(
    ("program", "works"),
    [
        ("router", "router.ping"),
        ("executor", "exec.stats"),
        ("docker", "containers.stats"),
        ("events", "process.stats"),
        ("greeter", "greeter.stats"),
    ],
)
def test_a_killed_process_is_back_and_joined(tree, program, works):
    """A process that gets kill -9 is started again, answers callers elsewhere, and the tree is told of both."""
    before = wait(f"{program} runs", lambda: tree.pid("b", program))
    with connect_blocking(tree.bus("a")) as bus, bus.subscribe("process.>") as events:
        for topic in ("process.exited", "process.started"):
            wait_wanted(topic, tree.bus("b"))
        os.kill(before, signal.SIGKILL)
        exited = next_event(events, "process.exited", program)
        started = next_event(events, "process.started", program)
        wait(f"{program} answers", lambda: bus.call("b", works).ok)
    assert exited == {"node": "b", "name": program, "pid": before, "expected": False, "from_state": "RUNNING"}
    assert started["pid"] not in (0, before)


def next_event(events, topic, program):
    """Return the body of the next such event of a program."""
    end = time.monotonic() + LIMIT_S
    while True:
        event = events.next(end - time.monotonic())
        if event.topic == topic and event.json()["name"] == program:
            return event.json()


def test_a_process_that_is_killed_again_and_again_comes_back_each_time(tree):
    """After three deaths in a row, each as soon as it is back, it is started once more."""
    with connect_blocking(tree.bus("a")) as bus:
        pid = 0
        for _ in range(3):
            pid = wait("executor runs", lambda before=pid: (now := tree.pid("c", "executor")) != before and now)
            os.kill(pid, signal.SIGKILL)
        wait("executor is back", lambda: tree.pid("c", "executor") not in (0, pid))
        wait("executor answers", lambda: bus.call("c", "exec.stats").ok)


def test_a_changed_tree_is_followed_without_new_routers(tree):
    """After the file has changed, the same command makes all nodes follow it; their routers go on."""
    routers = {name: tree.pid(name, "router") for name in CHILDREN}
    tree.write(CHILDREN, tag="two")
    assert tree.run()["changed"] == ["a", "b", "c"]
    with connect_blocking(tree.bus("a")) as bus:
        wait("all there", lambda: set(bus.call_one("a", "router.resolve", {"target": "*"})["nodes"]) == set(CHILDREN))
        wait("the tag is known", lambda: bus.call_one("a", "router.status")["nodes"][2]["tags"] == ["two"])
    assert routers == {name: tree.pid(name, "router") for name in CHILDREN}


def test_what_a_killed_supervisord_left_is_replaced(tree):
    """After kill -9 of a supervisord, `up` ends its orphans and starts the node anew; the others do not notice."""
    (supervisord,), orphans = control.pids_of(tree.files("b"))
    others = [control.pids_of(tree.files(name)) for name in ("a", "c")]
    os.kill(supervisord, signal.SIGKILL)
    wait("supervisord is gone", lambda: not control.pids_of(tree.files("b"))[0])
    told = tree.run()
    assert (told["started"], told["unchanged"]) == (["b"], ["a", "c"])
    assert not set(orphans) & set(control.pids_of(tree.files("b"))[1])
    assert others == [control.pids_of(tree.files(name)) for name in ("a", "c")]


def test_a_program_given_up_is_tried_again(machine):
    """What supervisord calls FATAL is told to the tree and started again after a while by the event listener."""
    machine.run()
    with connect_blocking(machine.bus("a")) as bus, bus.subscribe("process.>") as events:
        # It fails once, and supervisord is told not to try a second time.
        fails_once = "command=sh -c 'test -e ok || { touch ok; exit 1; }; exec sleep 1000'"
        machine.add_program("flaky", f"{fails_once}\ndirectory={machine.folder}\nstartretries=0")
        machine.run("--worker", GREETER)  # something new: supervisord reads all of it again
        assert next_event(events, "process.fatal", "flaky")["expected"] is False
        assert next_event(events, "process.started", "flaky")["node"] == "a"


def test_a_worker_that_does_not_stay_is_told(machine):
    """A further program that ends at once is an error with its last words; it is tried again all the same."""
    assert "a: bad does not stay, and is tried again: sh: 1: nonsense" in machine.run(
        "--worker", "bad=sh -c nonsense", code=1
    )


def test_down_leaves_nothing_running(machine):
    """`--down` ends every process of the tree, also one that ignores being asked, and removes the sockets."""
    code = "import signal; signal.signal(15, signal.SIG_IGN); [signal.pause() for _ in iter(int, 1)]"
    machine.add_program("stubborn", f"command={sys.executable} -c '{code}'\nstopwaitsecs=1")
    machine.run()
    assert machine.run("--down")["stopped"] == ["a"]
    assert machine.pids() == []
    assert {path.name for path in (machine.run_dir / "a").iterdir()} == {
        "node.key", "treescale.toml", "supervisord.conf", "conf.d", "log"
    }  # fmt: skip
    assert machine.run("--down")["stopped"] == []


def test_a_port_in_use_starts_nothing(machine):
    """When a port is taken, one line says which node and port and how to mend it, and no node is started."""
    with socket.create_server((HOST, machine.ports["a"])):
        told = machine.run(code=2)
    assert f"a: cannot listen on {HOST}:{machine.ports['a']}: Address already in use; stop what is there" in told
    assert machine.pids() == []


def test_a_foreign_router_on_the_socket_is_told(machine):
    """A router that somebody else has started in the same folder is named by its pid, and left alone."""
    machine.run()
    machine.run("--down")
    with machine.files("a").bus.with_name("bus.lock").open("w") as lock:
        lock.write("4242")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "a: another router (pid 4242) runs on" in machine.run(code=2)
    assert machine.pids() == []


def test_a_key_that_is_not_that_of_the_tree_is_told(machine):
    """A node whose public key is in the tree needs the secret one that belongs to it; none is invented."""
    machine.file.write_text(machine.file.read_text() + "public_key = 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7'\n")
    assert "servers.a has a public_key, but its secret key is not at" in machine.run(code=2)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (
            lambda text: text.replace(HOST, "192.0.2.1"),
            [],
            "no server of this tree has an address of this machine",
        ),
        (lambda text: text, ["--node", "z"], "--node z: the tree has no such server"),
        (lambda text: text, ["--worker", "router=true"], "cannot be the name of a worker"),
        (lambda text: text, ["--worker", "true"], "write NAME=COMMAND"),
        (lambda text: text, ["--run-dir", "/tmp/" + 100 * "x"], "too long for the sockets in it"),
        (lambda text: text + "\nnonsense", [], "tree.toml:"),
    ],
)
def test_what_cannot_be_started_is_said(machine, change, options, words):
    """Whatever is wrong with the file or the options is one clear message and exit code 2, and nothing is started."""
    machine.file.write_text(change(machine.file.read_text()))
    assert words in machine.run(*options, code=2)
    assert not list(machine.folder.glob("run/*/bus"))
