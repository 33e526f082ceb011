"""Policy: what in a container could make somebody root of the node, and whether that is allowed here. Pure.

The same reading serves a container that is to be made and one that runs already, in which somebody wants to run a
program: `powers_of` reads the engine's JSON of both. docs/containers.md explains the rules.
"""

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsbus.config import DockerPolicy
from tsbus.core.roles import Role

_FOREIGN_NAMESPACES = ("NetworkMode", "PidMode", "IpcMode", "UTSMode", "UsernsMode")
_HARMLESS_OPTIONS = ("no-new-privileges", "no-new-privileges=true", "no-new-privileges:true")


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of the host in a container."""

    path: str
    leads_to: str
    """The same path with all symbolic links followed."""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Powers:
    """What a container has of the host."""

    privileged: bool = False
    mounts: tuple[Mount, ...] = ()
    namespaces: tuple[str, ...] = ()
    """`pid: host`, `network: container:web` ..."""
    capabilities: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    security: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Denied:
    """It is not allowed; `reason` is for the caller, and names the key that would allow it."""

    reason: str


def decide(powers: Powers, policy: DockerPolicy) -> Denied | None:
    """Decide whether a container with `powers` may be made. Roles do not count: an accident of an admin is one too."""
    missing = next(_missing(powers, policy), None)
    if missing is None:
        return None
    what, key = missing
    return Denied(f"{what} may make one root of the node; that takes {key} in [docker] of its configuration")


def decide_exec(powers: Powers, policy: DockerPolicy, role: Role, *, privileged: bool) -> Denied | None:
    """Decide whether a caller may run a program in a container that is there already and has `powers`.

    Role admin may get into any; a `privileged` program takes its key from everybody.
    """
    if denied := decide(Powers(privileged=privileged), policy):
        return denied
    if role >= Role.ADMIN:
        return None
    denied = decide(powers, policy)
    return Denied(f"{denied.reason}, or role admin") if denied else None


def _missing(powers: Powers, policy: DockerPolicy) -> Iterator[tuple[str, str]]:
    """Yield what is there and not allowed, and the key that would allow it."""
    if powers.privileged and not policy.privileged:
        yield "a privileged container", "privileged = true"
    for mount in powers.mounts:
        for path in _forbidden(mount, policy.host_mounts):
            also = f" (which leads to {path})" if path != mount.path else ""
            yield f"the node's {mount.path}{also}", f'"{path}{":ro" if mount.read_only else ""}" in host_mounts'
    if powers.namespaces and not policy.host_namespaces:
        yield f"a namespace of others ({powers.namespaces[0]})", "host_namespaces = true"
    for name in powers.capabilities:
        if not {name, "ALL"} & set(policy.capabilities):
            yield f"the capability {name}", f'"{name}" in capabilities'
    for path in powers.devices:
        if not _named(path, policy.devices):
            yield f"the device {path}", f'"{path}" in devices'
    if powers.security and not policy.security_opt:
        yield f"the security option {powers.security[0]}", "security_opt = true"


def _forbidden(mount: Mount, allowed: Sequence[str]) -> Iterator[str]:
    """Yield the paths of a mount that are not allowed: the one that was given, and where that leads."""
    entries = [each.removesuffix(":ro") for each in allowed if mount.read_only or not each.endswith(":ro")]
    if not _named(mount.path, entries):
        yield mount.path
    elif mount.path not in entries and not _named(mount.leads_to, entries):
        # Somebody who can write below an allowed directory could put a link there that leads out of it.
        yield mount.leads_to


def _named(path: str, entries: Sequence[str]) -> bool:
    """Tell whether an entry is this path, or with /** one that it is in or below."""
    for entry in entries:
        above = entry.removesuffix("/**")
        if path == entry or (above != entry and (path == above or path.startswith(f"{above}/"))):
            return True
    return "/" in entries


def powers_of(
    told: Mapping[str, Any], volumes: Mapping[str, str], resolve: Callable[[str], str] = posixpath.normpath
) -> Powers:
    """Return what a container has of the host, by the JSON that creates it or by that of its inspection.

    `volumes`: name -> path of the host, of named volumes that are nothing but such a path. `resolve` follows links.
    """
    host = told.get("HostConfig") or {}
    mounts = [*_binds(host.get("Binds") or (), volumes), *_mounts(told.get("Mounts") or (), volumes)]
    namespaces = [
        f"{key.removesuffix('Mode').lower()}: {host[key]}"
        for key in _FOREIGN_NAMESPACES
        if str(host.get(key) or "") == "host" or str(host.get(key) or "").startswith("container:")
    ]
    security = [each for each in host.get("SecurityOpt") or () if each not in _HARMLESS_OPTIONS]
    if host.get("ReadonlyPaths") == []:
        # What is left of `--security-opt systempaths=unconfined` in an inspection; a container sees /proc/sys then.
        security.append("systempaths=unconfined")
    return Powers(
        privileged=bool(host.get("Privileged")),
        mounts=tuple(Mount(path, resolve(path), read_only) for path, read_only in dict.fromkeys(mounts)),
        namespaces=tuple(namespaces),
        capabilities=tuple(str(name).upper().removeprefix("CAP_") for name in host.get("CapAdd") or ()),
        devices=(
            *(str(each.get("PathOnHost")) for each in host.get("Devices") or ()),
            *(str(rule) for rule in host.get("DeviceCgroupRules") or ()),
        ),
        security=tuple(security),
    )


def _binds(binds: Sequence[str], volumes: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    for bind in binds:
        source, _, rest = bind.partition(":")
        read_only = "ro" in rest.partition(":")[2].split(",")
        path = source if source.startswith("/") else volumes.get(source)
        if path:
            yield posixpath.normpath(path), read_only


def _mounts(mounts: Sequence[Mapping[str, Any]], volumes: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    for mount in mounts:
        path = mount.get("Source") if mount.get("Type") == "bind" else volumes.get(str(mount.get("Name")))
        if path:
            yield posixpath.normpath(str(path)), not mount.get("RW", True)


def volume_path(told: Mapping[str, Any]) -> str | None:
    """Return the path of the host that a named volume is nothing but a name for, by its inspection; mostly None."""
    options = told.get("Options") or {}
    device = str(options.get("device") or "")
    return device if told.get("Driver") == "local" and device.startswith("/") else None


def named_volumes(told: Mapping[str, Any]) -> list[str]:
    """Return the names of the volumes that a container has, by the JSON that creates it or by its inspection."""
    binds = ((told.get("HostConfig") or {}).get("Binds")) or ()
    names = [bind.partition(":")[0] for bind in binds if not bind.startswith("/")]
    names += [str(mount["Name"]) for mount in told.get("Mounts") or () if mount.get("Name")]
    return list(dict.fromkeys(names))
