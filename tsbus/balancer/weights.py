"""Weights: how many connections a real server gets, and how that follows its CPU without swinging. Pure.

An overloaded server gets less at once and more again slowly. Setting the weight to the free share alone would swing:
with less work the server is idle, with an idle server's work it is overloaded again.
"""

from typing import Final

from tsbus.balancer.table import MAX_WEIGHT

STEP: Final = 0.2
"""A weight stays as it is while the wanted one is nearer than this share of it."""
PACE_S: Final = 5.0
"""A weight moves at most once in this time."""
RISE: Final = 1.25
FALL: Final = 0.5
LOWEST, HIGHEST = 10, 100
"""The free share of a CPU in percent; never 0, which is for servers that get nothing."""


def clamp(weight: float) -> int:
    """Return a weight that the kernel takes, and that is not 0."""
    return max(1, min(MAX_WEIGHT, round(weight)))


def headroom(cpu_percent: float, limit_cpus: float, node_cpus: int) -> float:
    """Return the free share, 0 to 1, of what a container may use: its limit (0: none), or the node's cores."""
    cores = min(limit_cpus or node_cpus, node_cpus or limit_cpus) or 1
    return min(1.0, max(0.0, 1 - cpu_percent / 100 / cores))


def wanted(base: int, free: float) -> int:
    """Return the weight for a free share of 0 to 1."""
    return clamp(base * min(HIGHEST, max(LOWEST, round(100 * free))))


def moved(weight: int, wanted_weight: int) -> int:
    """Return what a weight becomes in one step: up by a quarter at most, down by a half at most, or no step at all."""
    if abs(wanted_weight - weight) < STEP * weight:
        return weight
    if wanted_weight > weight:
        return min(wanted_weight, clamp(max(weight + 1, weight * RISE)))
    return max(wanted_weight, clamp(weight * FALL))
