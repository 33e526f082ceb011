"""Schema: the bodies of the API as types, and what the OpenAPI document says of them. The document is made of these."""

from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from msgspec import Meta

from tsbus.dashboard.problems import Problem
from tsbus.dashboard.users import Role
from tsbus.dashboard.views import BalancerView, ContainerView, NodeView, Totals

_REF: Final = "#/components/schemas/{name}"


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered."""


class _Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is sent. A key that it does not have is an error."""


class Me(_Body, frozen=True):
    """Who asks."""

    name: str
    """Empty where nobody has to sign in."""
    role: Role
    csrf: str = ""
    """Of a signed-in browser."""


class Bus(_Body, frozen=True):
    """Whether the router of the dashboard's node is there, and since when that is so."""

    connected: bool
    since_ms: int


class Status(_Body, frozen=True):
    """The tree in short."""

    here: str
    """The node that the dashboard is on."""
    time_ms: int
    bus: Bus
    totals: Totals
    problems: list[Problem]


class Nodes(_Body, frozen=True):
    """All nodes."""

    revision: int
    nodes: list[NodeView]


class Containers(_Body, frozen=True):
    """Containers."""

    revision: int
    containers: list[ContainerView]


class Balancers(_Body, frozen=True):
    """All balancers."""

    revision: int
    balancers: list[BalancerView]


class Series(_Body, frozen=True):
    """Figures over time."""

    start_ms: int
    """Of the first point; the others follow in steps."""
    step_ms: int
    figures: dict[str, list[float | None]]
    """By name, all of one length; null where nothing is known."""
    highest: dict[str, list[float | None]] = {}
    """Of more than an hour, where each step stands for many points: the highest of them, and `figures` are means."""


class Publish(_Order, frozen=True):
    """An event to publish."""

    topic: Annotated[str, Meta(min_length=1, max_length=256)]
    body: Any = None
    """A text is sent as text, anything else as JSON; null is an empty body."""
    target: Annotated[str, Meta(min_length=1, max_length=4096)] = "*"


class Published(_Body, frozen=True):
    """An event that the router has taken."""

    topic: str
    nodes: list[str]
    """The nodes that it is for."""


class Ask(_Order, frozen=True):
    """A command to call."""

    target: Annotated[str, Meta(min_length=1, max_length=4096)]
    command: Annotated[str, Meta(min_length=3, max_length=256)]
    body: Any = None
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 30.0


class Answer(_Body, frozen=True, omit_defaults=True):
    """A piece of a node's answer; the last one has its outcome."""

    node: str
    outcome: Literal["ok", "failed", "timeout", "unreachable", "refused", "no_such_service", "cancelled"] | None = None
    body: Any = None
    """JSON, or the text that it is."""
    base64: str | None = None
    """Instead of `body`: bytes that are no text."""


class Account(_Body, frozen=True):
    """All answers, and how the call ended on each node of its target."""

    answers: list[Answer]
    summary: dict[str, list[str]]
    """Outcome -> nodes; every node of the target is in one of them."""
    seconds: float


class Error(_Body, frozen=True):
    """Why a request was not answered."""

    error: str
    mend: str
    """What to do."""
    since_ms: int = 0
    """With 503: since when the router is away."""


ALWAYS: Final = (400, 401, 429, 503)
"""What every request may be answered with."""
_TYPES: Final = (Me, Status, Nodes, NodeView, Series, Containers, Balancers, Publish, Published, Ask, Account, Error)


def answers(text: str, kind: type, *errors: int) -> dict[int | str, dict[str, Any]]:
    """Return what the document says of the answers of one request."""
    return {200: {"description": text, "content": _json(kind)}} | _errors(*errors)


def stream() -> dict[int | str, dict[str, Any]]:
    """Return what it says of a stream."""
    text = "Server-Sent Events: data is the event in JSON; an event `gap` tells how many were lost, or null."
    return {200: {"description": text, "content": {"text/event-stream": {"schema": {"type": "string"}}}}} | _errors(403)


def body(kind: type) -> dict[str, Any]:
    """Return what it says of the body of a request."""
    return {"requestBody": {"required": True, "content": _json(kind)}}


def _errors(*more: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": HTTPStatus(status).phrase, "content": _json(Error)}
        for status in sorted((*ALWAYS, *more))
    }


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}


def describe(app: FastAPI) -> None:
    """Let `app` serve the document with these types; errors of the framework's own form never leave (errors.py)."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes, servers=[{"url": "/api"}])
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)
            document["components"] = {
                "schemas": schemas,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            }
            document["security"] = [{"token": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
