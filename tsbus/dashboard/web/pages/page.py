"""What the screens of one open page share: who looks, what keeps them up, and the dialogs before a change."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from nicegui import ui

from tsbus.dashboard.actions import Told
from tsbus.dashboard.door import NotAllowed, SessionEnded, Visitor
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.flows import ALL
from tsbus.dashboard.state import Model
from tsbus.dashboard.users import Person
from tsbus.dashboard.web.pages.painter import Painter
from tsbus.dashboard.web.pages.parts import button, text
from tsbus.dashboard.web.site import Site
from tsbus.errors import BusError

Act = Callable[[Person, Told], Awaitable[str]]
"""Does something for a person, tells what it is at, and returns in words what came of it."""
MAX_SAID: Final = 2000
"""Characters of an answer that a dialog shows."""


class Screen(ui.element):
    """What is shown now; what was begun for it ends with it, whether somebody goes on or closes the page."""

    def __init__(self) -> None:
        super().__init__("div")
        self.ends = ExitStack()
        self.classes("screen")

    def _handle_delete(self) -> None:
        self.ends.close()
        super()._handle_delete()


class Page:
    """One open page of one visitor."""

    def __init__(self, site: Site, painter: Painter, visitor: Visitor) -> None:
        """Nothing is shown yet: `show` begins a screen."""
        self.site = site
        self.painter = painter
        self.visitor = visitor
        self._ends = ExitStack()

    @property
    def model(self) -> Model:
        """The tree as it is known now."""
        return self.site.feed.model

    @property
    def feed(self) -> Feed:
        """Where figures come from."""
        return self.site.feed

    @property
    def refused(self) -> str:
        """Why this visitor may change nothing; empty if he may."""
        try:
            self.visitor.must_operate()
        except NotAllowed as error:
            return f"{error}; {error.mend}"
        except SessionEnded as error:
            return str(error)
        return ""

    def show(self) -> ui.element:
        """Return the element for a new screen; what was begun for the last one has ended with it."""
        screen = Screen()
        self._ends = screen.ends
        return screen

    def watch(self, node: str = ALL) -> None:
        """Let figures flow while this screen is open."""
        self._ends.enter_context(self.feed.watching(node))

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do `work` while this screen is open."""
        task = asyncio.create_task(work)
        self._ends.callback(task.cancel)
        return task

    def confirm(self, question: str, words: str, verb: str, act: Act, *, grave: bool = False) -> None:
        """Ask, with the name of what is changed; then let `act` do it, and show what it tells or why it failed."""
        with ui.dialog().props(f'aria-label="{verb}" persistent') as dialog, text("div", classes="dialog"):
            text("h1", question)
            text("p", words, "dim")
            said = text("p", "", "said", role="status")
            with text("div", classes="ends"):
                leave = button("Cancel", dialog.close)

                async def do() -> None:
                    go.props("disabled")
                    _say(said, "Under way …")
                    try:
                        _say(said, await act(self.visitor.must_operate(), partial(_say, said)) or "Done.")
                        go.set_visibility(False)
                        _say(leave, "Close")
                    except (BusError, NotAllowed, SessionEnded) as error:
                        _say(said, str(error) or type(error).__name__, "bad")
                        go.props(remove="disabled")

                go = button(verb, do, "danger" if grave else "primary")
        dialog.on("hide", dialog.delete)
        dialog.open()

    def tell(self, title: str, words: str) -> None:
        """Show a text from outside, as it is."""
        with ui.dialog().props('aria-label="Details"') as dialog, text("div", classes="dialog wide"):
            text("h1", title)
            text("pre", words, tabindex="0")
            with text("div", classes="ends"):
                button("Close", dialog.close)
        dialog.on("hide", dialog.delete)
        dialog.open()


def _say(element: ui.element, words: str, tone: str = "") -> None:
    element._text = words[:MAX_SAID]
    element.classes(replace=f"{' '.join(one for one in element._classes if one != 'bad')} {tone}")
    element.update()


def missing(what: str) -> None:
    """Say that there is no such thing, or not any more."""
    with text("section", classes="start"):
        text("h1", what)
        text("p", "It may have been removed, or the address is wrong.")
        text("a", "Back to the tree", "btn", href="/")
