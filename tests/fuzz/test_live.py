"""A living router under a storm of hostile frames from workers, operators, a parent and a child."""

from siege import SHARES, besiege

FRAMES = 200_000


async def test_siege() -> None:
    """A router neither dies, nor hangs, nor grows, and serves its tree as before when the storm is over."""
    report = await besiege(FRAMES, seed=1)
    for kind, share in SHARES.items():
        assert report.sent[kind] >= FRAMES * share * (0.9 if kind != "child" else 0.05), report
    assert report.worst_ping_cpu_ms < 500, report
    assert report.growth_kib < 30_000, report
    for reason in ("malformed", "unknown-type", "forged", "misrouted", "refused", "target", "no-route"):
        assert report.counters[reason] > 0, report
