"""Initial theta: a pure function of (seed, layer), so that it never depends on ranks.

    glorot   W uniform on +-sqrt(6 / (n_{l-1} + n_l)), b = 0
    he       W normal with variance 2 / n_{l-1}, b = 0
    normal   W and b standard normal

References
----------
X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
equation 16. K. He et al., "Delving deep into rectifiers", ICCV 2015, equation 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp import keys
from distbp.network.layout import Layout


def initial_theta(layout: Layout, kind: str, seed: int, dtype: str) -> NDArray[Any]:
    """Return theta at step 0, (n_parameters,) of `dtype`; `kind` is glorot, he or normal."""
    theta = np.zeros(layout.n_parameters, dtype)
    W, b = layout.views(theta)
    for l in range(1, len(W)):
        n_out, n_in = W[l].shape
        random = np.random.Generator(np.random.Philox(key=keys.key(keys.INITIAL, seed, l)))
        if kind == "glorot":
            limit = (6 / (n_in + n_out)) ** 0.5
            W[l][...] = random.uniform(-limit, limit, (n_out, n_in))
        elif kind == "he":
            W[l][...] = random.standard_normal((n_out, n_in)) * (2 / n_in) ** 0.5
        else:
            W[l][...] = random.standard_normal((n_out, n_in))
            b[l][...] = random.standard_normal(n_out)
    return theta
