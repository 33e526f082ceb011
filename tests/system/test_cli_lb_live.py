"""The command lines for balancers on a tree of real routers, with the balancer's service over kernels in memory."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import click
import pytest
from background import LIMIT_S, Background
from click.testing import CliRunner
from tree import Tree
from waiting import wait

from tsbus import Worker
from tsbus.balancer.report import Problem
from tsbus.balancer.service import Service
from tsbus.cli import completion
from tsbus.cli.main import cli
from tsbus.config import loads

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/balancer"))  # the kernels in memory live there
from model_kernel import box  # noqa: E402
from site_of_balancer import MemoryMachine, Monitor  # noqa: E402

ALL = {"root": ("web1", "web2", "web3", "c"), "a": ("web3",)}
"""The servers of the balancers `web`."""
FORWARDING = Problem("net.ipv4.ip_forward is 0", "`sysctl -w net.ipv4.ip_forward=1`")
CONFIG = """
[servers.root]
ip = "192.168.0.1"
service_port = 1
childs = ["a", "b", "c", "gone"]
[servers.root.balancers.web]
address = "192.0.2.1:443"
containers = {nginx = 80}
servers = {c = 53}
start_grace_s = 0
drain_timeout_s = 3600
[servers.root.balancers.dns]
address = "192.0.2.1:53"
protocol = "udp"
containers = {bind = 53}
[servers.a]
ip = "192.168.0.2"
service_port = 1
[servers.a.balancers.web]
address = "192.168.0.2:80"
containers = {nginx = 80}
start_grace_s = 0
drain_timeout_s = 3600
[servers.b]
ip = "192.168.0.3"
service_port = 1
[servers.c]
ip = "192.168.0.4"
service_port = 1
[servers.c.balancers.api]
address = "192.168.0.4:53"
servers = {c = 1}
[servers.gone]
ip = "192.168.0.5"
service_port = 1
[servers.gone.balancers.web]
address = "192.168.0.5:80"
containers = {nginx = 80}
"""
ANSWER = {"balancer": "api", "address": "192.168.0.4:53", "protocol": "tcp", "from": "remote", "works": True,
          "verdict": "It goes to c.", "checks": [{"name": "balancer", "result": "ok", "text": "api has it"}],
          }  # fmt: skip


class Child(Worker):
    """A stand-in for the balancer of c, of which only what it says matters."""

    def __init__(self):
        super().__init__("lb")
        one = {"name": "api", "addresses": ["192.168.0.4:53"], "protocol": "tcp", "alg": "rr"}
        answers = {"ls": {"balancers": [one | {"active": 1, "servers": 1, "state": "ok", "problems": 0}]},
                   "show": one, "why": ANSWER, "check": {"problems": []},
                   "capacity": {"node": "c", "balancers": {
                       "api": {"addresses": ["192.168.0.4:53"], "protocol": "tcp", "capacity": 1.0}}}}  # fmt: skip
        for name, answer in answers.items():
            self.command(name, role="observe")(self._saying(answer))

    @staticmethod
    def _saying(answer):
        async def say(_):
            return answer

        return say


class Site(Background):
    """root - (a, b, c, gone): balancers on root and a, a stand-in on c, none on b; gone had one, and is lost."""

    @contextlib.asynccontextmanager
    async def live(self, folder):
        config = loads(CONFIG)
        tree = Tree("root:a b c gone", folder)
        servers = {
            name: replace(one, balancers=config.servers[name].balancers) for name, one in tree.config.servers.items()
        }
        tree.config = replace(tree.config, servers=servers)
        async with tree:
            self.bus = tree.bus("root")
            self.monitors = {node: await tree.run(Monitor(node), node) for node in ("root", "a", "b", "c")}
            await tree.run(Child(), "c")
            self.machines, serving = {}, []
            for node in ("root", "a"):
                machine = self.machines[node] = MemoryMachine()
                (folder / node / "lb").mkdir()
                service = Service(config.with_current(node), folder / node / "lb", lambda one=machine: one)
                serving.append(asyncio.create_task(service.serve(await tree.connect(node, name="lb"))))
                await service.wait_ready()
            self.machines["a"].problems = (FORWARDING,)
            tree.kill("gone")
            await tree.wait_seen("root", {"root", "a", "b", "c"})
            for node, one in (("root", box("web1", "198.51.100.2")), ("root", box("web2", "198.51.100.3")),
                              ("a", box("web3", "198.51.100.4", host_port=8080))):  # fmt: skip
                await self.monitors[node].has(one, "started")
            yield
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)


@pytest.fixture(scope="module")
def one_site():
    with Site() as site:
        yield site


@pytest.fixture
def site(one_site):
    """The site with all servers active and no connections."""
    run = runner(one_site)
    one_site.machines["root"].open.clear()
    run("lb", "undrain", "*", *ALL["root"])
    run("lb", "weight", "*", *ALL["root"], "default")
    for node, names in ALL.items():
        wait(
            f"{names} are active",
            lambda node=node, names=names: states(one_site, node) == dict.fromkeys(names, "active"),
        )
    return one_site


@pytest.fixture
def run(site):
    return runner(site)


def runner(site):
    return lambda *args: CliRunner().invoke(cli, ["--bus", site.bus, *args])


def states(site, node):
    """State of each server of a node's balancer `web`."""
    row = json.loads(runner(site)("lb", "show", node, "-b", "web", "--json").stdout.splitlines()[0])
    return {server["name"]: server["state"] for server in row.get("servers", ())}


