"""C: what a sample costs, and its derivative, for every cost.

``per_sample(z, a, y, scratch)`` returns C of each row (a sum over the outputs, never a mean);
``start_delta(z, a, y, delta)`` writes where the backward pass starts. For a cost that is `fused` with its last
activation this is delta[L] = dC/dz itself, which is a - y and safe at any z; for the others it is dC/da, and equation
(4) multiplies by sigma'.

    quadratic              C = 1/2 ||y - a||^2                      (3)
    cross_entropy          C = -sum y log softmax(z)                delta[L] = a - y     where each row of y sums to 1
    binary_cross_entropy   C = -sum y log a + (1-y) log(1-a)        delta[L] = a - y     a = sigmoid(z)
    absolute               C = sum |y - a|
    huber                  C = sum e^2/2 where |e| <= d, else d (|e| - d/2);  e = a - y, d = huber_width

Shapes: z, a, y, delta (..., rows, n_L); scratch (2, ..., rows, n_L); per_sample returns (..., rows). Everything here is
of one row alone.

References
----------
P. Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35, 1964, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Cost:
    """C by name; `fused` names the last activation whose sigma' is already in `start_delta`."""

    name: str
    per_sample: Callable[[Array, Array, Array, Array], Array]
    start_delta: Callable[[Array, Array, Array, Array], object]
    fused: str = ""


def _difference(z: Array, a: Array, y: Array, delta: Array) -> None:
    np.subtract(a, y, out=delta)


def _quadratic(z: Array, a: Array, y: Array, scratch: Array) -> Array:
    e = np.subtract(a, y, out=scratch[0])
    return 0.5 * np.vecdot(e, e)  # type: ignore[no-any-return]


def _cross_entropy(z: Array, a: Array, y: Array, scratch: Array) -> Array:
    shifted = np.subtract(z, z.max(axis=-1, keepdims=True), out=scratch[0])
    picked = np.multiply(y, shifted, out=scratch[1]).sum(axis=-1)
    np.exp(shifted, out=shifted)
    return np.log(shifted.sum(axis=-1)) - picked  # type: ignore[no-any-return]


def _binary_cross_entropy(z: Array, a: Array, y: Array, scratch: Array) -> Array:
    c, other = scratch
    np.clip(z, 0, np.inf, out=c)
    c -= np.multiply(z, y, out=other)
    np.abs(z, out=other)
    np.negative(other, out=other)
    np.exp(other, out=other)
    c += np.log1p(other, out=other)
    return c.sum(axis=-1)  # type: ignore[no-any-return]


def _absolute(z: Array, a: Array, y: Array, scratch: Array) -> Array:
    e = np.subtract(a, y, out=scratch[0])
    return np.abs(e, out=e).sum(axis=-1)  # type: ignore[no-any-return]


def _absolute_start(z: Array, a: Array, y: Array, delta: Array) -> None:
    np.subtract(a, y, out=delta)
    np.sign(delta, out=delta)


def _huber(width: float) -> Cost:
    def per_sample(z: Array, a: Array, y: Array, scratch: Array) -> Array:
        e, inner = scratch
        np.abs(np.subtract(a, y, out=e), out=e)
        np.minimum(e, min(width, float(np.finfo(e.dtype).max)), out=inner)
        e -= 0.5 * inner
        e *= inner
        return e.sum(axis=-1)  # type: ignore[no-any-return]

    def start_delta(z: Array, a: Array, y: Array, delta: Array) -> None:
        np.subtract(a, y, out=delta)
        limit = min(width, float(np.finfo(delta.dtype).max))
        np.clip(delta, -limit, limit, out=delta)

    return Cost("huber", per_sample, start_delta)


def cost(name: str, huber_width: float = 1.0) -> Cost:
    """Return the cost called `name`."""
    if name == "huber":
        return _huber(huber_width)
    return {
        c.name: c
        for c in (
            Cost("quadratic", _quadratic, _difference),
            Cost("cross_entropy", _cross_entropy, _difference, "softmax"),
            Cost("binary_cross_entropy", _binary_cross_entropy, _difference, "sigmoid"),
            Cost("absolute", _absolute, _absolute_start),
        )
    }[name]
