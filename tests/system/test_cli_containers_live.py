"""The command lines for containers on a tree of real routers, where a stand-in answers for the engines (standin.py)."""

import asyncio
import contextlib
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import msgspec
import pytest
from background import LIMIT_S, Background
from click.testing import CliRunner
from standin import StandIn, container
from tree import Tree
from waiting import wait

from tsbus.cli.main import cli

ROOT = Path(__file__).parents[2]
FIRST_A, SECOND_A = container("cache", "a", id="ab1" + 61 * "0"), container("db", "a", id="ab2" + 61 * "0")


class Site(Background):
    """root - (a, b, gone): monitors on a and b, none on root, and gone is lost."""

    @contextlib.asynccontextmanager
    async def live(self, folder):
        self.nodes = {node: StandIn(node, []) for node in ("a", "b")}
        async with Tree("root:a b gone", folder, tags={"a": ("web",), "b": ("web",)}) as tree:
            self.bus = tree.bus("root")
            for node, one in self.nodes.items():
                for worker in one.workers:
                    await tree.run(worker, node)
            tree.kill("gone")
            await tree.wait_seen("root", {"root", "a", "b"})
            yield

    def reset(self):
        """Let both nodes have a `web`, and each something of its own."""
        made = {
            "a": [container("web", "a"), FIRST_A, SECOND_A],
            "b": [container("web", "b", labels={"fails": "restart"}), container("solo", "b")],
        }
        for node, containers in made.items():
            self.nodes[node].containers = {one.id: one for one in containers}
            self.nodes[node].logs = {}
            self.nodes[node].asked.clear()
            self.nodes[node].engine = StandIn(node, []).engine

    def asked(self, node):
        """What the node was asked for, but for names."""
        return [(name, body) for name, body in self.nodes[node].asked if name != "containers.find"]


@pytest.fixture(scope="module")
def one_site():
    with Site() as site:
        yield site


@pytest.fixture
def site(one_site):
    one_site.reset()
    return one_site


@pytest.fixture
def run(site):
    def run(*args, **options):
        return CliRunner().invoke(cli, ["--bus", site.bus, *args], **options)

    return run


def names(asked):
    return [name for name, _ in asked]


# What there is.


def test_ls_shows_the_tree_and_names_who_did_not_answer(run):
    """A lost node makes it partial; a node without a monitor is told, and counts for nothing."""
    result = run("container", "ls")
    lines = result.stdout.splitlines()
    assert (result.exit_code, lines[0]) == (3, "2 nodes, 5 containers, 5 running")
    assert [line.split()[:2] for line in lines[3:8]] == [
        ["a", "cache"], ["a", "db"], ["a", "web"], ["b", "solo"], ["b", "web"]
    ]  # fmt: skip
    assert any(line.startswith("gone: no answer: unreachable") for line in lines)
    assert "root: no container monitor" in lines


def test_ls_of_whole_nodes_ends_with_0_and_of_none_with_1(run):
    """The exit code tells scripts what they can trust."""
    assert run("container", "ls", "@web", "-q").stdout.count("\n") == 5
    assert run("container", "ls", "@web").exit_code == 0
    result = run("container", "ls", "root")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "start ts-docker" in result.stderr


def test_ls_for_machines_ends_with_the_summary(run):
    """One object for each container, all nodes in the summary."""
    *rows, summary = map(json.loads, run("container", "ls", "--json").stdout.splitlines())
    assert {(row["node"], row["name"]) for row in rows} >= {("a", "web"), ("b", "web"), ("b", "solo")}
    assert summary["summary"]["unreachable"] == ["gone"]


def test_filters_go_to_the_nodes_and_wrong_ones_do_not(run, site):
    """Nobody sends what nobody wants; a mistyped key is told before anything is asked."""
    run("container", "ls", "a", "--filter", "name=web", "--sort", "cpu")
    assert ("containers.snapshot", {"filters": ["name=web"], "all": True}) in site.asked("a")
    result = run("container", "ls", "--filter", "nmae=web")
    assert result.exit_code == 2
    assert "nmae" in result.stderr


@pytest.mark.parametrize("words", [("container", "run"), ("container", "create"), ("image", "pull"), ("image", "rm")])
def test_a_target_without_any_monitor_is_told_as_such(run, words):
    """Whoever wants something done there learns what to start, not which service is missing."""
    result = run(*words, "root", "nginx")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no container monitor runs on root: start ts-docker there" in result.stderr


