"""Commands: run a program on a target, see its output as it comes, and what has run before."""

import asyncio
import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec
from nicegui import ui

from tsbus.audit import Entry, Wish
from tsbus.core.accounting import Outcome
from tsbus.core.target import TargetError, fold
from tsbus.dashboard.actions import Told
from tsbus.dashboard.door import NotAllowed, SessionEnded
from tsbus.dashboard.feed import unix_ms
from tsbus.dashboard.users import Person
from tsbus.dashboard.web.pages.folding import Folded
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Column, Lines, Table, button, text
from tsbus.dashboard.web.pages.sheets import Row, cut
from tsbus.dashboard.web.pages.tones import Tone
from tsbus.errors import BusError

PAUSE_S: Final = 0.3
"""Between two drawings of the output."""
RUN_S: Final = 3600.0
_JOBS_S: Final = 5.0
AUDITED: Final = 100
"""Entries of each node."""
_RAN: Final[tuple[Column, ...]] = (
    {"id": "what", "title": "What", "width": "minmax(160px, 2fr)"},
    {"id": "how", "title": "Ended", "kind": "state", "width": "120px"},
    {"id": "node", "title": "Node", "width": "minmax(80px, 0.7fr)", "line": 2, "label": ""},
    {"id": "who", "title": "Who", "width": "minmax(100px, 1fr)", "line": 2, "label": "", "dim": True},
    {"id": "why", "title": "Why", "width": "minmax(100px, 1fr)", "line": 0, "dim": True},
    {"id": "took", "title": "Took", "kind": "ms", "width": "80px", "end": True, "line": 0},
    {"id": "when", "title": "Began", "kind": "age", "width": "90px", "end": True, "dim": True, "line": 2, "label": "",
     "after": "ago"},
)  # fmt: skip
_TONES: Final[dict[str, Tone]] = {"ok": "ok", "failed": "warn", "refused": "bad", "open": "busy"}


def jobs(node: str, told: dict[str, Any]) -> Iterator[Row]:
    """Return the rows of what a node's executor told of its jobs."""
    for job in (*told.get("running", ()), *reversed(told.get("finished", ()))):
        yield Row(
            key=f"{node} {job.get('job')}",
            cells=(
                cut(job.get("shell") or shlex.join(job.get("argv", ()))),
                _how(job),
                node,
                _who(job.get("person", ""), job.get("who", ""), job.get("origin", "")),
                None,
                job.get("duration_ms"),
                job.get("started_ms"),
            ),
        )


def _who(person: str, who: str, origin: str) -> str:
    return cut(f"{person} by {who}" if person else f"{who} at {origin}")


def _how(job: dict[str, Any]) -> tuple[str, str]:
    if "duration_ms" not in job:
        return "busy", "runs"
    if job.get("signal"):
        return "bad", f"killed by {job['signal']}"
    return ("ok", "exit 0") if job.get("exit") == 0 else ("warn", f"exit {job.get('exit')}")


def audit(node: str, told: list[Entry], first: int) -> Iterator[Row]:
    """Return the rows of entries of a node's audit log; `first` is the number of the first one."""
    for number, entry in enumerate(told, first):
        what = entry.what if entry.command == "exec.run" else f"{entry.command} {entry.what}"
        yield Row(
            key=f"{node} {number}",
            cells=(
                cut(what),
                (_TONES[entry.outcome], "no end yet" if entry.outcome == "open" else entry.outcome),
                node,
                _who(entry.person, entry.who, entry.origin),
                cut(entry.why),
                entry.took_ms,
                entry.time_ms,
            ),
        )


def build(page: Page, target: str = "", command: str = "") -> None:
    """Show the form, filled in by the address if it says so."""
    refused = page.refused
    with text("section"):
        text("h2", "Run a program")
        with text("form", classes="form") as form:
            with text("label"):
                text("span", "On")
                text("input", classes="field", name="target", **{"^value": target}, placeholder="node[1-3], @web, *",
                             autocomplete="off", spellcheck="false")  # fmt: skip
            with text("label", classes="long"):
                text("span", "Program and arguments; no shell has a part in it")
                text("input", classes="field mono", name="command", **{"^value": command}, placeholder="df -h /",
                            autocomplete="off", spellcheck="false")  # fmt: skip
            go = text("button", "Run", "btn primary", type="submit")
        said = text("p", f"Not possible: {refused}." if refused else "", "said", role="status")
    if refused:
        go._props.update({"aria-disabled": "true", "title": refused})
    empty = "What the program writes is shown here, nodes that wrote the same put together."
    output = Lines("Output", empty, grows=True)
    empty = "No executor has told of anything. What is run here, or by treescale exec, is listed."
    table = Table("What ran last", _RAN, title="What ran last", filter="Filter", empty=empty)
    run = _Run(page, output, said, table)

    async def submit(event: Any) -> None:
        fields = event.args or {}
        run.ask(str(fields.get("target", "")).strip(), str(fields.get("command", "")).strip())

    if not refused:
        # The browser sends both fields with the event, so nothing is sent while somebody types.
        form.on("submit.prevent", submit, js_handler=_FIELDS)
    with output:
        button("Cancel", run.cancel, "small")
    page.start(run.refresh())


