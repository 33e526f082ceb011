"""The list of containers, of the whole tree or of a node."""

from collections.abc import Iterator
from typing import Final

from tsbus.dashboard.state import Model
from tsbus.dashboard.views import ContainerView
from tsbus.dashboard.web.pages import tones
from tsbus.dashboard.web.pages.page import Page
from tsbus.dashboard.web.pages.parts import Column, Table
from tsbus.dashboard.web.pages.sheets import Row, cut

_COLUMNS: Final[tuple[Column, ...]] = (
    {"id": "name", "title": "Container", "width": "minmax(150px, 1.6fr)"},
    {"id": "state", "title": "State", "kind": "state", "width": "116px"},
    {"id": "node", "title": "Node", "width": "minmax(80px, 0.7fr)", "line": 2, "label": ""},
    {"id": "image", "title": "Image", "width": "minmax(110px, 1.3fr)", "dim": True, "line": 0},
    {"id": "cpu", "title": "CPU, core", "kind": "percent", "width": "70px", "end": True, "line": 2, "label": "CPU"},
    {"id": "memory", "title": "Memory", "kind": "meter", "width": "150px", "end": True, "line": 2},
    {"id": "in", "title": "Net in", "kind": "rate", "width": "86px", "end": True, "line": 0},
    {"id": "out", "title": "Net out", "kind": "rate", "width": "86px", "end": True, "line": 0},
    {"id": "restarts", "title": "Restarts", "kind": "count", "width": "72px", "end": True, "line": 0, "dim": True},
    {"id": "since", "title": "Since", "kind": "age", "width": "90px", "end": True, "dim": True, "line": 2,
     "label": "for"},
)  # fmt: skip


class Rows:
    """The containers of all nodes, or of one, those that run first. A row is made anew when its view is another."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[ContainerView, bool, Row]] = {}

    def __call__(self, model: Model, now_ms: int, node: str = "") -> Iterator[Row]:
        """Return them as they are now."""
        before, self._made = self._made, {}
        for name in (node,) if node else model.nodes:
            containers = model.containers.get(name, {})
            lost = bool(containers) and model.nodes[name].state == "lost"
            for one in sorted(containers.values(), key=_place):
                key = f"{name}/{one.id}"
                known = before.get(key)
                if known is None or known[0] is not one or known[1] is not lost:
                    # While only figures flow, what it is found by stays: that is more than half of the work.
                    found_by = known[2].hay if known and known[0].record is one.record else hay(one)
                    known = one, lost, _row(key, one, found_by, lost=lost, with_node=not node)
                self._made[key] = known
                yield known[2]


def _place(container: ContainerView) -> tuple[bool, str]:
    return container.record.state not in ("running", "restarting"), container.name


def _row(key: str, container: ContainerView, found_by: str, *, lost: bool, with_node: bool) -> Row:
    record, sample, rates = container.record, container.sample, container.rates
    tone, word = tones.of_container(container)
    limit = sample.memory_limit if sample else 0
    started = record.started_ns if record.state == "running" else record.finished_ns or record.created_ns
    return Row(
        key=key,
        cells=(
            cut(container.name),
            (tone, word),
            *((container.node,) if with_node else ()),
            cut(record.image.given),
            sample.cpu if sample else None,
            (sample.memory / limit if limit else 0, tones.size(sample.memory)) if sample else None,
            rates.net_rx if rates else None,
            rates.net_tx if rates else None,
            record.restarts or None,
            started // 1_000_000 or None,
        ),
        href=f"/container/{key}",
        tone="lost" if lost or (record.state == "exited" and tone == "off") else "",
        hay=found_by,
    )


def hay(container: ContainerView) -> str:
    """Return what a container is found by, besides what is shown of it."""
    record = container.record
    labels = " ".join(f"{key}={value}" for key, value in list(record.labels.items())[:20])
    return cut(f"state:{record.state} state:{record.health or 'none'} id:{record.id} image:{record.image.given} "
               f"{' '.join(record.networks.values())} {labels}", 1000)  # fmt: skip


def table(page: Page, node: str = "") -> None:
    """Add the list of containers, of all nodes or of one."""
    columns = [column for column in _COLUMNS if not (node and column["id"] == "node")]
    empty = "No container is here yet: treescale container run IMAGE starts one."
    part = Table("Containers", columns, title="Containers", empty=empty, filter="image, state:unhealthy …")
    page.painter.show(part, Rows, *((node,) if node else ()))


def build(page: Page) -> None:
    """Show all containers."""
    page.watch()
    table(page)
