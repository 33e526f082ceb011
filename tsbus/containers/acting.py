"""Acting: the commands of the bus that change containers and images, but for programs in them (output.py).

Each goes the same way: names, policy, a line in the audit log, the engine, and `Done` for each container. desk.py has
what all commands share.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from tsbus import CommandError, Request
from tsbus.containers import notation, orders
from tsbus.containers.desk import Desk
from tsbus.containers.engine import Auth, EngineError, ErrorKind
from tsbus.containers.naming import Target
from tsbus.containers.orders import OrderError, RunOrder
from tsbus.containers.output import Writings, ended
from tsbus.containers.pulling import Layers
from tsbus.containers.threads import Pump
from tsbus.records import Done

PARALLEL: Final = 8
"""Containers of one order that are acted on at the same time."""
PROGRESS_S: Final = 0.25
EXIT_S: Final = 10.0
"""How long after the last output of a container its end may take to become known."""


@dataclass(slots=True)
class _Making:
    """An order under way."""

    call: Request
    order: RunOrder
    spec: dict[str, Any]
    start: bool
    ids: list[str] = field(default_factory=list)
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)


class Acting:
    """Commands that change something."""

    def __init__(self, desk: Desk, writings: Writings) -> None:
        self._desk = desk
        self._engine = desk.engine
        self._writings = writings

    # Containers that are there.

    async def start(self, call: Request) -> None:
        """`containers.start`."""
        await self._each(call, self._desk.order(orders.On, call), self._engine.start)

    async def stop(self, call: Request) -> None:
        """`containers.stop`."""
        order = self._desk.order(orders.Stop, call)
        await self._each(call, order, lambda id_: self._engine.stop(id_, order.timeout_s))

    async def restart(self, call: Request) -> None:
        """`containers.restart`."""
        order = self._desk.order(orders.Stop, call)
        await self._each(call, order, lambda id_: self._engine.restart(id_, order.timeout_s))

    async def pause(self, call: Request) -> None:
        """`containers.pause`."""
        await self._each(call, self._desk.order(orders.On, call), self._engine.pause)

    async def unpause(self, call: Request) -> None:
        """`containers.unpause`."""
        await self._each(call, self._desk.order(orders.On, call), self._engine.unpause)

    async def kill(self, call: Request) -> None:
        """`containers.kill`."""
        order = self._desk.order(orders.Kill, call)
        await self._each(call, order, lambda id_: self._engine.kill(id_, notation.signal(order.signal)))

    async def rm(self, call: Request) -> None:
        """`containers.rm`."""
        order = self._desk.order(orders.Remove, call)
        await self._each(call, order, lambda id_: self._engine.rm(id_, force=order.force, volumes=order.volumes))

    async def rename(self, call: Request) -> None:
        """`containers.rename`."""
        order = self._desk.order(orders.Rename, call)
        about = orders.On(containers=[order.container], if_here=order.if_here)
        await self._each(call, about, lambda id_: self._engine.rename(id_, order.name), order, new_name=order.name)

    async def _each(
        self,
        call: Request,
        about: orders.On,
        act: Callable[[str], object],
        order: orders.Order | None = None,
        *,
        new_name: str = "",
    ) -> None:
        """Do `act` to all containers of an order, and tell of each as it is done."""
        targets = await self._desk.find(about.containers, if_here=about.if_here)
        if not targets:
            return
        await self._desk.engine_is_up()

        async def one(target: Target) -> Done:
            done = Done(id=target.id, name=target.name)
            try:
                await self._desk.run(act, target.id)
            except EngineError as error:
                done = replace(done, ok=False, error=str(error))
                if error.kind is ErrorKind.DOWN:
                    return done  # who does not answer is not asked for the state as well
            else:
                done = replace(done, name=new_name or done.name)
            return replace(done, state=await self._state(target.id))

        with self._desk.recorded(call, targets, order or about):
            await self._tell_each(call, [one(target) for target in targets])

    async def _tell_each(self, call: Request, acts: "Sequence[Any]") -> None:
        """Run what makes a Done, some at the same time, and send each. Raises CommandError if one is not ok."""
        slots = asyncio.Semaphore(PARALLEL)
        errors: list[str] = []

        async def run(act: Any) -> None:
            async with slots:
                done: Done = await act
            if not done.ok:
                errors.append(f"{done.name}: {done.error}" if done.name else done.error)
            await call.send(done)

        async with asyncio.TaskGroup() as group:
            for act in acts:
                group.create_task(run(act))
        if errors:
            raise CommandError("; ".join(errors))

    async def _state(self, container: str) -> str:
        """Return the state of a container as the engine knows it now."""
        try:
            return (await self._desk.calls.run(self._engine.inspect, container)).state
        except EngineError as error:
            return "removed" if error.kind is ErrorKind.NOT_FOUND else ""

    # Containers that are to be.

    async def create(self, call: Request) -> Any:
        """`containers.create`."""
        return await self._make(call, start=False)

    async def run(self, call: Request) -> Any:
        """`containers.run`."""
        return await self._make(call, start=True)

    async def _make(self, call: Request, *, start: bool) -> Any:
        order = self._desk.order(RunOrder, call)
        try:
            spec = notation.spec(order)
        except OrderError as error:
            raise CommandError(str(error)) from None
        names = order.names_on(call.node)
        if not names:
            return None
        await self._desk.engine_is_up()
        targets = [Target("", name or "") for name in names]
        await self._desk.allow(call, targets, order, spec)
        making = _Making(call, order, spec, start)
        with self._desk.recorded(call, targets, order) as record:
            record["ids"] = making.ids
            if order.pull == "always":
                await self._pull(call, order.image, None)
            if order.attach and start:
                code = record["exit"] = await self._attached(call, await self._create(making, names[0]))
                return ended(call, code)
            await self._tell_each(call, [self._make_one(making, name) for name in names])
        return None

    async def _make_one(self, making: "_Making", name: str | None) -> Done:
        try:
            made = await self._create(making, name)
        except CommandError as error:
            return Done(id="", name=name or "", ok=False, error=str(error))
        return await self._begin(made, name, start=making.start)

    async def _create(self, making: "_Making", name: str | None) -> str:
        """Make a container and return its id; fetch its image if it is missing. Raises CommandError."""

        async def create(pull: str) -> str | None:
            creating = asyncio.ensure_future(self._desk.calls.run(self._engine.create, name, making.spec))
            try:
                return await self._desk.answered(asyncio.shield(creating))
            except asyncio.CancelledError:
                self._writings.later(self._take_back(creating))
                raise
            except EngineError as error:
                if not creating.done():  # the engine hangs, and goes on with it when it goes on
                    self._writings.later(self._take_back(creating))
                if (
                    pull == "never"
                    or error.kind is not ErrorKind.NOT_FOUND
                    or "no such image" not in str(error).lower()
                ):
                    raise CommandError(str(error)) from None
            return None

        made = await create(making.order.pull)
        if made is None:
            # One fetches what all containers of the order need; the others find it there.
            async with making.fetching:
                made = await create("missing")
                if made is None:
                    await self._pull(making.call, making.order.image, None)
        made = made or await create("never")
        making.ids.append(str(made))
        return str(made)

    async def _begin(self, container: str, name: str | None, *, start: bool) -> Done:
        """Start a container that was made, or remove it again."""
        try:
            async with self._kept(container):
                if start:
                    await self._start_or_remove(container)
                # The engine has invented a name where none was given.
                seen = await self._desk.calls.run(self._engine.inspect, container)
        except CommandError as error:
            return Done(id=container, name=name or "", ok=False, error=str(error), state="removed")
        except EngineError:  # with `rm` it may have come and gone
            return Done(id=container, name=name or "", state="removed")
        return Done(id=container, name=seen.name, state=seen.state)

    @asynccontextmanager
    async def _kept(self, container: str) -> AsyncIterator[None]:
        """Take a container away if its caller goes before it was told of it."""
        try:
            yield
        except asyncio.CancelledError:
            self._writings.later(self._take_back(container))
            raise

    async def _take_back(self, made: "str | asyncio.Future[str]") -> None:
        """Remove a container that nobody was told of."""
        with suppress(EngineError, RuntimeError):  # it could not be made; the service stops
            container = made if isinstance(made, str) else await made
            await self._desk.calls.run(self._engine.rm, container, force=True, volumes=True)

    async def _start_or_remove(self, container: str) -> None:
        try:
            await self._desk.do(self._engine.start, container)
        except CommandError as error:
            try:
                await self._desk.run(self._engine.rm, container, force=True, volumes=True)
            except EngineError as again:
                raise CommandError(f"{error}; and it could not be removed again: {again}") from None
            raise

    async def _attached(self, call: Request, container: str) -> int | None:
        """Start a container, send what it writes, and return its exit code."""
        with self._desk.stream():
            async with self._kept(container):
                output = await self._writings.attached(container)
                try:
                    await self._start_or_remove(container)
                except BaseException:
                    output.close()
                    raise
            try:
                await self._writings.pass_on(output, call)
            finally:
                output.close()
        return await self._exit_code(container)

    async def _exit_code(self, container: str) -> int | None:
        """Return how a container ended whose output has ended; with `rm` only its last event may tell."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_S):
                return await self._desk.watch.wait_ended(container)
        return None

    # Images.

    async def pull(self, call: Request) -> dict[str, Any]:
        """`images.pull`: fetch an image, with progress."""
        order = self._desk.order(orders.Pull, call)
        await self._desk.engine_is_up()
        auth = Auth(order.username, order.password) if order.username else None
        with self._desk.recorded(call, (), order):
            status = await self._pull(call, order.image, auth)
        return {"id": await self._desk.do(self._engine.image_id, order.image), "name": order.image, "status": status}

    async def _pull(self, call: Request, image: str, auth: Auth | None) -> str:
        """Fetch an image; returns the engine's last words. Raises CommandError."""
        layers, told_at = Layers(), 0.0
        with self._desk.stream():
            try:
                pump = Pump(await self._desk.calls.open(self._engine.pull, image, auth), 1024)
                try:
                    while steps := await pump.take():
                        for step in steps:
                            layers.step(step)
                        if (now := time.monotonic()) - told_at >= PROGRESS_S:
                            told_at = now
                            await call.send(layers.progress)
                    await call.send(layers.progress)  # the last steps came faster than we tell
                finally:
                    pump.close()
            except EngineError as error:
                raise CommandError(f"{image} cannot be fetched: {error}") from None
        return layers.status

    async def tag(self, call: Request) -> None:
        """`images.tag`."""
        order = self._desk.order(orders.Tag, call)
        await self._desk.engine_is_up()
        with self._desk.recorded(call, (), order):
            await self._desk.do(self._engine.tag, order.image, order.name)

    async def rm_images(self, call: Request) -> None:
        """`images.rm`."""
        order = self._desk.order(orders.ImagesRm, call)
        await self._desk.engine_is_up()
        errors = []
        with self._desk.recorded(call, (), order):
            for image in order.images:
                try:
                    await call.send(await self._desk.run(self._engine.rm_image, image, order.force))
                except EngineError as error:
                    errors.append(f"{image}: {error}")
            if errors:
                raise CommandError("; ".join(errors))

    async def prune(self, call: Request) -> Any:
        """`images.prune`."""
        order = self._desk.order(orders.ImagesLs, call)
        await self._desk.engine_is_up()
        with self._desk.recorded(call, (), order) as record:
            done = await self._desk.do(self._engine.prune_images, order.all)
            record["removed"] = len(done["removed"])
        return done
