"""Trouble: what keeps a server from being built, as a kind, a text and the next step for a person. Pure.

Plans have troubles before anything is done. What goes wrong while it is done comes here as plain data, a `Failure`,
and is classed by what is most certain first: the type of an exception, its errno, the exit status, the output.
"""

import errno
import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Kind = Literal[
    "access", "name", "refused", "unreachable", "timeout", "host-key-unknown", "host-key-changed", "authentication",
    "sudo", "probe", "platform", "python", "disk", "clock", "port", "address", "kernel", "docker", "identity",
    "download", "package-lock", "lost", "silent", "step",
]  # fmt: skip
"""As docs/build.md explains them."""
LOCKED: Final = 75
"""Exit status of a script that has waited too long for the package lock (EX_TEMPFAIL)."""
WAITING: Final = "another program holds the package lock: waiting"
"""What such a script says from time to time meanwhile."""
LAST_LINES: Final = 20
MAX_TEXT: Final = 4000
_MAX_LINE: Final = 200


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong with one server."""

    kind: Kind
    text: str
    """What is wrong, on one line."""
    mend: str
    """What to do about it, on one line."""
    fatal: bool = True
    """The server cannot be built; otherwise it is a warning."""
    again: bool = False
    """Another try may go well without anybody's doing."""
    details: str = ""
    """The last lines of what the server said."""

    def __str__(self) -> str:
        return f"{self.text}; {self.mend}"


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, as the edge has seen it. Secrets are masked already."""

    stage: str
    """As in docs/build.md."""
    place: str = "the server"
    """Whom it was with, as user@host:port."""
    type: str = ""
    """Of the exception, without its module."""
    errno: int | None = None
    text: str = ""
    """Of the exception."""
    status: int | None = None
    """Of the program on the server; None where it told none."""
    output: str = ""
    """Of the program."""
    command: str = ""
    """The step, in words."""


class _Words(NamedTuple):
    text: str
    """With {place}, {stage}, {command} and {said}, which is empty or begins with a colon."""
    mend: str
    again: bool = False


PYTHON_MEND: Final = "install Python 3.11 or newer there, up to 3.14, in /usr/bin or /usr/local/bin"
_WORDS: Final[dict[Kind, _Words]] = {
    "name": _Words("the name of {place} cannot be looked up{said}", "mend `host` in console.toml, or your name server"),
    "refused": _Words(
        "{place} refuses the connection", "is sshd running there? Check host and port in console.toml", again=True
    ),
    "unreachable": _Words(
        "there is no way to {place}{said}",
        "check your network, VPN and routes, or name a host to go through (`jump`)",
        True,
    ),
    "timeout": _Words(
        "{place} does not answer",
        "is it up, and does a firewall let the port pass? A longer connect_timeout_s helps slow ones",
        again=True,
    ),
    "host-key-unknown": _Words(
        "the host key of {place} is not known{said}",
        "compare it with that of the server, then use --accept-new, or pin it as host_key",
    ),
    "host-key-changed": _Words(
        "{place} has another host key than before{said}",
        "find out why; if the machine was made anew, take the old one away: ssh-keygen -R HOST",
    ),
    "authentication": _Words(
        "{place} does not let us in{said}",
        "check username, key, passphrase and password in console.toml; `ssh -v` to it shows what it takes",
    ),
    "sudo": _Words("sudo refuses{said}", "check `sudo` and the password in console.toml, and the sudoers there"),
    "disk": _Words("it cannot write ({stage}){said}", "make room there, or mend its file system"),
    "clock": _Words("its clock is wrong{said}", "set the clock of the server (NTP)"),
    "python": _Words("its Python is not in order{said}", PYTHON_MEND),
    "download": _Words(
        "it cannot download ({stage}){said}",
        "can it reach its package archives? Check its network, name server and proxy",
        again=True,
    ),
    "package-lock": _Words(
        "another program has held the package lock for too long{said}",
        "wait until it is done (often the system's own upgrade), then build again",
        again=True,
    ),
    "docker": _Words(
        "its Docker engine does not answer{said}", "see `journalctl -u docker` there, or build with --no-docker"
    ),
    "lost": _Words(
        "the connection to {place} was lost ({stage})", "build again: it goes on from what is done", again=True
    ),
    "step": _Words("{command}{said}", "the transcript has all that it said"),
}
"""What is said of a failure. The other kinds are found before anything is done, with their own words."""

_TYPES: Final[dict[str, Kind]] = {
    "gaierror": "name",
    "UnknownHostKey": "host-key-unknown",
    "BadHostKeyException": "host-key-changed",
    "AuthenticationException": "authentication",
    "BadAuthenticationType": "authentication",
    "PartialAuthentication": "authentication",
    "PasswordRequiredException": "authentication",
    "SecretUnavailable": "authentication",
    "EOFError": "lost",
    "ChannelException": "lost",
}
_ERRNOS: Final[dict[int, Kind]] = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN), "unreachable"),
    **dict.fromkeys((errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN), "lost"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS), "disk"),
}
_EAI_AGAIN: Final = -3
"""The name server did not answer: not the same as a name that does not exist."""

_SAID: Final[tuple[tuple[Kind, str], ...]] = (
    ("host-key-unknown", r"not found in known_hosts|host key verification failed"),
    ("package-lock", r"could not get lock|unable to (?:acquire|lock)|dpkg frontend lock|currently holding the yum lock"
                     r"|system management is locked|another process is (?:using|holding)|waiting for process with pid"),
    ("disk", r"no space left on device|disk quota exceeded|read-only file system|don't have enough free space"
             r"|at least \d+\s*[kmg]b (?:more space )?needed"),
    ("sudo", r"sudo: |is not in the sudoers file|is not allowed to (?:run sudo|execute)|sorry, try again"
             r"|incorrect password attempt"),
    ("clock", r"is not valid yet|certificate is not yet valid|certificate has expired"),
    ("download", r"could not resolve|temporary failure (?:resolving|in name resolution)|failed to fetch|curl: \(\d+\)"
                 r"|cannot download|network is unreachable|unable to fetch|temporary error \(try again later\)"
                 r"|failed to download|connection timed out"),
    ("docker", r"cannot connect to the docker daemon|docker\.service (?:failed|not found)|failed to start docker"),
    ("python", r"python3?[\d.]*: (?:command )?not found|no module named"),
    ("authentication", r"authentication failed|no authentication methods|permission denied \(publickey"
                       r"|not a valid .*private key|encountered .* key, expected"),
    ("timeout", r"error reading ssh protocol banner|authentication timeout|timeout opening channel"),
    ("lost", r"server connection dropped|no existing session|connection reset by peer|channel closed"
             r"|ssh session not active|socket is closed"),
)  # fmt: skip
"""What programs and libraries say, the more certain before the less. Programs run with LC_ALL=C."""
_PATTERNS: Final = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _SAID}


def classify(failure: Failure) -> Trouble:
    """Return what `failure` is, and the next step. It raises nothing, whatever the failure holds."""
    kind, said = _kind_of(failure)
    words = _WORDS[kind]
    again = failure.errno == _EAI_AGAIN if kind == "name" else words.again
    text = words.text.format(
        place=_one_line(failure.place),
        stage=failure.stage,
        command=_one_line(failure.command or failure.stage),
        said=f": {_one_line(said)}" if said.strip() else "",
    )
    return Trouble(kind, text, words.mend, again=again, details=last_lines(failure.output))


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Return the end of `text`, safe to print: no control characters but line breaks, at most `limit` characters."""
    text = text[-4 * limit :].replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char for char in text if char == "\n" or char.isprintable())[-limit:]


