"""Orders: what callers ask for, as the typed bodies of the commands. Pure.

`parse` makes them of a call's JSON; docs/containers.md is their reference. notation.py turns a `RunOrder` into the
engine's words, service.py carries orders out.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

MAX_NAMED: Final = 1000
"""Containers or images in one order."""

_NEW_NAME = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z"
_IMAGE = r"^[^\s\"'\x00-\x1f]+\Z"
_SIGNAL = r"^[A-Za-z0-9+-]*\Z"
_EXEC_ID = r"^[0-9a-f]{8,64}\Z"
_FORMS: Final = {
    _NEW_NAME: "a name has letters, digits and _ . - and at least two of them",
    _IMAGE: 'write the image as for docker run, like "nginx:1.27"',
    _SIGNAL: 'write a signal like "TERM" or "9"',
    _EXEC_ID: "write the id that the first piece of the exec's second stream told",
}
"""What is said when a text does not match."""

MAX_SHOWN: Final = 4096
"""Characters of one key that the audit log shows."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Names = Annotated[list[Name], Meta(min_length=1, max_length=MAX_NAMED)]
NewName = Annotated[str, Meta(pattern=_NEW_NAME, max_length=128)]
Words = Annotated[list[str], Meta(max_length=10_000)]
Image = Annotated[str, Meta(pattern=_IMAGE, max_length=512)]
Seconds = Annotated[int, Meta(ge=0, le=86_400)]
Moment = Annotated[float, Meta(ge=0, le=1e11)]
Size = tuple[Annotated[int, Meta(ge=1, le=65_535)], Annotated[int, Meta(ge=1, le=65_535)]]
"""Rows and columns of a terminal."""


class OrderError(ValueError):
    """The caller's order is not in order; the text says in one line where, and how it is written."""


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A body. Keys that it does not have are an error: a mistyped option is never silently left out."""


class Snapshot(Order, frozen=True):
    """`containers.snapshot`."""

    filters: list[Text] = []
    all: bool = True
    """With those that do not run."""


class Find(Order, frozen=True):
    """`containers.find`."""

    containers: Names


class On(Order, frozen=True, kw_only=True):
    """The containers that an order is about."""

    containers: Names
    if_here: bool = False
    """Pass over names that this node does not have."""


class Stop(On, frozen=True):
    """`containers.stop`, `restart`."""

    timeout_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None


class Kill(On, frozen=True):
    """`containers.kill`."""

    signal: Annotated[str, Meta(pattern=_SIGNAL, min_length=1, max_length=16)] = "KILL"


class Remove(On, frozen=True):
    """`containers.rm`."""

    force: bool = False
    volumes: bool = False


class Rename(Order, frozen=True):
    """`containers.rename`."""

    container: Name
    name: NewName
    if_here: bool = False


class Wait(On, frozen=True):
    """`containers.wait`."""

    until: Literal["died", "healthy", "running", "removed"] = msgspec.field(default="died", name="for")


class Top(On, frozen=True):
    """`containers.top`."""

    ps_args: Text = ""


class Logs(On, frozen=True):
    """`containers.logs`."""

    follow: bool = False
    tail: Annotated[int, Meta(ge=0)] | None = None
    since: Moment | None = None
    until: Moment | None = None
    timestamps: bool = False


class Exec(Order, frozen=True, kw_only=True):
    """`containers.exec`."""

    container: Name
    argv: Annotated[list[str], Meta(min_length=1, max_length=10_000)]
    env: dict[str, str] = {}
    user: Text = ""
    cwd: Text = ""
    stdin: bool = False
    tty: bool = False
    size: Size | None = None
    privileged: bool = False
    if_here: bool = False


class Resize(Order, frozen=True, kw_only=True):
    """`containers.resize`."""

    exec: Annotated[str, Meta(pattern=_EXEC_ID)]
    size: Size


class ImagesLs(Order, frozen=True):
    """`images.ls`, `images.prune`."""

    all: bool = False


class Pull(Order, frozen=True, kw_only=True):
    """`images.pull`."""

    image: Image
    username: Text = ""
    password: str = ""


class Tag(Order, frozen=True, kw_only=True):
    """`images.tag`."""

    image: Image
    name: Image


class ImagesRm(Order, frozen=True, kw_only=True):
    """`images.rm`."""

    images: Names
    force: bool = False


class Health(Order, frozen=True, kw_only=True):
    """The health check in a RunOrder."""

    command: Annotated[str, Meta(min_length=1)] | Annotated[list[str], Meta(min_length=1)] | None = None
    """A line for the container's shell, or a program and its arguments; None: the image's own."""
    interval_s: Moment = 0
    timeout_s: Moment = 0
    start_period_s: Moment = 0
    retries: Annotated[int, Meta(ge=0, le=10_000)] = 0
    disable: bool = False


class RunOrder(Order, frozen=True, kw_only=True):
    """`containers.run`, `create`: in the words of Docker's command line."""

    image: Image
    argv: Words = []
    entrypoint: Words = []
    names: dict[str, Annotated[list[NewName], Meta(max_length=100)]] | None = None
    count: Annotated[int, Meta(ge=1, le=100)] | None = None
    pull: Literal["missing", "always", "never"] = "missing"
    attach: bool = False
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    publish: Words = []
    volumes: Words = []
    tmpfs: Words = []
    cpus: str | float = ""
    memory: str | int = ""
    restart: str = ""
    network: Annotated[str, Meta(max_length=256)] = ""
    hostname: Text = ""
    user: Text = ""
    workdir: Text = ""
    init: bool = False
    read_only: bool = False
    stop_signal: Annotated[str, Meta(pattern=_SIGNAL, max_length=16)] = ""
    stop_timeout_s: Seconds | None = None
    health: Health | None = None
    cap_add: Words = []
    cap_drop: Words = []
    privileged: bool = False
    pid: Text = ""
    ipc: Text = ""
    security_opt: Words = []
    devices: Words = []
    add_hosts: Words = []
    dns: Words = []
    ulimits: Words = []
    rm: bool = False
    tty: bool = False

    def names_on(self, node: str) -> list[str | None]:
        """Return the names of the containers to make on `node`; None where the engine invents one."""
        if self.names is not None:
            return list(self.names.get(node, ()))
        return [None] * (self.count or 1)


