"""Verbs: what is done to containers and images, and what is asked about them. The commands of the bus, but for output.

Each that changes something goes the same way: names, policy, a line in the audit log, the engine, and `Done` for each
container. output.py has logs and programs, desk.py what all share.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tsbus import CommandError, Request
from tsbus.containers import notation, orders
from tsbus.containers.desk import Desk
from tsbus.containers.engine import Auth, EngineError, ErrorKind
from tsbus.containers.naming import Target, matching, near
from tsbus.containers.orders import OrderError, RunOrder
from tsbus.containers.output import Writings, ended
from tsbus.containers.pulling import Layers
from tsbus.containers.threads import Pump
from tsbus.filters import Filter, FilterError
from tsbus.records import Container, Done, SnapshotHead

PARALLEL: Final = 8
"""Containers of one order that are acted on at the same time."""
PIECE_BYTES: Final = 256 << 10
"""Of a snapshot."""
PROGRESS_S: Final = 0.25
EXIT_S: Final = 10.0
"""How long after the last output of a container its end may take to become known."""
_ALIVE: Final = ("running", "paused", "restarting")


class Asking:
    """Commands that only look."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._watch = desk.watch

    async def snapshot(self, call: Request) -> None:
        """`containers.snapshot`: all that is known, as of one moment."""
        order = self._desk.order(orders.Snapshot, call)
        wanted = _filter(order.filters)
        await self._watch.wait_complete()
        monitor = self._watch.monitor
        chosen = [
            one
            for one in monitor.records.values()
            if (order.all or one.state in _ALIVE) and wanted.matches(call.node, one)
        ]
        head = SnapshotHead(
            node=call.node, epoch=monitor.epoch, seq=monitor.seq, engine=monitor.engine, count=len(chosen)
        )
        await call.send(head)
        for piece in _pieces(chosen):
            await call.send(piece)

    async def find(self, call: Request) -> dict[str, Any]:
        """`containers.find`: which containers names mean."""
        order = self._desk.order(orders.Find, call)
        await self._watch.wait_complete()
        known = list(self._watch.records.values())
        if not all(matching(name, known) for name in order.containers):
            await self._watch.wait_inspected()  # it may have been made a moment ago
            known = list(self._watch.records.values())
        found, missing = [], []
        for name in order.containers:
            fits = matching(name, known)
            for one in fits:
                row = {"given": name, "id": one.id, "name": one.name, "state": one.state, "image": one.image.given}
                found.append(row)
            if not fits:
                missing.append({"given": name, "hint": near(name, known)})
        return {"found": found, "missing": missing}

    async def inspect(self, call: Request) -> None:
        """`containers.inspect`: what the engine says."""
        order = self._desk.order(orders.On, call)
        for target in await self._desk.find(order.containers, if_here=order.if_here):
            await call.send(await self._desk.do(self._desk.engine.inspect_raw, target.id))

    async def top(self, call: Request) -> None:
        """`containers.top`: the processes of containers."""
        order = self._desk.order(orders.Top, call)
        for target in await self._desk.find(order.containers, if_here=order.if_here):
            told = await self._desk.do(self._desk.engine.top, target.id, order.ps_args or None)
            rows = {"titles": told.get("Titles") or [], "processes": told.get("Processes") or []}
            await call.send({"id": target.id, "name": target.name, **rows})

    async def wait(self, call: Request) -> None:
        """`containers.wait`: until containers have ended, run, are healthy or are gone."""
        order = self._desk.order(orders.Wait, call)
        targets = await self._desk.find(order.containers, if_here=order.if_here)
        for target in targets:
            await self._watch.wait_known(target.id)
        waits = [asyncio.create_task(self._wait(target, order.until)) for target in targets]
        errors = []
        try:
            for wait in asyncio.as_completed(waits):
                done = await wait
                errors += [] if done.ok else [f"{done.name}: {done.error}"]
                await call.send(done)
        finally:
            for one in waits:
                one.cancel()
        if errors:
            raise CommandError("; ".join(errors))

    async def _wait(self, target: Target, until: str) -> Done:
        first = last = self._watch.records.get(target.id)
        while True:
            now = self._watch.records.get(target.id)
            if done := verdict(target, until, first, now, last):
                return done
            last = now or last
            await self._watch.wait_changed()

    async def info(self, _: Request) -> dict[str, Any]:
        """`docker.info`: the engine, and how much there is."""
        watch = self._watch
        with suppress(EngineError):
            await watch.wait_engine()
            told = await self._desk.calls.run(self._desk.engine.info)
            return {**told, "engine": watch.monitor.engine}
        known = list(watch.records.values())
        running = sum(one.state in _ALIVE for one in known)
        counts = {"containers": len(known), "running": running, "images": 0, "driver": "", "warnings": []}
        return {"engine": watch.monitor.engine, **counts}

    async def df(self, _: Request) -> Any:
        """`docker.df`: what takes place on the disk."""
        await self._desk.engine_is_up()
        return await self._desk.do(self._desk.engine.df)

    async def images(self, call: Request) -> dict[str, Any]:
        """`images.ls`: the images."""
        order = self._desk.order(orders.ImagesLs, call)
        await self._desk.engine_is_up()
        return {"images": await self._desk.do(self._desk.engine.images, order.all)}


