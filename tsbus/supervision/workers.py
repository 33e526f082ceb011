"""Workers: programs of the user's own that the supervisord of a node keeps running. One file each in its `conf.d`.

Any node that has a supervisord.conf of ours: one of a server, or one of `treescale up`.
"""

import configparser
import grp
import os
import pwd
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tsbus.supervision import SupervisionError, conf, confine
from tsbus.supervision.control import Program, Supervisord
from tsbus.supervision.local import last_line, write

STAYS_S: Final = 20.0
"""Within this, supervisord has seen a worker last, or not, on a busy machine."""
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker of a node."""

    name: str
    command: str
    program: Program | None
    """As supervisord sees it; None when supervisord does not run, or has not read the file."""


class Workers:
    """The workers of the node whose supervisord.conf is given."""

    def __init__(self, path: Path) -> None:
        """Raises SupervisionError when it is none of ours, or may not be read."""
        try:
            text = path.read_text()
        except OSError as error:
            hint = "; only root may read that of a server: try sudo" if isinstance(error, PermissionError) else ""
            raise SupervisionError(f"{path}: {error.strerror}{hint}") from None
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
        try:
            parser.read_string(text)
            about, socket = parser["supervisord"], parser["unix_http_server"]
            self.node = about["identifier"]
            self._as_root = about.get("user") == "root"
            self._folder = Path(parser["include"]["files"]).parent
            self._logs = Path(about["childlogdir"])
            run_dir, password = Path(socket["file"]).parent, socket["password"]
        except (configparser.Error, KeyError) as error:
            raise SupervisionError(f"{path} is no supervisord.conf of TreeScale: {error}") from None
        self._files = conf.NodeFiles(run_dir, path, path, path, self._folder, self._logs)
        self._supervisord = Supervisord(self._files, password)

    def all(self) -> list[Worker]:
        """Return them by name. Raises SupervisionError when supervisord does not answer."""
        programs = {each.name: each for each in self._supervisord.programs() or ()}
        found = []
        for path in sorted(self._folder.glob("*.conf")):
            line = re.search(r"^command=(.*)$", path.read_text(), re.MULTILINE)
            command = line[1].replace("%%", "%") if line else "?"
            found.append(Worker(path.stem, command, programs.get(path.stem)))
        return found

    def add(self, name: str, command: Sequence[str], directory: Path, user: str, *, replace: bool) -> bool:
        """Keep a program running, now and from now on; returns whether anything is new.

        `user`: as whom, "" for supervisord's own user. Raises SupervisionError.
        """
        text = conf.render_worker(name, self._files, [*self._confined(user), *command], directory)
        _check_program(command[0], directory)
        path = self._folder / f"{name}.conf"
        before = path.read_text() if path.exists() else ""
        if before not in ("", text) and not replace:
            raise SupervisionError(f"{self.node} has another worker {name} already; --replace it, or choose a name")
        try:
            write(path, text, 0o640)
        except OSError as error:
            raise SupervisionError(f"{path}: {error.strerror}") from None
        self._follow()
        return before != text

    def remove(self, name: str) -> None:
        """Stop a worker and forget it. Raises SupervisionError when there is none."""
        there = sorted(path.stem for path in self._folder.glob("*.conf"))
        if name not in there:
            raise SupervisionError(f"{self.node} has no worker {name!r}; it has {', '.join(there) or 'none'}")
        try:
            (self._folder / f"{name}.conf").unlink()
        except OSError as error:
            raise SupervisionError(f"{error.filename}: {error.strerror}") from None
        self._follow()

    def wait_stays(self, name: str) -> Program | None:
        """Wait until a worker has lasted a second; None when supervisord does not run. Raises SupervisionError."""
        until = time.monotonic() + STAYS_S
        while (programs := self._supervisord.programs()) is not None:
            program = next((each for each in programs if each.name == name), None)
            if program is not None and program.state == "RUNNING":
                return program
            if program is None or program.state in ("BACKOFF", "FATAL", "EXITED") or time.monotonic() > until:
                said = last_line(self._logs / f"{name}.log") or (program.note if program else "it is not known")
                raise SupervisionError(f"{self.node}: {name} does not stay, and is tried again: {said}")
            time.sleep(_LOOK_S)
        return None

    def uses_bus(self, user: str) -> bool:
        """Tell whether a user of this machine may use the socket of a server's router."""
        account = pwd.getpwnam(user)
        try:
            group = grp.getgrnam(conf.USER).gr_gid
        except KeyError:
            return True  # no server
        return account.pw_uid == 0 or group in os.getgrouplist(user, account.pw_gid)

    def _confined(self, user: str) -> list[str]:
        """Return what goes before a command that runs as `user`."""
        if not self._as_root:
            if user:
                raise SupervisionError("--user: this supervisord is not root, and runs everything as its own user")
            return []
        if not user:
            raise SupervisionError(
                f"as whom? Give --user NAME; whoever is in the group {conf.USER} may use the bus "
                f"(usermod -aG {conf.USER} NAME)"
            )
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise SupervisionError(f"there is no user {user!r} on this machine") from None
        if user == "root":
            return []
        start = [str(conf.CONFINE)] if conf.CONFINE.exists() else [sys.executable, "-IS", str(confine.__file__)]
        return [*start, "--user", user, "--"]

    def _follow(self) -> None:
        if self._supervisord.programs() is not None:
            self._supervisord.follow_conf()


def _check_program(word: str, directory: Path) -> None:
    """See that there is such a program: supervisord would try again and again to start one that is not there."""
    if shutil.which(word) is None and shutil.which(str(directory / word)) is None:
        raise SupervisionError(f"there is no program {shlex.quote(word)} that can be started")
