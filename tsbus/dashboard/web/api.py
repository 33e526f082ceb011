"""API: the model, and the bus, for programs in any language (docs/dashboard.md, HTTP API).

Bodies are msgspec's: their types are the schemas in the OpenAPI document (schema.py), so neither can promise more than
the other keeps.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import APIRouter, FastAPI, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from tsbus.calls import Call
from tsbus.core.accounting import Outcome
from tsbus.core.body import body_json
from tsbus.core.target import TargetError
from tsbus.core.topic import TopicError, check_pattern, check_topic
from tsbus.dashboard.door import SessionEnded
from tsbus.dashboard.feed import unix_ms
from tsbus.dashboard.historyfile import RING_MINUTES, HistoryError
from tsbus.dashboard.problems import problems
from tsbus.dashboard.rollup import DAY_MINUTES
from tsbus.dashboard.state import Model
from tsbus.dashboard.views import SHORT_ID, NodeView
from tsbus.dashboard.web import schema
from tsbus.dashboard.web.errors import Refusal, install
from tsbus.dashboard.web.gate import visitor_of
from tsbus.dashboard.web.schema import (
    Account,
    Answer,
    Ask,
    Balancers,
    Bus,
    Containers,
    Me,
    Nodes,
    Publish,
    Published,
    Series,
    Status,
)
from tsbus.dashboard.web.site import Site
from tsbus.dashboard.web.stream import Streams, left
from tsbus.errors import BufferFull, ConnectionLost, PayloadTooLarge, Refused, UnknownTarget
from tsbus.filters import Filter, FilterError

MAX_ASKING: Final = 16
"""Requests that wait for answers of the bus at the same time."""
MAX_ANSWERS: Final = 8 << 20
"""Bytes of all answers to one request."""
FLUSH_S: Final = 10.0
_AGAIN_S: Final = 2.0

T = TypeVar("T")


def application(site: Site, streams: Streams) -> FastAPI:
    """Return the application below /api."""
    app = FastAPI(title="TreeScale", version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    install(app)
    app.include_router(_Api(site, streams).routes, prefix="/v1")
    schema.describe(app)
    return app


class _Api:
    """The requests of version 1."""

    def __init__(self, site: Site, streams: Streams) -> None:
        self._site = site
        self._model = site.feed.model
        self._streams = streams
        self._asking = asyncio.Semaphore(MAX_ASKING)
        self.routes = APIRouter()
        add = self.routes.add_api_route
        add("/me", self.me, responses=schema.answers("Who asks.", Me))
        add("/status", self.status, responses=schema.answers("Totals, and what is wrong now.", Status))
        add("/nodes", self.nodes, responses=schema.answers("The nodes in the tree's order.", Nodes))
        add("/nodes/{name}", self.node, responses=schema.answers("One node.", NodeView, 404))
        add("/nodes/{name}/history", self.history,
            responses=schema.answers("Figures over time.", Series, 404))  # fmt: skip
        add("/containers", self.containers, responses=schema.answers("Containers.", Containers))
        add("/balancers", self.balancers, responses=schema.answers("Balancers with their servers.", Balancers))
        add("/events", self.events, responses=schema.stream())
        add("/publish", self.publish, methods=["POST"], openapi_extra=schema.body(Publish),
            responses=schema.answers("It is on its way.", Published, 403, 404, 413))  # fmt: skip
        add("/request", self.request, methods=["POST"], openapi_extra=schema.body(Ask),
            responses=schema.answers("All answers, and how each node ended.", Account, 403, 404, 413, 504))  # fmt: skip

    async def me(self, request: Request) -> Response:
        """Tell who asks, and what a signed-in browser shows in X-CSRF-Token with each POST."""
        visitor = visitor_of(request)
        if (person := visitor.person) is None:
            raise SessionEnded
        return _json(Me(name=person.name, role=person.role, csrf=visitor.csrf))

    # What the model knows.

    async def status(self) -> Response:
        """Tell the totals, the problems, and whether the bus is there."""
        model = self._known()
        now_ms = unix_ms()
        told = Status(
            here=model.here,
            time_ms=now_ms,
            bus=Bus(connected=model.connected, since_ms=model.connected_ms),
            totals=model.totals(),
            problems=problems(model, now_ms),
        )
        return _json(told)

    async def nodes(self) -> Response:
        """List the nodes."""
        model = self._known()
        return _json(Nodes(revision=model.revision, nodes=list(model.nodes.values())))

    async def node(self, name: str) -> Response:
        """Tell of one node."""
        view = self._known().nodes.get(name)
        if view is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such node here", "GET /api/v1/nodes lists them")
        return _json(view)

    async def history(
        self,
        name: str,
        container: Annotated[str, Query(max_length=64)] = "",
        minutes: Annotated[int, Query(ge=1, le=31 * DAY_MINUTES)] = RING_MINUTES,
    ) -> Response:
        """Tell the figures of a node, or of a container there by its id, of the last minutes.

        More than 60 are there where `history_file` is in the configuration. The last hour has a point each 5 s, the
        last day one each minute, more than that one each quarter of an hour.
        """
        model, keeper = self._known(), self._site.keeper
        if name not in model.nodes:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such node here", "GET /api/v1/nodes lists them")
        longest = keeper.days * DAY_MINUTES if keeper else RING_MINUTES
        if minutes > longest:
            mend = "[dashboard] history_file and history_days say how long figures are kept"
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{longest} minutes are kept", mend)
        short = container[:SHORT_ID]
        try:
            lines = await keeper.lines(name, short, minutes) if keeper else self._site.feed.history.lines(
                name, short, unix_ms(), minutes)  # fmt: skip
        except HistoryError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error), error.mend) from None
        figures, highest = (
            {name: [_known(point) for point in points] for name, points in told.items()}
            for told in (lines.figures, lines.highest)
        )
        is_there = not short or short in model.containers.get(name, {})
        if not is_there and all(point is None for points in figures.values() for point in points):
            raise Refusal(HTTPStatus.NOT_FOUND, "no such container there", "GET /api/v1/containers lists them")
        return _json(Series(start_ms=lines.start_ms, step_ms=lines.step_ms, figures=figures, highest=highest))

    async def containers(self, filters: Annotated[list[str], Query(alias="filter", max_length=32)] = []) -> Response:  # noqa: B006
        """List containers. Filters are like `image=nginx`, `label=tier=web`, `state=running`, `node=web*`."""
        model = self._known()
        try:
            wanted = Filter.parse(*filters)
        except FilterError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error), "filters are those of treescale container ls") from None
        found = [
            view
            for node, each in model.containers.items()
            for view in each.values()
            if wanted.matches(node, view.record)
        ]
        return _json(Containers(revision=model.revision, containers=found))

    async def balancers(self) -> Response:
        """List the balancers."""
        model = self._known()
        found = [view for each in model.balancers.values() for view in each.values()]
        return _json(Balancers(revision=model.revision, balancers=found))

    async def events(
        self,
        request: Request,
        topic: Annotated[list[str], Query(max_length=16)] = [],  # noqa: B006
        last_event_id: Annotated[str, Header(max_length=128)] = "",
    ) -> Response:
        """Stream events of these topics; without any, of those that the dashboard follows itself."""
        for pattern in topic:
            try:
                check_pattern(pattern)
            except TopicError as error:
                raise Refusal(HTTPStatus.BAD_REQUEST, str(error), "topics are like container.* or >") from None
        return await self._on_bus(self._streams.open(visitor_of(request), topic, last_event_id))

    # What the bus is asked for.

    async def publish(self, request: Request) -> Response:
        """Publish an event: JSON, or text where the body is a text."""
        client = self._site.actions.client_for(visitor_of(request).must_operate())
        order = await _order(request, Publish)
        self._require_bus()
        nodes = self._nodes(order.target)
        await self._on_bus(_published(client.publish(order.topic, order.body, to=order.target), client.flush()))
        return _json(Published(topic=order.topic, nodes=nodes))

    async def request(self, request: Request) -> Response:
        """Call a worker's command on nodes, and wait for all answers. It is cancelled when nobody waits any more."""
        client = self._site.actions.client_for(visitor_of(request).must_operate())
        order = await _order(request, Ask)
        if self._asking.locked():
            error = f"{MAX_ASKING} requests wait for answers already"
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, error, "try again later", wait_s=_AGAIN_S)
        async with self._asking:
            self._require_bus()
            call = client.request(order.target, order.command, order.body, timeout_s=order.timeout_s)
            return _json(await self._on_bus(self._while_wanted(request, _account(call))))

    async def _while_wanted(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work` for as long as somebody waits for the answer, and the server goes on. Raises Refusal."""
        working = asyncio.create_task(work)
        ends = [asyncio.create_task(end) for end in (left(request.receive), self._site.closing.wait())]
        try:
            await asyncio.wait({working, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the dashboard ends", "try again")
            return working.result()
        finally:
            for task in (working, *ends):
                task.cancel()

    def _nodes(self, target: str) -> list[str]:
        try:
            return sorted(self._known().select(target))
        except TargetError as error:
            raise Refusal(HTTPStatus.NOT_FOUND, str(error), "GET /api/v1/nodes lists the nodes") from None

    def _known(self) -> Model:
        """Return the model, once it is one. Raises Refusal."""
        if not self._model.here:
            self._require_bus()
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the tree is not known yet", "try again", wait_s=_AGAIN_S)
        return self._model

    def _require_bus(self) -> None:
        if not self._site.client.connected:
            raise self._away()

    def _away(self) -> Refusal:
        return Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the router of this node is away",
            "see its log; the dashboard goes on by itself when it is back",
            wait_s=_AGAIN_S,
            more={"since_ms": self._model.connected_ms},
        )

    async def _on_bus(self, work: Awaitable[T]) -> T:
        """Wait for what the bus does, and say in HTTP what goes wrong. Raises Refusal."""
        try:
            return await work
        except ConnectionLost:
            raise self._away() from None
        except TimeoutError:
            self._require_bus()
            raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, "the router did not answer in time", "try again") from None
        except UnknownTarget as error:
            raise Refusal(HTTPStatus.NOT_FOUND, str(error), "GET /api/v1/nodes lists the nodes") from None
        except PayloadTooLarge as error:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error), "send less") from None
        except BufferFull as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "try again", wait_s=_AGAIN_S) from None
        except Refused as error:
            raise Refusal(HTTPStatus.FORBIDDEN, str(error), "the dashboard itself needs a role on the bus") from None


def _known(point: float) -> float | None:
    return point if math.isfinite(point) else None


def _json(told: object) -> Response:
    return Response(msgspec.json.encode(told), media_type="application/json")


async def _order(request: Request, kind: type[T]) -> T:
    """Return what a request asks for. Raises Refusal."""
    try:
        order = msgspec.json.decode(await request.body(), type=kind)
        if isinstance(order, Publish):
            check_topic(order.topic)
        elif isinstance(order, Ask):
            check_topic(order.command)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TopicError) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error), "GET /api/openapi.json has the form of the body") from None
    return order


async def _published(publishing: Awaitable[None], flushing: Awaitable[None]) -> None:
    async with asyncio.timeout(FLUSH_S):
        await publishing
        await flushing


async def _account(call: Call) -> Account:
    """Collect the answers of a call. Raises Refusal when they are too long, and as the call does."""
    began = time.monotonic()
    answers: list[Answer] = []
    ended: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    size = 0
    async with call:
        async for reply in call:
            size += len(reply.body)
            if size > MAX_ANSWERS:
                error = f"the answers have more than {MAX_ANSWERS} bytes; the call was cancelled"
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error, "ask fewer nodes, or use a client of the bus")
            if reply.last:
                ended[reply.status].append(reply.node)
            if reply.body or reply.last:
                outcome = {"outcome": reply.status.name.lower()} if reply.last else {}
                answers.append(msgspec.convert({"node": reply.node} | outcome | body_json(reply.body), Answer))
    sets = {outcome.name.lower(): sorted(nodes) for outcome, nodes in ended.items()}
    return Account(answers=answers, summary=sets, seconds=round(time.monotonic() - began, 3))