T = TypeVar("T", bound=Order)


def parse(kind: type[T], body: Any) -> T:
    """Return the order in a parsed JSON body; None counts as an empty object. Raises OrderError."""
    if not isinstance(body, dict | None):
        raise OrderError("the body must be a JSON object; see docs/containers.md")
    try:
        order = msgspec.convert(body or {}, kind)
    except msgspec.ValidationError as error:
        raise OrderError(_in_words(str(error), kind)) from None
    _check(order)
    return order


def shown(order: Order) -> dict[str, Any]:
    """Return what the audit log shows of an order: no values of variables, no credentials, nothing very long."""
    told: dict[str, Any] = msgspec.to_builtins(order)
    for key in ("containers", "container", "if_here", "username", "password"):
        told.pop(key, None)
    for key in ("env", "labels"):
        if key in told:
            told[key] = sorted(told[key])
    return {key: _cut(value) for key, value in told.items()}


def _cut(value: Any) -> Any:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return value if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text) - MAX_SHOWN} more characters)"


def _check(order: Order) -> None:
    """Raise OrderError for what the types of the fields alone cannot tell."""
    if any("\0" in text for text in _texts(msgspec.to_builtins(order))):
        raise OrderError("no text may hold the character NUL")
    for name in getattr(order, "env", ()):
        if not name or "=" in name:
            raise OrderError(f"env: {name!r} cannot be the name of a variable")
    if not isinstance(order, RunOrder):
        return
    if order.names is not None and order.count is not None:
        raise OrderError("give either names or count")
    for node, names in (order.names or {}).items():
        if len(set(names)) < len(names):
            raise OrderError(f"names.{node}: a name stands there twice")
    if order.attach and (order.count or max((len(names) for names in (order.names or {}).values()), default=1)) > 1:
        raise OrderError("attach: the output of one container can be shown, not of several on one node")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _in_words(said: str, kind: type[Order]) -> str:
    """Return what msgspec says about a body, the place first."""
    text, _, place = said.partition(" - at `$")
    place = place.removesuffix("`").removeprefix(".").replace("[...]", "")  # of an object: any of its keys
    if (key := text.removeprefix("Object contains unknown field ")) != text:
        known = "" if place else f"; the keys are {', '.join(cast(Any, kind).__struct_encode_fields__)}"
        return f"{place + ': ' if place else ''}there is no key {key}{known}"
    for pattern, form in _FORMS.items():
        # Where msgspec shows a pattern, people want words.
        if repr(pattern) in text:
            text = form
    return f"{place}: {text}" if place else text
