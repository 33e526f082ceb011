"""Asking: the commands of the bus that only look at containers, images and the engine. acting.py has the others."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tsbus import CommandError, Request
from tsbus.containers import orders
from tsbus.containers.desk import Desk
from tsbus.containers.engine import EngineError
from tsbus.containers.naming import Target, matching, near
from tsbus.filters import Filter, FilterError
from tsbus.records import Container, Done, SnapshotHead

PIECE_BYTES: Final = 256 << 10
"""Of a snapshot."""
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
