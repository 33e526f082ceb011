"""Standing: what is on each server next to what should be, as people and scripts get it. Pure."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tsbus.build.trouble import Trouble
from tsbus.cli.build.reportlines import trouble_object
from tsbus.cli.containers.words import count
from tsbus.cli.edge import Code
from tsbus.cli.lb.words import wrapped
from tsbus.cli.table import Column, table
from tsbus.cli.terminal import safe
from tsbus.core.target import fold

if TYPE_CHECKING:
    from tsbus.build.survey import Standing

_COLORS = {"silent": "yellow", "no node": "yellow", "failed": "red"}
_COLUMNS = (
    Column("NODES", least=12),
    Column("STATE", style=lambda cell: {"fg": _COLORS[cell]} if cell in _COLORS else {}),
    Column("RELEASE", least=12),
)


def standing_lines(
    standings: Collection["Standing"], failed: Mapping[str, Trouble], width: int | None
) -> Iterator[str]:
    """Return a table in which servers of which the same is to be said share a line, with what is wrong below it."""
    alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for each in standings:
        alike.setdefault((_state(each), each.release or "-", each.drift), []).append(each.name)
    for name, trouble in failed.items():
        alike.setdefault(("failed", "?", (trouble.text, f"mend: {trouble.mend}")), []).append(name)
    rows = [(fold(names), state, safe(release)) for (state, release, _), names in alike.items()]
    head, *lines = table(_COLUMNS, rows, width)
    yield head
    for line, (_, _, notes) in zip(lines, alike, strict=True):
        yield line
        for note in notes:
            yield from wrapped(safe(note), 2, width)
    yield ""
    fine = sum(not each.drift for each in standings)
    others = len(standings) - fine
    said = [f"{fine} as they should be" if fine else "", f"{others} not" if others else "",
            f"{len(failed)} could not be asked" if failed else ""]  # fmt: skip
    yield f"{count(len(standings) + len(failed), 'server')}: {', '.join(filter(None, said))}"


def standing_objects(standings: Collection["Standing"], failed: Mapping[str, Trouble]) -> Iterator[dict[str, Any]]:
    """Return what is known of each server, for --json."""
    for each in standings:
        yield {"node": each.name, "answers": each.answers, "release": each.release, "drift": list(each.drift)}
    for name, trouble in failed.items():
        yield {"node": name, "trouble": trouble_object(trouble)}


def standing_code(standings: Collection["Standing"], failed: Mapping[str, Trouble]) -> Code:
    """Return the exit code: whether all is as it should be."""
    if not standings:
        return Code.UNREACHABLE
    return Code.PARTIAL if failed or any(each.drift for each in standings) else Code.OK


def _state(each: "Standing") -> str:
    return "answers" if each.answers else "silent" if each.release else "no node"
