"""Facts: what the engine says (its JSON), as typed values and as records of the bus. Pure.

engine.py asks and these functions read the answers. They take whatever an engine says, old ones and Podman included:
what is missing or has another type than it should gets its default.
"""

import re
import shlex
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast, get_args

from tsbus.records import MAX_LABEL_BYTES, Container, Endpoint, EngineFacts, Health, Image, State

MAX_COMMAND: Final = 256
"""Characters of `Container.command`."""
MAX_ENDPOINTS: Final = 1024
"""Of one container: who publishes a thousand ports means a range, and an event must fit a message."""
OUR_LABELS: Final = ("treescale.", "com.docker.compose.")
"""The beginnings of labels that are kept first when there are too many."""
HUB: Final = ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/")
"""What stands before a name of Docker's own registry when it is written in full."""
STATES: Final[frozenset[str]] = frozenset(get_args(State))
PODMAN_ACTIONS: Final = {
    ("container", "died"): "die",
    ("container", "remove"): "destroy",
    ("image", "remove"): "delete",
    ("network", "remove"): "destroy",
}
"""Podman's words, and Docker's for the same."""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One event of the engine's stream."""

    kind: str
    """`container`, `image`, `network` ..."""
    action: str
    """`start`, `die`, `health_status` ...: what stands before a colon."""
    detail: str
    """What stands behind it: `unhealthy`; mostly empty."""
    id: str
    """Of the container, image or network."""
    attributes: dict[str, str]
    time_ns: int
    """By the engine's clock, Unix nanoseconds."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the engine's list of containers: less than an inspection says, and cheap."""

    id: str
    name: str
    state: str
    health: str
    """As `Container.health`; the engine tells it in the text of the status only."""
    networks: dict[str, str] = field(default_factory=dict)
    """Network name -> the container's address in it."""


@dataclass(frozen=True, slots=True)
class PullStep:
    """One step of the pull of an image: of a layer, or of all (`layer` is empty, `status` says what)."""

    layer: str
    """The beginning of the layer's id."""
    status: str
    """`Downloading`, `Extracting`, `Pull complete` ..."""
    current: int = 0
    total: int = 0
    """Bytes of this layer in this status; 0 when the engine does not say."""


def event_of(raw: Mapping[str, Any]) -> EngineEvent | None:
    """Return what one object of the engine's event stream says, None when it is no event of something with an id."""
    actor = _map(raw.get("Actor"))
    kind = _text(raw.get("Type")) or "container"
    action, _, detail = (_text(raw.get("Action")) or _text(raw.get("status"))).partition(":")
    identity = _text(actor.get("ID")) or _text(raw.get("id"))
    action = PODMAN_ACTIONS.get((kind, action), action)
    if not action or not identity:
        return None
    attributes = _texts(actor.get("Attributes"))
    if action == "health_status" and not detail.strip():
        # Podman puts it elsewhere.
        detail = _text(raw.get("HealthStatus")) or attributes.get("health_status", "")
    time_ns = _number(raw.get("timeNano")) or _number(raw.get("time")) * 10**9
    return EngineEvent(kind, action, detail.strip(), identity, attributes, time_ns)


def summary_of(raw: Mapping[str, Any]) -> Summary:
    """Return what one line of the engine's list of containers says."""
    # A container that others are linked to is listed under their names as well: `/web/db`.
    names = sorted((_text(name) for name in _list(raw.get("Names"))), key=lambda name: name.count("/"))
    networks = _map(_map(raw.get("NetworkSettings")).get("Networks"))
    return Summary(
        id=_text(raw.get("Id")),
        name=names[0].lstrip("/") if names else "",
        state=_text(raw.get("State")).lower(),
        health=_health_in(_text(raw.get("Status"))),
        networks={_text(name): _address(_map(network)) for name, network in networks.items()},
    )


