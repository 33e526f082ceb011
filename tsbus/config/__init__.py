"""The configuration: treescale.toml (the tree) and console.toml (SSH access), as files and as Python structs.

    tree = load("treescale.toml")
    print(dump(tree.with_current("node1"), format="json"))

Files may be TOML or JSON of the same shape. A struct made in code is checked by `loads(dump(tree))`. Inside: scanner.py
and document.py read text, reader.py makes the structs of model.py, check.py and console.py look at the whole,
writer.py writes.
docs/configuration.md is the reference.
"""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

from tsbus.config.check import check_together, check_tree
from tsbus.config.console import check_console
from tsbus.config.document import Document, parse, read
from tsbus.config.model import (
    Alert,
    AllowRule,
    Balancer,
    Balancing,
    BuildSettings,
    BusSettings,
    Console,
    Dashboard,
    DockerPolicy,
    ExecRule,
    ExecutorPolicy,
    Handler,
    Operator,
    Policy,
    Secret,
    Server,
    SshDefaults,
    SshEntry,
    Tree,
)
from tsbus.config.problem import ConfigError, Problem
from tsbus.config.reader import read_console, read_tree
from tsbus.config.writer import dump

__all__ = [
    "Alert",
    "AllowRule",
    "Balancer",
    "Balancing",
    "BuildSettings",
    "BusSettings",
    "ConfigError",
    "Console",
    "Dashboard",
    "DockerPolicy",
    "ExecRule",
    "ExecutorPolicy",
    "Handler",
    "Operator",
    "Policy",
    "Problem",
    "Secret",
    "Server",
    "SshDefaults",
    "SshEntry",
    "Tree",
    "check",
    "dump",
    "load",
    "load_console",
    "loads",
]


def load(path: str | PathLike[str], *, strict: bool = False, current_node: str | None = None) -> Tree:
    """Return the tree in the file at `path`.

    `strict` refuses childs that are not defined, which is otherwise a warning. `current_node` replaces the file's.
    Raises ConfigError with all problems.
    """
    document = read(Path(path))
    return _sound(_tree(document, Path(path), strict=strict, current_node=current_node), document)


def loads(text: str, *, file: str = "treescale.toml", strict: bool = False, current_node: str | None = None) -> Tree:
    """Return the tree in `text`, TOML or JSON; `file` is its name in messages. Otherwise like `load`."""
    document = parse(text, file)
    return _sound(_tree(document, None, strict=strict, current_node=current_node), document)


def load_console(path: str | PathLike[str]) -> Console:
    """Return the console's file at `path`. Raises ConfigError with all problems."""
    document = read(Path(path))
    return _sound(_console(document, Path(path)), document)


def check(path: str | PathLike[str], *, strict: bool = False) -> tuple[Tree | Console | None, list[Problem]]:
    """Return what is in the file at `path`, or None when it has errors, and all its problems in the file's order.

    A file with `ssh` or `tree` in it is the console's; it is also compared with the tree that it names.
    """
    document = read(Path(path))
    found: Tree | Console | None
    if _is_console(document):
        found = _console(document, Path(path))
        if found:
            _compare(found, document)
    else:
        found = _tree(document, Path(path), strict=strict)
    document.close()
    return None if document.failed else found, document.problems


def _is_console(document: Document) -> bool:
    return not {"ssh", "tree"}.isdisjoint(document.data or {})


def _tree(document: Document, path: Path | None, *, strict: bool, current_node: str | None = None) -> Tree | None:
    if document.data is None:
        return None
    if _is_console(document):
        document.fail((0, 0), "this is a console's file, not a tree", "load the file that its `tree` names")
        return None
    tree = replace(read_tree(document), path=path)
    if current_node is not None:
        tree = replace(tree, current_node=current_node)
    check_tree(tree, document, strict=strict)
    return tree


def _console(document: Document, path: Path) -> Console | None:
    if document.data is None:
        return None
    console = replace(read_console(document), path=path)
    check_console(console, document)
    return console


def _compare(console: Console, document: Document) -> None:
    """Compare the console's file with its tree, whose own problems are not repeated here."""
    other = read(console.tree_path)
    tree = None if _is_console(other) else _tree(other, console.tree_path, strict=False)
    if tree is None:
        message = f"{console.tree_path} is no tree that can be read"
        document.note("warning", ("tree",), message, "name the treescale.toml, relative to this file")
    else:
        check_together(console, tree, document)


_Found = TypeVar("_Found", Tree, Console)


def _sound(found: _Found | None, document: Document) -> _Found:
    document.close()
    if found is None or document.failed:
        raise ConfigError(document.problems)
    return found
