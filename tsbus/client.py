"""The client: what a program does on the bus, in asyncio. `connect` gives one; workers and the blocking facade use it.

What it says and hears is decided in `core/session.py`; `connection.py` carries it.
"""

import asyncio
import contextlib
import inspect
import os
from collections.abc import Callable, Coroutine, Generator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from tsbus.calls import Call, Request, Result
from tsbus.connection import Channel, Connection, Signal
from tsbus.core.body import to_body
from tsbus.core.events import Inbox, Sink
from tsbus.core.exchanges import CREDIT
from tsbus.core.message import Content, Gap
from tsbus.core.roles import Role
from tsbus.core.session import WINDOW
from tsbus.core.topic import check_pattern
from tsbus.errors import BufferFull, BusError, PayloadTooLarge
from tsbus.subscription import Callback, Interest, Subscription

if TYPE_CHECKING:
    from tsbus.core.message import WorkerWelcome
    from tsbus.transport import Curve

DEFAULT_ADDRESS = "/run/treescale/bus"
MAX_PERSON = 128
"""Bytes of the name that `for_person` takes."""
_CLOSE_S = 2.0
"""How long `close` lets what is queued leave."""

_RAW = int(Content.RAW)


class _Closable(Protocol):
    async def close(self) -> None: ...


_T = TypeVar("_T", bound=_Closable)


class Opening(Generic[_T]):
    """Something that is being opened: await it, or use it with `async with`, which closes it at the end."""

    def __init__(self, opening: Coroutine[Any, Any, _T]) -> None:
        self._opening = opening
        self._opened: _T | None = None

    def __await__(self) -> Generator[Any, None, _T]:
        return self._opening.__await__()

    async def __aenter__(self) -> _T:
        self._opened = await self._opening
        return self._opened

    async def __aexit__(self, *_: object) -> None:
        if self._opened is not None:
            await self._opened.close()


