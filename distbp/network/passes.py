"""The buffers of a pass over a stack of shards, and the dropout masks that go into them.

Buffers are made once for each shape (k shards, rows of a shard) and written anew in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distbp import keys

if TYPE_CHECKING:
    from distbp.network.network import Network

Array = NDArray[Any]


class Pass:
    """The buffers of one forward and backward pass over k shards of the same number of rows.

    Attributes
    ----------
    x, y
        (k, rows, n_0) and (k, rows, n_L), to be filled in.
    counts
        (k, rows), 1 for a row that counts and 0 for padding; `padded` says whether any is 0.
    z, a, h, delta
        Lists over l: z[l], a[l], what layer l+1 reads (a[l], or `dropped[l]`), delta[l].
    kept, dropped, dropping
        Lists over l: 0 for a dropped activation, else 1 / (1 - dropped share); a[l] times that; whether they are used.
    """

    def __init__(self, network: Network, k: int, rows: int, training: bool = True) -> None:
        dtype, widths = network.dtype, network.widths

        def buffers(wanted: bool = True) -> list[Array]:
            return [np.empty((k, rows, n) if l and wanted else 0, dtype) for l, n in enumerate(widths)]

        self.shape = (k, rows)
        self.x = np.zeros((k, rows, widths[0]), dtype)
        self.y = np.zeros((k, rows, widths[-1]), dtype)
        self.counts = np.ones((k, rows), dtype)
        self.padded = False
        self.ones = np.ones((1, rows), dtype)
        self.ones64 = np.ones((rows, 1))
        self.z, self.a, self.h = buffers(), buffers(), buffers(False)
        self.delta = buffers(training)
        self.dropping = False
        self.kept, self.dropped = (buffers(training and network.dropout > 0) for _ in range(2))

    def count(self, counts: Sequence[int]) -> None:
        """Say how many rows of each shard count; the rest are padding and set to 0."""
        rows = self.shape[1]
        padded = any(n < rows for n in counts)
        if padded or self.padded:
            self.counts[...] = 1
            for i, n in enumerate(counts):
                self.counts[i, n:] = 0
                self.x[i, n:] = 0
                self.y[i, n:] = 0
        self.padded = padded


def drop(network: Network, pass_: Pass, seed: int, step: int, first_shard: int) -> None:
    """Choose which hidden activations `pass_` keeps in a step: keyed by (seed, step, shard).

    **Local.** 16 random bits decide each activation, so the dropped share is a whole number of 65,536ths.
    """
    n_dropped = min(round(network.dropout * 65536), 65535)
    if not n_dropped:
        return
    pass_.dropping = True
    k, rows = pass_.shape
    scale = 65536 / (65536 - n_dropped)
    for i in range(k):
        random = np.random.Philox(key=keys.key(keys.DROPOUT, seed, step, first_shard + i))
        widths = network.widths[1:-1]
        bits = random.random_raw(-(-rows * sum(widths) // 4)).view(np.uint16)
        start = 0
        for l, n in enumerate(widths, start=1):
            kept = bits[start : start + rows * n].reshape(rows, n) >= n_dropped
            np.multiply(kept, scale, out=pass_.kept[l][i], casting="same_kind")
            start += rows * n
