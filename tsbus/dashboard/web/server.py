"""Server: the application, from the gate inwards, and uvicorn in the loop of the bus client."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI
from nicegui import core, ui
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from tsbus.config import Dashboard
from tsbus.dashboard import metrics
from tsbus.dashboard.feed import unix_ms
from tsbus.dashboard.tap import Tap
from tsbus.dashboard.web import api, errors, pages, signin
from tsbus.dashboard.web.gate import MAX_BODY, METRICS, Gate
from tsbus.dashboard.web.hosts import Hosts
from tsbus.dashboard.web.scripts import PageScripts
from tsbus.dashboard.web.site import Site
from tsbus.dashboard.web.stream import Streams
from tsbus.log import adopt

STATIC: Final = Path(__file__).parent / "static"
MAX_CONNECTIONS: Final = 1000
RECONNECT_S: Final = 10.0
"""So long a page may be cut off and then go on where it was; after that it loads itself anew."""
END_S: Final = 2
"""So long requests under way may take when the server ends; streams are cut."""


class ListenError(Exception):
    """It cannot listen; the text says where, why and what to do."""


class CertificateError(Exception):
    """TLS cannot be spoken with these files; the text says why."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where the server listens."""

    socket: socket.socket
    url: str

    @property
    def port(self) -> int:
        """The port; one that was free where 0 was asked for."""
        return int(self.socket.getsockname()[1])


def listen(settings: Dashboard) -> Listener:
    """Listen where `settings` say. Raises ListenError."""
    host, port = settings.host, settings.port
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(place[:2], family=family, backlog=256, dualstack_ipv6=both)
        # Connections inherit it. asyncio would set it on those of a socket that was made for TCP by number, which this
        # one was not; without it the body of an answer waits 40 ms for the acknowledgement of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        # Of its own words create_server makes long ones.
        why = str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        mend = "give another one with --host and --port, or in [dashboard]"
        raise ListenError(f"cannot listen at {host}:{port}: {why}; {mend}") from error
    return Listener(listener, replace(settings, port=listener.getsockname()[1]).url)


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise CertificateError for a certificate that TLS cannot be spoken with."""
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise CertificateError(f"cannot read {path}: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise CertificateError(
            f"{certificate} and {key} are no certificate and its key: {error.reason or error}"
        ) from error


def application(site: Site, settings: Dashboard, listener: Listener, *, names: Iterable[str]) -> Gate:
    """Return the whole application, reached by `names` too. Once in a process: NiceGUI is one for all."""
    secure = bool(settings.certificate) or settings.behind_proxy
    # Cookies do not know ports: two dashboards on one machine must not take each other's.
    cookie = f"treescale-{listener.port}"
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    errors.install(app)
    app.include_router(signin.router(site.door, cookie, secure=secure))
    app.mount("/api", api.application(site, Streams(site, Tap(site.client, site.feed))))
    app.add_api_route(METRICS, _scraped(site))
    app.mount("/static", StaticFiles(directory=STATIC))
    pages.install(site)
    core.app.add_middleware(PageScripts)
    core.app.config.socket_io_js_transports = ["websocket"]
    ui.run_with(
        app, title="TreeScale", dark=None, show_welcome_message=False, tailwind=False, reconnect_timeout=RECONNECT_S
    )
    hosts = Hosts((*names, *settings.allowed_hosts))
    return Gate(app, site.door, hosts, cookie, secure=secure, behind_proxy=settings.behind_proxy)


def _scraped(site: Site) -> Callable[[], Awaitable[Response]]:
    async def scrape() -> Response:
        """Tell the model to Prometheus. Figures flow until it can be expected to ask again."""
        site.feed.watch_for(metrics.LEASE_S)
        told = metrics.take(site.feed.model, unix_ms())
        return Response(await asyncio.to_thread(metrics.exposition, told), media_type=metrics.CONTENT_TYPE)

    return scrape


class Running(uvicorn.Server):
    """Uvicorn in a loop that is somebody else's: it leaves signals alone, and ends when it is cancelled."""

    def __init__(self, gate: Gate, listener: Listener, tls: tuple[Path, Path] | None, *, behind_proxy: bool) -> None:
        """`tls`: certificate and key."""
        super().__init__(
            uvicorn.Config(
                gate,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=behind_proxy,
                ws_max_size=MAX_BODY,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=END_S,
                ssl_certfile=tls[0] if tls else None,
                ssl_keyfile=tls[1] if tls else None,
            )
        )
        self._socket = listener.socket

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to whoever runs the loop."""
        yield

    async def run_until_cancelled(self, ready: Callable[[], object], closing: asyncio.Event) -> None:
        """Serve; `ready` is called once it answers, and `closing` set when it ends."""
        for name in ("uvicorn", "nicegui"):
            adopt(name)
        serving = asyncio.create_task(self.serve(sockets=[self._socket]))
        try:
            while not self.started and not serving.done():
                await asyncio.sleep(0.01)
            if self.started:
                ready()
            await asyncio.shield(serving)
            raise RuntimeError("the HTTP server ended by itself")
        finally:
            closing.set()
            # From here on it would complain of every browser that does not leave.
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
            self.should_exit = True
            await serving
