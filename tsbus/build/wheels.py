"""Wheels: which of the pinned ones a platform takes, and how our own is made. Pure.

A lock file has a line for each wheel: `NAME==VERSION --hash=sha256:DIGEST  # FILE`. The lines of one platform are
a requirements file for pip. Formats: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

import hashlib
import io
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tsbus.build.checks import MIN_LIBC
from tsbus.build.steps import Platform

_LINE: Final = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[\w.+!-]+) --hash=sha256:(?P<digest>[0-9a-f]{64})  # (?P<file>\S+\.whl)"
)
_OLD_GLIBC: Final = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
"""Names of tags from before they said the version of glibc 2."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One wheel."""

    name: str
    version: str
    digest: str
    """SHA-256 in hexadecimal."""
    file: str

    @property
    def line(self) -> str:
        """As in a requirements file."""
        return f"{self.name}=={self.version} --hash=sha256:{self.digest}  # {self.file}"


def pins(text: str) -> tuple[Pin, ...]:
    """Return what a lock file pins. Raises ValueError for a line that is none of its own."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            if (match := _LINE.fullmatch(line)) is None:
                raise ValueError(f"not a line of a lock file: {line}")
            found.append(Pin(**match.groupdict()))
    return tuple(found)


def choose(pinned: Iterable[Pin], platform: Platform) -> tuple[Pin, ...]:
    """Return the wheel of each package for a platform, by name. Raises ValueError when a package has none for it."""
    best: dict[str, tuple[int, Pin | None]] = {}
    for pin in pinned:
        rank = _rank(pin.file, platform)
        if rank > best.get(pin.name, (-1, None))[0]:
            best[pin.name] = (rank, pin)
        else:
            best.setdefault(pin.name, (-1, None))
    if lacking := [name for name, (_, pin) in best.items() if pin is None]:
        raise ValueError(f"{', '.join(lacking)} is not pinned for {platform}; run `make pins`")
    return tuple(pin for _, (_, pin) in sorted(best.items()) if pin is not None)


def _rank(file: str, platform: Platform) -> int:
    """Return how well a wheel fits: -1 not at all, 0 for any machine, more for this Python's own."""
    pythons, abis, systems = (part.split(".") for part in file.removesuffix(".whl").split("-")[-3:])
    if not any(_runs_on(system, platform) for system in systems):
        return -1
    ranks = []
    for python in pythons:
        minor = int(python[3:]) if re.fullmatch(r"cp3\d+", python) else -1
        if minor == platform.python and (f"cp3{minor}" in abis or "abi3" in abis):
            ranks.append(1000)
        elif 0 <= minor < platform.python and "abi3" in abis:
            ranks.append(minor)
        elif python == "py3" and abis == ["none"]:
            ranks.append(0)
    return max(ranks, default=-1)


def _runs_on(system: str, platform: Platform) -> bool:
    if system == "any":
        return True
    kind, _, rest = system.partition("_")
    if kind in _OLD_GLIBC:
        return platform.libc == "glibc" and rest == platform.machine
    found = re.fullmatch(r"(many|musl)linux_(\d+)_(\d+)_(\w+)", system)
    if found is None or found[4] != platform.machine:
        return False
    libc = "glibc" if found[1] == "many" else "musl"
    return libc == platform.libc and (int(found[2]), int(found[3])) <= MIN_LIBC[libc]


def system_tags(platform: Platform) -> Iterator[str]:
    """Yield the tags of the wheels that run on every server of a platform, the best first."""
    major, newest = MIN_LIBC[platform.libc]
    kind = "many" if platform.libc == "glibc" else "musl"
    old = {minor: name for name, minor in _OLD_GLIBC.items()} if platform.libc == "glibc" else {}
    for minor in range(newest, 0, -1):
        yield f"{kind}linux_{major}_{minor}_{platform.machine}"
        if minor in old:
            yield f"{old[minor]}_{platform.machine}"


# Our own ------------------------------------------------------------------------------------------------------------


def build(
    name: str, version: str, files: Mapping[str, bytes], commands: Mapping[str, str], scripts: Mapping[str, bytes]
) -> bytes:
    """Return a pure wheel. The same input makes the same bytes.

    `commands`: name -> module:function; `scripts`: name -> text, whose first line is `#!python`.
    """
    everything = record_of(name, version, files, commands, scripts)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path, data in everything.items():
            entry = zipfile.ZipInfo(path)  # of the year 1980, where time begins for zip files
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
    return out.getvalue()


def record_of(
    name: str, version: str, files: Mapping[str, bytes], commands: Mapping[str, str], scripts: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Return all files of a wheel in their order; the last is RECORD, which has the digests of all others."""
    info = f"{name}-{version}.dist-info"
    points = "".join(f"{command} = {where}\n" for command, where in sorted(commands.items()))
    everything = dict(sorted(files.items()))
    everything |= {f"{name}-{version}.data/scripts/{script}": data for script, data in sorted(scripts.items())}
    everything |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: treescale\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{points}".encode(),
    }
    lines = "".join(f"{path},{_digest(data)},{len(data)}\n" for path, data in everything.items())
    return everything | {f"{info}/RECORD": f"{lines}{info}/RECORD,,\n".encode()}


def _digest(data: bytes) -> str:
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
