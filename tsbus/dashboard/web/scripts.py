"""Scripts: lets a page run the scripts that NiceGUI writes into it, and no other, by a nonce of each answer.

NiceGUI forces two exceptions: it evaluates handlers and templates in the browser (`unsafe-eval`), and Vue and Quasar
set styles in attributes (`unsafe-inline`, for styles alone). What comes from outside reaches a page in escaped JSON, so
it cannot hold a `<script` that would get the nonce.
"""

import secrets
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


class PageScripts:
    """ASGI middleware around NiceGUI's application, inside of its compression."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; a page in the answer is held back until it is whole."""
        start: Message | None = None
        body = b""

        async def held(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message if _is_page(message) else None
            if start is None:
                await send(message)
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    nonce = secrets.token_urlsafe(16)
                    body = body.replace(b"<script", f'<script nonce="{nonce}"'.encode())
                    headers = MutableHeaders(scope=start)
                    headers["content-security-policy"] = _POLICY.format(nonce=nonce)
                    headers["content-length"] = str(len(body))
                    await send(start)
                    await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, held if scope["type"] == "http" else send)


def _is_page(message: Message) -> bool:
    return MutableHeaders(scope=message).get("content-type", "").startswith("text/html")
