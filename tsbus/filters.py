"""Filters: which containers somebody wants, and which image a name means. Pure."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, Self

from tsbus.records import Container, Image


class FilterError(ValueError):
    """A filter that is none; the text says what there is."""


_KEYS: Final = ("image", "label", "state", "health", "node", "name")
_STATES: Final = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_HEALTHS: Final = ("starting", "healthy", "unhealthy", "none")
_HUB: Final = ("docker.io/", "index.docker.io/")
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})\Z")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which containers are wanted: of each key one of its values must fit. Without any it fits all."""

    wanted: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def parse(cls, *texts: str) -> Self:
        """Read texts like "image=nginx" or "label=tier=web". Raises FilterError.

        Keys: `image` (a name with or without tag, a digest, or the beginning of an id), `label` (`key` or `key=value`),
        `state`, `health` (`none`: without a check), `node` and `name` (patterns with `*`; a name without one may be any
        part of it).
        """
        wanted: dict[str, list[str]] = {}
        for text in texts:
            key, _, value = text.partition("=")
            if key not in _KEYS or not value:
                raise FilterError(f"{text!r} is no filter; write KEY=VALUE, where KEY is one of {', '.join(_KEYS)}")
            known = {"state": _STATES, "health": _HEALTHS}.get(key)
            if known and value not in known:
                raise FilterError(f"{text!r}: the {key} is one of {', '.join(known)}")
            wanted.setdefault(key, []).append(normal_image(value) if key == "image" else value)
        return cls(tuple((key, tuple(values)) for key, values in wanted.items()))

    def matches(self, node: str, container: Container) -> bool:
        """Tell whether it fits a container of `node`."""
        return all(any(_fits(key, value, node, container) for value in values) for key, values in self.wanted)


ALL: Final = Filter()


def _fits(key: str, value: str, node: str, container: Container) -> bool:
    match key:
        case "image":
            return image_fits(value, container.image)
        case "label":
            name, equals, text = value.partition("=")
            return container.labels.get(name) == text if equals else name in container.labels
        case "state":
            return container.state == value
        case "health":
            return (container.health or "none") == value
        case "node":
            return fnmatchcase(node, value)
    return fnmatchcase(container.name, value) if set(value) & set("*?[") else value in container.name


@lru_cache(maxsize=4096)
def normal_image(name: str) -> str:
    """Return an image's name without what Docker adds by itself: `docker.io/library/nginx:1` is `nginx:1`."""
    for hub in _HUB:
        name = name.removeprefix(hub)
    return name.removeprefix("library/") if name.count("/") == 1 else name


def image_fits(wanted: str, image: Image) -> bool:
    """Tell whether `wanted`, as `normal_image` returns it, means an image.

    It may be as the image was given, its repository, which is any tag of it, repository and tag, a digest with or
    without its repository, or the beginning of a digest or id. An image without a tag has the tag `latest`.
    """
    given, repo, tag = normal_image(image.given), normal_image(image.repo), image.tag
    if not repo and not given.startswith("sha256:"):  # of one that was gone too soon no more is known
        repo = _untagged(given.partition("@")[0])
        tag = given.removeprefix(repo).partition("@")[0].removeprefix(":")
    name, at, digest = wanted.partition("@")
    if at:
        return wanted == given or (digest == image.digest and _untagged(name) == repo)
    if wanted in (given, repo) or (repo and wanted == f"{repo}:{tag or 'latest'}"):
        return True
    found = _ID.match(wanted)
    return found is not None and any(
        one.removeprefix("sha256:").startswith(found[1]) for one in (image.id, image.digest)
    )


def _untagged(name: str) -> str:
    """Return an image's name without its tag; a colon before a slash is a port."""
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail else name
