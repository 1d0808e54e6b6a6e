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

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp import keys

ROUNDS = 10
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
