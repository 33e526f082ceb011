"""Measuring: the statistics of the running containers on the bus, once a second while somebody listens. An edge.

stats.py reads and composes; this gives it the time, the containers, and what the engine says of those that cannot be
read on this machine.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from tsbus import BufferFull, Client, Request
from tsbus.containers.engine import EngineError
from tsbus.containers.sampler import Reading, reading_of
from tsbus.containers.stats import Counts, Statistics
from tsbus.containers.threads import Pool
from tsbus.containers.watch import Watch

MAX_ASKED: Final = 32
"""Containers that the engine is asked about at the same time: older ones take a second for each."""


class Measuring:
    """Measures for one node, from `run` to its cancellation."""

    def __init__(self, client: Client, watch: Watch) -> None:
        self._client = client
        self._watch = watch
        self._statistics = Statistics(client.node)
        self._pool = Pool("figures", MAX_ASKED)

    def counts(self) -> Counts:
        """Return what is and was done."""
        return self._statistics.counts()

    async def sample(self, call: Request) -> None:
        """`containers.sample`: the figures of all, measured now."""
        for event in await self._statistics.sample_now(self._running(), self._ask):
            await call.send(event)

    async def run(self) -> None:
        """Publish while somebody else listens."""
        try:
            async with self._client.interest(self._topic) as interest, asyncio.TaskGroup() as group:
                wanted: bool | None = interest.wanted
                while wanted is not None:
                    rounds = group.create_task(self._rounds()) if wanted else None
                    try:
                        wanted = await anext(interest, None)
                    finally:
                        if rounds:
                            rounds.cancel()
        finally:
            self._pool.close()

    @property
    def _topic(self) -> str:
        return f"containers.stats.{self._client.node}"

    def _running(self) -> dict[str, int]:
        """Return the containers that have processes, with the first of these."""
        records = self._watch.records.items()
        return {id_: one.pid for id_, one in records if one.pid and one.state in ("running", "paused")}

    async def _rounds(self) -> None:
        statistics = self._statistics
        told: Mapping[str, Reading] = {}
        asking: asyncio.Task[dict[str, Reading]] | None = None
        statistics.begin()
        try:
            while True:
                await asyncio.sleep(statistics.wait_s())
                if asking and asking.done():
                    told, asking = asking.result(), None
                try:
                    for event in statistics.round(self._running(), told):
                        self._client.publish_nowait(self._topic, event)
                except BufferFull:
                    # Readers of old figures want the new ones, not those that waited: the next event has all.
                    statistics.begin()
                if statistics.unreadable and not asking:
                    asking = asyncio.create_task(self._ask(list(statistics.unreadable)))
        finally:
            if asking:
                asking.cancel()
            statistics.end()

    async def _ask(self, containers: Sequence[str]) -> dict[str, Reading]:
        """Return what the engine says; nothing of those about which it says nothing."""
        found = await asyncio.gather(*(self._ask_one(container) for container in containers))
        return {id_: reading for id_, reading in zip(containers, found, strict=True) if reading}

    async def _ask_one(self, container: str) -> Reading | None:
        try:
            return reading_of(await self._pool.run(self._watch.engine.stats_once, container))
        except EngineError:
            return None
