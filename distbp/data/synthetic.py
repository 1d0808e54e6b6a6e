"""Rows without a file: a small seeded network, the teacher, says what the targets are.

Row i is a pure function of (seed, i), so that any rank makes just the rows it needs, and any rows are the same bytes
whichever are asked for together:

    x[i, k] = 2 u - 1                         u keyed by i * n_features + k, with 24 bits: exact in float32
    o[i] = V tanh(U x[i])                     16 hidden units; the rows of V have length 1

and the target is the place of the largest o (classification), o itself (regression) or o > 0 (labels).

The products are stacked, one (1, n_features) by (n_features, 16) product a row, because a BLAS takes other paths, with
other last bits, for other numbers of rows; this way every row is a product of the same shape. With no biases o is an
odd function of x, which is symmetric, so that each label is on in half of the rows; rows of V of one length keep the
classes roughly balanced.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp import keys
from distbp.data import targets
from distbp.data.source import Shape, Source, Task, check_features
from distbp.settings import Data

HIDDEN = 16
BLOCK_ROWS, BLOCK_VALUES = 4096, 1 << 21  # made at once: at most so many rows, and so many values of x


class Synthetic(Source):
    """Rows made by a seeded teacher network; see `Source`.

    Raises
    ------
    ValueError
        The settings do not fit each other or `like`.
    """

    name = "synthetic"
    again = True

    def __init__(self, data: Data, cost: str, seed: int, like: Shape | None, target: bool) -> None:
        self.n_rows, self.n_features = data.rows, data.features
        self.feature_names = like.feature_names if like else ()
        check_features("synthetic", data.features, like)
        by_cost: Task = "regression" if cost in ("quadratic", "absolute", "huber") else "classification"
        self.task = targets.decide(data.task, cost, like, by_cost)
        self.n_outputs = data.outputs
        self.classes: tuple[str, ...] = ()
        self._target = target
        if self.task == "classification":
            self.classes = tuple(map(str, range(data.outputs)))
            if data.outputs < 2:
                raise ValueError(
                    f"data.outputs: expected at least 2 for classification, got {data.outputs}. "
                    'Set it higher, or data.task = "regression".'
                )
        if like is not None and target and (self.n_outputs, self.classes) != (like.n_outputs, like.classes):
            raise ValueError(
                f"synthetic: expected the {like.n_outputs} outputs of training, got {data.outputs} "
                "of its own. Use the data settings of training."
            )
        if like is not None:
            self.n_outputs, self.classes = like.n_outputs, like.classes
        self._key = keys.key(keys.SYNTHETIC, seed, 0)
        self._U = _weights(keys.key(keys.SYNTHETIC, seed, 1), HIDDEN, data.features) * (3 / math.sqrt(data.features))
        V = _weights(keys.key(keys.SYNTHETIC, seed, 2), data.outputs, HIDDEN)
        self._V = V / np.sqrt((V * V).sum(axis=1, keepdims=True))

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return features (float32) and targets of some rows; see `Source.read`. **Local.**"""
        x = np.empty((len(rows), self.n_features), np.float32)
        if not self._target:
            y: NDArray[Any] = np.empty((len(rows), 0))
        elif self.task == "classification":
            y = np.empty(len(rows), np.int64)
        else:
            y = np.empty((len(rows), self.n_outputs))
        step = max(1, min(BLOCK_ROWS, BLOCK_VALUES // max(self.n_features, self.n_outputs)))
        columns = np.arange(self.n_features, dtype=np.uint64)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            numbers = rows[block].astype(np.uint64)[:, None] * np.uint64(self.n_features) + columns
            exact = (keys.mixed(self._key, numbers) >> np.uint64(40)).astype(np.float64)  # 24 bits
            exact *= 2.0**-23
            exact -= 1.0
            x[block] = exact
            if self._target:
                y[block] = self._targets(exact)
        return x, y

    def _targets(self, x: NDArray[np.float64]) -> NDArray[Any]:
        a = np.tanh(np.matmul(x[:, None, :], self._U.T))  # (m, 1, HIDDEN)
        o = np.matmul(a, self._V.T)[:, 0, :]  # (m, n_outputs)
        if self.task == "classification":
            return np.asarray(o.argmax(axis=1))
        return np.asarray(o if self.task == "regression" else o > 0)

    def place(self, row: int, column: int | None) -> str:
        """Return how to name one feature of a row, or its target (None), to the user."""
        return f"synthetic: row {row}" if column is None else f"synthetic: row {row}, column {column}"


def _weights(of_key: int, n: int, width: int) -> NDArray[np.float64]:
    """Return seeded weights (n, width), uniform on [-1, 1)."""
    return 2 * keys.uniform(of_key, np.arange(n * width, dtype=np.uint64)).reshape(n, width) - 1
