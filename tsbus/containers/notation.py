"""Notation: containers as people write them on Docker's command line, in the engine's words. Pure.

`spec` turns a `RunOrder` into the JSON that the engine's API takes. What only the engine can know (whether a network or
an image is there, whether a limit is too small) is left to it.
"""

import ipaddress
import posixpath
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from tsbus.containers.orders import Health, OrderError, RunOrder

MAX_PORTS: Final = 1024
"""Ports that one container may publish."""
_UNITS: Final = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MODES: Final = frozenset({"ro", "rw", "z", "Z", "nocopy"})
_TMPFS_FLAGS: Final = frozenset({"ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev"})
_TMPFS_VALUES: Final = frozenset({"size", "mode", "uid", "gid", "nr_inodes"})


def spec(order: RunOrder) -> dict[str, Any]:
    """Return the container as the engine's API takes it. Raises OrderError, which names the field."""
    host: dict[str, Any] = {
        "Binds": [],
        "PortBindings": {},
        "RestartPolicy": restart_policy(order.restart),
        "NetworkMode": order.network or "default",
        "AutoRemove": order.rm,
        "Privileged": order.privileged,
        "ReadonlyRootfs": order.read_only,
        "CapAdd": [_capability("cap_add", word) for word in order.cap_add],
        "CapDrop": [_capability("cap_drop", word) for word in order.cap_drop],
        "PidMode": _mode("pid", order.pid, ("host",)),
        "IpcMode": _mode("ipc", order.ipc, ("host", "private", "shareable", "none")),
        "SecurityOpt": list(order.security_opt),
        "Devices": [device(text) for text in order.devices],
        "ExtraHosts": [extra_host(text) for text in order.add_hosts],
        "Dns": [_ip("dns", text) for text in order.dns],
        "Ulimits": [ulimit(text) for text in order.ulimits],
        "Tmpfs": dict(tmpfs(text) for text in order.tmpfs),
    }
    if order.memory:
        host["Memory"] = size("memory", order.memory)
    if order.cpus:
        host["NanoCpus"] = nano_cpus(order.cpus)
    if order.init:
        host["Init"] = True
    told: dict[str, Any] = {
        "Image": order.image,
        "Env": [f"{name}={value}" for name, value in order.env.items()],
        "Labels": order.labels,
        "Hostname": order.hostname,
        "User": order.user,
        "WorkingDir": order.workdir,
        "Tty": order.tty,
        "Volumes": {},
        "ExposedPorts": {},
        "HostConfig": host,
    }
    if order.argv:
        told["Cmd"] = order.argv
    if order.entrypoint:
        told["Entrypoint"] = order.entrypoint
    if order.stop_signal:
        told["StopSignal"] = signal(order.stop_signal)
    if order.stop_timeout_s is not None:
        told["StopTimeout"] = order.stop_timeout_s
    if order.health is not None:
        told["Healthcheck"] = health_check(order.health)
    for port, binding in ports(order.publish):
        told["ExposedPorts"][port] = {}
        host["PortBindings"].setdefault(port, []).append(binding)
    for text in order.volumes:
        source, target, mode = volume(text)
        if source:
            host["Binds"].append(f"{source}:{target}{':' if mode else ''}{mode}")
        else:
            told["Volumes"][target] = {}
    return told