def test_where_there_is_no_monitor_there_is_no_image_to_remove(run):
    """A tree whose root has no engine is no failure of what takes away; to fetch an image, all must."""
    for words in (("prune", "root,a", "--yes"), ("rm", "root,a", "nginx")):
        result = run("image", *words)
        assert (result.exit_code, result.stderr) == (0, "")
    assert run("image", "pull", "root,a", "nginx").exit_code == 3


# Which is meant, and what is done.


def test_a_verb_goes_to_the_one_node_that_has_the_container(run, site):
    """By its name; the others are not bothered, and lost nodes are told."""
    result = run("container", "stop", "*", "solo", "--time", "3")
    assert (result.exit_code, result.stdout) == (0, "b/solo: exited\n")
    assert "gone was not asked" in result.stderr
    assert names(site.asked("a")) == []
    ((name, body),) = site.asked("b")
    assert name == "containers.stop"
    assert body == {"containers": [container("solo", "b").id], "if_here": True, "timeout_s": 3.0}


def test_a_verb_does_nothing_while_it_is_not_clear_what_is_meant(run, site):
    """Two nodes have a `web`: it lists them and ends with 2; --each says that all are meant."""
    result = run("container", "stop", "@web", "web")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a/web" in result.stderr and "b/web" in result.stderr and "--each" in result.stderr
    assert not site.asked("a") and not site.asked("b")
    result = run("container", "stop", "@web", "web", "--each")
    assert (result.exit_code, sorted(result.stdout.splitlines())) == (0, ["a/web: exited", "b/web: exited"])


def test_each_counts_nodes_that_could_not_be_asked(run):
    """All were meant, so a lost node makes it partial."""
    result = run("container", "pause", "*", "web", "--each")
    assert result.exit_code == 3
    assert "unreachable 1: gone" in result.stderr


def test_what_an_engine_refuses_stands_in_the_account(run):
    """One container failed and the other did it: exit code 3, and the reason once."""
    result = run("container", "restart", "@web", "web", "--each")
    assert (result.exit_code, result.stdout) == (3, "a/web: running\n")
    assert "failed 1: b/web (the engine says no)" in result.stderr


def test_an_id_is_enough_and_a_beginning_of_two_is_not(run):
    """As many digits as it takes."""
    assert run("container", "kill", "*", FIRST_A.id[:12]).stdout == "a/cache: exited\n"
    result = run("container", "rm", "*", "ab", "--force")
    assert result.exit_code == 2
    assert "more of it" in result.stderr


def test_a_mistyped_name_is_told_with_the_nearest(run):
    """Exit code 2."""
    result = run("container", "start", "@web", "sole")
    assert result.exit_code == 2
    assert "did you mean 'solo'?" in result.stderr


def test_rename_and_wait_tell_their_results(run, site):
    """The new name; how the container ended."""
    assert run("container", "rename", "b", "solo", "duo").stdout == "b/solo: renamed to duo\n"
    assert run("container", "wait", "b", "duo", "--timeout", "0.2").exit_code == 4
    site.do(site.nodes["b"].change(site.nodes["b"]._match("duo")[0], "died", state="exited"))
    assert run("container", "wait", "b", "duo").stdout == "b/duo: exited (3)\n"


def test_the_account_for_machines_names_containers(run):
    """Each Done is an object, and the summary has node/name."""
    done, summary = map(json.loads, run("container", "rm", "b", "solo", "--json").stdout.splitlines())
    assert (done["node"], done["name"]) == ("b", "solo")
    assert summary["summary"]["ok"] == ["b/solo"]


# Making.


def test_run_makes_one_on_each_node(run, site):
    """With the name on every node, and progress is not output."""
    result = run("container", "run", "@web", "nginx", "--name", "new", "-p", "80:80", "nginx", "-g", "daemon off;")
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in sorted(result.stdout.splitlines())] == ["a/new", "b/new"]
    ((_, body),) = site.asked("a")
    assert body == {"image": "nginx", "argv": ["nginx", "-g", "daemon off;"], "publish": ["80:80"],
                    "names": {"a": ["new"], "b": ["new"]}}  # fmt: skip


