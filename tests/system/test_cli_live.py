"""The command lines on a living tree: real routers over TCP, real local sockets, a scripted executor on each node."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from terminals import Terminal
from tree import HOST, new_port
from waiting import LIMIT_S, wait, wait_wanted

from tsbus.blocking import connect_blocking
from tsbus.cli import completion
from tsbus.cli.main import cli
from tsbus.cli.pub import pub
from tsbus.cli.sub import sub
from tsbus.cli.up import services_of, wait_joined
from tsbus.config import Balancer, DockerPolicy, Server, Tree, load
from tsbus.supervision.local import NodeFolder
from tsbus.transport import new_keypair

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CHILDREN = {"root": ["a", "gone", "victim"], "a": ["b1", "b2"], "b1": [], "b2": [], "gone": [], "victim": []}
TAGS = {"b1": ["leaf"], "b2": ["leaf"]}


class LiveTree:
    """Real processes in a folder: a router and an executor for each node."""

    def __init__(self, folder, processes):
        self.folder = folder
        self._processes = processes
        self.routers = {}
        self.server_key = ""
        self._write_config()
        for name in CHILDREN:
            self._start(name)

    def bus(self, node="root"):
        return str(self.folder / node / "bus")

    def _write_config(self):
        text = ""
        operator, secret = new_keypair()
        self._key("operator", secret)
        for name, children in CHILDREN.items():
            public, secret = new_keypair()
            self._key(name, secret)
            if name == "root":
                self.server_key, self.port = public, new_port()
            text += f'[servers.{name}]\nname = "{name}"\nip = "{HOST}"\npublic_key = "{public}"\n'
            text += f"service_port = {self.port if name == 'root' else new_port()}\n"
            text += f"childs = {json.dumps(children)}\ntags = {json.dumps(TAGS.get(name, []))}\n"
        text += f'[operators.alice]\npublic_key = "{operator}"\nrole = "admin"\n'
        (self.folder / "treescale.toml").write_text(text)

    def _key(self, name, secret):
        (self.folder / name).mkdir()
        path = self.folder / name / "key"
        path.touch(0o600)
        path.write_text(secret)

    def start_router(self, name):
        """Run a node's router."""
        folder = self.folder / name
        config = ["--config", self.folder / "treescale.toml", "--node", name]
        router = [ROOT / "services/ts_router.py", *config, "--key", folder / "key", "--run-dir", folder]
        self.routers[name] = self._run(router, folder / "router.log", {})

    def _start(self, name):
        self.start_router(name)
        folder = self.folder / name
        executor = [HERE / "scripted_executor.py"]
        self._run(executor, folder / "executor.log", {"TREESCALE_BUS": str(folder / "bus")})

    def _run(self, argv, log, env):
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *argv], stdout=output, stderr=output, env=os.environ | {"PYTHONPATH": str(ROOT)} | env
            )
        self._processes.callback(process.wait)
        self._processes.callback(process.kill)
        return process

    def states(self):
        result = run("status", "--json", bus=self.bus())
        if result.exit_code:
            return {}
        return {node["name"]: node["state"] for node in json.loads(result.stdout)["nodes"]}

    def kill(self, node):
        self.routers[node].kill()
        wait(f"{node} is lost", lambda: self.states().get(node) == "lost")


def run(*args, bus, program=cli, **options):
    return CliRunner().invoke(program, [*args, "--bus", bus] if "--" not in args else split(args, bus), **options)


