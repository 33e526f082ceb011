"""Containers: the part of the demo about containers, on two nodes that share the Docker engine of this machine."""

import time
from typing import Final

from tsbus.blocking import BlockingClient
from tsbus.cli.demo.borrowed import Borrowed
from tsbus.cli.demo.stage import Stage, chapter, expect, say
from tsbus.cli.edge import Fault
from tsbus.containers.engine import EngineError

NODES: Final = ("web1", "web2")
TOPICS: Final = ("treescale", "events", "--timeout", "60", "--count")


def show(stage: Stage, bus: BlockingClient, docker: Borrowed) -> None:
    """Containers are started, watched, measured and killed from the root."""
    chapter("4. Containers are started, measured and killed")
    if docker.trouble:
        say(f"Left out, because no Docker engine can be used: {docker.trouble}")
        return
    say("web1 and web2 share this machine's Docker engine; each has containers of its own.")
    try:
        if not docker.make_image():
            stage.run(["treescale", "image", "pull", "web1", docker.image, "--timeout", "20"])
        _start(stage, docker)
    except (EngineError, Fault) as error:
        # The engine is not ours, and not every one can run containers or reach a registry.
        say(f"The rest of this part is left out: {error}")
        return
    stage.run(["treescale", "container", "ls", "@web"])
    say("\nWhat they use, measured while somebody looks:")
    stage.run(["treescale", "container", "stats", "@web", "--no-stream"])
    _kill(stage, bus, docker)
    say(f"\nLater, try a shell in the other one: treescale container exec -it web2 {docker.name}-2 sh")


def _start(stage: Stage, docker: Borrowed) -> None:
    say("The root listens, and starts one on each:")
    program = ["sh", "-c", "while sleep 0.1; do :; done"]
    with stage.listening([*TOPICS, "4", "container.*"], ["root"]) as tell:
        names = ("--name", docker.name, "--count", "2")
        stage.run(["treescale", "container", "run", "@web", docker.image, *names, "--", *program])
        tell()


def _kill(stage: Stage, bus: BlockingClient, docker: Borrowed) -> None:
    say("\nOne is killed:")
    with stage.listening([*TOPICS, "1", "container.died"], ["root"]) as tell, bus.subscribe("container.died") as died:
        with stage.running(["treescale", "container", "kill", "web1", f"{docker.name}-1"]):
            event = expect(died, "web1")
            took_ms = time.time() * 1000 - event.json()["time_ns"] / 1e6
        tell()
    say(f"The root knew it {took_ms:.1f} ms after the engine.")
    stage.run(["treescale", "container", "ls", "@web", "--all"])