def test_count_fills_the_emptiest_nodes_and_leaves_out_the_lost(run, site):
    """Three run on a and two on b: of three new ones, b gets two."""
    result = run("container", "run", "*", "nginx", "--name", "n", "--count", "3")
    assert result.exit_code == 0
    assert "left out gone" in result.stderr
    body = site.asked("a")[-1][1]
    assert {node: len(new) for node, new in body["names"].items()} == {"a": 1, "b": 2}
    assert sorted(name for new in body["names"].values() for name in new) == ["n-1", "n-2", "n-3"]


def test_what_the_policy_refuses_ends_with_5(run):
    """And names the key that would allow it."""
    result = run("container", "run", "a", "nginx", "--privileged")
    assert result.exit_code == 5
    assert "docker.privileged" in result.stderr


def test_attach_passes_output_and_exit_code_on(run):
    """Of one container as they are; of several behind their nodes, with an account."""
    result = run("container", "run", "a", "nginx", "--attach")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "hello\n", "oops\n")
    result = run("container", "run", "@web", "nginx", "--attach")
    assert (result.exit_code, sorted(result.stdout.splitlines())) == (1, ["a: hello", "b: hello"])


# Looking into them.


def test_logs_of_many_nodes_stand_behind_their_names(run, site):
    """One column of names; the node that has several says whose line it is."""
    site.nodes["a"].logs = {"web": [(False, b"one\n")], "db": [(False, b"two\n")]}
    site.nodes["b"].logs = {"web": [(True, b"oops\n")]}
    result = run("container", "logs", "@web", "web", "db", "--since", "10m", "-n", "5")
    assert sorted(result.stdout.splitlines()) == ["a/db  | two", "a/web | one"]
    assert "b/web | oops" in result.stderr
    body = site.asked("a")[-1][1]
    assert body["tail"] == 5
    assert abs(body["since"] - (time.time() - 600)) < 10


def test_logs_of_one_are_its_bytes(run, site):
    """Nothing is added and nothing is changed."""
    site.nodes["b"].logs = {"solo": [(False, b"x\xff\n\x1b[0m")]}
    assert run("container", "logs", "*", "solo").stdout_bytes == b"x\xff\n\x1b[0m"


def test_exec_ends_with_the_programs_exit_code(run):
    """Its output is passed on as it is; with --each it is folded, and there is the account."""
    result = run("container", "exec", "*", "solo", "exit", "9")
    assert (result.exit_code, result.stdout) == (9, "solo: exit 9\n")
    assert "exit" not in result.stderr
    result = run("container", "exec", "@web", "web", "--each", "--", "ls", "-l")
    assert (result.exit_code, result.stdout) == (0, "a,b (2): web: ls -l\n")


@pytest.mark.parametrize(("give", "output"), [("hello", "HELLO"), (None, "")])
def test_exec_streams_our_input(site, give, output):
    """Until it ends, at once if we were started without any."""
    argv = treescale("container", "exec", "-i", "b", "solo", "cat")
    closed = {"preexec_fn": lambda: os.close(0)} if give is None else {}
    done = subprocess.run(argv, input=give, env=environment(site), capture_output=True, text=True, timeout=LIMIT_S,
                          check=False, **closed)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, output)


def test_inspect_and_top_show_each(run):
    """With the node's name; foreign control characters are escaped."""
    assert (
        json.loads(run("container", "inspect", "b", "solo", "--json").stdout.splitlines()[0])["container"]["Name"]
        == "/solo"
    )
    assert "nginx: \\x1b[31mx" in run("container", "top", "b", "solo").stdout


def test_stats_are_measured_once_or_listened_to(run, site):
    """--no-stream asks; without it the first line is asked for too, and the rest comes by itself."""
    assert run("container", "stats", "b", "--no-stream").stdout.splitlines()[3].split()[:3] == ["b", "solo", "12.5"]
    with started(site, "container", "stats", "@web", "--json") as process:
        seen = [json.loads(process.stdout.readline()) for _ in range(5)]
        assert {(one["node"], one["name"]) for one in seen} == {
            ("a", "web"), ("a", "cache"), ("a", "db"), ("b", "web"), ("b", "solo")
        }  # fmt: skip
        event = msgspec.to_builtins(site.nodes["b"].stats(full=False))
        site.do(site.nodes["b"].worker.publish("containers.stats.b", event))
        assert json.loads(process.stdout.readline())["node"] == "b"


# Images and engines.