def split(args, bus):
    place = args.index("--")
    return [*args[:place], "--bus", bus, *args[place:]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    with ExitStack() as processes:
        tree = LiveTree(tmp_path_factory.mktemp("live"), processes)
        wait("all nodes are up", lambda: set(tree.states().values()) == {"up"})
        tree.kill("gone")
        targets = "root,a,b1,b2,victim"
        wait("executors serve", lambda: run("exec", targets, "--", "exit", "0", bus=tree.bus()).exit_code == 0)
        yield tree


@pytest.fixture
def root(tree):
    return tree.bus()


def start(program, *args, bus, **options):
    """Start a command line as a process of its own."""
    code = f"import sys; from tsbus.cli.{program} import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=os.environ | {"TREESCALE_BUS": bus, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def is_there(name, bus):
    """Whether a client called `name` is connected to the router."""
    stats = json.loads(run("call", ".", "router.stats", "--json", bus=bus).stdout.splitlines()[0])["body"]
    return any(worker["name"] == name and worker["subscriptions"] for worker in stats["workers"])


def listen(*args, bus):
    """Start ts-sub and wait until the router knows its subscriptions."""
    wait("earlier ones have left", lambda: not is_there("ts-sub", bus))
    process = start("sub", *args, bus=bus)
    wait("ts-sub listens", lambda: is_there("ts-sub", bus))
    return process


def output_of(process, stdin=None):
    out, err = process.communicate(stdin, timeout=LIMIT_S)
    return out, err, process.returncode


# status, ping


def test_status_draws_the_tree(root):
    """Each node is below its parent; a lost one says why and since when."""
    lines = run("status", bus=root).stdout.splitlines()
    assert lines[0].startswith("root sees 6 nodes: ")
    assert [line[:7].rstrip() for line in lines[3:7]] == ["root", "├─ a", "│  ├─ b", "│  └─ b"]
    gone = next(line for line in lines if " gone " in line)
    assert "LOST" in gone
    assert "closed, last seen " in gone


def test_check_tells_what_is_wrong_in_the_tree(root):
    """Lost nodes, and programs that are away though nobody heard how they ended; exit code 1."""
    result = run("check", bus=root)
    assert result.exit_code == 1
    assert "problem: gone is lost (closed)" in result.stdout
    assert "the program events does not run on" in result.stdout
    assert "the program executor" not in result.stdout
    found = [json.loads(line) for line in run("check", "gone", "--json", bus=root).stdout.splitlines()]
    assert [(one["kind"], one["node"], one["severe"]) for one in found] == [("node-lost", "gone", True)]
    assert run("check", "nobody", bus=root).exit_code == 2


def test_a_started_tree_is_waited_for_until_its_programs_have_joined(tree, monkeypatch, capsys):
    """What they serve is there when the prompt is back; what is not, in a while, is told and keeps nobody."""
    monkeypatch.setattr("tsbus.cli.up.JOIN_S", 2)
    nodes = [NodeFolder(name, tree.folder / name) for name in ("root", "b1")]
    started = SimpleNamespace(tree=load(tree.folder / "treescale.toml"), nodes=nodes)
    assert asyncio.run(wait_joined(started)) == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{name}: nobody serves containers.snapshot, process.stats yet: treescale check" for name in ("root", "b1")
    ]


def test_a_node_is_waited_for_as_it_is_configured():
    """Without an engine nobody watches containers; a balancer only runs where there is one."""
    shop = Balancer("shop", "10.0.0.1:80")
    tree = Tree({"a": Server("a", "10.0.0.1", 1, balancers={"shop": shop})}, docker=DockerPolicy(enabled=False))
    assert services_of(tree, "a") == {"exec.run", "process.stats", "lb.ls"}


def test_status_for_machines_has_the_round_trip_of_each_link(root):
    """One object with every node."""

    def told():
        return {node["name"]: node for node in json.loads(run("status", "--json", bus=root).stdout)["nodes"]}

    wait("the first round trip is measured", lambda: told()["b1"]["rtt_ms"])
    nodes = told()
    assert nodes.keys() == CHILDREN.keys()
    assert (nodes["gone"]["state"], nodes["gone"]["cause"]) == ("lost", "closed")


def test_status_without_a_router_ends_with_4(tmp_path):
    """It says where it looked."""
    result = run("status", bus=str(tmp_path / "bus"))
    assert (result.exit_code, result.stdout) == (4, "")
    assert str(tmp_path / "bus") in result.stderr


