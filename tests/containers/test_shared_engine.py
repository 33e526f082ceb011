"""Nodes that share one engine: `only` in [docker] shows each its own containers, and nobody else's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
from boxes import Make, containers_of
from dockerd import Dockerd

from tsbus import Client
from tsbus.config import DockerPolicy
from tsbus.containers.engine import Engine, EngineError, ErrorKind
from tsbus.containers.service import Service
from tsbus.testing import MemoryTree

LABEL = "treescale.node"


@pytest.fixture
def web1(dockerd: Dockerd) -> Iterator[Engine]:
    edge = Engine(dockerd.host, only=f"{LABEL}=web1")
    yield edge
    edge.close()


def test_there_are_only_ones_own_containers(web1: Engine, make: Make) -> None:
    """The list and inspections tell of containers with the label and its value, of no others."""
    own = make(Labels={LABEL: "web1"}, start=False)
    others = [make(Labels=labels, start=False) for labels in ({}, {LABEL: "web10"}, {LABEL: ""}, {"other": "web1"})]
    assert [one.id for one in web1.list()] == [own]
    assert (web1.info()["containers"], web1.info()["running"]) == (1, 0)
    assert web1.inspect(own).id == own
    for other in others:
        with pytest.raises(EngineError, match=f"No such container: {other}") as caught:
            web1.inspect(other)
        assert caught.value.kind is ErrorKind.NOT_FOUND


def test_what_is_made_has_the_label(web1: Engine) -> None:
    """A new container gets the label beside its own ones; whoever asks for another value does not get it."""
    with containers_of(web1) as make:
        assert web1.inspect(make(start=False)).labels[LABEL] == "web1"
        labels = web1.inspect(make(start=False, Labels={LABEL: "web2", "own": "yes"})).labels
    assert (labels[LABEL], labels["own"]) == ("web1", "yes")


def test_only_ones_own_events(web1: Engine, dockerd: Dockerd, engine: Engine) -> None:
    """Events of other containers are left out; those of images are told to all who share the engine."""
    stream = web1.events()
    with containers_of(engine) as make:
        make(name="foreign")
    dockerd.image("shared:1")
    with containers_of(web1) as make:
        make(name="own")
    seen = list(takewhile(lambda event: event.action != "destroy", stream))
    stream.close()
    assert {event.attributes["name"] for event in seen if event.kind == "container"} == {"own"}
    assert any(event.kind == "image" and event.action == "tag" for event in seen)


@asynccontextmanager
async def two_services(folder: Path, host: str) -> AsyncIterator[Client]:
    """Two nodes with one engine, and a caller at their parent."""
    names = ("web1", "web2")
    async with MemoryTree({"root": list(names)}) as tree:
        services = []
        for name in names:
            config = replace(tree.config.with_current(name), docker=DockerPolicy(host=host, only=f"{LABEL}={name}"))
            service = Service(config, folder)
            services.append(asyncio.create_task(service.serve(await tree.connect(name, name="containers"))))
            await service.wait_ready()
        yield await tree.connect("root")
        for task in services:
            task.cancel()
        await asyncio.wait(services)


async def test_all_may_ask_for_the_disk_at_once(tmp_path: Path, dockerd: Dockerd) -> None:
    """An engine counts its disk for one at a time: of many who ask at the same moment, each gets an answer."""
    async with two_services(tmp_path, dockerd.host) as client:
        for result in await asyncio.gather(*(client.call("*", "docker.df") for _ in range(3))):
            assert result.ok == {"web1", "web2"}, result.explain()


async def test_others_containers_cannot_be_reached(tmp_path: Path, dockerd: Dockerd, engine: Engine) -> None:
    """Of two nodes with one engine each lists its own container, and the other's is "no container" to every command."""
    async with two_services(tmp_path, dockerd.host) as client:
        names = {"web1": ["one"], "web2": ["two"]}
        made = await client.call("*", "containers.run", {"image": "box:1", "names": names, "stop_timeout_s": 0})
        assert made.ok == {"web1", "web2"}, made.explain()
        try:
            for command, body in {
                "inspect": {}, "logs": {}, "kill": {}, "rm": {"force": True}, "rename": {"name": "mine"},
                "exec": {"argv": ["true"]},
            }.items():  # fmt: skip
                about = {"container": "two"} if command in ("rename", "exec") else {"containers": ["two"]}
                result = await client.call("web1", f"containers.{command}", {**body, **about})
                assert result.failed == {"web1"}, command
                assert "no container 'two' here" in result.errors["web1"]
            for node, (name,) in names.items():
                found = (await client.call_one(node, "containers.find", {"containers": ["one", "two"]}))["found"]
                assert [row["name"] for row in found] == [name]
        finally:
            await client.call("web1", "containers.rm", {"containers": ["one"], "force": True})
            await client.call("web2", "containers.rm", {"containers": ["two"], "force": True})
