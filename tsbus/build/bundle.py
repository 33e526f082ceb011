"""Bundle: everything that a node is made of, in one tar for each platform. The console's edge to wheels and to pip.

A bundle has our own wheel and the pinned ones of requirements.lock, for a node with a dashboard those of dashboard.lock
as well; its name is its digest. The same code makes the
same bundle, whether it runs from a checkout or was installed. Where pip fetches from is pip's own configuration.
docs/decisions/build-bundle.md has the reasons.
"""

import configparser
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Final

import tsbus
from tsbus.build import units, wheels
from tsbus.build.steps import Platform
from tsbus.build.wanted import Release
from tsbus.build.wheels import Pin
from tsbus.copies import digest

FORMAT: Final = 1
NAME: Final = "treescale"
PIP_S: Final = 600
KEPT_S: Final = 90 * 86_400
"""What was not used for so long leaves the cache."""
_PACKAGE: Final = Path(tsbus.__file__).parent
LOCK: Final = Path(__file__).with_name("requirements.lock")
DASHBOARD_LOCK: Final = LOCK.with_name("dashboard.lock")
_CONFINE: Final = "supervision/confine.py"
_CHUNK: Final = 1 << 20


class BundleError(Exception):
    """A bundle cannot be made; the text says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on the console's disk."""

    platform: Platform
    release: str
    path: Path
    digest: str
    """SHA-256 in hexadecimal."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Bundler:
    """Makes bundles."""

    cache: Path = field(default_factory=lambda: default_cache())
    wheelhouse: Path | None = None
    """A folder that is looked in first."""
    offline: bool = False
    """Nothing is fetched."""

    @cached_property
    def release(self) -> Release:
        """What is installed. Its name has the digest of our wheel's record: that of all code, the pins included."""
        *_, record = wheels.record_of(*self._parts).values()
        name = f"{tsbus.__version__}-{hashlib.sha256(record).hexdigest()[:12]}"
        return Release(name, {init: digest(text) for init, text in units.TEXTS.items()})

    def make(self, platforms: Iterable[Platform]) -> dict[Platform, Bundle]:
        """Return the bundle of each platform. Raises BundleError, once for all that is missing."""
        chosen = {platform: self._chosen(platform) for platform in dict.fromkeys(platforms)}
        found = self._found({pin for pins in chosen.values() for pin in pins})
        if not self.offline:
            for platform, pins in chosen.items():
                self._fetch(platform, [pin for pin in pins if pin not in found])
                found |= self._found(set(pins) - set(found))
        if missing := {platform: [pin for pin in pins if pin not in found] for platform, pins in chosen.items()}:
            self._check(missing)
        made = {platform: self._make(platform, pins, found) for platform, pins in chosen.items()}
        self._forget()
        return made

    # Wheels.

    @cached_property
    def _parts(self) -> tuple[str, str, dict[str, bytes], dict[str, str], dict[str, bytes]]:
        files = dict(_code())
        script = b"#!python -IS\n" + files[f"tsbus/{_CONFINE}"]
        return NAME, tsbus.__version__, files, _commands(), {"ts-confine": script}

    def _chosen(self, platform: Platform) -> tuple[Pin, ...]:
        files = (LOCK, DASHBOARD_LOCK) if platform.dashboard else (LOCK,)
        try:
            return wheels.choose([pin for file in files for pin in wheels.pins(file.read_text())], platform)
        except ValueError as error:
            raise BundleError(str(error)) from error

    def _found(self, pins: Collection[Pin]) -> dict[Pin, Path]:
        """Return those that are there and whole."""
        folders = [each for each in (self.wheelhouse, self._wheels) if each is not None]
        found = {}
        for pin in pins:
            for path in (folder / pin.file for folder in folders):
                if path.is_file() and _digest_of(path) == pin.digest:
                    found[pin] = path
                    break
        return found

    def _fetch(self, platform: Platform, pins: list[Pin]) -> None:
        """Let pip fetch wheels into the cache. Raises BundleError."""
        if not pins:
            return
        self._wheels.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._wheels) as folder:
            requirements = Path(folder, "requirements")
            requirements.write_text("".join(f"{pin.line}\n" for pin in pins))
            argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
            argv += ["--no-deps", "--require-hashes", *pip_options(platform), "--dest", folder, "-r", str(requirements)]
            try:
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PIP_S,
                                      check=False)  # fmt: skip
            except subprocess.TimeoutExpired:
                raise BundleError(f"pip has not fetched the wheels for {platform} within {PIP_S} s") from None
            for pin in pins:
                if (path := Path(folder, pin.file)).exists():
                    path.replace(self._wheels / pin.file)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
            error = next((line for line in said if line.startswith("ERROR")), said[-1])
            raise BundleError(
                f"pip cannot fetch the wheels for {platform}: {error.removeprefix('ERROR: ')[:300]}; mend its "
                f"configuration, or give {', '.join(pin.file for pin in pins)} in a --wheelhouse"
            )

    def _check(self, missing: Mapping[Platform, list[Pin]]) -> None:
        told = [f"{platform}: {', '.join(pin.file for pin in pins)}" for platform, pins in missing.items() if pins]
        if told:
            where = f"{self._wheels} nor {self.wheelhouse}" if self.wheelhouse else f"{self._wheels}, nor a wheelhouse"
            raise BundleError(
                f"neither {where} has, with the pinned digests, for {'; for '.join(told)}. Build once without "
                f"--offline where there is a network, or put them into a folder for --wheelhouse"
            )

    # Bundles.

    @property
    def _wheels(self) -> Path:
        return self.cache / "wheels"

    @cached_property
    def _own(self) -> bytes:
        return wheels.build(*self._parts)

    def _make(self, platform: Platform, pins: tuple[Pin, ...], found: Mapping[Pin, Path]) -> Bundle:
        files = {pin.file: found[pin].read_bytes() for pin in pins}
        files[f"{NAME}-{tsbus.__version__}-py3-none-any.whl"] = self._own
        release = (self.release.with_dashboard if platform.dashboard else self.release).name
        data = pack(release, platform, files)
        name = hashlib.sha256(data).hexdigest()
        path = self.cache / "bundles" / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data)
        for each in found.values():
            if each.parent == self._wheels:
                each.touch()
        return Bundle(platform, release, path, name, len(data))

    def _forget(self) -> None:
        """Remove from the cache what nobody has used for long."""
        old = time.time() - KEPT_S
        for path in (*self._wheels.glob("*.whl"), *(self.cache / "bundles").glob("*.tar")):
            if path.stat().st_mtime < old:
                path.unlink(missing_ok=True)


