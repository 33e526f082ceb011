"""Orders: what the console tells the installer on a node, and what it hears from it. Pure, but for reading its source.

`script` starts the installer there. It prints a first line, which says what it `have`s of the bundle; then it reads a
`document`, then the rest of the bundle. `parse` reads each line that it prints.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tsbus.build.places import FILES, KEY, plain
from tsbus.build.steps import Step
from tsbus.build.trouble import Failure
from tsbus.copies import digest

FORMAT: Final = 1
SELF_CHECK: Final = """\
import importlib, zmq
assert zmq.has("curve") and len(zmq.curve_keypair()[0]) == 40, "its libzmq has no CURVE"
for module in ("docker", "pyroute2", "supervisor.supervisord", "tomlkit", "tsbus.cli.main", "tsbus.loop",
               "tsbus.executor.main", "tsbus.containers.main", "tsbus.balancer.main", "tsbus.supervision.listener"):
    importlib.import_module(module)
"""
"""What a release must be able to do before anything uses it."""
DASHBOARD_CHECK: Final = 'importlib.import_module("tsbus.dashboard.web.server")\n'


@dataclass(frozen=True, slots=True)
class Parcel:
    """What of a bundle the installer must know."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Report:
    """One line of the installer."""

    state: str
    """ready, begin, output, ok, changed or failed."""
    order: int = -1
    """Which one; -1: none yet."""
    seconds: float = 0.0
    told: Mapping[str, Any] = field(default_factory=dict)
    """What else it says: `have` (bytes of the bundle), `text` of a script, `public_key`, `programs`, `error` ..."""

    @property
    def have(self) -> int:
        """How many bytes of the bundle are there."""
        have = self.told.get("have", 0)
        return have if type(have) is int and have >= 0 else 0

    def failure(self, step: Step | None, place: str) -> Failure:
        """Return what went wrong, for trouble.classify; `step` is that of the order."""
        told = self.told
        error, status, number = told.get("error"), told.get("status"), told.get("errno")
        return Failure(
            step.stage if step else "installer",
            place,
            type=str(told.get("type", "")) or ("" if type(status) is int else "Failed"),
            errno=number if type(number) is int else None,
            text=str(error),
            status=status if type(status) is int else None,
            output=str(told.get("output", "")) or str(error),
            command=step.words if step else "",
        )


def order(step: Step, texts: Mapping[str, str], parcel: Parcel | None = None) -> dict[str, Any]:
    """Return a step as an order.

    `texts`: path -> what is to be in files and units, in supervisord.conf without its password; `parcel` is the
    bundle, for the release. Raises KeyError for a text that is missing.
    """
    data = dict(step.data)
    if step.script:
        return {"kind": "script", "data": {"script": step.script, "made": {"kind": step.kind, **data}}}
    if step.kind == "release":
        check = SELF_CHECK + (DASHBOARD_CHECK if data.get("dashboard") else "")
        data |= {"bundle": parcel.digest if parcel else "", "check": check}
    elif step.kind == "config":
        # When it was planned, its own key may have been missing in it.
        files = data["files"].items()
        data["files"] = {path: {**each, "text": texts[path], "digest": digest(texts[path])} for path, each in files}
    elif step.kind == "unit":
        data |= {"text": texts[data["path"]], "digest": digest(texts[data["path"]])}
    return {"kind": step.kind, "data": data}


def next_key() -> dict[str, Any]:
    """Return the order that makes a node's next key pair, unless there is one, and tells its public half."""
    return {"kind": "key", "data": {"path": KEY, **plain(FILES[KEY]), "rotate": "make"}}


def exchange_key(public_key: str) -> dict[str, Any]:
    """Return the order that puts the next key in the place of the old one, once the configuration names it."""
    return {"kind": "key", "data": {"path": KEY, **plain(FILES[KEY]), "rotate": "swap", "public_key": public_key}}


def uninstall(script: str = "") -> dict[str, Any]:
    """Return the order that leaves what was there before; `script` removes Docker, if a build has installed it."""
    return {"kind": "uninstall", "data": {"script": script}}


def document(release: str, orders: Sequence[Mapping[str, Any]], parcel: Parcel | None = None) -> bytes:
    """Return what the installer reads first: one line. The bundle of `parcel` must follow."""
    bundle = {"digest": parcel.digest, "size": parcel.size} if parcel else None
    return json.dumps({"format": FORMAT, "release": release, "bundle": bundle, "orders": list(orders)}).encode() + b"\n"


def script(python: str, parcel: Parcel | None = None) -> str:
    """Return the shell script that runs the installer, with its standard input left free.

    The source goes by a variable: in an argument it would be in every list of processes, and a here-document needs
    room in /tmp.
    """
    source = Path(__file__).with_name("installer.py").read_text()
    start = "import os; exec(compile(os.environ.pop('TREESCALE_INSTALLER'), 'installer', 'exec'))"
    words = [python, "-I", "-B", "-c", start, *([parcel.digest] if parcel else [])]
    return f"TREESCALE_INSTALLER={shlex.quote(source)}\nexport TREESCALE_INSTALLER\nexec {shlex.join(words)}\n"


def parse(line: str) -> Report | None:
    """Return what a line says; None when it is none of the installer's."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not isinstance(told.get("state"), str):
        return None
    number, seconds = told.pop("order", -1), told.pop("seconds", 0.0)
    return Report(
        told.pop("state"),
        number if type(number) is int else -1,
        float(seconds) if isinstance(seconds, int | float) else 0.0,
        told,
    )
