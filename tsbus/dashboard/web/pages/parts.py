"""Parts: the elements that screens are made of. Each has a script in `../static/` and takes what is new by `put`.

A part never takes markup: what it is sent becomes text nodes in the browser.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

from nicegui import ui
from nicegui.dependencies import register_esm
from nicegui.elements import echart as _echart  # noqa: F401  (its library gets the name by which livegraph.js loads it)
from nicegui.events import GenericEventArguments

STATIC: Final = Path(__file__).parents[1] / "static"

register_esm("treescale", STATIC, max_time=max(path.stat().st_mtime for path in STATIC.iterdir()))


class Column(TypedDict, total=False):
    """A column of a table. `kind`: text (default), mono, state, meter, chips, age, time, bytes, ... (cells.js)."""

    id: str
    title: str
    kind: str
    width: str
    """Of the grid's track: `90px`, `minmax(160px, 2fr)`."""
    end: bool
    """Numbers: at the right edge, largest first when sorted."""
    dim: bool
    line: int
    """On a narrow page: the first (default) or the second line; 0: left out."""
    label: str
    """On a narrow page: the word before it; by default the title on a second line, and none on the first."""
    after: str
    """On a narrow page: the word after it."""
    sort: bool


class Part(ui.element):
    """Something that is kept up by messages instead of properties, which would be sent whole at each change."""

    def put(self, message: dict[str, Any]) -> None:
        """Let the browser take what is new (`static/parts.js`)."""
        if not (self.is_deleted or self.client.is_deleted):
            self.client.outbox.enqueue_message("part", {"part": self.html_id, "message": message}, self.client.id)


class Table(Part, component="../static/livetable.js"):
    """Rows: see `sheets.Row`."""

    def __init__(
        self,
        label: str,
        columns: Sequence[Column],
        *,
        title: str = "",
        empty: str = "",
        filter: str = "",  # noqa: A002  (as it is called on the page)
        tree: bool = False,
        feed: bool = False,
        quiet: bool = False,
        headed: bool = False,
        on_act: Callable[[str, str], Any] | None = None,
    ) -> None:
        """`filter`: placeholder of its field, which is left out without; `quiet`: nothing is there while it is empty;
        `headed`: the columns are named although the whole has no title.

        `on_act` gets a row's key and the name of its button, or `open` for a row that leads nowhere by itself.
        """
        super().__init__()
        self._props.update(label=label, columns=list(columns), title=title, empty=empty, filter=filter)
        self._props.update(tree=tree, feed=feed, quiet=quiet, headed=headed or bool(title))
        if on_act is not None:

            async def act(event: GenericEventArguments) -> None:
                done = on_act(str(event.args["key"]), str(event.args["action"]))
                if done is not None:
                    await done

            self.on("act", act)


class Facts(Part, component="../static/livefacts.js"):
    """Named values, see `sheets.Fact`: `figures` are large, a `list` is quiet."""

    def __init__(self, label: str, look: str = "list") -> None:
        super().__init__()
        self._props.update(label=label, look=look)


class Graph(Part, component="../static/livegraph.js"):
    """Lines over time; `kind` of their values: percent, bytes or rate."""

    def __init__(self, label: str, kind: str) -> None:
        super().__init__()
        self._props.update(label=label, kind=kind)


class Lines(Part, component="../static/livelog.js"):
    """Lines of text as they come."""

    def __init__(self, label: str, empty: str, *, grows: bool = False) -> None:
        """`grows`: it is as high as what is in it, up to a bound; else always as high."""
        super().__init__()
        self._props.update(label=label, empty=empty, grows=grows)

    def append(self, lines: Sequence[tuple[str, str, str]], *, wipe: bool = False) -> None:
        """Append lines: who said it, what, and a tone. With `wipe` those before them go."""
        self.put({"lines": list(lines), "wipe": wipe})


class Search(Part, component="../static/livesearch.js"):
    """The field that finds everything. `on_ask` gets the words, and returns what the list shows."""

    def __init__(self, on_ask: Callable[[str], dict[str, Any]]) -> None:
        super().__init__()

        def ask(event: GenericEventArguments) -> None:
            found = on_ask(str(event.args["words"])[:200])
            self.put({"number": event.args["number"], **found})

        self.on("ask", ask)


class Standing(Part, component="../static/standing.js"):
    """How fresh the page is."""


def text(tag: str, words: str = "", classes: str = "", **attributes: str) -> ui.element:
    """Add an element with text."""
    made = ui.element(tag).classes(classes)
    made._text = words
    made._props.update(attributes)
    return made


def button(words: str, on_click: Callable[[], Any] | None, classes: str = "", refused: str = "") -> ui.element:
    """Add a button; with `refused` it does nothing but say why."""
    made = text("button", words, f"btn {classes}", type="button")
    if refused:
        made._props.update({"aria-disabled": "true", "title": refused})
    elif on_click is not None:
        made.on("click", on_click, [])
    return made