def container_of(inspected: Mapping[str, Any], image: Mapping[str, Any] | None) -> Container:
    """Return the record of a container from its inspection and that of its image, None if the image is gone."""
    config, host = _map(inspected.get("Config")), _map(inspected.get("HostConfig"))
    state, settings = _map(inspected.get("State")), _map(inspected.get("NetworkSettings"))
    networks = {_text(name): _address(_map(one)) for name, one in _map(settings.get("Networks")).items()}
    status = _state(state)
    finished_ns = time_ns(state.get("FinishedAt"))
    labels, labels_cut = _labels(_texts(config.get("Labels")))
    return Container(
        id=_text(inspected.get("Id")),
        name=_text(inspected.get("Name")).lstrip("/"),
        image=image_of(_text(config.get("Image")), _text(inspected.get("Image")), image or {}),
        state=status,
        health=_health(_map(state.get("Health") or state.get("Healthcheck"))),
        command=_command([_text(inspected.get("Path")), *(_text(one) for one in _list(inspected.get("Args")))]),
        labels=labels,
        labels_cut=labels_cut,
        endpoints=_endpoints(settings, config, networks, _text(host.get("NetworkMode"))),
        networks=networks,
        created_ns=time_ns(inspected.get("Created")),
        started_ns=time_ns(state.get("StartedAt")),
        finished_ns=finished_ns,
        exit_code=None if status in ("created", "running", "paused") or not finished_ns else _exit_code(state),
        oom=state.get("OOMKilled") is True,
        restarts=_number(inspected.get("RestartCount")),
        restart_policy=_restart_policy(_map(host.get("RestartPolicy"))),
        pid=_number(state.get("Pid")),
        stop_signal=_signal(config.get("StopSignal")),
        stop_timeout_s=_stop_timeout(config.get("StopTimeout")),
        memory_limit=_number(host.get("Memory")),
        cpus=_cpus(host),
    )


def facts_of(version: Mapping[str, Any], info: Mapping[str, Any]) -> EngineFacts:
    """Return what the engine's answers to `version` and `info` say; `node` and `since_ns` are the caller's to fill."""
    components = [_text(_map(one).get("Name")) for one in _list(version.get("Components"))]
    # Some versions of Podman say which cgroups they use in a word of their own.
    cgroup = _text(info.get("CgroupVersion")).removeprefix("v") or "1"
    return EngineFacts(
        node="",
        up=True,
        name="Podman" if any("podman" in name.lower() for name in components) else "Docker",
        version=_text(version.get("Version")),
        api=_text(version.get("ApiVersion")),
        cgroup=f"v{cgroup}/{_text(info.get('CgroupDriver')) or 'cgroupfs'}",
        os=_text(info.get("OperatingSystem")) or _text(version.get("Os")),
        kernel=_text(info.get("KernelVersion")) or _text(version.get("KernelVersion")),
        cpus=_number(info.get("NCPU")),
        memory=_number(info.get("MemTotal")),
    )


def pull_step_of(raw: Mapping[str, Any]) -> PullStep:
    """Return what one object of the answer to a pull says."""
    progress = _map(raw.get("progressDetail"))
    status = _text(raw.get("status"))
    return PullStep(_text(raw.get("id")), status, _number(progress.get("current")), _number(progress.get("total")))


def image_line(raw: Mapping[str, Any], containers: int) -> dict[str, Any]:
    """Return one line of the engine's list of images as `images.ls` tells it; `containers` are made from it."""
    names = [_text(one) for one in _list(raw.get("RepoTags"))]
    digests = [_text(one) for one in _list(raw.get("RepoDigests"))]
    return {
        "id": _text(raw.get("Id")),
        "names": [name for name in names if not name.startswith("<none>")],
        "digests": [digest for digest in digests if not digest.startswith("<none>")],
        "created_ns": _number(raw.get("Created")) * 10**9,
        "size": _number(raw.get("Size")),
        "containers": containers,
    }


