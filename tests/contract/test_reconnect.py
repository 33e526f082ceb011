"""What a client keeps when its router goes away and comes back, in memory and on real sockets."""

import asyncio

import pytest
from beds import Bed

from tsbus import BufferFull, ConnectionLost, Interest, Request, Subscription, Worker


async def test_everything_is_announced_again(bed: Bed) -> None:
    """After a restart of the router, subscriptions, services and watches work as before."""
    worker = Worker("job")

    @worker.command("echo")
    async def echo(call: Request) -> bytes:
        return call.body

    await bed.run(worker, "b")
    subscriber = await bed.connect("b")
    texts: list[str] = []
    await subscriber.subscribe("news", callback=lambda event: texts.append(event.text()))
    watch = await subscriber.interest("wanted")
    publisher = await bed.connect("root")
    await bed.stop("b")
    await bed.until(lambda: not subscriber.connected)
    await bed.start("b")
    await bed.done(subscriber.wait_connected())
    await bed.done(subscriber.flush())
    await bed.heard(publisher, subscriber)
    await publisher.publish("news", "again")
    await bed.until(lambda: texts == ["again"])
    await publisher.subscribe("wanted")
    await bed.until(lambda: watch.wanted)
    await bed.until(lambda: worker.client.connected)
    await bed.done(worker.client.flush())
    result = await bed.done(publisher.call("b", "job.echo", b"x"))
    assert result.replies == {"b": b"x"}, result.explain()


async def test_calls_end_when_the_router_goes_away(bed: Bed) -> None:
    """A call under way ends at once as unreachable, a new one is an error, an event waits or is refused."""
    client = await bed.connect("b")
    worker = Worker("job")

    @worker.command("hang")
    async def hang(call: Request) -> None:
        await asyncio.Event().wait()

    await bed.run(worker, "b")
    call = client.request("b", "job.hang", timeout_s=3600)
    await bed.done(call.nodes())
    await bed.stop("b")
    result = await bed.done(call.result())
    assert result.unreachable == {"b"}
    assert result.errors == {"b": "the connection to the router was lost"}
    with pytest.raises(ConnectionLost, match="not connected"):
        client.request("b", "job.hang")
    with pytest.raises(BufferFull):
        client.publish_nowait("news")
    publishing = asyncio.create_task(client.publish("news"))
    await asyncio.sleep(0)
    assert not publishing.done()
    await bed.start("b")
    await bed.done(publishing)


async def test_closed_client(bed: Bed) -> None:
    """After `close` everything is an error that says so, and what was published has left."""
    client, other = await bed.connect("a"), await bed.connect("a")
    subscription = await other.subscribe("last.words")
    await client.publish("last.words", "bye")
    await bed.done(client.close())
    assert (await bed.done(subscription.next())).text() == "bye"
    for action in (client.publish("x"), client.subscribe("x").__aenter__(), client.flush(), client.wait_connected()):
        with pytest.raises(ConnectionLost, match="closed"):
            await bed.done(action)


async def test_closing_a_client_ends_what_is_iterated(bed: Bed) -> None:
    """Who waits for events, or for the interest of others, comes to the end when the client is closed."""
    client = await bed.connect("a")
    subscription, interest = await client.subscribe("never.>"), await client.interest("never.>")

    async def iterate(one: Subscription | Interest) -> None:
        async for _ in one:
            pass

    waiting = [asyncio.create_task(iterate(subscription)), asyncio.create_task(iterate(interest))]
    await asyncio.sleep(0)
    client.abort()
    await bed.until(lambda: all(task.done() for task in waiting))
    await asyncio.gather(*waiting)