def ports(texts: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Return each published port as `80/tcp` and where it is published: HostIp, HostPort (empty: any that is free)."""
    found: list[tuple[str, dict[str, str]]] = []
    for text in texts:
        found += _ports(text)
        if len(found) > MAX_PORTS:
            raise OrderError(f"publish: more than {MAX_PORTS} ports")
    return found


def _ports(text: str) -> list[tuple[str, dict[str, str]]]:
    bad = OrderError(f'publish: {text!r} is not of the form "[[IP:]PORT:]PORT[/PROTOCOL]"')
    # An IPv6 address stands in brackets, so its colons are not those between the parts.
    match = re.fullmatch(r"(?:(?:(\[[^]]*\]|[^:\[\]]*):)?([0-9-]*):)?([0-9-]+)(?:/(tcp|udp|sctp))?", text)
    if match is None:
        raise bad
    address, outside, inside, protocol = match.groups()
    if address:
        _ip("publish", address.strip("[]"))
    within = _range(inside)
    without = _range(outside) if outside else range(0)
    if within is None or without is None:
        raise bad
    if len(without) in (0, len(within)):
        wanted = [str(port) for port in without] or [""] * len(within)
    elif len(within) == 1:
        wanted = [outside]  # the engine takes one of them that is free
    else:
        raise OrderError(f"publish: {text!r} has {len(without)} ports on one side and {len(within)} on the other")
    told = (address or "").strip("[]")
    return [
        (f"{port}/{protocol or 'tcp'}", {"HostIp": told, "HostPort": where})
        for port, where in zip(within, wanted, strict=True)
    ]


def _range(text: str) -> range | None:
    first, dash, last = text.partition("-")
    if not re.fullmatch(r"[0-9]{1,5}", first) or (dash and not re.fullmatch(r"[0-9]{1,5}", last)):
        return None
    low, high = int(first), int(last or first)
    return range(low, high + 1) if 0 < low <= high <= 65_535 and high - low < MAX_PORTS else None


def volume(text: str) -> tuple[str, str, str]:
    """Return source (a path of the host, a volume's name, or empty for a new volume), path, and options."""
    parts = text.split(":")
    source, target, mode = ("", *parts, "") if len(parts) == 1 else (*parts, "", "")[:3]
    options = mode.split(",") if mode else []
    if len(parts) > 3 or not target.startswith("/") or (len(parts) > 1 and not source):
        raise OrderError(f'volumes: {text!r} is not of the form "[NAME:|/HOST/PATH:]/PATH[:ro]"')
    if unknown := [option for option in options if option not in _MODES]:
        raise OrderError(f"volumes: {text!r}: the option {unknown[0]!r} is none of {', '.join(sorted(_MODES))}")
    if source.startswith("/"):
        # So that what is allowed and what the engine mounts are the same path.
        source = "/" + posixpath.normpath(source).lstrip("/")
    elif source and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", source):
        raise OrderError(f"volumes: {source!r} is neither a full path nor the name of a volume")
    return source, posixpath.normpath(target), mode


def tmpfs(text: str) -> tuple[str, str]:
    """Return the path of a file system in memory, and its options."""
    path, _, options = text.partition(":")
    if not path.startswith("/"):
        raise OrderError(f'tmpfs: {text!r} is not of the form "/PATH[:size=64m,mode=1777]"')
    for option in options.split(",") if options else ():
        name, equals, value = option.partition("=")
        if not (option in _TMPFS_FLAGS or (name in _TMPFS_VALUES and equals and re.fullmatch(r"\w+%?", value))):
            raise OrderError(f"tmpfs: {text!r}: there is no option {option!r}")
    return posixpath.normpath(path), options


def size(field: str, value: str | int) -> int:
    """Return a number of bytes: `256m`, `1.5g`, `1GiB`."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([bkmgt]?)(?:(?<=[kmgt])i?b)?", str(value).lower())
    if match is None:
        raise OrderError(f'{field}: {value!r} is no size; write it like "256m"')
    return int(Decimal(match[1]) * 1024 ** _UNITS[match[2]])


def nano_cpus(value: str | float) -> int:
    """Return a number of CPUs in billionths."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal(0)
    if not (number.is_finite() and Decimal("0.01") <= number <= 100_000):
        raise OrderError(f'cpus: {value!r} is no number of CPUs; write it like "1.5"')
    return int(number * 10**9)


def restart_policy(text: str) -> dict[str, Any]:
    """Return when the engine starts a container again."""
    name, colon, count = text.partition(":")
    if name == "on-failure" and colon and re.fullmatch(r"[0-9]{1,6}", count):
        return {"Name": name, "MaximumRetryCount": int(count)}
    if colon or name not in ("", "no", "always", "unless-stopped", "on-failure"):
        raise OrderError(f"restart: {text!r} is none of no, always, unless-stopped, on-failure[:N]")
    return {"Name": name}


def health_check(health: Health) -> dict[str, Any]:
    """Return a health check; what is not given stays as the image has it."""
    if health.disable:
        return {"Test": ["NONE"]}
    told: dict[str, Any] = {
        name: round(seconds * 1e9)
        for name, seconds in (
            ("Interval", health.interval_s),
            ("Timeout", health.timeout_s),
            ("StartPeriod", health.start_period_s),
        )
        if seconds
    }
    if health.retries:
        told["Retries"] = health.retries
    if health.command is not None:
        shell = isinstance(health.command, str)
        told["Test"] = ["CMD-SHELL", health.command] if shell else ["CMD", *health.command]
    return told


def device(text: str) -> dict[str, str]:
    """Return a device of the host: `/dev/fuse`, with where the container sees it and what it may do (`rwm`)."""
    parts = text.split(":")
    # In "/dev/fuse:rw" the second part is what it may do.
    if len(parts) == 2 and not parts[1].startswith("/"):
        parts.insert(1, parts[0])
    host, inside, may = (*parts, parts[0], "rwm")[:3] if len(parts) == 1 else (*parts, "rwm")[:3]
    paths = host.startswith("/") and inside.startswith("/")
    if len(parts) > 3 or not paths or not re.fullmatch(r"r?w?m?", may) or not may:
        raise OrderError(f'devices: {text!r} is not of the form "/dev/NAME[:/dev/NAME][:rwm]"')
    host = "/" + posixpath.normpath(host).lstrip("/")
    return {"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": may}


def extra_host(text: str) -> str:
    """Return a line of the container's /etc/hosts, `NAME:IP`."""
    name, _, address = text.partition(":")
    if not re.fullmatch(r"[\w.-]{1,253}", name) or not address:
        raise OrderError(f'add_hosts: {text!r} is not of the form "NAME:IP"')
    if address != "host-gateway":
        _ip("add_hosts", address)
    return text


def ulimit(text: str) -> dict[str, Any]:
    """Return a limit of the kernel: `nofile=1024`, or with a harder one, `nofile=1024:2048`."""
    match = re.fullmatch(r"([a-z]{2,12})=(-1|[0-9]{1,18})(?::(-1|[0-9]{1,18}))?", text)
    if match is None:
        raise OrderError(f'ulimits: {text!r} is not of the form "nofile=1024[:2048]"')
    return {"Name": match[1], "Soft": int(match[2]), "Hard": int(match[3] or match[2])}


def signal(text: str) -> str:
    """Return a signal's name as the engine keeps it: `TERM` and `SIGTERM` are the same, digits stay."""
    text = text.upper()
    return text if text.isdigit() or text.startswith("SIG") else f"SIG{text}"


def _capability(field: str, text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if not re.fullmatch(r"[A-Z_]{3,40}", name):
        raise OrderError(f'{field}: {text!r} is no capability; write it like "NET_ADMIN"')
    return name


def _mode(field: str, text: str, words: tuple[str, ...]) -> str:
    if text and text not in words and not re.fullmatch(r"container:[a-zA-Z0-9][\w.-]*", text):
        raise OrderError(f"{field}: {text!r} is none of {', '.join(words)}, container:NAME")
    return text


def _ip(field: str, text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise OrderError(f"{field}: {text!r} is no IP address") from None
    return text
