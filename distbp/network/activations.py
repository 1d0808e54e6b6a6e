"""sigma and sigma': element-wise, in place, and safe for any finite z.

Each activation is a pair: ``apply(z, a, scratch)`` writes a = sigma(z), and ``times_prime(z, a, delta, scratch)``
multiplies delta by sigma'(z) in place, equation (5), and may overwrite z. softmax is the one that is not element-wise:
there delta is multiplied by its Jacobian, row by row. Every row's result depends on that row alone.

Shapes: z, a, delta (..., rows, n_l); scratch (2, ..., rows, n_l), so that a step makes no array of that size.

References
----------
D. Hendrycks, K. Gimpel, "Gaussian error linear units", 2016, equation 2 (gelu by tanh).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEAK = 0.01
GELU_SCALE = 0.7978845608028654  # sqrt(2 / pi)
GELU_CUBE = 0.044715


@dataclass(frozen=True)
class Activation:
    """sigma by name: `apply` writes it, `times_prime` multiplies by its derivative."""

    name: str
    apply: Callable[[Array, Array, Array], object]
    times_prime: Callable[[Array, Array, Array, Array], object]


def _sigmoid(z: Array, a: Array, scratch: Array) -> None:
    np.maximum(z, -88.0 if z.dtype == np.float32 else -708.0, out=a)  # exp(-z) stays finite
    np.negative(a, out=a)
    np.exp(a, out=a)
    a += 1
    np.reciprocal(a, out=a)


def _sigmoid_prime(z: Array, a: Array, delta: Array, scratch: Array) -> None:
    delta *= a
    delta *= np.subtract(1, a, out=z)


def _tanh_prime(z: Array, a: Array, delta: Array, scratch: Array) -> None:
    np.multiply(a, a, out=z)
    delta *= np.subtract(1, z, out=z)


def _relu(z: Array, a: Array, scratch: Array) -> None:
    np.clip(z, 0, np.inf, out=a)  # several times as fast as numpy.maximum with a number


def _relu_prime(z: Array, a: Array, delta: Array, scratch: Array) -> None:
    delta *= np.greater(z, 0, out=z)


def _leaky_relu(z: Array, a: Array, scratch: Array) -> None:
    np.multiply(z, LEAK, out=a)
    np.maximum(z, a, out=a)


def _leaky_relu_prime(z: Array, a: Array, delta: Array, scratch: Array) -> None:
    np.greater(z, 0, out=z)
    delta *= np.maximum(z, LEAK, out=z)


def _gelu_tanh(z: Array, t: Array, u: Array) -> None:
    """Write clip(z) into u and the tanh of gelu into t."""
    np.clip(z, -30.0, 30.0, out=u)  # tanh is +-1 in every bit long before, and the cube stays finite
    np.multiply(u, u, out=t)
    t *= GELU_SCALE * GELU_CUBE
    t += GELU_SCALE
    t *= u
    np.tanh(t, out=t)


def _gelu(z: Array, a: Array, scratch: Array) -> None:
    _gelu_tanh(z, a, scratch[0])
    a += 1
    a *= np.multiply(z, 0.5, out=scratch[0])


def _gelu_prime(z: Array, a: Array, delta: Array, scratch: Array) -> None:
    t, u = scratch
    _gelu_tanh(z, t, u)
    np.multiply(u, u, out=z)  # sigma' = (1 + t) / 2 + u (1 - t^2) / 2 * GELU_SCALE (1 + 3 GELU_CUBE u^2)
    z *= 1.5 * GELU_SCALE * GELU_CUBE
    z += 0.5 * GELU_SCALE
    z *= u
    np.multiply(t, t, out=u)
    z *= np.subtract(1, u, out=u)
    t *= 0.5
    t += 0.5
    delta *= np.add(z, t, out=z)


def _softplus(z: Array, a: Array, scratch: Array) -> None:
    np.abs(z, out=a)
    np.negative(a, out=a)
    np.exp(a, out=a)
    np.log1p(a, out=a)
    a += np.clip(z, 0, np.inf, out=scratch[0])


def _softplus_prime(z: Array, a: Array, delta: Array, scratch: Array) -> None:
    _sigmoid(z, scratch[0], scratch)
    delta *= scratch[0]


def _softmax(z: Array, a: Array, scratch: Array) -> None:
    np.subtract(z, z.max(axis=-1, keepdims=True), out=a)  # each row's own maximum
    np.exp(a, out=a)
    a /= a.sum(axis=-1, keepdims=True)


def _softmax_prime(z: Array, a: Array, delta: Array, scratch: Array) -> None:
    delta -= np.multiply(delta, a, out=z).sum(axis=-1, keepdims=True)
    delta *= a


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("sigmoid", _sigmoid, _sigmoid_prime),
        Activation("tanh", lambda z, a, scratch: np.tanh(z, out=a), _tanh_prime),
        Activation("relu", _relu, _relu_prime),
        Activation("leaky_relu", _leaky_relu, _leaky_relu_prime),
        Activation("gelu", _gelu, _gelu_prime),
        Activation("softplus", _softplus, _softplus_prime),
        Activation("identity", lambda z, a, scratch: np.copyto(a, z), lambda z, a, delta, scratch: None),
        Activation("softmax", _softmax, _softmax_prime),
    )
}