def usage_of(raw: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return what the engine's count of its disk says, as `docker.df` tells it."""
    images = [_map(one) for one in _list(raw.get("Images"))]
    containers = [_map(one) for one in _list(raw.get("Containers"))]
    volumes = [_map(_map(one).get("UsageData")) for one in _list(raw.get("Volumes"))]
    cache = [_map(one) for one in _list(raw.get("BuildCache"))]
    # Podman does not count the layers.
    layers = _number(raw.get("LayersSize")) or sum(_number(one.get("Size")) for one in images)
    used = [one for one in images if _number(one.get("Containers"))]
    # Layers that images share are counted once in the whole and are no image's own.
    in_use = sum(_number(one.get("Size")) - _number(one.get("SharedSize")) for one in used)
    return {
        "images": _usage(len(images), len(used), layers, max(0, layers - in_use)),
        "containers": _count(
            [
                (_number(one.get("SizeRw")), one.get("State") in ("running", "paused", "restarting"))
                for one in containers
            ]
        ),
        "volumes": _count([(_number(one.get("Size")), _number(one.get("RefCount")) > 0) for one in volumes]),
        "cache": _count([(_number(one.get("Size")), one.get("InUse") is True) for one in cache]),
    }


def image_of(given: str, image_id: str, image: Mapping[str, Any]) -> Image:
    """Return all names of a container's image.

    `given` is how it was named when the container was made, `image_id` its id, `image` its inspection or nothing.
    """
    tags = [tag for tag in (_text(one) for one in _list(image.get("RepoTags"))) if not tag.startswith("<none>")]
    repo, tag, digest = parse_name(given)
    if _is_id(given, image_id, tags):
        repo, tag, digest = parse_name(tags[0]) if tags else ("", "", "")
    if not digest:
        digests = [parse_name(_text(one)) for one in _list(image.get("RepoDigests"))]
        digest = next((one for name, _, one in digests if name == repo), "")
    return Image(given=given, repo=repo, tag=tag, digest=digest, id=image_id)


def parse_name(name: str) -> tuple[str, str, str]:
    """Return repository, tag and digest of the name of an image; without tag and digest, the tag is `latest`.

    Names of Docker's own registry lose what stands before them: `docker.io/library/nginx` is `nginx`.
    """
    rest, _, digest = name.partition("@")
    repo, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        repo, tag = rest, ""
    for prefix in HUB:
        repo = repo.removeprefix(prefix)
    return repo, tag or ("" if digest or not repo else "latest"), digest


def time_ns(text: object) -> int:
    """Return an RFC 3339 time as Unix nanoseconds; 0 for what is none and for the year 1, the engine's `never`."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if not match or match["year"] < "1970":
        return 0
    date = "-".join(match.group("year", "month", "day"))
    try:
        whole = datetime.fromisoformat(f"{date}T{match['clock']}{match['zone'] or 'Z'}")
    except ValueError:
        return 0
    found = (whole - _EPOCH) // _SECOND * 10**9 + int((match["fraction"] or "")[:9].ljust(9, "0"))
    return found if 0 <= found < 1 << 63 else 0


_TIME = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)[T ](?P<clock>\d\d:\d\d:\d\d)"
    r"(?:\.(?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:\d\d)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC) - _EPOCH


def _usage(count: int, active: int, size: int, reclaimable: int) -> dict[str, int]:
    return {"count": count, "active": active, "bytes": size, "reclaimable": reclaimable}


def _count(sizes: Sequence[tuple[int, bool]]) -> dict[str, int]:
    """Sum up things that each have a size and are in use or not."""
    free = sum(size for size, is_used in sizes if not is_used)
    return _usage(len(sizes), sum(is_used for _, is_used in sizes), sum(size for size, _ in sizes), free)


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    # A lone surrogate is good JSON and no good text.
    return value if value.isascii() else value.encode(errors="replace").decode()


def _number(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:18])
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else 0


def _map(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _texts(value: object) -> dict[str, str]:
    return {_text(key): _text(one if isinstance(one, str) else str(one)) for key, one in _map(value).items()}


def _health_in(status: str) -> Health:
    """The health in a text like `Up 2 minutes (health: starting)`."""
    if "(healthy)" in status:
        return "healthy"
    if "(unhealthy)" in status:
        return "unhealthy"
    return "starting" if "(health: starting)" in status or "(starting)" in status else ""


def _health(health: Mapping[str, Any]) -> Health:
    status = _text(health.get("Status")).lower()
    return cast(Health, status) if status in ("starting", "healthy", "unhealthy") else ""


def _state(state: Mapping[str, Any]) -> State:
    status = _text(state.get("Status")).lower()
    if status in STATES:
        return cast(State, status)
    # Podman's words, and engines without the field.
    if status in ("configured", "initialized"):
        return "created"
    return "running" if state.get("Running") is True else "exited"


def _exit_code(state: Mapping[str, Any]) -> int:
    code = state.get("ExitCode")
    return code if isinstance(code, int) and abs(code) < 1 << 31 else 0


def _address(network: Mapping[str, Any]) -> str:
    return _text(network.get("IPAddress")) or _text(network.get("GlobalIPv6Address"))


def _command(words: Sequence[str]) -> str:
    line = shlex.join(word[:MAX_COMMAND] for word in words[:MAX_COMMAND] if word or len(words) > 1)
    return "".join(one if one.isprintable() else " " for one in line[:MAX_COMMAND])


def _labels(labels: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """As many labels as fit, the important ones first, and how many do not."""
    sizes = {name: len(name.encode()) + len(value.encode()) for name, value in labels.items()}
    if sum(sizes.values()) <= MAX_LABEL_BYTES:
        return dict(labels), 0
    kept, room = {}, MAX_LABEL_BYTES
    for name in sorted(labels, key=lambda name: (not name.startswith(OUR_LABELS[0]), not name.startswith(OUR_LABELS))):
        if sizes[name] <= room:
            kept[name] = labels[name]
            room -= sizes[name]
    return kept, len(labels) - len(kept)


def _endpoints(
    settings: Mapping[str, Any], config: Mapping[str, Any], networks: Mapping[str, str], mode: str
) -> tuple[Endpoint, ...]:
    network = _main_network(networks, mode)
    ports = _map(settings.get("Ports"))
    found = set()
    for name in {**_map(config.get("ExposedPorts")), **ports}:
        number, _, protocol = _text(name).partition("/")
        port = _number(number)
        if not 0 < port < 1 << 16 or protocol not in ("tcp", "udp", "sctp", ""):
            continue
        for host_ip, host_port in _published(ports.get(name)):
            found.add(
                Endpoint(
                    protocol=cast(Any, protocol or "tcp"),
                    ip=networks.get(network, ""),
                    port=port,
                    network=network,
                    host_ip=host_ip,
                    host_port=host_port,
                )
            )
            if len(found) == MAX_ENDPOINTS:
                return _sorted(found)
    return _sorted(found)


def _sorted(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    return tuple(sorted(endpoints, key=lambda one: (one.port, one.protocol, one.host_port, one.host_ip)))


def _published(bindings: object) -> Iterator[tuple[str, int]]:
    """The node's addresses and ports of one port of a container; one without either when it is only exposed."""
    given = [_map(one) for one in _list(bindings)]
    published = [(_text(one.get("HostIp")) or "0.0.0.0", _number(one.get("HostPort"))) for one in given]  # noqa: S104
    yield from [one for one in published if one[1]] or [("", 0)]


def _main_network(networks: Mapping[str, str], mode: str) -> str:
    """The network whose address a container of several is known by: that which it was made in."""
    name = {"default": "bridge"}.get(mode, mode)
    if name in networks:
        return name
    return min((one for one in networks if networks[one]), default=min(networks, default=""))


def _is_id(given: str, image_id: str, tags: Sequence[str]) -> bool:
    """Whether `given` is the image's id or the beginning of it, and no name that looks so."""
    digits = given.removeprefix("sha256:")
    return bool(digits) and image_id.removeprefix("sha256:").startswith(digits) and f"{given}:latest" not in tags


def _restart_policy(policy: Mapping[str, Any]) -> str:
    name, count = _text(policy.get("Name")), _number(policy.get("MaximumRetryCount"))
    return f"{name}:{count}" if name == "on-failure" and count else name or "no"


def _signal(value: object) -> int:
    name = _text(value).upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        return _number(name) if 0 < _number(name) < 65 else signal.SIGTERM.value
    base, plus, offset = name.partition("+")
    found = signal.Signals.__members__.get(f"SIG{base}", signal.SIGTERM)
    return found.value + (min(_number(offset), 30) if plus else 0)


def _stop_timeout(value: object) -> int:
    return 10 if not isinstance(value, int) or value < 0 else _number(value)


def _cpus(host: Mapping[str, Any]) -> float:
    if nano := _number(host.get("NanoCpus")):
        return nano / 1e9
    quota, period = _number(host.get("CpuQuota")), _number(host.get("CpuPeriod")) or 100_000
    return quota / period
