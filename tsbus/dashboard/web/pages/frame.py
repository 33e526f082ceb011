"""The frame around every screen: navigation, search, who is signed in, and how fresh it all is.

One page of NiceGUI holds all screens and changes between them, so that neither scripts nor the connection are loaded
anew. `install` hangs it into the server.
"""

import asyncio
import html
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from nicegui import app, ui
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tsbus.dashboard.state import Model
from tsbus.dashboard.web.gate import SIGN_IN, SIGN_OUT, visitor_of
from tsbus.dashboard.web.pages import (
    alerts,
    balancers,
    bus,
    commands,
    container,
    containers,
    events,
    finding,
    node,
    tree,
)
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.painter import Painter
from tsbus.dashboard.web.pages.parts import STATIC, Search, Standing, text
from tsbus.dashboard.web.site import Site

_NAV: Final = (
    ("/", "Tree"), ("/containers", "Containers"), ("/balancers", "Balancers"), ("/events", "Events"), ("/bus", "Bus"),
    ("/commands", "Commands"), ("/alerts", "Alerts"),
)  # fmt: skip
_SCREENS: Final[dict[str, Callable[..., None]]] = {
    "/": tree.build,
    "/node/{name}": node.build,
    "/containers": containers.build,
    "/container/{node}/{short}": container.build,
    "/balancers": balancers.build,
    "/events": events.build,
    "/bus": bus.build,
    "/commands": commands.build,
    "/alerts": alerts.build,
}
_LOGO: Final = "M12 4v6M12 10H5v5M12 10h7v5M12 10v5M10 2h4v2h-4zM3 15h4v4H3zM10 15h4v4h-4zM17 15h4v4h-4z"
_STYLE: Final = f"/static/treescale.css?{int(max(path.stat().st_mtime for path in STATIC.iterdir()))}"
_tasks: set[asyncio.Task[None]] = set()


def install(site: Site) -> None:
    """Make the pages of a site known to NiceGUI, and keep them up for as long as the loop runs."""
    painter = Painter(site.feed)
    task = asyncio.get_running_loop().create_task(painter.run())
    _tasks.add(task)  # a loop holds its tasks weakly
    task.add_done_callback(_tasks.discard)

    def frame(request: Request) -> None:
        _frame(Page(site, painter, visitor_of(request)))

    @app.get(events.DOWNLOAD, include_in_schema=False)
    def download() -> Response:
        return StreamingResponse(events.download(site.feed.model.events), media_type="application/jsonl")

    # A bar of Quasar's over every request of the page says nothing here: figures come over the socket.
    app.config.quasar_config["loadingBar"]["skipHijack"] = True
    for path in _SCREENS:
        ui.page(path, title="TreeScale", dark=None, language="en-US")(frame)


def _frame(page: Page) -> None:
    ui.add_head_html(f'<link rel="stylesheet" href="{html.escape(_STYLE)}">')
    # The page itself is Quasar's <main>, so the header is put beside it.
    with ui.context.client.layout, ui.element("header").classes("top") as header:
        with text("a", classes="brand", href="/", **{"aria-label": "TreeScale, to the tree"}):
            with ui.element("svg").props('viewBox="0 0 24 24" aria-hidden="true"'):
                ui.element("path")._props["d"] = _LOGO
            text("span", "TreeScale")
        with text("nav", classes="nav", **{"aria-label": "Screens"}):
            links = {path: text("a", label, href=path) for path, label in _NAV}
        Search(partial(finding.find, page.model))
        with text("div", classes="me"):
            page.painter.draw(Standing(), _standing)
            _person(page)
    header.move(target_index=0)
    headings = dict(_NAV)  # the other screens have their own: the name of what they show
    ui.sub_pages({path: _screen(page, build, headings.get(path, "")) for path, build in _SCREENS.items()})
    router = ui.context.client.sub_pages_router
    router.on_path_changed(partial(_mark, links))
    _mark(links, router.current_path)


def _person(page: Page) -> None:
    person = page.visitor.person
    if person is not None and person.name:
        text("span", person.name, "who")
        with text("form", method="post", action=SIGN_OUT):
            text("input", type="hidden", name="csrf", value=page.visitor.csrf)
            text("button", "Sign out", type="submit")
    elif page.refused:
        # Else NiceGUI would look for a screen of this path.
        text("a", "Sign in", href=SIGN_IN).on("click", js_handler="(event) => event.stopPropagation()")


def _screen(page: Page, build: Callable[..., None], heading: str) -> Callable[..., None]:
    """Return `build` with the page, within a screen of its own; sub pages look at its parameters."""

    def show(**arguments: Any) -> None:
        with page.show():
            if heading:
                text("h1", heading, "sr")
            build(page, **arguments)

    parameters = list(inspect.signature(build).parameters.values())[1:]
    show.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return show


def _mark(links: dict[str, ui.element], path: str) -> None:
    """Mark in the navigation where we are."""
    here = "/" + path.split("?")[0].split("/")[1]
    here = {"/node": "/", "/container": "/containers"}.get(here, here)
    for target, link in links.items():
        if here == target:
            link.props('aria-current="page"')
        else:
            link.props(remove="aria-current")


def _standing(model: Model, now_ms: int) -> dict[str, Any]:
    lost_ms = 0 if model.connected else model.connected_ms
    why = f"the router of {model.here} does not answer; supervisorctl status router tells there why."
    return {"lost_ms": lost_ms, "why": why}
