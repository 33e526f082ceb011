"""Picture: how the progress of a build is drawn on a terminal of any size. Pure.

A line for each stage, those that have been at work for longest, and who has failed; what there is no room for is
counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from tsbus.cli.build.progress import Progress, State, Upload
from tsbus.cli.table import cut
from tsbus.cli.terminal import duration, safe
from tsbus.core.target import fold

LONGEST: Final = 3
_WORDS: Final[dict[State, str]] = {
    "working": "working", "waiting": "waiting", "failed": "failed", "skipped": "left out",
}  # fmt: skip
_ALWAYS: Final = ("working", "waiting")
_STYLES: Final[dict[State, str]] = {"working": "yellow", "waiting": "", "failed": "red", "skipped": "magenta"}
_BAR: Final = (10, 30)
"""How narrow a bar may get before there is none, and how wide."""
_MOST_WIDE: Final = 100
_NAMES: Final = 24
"""Characters for the names of those that have failed alike."""
_UNITS: Final = ("KiB", "MiB", "GiB")


class Span(NamedTuple):
    """A piece of a line; the style is a word of rich, and only repeats what the text says."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def picture(
    progress: Progress, title: str, now_s: float, width: int, height: int, *, failed: bool = True
) -> list[Line]:
    """Return at most `height` lines of at most `width` characters; without `failed`, nothing of who has and why."""
    lines = [_title(progress, title, now_s, width), *_stages(progress, width)]
    longest = list(_longest(progress, now_s))
    room = height - len(lines)
    bad = list(_failed(progress, max(room - len(longest), 3))) if failed else []
    if len(longest) + len(bad) > room:
        longest = []
    return [_fitted(line, width) for line in [*lines, *longest, *bad][:height]]


def plain(line: Line) -> str:
    """Return a line as text."""
    return "".join(span.text for span in line)


def _title(progress: Progress, title: str, now_s: float, width: int) -> Line:
    """Return the title, and at the right what has been uploaded and how long it has been going."""
    upload = progress.upload()
    sent = f"{_bytes(upload)} sent, " if upload else ""
    elapsed = duration(progress.elapsed_s(now_s))
    gap = max(min(width, _MOST_WIDE) - len(title) - len(sent) - len(elapsed), 2)
    return Span(title, "bold"), Span(" " * gap), Span(sent, "cyan"), Span(elapsed)


def _stages(progress: Progress, width: int) -> Iterator[Line]:
    """Yield a line for each stage, with a bar where there is room for it, and numbers in columns."""
    counts = progress.counts()
    if not counts:
        return
    names, digits = _widest(counts), len(str(max(count.total() for count in counts.values())))
    # Columns that come and go would make the bars jump: only those of bad news do.
    states = [state for state in _WORDS if state in _ALWAYS or any(count[state] for count in counts.values())]
    bar = width - (2 + names + 2 + 2 + 2 * digits + 1 + sum(len(_number(1, state, digits)) for state in states))
    for stage, count in counts.items():
        done = f"{count['done']}/{count.total()}"
        yield (
            Span(f"  {stage:{names}}  "),
            *(_bar(count, min(bar, _BAR[1])) if bar >= _BAR[0] else ()),
            Span(f"{done:>{2 * digits + 1}}", "green" if count["done"] == count.total() else ""),
            *(Span(_number(count[state], state, digits), _STYLES[state]) for state in states),
        )


def _number(number: int, state: State, digits: int) -> str:
    cell = f"  {number:>{digits}} {_WORDS[state]}"
    return cell if number else " " * len(cell)


def _bar(count: Counter[State], width: int) -> Line:
    done = width * count["done"] // count.total()
    # Whoever failed is in the bar from the first one on.
    failed = min(-(-width * (count["failed"] + count["skipped"]) // count.total()), width - done)
    return Span("━" * done, "green"), Span("╍" * failed, "red"), Span("─" * (width - done - failed) + "  ", "dim")


def _longest(progress: Progress, now_s: float) -> Iterator[Line]:
    found = progress.longest(LONGEST)
    if not found:
        return
    names, stages = _widest(work.name for work in found), _widest(work.stage for work in found)
    times = [duration(now_s - work.since_s) for work in found]
    yield ()
    yield (Span("  at work for longest"),)
    for work, time in zip(found, times, strict=True):
        upload = progress.upload_of(work.name) if work.stage == "bundle" else None
        doing = f"{_bytes(upload)} of the bundle" if upload else safe(work.doing)
        yield (
            Span(f"    {work.name:{names}}  {work.stage:{stages}}  "),
            Span(f"{time:>{_widest(times)}}", "yellow"),
            Span(f"  {doing}"),
        )


def _failed(progress: Progress, most: int) -> Iterator[Line]:
    """Yield at most so many lines, the same trouble of several servers on one."""
    if not progress.failed:
        return
    alike: dict[tuple[str, str], list[str]] = {}
    for each in progress.failed.values():
        alike.setdefault((each.stage, each.trouble.text), []).append(each.name)
    rows = [(cut(fold(names), _NAMES), stage, safe(text)) for (stage, text), names in alike.items()]
    shown = len(rows) if len(rows) + 2 <= most else max(most - 3, 0)
    hidden = sum(len(names) for names in list(alike.values())[shown:])
    wide, stages = _widest(row[0] for row in rows[:shown]), _widest(row[1] for row in rows[:shown])
    yield ()
    yield (Span(f"  failed {len(progress.failed)}", "red"),)
    for who, stage, text in rows[:shown]:
        yield Span(f"    {who:{wide}}  {stage:{stages}}  "), Span(text, "red")
    if hidden:
        yield (Span(f"    ... and {hidden} more", "red"),)


def _fitted(line: Line, width: int) -> Line:
    """Return the line, cut to `width` characters with a mark where it was cut."""
    if sum(len(span.text) for span in line) <= width:
        return line
    spans, left = [], max(width - 1, 0)
    for span in line:
        spans.append(Span(span.text[:left], span.style))
        left -= len(spans[-1].text)
    return *spans, Span("…"[:width])


def _bytes(upload: Upload) -> str:
    """Return both numbers in the unit of the larger one: `2.1 of 3.6 MiB`."""
    have, total = upload.have / 1024, upload.total / 1024
    for unit in _UNITS:
        if total < 1000 or unit == _UNITS[-1]:
            break
        have, total = have / 1024, total / 1024
    return f"{have:.1f} of {total:.1f} {unit}"


def _widest(words: Iterable[str]) -> int:
    return max(map(len, words), default=0)