def test_status_watch_is_pushed_the_change(tree):
    """The next drawing comes when a node dies, without asking again and again."""
    watch = start("main", "status", "--watch", "--json", bus=tree.bus())
    assert next(watch.stdout)
    tree.routers["victim"].kill()
    states = ({node["name"]: node["state"] for node in json.loads(line)["nodes"]} for line in watch.stdout)
    assert any(drawing["victim"] == "lost" for drawing in states)
    watch.send_signal(signal.SIGINT)
    assert output_of(watch)[2] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_ends_a_watch_gives_the_terminal_back(tree, number):
    """The other screen is left, and the cursor shown, whether it was Ctrl-C, `timeout` or a closed window."""
    argv = [sys.executable, "-c", "from tsbus.cli.main import main; main()", "status", "--watch"]
    env = os.environ | {"TREESCALE_BUS": tree.bus(), "PYTHONPATH": str(ROOT)}
    with Terminal(argv, env, tree.folder, (24, 80)) as terminal:
        terminal.read_until("root sees")
        terminal.process.send_signal(number)
        assert terminal.end()[0] == 130
        assert terminal.seen.rstrip().endswith("\x1b[?7h\x1b[?25h\x1b[?1049l")


def test_ping_measures_every_node(root):
    """A line for each, exit code 0."""
    result = run("ping", "root,a,b[1-2]", bus=root)
    assert result.exit_code == 0
    assert sorted(line.split(":")[0] for line in result.stdout.splitlines()) == ["a", "b1", "b2", "root"]
    assert "ok 4 of 4" in result.stderr


def test_ping_tells_who_did_not_answer_and_why(root):
    """Some: exit code 3. None: 4."""
    partly, not_at_all = run("ping", "a,gone", bus=root), run("ping", "gone", "-c", "2", bus=root)
    assert (partly.exit_code, not_at_all.exit_code) == (3, 4)
    assert "gone: unreachable: " in partly.stdout
    assert "unreachable 1: gone" in partly.stderr


def test_ping_waits_for_those_that_do_not_answer(root):
    """They are asked again until the time is over, and only they."""
    result = run("ping", "a,gone", "--wait", "3", "--json", bus=root)
    asked = [json.loads(line).get("node") for line in result.stdout.splitlines()]
    assert (result.exit_code, asked.count("a")) == (3, 1)
    assert asked.count("gone") > 1
    assert run("ping", "a", "--wait", "1", bus=root).exit_code == 0


def test_an_operators_console_uses_its_key(tree, monkeypatch):
    """With tcp:// and the operator's key, commands work from outside the tree."""
    monkeypatch.setenv("TREESCALE_OPERATOR_KEY", str(tree.folder / "operator" / "key"))
    monkeypatch.setenv("TREESCALE_SERVER_KEY", tree.server_key)
    assert run("ping", "b1", bus=f"tcp://{HOST}:{tree.port}").exit_code == 0


def test_the_bus_is_named_before_or_behind_the_command(root, monkeypatch):
    """`treescale --bus X ping`, `treescale ping --bus X` and TREESCALE_BUS mean the same."""
    assert CliRunner().invoke(cli, ["--bus", root, "ping", "."]).exit_code == 0
    monkeypatch.setenv("TREESCALE_BUS", root)
    assert CliRunner().invoke(cli, ["ping", "."]).exit_code == 0


# exec


def test_exec_folds_equal_output(root):
    """Output that is equal is printed once, behind its nodes; the account goes to stderr."""
    result = run("exec", "root,@leaf", "--", "out", "same\n", "err@b1", "odd\n", bus=root)
    assert (result.exit_code, result.stdout) == (0, "b[1-2],root (3): same\n")
    assert result.stderr.splitlines()[0] == "b1: odd"
    assert result.stderr.splitlines()[1].startswith("ok 3 of 3 in ")


def test_exec_prints_lines_as_they_come_when_not_folded(root):
    """Each line has its node in front, whatever chunks it came in."""
    result = run("exec", "@leaf", "--no-fold", "-q", "--", "out", "on", "out", "e\ntwo", bus=root)
    assert sorted(result.stdout.splitlines()) == ["b1: one", "b1: two", "b2: one", "b2: two"]
    assert result.stderr == ""