class Client:
    """A program's place on the bus. Everything it does goes to the router of its node.

    If the router goes away, calls under way end at once (`unreachable`), publishing waits, and subscriptions, services
    and watches are announced again when it is back.
    """

    def __init__(
        self, open_channel: Callable[[], Channel], *, name: str = "client", where: str = "?", window: int = WINDOW
    ) -> None:
        """Make a client that is not connected; programs use `connect`.

        `where` names the address in errors, `window` is how many bytes the router may send ahead.
        """
        self._connect: Callable[[], Connection] = lambda: Connection(open_channel, name, where, window)
        self._connection = self._connect()
        self._homes: dict[str, Connection] = {}
        self._session = self._connection.session
        self._exchanges = self._session.exchanges
        self._person = ""
        self._loop = asyncio.get_running_loop()

    def for_person(self, name: str) -> Self:
        """Return this client as it asks for somebody else: what it calls carries `name`, into the nodes' audit logs.

        It is one connection all the same, with its own identity and role. Raises ValueError for a name too long.
        """
        if len(name.encode()) > MAX_PERSON:
            raise ValueError(f"a name of more than {MAX_PERSON} bytes")
        twin = copy(self)
        twin._person = name
        return twin

    async def open(self, timeout_s: float = 3.0) -> None:
        """Connect. Raises NoRouter if nothing answers in time, Refused if the router turns us away."""
        self._connection.open()
        try:
            await self._connection.first_welcome(timeout_s)
        except BaseException:
            self._connection.close()
            raise

    async def close(self) -> None:
        """Let what is queued leave, for two seconds at most, and disconnect. Calls under way end."""
        if not self._connection.closed and self.connected:
            with contextlib.suppress(TimeoutError, BusError):
                async with asyncio.timeout(_CLOSE_S):
                    await self.flush()
        self.abort()

    def abort(self) -> None:
        """Disconnect at once; what is queued is lost."""
        for connection in (self._connection, *self._homes.values()):
            connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Who we are.

    @property
    def connected(self) -> bool:
        """Whether the router is there."""
        return self._connection.connected

    @property
    def node(self) -> str:
        """The node whose router this is. Raises ConnectionLost without one."""
        return self._welcome.node

    @property
    def who(self) -> str:
        """Who we are to the router: `uid:1000` or `operator:alice`."""
        return self._welcome.who

    @property
    def role(self) -> Role:
        """What we may do."""
        return Role(self._welcome.role)

    @property
    def handle(self) -> int:
        """The number of this connection at the router."""
        return self._welcome.handle

    @property
    def release(self) -> str:
        """The version of the router's software."""
        return self._welcome.release

    @property
    def max_body(self) -> int:
        """Bytes that a body may have."""
        return self._session.max_body

    @property
    def _welcome(self) -> "WorkerWelcome":
        if self._session.welcome is None:
            raise self._connection.lost()
        return self._session.welcome

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until the router is there. Raises NoRouter after `timeout_s`, ConnectionLost if closed."""
        await self._connection.wait_connected(timeout_s)

    # Events.

    async def publish(self, topic: str, body: object = b"", *, to: str = "*", content: int = _RAW) -> None:
        """Publish an event to the nodes `to`: bytes as they are, str as text, anything else as JSON.

        It waits only while the router takes no more, or is away. `content` says what bytes are (protocol 2.7). Raises
        TopicError, PayloadTooLarge, and ConnectionLost when this client is closed.
        """
        while self._session.full:
            await self._connection.wait_event_room()
        self.publish_nowait(topic, body, to=to, content=content)

    def publish_nowait(self, topic: str, body: object = b"", *, to: str = "*", content: int = _RAW) -> None:
        """Publish as `publish` does, but raise BufferFull where that would wait."""
        session = self._session
        if session.full:
            raise BufferFull(f"the router at {self._connection.where} takes no more events now")
        if type(body) is not bytes:
            body, content = to_body(body)
        if len(body) > session.max_body:
            raise PayloadTooLarge(f"an event of {len(body)} bytes; the router takes {session.max_body}")
        if session.publish(topic, body, content, to):
            self._connection.pump()
        elif not self._connection.pump_due:
            self._connection.soon()

    async def flush(self) -> None:
        """Wait until the router has read everything published and asked so far."""
        await self._connection.wait_sent()
        await self._connection.confirm()

    def subscribe(
        self,
        pattern: str,
        *,
        scope: str = "all",
        callback: Callback | None = None,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> Opening[Subscription]:
        """Subscribe to topics; done when the router of this node knows it. Await it, or use it with `async with`.

        `scope` says which origins count: `all`, `subtree` (this node and below) or `node`. Without a callback, iterate
        the subscription; with one, `callback` is called for each event and `on_gap` where events were dropped. Raises
        TopicError, ValueError or Refused.
        """
        return Opening(self._subscribe(pattern, scope, callback, on_gap))

    async def _subscribe(
        self, pattern: str, scope: str, callback: Callback | None, on_gap: Callable[[Gap], None] | None
    ) -> Subscription:
        signal = Signal()
        if callback is None or inspect.iscoroutinefunction(callback):
            inbox = Inbox(signal)
            sink = Sink(pattern, scope, inbox.put, inbox.put, inbox)
        else:
            sink = Sink(pattern, scope, callback, on_gap or _ignore)
        check_pattern(pattern)  # before a connection is opened for it
        home = self._home(scope)
        home.session.subscribe(sink)
        subscription = Subscription(home, sink, signal)
        try:
            if home is not self._connection:
                await home.wait_answered()  # our own was welcomed, but a router may have no room for another
            await home.confirm()
        except BaseException:
            await subscription.close()
            if home is not self._connection and not home.session.is_subscribed:
                home.close()
                self._homes.pop(scope, None)
            raise
        if callback is not None and sink.inbox is not None:
            subscription.feed(callback, on_gap)
        return subscription

    def _home(self, scope: str) -> Connection:
        """Return the connection for subscriptions of `scope`.

        `all` and `subtree` have one each: of an event that arrived for the one nobody here could tell whether the other
        includes its origin, for only routers know who is below. The second is opened when both are used.
        """
        if scope in ("all", "subtree") and scope not in self._homes:
            self._homes[scope] = self._connect() if self._homes else self._connection
            if self._homes[scope] is not self._connection:
                self._homes[scope].open()
        return self._homes.get(scope, self._connection)

    def interest(self, pattern: str) -> Opening[Interest]:
        """Watch whether others want topics that `pattern` selects. Await it, or use it with `async with`."""
        return Opening(self._interest(pattern))

    async def _interest(self, pattern: str) -> Interest:
        signal = Signal()
        wish = self._session.watch(pattern, signal)
        try:
            await self._connection.confirm()
        except BaseException:
            self._session.unwatch(wish)
            raise
        return Interest(self._connection, wish, signal)

    # Commands.

    def request(
        self,
        target: str,
        command: str,
        body: object = b"",
        *,
        timeout_s: float = 30.0,
        input: bool = False,  # noqa: A002 - the word that the reader expects
        credit: int = CREDIT,
    ) -> Call:
        """Ask every node of `target` to run `command` ("service.name"); the Call gives replies as they come.

        `input`: input follows with `send_input`. `credit`: bytes that each node may answer ahead of the reader. Raises
        PayloadTooLarge, BufferFull and ConnectionLost; what the router has against it is raised by the Call.
        """
        data, content = to_body(body)
        if len(data) > self._session.max_body:
            raise PayloadTooLarge(f"an argument of {len(data)} bytes; the router takes {self._session.max_body}")
        if not self.connected:
            raise self._connection.lost()
        if not self._session.stream_room:
            raise BufferFull(f"the router at {self._connection.where} takes no more requests now")
        signal = Signal()
        asked = self._exchanges.request(
            target,
            command,
            data,
            content,
            budget_ms=round(timeout_s * 1000),
            credit=credit,
            with_input=input,
            person=self._person,
            wake=signal,
        )
        self._connection.soon()
        return Call(self._connection, asked, signal, timeout_s)

    async def call(self, target: str, command: str, body: object = b"", *, timeout_s: float = 30.0) -> Result:
        """Run `command` on every node of `target` and return the account. Raises as `request` and `Call.result` do."""
        await self._connection.room.until(lambda: self._session.stream_room)
        async with self.request(target, command, body, timeout_s=timeout_s) as call:
            return await call.result()

    async def call_one(self, node: str, command: str, body: object = b"", *, timeout_s: float = 30.0) -> Any:
        """Run `command` on one node and return its answer (`Reply.value`). Raises CallFailed, and as `call` does."""
        result = await self.call(node, command, body, timeout_s=timeout_s)
        result.raise_for_status()
        (value,) = result.values().values()
        return value

    async def serve(self, service: str, commands: Mapping[str, Role], start: Callable[[Request], None]) -> None:
        """Offer commands, each with the role it requires; `start` is called with each request. `Worker` is built on it.

        Raises Refused if the router does not allow it.
        """
        roles = {name: int(role) for name, role in commands.items()}
        self._session.serve(service, roles, lambda served: start(Request(self._connection, served)))
        await self._connection.confirm()


def _ignore(_: Gap) -> None:
    """Take a gap that nobody asked for."""


def connect(
    address: str | None = None, *, name: str = "client", timeout_s: float = 3.0, keys: "Curve | None" = None
) -> Opening[Client]:
    """Connect to a router: `client = await connect()`, or `async with connect() as client`.

    `address` is the path of its socket, by default what $TREESCALE_BUS says, or /run/treescale/bus; an operator's
    console gives `tcp://ip:port` and its keys. Raises NoRouter if nothing answers in `timeout_s`, or Refused.
    """
    return Opening(_connect(address, name, timeout_s, keys))


async def _connect(address: str | None, name: str, timeout_s: float, keys: "Curve | None") -> Client:
    from tsbus.transport import open_channel

    place = endpoint(address)
    client = Client(lambda: open_channel(place, keys), name=name, where=place)
    await client.open(timeout_s)
    return client


def endpoint(address: str | None) -> str:
    """Return the ZeroMQ endpoint of `address`; a path is a socket on this machine."""
    place = address or os.environ.get("TREESCALE_BUS") or DEFAULT_ADDRESS
    return place if "://" in place else f"ipc://{place}"
