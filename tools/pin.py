#!/usr/bin/env python3
"""Pin: writes the lock files of tsbus/build: the wheels of a node, one line for each file, as `make pins`.

Versions are those of the environment that runs this, so what is pinned is what is tested. pip says which files there
are for each platform, from wherever it is configured to look; nothing is downloaded.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tsbus.build import bundle
from tsbus.build.checks import MACHINES, MIN_LIBC
from tsbus.build.interpreter import MAX_MINOR, MIN_MINOR
from tsbus.build.steps import Platform

NATIVE = ("pyzmq", "msgspec")
PURE = (
    "clustershell", "click", "tomlkit", "supervisor", "docker", "requests", "urllib3", "idna", "certifi",
    # Its native wheels are only faster at guessing encodings, which nobody here asks for.
    "charset-normalizer",
    "pyroute2",
)  # fmt: skip
"""What a node imports. ClusterShell asks for PyYAML too, for files that nobody here reads."""
DASHBOARD_NATIVE = ("httptools", "markupsafe", "orjson", "pydantic-core", "websockets")
DASHBOARD_PURE = (
    "nicegui", "prometheus-client", "fastapi", "starlette", "uvicorn", "pydantic", "annotated-doc", "annotated-types",
    "anyio", "bidict", "ifaddr", "itsdangerous", "jinja2", "opentelemetry-api", "python-engineio", "python-multipart",
    "python-socketio", "tinycss2", "typing-extensions", "typing-inspection", "webencodings",
)  # fmt: skip
"""What the dashboard imports besides. What NiceGUI asks for as clients of others (aiohttp, httpx), for Markdown and its
like, and a faster loop than ours, it loads only when somebody uses them."""
HEAD = """\
# The wheels of {}, for every platform that one can have: written by `make pins`, read by bundle.py.
# The lines of one platform are a requirements file for pip.
"""


def main() -> None:
    """Write both files."""
    _write(bundle.LOCK, "a node", PURE, NATIVE)
    _write(bundle.DASHBOARD_LOCK, "the dashboard", DASHBOARD_PURE, DASHBOARD_NATIVE)


def _write(file: Path, what: str, pure: Sequence[str], native: Sequence[str]) -> None:
    lines = set(_files(pure, ["--platform", "any", "--python-version", f"3.{MIN_MINOR}", "--implementation", "py"]))
    for machine in MACHINES:
        for libc in MIN_LIBC:
            for minor in range(MIN_MINOR, MAX_MINOR + 1):
                lines.update(_files(native, bundle.pip_options(Platform(machine, libc, minor))))
    file.write_text(HEAD.format(what) + "".join(f"{line}\n" for line in sorted(lines)))
    print(f"{file}: {len(lines)} wheels")


def _files(names: Sequence[str], options: list[str]) -> list[str]:
    """Return the lines of these packages for one platform."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report")
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        argv += ["--only-binary=:all:", "--target", folder, "--report", str(report), *options]
        subprocess.run([*argv, *(f"{name}=={version(name)}" for name in names)], check=True, stderr=subprocess.DEVNULL)
        found = [each["download_info"] for each in json.loads(report.read_text())["install"]]
    lines = []
    for each in found:
        file = each["url"].rpartition("/")[2]
        name = next(name for name in names if file.lower().startswith(f"{name.replace('-', '_')}-"))
        lines.append(f"{name}=={version(name)} --hash=sha256:{each['archive_info']['hashes']['sha256']}  # {file}")
    return lines


if __name__ == "__main__":
    main()
