"""Console: what must hold between the values of the console's file, and for the files that it names."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath

from tsbus.config.document import Document
from tsbus.config.forms import quote
from tsbus.config.model import PASSWORD_KEYS, Console, SshDefaults
from tsbus.config.problem import Path


def check_console(console: Console, document: Document) -> None:
    """Note all problems of the console's file that it and the files it names show."""
    tables = list(_tables(console))
    for path, table in tables:
        given = [key for key in PASSWORD_KEYS if getattr(table, key)]
        for key in given[1:]:
            document.note("error", (*path, key), f"there is {given[0]} already", "a password has one place: keep one")
        _check_jump(path, table, console, document)
    _check_circles(console, document)
    _check_addresses(console, document)
    _check_files(console, tables, document)


def _tables(console: Console) -> Iterator[tuple[Path, SshDefaults]]:
    yield ("defaults",), console.defaults
    for name, entry in console.ssh.items():
        yield ("ssh", name), entry


def _check_jump(path: Path, table: SshDefaults, console: Console, document: Document) -> None:
    if table.jump and table.jump != "none" and "@" not in table.jump and table.jump not in console.ssh:
        message = f"no entry named {quote(table.jump)}"
        document.note_unknown("error", (*path, "jump"), message, table.jump, console.ssh)


def _check_circles(console: Console, document: Document) -> None:
    told: set[str] = set()
    for start in console.ssh:
        trail: list[str] = []
        name = start
        while name in console.ssh and name not in trail:
            trail.append(name)
            name = console.ssh_for(name).jump
        if name in trail and not told.intersection(circle := trail[trail.index(name) :]):
            told.update(circle)
            message = f"the jumps go round in a circle: {' -> '.join([*circle, name])}"
            document.note("error", ("ssh", name, "jump"), message, 'give the outermost of them jump = "none"')


def _check_addresses(console: Console, document: Document) -> None:
    taken: dict[tuple[str, int, str], str] = {}
    for name in console.ssh:
        entry = console.ssh_for(name)
        # Behind another host, the same address may be another machine.
        address = (entry.host.lower(), entry.port or 22, entry.jump)
        if entry.host and address in taken:
            message = f"{entry.host} port {address[1]} is already the address of {quote(taken[address])}"
            document.note(
                "error", ("ssh", name, "host"), message, "one server is one node: give it an address of its own"
            )
        taken.setdefault(address, name)


def _check_files(console: Console, tables: list[tuple[Path, SshDefaults]], document: Document) -> None:
    home = FilePath(os.path.expanduser("~"))  # noqa: PTH111  (Path.home() raises where there is none)
    for path, table in tables:
        for key in ("key", "password_file"):
            name = getattr(table, key)
            _check_secret_file(console.beside(name, home), (*path, key), document) if name else None
    wheels = console.build.wheelhouse
    if wheels and not _holds(FilePath.is_dir, console.beside(wheels, home)):
        document.note("warning", ("build", "wheelhouse"), "there is no such folder", "paths are relative to this file")
    secret = next(((*path, "password") for path, table in tables if table.password), None)
    if secret and console.path:
        _check_mode(console.path, secret, "this password", document, "use a key")


def _check_secret_file(path: FilePath, where: Path, document: Document) -> None:
    if not _holds(FilePath.is_file, path):
        document.note("warning", where, f"there is no file {path}", "paths are relative to this file")
    else:
        _check_mode(path, where, "this secret", document, "keep it elsewhere")


def _check_mode(path: FilePath, where: Path, what: str, document: Document, otherwise: str) -> None:
    """Note who else can read or change the file at `path`, which holds a secret."""
    try:
        status = path.stat()
    except OSError:
        return
    hint = f"run chmod 600 {path}, or {otherwise}"
    if status.st_mode & stat.S_IWOTH or status.st_uid not in (0, os.geteuid()):
        document.note("error", where, f"others on this machine can change the file that holds {what}", hint)
    elif status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        document.note("warning", where, f"others on this machine can read {what}", hint)


def _holds(test: Callable[[FilePath], bool], path: FilePath) -> bool:
    try:
        return test(path)
    except (OSError, ValueError):
        # ValueError: a path with a NUL in it.
        return False
