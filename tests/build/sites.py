"""Sites: a tree of targets, and a console that builds it, in this process or as people do."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from node_bundle import CACHE
from targets import Target

from tsbus.build.bundle import Bundler
from tsbus.build.campaign import Campaign
from tsbus.build.reports import Report, Stepped
from tsbus.build.run import Options
from tsbus.build.steps import Step
from tsbus.build.store import Store
from tsbus.config import Console, Server, SshEntry, Tree
from tsbus.supervision.conf import render_servers

ROOT = Path(__file__).parents[2]
PORT = 8888
RUN_S = 600.0
"""How long a run of the program may take, on a busy machine."""
CHANGING = (
    *("/proc", "/sys", "/run", "/tmp", "/var/tmp", "/var/log/journal", "/var/lib/systemd", "/var/log/wtmp"),
    *("/etc/.pwd.lock", "'/home/*/.sudo_as_admin_successful'"),
)
NOTED = tuple(f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"))
SNAPSHOT = (
    "find / -xdev \\( " + " -o ".join(f"-path {path}" for path in (*CHANGING, *NOTED)) + " \\) -prune -o "
    "\\( -type d -printf '%p %m %U %G\\n' -o -printf '%p %m %U %G %s\\n' \\) | sort"
)  # fmt: skip
"""All files with their rights and sizes, but what changes by itself and the system's notes about users and of sudo."""

_LOCK_PACKAGES = """
use Fcntl; open(my $file, ">>", "/var/lib/dpkg/lock-frontend") or die;
my $all = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0); fcntl($file, F_SETLK, $all) or die; sleep 3600;
"""


def hold_packages(target: Target) -> None:
    """Let a program of the server hold the lock of its package manager."""
    target.run(f"perl -e {shlex.quote(_LOCK_PACKAGES)} >/dev/null 2>&1 & echo $! > /tmp/holder")


def let_packages_go(target: Target) -> None:
    """Give the lock back."""
    target.run("kill $(cat /tmp/holder); rm /tmp/holder")


class Site:
    """Servers, the first of which is the root; each of the others is a child of the one before, or as `childs` says."""

    def __init__(
        self, targets: Mapping[str, Target], folder: Path, key: Path, childs: Mapping[str, list[str]] | None = None
    ) -> None:
        self.targets = dict(targets)
        names = list(targets)
        below = childs if childs is not None else {one: [two] for one, two in pairwise(names)}
        self.tree = Tree(
            servers={
                name: Server(name, each.ip, PORT, childs=list(below.get(name, []))) for name, each in targets.items()
            }
        )
        self.console = Console(
            ssh={name: SshEntry(name=name, host=each.ip, username="root", key=str(key), host_key=each.host_key)
                 for name, each in targets.items()},
            path=folder / "console.toml",
        )  # fmt: skip
        self.folder = folder
        self.bundler = Bundler(CACHE)
        """Of the release that runs bring."""
        self.said: list[Report] = []
        """By the last campaign."""
        self.everything: list[Report] = []
        """By all of them."""

    def steps(self, kind: str) -> list[Step]:
        """Return the steps of a kind that the last campaign has carried out."""
        return [each.step for each in self.said if isinstance(each, Stepped) and each.step.kind == kind]

    def entry(self, name: str, **changes: Any) -> None:
        """Change how the console logs in to a server."""
        self.console.ssh[name] = replace(self.console.ssh[name], **changes)

    def campaign(self, kind: type[Campaign] = Campaign, **options: Any) -> Campaign:
        """Return a new run. Docker is left out: the targets have none."""
        options = {"docker": False} | options
        store = Store.beside(self.console)
        campaign = kind(self.tree, self.console, Options(**options), store, render_servers(self.tree))
        campaign.bundler, campaign.release = self.bundler, self.bundler.release
        return campaign

    def build(self, kind: type[Campaign] = Campaign, **options: Any) -> Campaign:
        """Do all of it; `said` is what it said."""
        campaign = self.campaign(kind, **options)
        self.said = [*campaign.look(), *campaign.apply()]
        self.everything += self.said
        return campaign

    def each(self, script: str) -> Iterator[str]:
        """Run a script on every server, and yield what it prints."""
        for target in self.targets.values():
            yield target.run(script, check=False)


class Program:
    """`treescale build`, as people and scripts call it in a folder with the two files, which is their home as well."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        # A checkout of its own: what is built is the code as it is now, whoever changes that meanwhile.
        checkout = folder / "checkout"
        for part in ("bin", "tsbus"):
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        (checkout / ".venv").symlink_to(ROOT / ".venv")
        self.argv = (str(checkout / "bin/treescale"), "build")
        cache = folder / "cache"
        cache.mkdir()
        (cache / "treescale").symlink_to(CACHE)
        self.env = {
            "HOME": str(folder), "XDG_CACHE_HOME": str(cache), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env,
        }  # fmt: skip

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Without a terminal."""
        return subprocess.run([*self.argv, *options], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=RUN_S, check=False)  # fmt: skip
