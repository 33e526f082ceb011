"""Errand: what one build command is asked for: the two files, read and checked, and the servers that are meant."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from tsbus.cli.edge import Code, Fault
from tsbus.config import ConfigError, Console, Problem, Tree, check
from tsbus.config.document import read
from tsbus.core.target import TargetError, resolve

if TYPE_CHECKING:
    from tsbus.build.campaign import Campaign
    from tsbus.build.run import Options
    from tsbus.build.store import Store

    _Run = TypeVar("_Run", bound=Campaign)

EXAMPLE = """\
tree = "treescale.toml"             # the tree: its servers, and who is whose child

[ssh.node1]                         # one table for each server, with its name in the tree
host = "192.0.2.11"
username = "root"                   # or somebody who may use sudo
key = "~/.ssh/id_ed25519"
"""
"""The least that a console.toml says."""


@dataclass(frozen=True)
class Errand:
    """The options of a command, as they were given."""

    console_file: Path
    as_json: bool = False
    limit: str = ""
    tags: tuple[str, ...] = ()
    only_failed: bool = False
    parallel: int | None = None
    max_fail: str = ""
    no_docker: bool = False
    offline: bool = False
    wheelhouse: Path | None = None
    accept_new: bool = False

    @cached_property
    def console(self) -> Console:
        """The console's file. Raises Fault where there is none, ConfigError with the problems of both files."""
        return self._files[0]

    @cached_property
    def tree(self) -> Tree:
        """The tree that the console's file names; raises like `console`."""
        return self._files[1]

    @cached_property
    def store(self) -> "Store":
        """What the console remembers of its servers."""
        from tsbus.build.store import Store

        return Store.beside(self.console)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The servers that are meant, in the tree's order; never none.

        Raises Fault when there is none of the name or tag, Exit when none of them has failed.
        """
        chosen = chosen_of(self.tree, self.limit, self.tags)
        if self.only_failed and not (chosen := chosen & set(self.store.failed())):
            click.echo("nothing to do: none of these servers has failed last time", err=True)
            raise click.exceptions.Exit(Code.OK)
        if self.only_failed:
            from tsbus.build.membership import with_parents

            # Their parents have to learn the keys that were not made last time.
            chosen = set(with_parents(self.tree, chosen))
        return tuple(name for name in self.tree.servers if name in chosen)

    def options(self, what: str, names: Collection[str] | None = None) -> "Options":
        """Return the options of a run; `what` is shown to somebody else who wants to build."""
        from tsbus.build.run import Options

        names = self.names if names is None else names
        return Options(
            names=tuple(names),
            parallel=self.parallel,
            max_fail=most_failures(self.max_fail or self.console.build.max_fail, len(names)),
            docker=not self.no_docker,
            offline=self.offline,
            wheelhouse=self.wheelhouse,
            accept_new=self.accept_new,
            what=what,
        )

    def campaign(self, kind: "type[_Run]", what: str, names: Collection[str] | None = None) -> "_Run":
        """Return a run of this kind, on these servers or else those that are meant. Raises StoreError."""
        from tsbus.supervision.conf import render_servers

        return kind(self.tree, self.console, self.options(what, names), self.store, render_servers(self.tree))

    @cached_property
    def _files(self) -> tuple[Console, Tree]:
        if not self.console_file.exists():
            click.echo(f"# {self.console_file}\n{EXAMPLE}", err=True)
            raise Fault(
                f"{self.console_file}: there is no such file; write one like that above, or name yours with --console "
                "(docs/configuration.md has all keys)",
                Code.USAGE,
            )
        console, problems = check(self.console_file)
        if isinstance(console, Tree):
            raise Fault(f"{self.console_file} is a tree: give --console the file that tells how to log in", Code.USAGE)
        tree: Tree | Console | None = None
        if path := console.tree_path if console else _tree_path(self.console_file):
            tree, more = check(path, strict=True)
            problems += more
        # Of a server without an entry (a warning at ssh) its plan tells, if it is meant.
        found = [
            each for each in problems if each.severity == "error" or (each.severity == "warning" and each.path != "ssh")
        ]
        if not isinstance(console, Console) or not isinstance(tree, Tree):
            raise ConfigError(found)
        _warn(found)
        return console, tree


def _tree_path(file: Path) -> Path | None:
    """Return where a console's file with errors says that the tree is; None where it does not get as far."""
    found = read(file).data
    named = None if found is None else found.get("tree", Console().tree)
    return Console(tree=named, path=file).tree_path if isinstance(named, str) and named.isprintable() else None


def chosen_of(tree: Tree, limit: str, tags: Collection[str]) -> set[str]:
    """Return the servers that `--limit` and `--tag` leave. Raises Fault for a name or tag that is not in the tree."""
    topology = tree.topology()
    targets = [*([limit] if limit else []), *([",".join(f"@{tag}" for tag in tags)] if tags else [])]
    chosen = set(topology.names)
    try:
        for target in targets:
            chosen &= resolve(target, topology, topology.root)
    except TargetError as error:
        raise Fault(str(error), Code.USAGE) from error
    if not chosen:
        raise Fault(f"no server is in {' and in '.join(targets)}", Code.USAGE)
    return chosen


def most_failures(text: str, servers: int) -> int | None:
    """Return after how many failed servers no further one is begun: `N` or `N%` of all; None for no end."""
    if text.endswith("%"):
        return max(servers * int(text[:-1]) // 100, 1)
    return int(text) if text else None


def _warn(problems: Collection[Problem]) -> None:
    for problem in problems:
        click.secho(str(problem), fg="yellow", err=True)
