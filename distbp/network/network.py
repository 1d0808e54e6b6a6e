"""The forward and the backward pass over a stack of shards, in the notation of the lecture notes.

    (1) a[0] = x
    (2) z[l] = a[l-1] W[l]^T + b[l]            a[l] = sigma_l(z[l])
    (4) delta[L] = dC/da[L] * sigma_L'(z[L])
    (5) delta[l] = (delta[l+1] W[l+1]) * sigma_l'(z[l])
    (6) grad_W[l] = delta[l]^T a[l-1]          grad_b[l] = sum over rows of delta[l]

Shapes: x, z[l], a[l], delta[l] are (k, rows, n_l): k shards with the same number of rows each; grad_W[l] is
(k, n_l, n_{l-1}) and grad_b[l] (k, n_l), a sum over the rows of each shard, never a mean. W[l] is (n_l, n_{l-1}).

Stacked ``numpy.matmul`` makes one BLAS call a shard, always of the shape that this shard has alone, so a shard's bits
do not depend on how many shards are computed together. For the same reason sums over rows are products with a vector
of ones: ``numpy.sum`` may walk a stack of one in another order than a stack of two.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        h = pass_.h
        h[0] = pass_.x
        for l in range(1, self.n_layers + 1):
            np.matmul(h[l - 1], W[l].T, out=pass_.z[l])  # (k, rows, n_l)
            pass_.z[l] += b[l]
            self.sigma[l].apply(pass_.z[l], pass_.a[l])
            dropping = pass_.dropping and l < self.n_layers
            h[l] = np.multiply(pass_.a[l], pass_.kept[l], out=pass_.dropped[l]) if dropping else pass_.a[l]
        return pass_.a[self.n_layers]

    def backward(self, W: list[Array], pass_: Pass, grad_W: list[Array], grad_b: list[Array]) -> None:
        """Run (4) to (6) after `forward`; write each shard's gradient sum.

        **Local.** grad_W and grad_b are the views of a stack (k, n_parameters). Rows of which `pass_.counts` is 0
        (padding of a short batch) add nothing.
        """
        L = self.n_layers
        delta = pass_.delta[L]
        self.cost.start_delta(pass_.z[L], pass_.a[L], pass_.y, delta)
        if self.cost.fused != self.sigma[L].name:
            self.sigma[L].times_prime(pass_.z[L], pass_.a[L], delta)  # (4)
        if pass_.padded:
            delta *= pass_.counts[:, :, None]
        for l in range(L, 0, -1):
            np.matmul(delta.transpose(0, 2, 1), pass_.h[l - 1], out=grad_W[l])  # (6)
            np.matmul(pass_.ones, delta, out=grad_b[l][:, None, :])  # (6)
            if l > 1:
                delta = np.matmul(delta, W[l], out=pass_.delta[l - 1])  # (5)
                if pass_.dropping:
                    delta *= pass_.kept[l - 1]
                self.sigma[l - 1].times_prime(pass_.z[l - 1], pass_.a[l - 1], delta)

    def cost_sums(self, pass_: Pass, sums: Array) -> None:
        """Write the sum of C over the rows of each shard into `sums`, (k,) float64, after `forward`."""
        L = self.n_layers
        per_sample = self.cost.per_sample(pass_.z[L], pass_.a[L], pass_.y).astype(np.float64)  # (k, rows)
        if pass_.padded:
            per_sample *= pass_.counts
        np.matmul(per_sample[:, None, :], pass_.ones64, out=sums[:, None, None])