def _filter(texts: Sequence[str]) -> Filter:
    try:
        return Filter.parse(*texts)
    except FilterError as error:
        raise CommandError(str(error)) from None


def verdict(
    target: Target, until: str, first: Container | None, now: Container | None, last: Container | None
) -> Done | None:
    """Return what is to be said about a container that somebody waits for, None while there is nothing. Pure.

    `first`: as it was when the wait began; `last`: as it was before `now`. None: it is not there.
    """
    if now is None:
        gone = Done(id=target.id, name=target.name, state="removed", exit_code=last.exit_code if last else None)
        return gone if until in ("removed", "died") else replace(gone, ok=False, error="it was removed")
    done = Done(id=now.id, name=now.name, state=now.state, exit_code=now.exit_code)
    alive = now.state in ("running", "paused")
    if until == "died":
        another_run = first is not None and now.started_ns != first.started_ns and first.started_ns
        if another_run and alive:
            return replace(done, exit_code=last.exit_code if last else None)
        return done if not alive and now.started_ns else None
    if until == "running" and alive:
        return done
    if until == "healthy":
        if now.health == "healthy":
            return done
        if alive and not now.health:
            return replace(done, ok=False, error="it has no health check")
    if until in ("running", "healthy") and not alive and first is not None and now.finished_ns > first.finished_ns:
        return replace(done, ok=False, error=f"it has ended with exit code {now.exit_code}")
    return None


def _pieces(containers: Iterable[Container]) -> "list[list[msgspec.Raw]]":
    """Return lists of containers of at most PIECE_BYTES, in JSON already."""
    pieces: list[list[msgspec.Raw]] = []
    room = 0
    for one in containers:
        said = msgspec.json.encode(one)
        if len(said) >= room:
            pieces.append([])
            room = PIECE_BYTES
        pieces[-1].append(msgspec.Raw(said))
        room -= len(said) + 1
    return pieces


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
                await self._desk.calls.run(act, target.id)
            except EngineError as error:
                done = replace(done, ok=False, error=str(error))
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
            try:
                return await self._desk.calls.run(self._engine.create, name, making.spec)
            except EngineError as error:
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
            if start:
                await self._start_or_remove(container)
            # The engine has invented a name where none was given.
            seen = await self._desk.calls.run(self._engine.inspect, container)
        except CommandError as error:
            return Done(id=container, name=name or "", ok=False, error=str(error), state="removed")
        except EngineError:  # with `rm` it may have come and gone
            return Done(id=container, name=name or "", state="removed")
        return Done(id=container, name=seen.name, state=seen.state)

    async def _start_or_remove(self, container: str) -> None:
        try:
            await self._desk.do(self._engine.start, container)
        except CommandError as error:
            try:
                await self._desk.calls.run(self._engine.rm, container, force=True, volumes=True)
            except EngineError as again:
                raise CommandError(f"{error}; and it could not be removed again: {again}") from None
            raise

    async def _attached(self, call: Request, container: str) -> int | None:
        """Start a container, send what it writes, and return its exit code."""
        with self._desk.stream():
            output = await self._writings.attached(container)
            try:
                await self._start_or_remove(container)
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
                    await call.send(await self._desk.calls.run(self._engine.rm_image, image, order.force))
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
