#!/usr/bin/env python3
"""Pin: writes tsbus/build/requirements.lock: the wheels of a node, one line for each file, as `make pins`.

Versions are those of the environment that runs this, so what is pinned is what is tested. pip says which files there
are for each platform, from wherever it is configured to look; nothing is downloaded.
"""

import json
import subprocess
import sys
import tempfile
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
HEAD = """\
# The wheels of a node, for every platform that one can have: written by `make pins`, read by bundle.py.
# The lines of one platform are a requirements file for pip.
"""


def main() -> None:
    """Write the file."""
    lines = set(_files(PURE, ["--platform", "any", "--python-version", f"3.{MIN_MINOR}", "--implementation", "py"]))
    for machine in MACHINES:
        for libc in MIN_LIBC:
            for minor in range(MIN_MINOR, MAX_MINOR + 1):
                lines.update(_files(NATIVE, bundle.pip_options(Platform(machine, libc, minor))))
    file = Path(bundle.__file__).with_name("requirements.lock")
    file.write_text(HEAD + "".join(f"{line}\n" for line in sorted(lines)))
    print(f"{file}: {len(lines)} wheels")


def _files(names: tuple[str, ...], options: list[str]) -> list[str]:
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
