"""Scaling from the training rows: statistics of each shard, merged in one fixed tree, so the same on any rank count.

A shard's columns are walked in blocks of a fixed number of rows; two sets of (n, mean, M2) with M2 the sum of squared
deviations from the mean are merged without cancellation. Shards are merged neighbours first, like every sum of a run.

    standard   x -> (x - mean) / sqrt(M2 / n)
    minmax     x -> (x - min) / (max - min)

A column that is constant is only shifted. Statistics are float64 and cover every training row.

Shapes: statistics (5, columns): n, mean, M2, min, max. shift, factor (columns,).

References
----------
T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979,
equation 2.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 4096  # rows
N, MEAN, M2, MIN, MAX = range(5)


def statistics(values: Array) -> Array:
    """Return the statistics of the rows of one block, (rows, columns) -> (5, columns) float64."""
    result = np.zeros((5, values.shape[1]))
    result[MIN], result[MAX] = np.inf, -np.inf
    if len(values):
        x = values.astype(np.float64)
        result[N] = len(x)
        with np.errstate(invalid="ignore", over="ignore"):  # nan and infinity, where the user allows them
            result[MEAN] = x.sum(axis=0) / len(x)
            result[MIN], result[MAX] = x.min(axis=0), x.max(axis=0)
            x -= result[MEAN]
            x *= x
            result[M2] = x.sum(axis=0)
    return result


def merge(left: Array, right: Array) -> Array:
    """Return the statistics of two sets of rows together."""
    n = left[N] + right[N]
    safe = np.maximum(n, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = right[MEAN] - left[MEAN]
        result = np.stack([
            n,
            left[MEAN] + apart * (right[N] / safe),
            left[M2] + right[M2] + apart * apart * (left[N] * right[N] / safe),
            np.minimum(left[MIN], right[MIN]),
            np.maximum(left[MAX], right[MAX]),
        ])  # fmt: skip
    if not left[N].any():
        return right.copy()
    return left.copy() if not right[N].any() else result


class Scaling:
    """x -> (x - shift) * factor, column by column, in float64 and then rounded once.

    Attributes
    ----------
    shift, factor
        (columns,) float64.
    """

    def __init__(self, shift: Array, factor: Array) -> None:
        self.shift, self.factor = shift, factor
        self.plain = not shift.any() and bool((factor == 1).all())

    @classmethod
    def of(cls, kind: str, of_all: Array) -> Scaling:
        """Return the scaling of a kind (none, standard, minmax) for merged statistics.

        Raises
        ------
        ValueError
            A column of finite numbers is spread too widely, or too narrowly, to be scaled in float64.
        """
        shift, width = np.zeros(of_all.shape[1]), np.ones(of_all.shape[1])
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if kind == "standard":
                shift, width = of_all[MEAN].copy(), np.sqrt(of_all[M2] / np.maximum(of_all[N], 1))
            elif kind == "minmax":
                shift, width = of_all[MIN].copy(), of_all[MAX] - of_all[MIN]
            factor = np.where(of_all[MIN] == of_all[MAX], 1.0, 1 / width)
        if kind == "none":
            factor = width
        finite = np.isfinite(of_all[MIN]) & np.isfinite(of_all[MAX])
        unusable = finite & ~(np.isfinite(factor) & (factor > 0))
        if unusable.any():
            column = int(np.flatnonzero(unusable)[0])
            raise ValueError(
                f"column {column}: expected values that {kind} scaling can bring together, "
                f"got {of_all[MIN, column]:g} ... {of_all[MAX, column]:g}. Give that column in other units."
            )
        return cls(shift, factor)

    def apply(self, values: Array, dtype: Any) -> Array:
        """Return scaled rows as `dtype`, a new array."""
        if self.plain:
            return values.astype(dtype)
        return ((values - self.shift) * self.factor).astype(dtype)

    def undo(self, values: Array) -> Array:
        """Return rows in their own units, float64 where they were scaled, else as they are."""
        return values if self.plain else values / self.factor + self.shift
