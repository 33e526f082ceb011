"""Keys that are taken away, and keys that are exchanged, under running routers (docs/build.md, Keys)."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from raw import RawParent, RawWorker
from test_reload import epochs, tell
from tree import QUICK, Grow, Tree, until

from tsbus import Request, Worker
from tsbus.config import Operator
from tsbus.core.message import Type
from tsbus.core.roles import Role
from tsbus.transport import TransportError, new_keypair, next_key, own_secret, public_of

ALONE = replace(QUICK, adopt_after_s=600.0)


def set_keys(tree: Tree, node: str, public_key: str, other: str = "") -> None:
    """Change the keys of a node in the tree's configuration."""
    server = replace(tree.config.servers[node], public_key=public_key, other_public_key=other)
    tree.config = replace(tree.config, servers=tree.config.servers | {node: server})


def told_end(peer: Any) -> Any:
    """A function that tells whether the TCP connection of a peer of our own has ended."""
    monitor = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    return lambda: monitor.poll(0)


async def loaded(tree: Tree, *nodes: str) -> None:
    """Wait until these routers follow the tree's configuration as it is now."""

    async def same() -> bool:
        versions = [(await tree.ask(node, "router.stats"))["config"] for node in nodes]
        return set(versions) == {tree.config.version}

    await until("the new configuration", same)


# Revocation.


async def test_a_revoked_node_is_cut_and_those_below_it_are_adopted(grow: Grow) -> None:
    """A node without key in the configuration loses its links and gets no others; its sibling's is not made anew."""
    tree = await grow("a:b c;b:d")
    before = await epochs(tree, "a")
    set_keys(tree, "b", "")
    tell(tree, "a", "c", "d")
    await tree.wait_seen("c", {"a", "c", "d"})
    after = await epochs(tree, "a")
    assert after["c"] == before["c"]
    assert (await tree.status("d"))["d"]["parent"] == "a"
    assert (await tree.counters("a"))["revoked"] == 1
    await tree.wait_seen("b", {"b"})


async def test_a_revoked_parent_cannot_keep_the_connection(grow: Grow) -> None:
    """The TCP connection of a router whose key is gone ends, although that router does not follow BYE."""
    tree = await grow("a:b;b:c", bus=ALONE)
    below = (await epochs(tree, "b"))["c"]
    tree.kill("a")
    with RawParent(tree, "b", "a") as thief:
        ended = told_end(thief)
        thief.hello()
        await thief.wait(Type.WELCOME)
        public, tree.secrets["a"] = new_keypair()
        set_keys(tree, "a", public)
        tell(tree, "b", "c")
        assert (await thief.wait(Type.BYE)).map()["reason"] == "revoked"
        await until("the end of the connection", ended)
        thief.socket.disable_monitor()
        tree.start("a")
        await tree.whole()
    assert (await epochs(tree, "b"))["c"] == below


async def test_a_revoked_operator_is_cut_and_others_are_not(grow: Grow) -> None:
    """An operator whose key or role is another is cut, one who has said nothing yet as well; the rest stay."""
    keys = {name: new_keypair() for name in ("alice", "bob", "carol", "dave")}
    people = {name: Operator(name, public, Role.ADMIN) for name, (public, _) in keys.items()}
    tree = await grow("a:b", operators=people)
    before = await epochs(tree, "a")
    alice, bob, carol, dave = (RawWorker(tree.address("b"), tree.keys("b", secret)) for _, secret in keys.values())
    with alice, bob, carol, dave:
        silent = carol.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        for one in (alice, bob, dave):
            await one.hello()
        await until("carol is connected, and silent", lambda: silent.poll(0))
        silent.recv_multipart()
        left = told_end(dave)
        less = replace(people["dave"], role=Role.OBSERVE)
        tree.config = replace(tree.config, operators={"bob": people["bob"], "dave": less})
        tell(tree, "b")
        for one in (alice, dave):
            assert (await one.wait(Type.BYE)).map()["reason"] == "revoked"
        carol.local(Type.HELLO, {"versions": (1, 1), "name": "x", "incarnation": 1, "window": 1})
        await until("the end of carol", lambda: silent.poll(0))
        carol.socket.disable_monitor()
        assert not carol.of(Type.WELCOME)
        await bob.settled()
        assert not bob.of(Type.BYE)
        await until("the end of dave's first connection", left)
        dave.socket.disable_monitor()
        dave.heard.clear()
        assert (await dave.hello()).welcome.role == Role.OBSERVE
    assert await epochs(tree, "a") == before


