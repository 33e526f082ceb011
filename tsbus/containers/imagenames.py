"""Image names: what an engine calls its images, remembered until it says that one has changed.

Every inspection of a container wants them, and engines have many containers of few images.
"""

import threading
from collections.abc import Mapping
from typing import Any, Final

from tsbus.containers.api import Api, as_object, is_name
from tsbus.containers.trouble import EngineError, ErrorKind

MAX_IMAGES: Final = 512
"""Images whose names are remembered."""


class ImageNames:
    """The names of the images of one engine, for any number of threads."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._names: dict[str, dict[str, Any]] = {}

    def of(self, image_id: object) -> Mapping[str, Any] | None:
        """Return the names of an image as its inspection says them. Raises EngineError."""
        if not isinstance(image_id, str) or not is_name(image_id):
            return None
        with self._lock:
            images = self._names
            names = images.get(image_id)
        if names is None:
            try:
                said = as_object(self._api.quick(lambda docker: docker.inspect_image(image_id)))
            except EngineError as error:
                if error.kind is not ErrorKind.NOT_FOUND:  # removed by force: its containers stay
                    raise
                said = {}
            names = {key: said.get(key) for key in ("RepoTags", "RepoDigests")}
            with self._lock:
                # What was forgotten meanwhile is another dict now.
                images[image_id] = names
                while len(images) > MAX_IMAGES:
                    del images[next(iter(images))]
        return names

    def forget(self) -> None:
        """Ask again from now on."""
        with self._lock:
            self._names = {}
