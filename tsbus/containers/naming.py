"""Naming: which containers of a node a name means. Pure."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Named(Protocol):
    """What has a name and an id: a record, or a line of the engine's list."""

    @property
    def id(self) -> str:
        """64 hex digits."""
        ...

    @property
    def name(self) -> str:
        """Without the slash."""
        ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True)
class Target:
    """A container that something is to be done to; without an id one that is to be made."""

    id: str
    name: str


class NotOne(Exception):
    """A name means no container here, or several; the text says which it may have meant."""


def matching(name: str, containers: Iterable[N]) -> list[N]:
    """Return the containers that `name` means: the one called so or with this id, else all whose ids begin so."""
    fits: list[N] = []
    for one in containers:
        if one.name == name or one.id == name:
            return [one]
        if one.id.startswith(name):
            fits.append(one)
    return fits


def near(name: str, containers: Iterable[Named]) -> str:
    """Return the name that is most like `name`, else one that has it in it, or an empty text."""
    names = [one.name for one in containers]
    like = difflib.get_close_matches(name, names, n=1) or [one for one in sorted(names) if name in one]
    return next(iter(like), "")


def resolve(names: Iterable[str], containers: Iterable[Named], *, if_here: bool) -> list[Target]:
    """Return the containers that `names` mean, each once; `if_here`: pass over names that none has. Raises NotOne."""
    known = list(containers)
    found: dict[str, Target] = {}
    for name in names:
        fits = matching(name, known)
        if len(fits) > 1:
            listed = ", ".join(f"{one.name} ({one.id[:12]})" for one in fits[:10])
            raise NotOne(f"{name!r} begins the ids of {len(fits)} containers: {listed}; give more of it")
        if fits:
            found[fits[0].id] = Target(fits[0].id, fits[0].name)
        elif not if_here:
            like = near(name, known)
            raise NotOne(f"no container {name!r} here{f'; did you mean {like!r}?' if like else ''}")
    return list(found.values())
