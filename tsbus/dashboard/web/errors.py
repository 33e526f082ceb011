"""Errors: every answer that is none is `{error, mend}`, whoever refuses: the gate, a route or the framework."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tsbus.dashboard.door import NotAllowed, SessionEnded
from tsbus.log import Log

_log = Log("dashboard")

_MENDS: Final = {
    HTTPStatus.NOT_FOUND: "GET /api/openapi.json tells what there is",
    HTTPStatus.METHOD_NOT_ALLOWED: "GET /api/openapi.json tells which method it takes",
    HTTPStatus.UNAUTHORIZED: "sign in at /sign-in, or send Authorization: Bearer TOKEN",
}


class Refusal(Exception):
    """A request is not answered; `error` says why, `mend` what to do."""

    def __init__(
        self,
        status: HTTPStatus,
        error: str,
        mend: str = "",
        *,
        wait_s: float = 0.0,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """`wait_s`: when to try again; `more`: what else the body tells."""
        super().__init__(error)
        self.status, self.error, self.mend, self.wait_s, self.more = status, error, mend, wait_s, more or {}

    def response(self) -> Response:
        """Return the answer."""
        headers = {}
        if self.wait_s:
            headers["retry-after"] = str(max(1, round(self.wait_s)))
        if self.status is HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        mend = self.mend or _MENDS.get(self.status, "")
        return JSONResponse({"error": self.error, "mend": mend, **self.more}, self.status, headers)


def install(app: FastAPI) -> None:
    """Let `app` answer all errors in this form."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def framework(_: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        answer = Refusal(
            status, status.phrase.lower() if error.detail == status.phrase else str(error.detail)
        ).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def unfit(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return Refusal(
            HTTPStatus.BAD_REQUEST, f"{place}: {first['msg']}", "GET /api/openapi.json has its form"
        ).response()

    @app.exception_handler(SessionEnded)
    async def ended(_: Request, error: SessionEnded) -> Response:
        return Refusal(HTTPStatus.UNAUTHORIZED, str(error)).response()

    @app.exception_handler(NotAllowed)
    async def not_allowed(_: Request, error: NotAllowed) -> Response:
        return Refusal(HTTPStatus.FORBIDDEN, str(error), error.mend).response()

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        _log.error("request.failed", path=request.url.path, error=f"{type(error).__name__}: {error}")
        text = "the dashboard has a defect"
        return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, text, "its log has more; please report it").response()
