"""Fixtures of the contract tests: each test runs in both beds."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from beds import CHILDREN, Bed, MemoryBed, Processes, SocketBed, memory_tree, short_folder


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    with short_folder() as folder:
        routers = Processes(Path(folder))
        for node in CHILDREN:
            routers.start(node)
        yield routers
        routers.close()


@pytest.fixture(params=["memory", "sockets"])
async def bed(request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    if request.param == "memory":
        async with memory_tree() as tree:
            yield MemoryBed(tree)
    else:
        sockets = SocketBed(request.getfixturevalue("processes"))
        await sockets.whole()
        await sockets.alone()
        yield sockets
        await sockets.close()