@contextlib.contextmanager
def started(site, *args):
    """A command line as a process of its own, ended by Ctrl-C if it still runs, and by force if that does not help."""
    argv = [str(ROOT / "bin/treescale"), "--bus", site.bus, *args]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(LIMIT_S, process.kill)
        guard.start()
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
            guard.cancel()


# What there is.


def test_lb_ls_names_who_has_balancers_and_did_not_answer(run):
    """A node without balancers is not mentioned; a lost one that has some makes it partial."""
    result = run("lb", "ls")
    lines = result.stdout.splitlines()
    assert (result.exit_code, lines[0]) == (3, "3 nodes, 4 balancers: 3 ok, 1 empty")
    assert [line.split()[:2] for line in lines[3:7]] == [["a", "web"], ["c", "api"], ["root", "dns"], ["root", "web"]]
    assert [line.partition(":")[0] for line in lines[7:]] == ["", "gone"]


def test_lb_ls_of_a_target_without_balancers_tells_how_to_get_one(run):
    """In one sentence, with exit code 1."""
    result = run("lb", "ls", "b")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no balancer on b: give a node one with [servers.NODE.balancers.web]" in result.stderr


def test_lb_ls_for_machines_ends_with_the_summary_of_nodes_with_balancers(run):
    """One object for each balancer."""
    *rows, summary = map(json.loads, run("lb", "ls", "--json").stdout.splitlines())
    assert {(row["node"], row["name"]) for row in rows} == {
        ("a", "web"),
        ("c", "api"),
        ("root", "dns"),
        ("root", "web"),
    }
    assert (set(summary["summary"]["ok"]), summary["summary"]["unreachable"]) == ({"root", "a", "c"}, ["gone"])


def test_lb_ls_draws_again_when_something_changes(site, run):
    """It is told, and asks only who told it."""
    with started(site, "lb", "ls", "root", "--watch") as process:
        assert any("4/4" in line for line in process.stdout)
        run("lb", "drain", "root", "web1")
        assert any("3/3" in line for line in process.stdout)


def test_lb_show_takes_the_balancers_by_name_wherever_they_are(run):
    """A name that nobody has is an error with the nearest one."""
    result = run("lb", "show", "*", "-b", "web", "-b", "dns")
    heads = [line.split()[0] for line in result.stdout.splitlines() if line and not line.startswith(" ")]
    assert heads == ["a/web", "root/dns", "root/web", "gone:"]
    result = run("lb", "show", "root", "-b", "wbe")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no balancer 'wbe' on root; did you mean 'web'?" in result.stderr


def test_lb_stats_and_watch_tell_the_figures_of_the_kernel(site, run):
    """Once, and again and again until Ctrl-C."""
    result = run("lb", "stats", "root", "-b", "web")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (
        0, "1 node, 1 balancer: 0 connections/s, 0 active, in 0 B/s, out 0 B/s"
    )  # fmt: skip
    with started(site, "lb", "watch", "root", "-b", "web", "--every", "0.2", "--json") as process:
        told = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert [(each["node"], each["name"], len(each["servers"])) for each in told] == [("root", "web", 4)] * 2
    assert process.returncode == 130


# Drains and weights.


def test_a_drain_is_told_to_every_balancer_that_has_the_server(site, run):
    """With a line for each; undrain takes it back."""
    result = run("lb", "drain", "*", "web3")
    assert result.exit_code == 0, result.stderr
    assert sorted(line.split(":")[0] for line in result.stdout.splitlines()) == ["web3 in a/web", "web3 in root/web"]
    wait("web3 is removed", lambda: states(site, "root")["web3"] == states(site, "a")["web3"] == "removed")
    result = run("lb", "undrain", "*", "web3")
    assert sorted(result.stdout.splitlines()) == ["web3 in a/web: active", "web3 in root/web: active"]


def test_a_server_that_nobody_has_is_an_error_and_nothing_is_done(site, run):
    """The nearest name is told; the other names of the order are left alone."""
    result = run("lb", "drain", "*", "web1", "wbe3")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no server 'wbe3' on *" in result.stderr
    assert "did you mean 'web3'" in result.stderr
    assert states(site, "root")["web1"] == "active"


def test_a_balancer_that_could_have_the_server_and_is_lost_makes_the_drain_partial(run):
    """It may still send connections there."""
    result = run("lb", "drain", "*", "gone")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "gone has no servers now; it holds for those that come" in result.stderr
    assert "unreachable 1: gone" in result.stderr
    run("lb", "undrain", "*", "gone")