def last_lines(output: str, count: int = LAST_LINES) -> str:
    """Return the last `count` lines of a program's output that say anything, safe to print."""
    lines = [line.rstrip() for line in clean(output).split("\n") if line.strip()]
    return "\n".join(lines[-count:])


def _kind_of(failure: Failure) -> tuple[Kind, str]:
    """Return the kind, and what was said that shows it."""
    if failure.type in ("TimeoutError", "timeout"):
        return ("timeout" if failure.stage == "connect" else "lost"), ""
    if failure.type in _TYPES:
        return _TYPES[failure.type], failure.text
    if failure.errno in _ERRNOS:
        return _ERRNOS[failure.errno], failure.text
    if failure.type:
        return _by_text(failure.text) or ("step", f"{failure.type}: {failure.text}")
    if failure.status is None:
        return "lost", ""
    if failure.status == LOCKED:
        return "package-lock", _line_of("package-lock", failure.output)
    output = failure.output.rpartition(WAITING)[2]  # what was waited for is over
    line = last_lines(output, 1)
    return _by_text(output) or ("step", f"ended with {failure.status}" + (f": {line}" if line else ""))


def _by_text(text: str) -> tuple[Kind, str] | None:
    """Return the kind that one of the lines shows, and this line."""
    return next(((kind, line) for kind in _PATTERNS if (line := _line_of(kind, text))), None)


def _line_of(kind: Kind, text: str) -> str:
    """Return the first line that shows the kind, "" for none."""
    return next((line for line in clean(text).split("\n") if _PATTERNS[kind].search(line)), "")


def _one_line(text: str) -> str:
    line = " ".join(clean(text).split())
    return line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 3] + "..."
