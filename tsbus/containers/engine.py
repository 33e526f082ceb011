"""Engine: talks to a Docker engine, or to Podman as far as it speaks Docker's language. The edge; no policy here.

Blocking, for threads: any number of them may use one Engine. api.py makes the calls, facts.py makes values of the
answers, imagenames.py remembers some.
"""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from tsbus.containers.api import PATIENCE_S, Api, Auth, as_object, check_name
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
from tsbus.containers.imagenames import ImageNames
from tsbus.containers.streams import EventStream, Exec, Output, Pull
from tsbus.containers.trouble import EngineError, ErrorKind
from tsbus.containers.wire import TlsFiles, knock
from tsbus.records import Container, EngineFacts

__all__ = ["Auth", "Engine", "EngineError", "ErrorKind", "EventStream", "Exec", "Output", "Pull", "TlsFiles"]

TURN_TRIES: Final = 8
TURN_PAUSE_S: Final = (0.2, 1.0)
"""An engine counts or clears its disk for one at a time: who comes meanwhile tries so often, so far apart by chance."""

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

Rows = list[dict[str, Any]]


class Engine:
    """One engine. Every method raises EngineError. Whatever is called first connects."""

    def __init__(self, host: str = "", tls: TlsFiles | None = None, timeout_s: float = 10, only: str = "") -> None:
        """`host` is `unix:///path` or `tcp://host:port`; empty: what DOCKER_HOST says, else /var/run/docker.sock.

        `tls`: else what DOCKER_TLS_VERIFY and DOCKER_CERT_PATH say. `timeout_s`: how long a call that only asks may
        take, and each start of a stream. `only`: a label, `key=value`; there are no containers here but those with it.
        """
        self._api = Api(host, tls, timeout_s)
        self._images = ImageNames(self._api)
        self._only = only

    def __str__(self) -> str:
        return str(self._api.address)

    @property
    def is_local(self) -> bool:
        """Whether the engine is on this machine for certain, so that its processes and files are this kernel's."""
        return bool(self._api.address.path)

    @property
    def is_listening(self) -> bool:
        """Whether somebody listens at the socket, which takes microseconds to see; of TCP only an attempt tells."""
        try:
            if self._api.address.path:
                knock(self._api.address, timeout_s=0)
        except OSError:
            return False
        return True

    def connect(self) -> EngineFacts:
        """Connect anew, agree on a version of the API, and return what the engine is; `node` is empty."""
        version = self._api.connect()
        self._images.forget()
        return facts_of(version, self._api.quick(lambda docker: docker.info()))

    def ping(self) -> None:
        """Return when the engine has answered."""
        self._api.quick(lambda docker: docker.ping())

    def close(self) -> None:
        """Let go of the idle connections. Streams go on; a later call connects again."""
        self._api.close()
        self._images.forget()

    # Containers.

    def events(self, since_ns: int | None = None) -> EventStream:
        """Return the engine's events from `since_ns` on (Unix ns), of which it keeps the last 256, else from now on."""
        since = {} if since_ns is None else {"since": _seconds(since_ns)}
        return EventStream(self._api.stream("GET", "/events", {"filters": json.dumps(WATCHED), **since}), self._take)

    def list(self) -> Sequence[Summary]:
        """Return all containers, those that do not run included."""
        filters = {"label": self._only} if self._only else None
        return [summary_of(one) for one in self._api.quick(lambda docker: docker.containers(all=True, filters=filters))]

    def inspect(self, container: str) -> Container:
        """Return all that the engine knows of a container."""
        raw = self.inspect_raw(container)
        return container_of(raw, self._images.of(raw.get("Image")))

    def inspect_raw(self, container: str) -> dict[str, Any]:
        """Return the engine's own inspection of a container."""
        check_name(container)
        raw = as_object(self._api.ask(f"/containers/{container}/json"))
        if not self._is_ours((raw.get("Config") or {}).get("Labels") or {}):
            raise EngineError(ErrorKind.NOT_FOUND, f"No such container: {container}")
        return raw

    def create(self, name: str | None, spec: Mapping[str, Any]) -> str:
        """Make a container and return its id. `spec` is the API's: Config with HostConfig and NetworkingConfig."""
        labels = dict(spec.get("Labels") or {}) | dict([self._only.split("=", 1)] if self._only else [])
        told = {**spec, "Labels": labels}
        return str(self._api.patient(lambda docker: docker.create_container_from_config(told, name))["Id"])

    def start(self, container: str) -> None:
        """Start a container; nothing happens when it runs."""
        check_name(container)
        self._api.patient(lambda docker: docker.start(container))

    def stop(self, container: str, timeout_s: float | None = None) -> None:
        """Stop a container: its signal, after `timeout_s` (None: as it was made) SIGKILL. Returns when it has ended."""
        seconds = self._stop_seconds(container, timeout_s)
        self._api.patient(lambda docker: docker.stop(container, seconds))

    def restart(self, container: str, timeout_s: float | None = None) -> None:
        """Stop a container as `stop` does and start it."""
        seconds = self._stop_seconds(container, timeout_s)
        self._api.patient(lambda docker: docker.restart(container, seconds))

    def pause(self, container: str) -> None:
        """Let the processes of a container stand still."""
        check_name(container)
        self._api.patient(lambda docker: docker.pause(container))

    def unpause(self, container: str) -> None:
        """Let them go on."""
        check_name(container)
        self._api.patient(lambda docker: docker.unpause(container))

    def kill(self, container: str, signal: str = "KILL") -> None:
        """Send a signal to the first process of a container."""
        check_name(container)
        self._api.patient(lambda docker: docker.kill(container, signal))

    def rm(self, container: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container, with `force` one that runs, with `volumes` its nameless volumes as well."""
        check_name(container)
        self._api.patient(lambda docker: docker.remove_container(container, v=volumes, force=force))

    def rename(self, container: str, name: str) -> None:
        """Give a container another name."""
        check_name(container)
        self._api.patient(lambda docker: docker.rename(container, name))

    def top(self, container: str, ps_args: str | None = None) -> dict[str, Any]:
        """Return `{"Titles": [...], "Processes": [[...], ...]}` of a running container."""
        check_name(container)
        return as_object(self._api.quick(lambda docker: docker.top(container, ps_args)))

    def stats_once(self, container: str) -> dict[str, Any]:
        """Return one raw reading of the engine's counters; engines before Docker 23 take a second for it."""
        check_name(container)
        one_shot = True if self._api.version >= (1, 41) else None
        return as_object(self._api.quick(lambda docker: docker.stats(container, stream=False, one_shot=one_shot)))

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
        return Output(self._api.stream("GET", f"/containers/{container}/logs", query), is_raw, self._api.explain)

    def attach(self, container: str) -> Output:
        """Return what a container writes from now on: attached before its start, all of it."""
        is_raw = self._has_terminal(container)
        query = {"stream": 1, "stdout": 1, "stderr": 1}
        return Output(
            self._api.stream("POST", f"/containers/{container}/attach", query, hijack=True), is_raw, self._api.explain
        )

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
        check_name(container)
        made = self._api.patient(
            lambda docker: docker.exec_create(
                container, list(argv), stdin=stdin, tty=tty, privileged=privileged, user=user,
                environment=dict(env or {}), workdir=cwd or None,
            )
        )  # fmt: skip
        exec_id = str(made["Id"])
        body = json.dumps({"Detach": False, "Tty": tty}).encode()
        wire = self._api.stream("POST", f"/exec/{exec_id}/start", hijack=True, body=body)
        program = Exec(exec_id, wire, tty, self._api.explain, lambda: self._exit_code(exec_id))
        if size and tty:
            with suppress(EngineError):  # it may be over already
                self.resize(exec_id, *size)
        return program

    def exec_pid(self, exec_id: str) -> int:
        """Return the process on the engine's machine of a program that `exec` started, 0 if it does not run."""
        said = as_object(self._api.quick(lambda docker: docker.exec_inspect(exec_id)))
        return int(said.get("Pid") or 0) if said.get("Running") else 0

    def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Set the size of the terminal of a program that `exec` started."""
        check_name(exec_id)
        self._api.quick(lambda docker: docker.exec_resize(exec_id, rows, columns))

    # Images and the engine itself.

    def images(self, all: bool = False) -> Rows:  # noqa: A002
        """Return the images, with `all` the nameless steps of builds too; each as `images.ls` of docs/containers.md."""
        lines = self._api.quick(lambda docker: docker.images(all=all))
        used = Counter(one.get("ImageID") for one in self._api.quick(lambda docker: docker.containers(all=True)))
        return [image_line(one, used[one.get("Id")]) for one in lines]

    def pull(self, image: str, auth: Auth | None = None) -> Pull:
        """Fetch an image; iterate for the steps to its end. Without `auth`, this user's `docker login` is used."""
        check_name(image)
        repo, tag, digest = parse_name(image)
        header = self._api.login(repo, auth)
        query = {"fromImage": repo, "tag": digest or tag}
        # The engine says nothing until the registry has answered, and somebody may want to end that wait.
        wire = self._api.send("POST", "/images/create", query, headers=header)
        return Pull(wire, self._api.explain, PATIENCE_S)

    def import_image(self, name: str, archive: bytes) -> None:
        """Make an image of the files in a tar archive."""
        check_name(name)
        repo, tag, _ = parse_name(name)
        self._api.patient(lambda docker: docker.import_image_from_data(archive, repo, tag))
        self.image_id(name)  # docker-py keeps what goes wrong to itself

    def tag(self, image: str, name: str) -> None:
        """Give an image one more name."""
        check_name(image)
        check_name(name)
        repo, tag, _ = parse_name(name)
        self._api.patient(lambda docker: docker.tag(image, repo, tag))
        self._images.forget()

    def image_id(self, image: str) -> str:
        """Return the id of an image."""
        check_name(image)
        return str(as_object(self._api.quick(lambda docker: docker.inspect_image(image))).get("Id", ""))

    def volume(self, name: str) -> dict[str, Any]:
        """Return the engine's own inspection of a volume."""
        check_name(name)
        return as_object(self._api.quick(lambda docker: docker.inspect_volume(name)))

    def rm_image(self, name: str, force: bool = False) -> dict[str, Any]:
        """Take a name from an image, and remove it with its last name. Returns `{removed: [ID], untagged: [NAME]}`."""
        check_name(name)
        return _removed(self._api.patient(lambda docker: docker.remove_image(name, force=force)))

    def prune_images(self, all: bool = False) -> dict[str, Any]:  # noqa: A002
        """Remove images without a name, with `all` those without a container. Returns `{removed, freed_bytes}`."""
        which = {"dangling": not all}
        done = as_object(self._in_turn(lambda: self._api.patient(lambda docker: docker.prune_images(which))))
        removed = _removed(done.get("ImagesDeleted") or [])["removed"]
        return {"removed": removed, "freed_bytes": int(done.get("SpaceReclaimed") or 0)}

    def info(self) -> dict[str, Any]:
        """Return `docker.info` of docs/containers.md; `engine` is an EngineFacts whose `node` is empty."""
        version = self._api.quick(lambda docker: docker.version())
        info = as_object(self._api.quick(lambda docker: docker.info()))
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
        return usage_of(as_object(self._in_turn(lambda: self._api.patient(lambda docker: docker.df()))))

    # How it is done.

    @staticmethod
    def _in_turn(call: Callable[[], Any]) -> Any:
        """Make a call that an engine answers to one at a time."""
        tries = TURN_TRIES
        while True:
            try:
                return call()
            except EngineError as error:
                if "operation is already running" not in str(error):
                    raise
                tries -= 1
                if not tries:
                    raise EngineError(error.kind, f"{error}, for somebody else: try again when it is over") from error
            time.sleep(random.uniform(*TURN_PAUSE_S))  # noqa: S311 - spreads those who came together

    def _stop_seconds(self, container: str, timeout_s: float | None) -> int:
        """How long the engine waits before SIGKILL: it must be known, because that long an answer may take."""
        if timeout_s is None:
            return self.inspect(container).stop_timeout_s
        check_name(container)
        return math.ceil(timeout_s)

    def _is_ours(self, labels: Mapping[str, Any]) -> bool:
        key, _, value = self._only.partition("=")
        return not key or labels.get(key) == value

    def _take(self, event: EngineEvent) -> bool:
        """Note what an event says about images; tell whether it is for those who follow us."""
        if event.kind == "image":
            self._images.forget()
        # The engine's own filter would keep back the events of images and networks, which do not have the label.
        return event.kind != "container" or self._is_ours(event.attributes)

    def _has_terminal(self, container: str) -> bool:
        """Whether a container has a terminal, so that its output is one stream of bare bytes."""
        return bool(self.inspect_raw(container)["Config"]["Tty"])

    def _exit_code(self, exec_id: str) -> int | None:
        """The exit code of a program that `exec` started, None while it runs."""
        said = self._api.quick(lambda docker: docker.exec_inspect(exec_id))
        return None if said["Running"] else int(said["ExitCode"] or 0)


def _seconds(time_ns: int) -> str:
    return f"{time_ns // 10**9}.{time_ns % 10**9:09d}"


def _removed(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the engine says that it took away."""
    return {
        "removed": [str(one["Deleted"]) for one in said if "Deleted" in one],
        "untagged": [str(one["Untagged"]) for one in said if "Untagged" in one],
    }