def test_a_drain_that_is_waited_for_goes_on_after_ctrl_c(site, run):
    """The command that takes it back is told; waiting again ends when the last connection is over."""
    site.machines["root"].open["198.51.100.3:80"] = 3
    with started(site, "lb", "drain", "*", "web2", "--wait") as process:
        wait("web2 drains", lambda: states(site, "root")["web2"] == "draining")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert "Take it back with: treescale lb undrain '*' web2" in told
    assert states(site, "root")["web2"] == "draining"
    with started(site, "lb", "drain", "*", "web2", "--wait") as process:
        site.machines["root"].open["198.51.100.3:80"] = 0
        shown, _ = process.communicate()
    assert (process.returncode, shown) == (0, "web2 in root/web: removed\n")


def test_a_drain_that_is_taken_back_while_it_is_waited_for_has_failed(site, run):
    """Who waits must not go on as if the server were out."""
    site.machines["root"].open["198.51.100.3:80"] = 3
    with started(site, "lb", "drain", "root", "web2", "--wait") as process:
        wait("web2 drains", lambda: states(site, "root")["web2"] == "draining")
        run("lb", "undrain", "root", "web2")
        shown, told = process.communicate()
    assert (process.returncode, shown) == (1, "web2 in root/web: active, its drain was taken back\n")
    assert "the drain of web2 was taken back" in told


def test_a_drain_for_some_time_ends_by_itself(site, run):
    """Nobody has to come back for it."""
    site.machines["root"].open["198.51.100.3:80"] = 3
    assert run("lb", "drain", "root", "web2", "--for", "1s").exit_code == 0
    wait("web2 is active", lambda: states(site, "root")["web2"] == "active")


def test_a_weight_is_set_and_taken_back(site, run):
    """The last word is the weight."""
    result = run("lb", "weight", "root", "web1", "web2", "7")
    assert result.stdout == "web1 in root/web: weight 7 (active)\nweb2 in root/web: weight 7 (active)\n"
    row = json.loads(run("lb", "show", "root", "-b", "web", "--json").stdout.splitlines()[0])
    assert sorted(server["weight"] for server in row["servers"]) == [1, 1, 7, 7]
    assert "weight as configured" in run("lb", "weight", "root", "web1", "web2", "default").stdout


def test_lb_sync_prints_what_it_mended(site, run):
    """Somebody took a server out of the kernel's table."""
    kernel = site.machines["root"].kernel
    servers = next(entry.destinations for key, entry in kernel.table.items() if "443" in str(key))
    site.do(forget(servers, "198.51.100.2:80"))
    result = run("lb", "sync", "root")
    assert result.exit_code == 0
    assert "198.51.100.2:80" in result.stdout
    assert run("lb", "sync", "root").stdout == "root: nothing to do\n"


async def forget(servers, address):
    del servers[next(each for each in servers if str(each) == address)]


# What is wrong.


def test_lb_check_ends_with_0_only_when_nothing_is_wrong(run):
    """An empty balancer is a note; a problem of the host ends it with 1; a lost node cannot be checked."""
    result = run("lb", "check", "root")
    assert (result.exit_code, result.stdout.splitlines()[:2]) == (0, [
        "1 note:", "  root/dns: no server can take connections"
    ])  # fmt: skip
    result = run("lb", "check", "*")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"1 problem:\n  a: {FORWARDING.text}\n    mend: {FORWARDING.mend}\n")
    assert run("lb", "check", "gone").exit_code == 4
    assert run("lb", "check", "c,gone").exit_code == 3


def test_lb_why_tells_the_verdict_of_the_node_that_has_the_address(run):
    """Exit code 0 when it works."""
    result = run("lb", "why", "192.168.0.4:53")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[:2] == [
        "c/api  192.168.0.4:53 tcp from a remote client: works", "  It goes to c."
    ]  # fmt: skip


def test_lb_why_sends_on_to_the_balancer_of_a_node_below(run):
    """There the packet goes on. It ends before, on this machine: nobody has the address."""
    result = run("lb", "why", "192.0.2.1:443")
    assert result.exit_code == 1
    assert "  FAIL  address" in result.stdout
    assert "treescale lb why 192.168.0.4:53 c" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("192.0.2.2:443",), "no balancer '192.0.2.2:443' on *"),
        (("192.0.2.1:443", "--udp"), "no balancer has 192.0.2.1:443 for udp: root/web has it for tcp"),
        (("wbe", "root"), "did you mean 'web'?"),
    ],
)
def test_an_address_that_no_balancer_has_is_wrong_usage(run, args, text):
    """And not a packet that does not get through."""
    result = run("lb", "why", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr


@pytest.mark.parametrize(
    ("complete", "words"),
    [
        (completion.complete_balancer, ["web"]),
        (completion.complete_server, ["web1", "web2", "web3"]),
        (completion.complete_address, ["web"]),
    ],
)
def test_names_of_balancers_and_servers_are_completed(site, monkeypatch, complete, words):
    """Those of the nodes of the target."""
    monkeypatch.setattr(completion, "PATIENCE_S", LIMIT_S)  # a crowded machine
    context = click.Context(click.Command("drain"))
    context.params.update(bus=site.bus, target="root,a")
    assert complete(context, click.Argument(["word"]), "we") == words
