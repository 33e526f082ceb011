"""Sandbox: this machine's files, users and programs, to be changed at will: an overlay in namespaces of its own.

Nothing of what is done in it reaches the machine, and `changes` tells all of it. It has its own processes, loopback
and /run, no init system, and is gone when the process that made it is gone.
"""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SETUP = """
set -e
mount -t tmpfs -o size=2g none "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount --rbind /sys root/sys
mount -t tmpfs -o mode=755 none root/run
mount -t tmpfs none root/tmp
ip link set lo up
echo ready
# Not in its place: somebody must wait for orphans.
cat > /dev/null
"""
LIMIT_S = 120.0
NOTED = {"/etc/.pwd.lock", *(f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"))}
"""What the system's own tools for users leave behind."""


class Sandbox:
    """One of them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ts-box-")
        words = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
        self._keeper = subprocess.Popen(
            [*words, "sh", "-c", SETUP, "box", self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout
        assert self._keeper.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text()
        self.pid = int(children.split()[0])
        """Of its process 1, as seen from outside."""
        self.top = Path(f"/proc/{self.pid}/root{self._folder.name}")
        self.root = self.top / "root"
        """Its files, as seen from outside."""

    def end(self) -> None:
        """End all of its processes, and throw everything away."""
        assert self._keeper.stdin
        self._keeper.stdin.close()
        self._keeper.wait(LIMIT_S)
        self._folder.cleanup()

    def argv(self, *words: str) -> list[str]:
        """Return how to run a program in it, from outside."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net"]
        return [*enter, "chroot", f"{self._folder.name}/root", *words]

    def run(self, script: str, *, check: bool = True) -> str:
        """Run a shell script in it as root; returns what it printed."""
        done = subprocess.run(
            self.argv("sh", "-c", script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=LIMIT_S, check=False, env=ENVIRONMENT,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{script} ended with {done.returncode}: {done.stdout}"
        return done.stdout.strip()

    def changes(self) -> dict[str, str]:
        """Return how its files differ from the machine's: path -> in what. The system's own notes are left out."""
        return {path: what for path, what in self._changes() if path not in NOTED}

    def _changes(self) -> Iterator[tuple[str, str]]:
        upper = self.top / "upper"
        for folder, names, files in os.walk(upper):
            for name in (*names, *files):
                above = Path(folder, name)
                path = Path("/") / above.relative_to(upper)
                if what := _difference(above, path):
                    yield str(path), what


ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def _difference(above: Path, below: Path) -> str:
    """Return how a file of the upper layer differs from the one below, "" if it does not."""
    new = above.lstat()
    if stat.S_ISCHR(new.st_mode) and new.st_rdev == 0:
        return "removed"
    if not os.path.lexists(below):
        return "added"
    old = below.lstat()
    if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
        return "rights"
    return "content" if stat.S_ISREG(new.st_mode) and above.read_bytes() != below.read_bytes() else ""
