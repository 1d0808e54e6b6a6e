"""Keyed functions of integers: the one source of every choice that must not depend on ranks or on time.

A key is 64 bits made from named integers (seed, purpose, epoch, shard, ...); a keyed function of a number is that
number sent through a 64-bit mixer, so any element can be had without the ones before it.

References
----------
G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, section 3 (SplitMix64);
the mixer's constants are D. Stafford's variant 13, as used there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio

# What a key is for: the first number of every key, so that no two purposes share their random numbers.
PARTS, ORDER, DROPOUT, INITIAL, SYNTHETIC = range(1, 6)


def _mix_one(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def key(*numbers: int) -> int:
    """Return a 64-bit key made from integers; their order matters."""
    state = 0
    for number in numbers:
        state = _mix_one((state + GOLDEN + number) & MASK)
    return state


def mixed(of_key: int | NDArray[np.uint64], numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the keyed 64-bit function of each number, in the shape given; of each key where they are several."""
    x = numbers * np.uint64(GOLDEN) + np.asarray(of_key, np.uint64)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def uniform(of_key: int, numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the keyed function of each number as float64, uniform on [0, 1)."""
    values = (mixed(of_key, numbers) >> np.uint64(11)).astype(np.float64)
    values *= 2.0**-53
    return values
