"""Jobs: what a caller asks the executor to run, whether the policy allows it, and what is running. Pure.

service.py feeds it the callers' bodies and the facts of process.py, and sends and writes down what it returns.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tsbus.config.model import ExecRule
from tsbus.core.roles import Role

SHELL = ("/bin/sh", "-c")
ANY_PROGRAM = ("**",)
MAX_SHOWN = 4096
"""Characters of a command that lists and the audit log show."""
_ROLES = {role.name.lower(): role for role in Role if role}
KEPT = 100
"""How many ended jobs the table remembers."""


class RequestError(ValueError):
    """The caller's body is no valid request; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What a caller wants to run: the body of `exec.run`."""

    argv: tuple[str, ...] = ()
    shell: str = ""
    """A line for the shell, instead of `argv`."""
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the clean environment."""
    user: str = ""
    """Name or uid; empty: the executor's default user."""
    stdin: bool = False
    """Whether the call's input is the program's; otherwise it reads nothing."""
    max_output: int | None = None
    """Bytes of both outputs together, if less than the policy's limit."""

    @property
    def command(self) -> tuple[str, ...]:
        """The program and its arguments as they are started."""
        return (*SHELL, self.shell) if self.shell else self.argv


def parse_request(body: Any) -> ExecRequest:
    """Return the request in a parsed JSON body. Raises RequestError."""
    if not isinstance(body, dict):
        raise RequestError('the body must be a JSON object like {"argv": ["uname", "-a"]}')
    if unknown := sorted(set(body) - set(_FORMS)):
        raise RequestError(f"unknown key {unknown[0]!r}; the keys are {', '.join(_FORMS)}")
    for key, value in body.items():
        fits, form = _FORMS[key]
        if not fits(value):
            raise RequestError(f"{key!r} must be {form}")
    if ("argv" in body) == ("shell" in body):
        raise RequestError("give either 'argv' or 'shell'")
    return ExecRequest(**{**body, "argv": tuple(body.get("argv", ()))})


def _is_text(value: object) -> bool:
    """Tell whether `value` is a text that an argument or a variable can hold."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        # As the program will get it: bytes that are no UTF-8 may come as the surrogates of PEP 383.
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_word(value: object) -> bool:
    return bool(value) and _is_text(value)


def _is_name(value: object) -> bool:
    return _is_word(value) and len(str(value)) <= MAX_SHOWN


def _is_argv(value: object) -> bool:
    return isinstance(value, list) and bool(value) and _is_word(value[0]) and all(map(_is_text, value))


def _is_env(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_word(name) and "=" not in name and _is_text(text) for name, text in value.items()
    )


_FORMS = {
    "argv": (_is_argv, "a list of texts without NUL, the program first"),
    "shell": (_is_word, "a text without NUL"),
    "cwd": (_is_name, "the path of a directory"),
    "env": (_is_env, "an object of names and texts"),
    "user": (_is_name, "a user's name or uid"),
    "stdin": (lambda value: isinstance(value, bool), "true or false"),
    "max_output": (lambda value: type(value) is int and value >= 0, "a number of bytes"),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the bus and the user database of this node know them."""

    who: str
    """As in the route: "uid:1000", "operator:alice" or "router"."""
    origin: str
    role: Role
    names: frozenset[str] = frozenset()
    """What a rule may call them: the user's name and uid, or the operator's name."""
    groups: frozenset[str] = frozenset()
    person: str = ""
    """Whom the caller says he asks for; it decides nothing."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """The policy allows it, by this rule."""

    rule: ExecRule


@dataclass(frozen=True, slots=True)
class Denied:
    """The policy does not allow it; `reason` is for the caller, and tells which rule would be needed."""

    reason: str


def decide(rules: Iterable[ExecRule], caller: Caller, request: ExecRequest, run_as: frozenset[str]) -> Allowed | Denied:
    """Decide by the first rule that fits. `run_as`: name and uid of the wanted user, empty for the default user."""
    bare = None
    for rule in rules:
        if not (_fits_command(rule, request) and _fits_caller(rule, caller) and _fits_user(rule, run_as)):
            continue
        # Whoever sets PATH, LD_PRELOAD or the directory chooses what `systemctl` is: no rule that names it allows that.
        if rule.argv == ANY_PROGRAM or not (request.env or request.cwd):
            return Allowed(rule)
        bare = rule
    if bare is not None:
        return Denied(f"the rule argv = {_shown(bare.argv)} names the program, so it allows no 'env' and no 'cwd'")
    return Denied(_wanted_rule(caller, request, run_as))


def fits(template: Sequence[str], argv: Sequence[str]) -> bool:
    """Tell whether `argv` has the form of a rule's `template`: `*` is any one argument, a last `**` any rest."""
    if template and template[-1] == "**":
        template = template[:-1]
        argv, longer = argv[: len(template)], len(argv) >= len(template)
        return longer and fits(template, argv)
    return len(template) == len(argv) and all(part in ("*", arg) for part, arg in zip(template, argv, strict=True))


def _fits_command(rule: ExecRule, request: ExecRequest) -> bool:
    return fits(rule.argv, request.command) and (rule.shell or not request.shell)


def _fits_caller(rule: ExecRule, caller: Caller) -> bool:
    return not rule.users or any(_is_called(user, caller) for user in rule.users)


def _is_called(user: str, caller: Caller) -> bool:
    # Roles first, so that nobody gains one by being named like it.
    if user in _ROLES:
        return caller.role >= _ROLES[user]
    return user[1:] in caller.groups if user.startswith("@") else user in caller.names


