"""One balancer for each kernel's network: the lock, in namespaces, and what the service says without it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lan import Box, enter
from lone_router import ROOT
from model_kernel import box
from site_of_balancer import KEYS, site
from waiting import LIMIT_S

from tsbus.balancer import lock
from tsbus.balancer.lock import NAME, Lock, Taken
from tsbus.balancer.machine import Machine, open_machine

HOLD = "lock = Lock('n1'); print(flush=True); time.sleep(1000)"
NOBODY = 65534
STRANGER = f"""
os.setuid({NOBODY})
taken = socket.socket(socket.AF_UNIX)
taken.bind({NAME!r})
taken.listen()
print(flush=True)
time.sleep(1000)
"""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A network namespace."""
    monkeypatch.setattr(lock, "PATIENCE_S", 0.2)
    monkeypatch.setattr(lock, "ANSWER_S", LIMIT_S)
    host = Box("host")
    yield host
    host.close()


@contextmanager
def holding(host: Box, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process there that has the name."""
    words = [sys.executable, "-c", f"import os, socket, time\nfrom tsbus.balancer.lock import Lock\n{code}"]
    with host.call(subprocess.Popen, words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()
            yield started
        finally:
            started.kill()


def test_one_for_each_network(host: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second on a kernel is told whose it is; in another namespace, and when the first has gone, there is room."""
    first = host.call(Lock, "n1")
    for _ in range(3):
        with pytest.raises(Taken, match=r"the balancer of node n1 \(process \d+\) has this kernel"):
            host.call(Lock, "n2")
    other = Box("other")
    other.call(Lock, "n2").close()
    other.close()
    first.close()
    monkeypatch.setattr(lock, "PATIENCE_S", LIMIT_S)
    second = host.call(Lock, "n2")
    assert second.problem is None
    second.close()


def test_it_goes_with_the_process(host: Box) -> None:
    """A balancer that was killed leaves no lock behind."""
    with holding(host, HOLD) as holder, pytest.raises(Taken, match=rf"node n1 \(process {holder.pid}\)"):
        host.call(Lock, "n1")
    host.call(Lock, "n1").close()


def test_nobody_else_can_keep_a_balancer_away(host: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without rights that has taken the name is a problem, and no reason not to balance."""
    monkeypatch.setattr(lock, "ANSWER_S", 0.2)
    with holding(host, STRANGER) as stranger:
        passed = host.call(Lock, "n1")
    assert passed.problem is not None
    assert passed.problem.text.startswith(f"process {stranger.pid} of user {NOBODY} has the name")
    passed.close()


async def test_the_service_says_who_has_the_kernel(host: Box, tmp_path: Path) -> None:
    """Where another node balances nothing is done, `lb.check` says who it is, and it begins when that one is gone."""

    def opened() -> Machine:
        enter(host.fd)
        return open_machine("nftables", "leave", "n1")

    holder = host.call(Lock, "n9")
    async with site(tmp_path, KEYS, box("c2", "172.17.0.2"), start=False) as one:
        one.opener = opened
        await one.start()
        (problem,) = await one.until(lambda: one.topics("lb.problem"))
        assert "the balancer of node n9" in problem["text"]
        assert "network namespace of its own" in problem["mend"]
        assert (await one.call("lb.check"))[0]["problems"][0]["text"] == problem["text"]
        assert "node n9" in await one.fails("lb.drain", {"servers": ["c2"]})
        assert "treescale" not in host.run("nft", "list", "ruleset")
        holder.close()
        await one.until(lambda: one.server("c2").get("state") == "active")
        await one.until(lambda: one.topics("lb.solved"))
        assert "172.17.0.2" in host.run("nft", "list", "ruleset")
