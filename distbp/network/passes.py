"""The buffers of a pass over a stack of shards, and the dropout masks that go into them.

Buffers are made once for each shape (k shards, rows of a shard) and written anew in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distbp import keys

if TYPE_CHECKING:
    from distbp.network.network import Network

Array = NDArray[Any]
ENOUGH = 1 << 26  # multiplications that go into a proof of equality, a layer; at least two products


class Pass:
    """The buffers of one forward and backward pass over k shards of the same number of rows.

    Parameters
    ----------
    training
        Whether there is a backward pass, and dropout.
    h, delta
        Buffers that lie elsewhere (in memory that ranks share), by layer: (k, rows, n_l) each.

    Attributes
    ----------
    x, y
        (k, rows, n_0) and (k, rows, n_L), to be filled in, or replaced by `use`.
    counts
        (k, rows), 1 for a row that counts and 0 for padding; `padded` says whether any is 0.
    z, a, h, delta
        Lists over l: z[l], a[l], what layer l+1 reads (a[l], or with dropout `kept[l]` times that), delta[l].
    kept, dropping
        List over l: 0 for a dropped activation, else 1 / (1 - dropped share); whether there is any dropout.
    flat_h, flat_delta
        h and delta as flat arrays.
    scratch
        List over l: (2, k, rows, n_l), one piece of memory for all layers.
    forward, backward
        Lists over l: what the products of (2), (h[l-1], z[l]), and of (5), (delta[l], delta[l-1]), work on.
    """

    def __init__(
        self,
        network: Network,
        k: int,
        rows: int,
        training: bool = True,
        h: Mapping[int, Array] | None = None,
        delta: Mapping[int, Array] | None = None,
    ) -> None:
        dtype, widths, L = network.dtype, network.widths, network.n_layers
        h, delta = h or {}, delta or {}
        self.dropping = training and network.n_dropped > 0

        def buffer(l: int, wanted: bool = True, given: Array | None = None) -> Array:
            return given if given is not None else np.empty((k, rows, widths[l]) if wanted else 0, dtype)

        self.shape = (k, rows)
        self.x = buffer(0, given=h.get(0))
        self.y = np.zeros((k, rows, widths[-1]), dtype)
        self.counts = np.ones((k, rows), dtype)
        self.padded = False
        self.ones = np.ones((1, rows), dtype)
        self.ones64 = np.ones((rows, 1))
        self.costs = np.empty((k, rows))  # of each row
        self.z = [buffer(l, l > 0) for l in range(L + 1)]
        self.kept = [buffer(l, self.dropping and 0 < l < L) for l in range(L + 1)]
        self.h = [self.x, *(buffer(l, given=h.get(l)) for l in range(1, L + 1))]
        self.a = [buffer(l, 0 < l < L) if self.dropping and l < L else self.h[l] for l in range(L + 1)]
        self.delta = [buffer(l, training and l > 0, delta.get(l)) for l in range(L + 1)]
        flat = np.empty(2 * k * rows * max(widths[1:]), dtype)
        self.scratch = [flat[:0], *(flat[: 2 * k * rows * n].reshape(2, k, rows, n) for n in widths[1:])]
        self.flat_h, self.flat_delta = ([array.reshape(-1) for array in of_l] for of_l in (self.h, self.delta))
        self.joined = False  # whether layer 1's forward product is one for all shards
        self.forward = [(self.x, self.x), *((self.h[l - 1], self.z[l]) for l in range(1, L + 1))]
        self.backward = [(self.x, self.x), *((self.delta[l], self.delta[l - 1]) for l in range(1, L + 1))]

    def use(self, x: Array, y: Array) -> None:
        """Take x and y, (k, rows, n_0) and (k, rows, n_L), from where they lie."""
        self.x, self.y, self.h[0] = x, y, x
        self.forward[1] = (x.reshape(-1, x.shape[-1]) if self.joined else x, self.forward[1][1])

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


def join(pass_: Pass, W: Sequence[Array]) -> None:
    """Make one product of all shards' rows out of one a shard, in each layer where this machine proves them equal.

    One product of many rows is up to three times as fast. Whether its rows have the same bits depends on the BLAS
    library and on the shapes: so both are computed here, at least twice, and compared byte for byte. Every second time
    the sums nearly cancel: then another rounding of a product, or order of adding, shows far above the last bit.
    **Local**: ranks may find differently, as it changes no bit. Overwrites h and delta.
    """
    random = np.random.default_rng(0)

    def flat(arrays: tuple[Array, Array]) -> tuple[Array, Array]:
        return arrays[0].reshape(-1, arrays[0].shape[-1]), arrays[1].reshape(-1, arrays[1].shape[-1])

    def equal(of_shards: tuple[Array, Array], shape: tuple[int, ...], transposed: bool) -> bool:
        rows, result = of_shards
        together, found = flat(of_shards)
        half = rows.shape[-1] // 2
        for i in range(int(min(128, max(2, ENOUGH // (rows.size * result.shape[-1]))))):
            w = random.standard_normal(shape, rows.dtype)  # laid out as W is
            along = w.T if transposed else w  # (numbers added, n)
            rows[...] = random.standard_normal(rows.shape, rows.dtype)
            if i % 2:
                noise = 2.0**-10 * random.standard_normal((half, 1), rows.dtype)
                np.multiply(along[:half], 1 + noise, out=along[half : 2 * half])
                rows[..., half : 2 * half] = -rows[..., :half]
                rows[..., 2 * half :] *= 2.0**-10  # the odd one
            np.matmul(rows, along, out=result)
            expected = found.copy()
            np.matmul(together, along, out=found)
            if found.tobytes() != expected.tobytes():
                return False
        return True

    if pass_.shape[0] < 2:
        return
    for l in range(1, len(pass_.z)):
        if equal(pass_.forward[l], W[l].shape, True):
            pass_.forward[l] = flat(pass_.forward[l])
            pass_.joined = pass_.joined or l == 1
        if l > 1 and equal(pass_.backward[l], W[l].shape, False):
            pass_.backward[l] = flat(pass_.backward[l])


def drop(network: Network, pass_: Pass, seed: int, step: int, first_shard: int) -> None:
    """Choose which hidden activations `pass_` keeps in a step: keyed by (seed, step, shard).

    **Local.** 16 random bits decide each activation, so the dropped share is a whole number of 65,536ths.
    """
    if not pass_.dropping:
        return
    k, rows = pass_.shape
    scale = 65536 / (65536 - network.n_dropped)
    for i in range(k):
        random = np.random.Philox(key=keys.key(keys.DROPOUT, seed, step, first_shard + i))
        widths = network.widths[1:-1]
        bits = random.random_raw(-(-rows * sum(widths) // 4)).view(np.uint16)
        start = 0
        for l, n in enumerate(widths, start=1):
            kept = bits[start : start + rows * n].reshape(rows, n) >= network.n_dropped
            np.multiply(kept, scale, out=pass_.kept[l][i], casting="same_kind")
            start += rows * n