def test_exec_without_prefix_passes_bytes_on(root):
    """For pipes: what the program wrote, and nothing else."""
    result = run("exec", "b1", "--no-prefix", "--", "out", "raw\x00bytes", bus=root)
    assert result.stdout_bytes == b"raw\x00bytes"


def test_exec_on_one_node_is_quiet_about_success(root):
    """One node that did it needs no account."""
    result = run("exec", "b1", "--", "out", "fine\n", bus=root)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "b1: fine\n", "")


@pytest.mark.parametrize(
    ("target", "script", "code", "account"),
    [
        ("a,b1", ["exit", "2"], 1, "failed 2: a,b1 (exit 2)"),
        ("a,b1", ["exit@b1", "2"], 3, "failed 1: b1 (exit 2)"),
        ("a,gone", ["exit", "0"], 3, "unreachable 1: gone"),
        ("gone", ["exit", "0"], 4, "unreachable 1: gone"),
        ("a", ["hang"], 4, "timeout 1: a"),
        ("a,b1", ["refuse"], 5, "refused 2: a,b1 (the policy says no)"),
        ("a", ["fail"], 1, "failed 1: a (no such program)"),
    ],
)
def test_exec_ends_with_an_exact_account(root, target, script, code, account):
    """Every node is in one set, with the reason, and the exit code says it in short."""
    timeout = "0.5" if "hang" in script else f"{LIMIT_S}"
    result = run("exec", target, "--timeout", timeout, "--", *script, bus=root)
    assert result.exit_code == code
    assert account in result.stderr


def test_exec_on_an_unknown_node_ends_with_2(root):
    """A name that nobody has is the caller's mistake, and nothing runs anywhere."""
    result = run("exec", "a,nosuch", "--", "exit", "0", bus=root)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nosuch" in result.stderr


def test_exec_for_machines(root):
    """An object for each node, then the summary."""
    result = run("exec", "a,gone", "--json", "--", "out", "x", "err", "y", "exit", "3", bus=root)
    *nodes, last = map(json.loads, result.stdout.splitlines())
    facts = {node["node"]: node for node in nodes}
    assert {key: facts["a"][key] for key in ("outcome", "exit", "stdout", "stderr")} == {
        "outcome": "failed", "exit": 3, "stdout": "x", "stderr": "y",
    }  # fmt: skip
    assert facts["gone"]["outcome"] == "unreachable"
    assert (last["summary"]["failed"], last["summary"]["unreachable"]) == (["a"], ["gone"])


def test_exec_gives_up_after_too_many_failures(root):
    """One more failure than --max-fail cancels the nodes that still run."""
    result = run("exec", "root,a", "--max-fail", "0", "--", "fail@a", "hang@root", bus=root)
    assert "failed 1: a" in result.stderr
    assert "cancelled 1: root" in result.stderr


def test_exec_sends_stdin_to_every_node(root):
    """With --stdin each program reads what we are given."""
    process = start("main", "exec", "@leaf", "--stdin", "--", "cat", bus=root)
    out, _, code = output_of(process, "line\n")
    assert (out, code) == ("b[1-2] (2): line\n", 0)


def test_ctrl_c_cancels_everywhere_and_tells_the_account(root):
    """Exit code 130; whoever still ran is cancelled, whoever was done is not."""
    process = start("main", "exec", "@leaf", "--live", "--", "out", "started\n", "out", "over", "hang@b1", bus=root)
    # The line that b2 did not end is shown when b2 has.
    assert {next(process.stdout) for _ in range(3)} == {"b1: started\n", "b2: started\n", "b2: over\n"}
    process.send_signal(signal.SIGINT)
    _, err, code = output_of(process)
    assert code == 130
    assert "ok 1 of 2" in err
    assert "cancelled 1: b1" in err


# call


def test_call_prints_every_kind_of_answer(root):
    """Text, JSON and bytes, as they come."""
    result = run("call", "b1", "exec.kinds", bus=root)
    assert (result.exit_code, result.stdout) == (0, 'b1: text\nb1: {"json":[1,2]}\nb1: 0xff00\n')