def test_images_of_many_nodes_are_folded(run):
    """One line for what both have."""
    lines = run("image", "ls", "@web").stdout.splitlines()
    assert lines[0] == "2 nodes, 3 images"
    assert [line.split()[-2:] for line in lines[3:5]] == [["2:", "a,b"]] * 2


def test_a_password_travels_in_the_body_only(run, site):
    """It is read from standard input, one line, and shown nowhere."""
    result = run("image", "pull", "a", "nginx", "--username", "bob", "--password-stdin", input="s3cret\nmore")
    assert result.exit_code == 0
    assert site.asked("a") == [("images.pull", {"image": "nginx", "username": "bob", "password": "s3cret"})]
    assert "s3cret" not in result.output
    assert "Downloaded newer image" in result.stdout


def test_other_image_commands_tell_what_they_did(run):
    """On every node."""
    assert run("image", "tag", "@web", "a:1", "b:1").exit_code == 0
    assert run("image", "rm", "a", "nginx").stdout == "a: untagged nginx; removed abababababab\n"
    assert run("image", "prune", "a", "--yes").stdout == "a: removed 1 image, freed 3 MiB\n"


def test_engines_are_told(run):
    """Version, counts and disk space, and a sum over several nodes."""
    info = run("docker", "info")
    assert info.stdout.splitlines()[1].split()[:3] == ["a", "Docker", "27.5.1"]
    assert info.exit_code == 3  # gone is lost
    assert run("docker", "df", "@web").stdout.splitlines()[-1].split()[:3] == ["all", "200", "MiB"]


def test_an_engine_that_is_down_shows_in_the_exit_code(run, site):
    """A script learns it as from the other commands: some down 3, all down 1, with the reason once."""
    for node, code in (("b", 3), ("a", 1)):
        one = site.nodes[node]
        one.engine = msgspec.structs.replace(one.engine, up=False, reason="no engine here", since_ns=0)
        result = run("docker", "info", "@web")
        assert (result.exit_code, result.stdout.count("DOWN")) == (code, 1 if node == "b" else 2)
    assert result.stderr == "a,b: engine down: no engine here\n"
    *_, summary = map(json.loads, run("docker", "info", "@web", "--json").stdout.splitlines())
    assert sorted(summary["summary"]["failed"]) == ["a", "b"]


def test_events_are_told_in_words_and_filtered(site):
    """What happened to whom, of which image; nothing that was not asked for."""
    with started(site, "docker", "events", "@web", "--filter", "event=died", "--count", "1") as process:
        until_wanted(site, "container.>")
        solo = site.nodes["b"]._match("solo")[0]
        site.do(site.nodes["b"].change(solo, "paused", state="paused"))
        site.do(site.nodes["b"].change(solo, "died", state="exited", exit_code=3))
        line = process.stdout.readline()
    assert "container.died" in line
    assert line.endswith("solo (nginx:1.27, exit 3)\n")


# Staying.


def test_watch_draws_at_every_change(site):
    """It asks once and then only listens; a container that ended leaves the list."""
    with Terminal(site, "container", "ls", "@web", "--watch") as terminal:
        terminal.read_until(b"2 nodes, 5 containers, 5 running")
        asked = len(site.nodes["b"].asked)
        solo = site.nodes["b"]._match("solo")[0]
        site.do(site.nodes["b"].change(solo, "died", state="exited", exit_code=3))
        terminal.read_until(b"4 running (1 not shown")
        assert len(site.nodes["b"].asked) == asked


@pytest.mark.parametrize(
    ("words", "lines"), [(("stats", "@web", "--json"), 5), (("stats", "@web"), 8), (("ls", "@web", "--watch"), 8)]
)
def test_what_stays_ends_when_nobody_reads_it_any_more(site, words, lines):
    """`... | head` is no fault of anybody: it ends with the next thing that happens, quietly and with 0."""
    with started(site, "container", *words, stderr=subprocess.PIPE) as process:
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        end = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < end:
            site.do(site.nodes["b"].change(site.nodes["b"]._match("solo")[0], "paused", state="paused"))
            event = msgspec.to_builtins(site.nodes["b"].stats(full=False))
            site.do(site.nodes["b"].worker.publish("containers.stats.b", event))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert process.returncode == 0
        assert process.stderr.read() == ""


# With a real engine.


