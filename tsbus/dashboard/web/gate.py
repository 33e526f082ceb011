"""Gate: what every request passes first: its host, its length, who sends it, how often, whether another site made it.

Behind it `visitor_of(request)` tells who that is. The gate also puts on every answer what browsers are to be strict
about.
"""

import hmac
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlsplit

from fastapi import HTTPException
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsbus.config.forms import is_loopback
from tsbus.dashboard.door import Door, TooOften, Visitor
from tsbus.dashboard.web.errors import Refusal
from tsbus.dashboard.web.hosts import Hosts

MAX_BODY: Final = 1 << 20
MAX_FORM: Final = 16 << 10
"""Of the forms: anybody may send one."""
CSRF_HEADER: Final = "x-csrf-token"
SIGN_IN: Final = "/sign-in"
SIGN_OUT: Final = "/sign-out"
METRICS: Final = "/metrics"
ASSETS: Final = ("/static/", "/_nicegui/", "/favicon.ico")
"""Files of programs, the same for everybody: they tell nothing, and who signs in needs some."""
SOCKET: Final = "/_nicegui_ws/"
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_GONE: Final = 1008
"""Code of a web socket that is closed because of who is at its other end (RFC 6455 7.4.1: policy)."""

POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"
"""What a browser may load for an answer that says nothing else: nothing."""
_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_HSTS: Final = "max-age=31536000"


def visitor_of(request: HTTPConnection) -> Visitor:
    """Return who sends a request."""
    visitor: Visitor = request.state.visitor
    return visitor


def address_of(request: HTTPConnection) -> str:
    """Return where a request comes from."""
    return request.client.host if request.client else ""


class Gate:
    """The ASGI application in front of `app`."""

    def __init__(
        self, app: ASGIApp, door: Door, hosts: Hosts, cookie: str, *, secure: bool, behind_proxy: bool = False
    ) -> None:
        """`cookie` is the name of ours; `secure`: browsers reach it over TLS."""
        self.app = app
        self._door = door
        self._hosts = hosts
        self._cookie = cookie
        self._secure = secure
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        is_socket = scope["type"] == "websocket"
        if not is_socket:
            send = self._strictly(send)
        try:
            visitor = request.state.visitor = self._admit(request, "" if is_socket else scope["method"])
        except Refusal as refusal:
            if is_socket:
                await send({"type": "websocket.close", "code": _GONE})
            elif refusal.status is HTTPStatus.UNAUTHORIZED and _is_page(request):
                await RedirectResponse(f"{SIGN_IN}?next={quote(_wanted(request))}", 303)(scope, receive, send)
            else:
                await refusal.response()(scope, receive, send)
            return
        receive = _while_in(visitor, receive, send) if is_socket else _bounded(receive, _limit(scope["path"]))
        await self.app(scope, receive, send)

    # Who may pass.

    def _admit(self, request: HTTPConnection, method: str) -> Visitor:
        """Return who sends the request; `method` is empty for a web socket. Raises Refusal."""
        path = request.scope["path"]
        if not self._hosts.has(request.headers.get("host", "")):
            mend = "use its address, or add the name to allowed_hosts of [dashboard]"
            raise Refusal(HTTPStatus.BAD_REQUEST, "this dashboard is not known by that name", mend)
        if path.startswith(SOCKET) == bool(method):
            raise Refusal(HTTPStatus.NOT_FOUND, "the pages' web socket is at /_nicegui_ws/, and nothing else is")
        limit, length = _limit(path), request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise _too_long(limit)
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        is_bearer = kind.lower() == "bearer"
        visitor = self._door.visitor(request.cookies.get(self._cookie, ""), token if is_bearer else None)
        changes = method not in _SAFE
        if changes and not is_bearer and not _of_this_site(request):
            raise Refusal(HTTPStatus.FORBIDDEN, "a page of another site sent this", "open the dashboard itself")
        if path.startswith(ASSETS):
            return visitor
        self._count(request, visitor)
        if path == METRICS and self._is_local(request):
            return visitor
        if path != SIGN_IN and visitor.person is None:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "nobody is signed in")
        # The forms carry it in a field, and look at it themselves; a web socket cannot carry it.
        if changes and method and not is_bearer and path not in (SIGN_IN, SIGN_OUT):
            check_csrf(visitor, request.headers.get(CSRF_HEADER, ""))
        return visitor

    def _is_local(self, request: HTTPConnection) -> bool:
        """Tell whether a program of this machine asks, and no proxy for somebody else."""
        return not self._behind_proxy and is_loopback(address_of(request))

    def _count(self, request: HTTPConnection, visitor: Visitor) -> None:
        try:
            self._door.count(visitor, address_of(request))
        except TooOften as error:
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, str(error), "ask less often", wait_s=error.wait_s) from None

    # What goes back.

    def _strictly(self, send: Send) -> Send:
        async def strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self._secure:
                    headers["strict-transport-security"] = _HSTS
            await send(message)

        return strictly


def check_csrf(visitor: Visitor, shown: str) -> None:
    """Let nothing pass that does not show the session's secret, which no other site knows. Raises Refusal."""
    if not (visitor.csrf and hmac.compare_digest(visitor.csrf.encode(), shown.encode())):
        mend = "programs use a token: treescale dashboard token add NAME"
        raise Refusal(HTTPStatus.FORBIDDEN, f"a change needs the session's {CSRF_HEADER}", mend)


def _of_this_site(request: HTTPConnection) -> bool:
    """Tell whether no page of another site made the request. Browsers tell the origin of all that changes something."""
    origin = request.headers.get("origin")
    known = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    return known and request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def _is_page(request: HTTPConnection) -> bool:
    return request.scope["method"] == "GET" and "text/html" in request.headers.get("accept", "")


def _wanted(request: HTTPConnection) -> str:
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


def _limit(path: str) -> int:
    return MAX_FORM if path in (SIGN_IN, SIGN_OUT) else MAX_BODY


def _too_long(limit: int) -> Refusal:
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {limit} bytes", "send less")


def _bounded(receive: Receive, limit: int) -> Receive:
    """Count what comes: a body may come without its length."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            # Of the framework's own kind: it takes any other for a body that it could not read.
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(_too_long(limit)))
        return message

    return bounded


def _while_in(visitor: Visitor, receive: Receive, send: Send) -> Receive:
    """Close a page's web socket when who opened it is not signed in any more; it says something every few seconds."""

    async def checked() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive" and visitor.person is None:
            await send({"type": "websocket.close", "code": _GONE})
            return {"type": "websocket.disconnect", "code": _GONE}
        return message

    return checked
