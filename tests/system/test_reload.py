"""A configuration that changes under running routers (SIGHUP): links that stay are not touched, the others follow."""

import signal
from dataclasses import replace

from tree import Grow, Tree, until

from tsbus.config import Server
from tsbus.transport import new_keypair


def tell(tree: Tree, *nodes: str) -> None:
    """Write the tree's configuration anew for these running nodes, and let their routers read it."""
    for node in nodes:
        tree.write(node)
    tree.signal(signal.SIGHUP, *nodes)


async def epochs(tree: Tree, node: str) -> dict[str, int]:
    """Return the epoch of each node's attachment; a link that was made anew has a later one."""
    return {name: entry["epoch"] for name, entry in (await tree.status(node)).items()}


async def test_a_node_is_added_without_touching_other_links(grow: Grow) -> None:
    """A new child is dialled after its parent reads the file again; no other link of the tree is made anew."""
    tree = await grow("a:b c")
    before = await epochs(tree, "a")
    public, tree.secrets["d"] = new_keypair()
    port = tree.config.servers["c"].service_port + 1000
    servers = dict(tree.config.servers)
    servers["b"] = replace(servers["b"], childs=("d",))
    servers["d"] = Server("d", servers["b"].ip, port, public_key=public)
    tree.config = replace(tree.config, servers=servers)
    tell(tree, "a", "b", "c")
    tree.start("d")
    for node in "abc":
        await tree.wait_seen(node, {"a", "b", "c", "d"}, home=True)
    after = await epochs(tree, "a")
    assert {name: after[name] for name in before} == before


async def test_a_removed_node_is_cut(grow: Grow) -> None:
    """A node that is not in the file any more loses its link, and its key opens no other."""
    tree = await grow("a:b c")
    servers = dict(tree.config.servers)
    servers["a"] = replace(servers["a"], childs=("b",))
    del servers["c"]
    tree.config = replace(tree.config, servers=servers)
    tell(tree, "a", "b")

    async def gone() -> bool:
        return set(await tree.status("a")) == {"a", "b"} and (await tree.status("c"))["a"]["state"] != "up"

    await until("c is cut off", gone)
    assert [link["name"] for link in (await tree.ask("a", "router.stats"))["links"]] == ["b"]


async def test_a_changed_key_cuts_the_old_one(grow: Grow) -> None:
    """When a node's key changes in the file, its running connection ends, not only later ones."""
    tree = await grow("a:b c")
    public, _ = new_keypair()
    old = tree.config
    servers = dict(old.servers) | {"b": replace(old.servers["b"], public_key=public)}
    tree.config = replace(old, servers=servers)
    tell(tree, "a")
    await tree.wait_seen("a", {"a", "c"})
    tree.config = old
    tell(tree, "a")
    await tree.wait_seen("a", {"a", "b", "c"}, home=True)


async def test_a_broken_file_changes_nothing(grow: Grow) -> None:
    """A file with errors, and one that names another node, are refused in the log and counted; the tree goes on."""
    tree = await grow("a:b")
    file = tree.write("a")
    for text in ("[servers.a\n", file.read_text().replace('current_node = "a"', 'current_node = "b"')):
        before = (await tree.counters("a")).get("config-refused", 0)
        file.write_text(text)
        tree.signal(signal.SIGHUP, "a")

        async def refused(before: int = before) -> bool:
            return (await tree.counters("a")).get("config-refused", 0) == before + 1

        await until("the file is refused", refused)
    assert await tree.up("a") == {"a", "b"}
    assert "config.refused" in tree.log("a")
