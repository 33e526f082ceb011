"""Engine: talks to a Docker engine, or to Podman as far as it speaks Docker's language. The edge; no policy here.

Blocking, for threads: any number of them may use one Engine. Short calls go through docker-py and its pool of
connections; what streams, and an inspection, has a connection of its own (wire.py). facts.py makes values of the
answers.
"""

import base64
import json
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from tsbus.containers.facts import (
    EngineEvent,
    Summary,
    container_of,
    facts_of,
    image_line,
    parse_name,
    summary_of,
    usage_of,
)
from tsbus.containers.streams import EventStream, Exec, Output, Pull
from tsbus.containers.trouble import EngineError, ErrorKind, explain, no_docker
from tsbus.containers.wire import TlsFiles, Wire, address_of, knock
from tsbus.records import Container, EngineFacts

if TYPE_CHECKING:
    from docker import APIClient

__all__ = ["Auth", "Engine", "EngineError", "ErrorKind", "EventStream", "Exec", "Output", "Pull", "TlsFiles"]

OLDEST_API: Final = (1, 40)
"""Of Docker 19.03: the oldest that all of this was tried with. Podman says 1.40 from its version 3 on."""
PATIENCE_S: Final = 300.0
"""For calls that change something or count bytes on the disk: the engine goes on with them, whoever stops waiting."""
COUNT_TRIES: Final = 8
COUNT_PAUSE_S: Final = (0.2, 1.0)
"""An engine counts its disk for one at a time: who comes meanwhile tries so often, so far apart by chance."""
MAX_CALLS: Final = 64
"""Connections that are kept for calls at the same time; more calls are made, each with a connection for itself."""
MAX_IMAGES: Final = 512
"""Images whose names are remembered."""

WATCHED: Final = {
    "type": ["container", "image", "network"],
    "event": [
        *("create", "start", "die", "kill", "oom", "pause", "unpause", "rename", "update", "destroy"),
        # Alone it makes the engine compare beginnings, so that `health_status: healthy` fits.
        "health_status",
        *("pull", "load", "import", "tag", "untag", "delete", "push", "save"),
        *("connect", "disconnect"),
        # Podman's.
        *("died", "remove"),
    ],
}
"""The events to ask for. Without it the three events of each run of each health check come as well."""