async def test_a_key_that_changes_while_its_node_is_away_counts(grow: Grow) -> None:
    """A parent that dials a lost child does not go on with the key of before: who has that is not let in."""
    tree = await grow("a:b c")
    old = tree.secrets["b"]
    tree.kill("b")
    await tree.wait_seen("a", {"a", "c"})
    public, tree.secrets["b"] = new_keypair()
    set_keys(tree, "b", public)
    tell(tree, "a", "c")
    await loaded(tree, "a")
    right = tree.config
    tree.secrets["b"], kept = old, tree.secrets["b"]
    set_keys(tree, "b", public_of(old))
    tree.start("b")
    await until("the thief is refused", lambda: "dial.refused" in tree.log("a") or "key.refused" in tree.log("b"))
    tree.kill("b")
    assert await tree.up("a") == {"a", "c"}
    tree.config, tree.secrets["b"] = right, kept
    tree.start("b")
    await tree.whole()


# A node's own key.


def test_the_configuration_says_which_key_is_in_use(tmp_path: Path) -> None:
    """The next key is taken when it is the configured one, otherwise the present one; it too is closed to others."""
    path = tmp_path / "node.key"
    (public, secret), (public_next, secret_next) = new_keypair(), new_keypair()
    for file, text in ((path, secret), (next_key(path), secret_next)):
        file.write_text(text)
        file.chmod(0o600)
    assert own_secret(path, public) == own_secret(path, "") == own_secret(path, "x" * 40) == secret
    assert own_secret(path, public_next) == secret_next
    next_key(path).chmod(0o640)
    with pytest.raises(TransportError, match="can be read by others"):
        own_secret(path, public_next)


async def test_a_key_is_exchanged_while_the_tree_runs(grow: Grow) -> None:
    """Both keys are known first; then the node goes on with the new one, and its links alone are made anew."""
    tree = await grow("r:a d;a:b c", bus=ALONE)
    old = tree.config.servers["a"].public_key
    new, secret = new_keypair()
    following = next_key(tree.folder / "a.key")
    following.write_text(secret)
    following.chmod(0o600)
    first = await epochs(tree, "r")

    set_keys(tree, "a", old, other=new)
    tell(tree, *tree.names)
    await loaded(tree, *tree.names)
    assert await epochs(tree, "r") == first

    worker = Worker("slow")
    begun = asyncio.Event()

    @worker.command("hang")
    async def hang(_: Request) -> None:
        begun.set()
        await asyncio.Event().wait()

    await tree.run(worker, "b")
    client = await tree.connect("r")
    hanging = asyncio.create_task(client.call("b,d", "slow.hang"))
    await begun.wait()
    set_keys(tree, "a", new, other=old)
    tell(tree, *tree.names)
    assert (await hanging).unreachable == {"b"}
    await tree.whole()
    second = await epochs(tree, "r")
    assert {name for name in second if second[name] != first[name]} == {"a", "b", "c"}

    tree.kill("a")  # it starts with the key that the configuration names, whichever file that is in
    tree.start("a")
    await tree.whole()
    third = await epochs(tree, "r")
    set_keys(tree, "a", new)
    following.replace(tree.folder / "a.key")
    tree.secrets["a"], lost = secret, tree.secrets["a"]
    tell(tree, *tree.names)
    await loaded(tree, *tree.names)
    assert await epochs(tree, "r") == third
    with RawWorker(tree.address("d"), tree.keys("d", lost)) as thief:
        thief.local(Type.HELLO, {"versions": (1, 1), "name": "x", "incarnation": 1, "window": 1})

        async def refused() -> bool:
            return (await tree.counters("d")).get("refused-key", 0) > 0

        await until("the old key is refused", refused)


async def test_a_node_follows_to_another_port(grow: Grow) -> None:
    """When its own port is another one, a router listens there instead, and its parent finds it."""
    tree = await grow("a:b c")
    before = await epochs(tree, "a")
    server = tree.config.servers["b"]
    servers = tree.config.servers | {"b": replace(server, service_port=server.service_port + 2000)}
    tree.config = replace(tree.config, servers=servers)
    tell(tree, *tree.names)
    await loaded(tree, *tree.names)
    await tree.whole()
    after = await epochs(tree, "a")
    assert {name for name in after if after[name] != before[name]} == {"b"}