async def _read_jobs(page: Page) -> dict[str, list[Row]]:
    """Return, by node, what its executor remembers of programs. Raises BusError and DecodeError."""
    rows: dict[str, list[Row]] = {}
    async with page.site.client.request("*", "exec.jobs", timeout_s=_JOBS_S) as call:
        async for reply in call:
            if reply.status is Outcome.OK and reply.body:
                rows[reply.node] = list(jobs(reply.node, msgspec.json.decode(reply.body)))
    return rows


async def _read_audit(page: Page) -> dict[str, list[Row]]:
    """Return, by node, what its audit logs have. Raises BusError, DecodeError, NotAllowed and SessionEnded."""
    rows: dict[str, list[Row]] = {}
    client = page.site.actions.client_for(page.visitor.must_operate())
    async with client.request("*", "exec.audit", Wish(last=AUDITED), timeout_s=_JOBS_S) as call:
        async for reply in call:
            if reply.node not in rows:
                rows[reply.node] = []  # the first piece is its head
            elif not reply.last:
                told = msgspec.json.decode(reply.body, type=list[Entry])
                rows[reply.node] += audit(reply.node, told, len(rows[reply.node]))
    return rows


_FIELDS: Final = "(event) => emit(Object.fromEntries(new FormData(event.target)))"


class _Run:
    """The program that this page runs, if it does."""

    def __init__(self, page: Page, output: Lines, said: ui.element, table: Table) -> None:
        self._page, self._output, self._said, self._table = page, output, said, table
        self._task: asyncio.Task[None] | None = None

    def ask(self, target: str, command: str) -> None:
        """Check what was typed, and ask with the names of the nodes."""
        try:
            nodes = self._page.model.select(target)
            argv = shlex.split(command)
            if not argv:
                raise ValueError("name a program")
        except (TargetError, ValueError) as error:
            self._say(str(error), "bad")
            return
        names = fold(nodes)
        many = f"on {len(nodes)} nodes" if len(nodes) > 1 else f"on {names}"
        words = f"{names}. It runs there as the executor's default user, and the audit log has your name."

        async def act(person: Person, _: Told) -> str:
            self.cancel()
            self._task = self._page.start(self._run(person, target, argv))
            return "It runs; its output comes below."

        self._page.confirm(f"Run {shlex.join(argv)} {many}?", words, "Run", act)

    def cancel(self) -> None:
        """End the program that runs."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, person: Person, target: str, argv: list[str]) -> None:
        folded = Folded()
        try:
            async with self._page.site.actions.run(person, target, argv, timeout_s=RUN_S) as call:
                folded.begin(await call.nodes())
                drawn = 0.0
                loop = asyncio.get_running_loop()
                async for reply in call:
                    folded.take(reply)
                    if loop.time() - drawn > PAUSE_S:
                        self._draw(folded)
                        drawn = loop.time()
        except asyncio.CancelledError:
            self._say("Cancelled: the program gets SIGTERM.")
            raise
        except (BusError, NotAllowed, SessionEnded) as error:
            self._say(str(error), "bad")
        finally:
            self._draw(folded)
        await self.refresh()

    def _draw(self, folded: Folded) -> None:
        self._output.append(folded.lines(), wipe=True)
        self._say(f"{folded.ended} of {len(folded)} nodes have ended.")

    def _say(self, words: str, tone: str = "") -> None:
        self._said._text = words
        self._said.classes(replace=f"said {tone}")
        self._said.update()

    async def refresh(self) -> None:
        """Ask what was done last: the audit logs for who may see them, else what executors remember."""
        rows: dict[str, list[Row]] = {}
        try:
            rows = await _read_jobs(self._page)
            with suppress(NotAllowed, SessionEnded):
                # A log has all that its executor remembers, and more.
                rows |= {node: told for node, told in (await _read_audit(self._page)).items() if told}
        except (BusError, msgspec.DecodeError) as error:
            self._say(str(error), "bad")
        newest = sorted((row for told in rows.values() for row in told), key=lambda row: -(row.cells[-1] or 0))
        self._table.put({"now": unix_ms(), "set": newest, "order": [row.key for row in newest]})
