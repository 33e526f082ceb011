"""Pulling: how far the fetching of an image is, out of the steps of its layers. Pure."""

from dataclasses import dataclass

from tsbus.containers.facts import PullStep
from tsbus.records import PullProgress

_DONE = ("Pull complete", "Already exists")
_FETCHED = ("Verifying Checksum", "Download complete", "Extracting", *_DONE)


@dataclass(slots=True)
class _Layer:
    done: bool = False
    current: int = 0
    total: int = 0


class Layers:
    """The layers of one image."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self.status = ""
        """The last thing said about the image as a whole, or about a layer."""

    def step(self, step: PullStep) -> None:
        """Take a step."""
        self.status = step.status
        # With the name of the tag in the place of a layer.
        if not step.layer or step.status.startswith("Pulling from "):
            return
        layer = self._layers.setdefault(step.layer, _Layer())
        layer.done = step.status in _DONE
        if step.status == "Downloading":
            layer.current, layer.total = step.current, max(step.total, step.current)
        elif step.status in _FETCHED:
            # Now the engine counts what it has unpacked; the bytes of the network are all here.
            layer.current = layer.total

    @property
    def progress(self) -> PullProgress:
        """How far all of them are."""
        layers = self._layers.values()
        return PullProgress(
            layers=len(layers),
            done=sum(layer.done for layer in layers),
            current=sum(layer.current for layer in layers),
            total=sum(layer.total for layer in layers),
            status=self.status,
        )
