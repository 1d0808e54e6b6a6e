"""The forward and the backward pass over a stack of shards, in the notation of the lecture notes.

    (1) a[0] = x
    (2) z[l] = a[l-1] W[l]^T + b[l]            a[l] = sigma_l(z[l])
    (4) delta[L] = dC/da[L] * sigma_L'(z[L])
    (5) delta[l] = (delta[l+1] W[l+1]) * sigma_l'(z[l])
    (6) grad_W[l] = delta[l]^T a[l-1]          grad_b[l] = sum over rows of delta[l]

Shapes: x, z[l], a[l], delta[l] are (k, rows, n_l): k shards with the same number of rows each; grad_W[l] is
(k, n_l, n_{l-1}) and grad_b[l] (k, n_l), a sum over the rows of each shard, never a mean. W[l] is (n_l, n_{l-1}).

Stacked ``numpy.matmul`` makes one BLAS call a shard, always of the shape that this shard has alone, so a shard's bits
do not depend on how many shards are computed together; one product for all of them stands in where it is proved to be
equal (passes.join). For the same reason sums over rows are products with a vector of ones: ``numpy.sum`` may walk a
stack of one in another order than a stack of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.network.activations import ACTIVATIONS
from distbp.network.costs import cost
from distbp.network.layout import Layout
from distbp.network.passes import Pass

Array = NDArray[Any]


class Network:
    """A fully connected network: widths, activations and cost. Its parameters, theta, are always passed in.

    Parameters
    ----------
    widths
        n_0 ... n_L, the inputs first.
    activations
        Names of sigma_1 ... sigma_L.
    cost_name, huber_width
        The cost C, as in the settings.
    dropout
        Share of each hidden layer's activations set to 0 in a training step.
    dtype
        float32 or float64.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activations: Sequence[str],
        cost_name: str,
        huber_width: float = 1.0,
        dropout: float = 0.0,
        dtype: str = "float32",
    ) -> None:
        if len(activations) != len(widths) - 1:
            raise ValueError(
                f"activations: expected one for each of {len(widths) - 1} layers, got {len(activations)}. "
                "Name one for every width but the first."
            )
        self.widths = tuple(int(n) for n in widths)
        self.layout = Layout(self.widths)
        self.sigma = [ACTIVATIONS["identity"], *(ACTIVATIONS[name] for name in activations)]  # sigma[0] is never used
        self.cost = cost(cost_name, huber_width)
        self.huber_width = huber_width
        self.dropout = dropout
        self.n_dropped = min(round(dropout * 65536), 65535)  # of 65,536
        self.dtype = np.dtype(dtype)
        self.n_layers = len(activations)  # L
        if self.cost.fused and self.cost.fused != activations[-1]:
            raise ValueError(
                f"activations: expected {self.cost.fused} last with {cost_name}, got {activations[-1]}. "
                "Use the two together."
            )

    def description(self) -> dict[str, Any]:
        """Return what is needed to make this network again, as plain values."""
        return {
            "widths": list(self.widths),
            "activations": [sigma.name for sigma in self.sigma[1:]],
            "cost_name": self.cost.name,
            "huber_width": self.huber_width,
            "dropout": self.dropout,
            "dtype": self.dtype.name,
        }

    def forward(self, W: list[Array], b: list[Array], pass_: Pass) -> Array:
        """Run (1) and (2) from `pass_.x`; return a[L], (k, rows, n_L), a buffer of `pass_`.

        **Local.** W and b are the views of theta that `layout.views` gives.
        """
        for l in range(1, self.n_layers + 1):
            h, z = pass_.forward[l]
            np.matmul(h, W[l].T, out=z)
            z = pass_.z[l]  # (k, rows, n_l)
            z += b[l]
            self.sigma[l].apply(z, pass_.a[l], pass_.scratch[l])
            if pass_.dropping and l < self.n_layers:
                np.multiply(pass_.a[l], pass_.kept[l], out=pass_.h[l])
        return pass_.a[self.n_layers]

    def deltas(self, W: list[Array], pass_: Pass) -> Iterator[int]:
        """Run (4) and (5) after `forward`; yield l = L ... 1, each as soon as delta[l] is known.

        **Local.** Overwrites z. delta is 0 in rows of which `pass_.counts` is 0 (padding of a short batch).
        """
        L = self.n_layers
        delta = pass_.delta[L]
        self.cost.start_delta(pass_.z[L], pass_.a[L], pass_.y, delta)
        if self.cost.fused != self.sigma[L].name:
            self.sigma[L].times_prime(pass_.z[L], pass_.a[L], delta, pass_.scratch[L])  # (4)
        if pass_.padded:
            delta *= pass_.counts[:, :, None]
        yield L
        for l in range(L - 1, 0, -1):
            above, below = pass_.backward[l + 1]
            np.matmul(above, W[l + 1], out=below)  # (5)
            delta = pass_.delta[l]
            if pass_.dropping:
                delta *= pass_.kept[l]
            self.sigma[l].times_prime(pass_.z[l], pass_.a[l], delta, pass_.scratch[l])
            yield l

    def backward(self, W: list[Array], pass_: Pass, grad_W: list[Array], grad_b: list[Array]) -> None:
        """Run (4) to (6) after `forward`; write each shard's gradient sum. **Local.** Overwrites z.

        grad_W and grad_b are the views of a stack (k, n_parameters).
        """
        for l in self.deltas(W, pass_):
            gradient(pass_.delta[l], pass_.h[l - 1], pass_.ones, grad_W[l], grad_b[l])

    def cost_sums(self, pass_: Pass, sums: Array) -> None:
        """Write the sum of C over the rows of each shard into `sums`, (k,) float64, after `forward`. **Local.**"""
        L = self.n_layers
        pass_.costs[...] = self.cost.per_sample(pass_.z[L], pass_.a[L], pass_.y, pass_.scratch[L])  # (k, rows)
        if pass_.padded:
            pass_.costs *= pass_.counts
        np.matmul(pass_.costs[:, None, :], pass_.ones64, out=sums[:, None, None])


def gradient(delta: Array, h: Array, ones: Array, grad_W: Array, grad_b: Array) -> None:
    """Write (6), the sum over rows, for some neurons of a layer. **Local.**

    delta (..., rows, n), h (..., rows, n_{l-1}), ones (1, rows), grad_W (..., n, n_{l-1}), grad_b (..., n).
    """
    np.matmul(delta.swapaxes(-1, -2), h, out=grad_W)
    np.matmul(ones, delta, out=grad_b[..., None, :])
