"""Slots: how connections are spread by a number that counts up, or by a hash. Pure.

A kernel without IPVS gives each new connection the slot of a number; each slot belongs to a server. Numbers that count
up make turns (rr, wrr), those of the client's address make homes (sh).
"""

import zlib
from collections.abc import Iterable, Sequence
from math import gcd, log
from typing import Final

from tsbus.balancer.table import Address, Destination

SCHEDULERS: Final = frozenset({"rr", "wrr", "sh"})
MANY: Final = 256
"""Slots at most, or one for each server: shares are exact if the weights allow it with so many. sh has always so many,
as that of IPVS."""


def slots(scheduler: str, destinations: Iterable[Destination]) -> list[Address]:
    """Return the server of each slot; none when no server has a weight."""
    ready = sorted((each for each in destinations if each.weight), key=lambda each: each.address)
    match scheduler:
        case "rr":
            return [each.address for each in ready]
        case "wrr":
            return _turns(ready)
        case "sh":
            return [_home(slot, ready) for slot in range(MANY)] if ready else []
    raise ValueError(f"no scheduler {scheduler}")


def _turns(ready: Sequence[Destination]) -> list[Address]:
    """Each server in proportion to its weight, spread evenly: 2, 1, 1 gives a b a c."""
    weights = _small([each.weight for each in ready])
    total = sum(weights)
    owed = [0] * len(ready)
    turns = []
    for _ in range(total):
        owed = [debt + weight for debt, weight in zip(owed, weights, strict=True)]
        first = max(range(len(owed)), key=owed.__getitem__)
        owed[first] -= total
        turns.append(ready[first].address)
    return turns


def _small(weights: Sequence[int]) -> list[int]:
    """The same proportions with as few turns as they need, and nearly the same where that is too many."""
    divisor = gcd(*weights)
    if sum(weights) // max(divisor, 1) > MANY:
        most = max(MANY, len(weights))
        return [max(1, weight * most // sum(weights)) for weight in weights]
    return [weight // divisor for weight in weights]


def _home(slot: int, ready: Sequence[Destination]) -> Address:
    """The server of a slot by the highest of random numbers: when one goes, only its own slots change hands."""

    def chance(each: Destination) -> float:
        number = zlib.crc32(f"{slot} {each.address}".encode())
        mixed = (number * 0x9E3779B97F4A7C15 & (2**64 - 1)) >> 32  # crc32 alone is alike for texts that are alike
        return each.weight / -log((mixed + 1) / (2**32 + 1))

    return max(ready, key=chance).address
