"""The balancer's figures, on a host of its own: network namespaces of this kernel, or a guest whose kernel has IPVS.

What is measured there is in `balanced.py`, which runs on that host and answers with one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import ClassVar

from bench.harness import ROOT, BenchError
from bench.ours import Ours

LIMIT_S = 900
# A namespace has its own /sys, and engines need the cgroups of the one before.
OWN_HOST = """
mount --make-rprivate / && mkdir -p /run/bench-cgroups && mount --rbind /sys/fs/cgroup /run/bench-cgroups &&
mount -t sysfs sys /sys && mount --rbind /run/bench-cgroups /sys/fs/cgroup && ip link set lo up && exec "$@"
"""


class Balanced:
    """A host with our balancer, `backend` in its kernel."""

    backend: ClassVar[str]

    def version(self) -> str:
        return Ours().version()

    def measure(self, kind: str) -> dict[str, float]:
        words = [sys.executable, "-m", "bench.balanced", kind, self.backend]
        done = subprocess.run(self.there(words), capture_output=True, text=True, cwd=ROOT, env=self.env(), check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines or not lines[-1].startswith("{"):
            raise BenchError(f"{' '.join(words)} ended with {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
        print(*lines[:-1], sep="\n", end="\n" * (len(lines) > 1), file=sys.stderr)  # what it has to say beside figures
        figures: dict[str, float] = json.loads(lines[-1])
        return figures

    def there(self, words: list[str]) -> list[str]:
        """The command that runs another one on the host."""
        return ["unshare", "--net", "--mount", "sh", "-c", OWN_HOST, "sh", *words]

    def env(self) -> dict[str, str]:
        return {**os.environ, "UML_RUN": f"--memory 3G --limit {LIMIT_S}"}


class Nftables(Balanced):
    """This machine's kernel, with network namespaces and an engine of our own."""

    backend = "nftables"


class IpvsInGuest(Balanced):
    """User-Mode Linux, whose system calls take 100 times as long and more; `floors` tells."""

    backend = "ipvs"

    def there(self, words: list[str]) -> list[str]:
        return [str(ROOT / "tests/lab/uml-docker"), *words]


class NftablesStop(Nftables):
    """One way to stop a container, under load."""

    way: ClassVar[str]

    def measure(self, kind: str) -> dict[str, float]:
        return super().measure(f"{kind}:{self.way}")


class NftablesDrain(NftablesStop):
    way = "drain"


class NftablesPlain(NftablesStop):
    way = "stop"


class NftablesKill(NftablesStop):
    way = "kill"


class IpvsDrain(IpvsInGuest, NftablesDrain):
    pass


class IpvsPlain(IpvsInGuest, NftablesPlain):
    pass


class IpvsKill(IpvsInGuest, NftablesKill):
    pass


class SwarmPlain(IpvsInGuest, NftablesPlain):
    """Swarm's ingress, which is IPVS too: a task's container is stopped, and Swarm starts another."""

    backend = "swarm"

    def version(self) -> str:
        return subprocess.run(["docker", "--version"], capture_output=True, text=True, check=False).stdout.strip()


class SwarmScale(SwarmPlain):
    """The same; Swarm itself is told to have one task less."""

    way = "scale"
