"""A node takes its configuration from the bus: `node.config` and `node.facts` on nodes of real supervisords."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from test_up import Machine
from waiting import wait

import tsbus
from tsbus import connect_blocking
from tsbus.config import Server, dump, load, loads
from tsbus.copies import Copies, digest, own_copy
from tsbus.supervision.control import pids_of
from tsbus.transport import new_keypair, next_key, public_of, read_secret

CHILDREN = {"a": ["b"], "b": []}
NODES = ",".join(CHILDREN)


@pytest.fixture(scope="module")
def tree():
    """Two nodes that are up."""
    machine = Machine(CHILDREN)
    machine.run()
    yield machine
    machine.end()


@pytest.fixture
def bus(tree):
    with connect_blocking(tree.bus("a")) as bus:
        wait("both nodes answer", lambda: bus.call("*", "node.facts").complete)
        yield bus


def shared(tree):
    """The tree that the nodes have now, as one text for all of them."""
    return Copies(load(tree.files("a").config), {}).shared


def send(bus, text, to=NODES):
    """Send a tree as a person does, and return what each node answered."""
    result = bus.call(to, "node.config", text)
    assert result.complete, result.explain()
    return result.values()


def tagged(text, tag):
    assert 'tags = ["one"]' in text
    return text.replace('tags = ["one"]', f'tags = ["{tag}"]')


def follows(tree, bus, text):
    """Wait until all nodes and their routers follow a tree, with nothing left to do."""
    copies = {name: own_copy(text, name) for name in CHILDREN}
    wanted = {name: (digest(copy), "", loads(copy).version) for name, copy in copies.items()}

    def so():
        facts, stats = bus.call(NODES, "node.facts").values(), bus.call(NODES, "router.stats").values()
        return wanted == {
            name: (facts[name]["config"], facts[name]["pending"], stats[name]["config"])
            for name in facts.keys() & stats.keys()
        }

    wait("all follow", so)


def links(bus):
    return {node["name"]: node["epoch"] for node in bus.call_one("a", "router.status")["nodes"]}


def test_one_text_reaches_all_nodes(tree, bus):
    """Each makes its own copy of it, with the rights of the old one, and tells its router, whose links stay."""
    before, programs = links(bus), {name: tree.pid("b", name) for name in ("router", "executor", "docker")}
    old, new = shared(tree), tagged(shared(tree), "two")
    tree.files("b").config.chmod(0o600)
    answers = send(bus, new)
    assert answers["b"] == {
        "changed": True,
        "before": digest(own_copy(old, "b")),
        "after": digest(own_copy(new, "b")),
        "tells": {"router": "reload"},
    }
    follows(tree, bus, new)
    assert tree.files("b").config.stat().st_mode & 0o777 == 0o600
    assert links(bus) == before
    assert {name: tree.pid("b", name) for name in programs} == programs
    assert bus.call_one("a", "router.status")["nodes"][1]["tags"] == ["two"]
    send(bus, old)
    follows(tree, bus, old)


def test_the_same_text_again_touches_nothing(tree, bus):
    """The file stays the same one, and nobody is told of it."""
    file = tree.files("b").config
    before = file.stat()
    answer = send(bus, shared(tree))["b"]
    assert (answer["changed"], answer["tells"]) == (False, {})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_who_reads_what_changed_starts_anew(tree, bus):
    """A change of what the executor may do restarts the executor, and nobody else."""
    old = shared(tree)
    executor, docker = tree.pid("b", "executor"), tree.pid("b", "docker")
    new = f"{old}\n[executor]\nmax_jobs = 7\n"
    assert send(bus, new)["b"]["tells"] == {"executor": "restart", "router": "reload"}
    follows(tree, bus, new)
    assert wait("the executor runs", lambda: tree.pid("b", "executor")) != executor
    assert tree.pid("b", "docker") == docker
    send(bus, old)
    follows(tree, bus, old)


def test_a_tree_of_a_thousand_servers_goes_through_one_call(tree, bus):
    """Both nodes take it and follow, and nobody starts anew: what their services read is the same."""
    old, now = shared(tree), load(tree.files("a").config)
    names = [*CHILDREN, *(f"n{number}" for number in range(1000 - len(CHILDREN)))]
    # Each has the next ten below it that have no parent yet.
    servers = {
        name: replace(
            now.servers.get(name) or Server(name, f"127.9.{place // 250}.{place % 250}", 9),
            childs=tuple(names[10 * place + 1 : 10 * place + 11]),
        )
        for place, name in enumerate(names)
    }
    new = Copies(replace(now, servers=servers), {}).shared
    assert [told["tells"] for told in send(bus, new).values()] == [{"router": "reload"}] * len(CHILDREN)
    follows(tree, bus, new)
    assert len(bus.call_one("b", "router.status")["nodes"]) == 1000
    send(bus, old)
    follows(tree, bus, old)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("service_port", "service_prot"), "did you mean"),
        (lambda text: text.replace('current_node = "."', 'current_node = "b"'), 'it has no line current_node = "."'),
        (lambda text: text[: text.index("[servers.b]")], 'no server named "b"'),
        (lambda text: Copies(load_text(text), {"b": new_keypair()[0]}).shared, "not a key that b has"),
        (lambda text: Copies(load_text(text), {"b": ""}).shared, "servers.b.public_key is empty"),
    ],
)
def test_a_tree_that_would_do_harm_is_refused(tree, bus, change, words):
    """One that is not in order, lacks the node or knows it by another key is answered with why; nothing changes."""
    before = tree.files("b").config.read_text()
    result = bus.call("b", "node.config", change(shared(tree)))
    assert result.failed == {"b"}
    assert words in result.errors["b"]
    assert tree.files("b").config.read_text() == before
    assert bus.call_one("b", "node.facts")["pending"] == ""


def load_text(text):
    return loads(own_copy(text, "a"))


def test_a_damaged_text_is_refused(bus, tree):
    """A text whose digest is not that which came with it is not looked at."""
    result = bus.call("b", "node.config", {"tree": shared(tree), "sha256": digest("another")})
    assert "another sha256" in result.errors["b"]


def test_only_an_administrator_above_may(tree, bus):
    """A node below may not configure one above it; who tried, and who did, is in the audit log."""
    with connect_blocking(tree.bus("b")) as below:
        assert below.call("a", "node.config", shared(tree)).refused == {"a"}
    send(bus, shared(tree), to="b")
    last = (tree.files("b").log_dir / "node-audit.log").read_text().splitlines()[-1]
    assert '"command":"node.config","ok":true,"changed":false' in last
    assert f'"who":"uid:{os.getuid()}","origin":"a","role":"admin"' in last


def test_a_node_that_cuts_its_own_way_back_has_answered(tree, bus):
    """A new port of its own ends all its links: the answer is there before, and the tree is whole again after."""
    old = shared(tree)
    port = tree.ports["b"]
    new = old.replace(f"service_port = {port}", f"service_port = {port + 1000}")
    assert send(bus, new)["b"]["tells"] == {"router": "reload"}
    follows(tree, bus, new)
    send(bus, old)
    follows(tree, bus, old)


def test_a_key_is_exchanged_over_the_bus(tree, bus):
    """Three texts to all: both keys are known, then the new one is in use, then the old one is gone."""
    key = tree.files("b").key
    old, (new, secret) = public_of(read_secret(key)), new_keypair()
    next_key(key).write_text(secret)
    next_key(key).chmod(0o600)
    now = load(tree.files("a").config)
    for public, other in ((old, new), (new, old), (new, "")):
        copies = Copies(now, {"b": public}, {"b": other})
        assert bus.call("*", "node.config", copies.sealed).complete
        follows(tree, bus, copies.shared)
        facts = bus.call_one("b", "node.facts")
        assert (facts["public_key"], facts["other_public_key"]) == (public, other)
    assert read_secret(key) == secret


def test_facts_are_small_and_tell_what_a_build_compares(tree, bus):
    """Digests of its files, its keys, and on which machine what runs; of a checkout no release and no manifest."""
    facts = bus.call_one("b", "node.facts")
    assert facts["config"] == digest(tree.files("b").config.read_text())
    assert facts["public_key"] == public_of(read_secret(tree.files("b").key))
    assert (facts["node"], facts["version"], facts["release"], facts["manifest"]) == ("b", tsbus.__version__, "", None)
    assert len(facts["supervisor"]) == 64
    assert facts["machine"] == os.uname().machine


def test_a_tree_in_place_is_followed_by_the_process_after_the_one_that_was_killed(tree, bus):
    """What a killed process had not told the others yet is told when it is back."""
    new = dump(load(tree.files("b").config)).replace('tags = ["one"]', 'tags = ["late"]')
    tree.files("b").config.write_text(new)
    (Path(tree.run_dir) / "b" / "pending").write_text("follow")
    os.kill(tree.pid("b", "events"), signal.SIGKILL)
    wait("it is followed", lambda: bus.call_one("b", "router.status")["nodes"][1]["tags"] == ["late"])
    wait("nothing pends", lambda: bus.call("b", "node.facts").values().get("b", {}).get("pending") == "")
    assert pids_of(tree.files("b"))[0]
