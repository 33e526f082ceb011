"""The siege of a living router: attackers of every kind against one process, while an honest worker asks it for PONG.

`python -m tests.fuzz` runs the long one; test_live.py a short one.
"""

import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "system"))  # the trees of real processes live there

from attacker import Orders
from raw import RawWorker
from tree import QUICK, Tree

from tsbus.config import Operator
from tsbus.core.roles import Role
from tsbus.transport import Curve, new_keypair, public_of

SHARES = {"worker": 0.5, "operator": 0.24, "parent": 0.25, "child": 0.01}
"""A child sends least: the router waits a second before it dials one again that it has cut."""


@dataclass
class Report:
    """What came of a siege."""

    sent: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    pings: int = 0
    worst_ping_ms: float = 0.0
    worst_ping_cpu_ms: float = 0.0
    """What the router has worked at most while somebody waited for PONG, whatever else the machine did."""
    growth_kib: int = 0
    counters: dict[str, int] = field(default_factory=dict)


async def besiege(frames: int, seed: int) -> Report:
    """Send so many hostile frames in all to a router; raises AssertionError if it dies or its log has a traceback."""
    public, secret = new_keypair()
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:
        operators = {"eve": Operator("eve", public, Role.ADMIN)}
        async with Tree("a:b;b:c", Path(folder), bus=QUICK, operators=operators) as tree:
            tree.kill("a", "c")
            return await _besiege(tree, Curve(public, secret), frames, seed)


async def _besiege(tree: Tree, eve: Curve, frames: int, seed: int) -> Report:
    report = Report()
    orders = _orders(tree, eve, frames, seed)
    await asyncio.gather(*(_run(order) for order in _orders(tree, eve, frames // 20, seed + 1)))
    before = tree.rss_kib("b")
    began = time.monotonic()
    with RawWorker(tree.bus("b")) as honest:
        await honest.hello("honest")
        attack = asyncio.ensure_future(asyncio.gather(*map(_run, orders)))
        while not attack.done():
            asked, worked_ms = time.monotonic(), _cpu_ms(tree.processes["b"].pid)
            await honest.settled()
            report.pings += 1
            worked_ms = _cpu_ms(tree.processes["b"].pid) - worked_ms
            report.worst_ping_cpu_ms = max(report.worst_ping_cpu_ms, worked_ms)
            report.worst_ping_ms = max(report.worst_ping_ms, (time.monotonic() - asked) * 1000)
            honest.heard.clear()
            await asyncio.sleep(0.05)
        report.seconds = time.monotonic() - began
        report.sent = dict(zip(SHARES, attack.result(), strict=True))
        report.growth_kib = tree.rss_kib("b") - before
    report.counters = await tree.counters("b")
    tree.start("a", "c")
    await tree.whole()
    return report


def _cpu_ms(pid: int) -> float:
    """The CPU time that a process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * 1000 / os.sysconf("SC_CLK_TCK")


def _orders(tree: Tree, eve: Curve, frames: int, seed: int) -> list[Orders]:
    to = tree.keys("b", tree.secrets["a"])
    child = tree.config.servers["c"]
    connections = {
        "worker": Orders("worker", tree.bus("b"), 0, 0, "b"),
        "operator": Orders("operator", tree.address("b"), 0, 0, "b", eve.public, eve.secret, to.server),
        "parent": Orders("parent", tree.address("b"), 0, 0, "a", to.public, to.secret, to.server),
        "child": Orders("child", tree.address("c"), 0, 0, "c", child.public_key, tree.secrets["c"]),
    }
    assert public_of(tree.secrets["c"]) == child.public_key
    for number, (kind, order) in enumerate(connections.items()):
        order.frames, order.seed = int(frames * SHARES[kind]), seed + number
        # A child sends what it can meanwhile; how long the others take is not what is tested.
        order.limit_s = 10 + frames / (5000 if kind == "child" else 500)
    return list(connections.values())


async def _run(orders: Orders) -> int:
    script = Path(__file__).with_name("attacker.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, orders.text(), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return int(output)