def test_the_life_of_a_container_with_a_real_engine(lone_bus, dockerd):
    """Made, listed, read, entered, measured, stopped, waited for and removed: the service and the commands agree."""
    config = Path(lone_bus).with_name("treescale.toml")
    argv = [sys.executable, ROOT / "services/ts_docker.py", "--config", config, "--bus", lone_bus]
    argv += ["--audit-dir", config.parent]
    service = subprocess.Popen(argv, env={**os.environ, "DOCKER_HOST": dockerd.host})

    def run(words, *more):
        return CliRunner().invoke(cli, ["--bus", lone_bus, *words.split(), *more])

    def told(words, *more):
        result = run(words, *more)
        assert result.exit_code == 0, result.output
        return result.stdout

    try:
        wait("the engine is known", lambda: "Docker" in run("docker info").stdout)
        script = "echo hello; echo oops >&2; trap 'exit 3' TERM; while true; do sleep 0.1; done"
        assert told("container run solo box:1 --name story --memory 32m -l a=b sh -c", script).startswith(
            "solo/story: "
        )
        assert "solo  story  box:1  Up " in told("container ls --filter label=a=b --filter name=story")
        wait("both lines: they come apart", lambda: run("container logs solo story").output.count("\n") == 2)
        logs = run("container logs solo story")
        assert (logs.stdout, logs.stderr) == ("hello\n", "oops\n")
        assert run("container exec solo story sh -c", "echo in; exit 4").exit_code == 4
        assert "32 MiB" in told("container stats solo story --no-stream")
        assert "sh -c" in told("container top solo story")
        assert json.loads(told("container inspect solo story --json").splitlines()[0])["container"]["Name"] == "/story"
        assert told("container pause solo story") == "solo/story: paused\n"
        assert told("container unpause solo story") == "solo/story: running\n"
        assert told("container stop solo story") == "solo/story: exited\n"
        assert told("container wait solo story") == "solo/story: exited (3)\n"
        assert "Exited (3)" in told("container ls -a")
        assert told("container rename solo story tale") == "solo/story: renamed to tale\n"
        assert told("container rm solo tale") == "solo/tale: removed\n"
        gone = run("container run solo box:1 --attach --rm -- sh -c", "echo bye; exit 5")
        assert (gone.exit_code, gone.stdout) == (5, "bye\n")
        assert told("image tag solo box:1 box:2") == ""
        assert "box:2" in told("image ls")
        assert "untagged box:2" in told("image rm solo box:2")
        assert run("container start solo tale").exit_code == 2
    finally:
        service.terminate()
        service.wait()


# Names for the shell.


def test_names_of_containers_and_images_are_completed(site):
    """Those of the target."""
    env = {"_TREESCALE_COMPLETE": "bash_complete", "COMP_WORDS": "treescale container stop b s", "COMP_CWORD": "4"}
    assert completed(site, env) == ["plain,solo"]
    env = {"_TREESCALE_COMPLETE": "bash_complete", "COMP_WORDS": "treescale image rm b ngin", "COMP_CWORD": "4"}
    assert completed(site, env) == ["plain,nginx:1.27", "plain,nginx:latest"]


# At a terminal.


def test_a_terminal_in_a_container_is_real_and_given_back(site):
    """Keys go over as they are, the size is told, and afterwards the terminal is as it was."""
    with Terminal(site, "container", "exec", "-it", "b", "solo", "cat") as terminal:
        before = terminal.modes()
        wait("raw mode", lambda: terminal.modes() != before)
        terminal.type(b"\x03abc")
        terminal.read_until(b"\x03ABC")
        terminal.resize(30, 100)
        wait("the new size", lambda: [30, 100] in [body.get("size") for name, body in site.asked("b")])
        terminal.type(b"exit")
        assert terminal.code() == 0
        assert terminal.modes() == before


def test_a_terminal_is_given_back_when_we_are_ended(site):
    """SIGTERM leaves no raw terminal behind."""
    with Terminal(site, "container", "exec", "-it", "b", "solo", "cat") as terminal:
        before = terminal.modes()
        wait("raw mode", lambda: terminal.modes() != before)
        terminal.process.terminate()
        assert terminal.code() == 130
        assert terminal.modes() == before


