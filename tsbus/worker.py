"""Workers: a process that serves commands, handles events and does things in intervals, in a few lines.

    worker = Worker("greeter")

    @worker.command("hello")
    async def hello(call):
        return {"greeting": f"hello from {call.node}"}

    worker.run()

Built on the public client only. The reference with examples is docs/worker-api.md.
"""

import asyncio
import inspect
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from tsbus.calls import Request, Result
from tsbus.client import Client, connect
from tsbus.core.accounting import Outcome
from tsbus.core.roles import Role
from tsbus.errors import BusError, CommandError, RefusedError
from tsbus.log import Log, setup
from tsbus.subscription import Callback

MAX_RUNNING: Final = 1000
"""Commands that run at once; more wait their turn, and their budget runs meanwhile."""
CONNECT_S: Final = 3600.0
"""A worker that starts before its router waits this long for it."""

_log = Log("worker")
_trace = logging.getLogger("tsbus")

Handler = Callable[[Request], Any]
"""A command's handler: a function, an `async` one, or an `async` generator."""
Hook = Callable[[], Awaitable[None] | None]
_H = TypeVar("_H", bound=Callable[..., Any])


class Worker:
    """A named service. Several workers of one name on a node take turns."""

    def __init__(self, name: str, address: str | None = None) -> None:
        """`name` is the service; `address` is the router's, as `connect` takes it."""
        self.name = name
        self._address = address
        self._client: Client | None = None
        self._commands: dict[str, tuple[Role, Handler]] = {"stats": (Role.OBSERVE, lambda _: self.stats())}
        self._handlers: list[tuple[str, str, Callback]] = []
        self._timers: list[tuple[float, Hook]] = []
        self._starts: list[Hook] = []
        self._stops: list[Hook] = []
        self._counters: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(MAX_RUNNING)
        self._running: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()

    # What a worker does.

    def command(self, name: str, *, role: str = "operate") -> Callable[[_H], _H]:
        """Serve `<worker>.<name>` with the decorated handler; callers need `role`: observe, operate or admin."""
        needed = Role.parse(role)

        def add(handler: _H) -> _H:
            self._commands[name] = (needed, handler)
            return handler

        return add

    def on(self, pattern: str, *, scope: str = "all") -> Callable[[_H], _H]:
        """Call the decorated function with each event that `pattern` and `scope` select."""

        def add(handler: _H) -> _H:
            self._handlers.append((pattern, scope, handler))
            return handler

        return add

    def every(self, seconds: float) -> Callable[[_H], _H]:
        """Call the decorated function every `seconds`, first at the start; a slow run is not overlapped."""

        def add(handler: _H) -> _H:
            self._timers.append((seconds, handler))
            return handler

        return add

    def start(self, hook: _H) -> _H:
        """Call the decorated function once connected, before anything is served."""
        self._starts.append(hook)
        return hook

    def stop(self, hook: _H) -> _H:
        """Call the decorated function at the end."""
        self._stops.append(hook)
        return hook

    # What handlers use.

    @property
    def client(self) -> Client:
        """The client of this worker. Raises RuntimeError before it runs."""
        if self._client is None:
            raise RuntimeError(f"worker {self.name} is not running")
        return self._client

    @property
    def node(self) -> str:
        """The node it runs on."""
        return self.client.node

    async def publish(self, topic: str, body: object = b"", *, to: str = "*") -> None:
        """Publish an event; see `Client.publish`."""
        await self.client.publish(topic, body, to=to)

    async def call(self, target: str, command: str, body: object = b"", *, timeout_s: float = 30.0) -> Result:
        """Call a command; see `Client.call`."""
        return await self.client.call(target, command, body, timeout_s=timeout_s)

    def stats(self) -> dict[str, int]:
        """Return what `<worker>.stats` answers: counters since the start."""
        return {"running": len(self._running), **self._counters}

    # Running.

    def run(self) -> None:
        """Run in a loop of its own until SIGTERM or SIGINT. Exits with a message if the router turns it away."""
        setup()
        try:
            asyncio.run(self._run())
        except BusError as error:
            raise SystemExit(f"{self.name}: {error}") from None

    async def _run(self) -> None:
        task = asyncio.create_task(self._connect_and_serve())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            _log.info("worker.stopped", name=self.name)

    async def _connect_and_serve(self) -> None:
        async with connect(self._address, name=self.name, timeout_s=CONNECT_S) as client:
            await self.serve(client)

    async def serve(self, client: Client) -> None:
        """Work with `client` until cancelled; for several workers in one loop, and for tests."""
        self._client = client
        timers: list[asyncio.Task[None]] = []
        try:
            for hook in self._starts:
                await _settle(hook())
            for pattern, scope, handler in self._handlers:
                await client.subscribe(pattern, scope=scope, callback=self._counted(handler))
            roles = {name: role for name, (role, _) in self._commands.items()}
            await client.serve(self.name, roles, self._begin)
            timers += [asyncio.create_task(self._repeat(*timer)) for timer in self._timers]
            self._ready.set()
            _log.info("worker.ready", name=self.name, node=client.node)
            await asyncio.Event().wait()
        finally:
            for task in (*timers, *self._running):
                task.cancel()
            await asyncio.gather(*timers, *self._running, return_exceptions=True)
            for hook in self._stops:
                await _settle(hook())

    async def wait_ready(self) -> None:
        """Wait until the router knows all that this worker serves and wants."""
        await self._ready.wait()

    def _counted(self, handler: Callback) -> Callback:
        """Wrap an event handler so that its calls and errors are counted and errors logged with their place."""
        counters = self._counters

        if inspect.iscoroutinefunction(handler):

            async def handle_later(event: Any) -> None:
                counters["events"] += 1
                try:
                    await handler(event)
                except Exception as error:
                    self._log_error(event.topic, error)

            return handle_later

        def handle(event: Any) -> None:
            counters["events"] += 1
            try:
                handler(event)
            except Exception as error:
                self._log_error(event.topic, error)

        return handle

    async def _repeat(self, seconds: float, hook: Hook) -> None:
        """Run `hook` at start + n * seconds; turns that a slow run used up are skipped."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                await _settle(hook())
            except Exception as error:
                self._log_error("every", error)
            due = max(due + seconds, loop.time())
            await asyncio.sleep(due - loop.time())

    def _begin(self, call: Request) -> None:
        task = asyncio.create_task(self._serve_one(call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        call.on_cancel(task.cancel)

    async def _serve_one(self, call: Request) -> None:
        """Run one command to its one end."""
        handler = self._commands[call.command.removeprefix(f"{self.name}.")][1]
        budget = asyncio.timeout(call.budget_s)
        try:
            async with budget, self._slots:
                await call.answer(await _invoke(handler, call))
                status, text = Outcome.OK, ""
        except asyncio.CancelledError:
            status, text = Outcome.CANCELLED, "cancelled"
        except CommandError as error:
            status, text = Outcome.FAILED, str(error)
        except RefusedError as error:
            status, text = Outcome.REFUSED, str(error)
        except Exception as error:
            if budget.expired():
                status, text = Outcome.TIMEOUT, "the time that the caller gave is over"
            else:
                status, text = Outcome.FAILED, f"{type(error).__name__}: {error}"
                self._log_error(call.command, error)
        call.end(status, text.encode())
        self._counters[(call.outcome or status).name.lower()] += 1

    def _log_error(self, place: str, error: Exception) -> None:
        self._counters["errors"] += 1
        _log.error("worker.handler-error", name=self.name, place=place, error=f"{type(error).__name__}: {error}")
        _trace.debug("trace", exc_info=error)


async def _invoke(handler: Handler, call: Request) -> object:
    """Run a handler of any kind; pieces of a generator are sent as they come. Returns the last words."""
    answer = handler(call)
    if isinstance(answer, AsyncIterator):
        async for piece in answer:
            await call.send(piece)
        return None
    return await _settle(answer)


async def _settle(value: Any) -> Any:
    """Await `value` if it can be awaited."""
    return await value if inspect.isawaitable(value) else value
