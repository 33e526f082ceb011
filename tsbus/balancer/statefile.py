"""State file: what of the kernel and host is ours, and what operators have set. It outlives the process. An edge."""

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from tsbus.balancer.table import Key, Mark, Protocol, Virtual
from tsbus.balancer.world import Override

NAME: Final = "lb-state.json"


@dataclass(frozen=True, slots=True)
class State:
    """What the file holds."""

    keys: frozenset[Key] = frozenset()
    overrides: tuple[Override, ...] = ()
    host: bool = False
    """The host may have rules and addresses of ours."""


class StateError(Exception):
    """The file cannot be read or written; the text says why."""


class _Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key: a mark, or where clients connect."""

    mark: int = 0
    version: int = 4
    protocol: str = ""
    ip: str = ""
    port: int = 0


class _File(msgspec.Struct, frozen=True):
    services: list[_Service]
    overrides: list[Override]
    host: bool = True  # older files do not say


def load(path: Path) -> State | None:
    """Return what the file at `path` holds, None where there is none. Raises StateError."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        return State(frozenset(map(_key, file.services)), tuple(file.overrides), file.host)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise StateError(
            f"{path} cannot be understood ({error}); remove it, and what has our mark in the kernel is taken for ours"
        ) from error


def save(path: Path, state: State) -> None:
    """Write the file so that a crash leaves either the old one or the new one; there is none for an empty state.

    Raises StateError.
    """
    services = [_service(key) for key in sorted(state.keys, key=str)]
    new = path.with_name(f".{path.name}.new")
    try:
        if state == State():
            path.unlink(missing_ok=True)
            return
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_File(services, list(state.overrides), state.host))))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}") from error


def _service(key: Key) -> _Service:
    if isinstance(key, Mark):
        return _Service(mark=key.number, version=key.version)
    return _Service(version=key.version, protocol=key.protocol.name.lower(), ip=str(key.ip), port=key.port)


def _key(service: _Service) -> Key:
    if service.mark:
        return Mark(service.mark, 4 if service.version == 4 else 6)
    return Virtual(Protocol[service.protocol.upper()], ip_address(service.ip), service.port)
