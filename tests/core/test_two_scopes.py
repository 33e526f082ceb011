"""A client whose subscriptions have two scopes, and so two connections (worker-api.md)."""

import pytest

from tsbus import TopicError
from tsbus.testing import MemoryTree


async def test_a_bad_pattern_opens_no_connection() -> None:
    """A pattern that is refused leaves no second connection behind."""
    async with MemoryTree({"root": []}) as tree:
        client = await tree.connect("root")
        await client.subscribe("a")
        with pytest.raises(TopicError):
            await client.subscribe("a..b", scope="subtree")
        await tree.settle()
        assert len(tree.router("root").workers) == 1
        await client.subscribe("a.b", scope="subtree")
        assert len(tree.router("root").workers) == 2
