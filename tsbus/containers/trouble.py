"""Trouble: what went wrong with an engine, as one error with a kind for programs and a text for people."""

import grp
import json
import os
import pwd
import re
import socket
import ssl
from collections.abc import Iterator
from enum import Enum
from http.client import HTTPException
from pathlib import Path
from typing import Final

from tsbus.containers.framing import FramingError
from tsbus.containers.wire import Address, AnswerError

MAX_TEXT: Final = 1000
"""Characters of what an engine says about an error."""
_ID: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


class ErrorKind(Enum):
    """What went wrong, for programs; the text of the error is for people."""

    DOWN = "down"
    """No engine answers at the address, or what answers is none."""
    DENIED = "denied"
    """It may not be used: permissions of the socket, certificates, a rule of the engine."""
    TOO_OLD = "too_old"
    NOT_FOUND = "not_found"
    """No such container, image, network ..."""
    CONFLICT = "conflict"
    """Its state does not allow it: it does not run, the name is taken, it is being removed ..."""
    INVALID = "invalid"
    """The engine, or already this side, does not understand what it should do."""
    REGISTRY = "registry"
    """The image cannot be had: the registry refuses, cannot be reached or does not know it."""
    FAILED = "failed"
    """Anything else that the engine could not do."""


class EngineError(Exception):
    """A call failed; the text says why, and what to do where that is known."""

    def __init__(self, kind: ErrorKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


_STATUS: Final = {
    400: ErrorKind.INVALID,
    401: ErrorKind.DENIED,
    403: ErrorKind.DENIED,
    404: ErrorKind.NOT_FOUND,
    409: ErrorKind.CONFLICT,
}


def no_docker(address: Address) -> EngineError:
    """What answers at the address is something else."""
    return EngineError(ErrorKind.DOWN, f"what answers at {address} is no Docker engine: is the address right?")


def explain(error: BaseException, address: Address, timeout_s: float) -> EngineError:
    """Return what an error of docker-py, of the libraries below it or of wire.py means."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, AnswerError):
        return _refusal(error.status, _message(error.body), address)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return _refusal(status, str(getattr(error, "explanation", "") or error), address)
    for cause in _causes(error):
        if found := _known(cause, address, timeout_s):
            return found
    return EngineError(ErrorKind.FAILED, f"{type(error).__name__}: {error}"[:MAX_TEXT])


def _refusal(status: int, text: str, address: Address) -> EngineError:
    if status == 400 and "HTTPS server" in text:
        hint = "give the certificates (tls_ca, tls_cert, tls_key, or DOCKER_TLS_VERIFY and DOCKER_CERT_PATH)"
        return EngineError(ErrorKind.DENIED, f"the engine at {address} speaks TLS: {hint}")
    said = _ID.sub(r"\1", " ".join(text.split()))[:MAX_TEXT] or f"the engine answers with HTTP {status}"
    return EngineError(_STATUS.get(status, ErrorKind.FAILED), said)


def _message(body: bytes) -> str:
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except ValueError:
        return text
    return str(said.get("message", text)) if isinstance(said, dict) else text


def _known(cause: BaseException, address: Address, timeout_s: float) -> EngineError | None:
    """What one error of the chain means, None if it says nothing by itself."""
    kind, text = ErrorKind.DOWN, ""
    match cause:
        case PermissionError():
            kind, text = ErrorKind.DENIED, f"this user ({_user()}) may not use {address}: {_group_hint(address.path)}"
        case FileNotFoundError():
            text = f"no engine at {address}: is Docker installed and running?"
        case ConnectionRefusedError():
            text = f"no engine listens at {address}: is Docker running?"
        case ssl.SSLCertVerificationError():
            kind = ErrorKind.DENIED
            text = f"the certificate of the engine at {address} is not good ({cause.verify_message}): check tls_ca"
        case ssl.SSLError() if not isinstance(cause, ssl.SSLEOFError):
            kind = ErrorKind.DENIED
            reason = (cause.reason or str(cause)).lower().replace("_", " ")
            text = f"no TLS with {address} ({reason}): check that the port speaks TLS and that it takes our certificate"
        case TimeoutError():
            text = f"the engine at {address} has not answered in {timeout_s:g} s: does it hang, is the network cut?"
        case socket.gaierror():
            text = f"the name in {address} has no address ({cause.strerror})"
        case ConnectionError() | ssl.SSLError():
            text = f"the engine at {address} has ended the connection: did it stop?"
        case FramingError() | HTTPException() | json.JSONDecodeError():
            kind, text = ErrorKind.FAILED, f"the answer of {address} cannot be understood ({cause})"
        case OSError() if cause.errno:
            text = f"no engine can be reached at {address}: {cause.strerror}"
        case _:
            return None
    return EngineError(kind, text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it comes from, the first of all first: what wraps it says less."""
    seen: list[BaseException] = []
    todo = [error]
    while todo and len(seen) < 32:
        one = todo.pop(0)
        if one not in seen:
            seen.append(one)
            context = None if one.__suppress_context__ else one.__context__
            inner = (one.__cause__, context, getattr(one, "reason", None), *one.args)
            todo += [cause for cause in inner if isinstance(cause, BaseException)]
    return reversed(seen)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _group_hint(path: str) -> str:
    try:
        status = Path(path).stat()
    except OSError:
        return "it may not even enter the directory"
    if not status.st_gid or not status.st_mode & 0o020:
        return "only root may"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"add it to the group {group} (usermod -aG {group} {_user()}) and start anew"
