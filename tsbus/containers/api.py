"""Api: the API of a Docker engine as it is spoken to: the agreed version, short calls and streams. The edge.

Blocking, for threads: any number of them may use one Api. Short calls go through docker-py and its pool of connections;
what streams, and an inspection, has a connection of its own (wire.py). engine.py knows what can be asked for.
"""

import base64
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from tsbus.containers.trouble import EngineError, ErrorKind, explain, no_docker
from tsbus.containers.wire import TlsFiles, Wire, address_of, knock

if TYPE_CHECKING:
    from docker import APIClient

OLDEST_API: Final = (1, 40)
"""Of Docker 19.03: the oldest that all of this was tried with. Podman says 1.40 from its version 3 on."""
PATIENCE_S: Final = 300.0
"""For calls that change something or count bytes on the disk: the engine goes on with them, whoever stops waiting."""
MAX_CALLS: Final = 64
"""Connections that are kept for calls at the same time; more calls are made, each with a connection for itself."""

_REFUSALS: Final = frozenset({ErrorKind.NOT_FOUND, ErrorKind.INVALID, ErrorKind.CONFLICT, ErrorKind.FAILED})
_NAME = re.compile(r"[\w][\w./:@-]*", re.ASCII)


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


class Api:
    """The API of one engine. Every method raises EngineError. Whatever is called first connects."""

    def __init__(self, host: str, tls: TlsFiles | None, timeout_s: float) -> None:
        """As of Engine."""
        try:
            self.address = address_of(host, tls, os.environ)
        except ValueError as error:
            raise EngineError(ErrorKind.INVALID, str(error)) from error
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._opened: _Session | None = None

    def connect(self) -> dict[str, Any]:
        """Connect anew, agree on a version of the API, and return what the engine says of its own."""
        with self._lock:
            self._close()
            self._opened, said = self._open()
        return said

    def close(self) -> None:
        """Let go of the idle connections. Streams go on; a later call connects again."""
        with self._lock:
            self._close()

    @property
    def version(self) -> tuple[int, ...]:
        """Of the API, agreed with the engine."""
        return _version(self._session().version)

    def quick(self, call: "Callable[[APIClient], Any]") -> Any:
        """Make a call that only asks."""
        return self._call(self._session().quick, call, self.timeout_s)

    def patient(self, call: "Callable[[APIClient], Any]") -> Any:
        """Make a call that changes something, or takes long."""
        return self._call(self._session().patient, call, PATIENCE_S)

    def ask(self, path: str) -> Any:
        """Return the answer to a question that events wait for; docker-py takes a millisecond more for it."""
        wire = self.send("GET", path)
        try:
            return json.loads(wire.whole(self.timeout_s))
        except Exception as error:
            raise self.explain(error) from error
        finally:
            wire.close()

    def stream(self, *request: Any, **more: Any) -> Wire:
        """Return a stream from the engine, as `send`, that has begun."""
        wire = self.send(*request, **more)
        try:
            wire.begin(self.timeout_s)
        except Exception as error:
            wire.close()
            raise self.explain(error) from error
        return wire

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        hijack: bool = False,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Wire:
        """Ask the engine for a stream; with `hijack` for one that can be written too. It may not have begun."""
        way = {"Connection": "Upgrade", "Upgrade": "tcp"} if hijack else {"Connection": "close"}
        request = f"{method} /v{self._session().version}{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        fields = {**way, "Content-Type": "application/json", **(headers or {})}
        try:
            return Wire(self.address, request, timeout_s=self.timeout_s, headers=fields, body=body)
        except Exception as error:
            raise self.explain(error) from error

    def login(self, repo: str, auth: Auth | None) -> dict[str, str]:
        """Return the header that says who we are for a registry. Without `auth`, this user's `docker login` is used."""
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

    def explain(self, error: BaseException) -> EngineError:
        """Return what went wrong, in words for people."""
        return explain(error, self.address, self.timeout_s)

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
            if self.address.path:
                knock(self.address, self.timeout_s)
        except OSError as error:
            raise self.explain(error) from error
        probe = self._client(_dotted(OLDEST_API), self.timeout_s)
        try:
            said = probe.version(api_version=False)
        except Exception as error:
            found = self.explain(error)
            # Every engine answers this question, so whoever refuses it is none.
            raise (no_docker(self.address) if found.kind in _REFUSALS else found) from error
        finally:
            probe.close()
        if not isinstance(said, dict) or not _version(said.get("ApiVersion")):
            raise no_docker(self.address)
        version = self._agree(said)
        return _Session(version, self._client(version, self.timeout_s), self._client(version, PATIENCE_S)), said

    def _check_certificates(self) -> None:
        tls = self.address.tls
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
                f"the engine at {self.address} is {what}: 19.03 (API {_dotted(OLDEST_API)}) or newer is needed",
            )
        return _dotted(max(oldest, min(newest, _version(DEFAULT_DOCKER_API_VERSION))))

    def _client(self, version: str, timeout_s: float) -> "APIClient":
        import docker  # 0.3 s, which a command line that never asks an engine should not wait

        tls = self.address.tls
        try:
            client = docker.APIClient(
                self.address.url,
                version=version,
                timeout=timeout_s,
                max_pool_size=MAX_CALLS,
                tls=docker.tls.TLSConfig((tls.cert, tls.key) if tls.cert else None, tls.ca or None, verify=True)
                if tls
                else False,
            )
        except Exception as error:
            raise self.explain(error) from error
        # Proxies and .netrc are for the web; looking for them at each call takes an eighth of its time.
        client.trust_env = False
        if not self.address.path:
            client.get_adapter(client.base_url).init_poolmanager(1, MAX_CALLS)
        return client

    def _close(self) -> None:
        if self._opened:
            self._opened.close()
        self._opened = None

    def _call(self, client: "APIClient", call: "Callable[[APIClient], Any]", timeout_s: float) -> Any:
        try:
            return call(client)
        except Exception as error:  # docker-py lets the errors of four libraries through
            raise explain(error, self.address, timeout_s) from error


def is_name(name: str) -> bool:
    """Tell whether a text is a name or an id, and no way to something else of the engine's API."""
    return bool(_NAME.fullmatch(name)) and ".." not in name


def check_name(name: str) -> None:
    """Make sure that a name is one. Raises EngineError."""
    if not is_name(name):
        raise EngineError(ErrorKind.INVALID, f"{name[:80]!r} is no name or id of a container or image")


def as_object(said: Any) -> dict[str, Any]:
    """Return an answer that must be an object. Raises EngineError."""
    if not isinstance(said, dict):
        raise EngineError(ErrorKind.FAILED, "the engine's answer cannot be understood")
    return said


def _version(text: object) -> tuple[int, ...]:
    """`1.41` as numbers that can be compared; none if it is something else."""
    parts = text.split(".") if isinstance(text, str) else []
    return tuple(int(part) for part in parts) if all(part.isascii() and part.isdigit() for part in parts) else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
