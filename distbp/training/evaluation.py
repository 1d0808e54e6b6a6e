"""Costs and metrics of a part: sums over its rows with a count, divided once; exact on any number of ranks.

Rows are taken in file order in blocks of a fixed shape, each shard's blocks added in order and the shards by the
tree. No row is padded into a sum or counted twice.

    accuracy   share of rows whose largest output is their class (labels: share of labels on the right side of 1/2)
    rmse, mae  over all rows and outputs, in the targets' own units
    r2         1 - sum (y - a)^2 / sum (y - mean y)^2 for each output, then the mean over outputs

Shapes: sums (k, n_sums) float64, one row a shard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.data import scaling
from distbp.data.part import Part
from distbp.data.scaling import Scaling
from distbp.data.source import Shape
from distbp.network.network import Network
from distbp.network.passes import Pass
from distbp.parallel.tree import fold_shards
from distbp.parallel.world import World
from distbp.training.signals import StopFlag

Array = NDArray[Any]

COST, N, STOP, RIGHT = range(4)  # then sums of e^2 and |e| of each output (regression), or the table (classification)
WIDEST_TABLE = 200  # classes; a wider table is not counted: it would be larger than the data


def block_rows(network: Network) -> int:
    """Return the rows of one block: a function of the widths alone, never of ranks or of the data."""
    return int(max(16, min(256, (1 << 20) // max(network.widths))))


@dataclass(frozen=True)
class Evaluation:
    """What a part costs: `mean_cost`, the metrics by name, and the confusion table (rows: true class) if asked for."""

    rows: int
    mean_cost: float
    metrics: dict[str, float]
    confusion: NDArray[np.int64] | None
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, float | None]:
        """Return cost and metrics as JSON holds them: null for one that is not finite."""
        values = {"cost": self.mean_cost, **self.metrics}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


class Evaluator:
    """Evaluates theta on a part, on all ranks together."""

    def __init__(self, world: World, network: Network, shape: Shape, y_scaling: Scaling, n_shards: int) -> None:
        self.world, self.network, self.y_scaling, self.n_shards = world, network, y_scaling, n_shards
        self.task, self.classes = shape.task, shape.classes
        self.rows = block_rows(network)
        self.n_outputs = network.widths[-1]
        self._pass: Pass | None = None

    @np.errstate(over="ignore", invalid="ignore")  # the cost of a diverged network may be infinite
    def evaluate(self, theta: Array, part: Part, stop: StopFlag, confusion: bool = False) -> Evaluation | None:
        """Return cost and metrics over all rows of a part, or None if any rank was asked to stop. **Collective.**"""
        table = confusion and self.task == "classification" and self.n_outputs <= WIDEST_TABLE
        n_sums = 4 + (2 * self.n_outputs if self.task == "regression" else self.n_outputs**2 if table else 0)
        k = len(part.share.starts) - 1
        sums = np.zeros((k, n_sums))
        of_y = np.zeros((k, 5, self.n_outputs if self.task == "regression" else 0))  # statistics of targets, for r2
        W, b = self.network.layout.views(theta)
        pass_ = self._pass = self._pass or Pass(self.network, 1, self.rows, training=False)
        for s in range(k):
            first = part.share.starts[s]
            for start in range(0, part.n_own(s), self.rows):
                if stop:
                    break
                n = min(self.rows, part.n_own(s) - start)
                part.fill(first + np.arange(start, start + n), pass_.x[0, :n], pass_.y[0, :n])
                pass_.count([n])
                self.network.forward(W, b, pass_)
                found = self._add(pass_, n, sums[s], table)
                if found is not None:
                    of_y[s] = scaling.merge(of_y[s], found)
        sums[:1, STOP] = bool(stop)
        total = fold_shards(self.world.gather_shards(sums, self.n_shards))
        spread = np.empty(0)
        if self.task == "regression":
            spread = fold_shards(self.world.gather_shards(of_y, self.n_shards), scaling.merge)[scaling.M2]
        return None if total[STOP] else self._result(total, spread, table)

    def _add(self, pass_: Pass, n: int, sums: Array, table: bool) -> Array | None:
        """Add one block's sums; return the statistics of its targets. Its shape is the same wherever it is computed."""
        L = self.network.n_layers
        z, a, y = pass_.z[L][0, :n], pass_.a[L][0, :n], pass_.y[0, :n]
        sums[COST] += self.network.cost.per_sample(z, a, y, pass_.scratch[L][:, 0, :n]).astype(np.float64).sum()
        sums[N] += n
        if self.task == "classification":
            true, guess = y.argmax(axis=-1), a.argmax(axis=-1)
            sums[RIGHT] += np.count_nonzero(true == guess)
            if table:
                sums[4:] += np.bincount(true * self.n_outputs + guess, minlength=self.n_outputs**2)
        elif self.task == "labels":
            sums[RIGHT] += np.count_nonzero((a > 0.5) == (y > 0.5))
        else:
            y = self.y_scaling.undo(y.astype(np.float64))
            e = self.y_scaling.undo(a.astype(np.float64)) - y
            sums[4:].reshape(2, -1)[...] += [(e * e).sum(axis=0), np.abs(e).sum(axis=0)]
            return scaling.statistics(y)
        return None

    def _result(self, total: Array, spread: Array, table: bool) -> Evaluation:
        rows = int(total[N])
        if not rows:
            return Evaluation(0, float("nan"), {}, None, self.classes)
        confusion = None
        if self.task == "regression":
            e2, e1 = total[4:].reshape(2, -1)
            r2 = np.where(spread > 0, 1 - e2 / np.where(spread > 0, spread, 1), np.where(e2 > 0, 0.0, 1.0))
            n = rows * self.n_outputs
            metrics = {"r2": float(r2.mean()), "rmse": float((e2.sum() / n) ** 0.5), "mae": float(e1.sum() / n)}
        else:
            labels = self.n_outputs if self.task == "labels" else 1
            metrics = {"accuracy": float(total[RIGHT] / (rows * labels))}
            if table:
                confusion = total[4:].reshape(self.n_outputs, -1).astype(np.int64)
        return Evaluation(rows, float(total[COST] / rows), metrics, confusion, self.classes)