def test_several_are_killed_only_when_somebody_says_yes(site):
    """At a terminal it is asked; the answer no does nothing."""
    with Terminal(site, "container", "kill", "@web", "web", "--each") as terminal:
        terminal.read_until(b"2 containers (a/web, b/web)?")
        terminal.type(b"n\r")
        assert terminal.code() == 130
    assert "containers.kill" not in names(site.asked("a"))


@pytest.mark.parametrize("words", [("container", "kill", "@web", "web", "--each"), ("image", "prune", "@web")])
@pytest.mark.parametrize("end", [b"\x03", b"\x04", signal.SIGTERM])
def test_a_question_ends_at_once_with_a_line_break(site, words, end):
    """The first Ctrl-C, Ctrl-D or signal is enough: nothing is done, and the shell's prompt begins a line: 130."""
    with Terminal(site, *words) as terminal:
        terminal.read_until(b"[y/N]: ")
        status = Path(f"/proc/{terminal.process.pid}/stat")
        wait("it reads", lambda: status.read_text().rpartition(")")[2].split()[0] == "S")
        if isinstance(end, bytes):
            terminal.type(end)
        else:
            terminal.process.send_signal(end)
        terminal.read_until(b"\r\n")
        assert terminal.code() == 130
    assert not {"containers.kill", "images.prune"} & {*names(site.asked("a"))}


def test_a_followed_log_leaves_the_shells_prompt_a_line_of_its_own(site):
    """Ctrl-C shows as ^C at a terminal; a line break follows it, and 130."""
    site.nodes["b"].logs = {"solo": [(False, b"one\n")]}
    with Terminal(site, "container", "logs", "-f", "b", "solo") as terminal:
        terminal.read_until(b"one\r\n")
        terminal.type(b"\x03")
        terminal.read_until(b"^C\r\n")
        assert terminal.code() == 130


def test_foreign_logs_cannot_steer_the_terminal(site):
    """Control characters are shown, not obeyed; --raw passes them on."""
    site.nodes["b"].logs = {"solo": [(False, b"\x1b[31mred\tx\r\n")]}
    with Terminal(site, "container", "logs", "b", "solo") as terminal:
        terminal.read_until(b"\\x1b[31mred\tx\r\n")
    with Terminal(site, "container", "logs", "b", "solo", "--raw") as terminal:
        terminal.read_until(b"\x1b[31mred\tx\r\r\n")


def environment(site, more=()):
    return {**os.environ, "PYTHONPATH": str(ROOT), "TREESCALE_BUS": site.bus, **dict(more)}


def treescale(*args):
    return [sys.executable, "-c", "from tsbus.cli.main import main; main()", *args]


@contextlib.contextmanager
def started(site, *args, **more):
    """A command line as a process, which is ended."""
    process = subprocess.Popen(treescale(*args), env=environment(site), stdout=subprocess.PIPE, text=True, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def completed(site, env):
    argv = [sys.executable, "-c", "from tsbus.cli.main import cli; cli.main(prog_name='treescale')"]
    end = time.monotonic() + LIMIT_S
    words = []
    while not words and time.monotonic() < end:  # a machine that is busy may take longer than a shell would wait
        done = subprocess.run(argv, env=environment(site, env), capture_output=True, text=True, check=False)
        words = done.stdout.split()
    return words


def until_wanted(site, pattern):
    async def wanted(client):
        async with client.interest(pattern) as interest:
            while not interest.wanted:
                await asyncio.sleep(0.01)

    site.do(asyncio.wait_for(wanted(site.nodes["b"].worker.client), LIMIT_S))


class Terminal:
    """A command line at a terminal of its own."""

    def __init__(self, site, *args):
        self._args = args
        self._env = environment(site, {"TERM": "xterm"})

    def __enter__(self):
        self._fd, inner = pty.openpty()
        self.resize(24, 80)
        self._inner = inner
        self.process = subprocess.Popen(
            treescale(*self._args), env=self._env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
        os.close(self._inner)

    def modes(self):
        return termios.tcgetattr(self._inner)[:4]

    def type(self, keys):
        os.write(self._fd, keys)

    def resize(self, rows, columns):
        ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, wanted):
        seen = b""
        while wanted not in seen:
            ready, _, _ = select.select([self._fd], [], [], LIMIT_S)
            assert ready, f"{wanted!r} did not come, but {seen!r}"
            seen += os.read(self._fd, 4096)

    def code(self):
        return self.process.wait(LIMIT_S)
