"""Events, as every user of the bus may count on them, in memory and on real sockets (protocol 5 to 7 and 9)."""

import asyncio
from collections.abc import Callable

import pytest
from beds import Bed

from tsbus import Client, Event, PayloadTooLarge, Refused, Role, TopicError
from tsbus.config import BusSettings
from tsbus.testing import MemoryTree

MIB = 1024 * 1024


async def test_event_reaches_every_node(bed: Bed) -> None:
    """A subscriber on each node gets an event published on any node, with its author and its body."""
    publisher = await bed.connect("c")
    subscribers = [await bed.connect(node) for node in ("root", "a", "b", "c")]
    subscriptions = [await each.subscribe("door.*") for each in subscribers]
    await bed.heard(publisher, *subscribers)
    await publisher.publish("door.opened", {"door": 3})
    for subscription in subscriptions:
        event = await bed.done(subscription.next())
        assert isinstance(event, Event)
        assert (event.topic, event.origin, event.who, event.role) == ("door.opened", "c", publisher.who, Role.ADMIN)
        assert event.json() == {"door": 3}
        assert event.seq == 0


async def test_patterns_select_topics(bed: Bed) -> None:
    """`*` stands for one token and `>` for one or more; nothing else arrives."""
    client = await bed.connect("a")
    one = await client.subscribe("x.*.z")
    rest = await client.subscribe("x.>")
    for topic in ("x", "x.y", "x.y.z", "x.y.z.z", "y.y.z"):
        await client.publish(topic, topic)
    await client.publish("x.end.z", "end")
    assert await _texts(bed, one) == ["x.y.z", "end"]
    assert await _texts(bed, rest) == ["x.y", "x.y.z", "x.y.z.z", "end"]


async def test_scope_limits_origins(bed: Bed) -> None:
    """`node` hears this node, `subtree` also the nodes below, `all` everybody."""
    client = await bed.connect("a")
    node = await client.subscribe("news.node", scope="node")
    subtree = await client.subscribe("news.subtree", scope="subtree")
    everybody = await client.subscribe("news.all")
    publishers = [await bed.connect(name) for name in ("root", "b", "c", "a")]
    for publisher in publishers[:3]:
        await bed.heard(publisher, client)
    for publisher in publishers:
        for scope in ("node", "subtree", "all"):
            await publisher.publish(f"news.{scope}", publisher.node)
        await bed.done(everybody.next())
    await client.publish("news.node", "end")
    await client.publish("news.subtree", "end")
    assert await _texts(bed, node) == ["a", "end"]
    assert await _texts(bed, subtree) == ["c", "a", "end"]


async def test_scopes_of_one_client_are_kept_apart(bed: Bed) -> None:
    """Overlapping subscriptions of one client each get what their own scope includes, once."""
    client = await bed.connect("a")
    node = await client.subscribe("news.>", scope="node")
    everybody = await client.subscribe("news.*")
    again = await client.subscribe("news.*")
    publisher = await bed.connect("b")
    await bed.heard(publisher, client)
    await publisher.publish("news.x", "far")
    assert (await bed.done(again.next())).text() == "far"
    await client.publish("news.x", "end")
    assert await _texts(bed, node) == ["end"]
    assert await _texts(bed, everybody) == ["far", "end"]


@pytest.mark.parametrize("scopes", [("all", "subtree"), ("subtree", "all")])
async def test_all_and_subtree_of_one_client_are_kept_apart(bed: Bed, scopes: tuple[str, str]) -> None:
    """A client that subscribes to one topic in both scopes hears far nodes in one of them only."""
    client = await bed.connect("a")
    heard: list[tuple[str, str]] = []

    def note(scope: str) -> Callable[[Event], None]:
        return lambda event: heard.append((scope, event.text()))

    for scope in scopes:
        await client.subscribe("news", scope=scope, callback=note(scope))
    far, near = await bed.connect("b"), await bed.connect("c")
    await bed.heard(far, client)
    await bed.heard(near, client)
    await far.publish("news", "far")
    await bed.until(lambda: ("all", "far") in heard)
    await near.publish("news", "near")
    await bed.until(lambda: len(heard) == 3)
    assert sorted(heard) == [("all", "far"), ("all", "near"), ("subtree", "near")]


async def test_the_other_scope_at_a_full_router() -> None:
    """A client without room for the connection that its other scope needs is told so, until there is room."""
    async with MemoryTree({"a": []}, settings=BusSettings(max_workers=2)) as tree:
        client, other = await tree.connect("a"), await tree.connect("a")
        await client.subscribe("news")
        tries = [asyncio.create_task(_subtree(client)) for _ in range(2)]
        await tree.advance(2)
        assert all(each.done() for each in tries)
        for each in tries:
            with pytest.raises(Refused, match="max_workers"):
                await each
        await other.close()
        await tree.advance(2)
        assert [peer.name for peer in tree.router("a").workers.values()] == ["test"], "nothing is left of the tries"
        await _subtree(client)


async def _subtree(client: Client) -> None:
    await client.subscribe("news", scope="subtree")


