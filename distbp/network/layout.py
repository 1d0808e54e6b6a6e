"""One vector: all parameters are one contiguous vector theta, and W[l], b[l] are views into it.

The weights of all layers come first, then the biases of all layers, so that weight decay, which leaves biases alone,
is one slice. A gradient, a rule's state and a checkpoint are laid out alike.

Shapes: widths n_0 ... n_L; W[l] (n_l, n_{l-1}); b[l] (n_l,); l = 1 ... L as on paper, index 0 of the lists is empty.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Layout:
    """Where each layer's weights and biases lie in theta."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self.widths = widths
        self.n_weights = sum(n_in * n_out for n_in, n_out in pairwise(widths))
        self.n_parameters = self.n_weights + sum(widths[1:])

    def views(self, vector: Array) -> tuple[list[Array], list[Array]]:
        """Return (W, b), views into a vector laid out like theta, or into a stack (k, n_parameters) of such vectors."""
        lead = vector.shape[:-1]
        nothing = np.empty(0, vector.dtype)
        W, b = [nothing], [nothing]
        start, start_b = 0, self.n_weights
        for n_in, n_out in pairwise(self.widths):
            W.append(vector[..., start : start + n_out * n_in].reshape(*lead, n_out, n_in))
            b.append(vector[..., start_b : start_b + n_out])
            start, start_b = start + n_out * n_in, start_b + n_out
        return W, b
