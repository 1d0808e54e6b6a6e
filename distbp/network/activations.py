"""sigma and sigma': element-wise, in place, and safe for any finite z.

Each activation is a pair: ``apply(z, a)`` writes a = sigma(z), and ``times_prime(z, a, delta)`` multiplies delta by
sigma'(z) in place, equation (5). softmax is the one that is not element-wise: there delta is multiplied by its
Jacobian, row by row. Every row's result depends on that row alone.

Shapes: z, a, delta (..., rows, n_l).

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
    apply: Callable[[Array, Array], object]
    times_prime: Callable[[Array, Array, Array], object]


def _sigmoid(z: Array, a: Array) -> None:
    np.maximum(z, -88.0 if z.dtype == np.float32 else -708.0, out=a)  # exp(-z) stays finite
    np.negative(a, out=a)
    np.exp(a, out=a)
    a += 1
    np.reciprocal(a, out=a)


def _sigmoid_prime(z: Array, a: Array, delta: Array) -> None:
    delta *= a
    delta *= 1 - a


def _tanh_prime(z: Array, a: Array, delta: Array) -> None:
    delta *= 1 - a * a


def _relu_prime(z: Array, a: Array, delta: Array) -> None:
    delta *= z > 0


def _leaky_relu(z: Array, a: Array) -> None:
    np.multiply(z, LEAK, out=a)
    np.maximum(z, a, out=a)


def _leaky_relu_prime(z: Array, a: Array, delta: Array) -> None:
    np.multiply(delta, LEAK, out=delta, where=z <= 0)


def _gelu_tanh(z: Array) -> Array:
    z = np.clip(z, -30.0, 30.0)  # tanh is +-1 in every bit long before, and the cube stays finite
    return np.tanh(GELU_SCALE * (z + GELU_CUBE * z * z * z))


def _gelu(z: Array, a: Array) -> None:
    np.multiply(0.5 * z, 1 + _gelu_tanh(z), out=a)


def _gelu_prime(z: Array, a: Array, delta: Array) -> None:
    t = _gelu_tanh(z)
    z = np.clip(z, -30.0, 30.0)
    delta *= 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * (GELU_SCALE * (1 + 3 * GELU_CUBE * z * z))


def _softplus(z: Array, a: Array) -> None:
    np.abs(z, out=a)
    np.negative(a, out=a)
    np.exp(a, out=a)
    np.log1p(a, out=a)
    a += np.maximum(z, 0)


def _softplus_prime(z: Array, a: Array, delta: Array) -> None:
    s = np.empty_like(z)
    _sigmoid(z, s)
    delta *= s


def _softmax(z: Array, a: Array) -> None:
    np.subtract(z, z.max(axis=-1, keepdims=True), out=a)  # each row's own maximum
    np.exp(a, out=a)
    a /= a.sum(axis=-1, keepdims=True)


def _softmax_prime(z: Array, a: Array, delta: Array) -> None:
    delta -= (delta * a).sum(axis=-1, keepdims=True)
    delta *= a


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("sigmoid", _sigmoid, _sigmoid_prime),
        Activation("tanh", lambda z, a: np.tanh(z, out=a), _tanh_prime),
        Activation("relu", lambda z, a: np.maximum(z, 0, out=a), _relu_prime),
        Activation("leaky_relu", _leaky_relu, _leaky_relu_prime),
        Activation("gelu", _gelu, _gelu_prime),
        Activation("softplus", _softplus, _softplus_prime),
        Activation("identity", lambda z, a: np.copyto(a, z), lambda z, a, delta: None),
        Activation("softmax", _softmax, _softmax_prime),
    )
}