async def test_target_limits_nodes(bed: Bed) -> None:
    """An event published `to` a tag reaches subscribers on the nodes of that tag only."""
    publisher = await bed.connect("root")
    subscriptions = {}
    for node in ("a", "b", "c"):
        subscriber = await bed.connect(node)
        subscriptions[node] = await subscriber.subscribe(f"news.{node}")
        await bed.heard(publisher, subscriber)
    for node in subscriptions:
        await publisher.publish(f"news.{node}", "web", to="@web")
        await publisher.publish(f"news.{node}", "end")
    assert await _texts(bed, subscriptions["a"]) == ["web", "end"]
    assert await _texts(bed, subscriptions["b"]) == ["end"]
    assert await _texts(bed, subscriptions["c"]) == ["web", "end"]


async def test_order_over_topics(bed: Bed) -> None:
    """Events of one publisher arrive in the order published, whatever their topics, through three routers."""
    publisher, subscriber = await bed.connect("c"), await bed.connect("b")
    subscription = await subscriber.subscribe("n.>")
    await bed.heard(publisher, subscriber)
    for number in range(3000):
        await publisher.publish(f"n.t{number % 7}", str(number))
    await publisher.publish("n.end", "end")
    assert await _texts(bed, subscription) == [*map(str, range(3000)), "end"]


async def test_every_event_at_watermark_one(bed: Bed) -> None:
    """A subscriber that lets the router send one frame ahead still gets every event, in order."""
    publisher, subscriber = await bed.connect("root"), await bed.connect("b", window=1)
    subscription = await subscriber.subscribe("n")
    await bed.heard(publisher, subscriber)
    for number in range(200):
        await publisher.publish("n", str(number))
        if number % 10 == 0:
            await publisher.flush()
    await publisher.publish("n", "end")
    assert await _texts(bed, subscription) == [*map(str, range(200)), "end"]


async def test_burst_beyond_every_window(bed: Bed) -> None:
    """A publisher that never pauses is slowed down by the windows on the way, and nothing is lost."""
    publisher, subscriber = await bed.connect("b"), await bed.connect("a")
    lengths = []
    await subscriber.subscribe("big", callback=lambda event: lengths.append(len(event.body)))
    await bed.heard(publisher, subscriber)

    async def burst() -> None:
        for _ in range(1000):
            await publisher.publish("big", bytes(6000))

    await bed.done(burst())
    await bed.until(lambda: len(lengths) == 1000)
    assert set(lengths) == {6000}


async def test_body_of_the_largest_size(bed: Bed) -> None:
    """A body of 1 MiB arrives whole; one byte more is the caller's error."""
    client, subscriber = await bed.connect("c"), await bed.connect("b")
    subscription = await subscriber.subscribe("big")
    await bed.heard(client, subscriber)
    body = bytes(range(256)) * (MIB // 256)
    await client.publish("big", body)
    assert (await bed.done(subscription.next())).body == body
    with pytest.raises(PayloadTooLarge):
        await client.publish("big", body + b"!")


async def test_callbacks(bed: Bed) -> None:
    """A function is called for each event in order; one that raises is called again; a coroutine is awaited."""
    client = await bed.connect("a")
    calls: list[str] = []
    running = 0

    def plain(event: Event) -> None:
        calls.append(event.text())
        if event.text() == "0":
            raise ValueError("the first one fails")

    async def slow(event: Event) -> None:
        nonlocal running
        running += 1
        assert running == 1, "two at once"
        await asyncio.sleep(0)
        running -= 1
        calls.append(f"slow {event.text()}")

    await client.subscribe("n", callback=plain)
    await client.subscribe("n", callback=slow)
    for number in range(5):
        await client.publish("n", str(number))
    await bed.until(lambda: len(calls) == 10)
    assert [call for call in calls if "slow" not in call] == ["0", "1", "2", "3", "4"]
    assert [call for call in calls if "slow" in call] == [f"slow {number}" for number in range(5)]


async def test_closed_subscription_is_silent(bed: Bed) -> None:
    """After `close` nothing arrives, and who iterates comes to the end."""
    client = await bed.connect("a")
    heard: list[Event] = []
    subscription = await client.subscribe("n", callback=heard.append)
    iterated = await client.subscribe("n")
    await client.publish("n")
    await bed.until(lambda: len(heard) == 1)
    await subscription.close()
    await iterated.close()
    await client.publish("n")
    await client.flush()
    assert len(heard) == 1
    assert [event async for event in iterated] == []


async def test_interest(bed: Bed) -> None:
    """A publisher sees that others want its topics, and that they cease to; its own wishes do not count."""
    publisher, subscriber = await bed.connect("root"), await bed.connect("c")
    await publisher.subscribe("stats.>")
    async with publisher.interest("stats.*") as interest:
        assert not interest.wanted
        subscription = await subscriber.subscribe("stats.cpu")
        assert await bed.done(anext(interest)) is True
        await subscription.close()
        assert await bed.done(anext(interest)) is False


async def test_malformed_topics_and_scopes(bed: Bed) -> None:
    """Topics, patterns and scopes that cannot be are the caller's errors, before anything is sent."""
    client = await bed.connect("a")
    with pytest.raises(TopicError):
        await client.publish("a..b")
    with pytest.raises(TopicError):
        await client.subscribe("a.>.b")
    with pytest.raises(ValueError, match="scope"):
        await client.subscribe("a", scope="universe")


async def _texts(bed: Bed, subscription: object) -> list[str]:
    """Return the texts of the events up to the one that says "end"."""

    async def read() -> list[str]:
        texts = []
        async for event in subscription:  # type: ignore[attr-defined]
            texts.append(event.text())
            if texts[-1] == "end":
                break
        return texts

    return await bed.done(read())
