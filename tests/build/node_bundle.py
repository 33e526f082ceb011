"""The bundle for this machine's own Python, made once; its wheels are kept with what else tests fetch."""

import platform
import subprocess
from functools import cache
from pathlib import Path

from targets import cache as kept

from tsbus.build.bundle import Bundle, Bundler
from tsbus.build.steps import Platform

PYTHON = str(Path("/usr/bin/python3").resolve())
"""The system's: what servers have."""
_MINOR = subprocess.run([PYTHON, "-c", "import sys; print(sys.version_info.minor)"], capture_output=True, check=True)
HERE = Platform(platform.machine(), "glibc", int(_MINOR.stdout))
CACHE = kept() / "bundles"
WHEELS = CACHE / "wheels"


@cache
def made() -> Bundle:
    """Return it."""
    return Bundler(CACHE).make([HERE])[HERE]
