"""One step of training, the heart of distbp. Read this first.

    1. each rank, for its own shards:   (1) (2) forward, (4) (5) (6) backward   -> sums of gradient, cost, rows
    2. the tree sum over all shards                                           -> the same totals on every rank
    3. a total that is not finite ends the run here, before the step
    4. divide once by the global number of rows; (7) the same descent step on every rank

The flags that all ranks must agree on ride in the same message as the gradient.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distbp.data.order import Order
from distbp.data.part import Part
from distbp.data.shards import Batches
from distbp.descent.gradient import mean_gradient
from distbp.descent.rules import Rule
from distbp.network.network import Network
from distbp.network.passes import Pass, drop
from distbp.parallel.tree import TreeSum
from distbp.parallel.world import AgreedRuntimeError, World, shards_of

Array = NDArray[Any]

COST, ROWS, STOP, SAVE, END, FAILED = range(6)  # tallies: sums over shards, then flags, sums over ranks
N_TALLIES = 6


class Totals(NamedTuple):
    """What one step found: `cost` is a sum over the `rows` of the batch; flags are true if any rank raised them."""

    cost: float
    rows: float
    stop: bool
    save: bool
    end: bool
    failed: bool


class Stepper:
    """Takes the steps of a run on one rank.

    Parameters
    ----------
    world, network, rule, theta
        `theta`, (n_parameters,), and the rule's state are changed in place by each step.
    part, batches, seed
        The training rows, and which of them each step takes.
    """

    def __init__(
        self, world: World, network: Network, rule: Rule, theta: Array, part: Part, batches: Batches, seed: int
    ) -> None:
        self.world, self.network, self.rule, self.theta = world, network, rule, theta
        self.part, self.batches, self.seed = part, batches, seed
        self.own = shards_of(world.rank, world.size, batches.n_shards)
        self.orders = [Order(seed, shard, part.n_own(i)) for i, shard in enumerate(self.own)]
        self.tree = TreeSum(world, batches.n_shards, N_TALLIES, theta.size, theta.dtype)
        self.W, self.b = network.layout.views(theta)
        self.passes: dict[tuple[int, int], Pass] = {}
        self.costs = np.zeros(len(self.own))  # of the own shards in this step
        self.step = 0
        self.compute_seconds = 0.0  # spent outside communication since it was last set to 0

    @np.errstate(over="ignore", invalid="ignore")  # a cost that is not finite is found and told below
    def take(self, step: int, eta: float, flags: Array) -> Totals:
        """Take the step from `step` to `step` + 1. **Collective.**

        Parameters
        ----------
        eta
            Learning rate.
        flags
            (N_TALLIES,) float64: what this rank adds to STOP, SAVE, END and FAILED.

        Raises
        ------
        AgreedRuntimeError
            The cost or the gradient is not finite; theta and the rule's state are those before the step.
        """
        self.step = step
        tallies, grad = self.tree.sum(self.partial, flags)  # 1, 2
        started = time.perf_counter()
        cost, rows, stop, save, end, failed = tallies.tolist()
        norm = mean_gradient(grad, rows)  # 4
        if not (math.isfinite(cost) and math.isfinite(norm)):
            self.refuse(cost)  # 3
        self.rule.descend(self.theta, grad, norm, eta, step + 1)  # (7)
        self.compute_seconds += time.perf_counter() - started
        return Totals(cost, rows, stop > 0, save > 0, end > 0, failed > 0)

    def partial(self, start: int, stop: int, tallies: Array, vectors: Array) -> None:
        """Write the sums of the own shards `start` ... `stop` - 1, one row each. **Local.**

        Gradients go into `vectors`, (k, n_parameters), cost and rows into `tallies`, (k, N_TALLIES).
        """
        started = time.perf_counter()
        k, rows = stop - start, self.batches.shape(self.step)
        pass_ = self.passes.get((k, rows))
        if pass_ is None:
            pass_ = self.passes[k, rows] = Pass(self.network, k, rows)
        epoch, counts, own = self.batches.epoch(self.step), [], start - self.own.start
        positions = np.zeros((k, rows), np.int64)  # in this rank's share; 0 stands where a short batch is padded
        for i in range(k):
            first, last = self.batches.taken(self.step, start + i)
            if last > first:
                if self.batches.steps_per_epoch == 1:  # the full batch has no order
                    found = np.arange(first, last)
                else:
                    found = self.orders[own + i].rows(epoch, first, last)
                positions[i, : last - first] = found + self.part.share.starts[own + i]
            counts.append(last - first)
        if len(self.part.share):
            flat = k * rows
            self.part.fill(positions.reshape(flat), pass_.x.reshape(flat, -1), pass_.y.reshape(flat, -1))
        pass_.count(counts)
        drop(self.network, pass_, self.seed, self.step, start)
        self.network.forward(self.W, self.b, pass_)  # (1) (2)
        self.network.backward(self.W, pass_, *self.network.layout.views(vectors))  # (4) (5) (6)
        tallies[...] = 0
        self.network.cost_sums(pass_, tallies[:, COST])
        tallies[:, ROWS] = counts
        self.costs[own : own + k] = tallies[:, COST]
        self.compute_seconds += time.perf_counter() - started

    def refuse(self, cost: float) -> None:
        """Raise the error of a step that is not finite, naming the shards it came from. **Collective.**"""
        bad = [shard for shard, c in zip(self.own, self.costs, strict=True) if not math.isfinite(c)]
        shards = [str(shard) for of_rank in self.world.exchange(bad) for shard in of_rank]
        what = "cost" if not math.isfinite(cost) else "gradient"
        got = f"{cost:g}" if what == "cost" else "nan or infinity"
        where = f" in shard{'s' if len(shards) > 1 else ''} {', '.join(shards)}" if shards else ""
        raise AgreedRuntimeError(
            f"step {self.step}: expected a finite {what}, got {got}{where}. "
            "Stopped before the step; lower descent.learning_rate or set descent.clip."
        )