def pip_options(platform: Platform) -> list[str]:
    """Return what pip must be told to find the wheels of another machine."""
    version = f"3{platform.python}"
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for abi in (f"cp{version}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in wheels.system_tags(platform):
        options += ["--platform", tag]
    return options


def pack(release: str, platform: Platform, files: Mapping[str, bytes]) -> bytes:
    """Return the tar of a bundle: `bundle.json` first, which names the wheels and their digests."""
    told = [{"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())]
    about = {"format": FORMAT, "release": release, "platform": str(platform), "wheels": told}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        members = {
            "bundle.json": json.dumps(about, indent=1).encode(),
            **{f"wheels/{name}": files[name] for name in sorted(files)},
        }
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def default_cache() -> Path:
    """Return the folder of wheels and bundles: the user's own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / NAME


def _code() -> Iterable[tuple[str, bytes]]:
    """Yield the files of our package."""
    for path in sorted(_PACKAGE.rglob("*")):
        parts = path.relative_to(_PACKAGE.parent).parts
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            yield "/".join(parts), path.read_bytes()


def _commands() -> dict[str, str]:
    """Return our programs: from setup.cfg in a checkout, where what is installed may be older than the code."""
    setup = configparser.ConfigParser()
    setup.read(_PACKAGE.parent / "setup.cfg")
    if setup.get("metadata", "name", fallback="") == NAME:
        lines = setup.get("options.entry_points", "console_scripts").split("\n")
        pairs = (line.split("=") for line in lines if line.strip())
        return {name.strip(): where.strip() for name, where in pairs}
    try:
        points = metadata.distribution(NAME).entry_points
    except metadata.PackageNotFoundError:
        raise BundleError("TreeScale is neither installed here nor run from a checkout with its setup.cfg") from None
    return {point.name: point.value for point in points if point.group == "console_scripts"}


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file in one step, so that no other build sees half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