def test_call_passes_its_argument_on(root):
    """As JSON, also from standard input."""
    argument = '{"target": "@leaf"}'
    direct = run("call", ".", "router.resolve", argument, "--json", bus=root)
    piped = run("call", ".", "router.resolve", "-", "--json", bus=root, input=argument)
    answers = [json.loads(result.stdout.splitlines()[0])["body"]["nodes"] for result in (direct, piped)]
    assert answers == [["b1", "b2"]] * 2


def test_call_of_a_command_that_nobody_serves_ends_with_1(root):
    """It says where it is missing."""
    result = run("call", "a", "nobody.serves", bus=root)
    assert result.exit_code == 1
    assert "no such service 1: a" in result.stderr


# ts-pub, ts-sub, events


def test_an_event_travels_from_ts_pub_to_ts_sub(tree):
    """From a leaf to the root; each event once, though two patterns match it."""
    listener = listen("shop.>", "*.sold", "--count", "2", bus=tree.bus())
    wait_wanted("shop.sold", tree.bus("b1"))
    wait_wanted("shop.closed", tree.bus("b2"))
    assert run("shop.sold", "apples", bus=tree.bus("b1"), program=pub).exit_code == 0
    assert run("shop.closed", '{"at": 18}', bus=tree.bus("b2"), program=pub).exit_code == 0
    out, err, code = output_of(listener)
    assert (sorted(out.splitlines()), err, code) == (["b1 shop.sold apples", 'b2 shop.closed {"at": 18}'], "", 0)


def test_every_line_of_stdin_is_an_event(root):
    """In order, and the last line needs no newline."""
    listener = listen("lines", "--raw", "--count", "50001", bus=root)
    lines = "".join(f"line {number}\n" for number in range(50_000)) + "end"
    assert output_of(start("pub", "lines", "-", bus=root), lines)[2] == 0
    assert output_of(listener) == (lines + "\n", "", 0)


def test_ts_sub_for_machines(root, tmp_path):
    """With --json each event is an object; the body of a file may be anything."""
    listener = listen("file", "--json", "--count", "1", bus=root)
    (tmp_path / "body").write_bytes(b"\xff")
    assert run("file", "--file", str(tmp_path / "body"), bus=root, program=pub).exit_code == 0
    event = json.loads(output_of(listener)[0])
    assert (event["topic"], event["origin"], event["seq"], event["base64"]) == ("file", "root", 0, "/w==")


def test_ts_sub_listens_to_some_nodes_only(tree):
    """--from takes any target; an unknown one is an error."""
    listener = listen("news", "--from", "@leaf", "--count", "1", bus=tree.bus())
    wait_wanted("news", tree.bus("b2"))
    for node in ("a", "b2"):
        run("news", f"of {node}", bus=tree.bus(node), program=pub)
    assert output_of(listener)[0] == "b2 news of b2\n"
    assert run("news", "--from", "nosuch", bus=tree.bus(), program=sub).exit_code == 2


def test_ts_pub_reaches_the_target_only(tree):
    """--to limits who gets it; an unknown target is the publisher's error, not silence."""
    listener = listen("order", "--count", "1", bus=tree.bus("b1"))
    wait_wanted("order", tree.bus())
    run("order", "for b2", "--to", "b2", bus=tree.bus(), program=pub)
    run("order", "for b1", "--to", "b1", "--wait", bus=tree.bus(), program=pub)
    assert output_of(listener)[0] == "root order for b1\n"
    result = run("order", "--to", "nosuch", bus=tree.bus(), program=pub)
    assert result.exit_code == 2
    assert "nosuch" in result.stderr


def test_ts_sub_runs_a_command_for_each_event(root):
    """The body is its standard input, the rest is in its environment, and no shell splits or expands anything."""
    script = "import os, sys; print(os.environ['TREESCALE_TOPIC'], os.environ['TREESCALE_ORIGIN'], sys.stdin.read())"
    listener = listen("job.*", "--count", "2", "--exec", f'{sys.executable} -c "{script}"', bus=root)
    for body in ("one", "$HOME;two"):
        run("job.new", body, bus=root, program=pub)
    assert output_of(listener) == ("job.new root one\njob.new root $HOME;two\n", "", 0)


