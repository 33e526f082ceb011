"""Little servers (tests/targets.py) for the scenarios that log in to them. Needs root and mmdebstrap."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.harness import ROOT

sys.path.insert(0, str(ROOT / "tests"))  # where a lab's own process looks for its parts

from targets import Lab, Target

BUNDLE_BYTES = 4 << 20


@dataclass(frozen=True)
class Servers:
    """Some of them, and a folder of the console with `known_hosts` and a `bundle`; all let `key` in as root."""

    targets: list[Target]
    key: Path
    folder: Path

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


@contextmanager
def servers(count: int) -> Iterator[Servers]:
    """So many of them, which end with the block."""
    lab = Lab()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = Servers(lab.targets(*["python"] * count), lab.key, Path(folder))
            found.known_hosts.write_text("".join(target.known_host() for target in found.targets))
            found.bundle.write_bytes(os.urandom(BUNDLE_BYTES))
            yield found
    finally:
        lab.stop()
