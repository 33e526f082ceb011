"""Borrowed: the machine's Docker engine, which is somebody's. What the demo makes in it has a label and an end.

The image is made of the machine's own busybox, so that it takes no registry.
"""

import io
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tsbus.cli.demo.stage import say
from tsbus.config import DockerPolicy
from tsbus.containers.engine import Engine, EngineError, ErrorKind

ASK_S: Final = 10.0
"""How long the engine may take for an answer."""
ALSO_FIT: Final = ("busybox:latest", "alpine:latest")
"""Images that do as well, where there is no busybox to make one of."""
ATTEMPTS: Final = 3


class Borrowed:
    """The engine that DOCKER_HOST names, or the default one, for as long as the demo runs."""

    def __init__(self, mark: str, nodes: Sequence[str]) -> None:
        """`mark` tells what is of this demo; `nodes` are to have containers. `find` looks for the engine."""
        self.name = f"demo-{mark}"
        """For containers."""
        self.image = f"treescale-demo:{mark}"
        self.policies: dict[str, DockerPolicy] = {}
        """Of the nodes that are to have containers; empty where there is no engine. Each sees its own containers."""
        self.trouble = ""
        """Why there is no engine that we may use."""
        self._label = f"treescale.demo.{mark}"
        self._nodes = nodes
        self._engines: list[Engine] = []
        self._image_is_ours = False

    @property
    def is_local(self) -> bool:
        """Whether the engine's containers run on this machine."""
        return bool(self._engines) and self._engines[0].is_local

    def find(self) -> None:
        """Look for the engine."""
        try:
            engines = {node: Engine(timeout_s=ASK_S, only=f"{self._label}={node}") for node in self._nodes}
            engines[self._nodes[0]].connect()
        except EngineError as error:
            self.trouble = str(error)
            return
        self._engines = list(engines.values())
        self.policies = {node: DockerPolicy(only=f"{self._label}={node}") for node in self._nodes}

    def make_image(self) -> bool:
        """See that the engine has `image`; False where it has to be pulled first. Raises EngineError."""
        engine, busybox = self._engines[0], _static_busybox()
        if self.is_local and busybox:
            self._image_is_ours = True
            archive = _archive(busybox)
            # An engine goes on when we are interrupted, and then there would be an image after its removal.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            try:
                engine.import_image(self.image, archive)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return True
        for self.image in ALSO_FIT:
            with suppress(EngineError):
                engine.image_id(self.image)
                return True
        self.image, self._image_is_ours = ALSO_FIT[0], True
        return False

    def remove(self) -> None:
        """Remove the containers and the image. Says what could not be."""
        try:
            gone = any(self._try_to_remove() for _ in range(ATTEMPTS))
            trouble = f"somebody uses {self.image}"
        except EngineError as error:
            gone, trouble = False, str(error)
        if not gone:
            say(f"\nThe Docker engine still has things of the demo: {trouble}. To remove them:")
            say(f"  docker rm -f $(docker ps -aq --filter label={self._label}); docker rmi {self.image}")

    def _try_to_remove(self) -> bool:
        for engine in self._engines:
            engine.ping()
            for container in engine.list():
                with suppress(EngineError):  # somebody else may be removing it
                    engine.rm(container.id, force=True, volumes=True)
        if self._image_is_ours:
            try:
                self._engines[0].rm_image(self.image)
            except EngineError as error:
                # A container may have been made of it at the last moment; now that would fail.
                return error.kind is ErrorKind.NOT_FOUND
        return True


def _static_busybox() -> Path | None:
    found = shutil.which("busybox")
    if found is None:
        return None
    path = Path(found).resolve()
    with path.open("rb") as file:
        # A program with shared libraries names its loader, /lib64/ld-linux..., at its beginning.
        return None if b"/ld" in file.read(4096) else path


def _archive(busybox: Path) -> bytes:
    """Return a file system of nothing but busybox under all its names, as a tar archive."""
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in names:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(link)
    return out.getvalue()
