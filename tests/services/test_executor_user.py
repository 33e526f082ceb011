"""As whom programs run where nobody says: an executor that is root gives them to an ordinary user."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tsbus import Client
from tsbus.config import ExecRule, ExecutorPolicy, Handler
from tsbus.executor.service import make_worker
from tsbus.testing import MemoryTree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run programs as others")
OWN = ExecRule(("**",), ("operate",))
"""As the default user only."""
ANY = ExecRule(("**",), ("admin",), ("*",))


@pytest.fixture
async def tree() -> AsyncIterator[MemoryTree]:
    async with MemoryTree({"root": ["a"]}) as one:
        yield one


async def executor(tree: MemoryTree, folder: Path, default: str = "", **policy: Any) -> Client:
    """A client, and on node a an executor that was started with `--user default`."""
    handlers = policy.pop("handlers", {})
    settings = ExecutorPolicy(**{"allow": (OWN,), **policy})
    config = replace(tree.config.with_current("a"), executor=settings, handlers=handlers)
    await tree.run(make_worker(config, folder, user=default), "a")
    return await tree.connect("root")


async def whoami(client: Client, **more: Any) -> str:
    """What a program is told that asks who it is, or why there is none."""
    result = await client.call("a", "exec.run", {"argv": ["id", "-un"], **more})
    return result.errors.get("a") or result.replies["a"].decode().splitlines()[0]


async def test_the_default_user_is_that_of_the_command_line(tree: MemoryTree, tmp_path: Path) -> None:
    """What supervisord's file says is taken where neither caller nor configuration names a user."""
    assert await whoami(await executor(tree, tmp_path, "nobody")) == "nobody"


async def test_the_configuration_goes_first(tree: MemoryTree, tmp_path: Path) -> None:
    """`user` of [executor] is taken before the command line's."""
    assert await whoami(await executor(tree, tmp_path, "nobody", user="daemon")) == "daemon"


async def test_without_either_it_is_the_own_user(tree: MemoryTree, tmp_path: Path) -> None:
    """As with `treescale up`."""
    assert await whoami(await executor(tree, tmp_path)) == "root"


async def test_the_default_user_needs_no_rule_and_root_does(tree: MemoryTree, tmp_path: Path) -> None:
    """Naming the default user changes nothing; the executor's own user is another one then."""
    client = await executor(tree, tmp_path, "nobody")
    assert await whoami(client, user="nobody") == "nobody"
    assert 'run_as = ["root"]' in await whoami(client, user="root")


async def test_a_default_user_who_is_gone_is_told(tree: MemoryTree, tmp_path: Path) -> None:
    """Nothing is run as somebody else instead; with a rule one can still name a user."""
    client = await executor(tree, tmp_path, "no-one", allow=(OWN, replace(ANY, users=("operate",))))
    assert await whoami(client) == "no user 'no-one' on this node"
    assert await whoami(client, user="root") == "root"


async def test_handlers_run_as_the_default_user_too(tree: MemoryTree, tmp_path: Path) -> None:
    """A handler that names no user runs as the default one, one that does as that."""
    script = "[ $(id -un) = $0 ]; exit $((70 + $?))"
    handlers = {
        "plain": Handler("plain", "go.plain", ("sh", "-c", script, "nobody")),
        "named": Handler("named", "go.named", ("sh", "-c", script, "daemon"), user="daemon"),
    }
    client = await executor(tree, tmp_path, "nobody", handlers=handlers)
    for name in handlers:
        async with client.subscribe("handler.failed") as failed:
            await client.publish(f"go.{name}", {})
            told = (await failed.next()).json()
        assert (told["name"], told["exit"]) == (name, 70)