def test_ts_sub_that_cannot_run_the_command_ends_with_1(root):
    """At the first event, with the reason."""
    listener = listen("job", "--exec", "/nonexistent/program", bus=root)
    run("job", "x", bus=root, program=pub)
    _, err, code = output_of(listener)
    assert code == 1
    assert "/nonexistent/program" in err


def test_ts_sub_stops_after_its_time(root):
    """Exit code 0; with --count and too few events, 4."""
    assert run("silence", "--timeout", "0", bus=root, program=sub).exit_code == 0
    assert run("silence", "--timeout", "0", "--count", "1", bus=root, program=sub).exit_code == 4


def test_ts_sub_is_quiet_when_its_reader_leaves(root):
    """Like any filter: `ts-sub x | head -1` ends without a complaint."""
    listener = listen("pipe", bus=root)
    listener.stdout.close()
    run("pipe", "x", bus=root, program=pub)
    assert listener.wait(LIMIT_S) == 0
    assert listener.stderr.read() == ""


def test_a_slow_reader_is_told_how_much_it_missed(root):
    """What ts-sub printed and the gaps it reports are together what was published."""
    count, body = 60_000, "x" * 1000
    listener = listen("flood", "--raw", bus=root)
    assert output_of(start("pub", "flood", "-", "--wait", bus=root), f"{body}\n" * count)[2] == 0
    run("flood", "end", bus=root, program=pub)
    printed = sum(1 for _ in iter(listener.stdout.readline, "end\n"))
    listener.send_signal(signal.SIGINT)
    _, err, code = output_of(listener)
    missed = sum(int(line.split()[0]) for line in err.splitlines() if line)
    assert code == 130
    assert missed > 0
    assert printed + missed == count


def test_ts_sub_says_when_its_router_goes_away_and_comes_back(tree):
    """Who listens knows from when to when nothing was heard."""
    listener = listen("news", bus=tree.bus("b2"))
    tree.routers["b2"].kill()
    tree.routers["b2"].wait()
    assert "is away" in listener.stderr.readline()
    tree.start_router("b2")
    assert "is back" in listener.stderr.readline()
    wait("it has subscribed again", lambda: is_there("ts-sub", tree.bus("b2")))
    run("news", "x", bus=tree.bus("b2"), program=pub)
    assert listener.stdout.readline() == "b2 news x\n"
    listener.send_signal(signal.SIGINT)
    assert output_of(listener)[2] == 130
    wait("it serves the tree again", lambda: run("exec", "b2", "--", "exit", "0", bus=tree.bus()).exit_code == 0)


def test_events_shows_what_happens_in_the_tree(root):
    """Without a pattern it is the bus's own events, in words, but for the coming and going of command lines."""
    process = start("main", "events", "--count", "1", bus=root)
    wait("it listens", lambda: is_there("treescale-events", root))
    is_there("treescale-events", root)  # what asked until now may have come before it listened
    with connect_blocking(root, name="reporter"):
        line = output_of(process)[0]
    assert "worker.joined" in line
    assert "reporter (uid:" in line


def test_names_and_commands_are_completed_from_the_router(root, monkeypatch):
    """The shell is told nodes, tags and the commands of workers."""

    def completed(words, place):
        env = {"_TREESCALE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        return CliRunner().invoke(cli, [], env=env, prog_name="treescale").stdout.split()

    monkeypatch.setenv("TREESCALE_BUS", root)
    monkeypatch.setattr(completion, "PATIENCE_S", LIMIT_S)  # a crowded machine
    assert completed("treescale ping a,b", 2) == ["plain,a,b1", "plain,a,b2"]
    assert completed("treescale ping @", 2) == ["plain,@leaf"]
    assert completed("treescale call a exec.", 3) == ["plain,exec.kinds", "plain,exec.run", "plain,exec.stats"]