_REFUSALS: Final = frozenset({ErrorKind.NOT_FOUND, ErrorKind.INVALID, ErrorKind.CONFLICT, ErrorKind.FAILED})
_NAME = re.compile(r"[\w][\w./:@-]*", re.ASCII)
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Auth:
    """Who we are for a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Session:
    """What a successful `connect` found."""

    version: str
    """Of the API, agreed with the engine."""
    quick: "APIClient"
    patient: "APIClient"

    def close(self) -> None:
        self.quick.close()
        self.patient.close()


class Engine:
    """One engine. Every method raises EngineError. Whatever is called first connects."""

    def __init__(self, host: str = "", tls: TlsFiles | None = None, timeout_s: float = 10, only: str = "") -> None:
        """`host` is `unix:///path` or `tcp://host:port`; empty: what DOCKER_HOST says, else /var/run/docker.sock.

        `tls`: else what DOCKER_TLS_VERIFY and DOCKER_CERT_PATH say. `timeout_s`: how long a call that only asks may
        take, and each start of a stream. `only`: a label, `key=value`; there are no containers here but those with it.
        """
        try:
            self._address = address_of(host, tls, os.environ)
        except ValueError as error:
            raise EngineError(ErrorKind.INVALID, str(error)) from error
        self._timeout_s = timeout_s
        self._only = only
        self._lock = threading.Lock()
        self._opened: _Session | None = None
        self._images: dict[str, dict[str, Any]] = {}

    def __str__(self) -> str:
        return str(self._address)

    @property
    def is_local(self) -> bool:
        """Whether the engine is on this machine for certain, so that its processes and files are this kernel's."""
        return bool(self._address.path)

    @property
    def is_listening(self) -> bool:
        """Whether somebody listens at the socket, which takes microseconds to see; of TCP only an attempt tells."""
        try:
            if self._address.path:
                knock(self._address, timeout_s=0)
        except OSError:
            return False
        return True

    def connect(self) -> EngineFacts:
        """Connect anew, agree on a version of the API, and return what the engine is; `node` is empty."""
        with self._lock:
            self._close()
            self._opened, version = self._open()
        return facts_of(version, self._quick(lambda docker: docker.info()))

    def ping(self) -> None:
        """Return when the engine has answered."""
        self._quick(lambda docker: docker.ping())

    def close(self) -> None:
        """Let go of the idle connections. Streams go on; a later call connects again."""
        with self._lock:
            self._close()

    # Containers.

    def events(self, since_ns: int | None = None) -> EventStream:
        """Return the engine's events from `since_ns` on (Unix ns), of which it keeps the last 256, else from now on."""
        since = {} if since_ns is None else {"since": _seconds(since_ns)}
        return EventStream(self._wire("GET", "/events", {"filters": json.dumps(WATCHED), **since}), self._take)

    def list(self) -> Sequence[Summary]:
        """Return all containers, those that do not run included."""
        filters = {"label": self._only} if self._only else None
        return [summary_of(one) for one in self._quick(lambda docker: docker.containers(all=True, filters=filters))]

    def inspect(self, container: str) -> Container:
        """Return all that the engine knows of a container."""
        raw = self.inspect_raw(container)
        return container_of(raw, self._image(raw.get("Image")))

    def inspect_raw(self, container: str) -> dict[str, Any]:
        """Return the engine's own inspection of a container."""
        _check(container)
        raw = _object(self._asked(f"/containers/{container}/json"))
        if not self._is_ours((raw.get("Config") or {}).get("Labels") or {}):
            raise EngineError(ErrorKind.NOT_FOUND, f"No such container: {container}")
        return raw

    def create(self, name: str | None, spec: Mapping[str, Any]) -> str:
        """Make a container and return its id. `spec` is the API's: Config with HostConfig and NetworkingConfig."""
        labels = dict(spec.get("Labels") or {}) | dict([self._only.split("=", 1)] if self._only else [])
        told = {**spec, "Labels": labels}
        return str(self._patient(lambda docker: docker.create_container_from_config(told, name))["Id"])

    def start(self, container: str) -> None:
        """Start a container; nothing happens when it runs."""
        _check(container)
        self._patient(lambda docker: docker.start(container))

    def stop(self, container: str, timeout_s: float | None = None) -> None:
        """Stop a container: its signal, after `timeout_s` (None: as it was made) SIGKILL. Returns when it has ended."""
        seconds = self._stop_seconds(container, timeout_s)
        self._patient(lambda docker: docker.stop(container, seconds))

    def restart(self, container: str, timeout_s: float | None = None) -> None:
        """Stop a container as `stop` does and start it."""
        seconds = self._stop_seconds(container, timeout_s)
        self._patient(lambda docker: docker.restart(container, seconds))

    def pause(self, container: str) -> None:
        """Let the processes of a container stand still."""
        _check(container)
        self._patient(lambda docker: docker.pause(container))

    def unpause(self, container: str) -> None:
        """Let them go on."""
        _check(container)
        self._patient(lambda docker: docker.unpause(container))

    def kill(self, container: str, signal: str = "KILL") -> None:
        """Send a signal to the first process of a container."""
        _check(container)
        self._patient(lambda docker: docker.kill(container, signal))

    def rm(self, container: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container, with `force` one that runs, with `volumes` its nameless volumes as well."""
        _check(container)
        self._patient(lambda docker: docker.remove_container(container, v=volumes, force=force))

    def rename(self, container: str, name: str) -> None:
        """Give a container another name."""
        _check(container)
        self._patient(lambda docker: docker.rename(container, name))

    def top(self, container: str, ps_args: str | None = None) -> dict[str, Any]:
        """Return `{"Titles": [...], "Processes": [[...], ...]}` of a running container."""
        _check(container)
        return _object(self._quick(lambda docker: docker.top(container, ps_args)))

    def stats_once(self, container: str) -> dict[str, Any]:
        """Return one raw reading of the engine's counters; engines before Docker 23 take a second for it."""
        _check(container)
        one_shot = True if _version(self._session().version) >= (1, 41) else None
        return _object(self._quick(lambda docker: docker.stats(container, stream=False, one_shot=one_shot)))

    # Output and input.

    def logs(
        self,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
        timestamps: bool = False,
    ) -> Output:
        """Return what a container has written: the last `tail` lines, between `since` and `until` (Unix seconds).

        With `follow` also what it will write, to its end.
        """
        query: dict[str, Any] = {"stdout": 1, "stderr": 1, "follow": int(follow), "timestamps": int(timestamps)}
        query["tail"] = "all" if tail is None else tail
        query |= {name: f"{at:.9f}" for name, at in (("since", since), ("until", until)) if at is not None}
        is_raw = self._has_terminal(container)
        return Output(self._wire("GET", f"/containers/{container}/logs", query), is_raw, self._explain)

    def attach(self, container: str) -> Output:
        """Return what a container writes from now on: attached before its start, all of it."""
        is_raw = self._has_terminal(container)
        query = {"stream": 1, "stdout": 1, "stderr": 1}
        return Output(self._wire("POST", f"/containers/{container}/attach", query, hijack=True), is_raw, self._explain)

    def exec(
        self,
        container: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
        stdin: bool = False,
        tty: bool = False,
        privileged: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Exec:
        """Start a program in a running container. `size` is that of its terminal: rows, columns.

        The engine has no way to end such a program: it goes on after `close`, unless it minds the end of its input.
        """
        _check(container)
        made = self._patient(
            lambda docker: docker.exec_create(
                container, list(argv), stdin=stdin, tty=tty, privileged=privileged, user=user,
                environment=dict(env or {}), workdir=cwd or None,
            )
        )  # fmt: skip
        exec_id = str(made["Id"])
        body = json.dumps({"Detach": False, "Tty": tty}).encode()
        wire = self._wire("POST", f"/exec/{exec_id}/start", hijack=True, body=body)
        program = Exec(exec_id, wire, tty, self._explain, lambda: self._exit_code(exec_id))
        if size and tty:
            self.resize(exec_id, *size)
        return program

    def exec_pid(self, exec_id: str) -> int:
        """Return the process on the engine's machine of a program that `exec` started, 0 if it does not run."""
        said = _object(self._quick(lambda docker: docker.exec_inspect(exec_id)))
        return int(said.get("Pid") or 0) if said.get("Running") else 0

    def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Set the size of the terminal of a program that `exec` started."""
        _check(exec_id)
        self._quick(lambda docker: docker.exec_resize(exec_id, rows, columns))

    # Images and the engine itself.

    def images(self, all: bool = False) -> Rows:  # noqa: A002
        """Return the images, with `all` the nameless steps of builds too; each as `images.ls` of docs/containers.md."""
        lines = self._quick(lambda docker: docker.images(all=all))
        used = Counter(one.get("ImageID") for one in self._quick(lambda docker: docker.containers(all=True)))
        return [image_line(one, used[one.get("Id")]) for one in lines]

    def pull(self, image: str, auth: Auth | None = None) -> Pull:
        """Fetch an image; iterate for the steps to its end. Without `auth`, this user's `docker login` is used."""
        _check(image)
        repo, tag, digest = parse_name(image)
        header = self._auth_header(repo, auth)
        query = {"fromImage": repo, "tag": digest or tag}
        # The engine says nothing until the registry has answered, and somebody may want to end that wait.
        wire = self._send("POST", "/images/create", query, headers=header)
        return Pull(wire, self._explain, PATIENCE_S)

    def import_image(self, name: str, archive: bytes) -> None:
        """Make an image of the files in a tar archive."""
        _check(name)
        repo, tag, _ = parse_name(name)
        self._patient(lambda docker: docker.import_image_from_data(archive, repo, tag))
        self.image_id(name)  # docker-py keeps what goes wrong to itself

    def tag(self, image: str, name: str) -> None:
        """Give an image one more name."""
        _check(image)
        _check(name)
        repo, tag, _ = parse_name(name)
        self._patient(lambda docker: docker.tag(image, repo, tag))
        self._forget_images()

    def image_id(self, image: str) -> str:
        """Return the id of an image."""
        _check(image)
        return str(_object(self._quick(lambda docker: docker.inspect_image(image))).get("Id", ""))

    def volume(self, name: str) -> dict[str, Any]:
        """Return the engine's own inspection of a volume."""
        _check(name)
        return _object(self._quick(lambda docker: docker.inspect_volume(name)))

    def rm_image(self, name: str, force: bool = False) -> dict[str, Any]:
        """Take a name from an image, and remove it with its last name. Returns `{removed: [ID], untagged: [NAME]}`."""
        _check(name)
        return _removed(self._patient(lambda docker: docker.remove_image(name, force=force)))

    def prune_images(self, all: bool = False) -> dict[str, Any]:  # noqa: A002
        """Remove images without a name, with `all` those without a container. Returns `{removed, freed_bytes}`."""
        done = _object(self._patient(lambda docker: docker.prune_images({"dangling": not all})))
        removed = _removed(done.get("ImagesDeleted") or [])["removed"]
        return {"removed": removed, "freed_bytes": int(done.get("SpaceReclaimed") or 0)}

    def info(self) -> dict[str, Any]:
        """Return `docker.info` of docs/containers.md; `engine` is an EngineFacts whose `node` is empty."""
        version = self._quick(lambda docker: docker.version())
        info = _object(self._quick(lambda docker: docker.info()))
        ours = self.list() if self._only else []
        return {
            "engine": facts_of(version, info),
            "containers": len(ours) if self._only else info.get("Containers", 0),
            "running": sum(one.state == "running" for one in ours) if self._only else info.get("ContainersRunning", 0),
            "images": info.get("Images", 0),
            "driver": info.get("Driver", ""),
            "warnings": info.get("Warnings") or [],
        }

    def df(self) -> dict[str, dict[str, int]]:
        """Return `docker.df` of docs/containers.md. The engine walks its disk for it: it may take minutes."""
        tries = COUNT_TRIES
        while True:
            try:
                return usage_of(_object(self._patient(lambda docker: docker.df())))
            except EngineError as error:
                if "disk usage operation is already running" not in str(error):
                    raise
                tries -= 1
                if not tries:
                    raise EngineError(error.kind, f"{error}, for somebody else: try again when it is over") from error
            time.sleep(random.uniform(*COUNT_PAUSE_S))  # noqa: S311 - spreads those who came together

    # How it is done.

    def _session(self) -> _Session:
        with self._lock:
            if self._opened is None:
                self._opened, _ = self._open()
            return self._opened

    def _open(self) -> tuple[_Session, dict[str, Any]]:
        self._check_certificates()
        try:
            # Machines without an engine are spared the time and memory that docker-py takes.
            if self._address.path:
                knock(self._address, self._timeout_s)
        except OSError as error:
            raise self._explain(error) from error
        probe = self._client(_dotted(OLDEST_API), self._timeout_s)
        try:
            said = probe.version(api_version=False)
        except Exception as error:
            found = self._explain(error)
            # Every engine answers this question, so whoever refuses it is none.
            raise (no_docker(self._address) if found.kind in _REFUSALS else found) from error
        finally:
            probe.close()
        if not isinstance(said, dict) or not _version(said.get("ApiVersion")):
            raise no_docker(self._address)
        version = self._agree(said)
        return _Session(version, self._client(version, self._timeout_s), self._client(version, PATIENCE_S)), said

    def _check_certificates(self) -> None:
        tls = self._address.tls
        for path in (tls.ca, tls.cert, tls.key) if tls else ():
            try:
                if path:
                    Path(path).open("rb").close()
            except OSError as error:
                text = f"the certificate or key {path} cannot be read: {error.strerror}"
                raise EngineError(ErrorKind.DENIED, text) from error

    def _agree(self, said: Mapping[str, Any]) -> str:
        """The newest version of the API that both sides know."""
        from docker.constants import DEFAULT_DOCKER_API_VERSION

        newest, oldest = _version(said["ApiVersion"]), _version(said.get("MinAPIVersion"))
        if newest < OLDEST_API:
            what = f"Docker {said.get('Version')} (API {said['ApiVersion']})"
            raise EngineError(
                ErrorKind.TOO_OLD,
                f"the engine at {self} is {what}: 19.03 (API {_dotted(OLDEST_API)}) or newer is needed",
            )
        return _dotted(max(oldest, min(newest, _version(DEFAULT_DOCKER_API_VERSION))))

    def _client(self, version: str, timeout_s: float) -> "APIClient":
        import docker  # 0.3 s, which a command line that never asks an engine should not wait

        tls = self._address.tls
        try:
            client = docker.APIClient(
                self._address.url,
                version=version,
                timeout=timeout_s,
                max_pool_size=MAX_CALLS,
                tls=docker.tls.TLSConfig((tls.cert, tls.key) if tls.cert else None, tls.ca or None, verify=True)
                if tls
                else False,
            )
        except Exception as error:
            raise self._explain(error) from error
        # Proxies and .netrc are for the web; looking for them at each call takes an eighth of its time.
        client.trust_env = False
        if not self._address.path:
            client.get_adapter(client.base_url).init_poolmanager(1, MAX_CALLS)
        return client

    def _close(self) -> None:
        if self._opened:
            self._opened.close()
        self._opened = None
        self._images = {}

    def _quick(self, call: "Callable[[APIClient], Any]") -> Any:
        return self._call(self._session().quick, call, self._timeout_s)

    def _patient(self, call: "Callable[[APIClient], Any]") -> Any:
        return self._call(self._session().patient, call, PATIENCE_S)

    def _call(self, client: "APIClient", call: "Callable[[APIClient], Any]", timeout_s: float) -> Any:
        try:
            return call(client)
        except Exception as error:  # docker-py lets the errors of four libraries through
            raise explain(error, self._address, timeout_s) from error

    def _asked(self, path: str) -> Any:
        """The answer to a question that events wait for; docker-py takes a millisecond more for it."""
        wire = self._send("GET", path)
        try:
            return json.loads(wire.whole(self._timeout_s))
        except Exception as error:
            raise self._explain(error) from error
        finally:
            wire.close()

    def _wire(self, *request: Any, **more: Any) -> Wire:
        """A stream from the engine, as `_send`, that has begun."""
        wire = self._send(*request, **more)
        try:
            wire.begin(self._timeout_s)
        except Exception as error:
            wire.close()
            raise self._explain(error) from error
        return wire

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        hijack: bool = False,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Wire:
        """Ask the engine for a stream; with `hijack` for one that can be written too."""
        way = {"Connection": "Upgrade", "Upgrade": "tcp"} if hijack else {"Connection": "close"}
        request = f"{method} /v{self._session().version}{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        fields = {**way, "Content-Type": "application/json", **(headers or {})}
        try:
            return Wire(self._address, request, timeout_s=self._timeout_s, headers=fields, body=body)
        except Exception as error:
            raise self._explain(error) from error

    def _stop_seconds(self, container: str, timeout_s: float | None) -> int:
        """How long the engine waits before SIGKILL: it must be known, because that long an answer may take."""
        if timeout_s is None:
            return self.inspect(container).stop_timeout_s
        _check(container)
        return math.ceil(timeout_s)

    def _is_ours(self, labels: Mapping[str, Any]) -> bool:
        key, _, value = self._only.partition("=")
        return not key or labels.get(key) == value

    def _take(self, event: EngineEvent) -> bool:
        """Note what an event says about images; tell whether it is for those who follow us."""
        if event.kind == "image":
            self._forget_images()
        # The engine's own filter would keep back the events of images and networks, which do not have the label.
        return event.kind != "container" or self._is_ours(event.attributes)

    def _has_terminal(self, container: str) -> bool:
        """Whether a container has a terminal, so that its output is one stream of bare bytes."""
        return bool(self.inspect_raw(container)["Config"]["Tty"])

    def _exit_code(self, exec_id: str) -> int | None:
        """The exit code of a program that `exec` started, None while it runs."""
        said = self._quick(lambda docker: docker.exec_inspect(exec_id))
        return None if said["Running"] else int(said["ExitCode"] or 0)

    def _image(self, image_id: object) -> Mapping[str, Any] | None:
        """The names of an image as its inspection says them, remembered until an event says that one has changed."""
        if not isinstance(image_id, str) or not _NAME.fullmatch(image_id):
            return None
        with self._lock:
            images = self._images
            names = images.get(image_id)
        if names is None:
            try:
                said = self._quick(lambda docker: docker.inspect_image(image_id))
            except EngineError as error:
                if error.kind is not ErrorKind.NOT_FOUND:  # removed by force: its containers stay
                    raise
                said = {}
            names = {key: _object(said).get(key) for key in ("RepoTags", "RepoDigests")}
            with self._lock:
                # What was forgotten meanwhile is another dict now.
                images[image_id] = names
                while len(images) > MAX_IMAGES:
                    del images[next(iter(images))]
        return names

    def _forget_images(self) -> None:
        with self._lock:
            self._images = {}

    def _explain(self, error: BaseException) -> EngineError:
        return explain(error, self._address, self._timeout_s)

    def _auth_header(self, repo: str, auth: Auth | None) -> dict[str, str]:
        from docker.auth import get_config_header, resolve_repository_name

        try:
            registry, _ = resolve_repository_name(repo)
            if auth is None:
                client = self._session().patient
                client.reload_config()  # somebody may have logged in since
                header = get_config_header(client, registry)
                return {"X-Registry-Auth": header.decode()} if header else {}
        except Exception as error:
            raise EngineError(ErrorKind.INVALID, f"no login for {repo}: {error}") from error
        said = {"username": auth.username, "password": auth.password, "serveraddress": registry}
        return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(said).encode()).decode()}


def _check(name: str) -> None:
    """Make sure that a name is one, and no way to something else of the engine's API."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise EngineError(ErrorKind.INVALID, f"{name[:80]!r} is no name or id of a container or image")


def _object(said: Any) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise EngineError(ErrorKind.FAILED, "the engine's answer cannot be understood")
    return said


def _seconds(time_ns: int) -> str:
    return f"{time_ns // 10**9}.{time_ns % 10**9:09d}"


def _version(text: object) -> tuple[int, ...]:
    """`1.41` as numbers that can be compared; none if it is something else."""
    parts = text.split(".") if isinstance(text, str) else []
    return tuple(int(part) for part in parts) if all(part.isascii() and part.isdigit() for part in parts) else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _removed(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the engine says that it took away."""
    return {
        "removed": [str(one["Deleted"]) for one in said if "Deleted" in one],
        "untagged": [str(one["Untagged"]) for one in said if "Untagged" in one],
    }