def _fits_user(rule: ExecRule, run_as: frozenset[str]) -> bool:
    return not run_as or "*" in rule.run_as or not run_as.isdisjoint(rule.run_as)


def _wanted_rule(caller: Caller, request: ExecRequest, run_as: frozenset[str]) -> str:
    """Return the sentence that refuses a request for which there is no rule."""
    user = f", run_as = [{_quoted(request.user)}]" if run_as else ""
    shell = ", shell = true" if request.shell else ""
    users = _quoted(min(caller.names, key=str.isdigit, default=caller.role.name.lower()))
    return (
        f"no rule lets {caller.who} (role {caller.role.name.lower()}) run this; it would take "
        f"argv = {_shown(request.command)}, users = [{users}]{user}{shell} in the executor's allow list of this node"
    )


def _shown(words: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, words[:8]))}{', ...' if len(words) > 8 else ''}]"


def _quoted(word: str) -> str:
    shown = word if len(word) <= 60 else word[:57] + "..."
    return '"' + shown.encode("unicode_escape").decode().replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended. Exactly one of `exit` and `signal` is set once it has."""

    exit: int | None = None
    signal: str | None = None
    """Name without SIG."""
    duration_ms: int = 0
    user_cpu_ms: int = 0
    max_rss_kb: int | None = None
    """None when it was below what the executor itself uses, which the kernel counts in."""
    truncated: bool = False
    """Whether it wrote more than it might."""
    output_bytes: int = 0
    """What it wrote to both outputs."""
    reason: str = ""
    """Why the executor ended it, empty when it ended by itself."""

    @property
    def ok(self) -> bool:
        """Whether it ran to its end with success."""
        return self.exit == 0 and not self.reason


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a program for a caller."""

    number: int
    """Of this process of the executor."""
    caller: Caller
    request: ExecRequest
    handle: int
    """Of the caller's connection at its node."""
    call: int
    """The caller's number of the call, the same on every node that it went to."""
    started_ms: int
    """Unix milliseconds, for people."""
    ending: Ending | None = None

    def summary(self) -> dict[str, Any]:
        """Return the job as JSON for `exec.jobs`."""
        told = {"job": self.number, **self._who_and_what(), "started_ms": self.started_ms}
        return told | (asdict(self.ending) if self.ending else {})

    def record(self, kind: str, node: str, time: str, **more: Any) -> dict[str, Any]:
        """Return a line of the audit log. `kind`: "start", "end" or "refused"; `time`: for people."""
        request = self.request
        return {
            "time": time,
            "record": kind,
            "node": node,
            "job": self.number,
            **self._who_and_what(),
            "cwd": request.cwd,
            # Values are left out: they may be secrets.
            "env": _cut_words(sorted(request.env)),
            **more,
        }

    def _who_and_what(self) -> dict[str, Any]:
        request, caller = self.request, self.caller
        return {
            "who": caller.who,
            **({"person": caller.person} if caller.person else {}),
            "origin": caller.origin,
            "role": caller.role.name.lower(),
            "handle": self.handle,
            "call": self.call,
            **({"shell": _cut(request.shell, MAX_SHOWN)} if request.shell else {"argv": _cut_words(request.argv)}),
            "user": request.user,
        }


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[:size]}... ({len(text) - size} more characters)"


def _cut_words(words: Sequence[str]) -> list[str]:
    """Return as many words as may be shown: long ones must not push older records out of the audit log."""
    shown: list[str] = []
    room = MAX_SHOWN
    for word in words:
        if room <= 0:
            return [*shown, f"... ({len(words) - len(shown)} more words)"]
        shown.append(_cut(word, room))
        room -= len(word) + 1
    return shown


class JobTable:
    """The jobs that run, and the last ones that ended."""

    def __init__(self, max_running: int, kept: int = KEPT) -> None:
        self._max_running = max_running
        self._running: dict[int, Job] = {}
        self._ended: deque[Job] = deque(maxlen=kept)
        self._last_number = 0

    @property
    def running(self) -> tuple[Job, ...]:
        """The jobs that run, oldest first."""
        return tuple(self._running.values())

    @property
    def ended(self) -> tuple[Job, ...]:
        """The last jobs that ended, in the order of their ends."""
        return tuple(self._ended)

    @property
    def full(self) -> bool:
        """Whether no other job may be opened now."""
        return len(self._running) >= self._max_running

    def new(self, caller: Caller, request: ExecRequest, handle: int, call: int, now_ms: int) -> Job:
        """Return a job with a number of its own, which does not run yet."""
        self._last_number += 1
        return Job(self._last_number, caller, request, handle, call, now_ms)

    def open(self, job: Job) -> None:
        """The job runs. The caller has asked `full`."""
        self._running[job.number] = job

    def close(self, job: Job, ending: Ending) -> Job:
        """The job ended. Returns it with its ending."""
        ended = replace(self._running.pop(job.number), ending=ending)
        self._ended.append(ended)
        return ended

    def find(self, number: int) -> Job | None:
        """Return the running job with that number."""
        return self._running.get(number)


def may_kill(caller: Caller, job: Job) -> bool:
    """Tell whether `caller` may send signals to `job`: its own caller and admins may."""
    return caller.role >= Role.ADMIN or (caller.who, caller.origin) == (job.caller.who, job.caller.origin)
