"""The order of samples: a pure function of (seed, epoch, shard), computed index by index in constant memory.

Within an epoch a shard's rows are visited in the order of a keyed permutation of 0 ... n - 1: a Feistel network on the
smallest power of two not below n, applied again to any value that falls outside (at most two times on average); each
round multiplies by a keyed odd number, adds another and keeps the highest bits. So the k-th row of any epoch is
arithmetic: nothing is shuffled, stored or skipped, and a run resumes anywhere at once.

References
----------
J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 3 (cycle walking) and 4 (Feistel).
M. Dietzfelbinger, "Universal hashing and k-wise independent random variables via integer arithmetic without primes",
STACS 1996, section 2 (multiply, add, keep the highest bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp import keys

ROUNDS = 10
POSITIONS = 65536  # computed at once; a batch's few rows alone would cost more in calls than in work
Rows = NDArray[np.int64]


def permuted(of_keys: NDArray[np.uint64], positions: Rows, n: Rows, most: int) -> Rows:
    """Return keyed permutations at `positions`: row g is that of 0 ... n[g] - 1 by of_keys[g].

    Parameters
    ----------
    of_keys, n
        (g,) each.
    positions
        (m,); those from n[g] on give 0.
    most
        Largest n of all permutations that are to be alike.

    Examples
    --------
    >>> sorted(permuted(np.array([7], np.uint64), np.arange(5), np.array([5]), 5)[0].tolist())
    [0, 1, 2, 3, 4]
    """
    bits = max(6, (most - 1).bit_length())  # fewer mix badly
    low_bits = bits // 2
    widths = (low_bits, bits - low_bits)  # of the half that changes in even and in odd rounds
    word: Any = np.uint32 if bits <= 32 else np.uint64
    size = 8 * np.dtype(word).itemsize
    numbers = keys.mixed(of_keys[:, None], np.arange(2 * ROUNDS, dtype=np.uint64)) >> np.uint64(64 - size)
    factors, terms = (numbers.astype(word)[:, i::2] for i in range(2))  # (g, ROUNDS)
    factors = factors | word(1)

    def feistel(x: NDArray[Any], factors: NDArray[Any], terms: NDArray[Any]) -> NDArray[Any]:
        halves = [x & word((1 << low_bits) - 1), x >> word(low_bits)]
        for r in range(ROUNDS):
            t = halves[1 - r % 2] * factors[r]
            t += terms[r]
            t >>= word(size - widths[r % 2])
            halves[r % 2] ^= t
        joined: NDArray[Any] = halves[0] | halves[1] << word(low_bits)
        return joined

    everywhere = np.broadcast_to(positions.astype(word), (len(n), positions.size))
    result = feistel(everywhere, factors.T[:, :, None], terms.T[:, :, None])  # (g, m)
    valid = positions < n[:, None]
    flat = result.reshape(-1)
    outside = np.flatnonzero((result >= n.astype(word)[:, None]) & valid)
    while outside.size:
        g = outside // positions.size
        x = feistel(flat[outside], factors[g].T, terms[g].T)
        flat[outside] = x
        outside = outside[x >= n[g]]
    result *= valid
    return result.astype(np.int64)


class Order:
    """The order of the training rows of some shards.

    Parameters
    ----------
    seed, shards
        Which order, and of which shards.
    counts
        Rows of each of them.
    most
        Rows of the largest shard of all.
    """

    def __init__(self, seed: int, shards: range, counts: Sequence[int], most: int) -> None:
        self.seed, self.shards, self.n, self.most = seed, shards, np.array(counts, np.int64), most
        self.length = min(max(1, POSITIONS // len(shards)), most)  # positions of a window, in each shard
        self.epochs = max(1, POSITIONS // (len(shards) * most))  # and epochs, where shards are small
        self._window: tuple[int, int] = (-1, -1)  # first epoch, first position
        self._rows = np.empty((0, 0, 0), np.int64)  # (epochs, shards, positions)

    def rows(self, epoch: int, start: int, stop: int) -> Rows:
        """Return which rows of each shard stand at positions `start` ... `stop` - 1 of an epoch, (shards, positions).

        Rows are numbered from 0 in their shard. A position that a shard has not gives 0.
        """
        firsts = range(start - start % self.length, stop, self.length)
        windows = [self._of_window(epoch, first) for first in firsts]
        skip = start % self.length
        return np.concatenate(windows or [self._rows[:0].reshape(len(self.n), 0)], 1)[:, skip : skip + stop - start]

    def _of_window(self, epoch: int, first: int) -> Rows:
        """Return the rows of each shard at `first` and the positions after it, as many as a window holds."""
        first_epoch = epoch - epoch % self.epochs
        if self._window != (first_epoch, first):
            epochs = range(first_epoch, first_epoch + self.epochs)
            of_keys = [keys.key(keys.ORDER, self.seed, e, shard) for e in epochs for shard in self.shards]
            positions = np.arange(first, min(first + self.length, self.most))
            n = np.tile(self.n, self.epochs)
            found = permuted(np.array(of_keys, np.uint64), positions, n, self.most)
            self._rows = found.reshape(self.epochs, len(self.n), -1)
            self._window = (first_epoch, first)
        rows: Rows = self._rows[epoch - first_epoch]
        return rows
