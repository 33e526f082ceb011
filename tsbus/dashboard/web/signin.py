"""Sign-in: the page with the form, and the two requests that begin and end a session. Plain HTML without a script."""

from html import escape
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tsbus.dashboard.door import Door, TooOften
from tsbus.dashboard.sessions import LIFE_S
from tsbus.dashboard.web.gate import POLICY, SIGN_IN, SIGN_OUT, address_of, check_csrf, visitor_of
from tsbus.log import Log

_log = Log("dashboard")
_POLICY: Final = f"{POLICY}; style-src 'self'; img-src 'self'; form-action 'self'"
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in - TreeScale</title>
<link rel="stylesheet" href="/static/signin.css">
</head>
<body>
<main>
<h1>TreeScale</h1>
<form method="post" action="{action}">
<input type="hidden" name="next" value="{next}">
<label for="name">Name</label>
<input id="name" name="name" required autofocus autocomplete="username" autocapitalize="none" spellcheck="false">
<label for="password">Password</label>
<input id="password" name="password" type="password" required autocomplete="current-password">
<p class="told" role="alert">{told}</p>
<button>Sign in</button>
</form>
</main>
</body>
</html>
"""
ENDED: Final = "Your session has ended. Sign in to go on where you were."


def router(door: Door, cookie: str, *, secure: bool) -> APIRouter:
    """Return the routes; `cookie` is the name of ours, `secure`: browsers reach us over TLS."""
    routes = APIRouter(include_in_schema=False)

    @routes.get(SIGN_IN)
    async def form(request: Request) -> Response:
        wanted = request.query_params.get("next", "/")
        if door.open:
            told = "Nobody has to sign in here. To let people act: treescale dashboard user add NAME --role operate"
            return _page(wanted, told)
        return _page(wanted, ENDED if cookie in request.cookies and visitor_of(request).person is None else "")

    @routes.post(SIGN_IN)
    async def sign_in(request: Request) -> Response:
        told = await request.form(max_fields=10)
        name, password, wanted = (str(told.get(key, "")) for key in ("name", "password", "next"))
        try:
            value = await door.sign_in(name, password, address_of(request))
        except TooOften as error:
            return _page(wanted, str(error).capitalize() + ".", 429)
        _log.info("sign-in", name=name if value else "?", ok=value is not None, address=address_of(request))
        if value is None:
            return _page(wanted, "Wrong name or password.", 401)
        answer = RedirectResponse(wanted if _is_ours(wanted) else "/", 303)
        answer.set_cookie(cookie, value, max_age=round(LIFE_S), httponly=True, samesite="lax", secure=secure)
        return answer

    @routes.post(SIGN_OUT)
    async def sign_out(request: Request) -> Response:
        visitor = visitor_of(request)
        check_csrf(visitor, str((await request.form(max_fields=10)).get("csrf", "")))
        visitor.sign_out()
        answer = RedirectResponse(SIGN_IN, 303)
        answer.delete_cookie(cookie)
        return answer

    return routes


def _page(wanted: str, told: str, status: int = 200) -> Response:
    text = _PAGE.format(action=SIGN_IN, next=escape(wanted if _is_ours(wanted) else "/"), told=escape(told))
    return HTMLResponse(text, status, {"content-security-policy": _POLICY})


def _is_ours(path: str) -> bool:
    """Tell whether a path leads to this dashboard: `//elsewhere` and `/\\elsewhere` would not."""
    return path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
