"""The order of samples: a pure function of (seed, epoch, shard), computed index by index in constant memory.

Within an epoch a shard's rows are visited in the order of a keyed permutation of 0 ... n - 1: a Feistel network on the
smallest power of two not below n, applied again to any value that falls outside (at most two times on average). So the
k-th row of any epoch is arithmetic: nothing is shuffled, stored or skipped, and a run resumes anywhere at once.

References
----------
J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 3 (cycle walking) and 4 (Feistel).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp import keys

ROUNDS = 10
WINDOW = 16384  # positions computed at once; a batch's few rows alone would cost more in calls than in work

Rows = NDArray[np.int64]


def permuted(of_key: int, positions: Rows, n: int) -> Rows:
    """Return the keyed permutation of 0 ... `n` - 1 at `positions`, int64 of the same shape.

    Examples
    --------
    >>> sorted(permuted(7, np.arange(5), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = max(2, (n - 1).bit_length())
    low_bits = bits // 2
    widths = (low_bits, bits - low_bits)  # of the half that changes in even and in odd rounds
    word: Any = np.uint32 if bits <= 32 else np.uint64
    size = 8 * np.dtype(word).itemsize
    round_keys = [word(keys.key(of_key, r) >> (64 - size)) for r in range(ROUNDS)]
    multiplier = word(0x94D049BB133111EB & ((1 << size) - 1))
    result: NDArray[Any] = positions.astype(word)
    outside = np.arange(result.size)
    x = result
    while outside.size:
        halves = [x & word((1 << low_bits) - 1), x >> word(low_bits)]
        for r in range(ROUNDS):
            t = halves[1 - r % 2] + round_keys[r]
            t *= word(keys.GOLDEN >> (64 - size) | 1)
            t ^= t >> word(size // 2)
            t *= multiplier
            t >>= word(size - widths[r % 2])
            halves[r % 2] ^= t
        x = halves[0] | halves[1] << word(low_bits)
        result[outside] = x
        still = x >= n
        outside, x = outside[still], x[still]
    return result.astype(np.int64)


class Order:
    """The order of one shard's `n` training rows."""

    def __init__(self, seed: int, shard: int, n: int) -> None:
        self.seed, self.shard, self.n = seed, shard, n
        self._window: tuple[int, int] = (-1, -1)  # epoch, first position
        self._rows = np.empty(0, np.int64)

    def rows(self, epoch: int, start: int, stop: int) -> Rows:
        """Return which of the shard's rows (0 ... n - 1) stand at positions `start` ... `stop` - 1 of an epoch."""
        windows = [self._of_window(epoch, first) for first in range(start - start % WINDOW, stop, WINDOW)]
        rows = windows[0] if len(windows) == 1 else np.concatenate(windows or [self._rows[:0]])
        return rows[start % WINDOW : start % WINDOW + stop - start]

    def _of_window(self, epoch: int, first: int) -> Rows:
        """Return the rows at `first` and the positions after it, as many as a window holds."""
        if self._window != (epoch, first):
            of_key = keys.key(keys.ORDER, self.seed, epoch, self.shard)
            self._rows = permuted(of_key, np.arange(first, min(first + WINDOW, self.n)), self.n)
            self._window = (epoch, first)
        return self._rows
