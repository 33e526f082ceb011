"""Installing in a sandbox: the console's side of the installer, and a release that is made in a moment."""

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from node_bundle import HERE, PYTHON
from sandbox import ENVIRONMENT, LIMIT_S, Sandbox

from tsbus.build import orders, wheels
from tsbus.build.bundle import pack
from tsbus.build.orders import Parcel, Report
from tsbus.build.places import CONFIG, DOCKER_USER, FILES, FOLDERS, KEY, SUPERVISOR, USER, USERS, plain
from tsbus.build.steps import Step
from tsbus.copies import digest

TINY = "1.0-tiny"
_CODE = b"""
import os, sys

def main():
    _, what, path = sys.argv[1:]
    if what == "new":
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("secret")
    assert open(path).read() == "secret"
    print("p" * 40)
"""


def tiny(more: bytes = b"") -> bytes:
    """The bundle of a release that can only make keys."""
    files = {"tiny/__init__.py": _CODE, "tiny/data": more}
    wheel = wheels.build("tiny", "1", files, {"treescale": "tiny:main"}, {"script": b"#!python -IS\npass\n"})
    return pack(TINY, HERE, {"tiny-1-py3-none-any.whl": wheel})


def parcel_of(bundle: bytes) -> Parcel:
    return Parcel(hashlib.sha256(bundle).hexdigest(), len(bundle))


ACCOUNTS = Step("accounts", "add users", "", {"add": list(USERS), "groups": {DOCKER_USER: [USER]}})
STEP_FOLDERS = Step("folders", "make folders", "", {"folders": {path: plain(each) for path, each in FOLDERS.items()}})
STEP_KEY = Step("key", "make its key pair", "", {"path": KEY, **plain(FILES[KEY])})


def release_step(name: str = TINY) -> Step:
    return Step("release", f"install {name}", "", {"release": name, "python": PYTHON, "platform": str(HERE)})


def config_step(texts: Mapping[str, str]) -> Step:
    files = {path: {"digest": digest(text), **plain(FILES[path])} for path, text in texts.items()}
    return Step("config", "write", "", {"files": files})


def activate_step(how: str, release: str, init: str = "none") -> Step:
    return Step("activate", f"{how} it", "", {"how": how, "release": release, "init": init})


def tiny_orders(bundle: bytes, texts: Mapping[str, str]) -> bytes:
    """The document that makes a node of the tiny release, as far as it goes without a router."""
    parcel = parcel_of(bundle)
    steps = [ACCOUNTS, STEP_FOLDERS, release_step(), STEP_KEY, config_step(texts)]
    made = [orders.order(step, texts, parcel) for step in steps]
    made[2]["data"]["check"] = "import tiny"
    return orders.document(TINY, made, parcel)


TEXTS = {CONFIG: "of the tree\n", SUPERVISOR: 'password=\nenvironment=SUPERVISOR_PASSWORD=""\n'}


class Console:
    """One run of the installer, as over SSH: a first line comes, then orders and what is missing of the bundle go."""

    def __init__(
        self, box: Sandbox, parcel: Parcel | None = None, before: str = "", change: Sequence[tuple[str, str]] = ()
    ) -> None:
        """`before` is put in front of the installer's source, `change` are other words for some of its own."""
        script = orders.script(PYTHON, parcel)
        for old, new in change:
            assert old in script
            script = script.replace(old, new)
        script = script.replace("TREESCALE_INSTALLER='", f"TREESCALE_INSTALLER='{before}", 1)
        self._process = subprocess.Popen(
            box.argv("sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        assert self._process.stdin and self._process.stdout
        self.lines: list[str] = []
        self.first = self.read()

    def read(self) -> Report | None:
        """Wait for the next line."""
        assert self._process.stdout
        self.lines.append(self._process.stdout.readline().decode())
        return orders.parse(self.lines[-1])

    def send(self, data: bytes) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def hang_up(self) -> None:
        """Be gone: nobody reads or writes any more."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def end(self) -> list[Report]:
        """Send no more; returns what it says until its end."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        said = self._process.stdout.read().decode()
        self.status = self._process.wait(LIMIT_S)
        self.lines += said.splitlines()
        reports = [orders.parse(line) for line in said.splitlines()]
        assert None not in reports, said
        return [report for report in reports if report is not None]


def install(box: Sandbox, document: bytes, bundle: bytes | None = None, **options: Any) -> list[Report]:
    """Carry out orders; returns what the installer said of each when it was done."""
    console = Console(box, parcel_of(bundle) if bundle is not None else None, **options)
    if console.first is not None and console.first.state == "ready":
        console.send(document + (bundle[console.first.have :] if bundle is not None else b""))
    said = console.end()
    return [report for report in said if report.state in ("ok", "changed", "failed")]


def states(reports: Sequence[Report]) -> list[str]:
    return [report.state for report in reports]


def uninstall(box: Sandbox, **options: Any) -> list[Report]:
    return install(box, orders.document("none", [orders.uninstall()]), **options)


def tree(box: Sandbox) -> dict[str, tuple[Any, ...]]:
    """What a build has made: path -> rights, and the content where it is the same each time."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in box.changes():
        file = box.top / "upper" / path[1:]
        about = file.lstat()
        is_same_always = file.is_file() and not path.startswith(("/etc/shadow", SUPERVISOR)) and ".pyc" not in path
        content = file.read_bytes() if is_same_always and not file.is_symlink() else b""
        found[path] = (about.st_mode, about.st_uid, about.st_gid, content)
    return found


def manifest(box: Sandbox) -> list[dict[str, Any]]:
    """What the node remembers."""
    made: list[dict[str, Any]] = json.loads((box.root / "var/lib/treescale/manifest.json").read_text())["made"]
    return made


def in_box(box: Sandbox, path: str) -> Path:
    """Where a file of the sandbox is from outside."""
    return Path(os.path.join(box.root, path.lstrip("/")))  # noqa: PTH118
