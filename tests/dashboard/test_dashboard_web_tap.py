"""The tap: events of any topic while somebody reads them and a while longer, in a log of their own, and bounded."""

from collections.abc import AsyncIterator

import pytest

from tsbus.dashboard.eventlog import EventLog
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.tap import LINGER_S, MAX_TOPICS, Tap
from tsbus.testing import MemoryTree


class Bed:
    """A tree in memory, and a tap on its root."""

    def __init__(self, tree: MemoryTree, feed: Feed, tap: Tap) -> None:
        self.tree, self.feed, self.tap = tree, feed, tap

    async def wanted(self, topic: str) -> bool:
        """Whether a publisher below is asked for `topic`."""
        client = await self.tree.connect("a")
        async with client.interest(topic) as interest:
            await self.tree.settle()
            return interest.wanted

    async def publish(self, *topics: str) -> None:
        client = await self.tree.connect("a")
        for topic in topics:
            await client.publish(topic, {"x": 1})
        await self.tree.settle()


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    async with MemoryTree({"root": ["a"]}) as tree:
        client = await tree.connect("root")
        async with Feed(client) as feed:
            yield Bed(tree, feed, Tap(client, feed))


def topics(log: EventLog) -> list[str]:
    return [event.topic for event in log]


async def test_a_topic_is_read_while_it_has_readers_and_a_while_longer(bed):
    """Two readers share it; after the last it is kept for who comes back, and then nothing flows any more."""
    async with bed.tap.listening(["shop.>"]), bed.tap.listening(["shop.>", "shop.a"]):
        await bed.publish("shop.a", "other.b")
    assert topics(bed.tap.events) == ["shop.a"]
    assert "shop.a" not in topics(bed.feed.model.events)
    await bed.tree.advance(LINGER_S - 1)
    assert await bed.wanted("shop.a")
    async with bed.tap.listening(["shop.>"]):
        await bed.tree.advance(2 * LINGER_S)
        await bed.publish("shop.b")
    assert topics(bed.tap.events) == ["shop.a", "shop.b"]
    await bed.tree.advance(LINGER_S + 1)
    assert not await bed.wanted("shop.a")


async def test_topics_without_a_reader_make_room(bed):
    """However many topics are asked for one after the other, a bounded number of them is read."""
    async with bed.tap.listening(["kept.x"]):
        for number in range(0, MAX_TOPICS + 32, 16):
            async with bed.tap.listening([f"shop.n{number + each}" for each in range(16)]):
                pass
        assert not await bed.wanted("shop.n0")
        assert await bed.wanted(f"shop.n{MAX_TOPICS + 31}")
        assert await bed.wanted("kept.x")
