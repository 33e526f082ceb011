"""Containers of the private engine that are gone when a test is over."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tsbus.containers.engine import Engine, EngineError

Make = Callable[..., str]


@contextlib.contextmanager
def containers_of(engine: Engine) -> Iterator[Make]:
    """A function that makes a container and starts it; all are removed at the end."""
    made: list[str] = []

    def make(
        *argv: str,
        image: str = "box:1",
        name: str | None = None,
        start: bool = True,
        host: dict[str, Any] | None = None,
        **config: Any,
    ) -> str:
        # Most programs as process 1 ignore SIGTERM; nobody here waits ten seconds for them.
        spec = {"Image": image, "StopTimeout": 0, "HostConfig": host or {}, **config}
        made.append(engine.create(name, {**spec, "Cmd": list(argv)} if argv else spec))
        if start:
            engine.start(made[-1])
        return made[-1]

    yield make
    for container in made:
        with contextlib.suppress(EngineError):
            engine.rm(container, force=True, volumes=True)
